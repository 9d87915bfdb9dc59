"""SegModel behind its backbone, as the authors' code computes it (Shen et al. 2017): its head and the guidance CRF.

The guided filter is the matrix that it amounts to. With mu_k and Sigma_k the mean and covariance of the guide I in the
window around pixel k, and D_k what its sums are divided by,

    W_ij = 1 / D_i sum_{k: i, j in window} 1 / D_k (1 + (I_i - mu_k)^T (Sigma_k + eps)^-1 (I_j - mu_k))
"""

from collections.abc import Mapping

import numpy as np

from bench.published.arrays import conv, deconv, max_pool, padded, softmax

# Radius of the box and dilation of the convolution behind it, by the name of the convolution.
CONTEXT = {"feature_context.convs.0": (2, 6), "feature_context.convs.1": (4, 12)}
PATCH = 2


def head(features: np.ndarray, parameters: Mapping[str, np.ndarray]) -> np.ndarray:
    """Scores at 1/4 of the image, of features at 1/16, [B, D, h, w]. parameters: by their names in `SegModel`."""

    def convolved(x: np.ndarray, name: str, padding: int = 0, dilation: int = 1) -> np.ndarray:
        return conv(x, parameters[f"{name}.weight"], parameters[f"{name}.bias"], padding, dilation)

    scores = patches(convolved(features, "score"))
    for name, (radius, dilation) in CONTEXT.items():
        scores = scores + patches(convolved(box_mean(features, radius), name, dilation, dilation))
    around = max_pool(scores, 25, 1, 12)
    around = around / np.sqrt((around**2).sum(1, keepdims=True) + 1e-5)
    around = convolved(around, "label_context.conv1", 3)
    scores = scores + convolved(around, "label_context.conv2")
    return deconv(scores, parameters["up2.weight"], parameters["up2.bias"], 2, 1, by_class=True)


def whole(
    features: np.ndarray, image: np.ndarray, parameters: Mapping[str, np.ndarray], released: bool, iterations: int
) -> np.ndarray:
    """Scores at the size of the image, colours in 0..255 padded to multiples of 16, [B, 3, 16 h, 16 w]."""
    batch, channels, height, width = image.shape
    guide = image.reshape(batch, channels, height // 4, 4, width // 4, 4).mean((3, 5))
    scores = guidance(head(features, parameters), guide, released, iterations)
    return deconv(scores, parameters["up4.weight"], parameters.get("up4.bias"), 4, 2, by_class=True)


def guidance(
    logits: np.ndarray, guide: np.ndarray, released: bool, iterations: int, radius: int = 3, eps: float = 1.0,
    strength: float = 2.0,
) -> np.ndarray:  # fmt: skip
    """S_T of the guidance CRF by a guide [B, 3, H, W], with g = W softmax(S):

    S = U + strength g, windows divided by their pixels inside the image; or as `released`,
    S = U - strength (sum_c g_c - g), windows divided by the full window's pixels, and at update t with t eps.
    """

    def filters(eps: float) -> np.ndarray:
        return np.stack([guided_filter(one, radius, eps, released).T for one in guide])

    found, same = logits, None if released else filters(eps)
    for t in range(1, iterations + 1):
        q = softmax(found).reshape(-1, logits.shape[1], logits[0, 0].size)
        g = (q @ (filters(t * eps) if same is None else same)).reshape(-1, *logits.shape[1:])
        found = logits + strength * (g - g.sum(1, keepdims=True) if released else g)
    return found


def guided_filter(guide: np.ndarray, radius: int, eps: float, constant: bool) -> np.ndarray:
    """W, [N, N], of a guide [D, H, W]; D_k is the pixels of window k, or with `constant` those of a full window."""
    dimensions, height, width = guide.shape
    rows, columns = (at.ravel() for at in np.indices((height, width)))
    near = np.maximum(np.abs(rows[:, None] - rows), np.abs(columns[:, None] - columns)) <= radius
    inside = near.astype(float)  # [window, pixel]
    most = min(2 * radius + 1, height) * min(2 * radius + 1, width)
    area = np.full(len(rows), float(most)) if constant else inside.sum(1)
    colors = guide.reshape(dimensions, -1).T
    mean = inside @ colors / area[:, None]
    moments = inside @ (colors[:, :, None] * colors[:, None]).reshape(len(colors), -1) / area[:, None]
    covariance = moments.reshape(-1, dimensions, dimensions) - mean[:, :, None] * mean[:, None]
    inverse = np.linalg.inv(covariance + eps * np.eye(dimensions))
    apart = inside[:, :, None] * (colors - mean[:, None])  # [window, pixel, channel]
    slopes = apart @ (inverse / area[:, None, None])
    pairs = inside.T @ (inside / area[:, None]) + np.einsum("kie,kje->ij", slopes, apart, optimize=True)
    return pairs / area[:, None]


def box_mean(x: np.ndarray, radius: int) -> np.ndarray:
    """Sums over windows, zero outside, over the full window's pixels."""
    height, width = x.shape[2:]
    wide = padded(x, (radius, radius), (radius, radius))
    sides = range(2 * radius + 1)
    total = sum(wide[:, :, row : row + height, column : column + width] for row in sides for column in sides)
    return total / (min(len(sides), height) * min(len(sides), width))


def patches(x: np.ndarray) -> np.ndarray:
    """[B, n n C, h, w] -> [B, C, n h, n w]: channel (row n + column) C + c is class c at that place of the patch."""
    batch, channels, height, width = x.shape
    classes = channels // PATCH**2
    out = np.empty((batch, classes, PATCH * height, PATCH * width), x.dtype)
    for row in range(PATCH):
        for column in range(PATCH):
            first = (PATCH * row + column) * classes
            out[:, :, row::PATCH, column::PATCH] = x[:, first : first + classes]
    return out
