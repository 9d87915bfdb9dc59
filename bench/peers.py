"""The peers of tritoncrf: other ways to compute the same.

`im2col_convcrf` is the published ConvCRF's algorithm (Teichmann and Cipolla, 2018) as its code was released,
written here in plain PyTorch. It gathers every neighbour of every pixel into a [B, C, k^2, N] tensor and sums,
so it is slow and simple and needs much memory: the speed peer of `tc.ConvCRF`, and the reference of its
`preset="released"`.

`BoxGuidedFilter` is the textbook guided filter (He, Sun and Tang, 2013), based on PyTorch's average pooling.

`densecrf` runs pydensecrf, `keops_scores` KeOps and `guided_blur` kornia, if these are installed.
"""

import importlib
import importlib.metadata
import importlib.util
import math

import torch
import torch.nn.functional as F

OPTIONAL = ("pydensecrf", "pykeops", "kornia")
RELEASE_EPSILON = 1e-20  # added to a row sum before its inverse square root, as released


def versions() -> dict[str, str]:
    """The versions of the optional peers, or "not installed"."""
    return {name: _version(name) if installed(name) else "not installed" for name in OPTIONAL}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # a folder on the path
        return "of unknown version"


def installed(name: str) -> bool:
    return name not in OPTIONAL or importlib.util.find_spec(name) is not None


def im2col_convcrf(
    logits, image, *, size, blur, iterations, theta_position=3, theta_color=13, theta_space=None, weight_position=3,
    weight_color=10, class_weight=0.2, unary_weight=1, normalization="none", merge=True, compatibility=None,
):  # fmt: skip
    """The scores S_T of the released ConvCRF: [B, C, H, W].

    With L = log_softmax(logits), and Q_0 = L itself (the release does not exponentiate it):

        M = sum_m weight_m norm_m A_m (norm_m Q_t)
        S_{t+1} = (unary_weight - class_weight) L + class_weight (M + compatibility M)
        Q_{t+1} = softmax(S_{t+1})

    A_m is pool, Gaussian window of side `size`, upsample; norm_m is 1, or (A_m 1)^-1/2 where `normalization` is
    "symmetric". `merge` sums the weighted kernels before they are applied, which only works without normalisation.

    logits: [B, C, H, W]. image: [B, 3, H, W], uint8 in 0..255 or floating in 0..1. Thetas in pixels and in 0..255
    units. `theta_space`: adds the position to the colour kernel. `class_weight`: a float or [C].
    `compatibility`: [C, C], the 1x1 convolution whose result is added to the messages.
    """
    if normalization not in ("none", "symmetric"):
        raise ValueError(f"normalization must be 'none' or 'symmetric', got {normalization!r}")
    if merge and normalization != "none":
        raise ValueError("merge needs normalization 'none': merged kernels have no normaliser of their own")

    mesh = _mesh(logits)  # [1, 2, H, W]
    colour = image.to(logits.dtype) * (1 if image.dtype == torch.uint8 else 255) / theta_color
    if theta_space is not None:
        colour = torch.cat([(mesh / theta_space).expand(len(image), -1, -1, -1), colour], dim=1)
    windows = [_gaussian(_pool(f, blur), size) for f in (mesh / theta_position, colour)]  # each [B, 1, k^2, n]
    weights = [weight_position, weight_color]
    if merge:
        windows, weights = [sum(w * k for w, k in zip(weights, windows))], [1]
    ones = torch.ones_like(logits[:, :1])
    norms = [
        1 if normalization == "none" else (_filter(ones, k, size, blur) + RELEASE_EPSILON) ** -0.5 for k in windows
    ]

    class_weight = torch.as_tensor(class_weight, dtype=logits.dtype, device=logits.device).reshape(-1, 1, 1)
    unary = logits.log_softmax(1)
    q = unary
    for _ in range(iterations):
        messages = sum(w * n * _filter(n * q, k, size, blur) for w, n, k in zip(weights, norms, windows))
        if compatibility is not None:
            messages = messages + torch.einsum("lm,bmhw->blhw", compatibility, messages)
        scores = (unary_weight - class_weight) * unary + class_weight * messages
        q = scores.softmax(1)
    return scores if iterations else unary


def _mesh(like):
    """Row and column of every pixel: [1, 2, H, W]."""
    rows, columns = (torch.arange(n, dtype=like.dtype, device=like.device) for n in like.shape[2:])
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None]


def _padding(length, blur):
    return math.ceil((-length % blur) / 2)


def _pool(x, blur):
    """Average over blur x blur cells; padding does not count: [B, D, H, W] -> [B, D, ceil(H / b), ceil(W / b)]."""
    if blur == 1:
        return x
    padding = [_padding(n, blur) for n in x.shape[2:]]
    return F.avg_pool2d(x, blur, stride=blur, padding=padding, count_include_pad=False)


def _unpool(x, blur, height, width):
    if blur == 1:
        return x
    up = F.interpolate(x, scale_factor=blur, mode="bilinear", align_corners=False)
    top, left = _padding(height, blur), _padding(width, blur)
    return up[:, :, top : top + height, left : left + width]


def _im2col(x, size):
    """Every neighbour of every pixel, zero outside the image: [B, D, k^2, n]."""
    return F.unfold(x, size, padding=size // 2).unflatten(1, (x.shape[1], size * size))


def _gaussian(features, size):
    # Neighbours outside the image get a weight too, which does not matter, since the values unfold to zero there.
    difference = _im2col(features, size) - features.flatten(2)[:, :, None]
    return (-0.5 * difference.square().sum(1, keepdim=True)).exp()


def _filter(values, window, size, blur):
    pooled = _pool(values, blur)
    out = (_im2col(pooled, size) * window).sum(2)  # the k^2 x C x n tensor
    return _unpool(out.unflatten(2, pooled.shape[2:]), blur, *values.shape[2:])


class BoxGuidedFilter:
    """The guided filter by a colour guide [B, D, H, W], with windows averaged over their pixels inside the image; call
    it on values [B, C, H, W]. What depends only on the guide is computed once."""

    def __init__(self, guide, radius, eps):
        self.guide, self.radius = guide, radius
        self.mean = self._box(guide)
        products = (guide[:, :, None] * guide[:, None]).flatten(1, 2)
        moments = self._box(products).unflatten(1, (guide.shape[1],) * 2)  # [B, D, D, H, W]
        covariance = moments - self.mean[:, :, None] * self.mean[:, None]
        covariance = covariance.permute(0, 3, 4, 1, 2)  # [B, H, W, D, D]
        identity = torch.eye(guide.shape[1], dtype=guide.dtype, device=guide.device)
        self.inverse = torch.linalg.inv(covariance + eps * identity).permute(0, 3, 4, 1, 2)

    def _box(self, x):
        # One axis after the other. Differences of running sums would be quicker for long windows, but too inaccurate in
        # float32 for covariances of grey levels.
        for axis in 0, 1:
            side, padding = [1, 1], [0, 0]
            side[axis], padding[axis] = 2 * self.radius + 1, self.radius
            x = F.avg_pool2d(x, side, stride=1, padding=padding, count_include_pad=False)
        return x

    def __call__(self, values):
        mean = self._box(values)
        products = self._box((self.guide[:, :, None] * values[:, None]).flatten(1, 2))
        covariance = products.unflatten(1, (-1, values.shape[1])) - self.mean[:, :, None] * mean[:, None]
        a = torch.einsum("bedhw,bdchw->bechw", self.inverse, covariance)  # [B, D, C, H, W]
        b = mean - (a * self.mean[:, :, None]).sum(1)
        a = self._box(a.flatten(1, 2)).unflatten(1, (-1, values.shape[1]))
        return (a * self.guide[:, :, None]).sum(1) + self._box(b)


def guided_blur(guide, values, radius, eps):
    """kornia's guided filter. It ignores how many pixels of a window are inside the image: this border, zeros,
    corresponds to `box="constant"`; with any border, results farther than 2 radius from it equal ours."""
    filters = importlib.import_module("kornia.filters")
    return filters.guided_blur(guide, values, 2 * radius + 1, eps, border_type="constant")


def guidance_scores(logits, filter, weight, iterations):
    """S_T of the guidance CRF: S_{t+1} = U + weight W softmax(S_t), S_0 = U = logits; `filter` gives W x."""
    scores = logits
    for _ in range(iterations):
        scores = logits + weight * filter(scores.softmax(1))
    return scores


def densecrf(energy, picture, smooth=None, appearance=None):
    """pydensecrf's CRF of one image, symmetrically normalised, its lattices built; `inference(T)` gives Q_T [C, N].

    energy: minus the logits, [C, N] float32 array. picture: [H, W, 3] uint8 array. smooth: (theta, weight);
    appearance: (theta_space, theta_color, weight).
    """
    crf = importlib.import_module("pydensecrf.densecrf").DenseCRF2D(*picture.shape[1::-1], len(energy))
    crf.setUnaryEnergy(energy)
    if smooth is not None:
        theta, weight = smooth
        crf.addPairwiseGaussian(sxy=theta, compat=weight)
    if appearance is not None:
        theta_space, theta_color, weight = appearance
        crf.addPairwiseBilateral(sxy=theta_space, srgb=theta_color, rgbim=picture, compat=weight)
    return crf


def keops_scores(logits, features, weights, iterations):
    """S_T of the exact fully connected CRF, symmetrically normalised: sums over all pairs by KeOps.

    logits: [1, C, *S]; features: one [1, D, *S] per kernel. Gradients reach logits, features and weights.
    """
    lazy = importlib.import_module("pykeops.torch").LazyTensor
    unary = logits[0].flatten(1).mT.contiguous()  # [N, C]
    kernels = []
    for f in features:
        f = f[0].flatten(1).mT.contiguous()
        kernel = (((lazy(f[:, None]) - lazy(f[None])) ** 2).sum(-1) * -0.5).exp()
        kernels.append((kernel, (kernel @ torch.ones_like(unary[:, :1])).rsqrt()))
    scores = unary
    for _ in range(iterations):
        q = scores.softmax(1)
        scores = unary + sum(w * n * (kernel @ (n * q)) for w, (kernel, n) in zip(weights, kernels))
    return scores.mT.view(logits.shape)
