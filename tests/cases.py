"""Random inputs, and the same mathematics once more in dense matrices that nobody could get wrong twice.

A filter here is its N x N matrix, built from features by `torch.exp`, and differentiated by autograd: the
opposite of the library, which never forms it and writes every derivative out.
"""

import itertools
import math

import pytest
import torch

import tritoncrf as tc
from assertions import assert_close

NORMALIZATIONS = ("none", "before", "after", "symmetric")


def interpreted(cases, *names: str) -> list:
    """The names of `cases` as parameters; `make test` runs those of `names` in Triton's interpreter too, `make test-extras` for sm_80.

    They are about one test for each kernel and branch: what is compiled runs in the emulator.
    """
    assert set(names) <= set(cases), set(names) - set(cases)
    return [pytest.param(name, marks=pytest.mark.interpreter) if name in names else name for name in cases]


def random_features(size, channels: int = 2, batch: int = 1, dtype=torch.float64) -> torch.Tensor:
    """[B, D, *S] whose Gaussian weights fill (0, 1)."""
    return torch.randn(batch, channels, *size, dtype=torch.float64).mul(0.8 / math.sqrt(channels)).to(dtype)


def random_logits(size, classes: int = 3, batch: int = 1, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(batch, classes, *size, dtype=torch.float64).mul(2).to(dtype)


def leaves(*tensors) -> list[torch.Tensor]:
    """Copies that require gradients."""
    return [t.detach().clone().requires_grad_() for t in tensors]


def strided(x: torch.Tensor) -> torch.Tensor:
    """The same values (and gradients), neighbours apart in memory, NaN between them, the last two axes exchanged."""
    if x.ndim == 0:
        return x
    turned = x.mT if x.ndim > 1 else x
    turned = torch.stack([turned, torch.full_like(turned, math.nan)], -1)[..., 0]
    return turned.mT if x.ndim > 1 else turned


# Dense matrices ---------------------------------------------------------------------------------------------------


def axis_pool(n: int, b: int) -> torch.Tensor:
    """[ceil(n / b), n]: the mean over each block's pixels that are in the image."""
    low, pad = -(-n // b), math.ceil((-n % b) / 2)
    matrix = torch.zeros(low, n, dtype=torch.float64)
    for i in range(n):
        matrix[(i + pad) // b, i] = 1
    return matrix / matrix.sum(1, keepdim=True)


def axis_upsample(n: int, b: int) -> torch.Tensor:
    """[n, ceil(n / b)]: linear interpolation between block centres, constant beyond the outermost ones."""
    low, pad = -(-n // b), math.ceil((-n % b) / 2)
    matrix = torch.zeros(n, low, dtype=torch.float64)
    for i in range(n):
        source = min(max((i + pad + 0.5) / b - 0.5, 0), low - 1)
        first = math.floor(source)
        matrix[i, first] += 1 - (source - first)
        if source > first:
            matrix[i, first + 1] += source - first
    return matrix


def along_axes(matrix, size, b: int) -> torch.Tensor:
    """The separable matrix over all pixels of `size`."""
    full = torch.ones(1, 1, dtype=torch.float64)
    for n in size:
        full = torch.kron(full, matrix(n, b))
    return full


def box_mask(size, radii, dilation: int = 1) -> torch.Tensor:
    """[N, N]: whether j is one of the taps around i of a box with a radius per axis."""
    position = torch.tensor(list(itertools.product(*map(range, size))))  # [N, axes]
    offset = position[None] - position[:, None]
    reach = torch.tensor(radii) * dilation
    return ((offset.abs() <= reach) & (offset % dilation == 0)).all(-1)


def dense_box(size, radii, dilation: int = 1, box: str = "count") -> torch.Tensor:
    """The matrix of `box_mean`, [N, N]."""
    mask = box_mask(size, radii, dilation).double()
    if box == "count":
        return mask / mask.sum(1, keepdim=True)
    return mask / math.prod(min(2 * r + 1, math.ceil(n / dilation)) for n, r in zip(size, radii))


def dense_window(features, window_size, dilation=1, blur=1, include_self=True, normalization="none") -> torch.Tensor:
    """The matrix of `filters.Window`, [Bf, N, N]; differentiable with respect to the features."""
    size = features.shape[2:]
    pool, up = (along_axes(matrix, size, blur).to(features.dtype) for matrix in (axis_pool, axis_upsample))
    low = [-(-n // blur) for n in size]
    f = features.flatten(2) @ pool.mT  # [B, D, n]
    distance = (f[:, :, :, None] - f[:, :, None, :]).square().sum(1)
    mask = box_mask(low, [window_size // 2] * len(low), dilation)
    if not include_self:
        mask = mask & ~torch.eye(len(mask), dtype=torch.bool)
    return normalized(up @ torch.where(mask, torch.exp(-distance / 2), 0.0) @ pool, normalization)


def dense_exact(features, include_self=True, normalization="none") -> torch.Tensor:
    """The matrix of `filters.Exact`, [Bf, N, N], of all pairs; differentiable with respect to the features."""
    f = features.flatten(2)
    matrix = torch.exp((f[:, :, :, None] - f[:, :, None, :]).square().sum(1) / -2)
    if not include_self:
        matrix = matrix * (1 - torch.eye(f.shape[2], dtype=f.dtype))
    return normalized(matrix, normalization)


def normalized(matrix, normalization: str) -> torch.Tensor:
    """K [Bf, N, N] divided by its row sums, on the side or sides that the normalisation names."""
    r = matrix.sum(2)
    r = torch.where(r > 0, r, 1.0)  # an isolated pixel's row is 0 whatever divides it
    if normalization == "before":
        matrix = matrix / r[:, None, :]
    elif normalization == "after":
        matrix = matrix / r[:, :, None]
    elif normalization == "symmetric":
        matrix = matrix / (r[:, None, :] * r[:, :, None]).sqrt()
    return matrix


def dense_guided(guide, radius, eps, box="count", subsample=1) -> torch.Tensor:
    """The matrix of `filters.Guided`, [Bf, N, N], by its closed form; differentiable with respect to guide and eps.

    W_ij = sum_k M_ik M'_kj (1 + (I_i - mu_k)^T (Sigma_k + eps)^-1 (I_j - mu_k)), M and M' the box means; where it is
    subsampled, windows k and pixels j are those of the low resolution, and M is upsampled.
    """
    size, dimensions = guide.shape[2:], guide.shape[1]
    pool, up = (along_axes(matrix, size, subsample).to(guide.dtype) for matrix in (axis_pool, axis_upsample))
    radii = radius if isinstance(radius, tuple) else (radius,) * len(size)
    radii = [max(1, round(r / subsample)) for r in radii]
    mean = dense_box([-(-n // subsample) for n in size], radii, 1, box).to(guide.dtype)
    full = guide.flatten(2)  # [B, D, N]
    low = full @ pool.mT  # [B, D, n]
    mu = low @ mean.mT
    second = torch.einsum("kj,bdj,bej->bkde", mean, low, low)
    sigma = second - torch.einsum("bdk,bek->bkde", mu, mu)
    inverse = torch.linalg.inv(sigma + eps * torch.eye(dimensions, dtype=guide.dtype))
    here, there = (image[:, :, None] - mu[..., None] for image in (full, low))  # [B, D, k, pixels]
    alike = 1 + torch.einsum("bdki,bkde,bekj->bkij", here, inverse, there)
    return torch.einsum("ik,kj,bkij->bij", up @ mean, mean, alike) @ pool


def dense_apply(matrix, x) -> torch.Tensor:
    """K x for K [Bf, N, N] and x [B, C, *S]."""
    return (x.flatten(2) @ matrix.mT).view(x.shape)


def dense_scores(logits, matrices, weights, compatibility="potts", iterations=5, unary_weight=1.0,
                 initial="softmax", damping=0.0, temperature=1.0) -> torch.Tensor:  # fmt: skip
    """S_T / tau of mean field by the general formula S = a U - mu sum_m W_m K_m Q, all in [C, C] matrices; damped the
    logarithm of Q."""
    classes = logits.shape[1]
    eye = torch.eye(classes, dtype=logits.dtype)

    def square(weight):
        weight = torch.as_tensor(weight, dtype=logits.dtype)
        return weight if weight.ndim == 2 else weight * eye

    mu = -eye if isinstance(compatibility, str) else compatibility
    unary = square(unary_weight) @ logits.flatten(2)
    scores = logits
    q = torch.softmax(scores, 1) if initial == "softmax" else torch.log_softmax(scores, 1)
    for _ in range(iterations):
        messages = sum(square(w) @ dense_apply(k, q).flatten(2) for w, k in zip(weights, matrices))
        scores = (unary - mu @ messages).view(logits.shape) / temperature
        q = (1 - damping) * torch.softmax(scores, 1) + damping * q
    return q.log() if damping and iterations else scores


# Mean field, described once and run anywhere ----------------------------------------------------------------------


class Setting:
    """A mean-field problem of random numbers: its tensors in float64, run in any dtype and by any backend.

    `windows` are keyword arguments of `kind`, a filter, one dict per filter; `weight` is "scalar", "class" or
    "matrix" (or one of these per filter); `channels` the features of each filter. `shared`: one image's features
    serve the batch, for all filters or one by one. `dense` makes the matrices of `kind`. A temperature is a tensor too.
    """

    def __init__(self, size, windows, *, classes=3, batch=1, shared=True, channels=(2, 3), weight="scalar",
                 compatibility=False, unary="scalar", initial="softmax", iterations=2, strength=0.7,
                 kind=tc.filters.Window, dense=dense_window, damping=0.0, temperature=None):  # fmt: skip
        weight = [weight] * len(windows) if isinstance(weight, str) else weight
        shared = [shared] * len(windows) if isinstance(shared, bool) else shared
        self.windows, self.initial, self.iterations, self.kind, self.dense = windows, initial, iterations, kind, dense
        self.logits = random_logits(size, classes, batch)
        self.features = [random_features(size, d, 1 if s else batch) for d, s, _ in zip(channels, shared, windows)]
        self.weights = [random_weight(form, classes, strength) for form in weight]
        self.unary_weight = random_weight(unary, classes, 0.9)
        self.compatibility = [torch.randn(classes, classes, dtype=torch.float64)] if compatibility else []
        self.temperature = [] if temperature is None else [torch.tensor(temperature, dtype=torch.float64)]
        self.damping = damping

    @property
    def names(self) -> list[str]:
        count = range(len(self.windows))
        names = ["logits", *(f"features[{m}]" for m in count), *(f"weights[{m}]" for m in count), "unary_weight"]
        return names + ["compatibility"] * len(self.compatibility) + ["temperature"] * len(self.temperature)

    @property
    def inputs(self) -> list[torch.Tensor]:
        own = [self.unary_weight, *self.compatibility, *self.temperature]
        return [self.logits, *self.features, *self.weights, *own]

    def unpack(self, inputs):
        """logits, features, and the loop's other arguments by name."""
        logits, *rest = inputs
        m = len(self.windows)
        features, weights, own = rest[:m], rest[m : 2 * m], iter(rest[2 * m :])
        options = {"weights": weights, "iterations": self.iterations, "initial": self.initial, "damping": self.damping}
        options["unary_weight"] = next(own)
        for name in self.names[1 + 2 * m + 1 :]:
            options[name] = next(own)
        return logits, features, options

    def run(self, *inputs, backend="torch", output="logits"):
        """The library."""
        logits, features, options = self.unpack(inputs)
        filters = [self.kind(f, backend=backend, **w) for f, w in zip(features, self.windows)]
        return tc.mean_field(logits, filters, **options, output=output)

    def run_dense(self, *inputs):
        """The dense matrices."""
        logits, features, options = self.unpack(inputs)
        return dense_scores(logits, [self.dense(f, **w) for f, w in zip(features, self.windows)], **options)

    def gradients(self, run, wanted=None, dtype=torch.float64, device="cpu", make=lambda x: x):
        """Scores, and the gradients of <cotangent, scores> (a fixed random one) with respect to the inputs wanted."""
        inputs = leaves(*(x.to(device, dtype) for x in self.inputs))
        scores = run(*map(make, inputs))
        given = [x for x, name in zip(inputs, self.names) if wanted is None or name in wanted]
        return [scores.detach(), *torch.autograd.grad(scores, given, self.cotangent.to(device, dtype))]

    @property
    def cotangent(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(self.logits.shape, dtype=torch.float64, generator=generator)


def random_weight(form: str, classes: int, size: float) -> torch.Tensor:
    shape = {"scalar": (), "class": (classes,), "matrix": (classes, classes)}[form]
    return size * (1 + 0.3 * torch.randn(shape, dtype=torch.float64))


def disturbed(crf):
    """The layer with random parameters near its initial ones, which are too equal to tell one from another."""
    with torch.no_grad():
        for p in crf.parameters():
            p.mul_(1 + 0.1 * torch.randn_like(p))
            if p.ndim > 1:
                p.add_(0.2 * torch.randn_like(p))
    return crf


def assert_exports_with_dynamic_sizes(module, inputs) -> None:
    """`inputs(size, batch)` are two tensors [batch, C, *size], both of dynamic batch and size."""
    b = torch.export.Dim("b")
    sizes = {0: b, 2: torch.export.Dim("h", min=2), 3: torch.export.Dim("w", min=2)}
    with torch.no_grad():
        exported = torch.export.export(module, inputs((6, 7), 2), dynamic_shapes=(sizes, sizes)).module()
        for given in inputs((9, 4), 3), inputs((5, 11), 1):
            assert_close("Q", exported(*given), module(*given))
