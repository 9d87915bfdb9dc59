"""Pixels that are not there: what the kernels of windows and box sums make of a mask, against PyTorch in float64."""

import pytest
import torch

import tritoncrf as tc
from assertions import assert_close
from cases import Setting, interpreted, random_features, random_logits
from filter_catalogue import GUIDED, WINDOW, assert_alike, assert_loop_within_budget, results

SYMMETRIC, BEFORE, AFTER = ({"normalization": n} for n in ("symmetric", "before", "after"))


def masked(kind):
    """A filter of `holes`, a mask that depends on their seed alone; None for no mask."""

    def make(features, backend, holes=0, **options):
        valid = None
        if holes is not None:
            generator = torch.Generator().manual_seed(holes)
            valid = torch.rand(1, *features.shape[2:], generator=generator) < 0.7
            valid[:, -2:] = False
            valid = valid.to(features.device)
        return kind(features, backend=backend, valid=valid, **options)

    return make


def setting(options, **form):
    return {"windows": [{"window_size": 3, **one} for one in options], **form}


WINDOWS = {
    "one": setting([SYMMETRIC], size=(5, 9), channels=(5,)),
    "plain": setting([{}], size=(5, 9), weight="class"),
    "two-scalars": setting([SYMMETRIC, SYMMETRIC], size=(6, 9)),
    "two-scalars-of-other-pixels": setting([SYMMETRIC, {**SYMMETRIC, "holes": 1}], size=(6, 9)),
    "two-scalars-one-masked": setting([{}, {"holes": None}], size=(6, 9)),
    "before-and-after": setting([BEFORE, AFTER], size=(6, 9), batch=2, shared=False),
    "by-class": setting([SYMMETRIC, SYMMETRIC], size=(6, 9), weight="class", classes=4),
    "matrix": setting([AFTER], size=(4, 7), weight="matrix"),
    "volume": setting([SYMMETRIC, AFTER], size=(3, 3, 4), weight="class", classes=2, strength=0.3),
    "many-classes": setting([SYMMETRIC, SYMMETRIC], size=(4, 5), classes=33),
    "blur": setting([{**SYMMETRIC, "blur": 2}], size=(8, 9)),
    "blur-two": setting([{**AFTER, "blur": 2}, {**AFTER, "blur": 2}], size=(7, 10), weight="class"),
}  # fmt: skip


@pytest.mark.parametrize("name", interpreted(WINDOWS, "two-scalars-of-other-pixels", "blur-two"))
def test_the_loop_of_windows_and_every_gradient(name, device):
    assert_loop_within_budget(Setting(kind=masked(tc.filters.Window), **WINDOWS[name]), device)


@pytest.mark.parametrize("weights", [(0.9, 0.5), (-0.7, 0.4), (0.8, 0.0)])
def test_positions_beside_appearance(weights, device):
    """As `refine` has them; the first and the last position are among those that are not there."""
    size, appearance = (6, 9), random_features((6, 9), 3)
    logits, valid = random_logits(size, 5), torch.rand(1, *size) < 0.7
    valid[0, 0, 0] = valid[0, -1, -1] = False

    def run(device, dtype, backend):
        positions = tc.features.evenly_spaced(tc.features.spatial(size, 1.5, dtype=dtype, device=device))
        filters = [
            tc.filters.Window(f, 3, normalization="symmetric", backend=backend, valid=valid.to(device))
            for f in (positions, appearance.to(device, dtype))
        ]
        assert [f.plan.positions for f in filters] == [True, False]
        u = logits.to(device, dtype).requires_grad_()
        scores = tc.mean_field(u, filters, list(weights), iterations=2, output="logits")
        return scores, torch.autograd.grad(scores, u, logits.flip(1).to(u))[0]

    for what, one, other in zip(("scores", "gradient"), run(device, torch.float32, "triton"),
                                run("cpu", torch.float64, "torch"), strict=True):  # fmt: skip
        assert_close(what, one, other, dtype=torch.float32)


GUIDES = {
    "image": ((6, 8), 3, {"radius": 2}),
    "constant": ((6, 8), 2, {"radius": 2, "box": "constant"}),
}


@pytest.mark.parametrize("name", interpreted(GUIDES, "constant"))
def test_a_guided_filter_and_its_gradients(name, device):
    size, channels, options = GUIDES[name]
    inputs, make = GUIDED.inputs(size, channels), masked(tc.filters.Guided)

    def apply(backend):
        return lambda values, guide, eps: make(guide, backend, eps=eps, **options)(values)

    for wanted, cotangent in (["values", "guide"], None), (["eps"], inputs["values"]):
        given = {"wanted": wanted, "cotangent": cotangent}
        found = results(apply("triton"), inputs, dtype=torch.float32, device=device, **given)
        assert_alike(found, results(apply("torch"), inputs, **given), dtype=torch.float32)


def test_a_loop_of_a_guided_filter(device):
    options = {"radius": 2, "eps": 0.2}
    problem = Setting((6, 8), [options], kind=masked(tc.filters.Guided), weight="class", channels=(3,))
    assert_loop_within_budget(problem, device, close=True)


def test_messages_are_0_to_the_last_bit_where_no_pixel_is(device):
    for case, options in (WINDOW, SYMMETRIC), (WINDOW, {"blur": 2}), (GUIDED, {}):
        features, valid = torch.rand(1, 3, 7, 9, device=device), torch.rand(1, 7, 9, device=device) < 0.5
        found = case.filter(features, "triton", valid=valid, **options)(torch.rand(1, 2, 7, 9, device=device))
        assert found[..., valid[0]].all() and not found[..., ~valid[0]].any()
