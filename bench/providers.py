"""Providers that compute a work, stage by stage: this library and its peers; the timed calls, and their errors.

A provider has `total()`, the whole call. A provider that builds its filters separately also has the other stages:

    smooth, appearance   the filter of either kernel
    loop                 the iterations, with filters built before
    kept                 the whole call with an existing smoothness filter, which does not depend on the picture
    build                all filters
"""

import copy
import functools
from dataclasses import replace

import numpy as np
import torch

import tritoncrf as tc
from bench.peers import BoxGuidedFilter, densecrf, guidance_scores, guided_blur, im2col_convcrf, keops_scores
from bench.timing import replayed
from bench.workloads import CRFWork, Inputs

SIZE_OF_EXACT_ERRORS = (96, 128)


class Provider:
    def __init__(self, inputs: Inputs):
        self.inputs, self.work = inputs, inputs.work

    def total(self):
        return self.loop(self.build())


class Tritoncrf(Provider):
    def smooth(self):
        return self.work.smooth(self.inputs)

    def appearance(self):
        return self.work.appearance(self.inputs)

    def build(self) -> list:
        return self.work.filters(self.inputs)

    def loop(self, filters, iterations=None) -> torch.Tensor:
        """S_T."""
        iterations = self.work.iterations if iterations is None else iterations
        inputs = self.inputs
        return tc.mean_field(inputs.logits, filters, inputs.weights, iterations=iterations, output="logits")

    def kept(self):
        inputs, work = self.inputs, self.work
        options = {"normalization": work.normalization, **inputs.form}
        return self.loop([tc.filters.Lattice.spatial(work.size, inputs.thetas[0], **options), self.appearance()])


class Im2col(Provider):
    """The published code's algorithm. Its scores differ from ours by details of the release, but the amount of work is
    the same."""

    def total(self):
        inputs, work = self.inputs, self.inputs.work
        return im2col_convcrf(
            inputs.logits, inputs.image, size=work.window_size, blur=work.blur, iterations=work.iterations,
            theta_position=inputs.thetas[0], theta_color=inputs.thetas[1], weight_position=inputs.weights[0],
            weight_color=inputs.weights[1], normalization=work.normalization, merge=work.normalization == "none",
        )  # fmt: skip


class Pydensecrf(Provider):
    """One process, one thread of a CPU, one image. Its inputs are converted before, outside the timing."""

    def __init__(self, inputs: Inputs):
        super().__init__(inputs)
        self.energy = np.ascontiguousarray(-inputs.logits[0].detach().flatten(1).cpu().numpy())
        self.picture = np.ascontiguousarray(inputs.pictures[0])
        theta_smooth, *thetas = inputs.thetas
        weight_smooth, weight = inputs.weights
        self.kernels = {"smooth": (theta_smooth, weight_smooth), "appearance": (*thetas, weight)}

    def _crf(self, *kernels):
        return densecrf(self.energy, self.picture, **{name: self.kernels[name] for name in kernels})

    def smooth(self):
        return self._crf("smooth")

    def appearance(self):
        return self._crf("appearance")

    def build(self):
        return self._crf("smooth", "appearance")

    def loop(self, crf) -> np.ndarray:
        """Q_T [C, N]."""
        return np.asarray(crf.inference(self.work.iterations))


class Pykeops(Provider):
    def total(self):
        inputs, work = self.inputs, self.inputs.work
        features = [work.smooth_features(inputs), work.appearance_features(inputs)]
        return keops_scores(inputs.logits, features, inputs.weights, work.iterations)


class TorchBoxes(Provider):
    """The guided filter written in plain PyTorch."""

    def build(self) -> BoxGuidedFilter:
        return BoxGuidedFilter(self.work.guide(self.inputs), self.work.radius, *self.inputs.thetas)

    def loop(self, filter):
        return guidance_scores(self.inputs.logits, filter, *self.inputs.weights, self.work.iterations)


class Kornia(Provider):
    """Each call processes the guide, so every iteration does so again."""

    def total(self):
        inputs, work = self.inputs, self.inputs.work
        guide = work.guide(inputs)
        filter = lambda q: guided_blur(guide, q, work.radius, *inputs.thetas)  # noqa: E731
        return guidance_scores(inputs.logits, filter, *inputs.weights, work.iterations)


PROVIDERS = {
    "tritoncrf": Tritoncrf,
    "im2col": Im2col,
    "pydensecrf": Pydensecrf,
    "pykeops": Pykeops,
    "torch_boxes": TorchBoxes,
    "kornia": Kornia,
}


def offers(name: str, stage: str) -> bool:
    return hasattr(PROVIDERS[name], stage)


def runner(name: str, inputs: Inputs, stage="total"):
    """The timed call: a stage without gradients, or the gradients of everything that is trained."""
    provider = PROVIDERS[name](inputs)
    if stage != "loop":
        return _differentiated(getattr(provider, stage), inputs)
    with torch.no_grad():
        built = provider.build()
    return _differentiated(lambda: provider.loop(built), inputs)


def _differentiated(call, inputs: Inputs):
    if inputs.learns:
        return lambda: torch.autograd.grad(call(), inputs.learned, inputs.cotangent)
    return torch.no_grad()(call)


def graphed(inputs: Inputs, stage="total"):
    """The call of `runner` for this library, as the replay of a CUDA graph.

    Building a lattice or an exact filter waits for the device, so it stays eager, followed by the replay of a loop that
    was captured with filters of the same inputs.
    """
    if not inputs.work.follows_picture:
        return replayed(runner("tritoncrf", inputs, stage))
    replay = replayed(runner("tritoncrf", inputs, "loop"))
    if stage == "loop":
        return replay
    build = Tritoncrf(inputs).build if stage == "total" else Tritoncrf(inputs).appearance

    def call():
        with torch.no_grad():
            build()
        replay()

    return call


@functools.lru_cache
def facts(work: CRFWork, device) -> dict:
    """What affects the time of a work besides its size."""
    if not work.follows_picture:
        return {}
    with torch.no_grad():
        return work.facts(Tritoncrf(Inputs(work, device)).build())


@functools.lru_cache
def errors(work: CRFWork, device, learns: str | None) -> dict:
    """Errors against float64 in PyTorch; for exact filters at 96 x 128, where that is quick.

    step_rms: of the scores after one iteration, relative. loop_rms, loop_max: of the probabilities after all,
    absolute. reference_rms, where the loop ran in Triton: loop_rms of PyTorch in float32, the rounding any
    float32 loop has. gradient_rms: the worst of the gradients, relative.

    The same lattice is used in float64 and float32, unless its features are trained: a float64 lattice may place a
    pixel between two simplices in the other one, which is not a rounding error of the filter.
    """
    if work.filter == "exact":
        work = replace(work, size=SIZE_OF_EXACT_ERRORS)
    exact, found = (Tritoncrf(Inputs(work, device, dtype, learns)) for dtype in (torch.float64, torch.float32))
    with torch.set_grad_enabled(learns == "features"):
        filters = found.build()
        truth = filters if work.filter == "lattice" and learns != "features" else exact.build()

    def gradients(provider, filters):
        return torch.autograd.grad(provider.loop(filters), provider.inputs.learned, provider.inputs.cotangent)

    if learns:
        pairs = zip(gradients(found, filters), gradients(exact, truth), strict=True)
        return {"gradient_rms": max(relative_rms(a, b) for a, b in pairs)}
    with torch.no_grad():
        exact_scores = exact.loop(truth).softmax(1)
        difference = found.loop(filters).double().softmax(1) - exact_scores
        measured = {
            "step_rms": relative_rms(found.loop(filters, 1), exact.loop(truth, 1)),
            "loop_rms": difference.square().mean().sqrt().item(),
            "loop_max": difference.abs().max().item(),
        }
        if found.inputs.logits.is_cuda:
            plain = found.loop([in_torch(f) for f in filters]).double().softmax(1) - exact_scores
            measured["reference_rms"] = plain.square().mean().sqrt().item()
    return measured


def in_torch(filter):
    """The same filter, applied by PyTorch."""
    filter = copy.copy(filter)
    filter.plan = replace(filter.plan, backend="torch")
    return filter


def relative_rms(found, exact) -> float:
    return ((found.double() - exact).norm() / exact.norm()).item()
