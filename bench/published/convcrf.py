"""ConvCRF, as its authors' code computes it and as its paper has it (Teichmann and Cipolla 2018).

The windows are sums over offsets; averaging over blocks and interpolation between them are matrices along each axis.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bench.published.arrays import along_axes, linear, log_softmax, softmax

LEAST = 1e-20  # added to a sum of weights before its inverse square root


def scores(
    logits: np.ndarray, image: np.ndarray, parameters: Mapping[str, np.ndarray], conf: Mapping[str, Any],
    iterations: int,
) -> np.ndarray:  # fmt: skip
    """S_T of GaussCRF, [B, C, H, W].

    With u the unary_weight, w the weight, comp the convolution, L = log_softmax(U), and Q_0 = L itself; or with
    logsoftmax=False, where U is probabilities, L = log U and Q_0 = U / sum_c U:

        M = sum_m compat_m K_m Q ,  M <- M + comp M ,  S = (u - w) L + w M ,  Q = softmax(S)

    and S = L + M without a weight.

    Args:
        logits, image: U, and the colours in 0..255, [B, 3, H, W].
        parameters: by their names in the authors' state dict.
        conf: their configuration, without keys left out.
        iterations: T, at least 1.
    """
    mesh = parameters.get("mesh", np.indices(logits.shape[2:]))[None]
    colors = image * parameters["col_schan"]
    if conf["col_feats"]["use_bias"]:
        colors = np.concatenate([np.repeat(mesh * parameters["col_sdims"], len(image), 0), colors], 1)
    symmetric = conf["norm"] == "sym"
    kernels = [
        (parameters[f"{name}_compat"], window(features, conf["filter_size"], conf["blur"], symmetric))
        for name, features in (("pos", mesh * parameters["pos_sdims"]), ("col", colors))
    ]
    if conf["logsoftmax"]:
        q = unary = log_softmax(logits)
    else:
        unary, q = np.log(logits), logits / logits.sum(1, keepdims=True)
    for _ in range(iterations):
        messages = sum(compat * kernel(q) for compat, kernel in kernels)
        if conf["convcomp"]:
            messages = messages + mixed(parameters["CRF.comp.weight"].reshape(2 * logits.shape[1:2]), messages)
        if conf["weight"] is None:
            found = unary + messages
        else:
            weight = parameters["CRF.weight"].reshape(1, -1, 1, 1)
            found = (conf["unary_weight"] - weight) * unary + weight * messages
        q = softmax(found)
    return found


def paper(
    logits: np.ndarray, image: np.ndarray, parameters: Mapping[str, np.ndarray], window_size: int, blur: int,
    iterations: int,
) -> np.ndarray:  # fmt: skip
    """S_T of the paper: S = U + (I + c) sum_m w_m K_m softmax(S), from S = U, K_m symmetrically normalised.

    Args:
        logits, image: as of `scores`.
        parameters: weight_smooth, weight_appearance, the logarithms of the bandwidths, log_theta_smooth,
            log_theta_space and log_theta_color, and perhaps positions [2, H, W], which the smoothness kernel sees (+T),
            and compatibility c [C, C] (+C).
        window_size, blur, iterations: of the layer.
    """
    pixels = np.indices(logits.shape[2:])[None]
    smooth = parameters.get("positions", pixels[0])[None] * np.exp(-parameters["log_theta_smooth"])
    space = np.repeat(pixels * np.exp(-parameters["log_theta_space"]), len(image), 0)
    appearance = np.concatenate([space, image * np.exp(-parameters["log_theta_color"])], 1)
    kernels = [
        (parameters["weight_smooth"], window(smooth, window_size, blur, True)),
        (parameters["weight_appearance"], window(appearance, window_size, blur, True)),
    ]
    found = logits
    for _ in range(iterations):
        q = softmax(found)
        messages = sum(weight * kernel(q) for weight, kernel in kernels)
        if "compatibility" in parameters:
            messages = messages + mixed(parameters["compatibility"], messages)
        found = logits + messages
    return found


def mixed(matrix: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A matrix [C, C] on the classes."""
    return np.einsum("lm,bmhw->blhw", matrix, x)


def window(features: np.ndarray, size: int, blur: int, symmetric: bool) -> Callable[[np.ndarray], np.ndarray]:
    """x -> up K pool x, with K_ij = exp(-|f_i - f_j|^2 / 2) in a square of `size` pixels a side, of the averages of
    the features over blocks; with `symmetric` times n before and after, n = (up K pool 1)^-1/2."""
    pools = [pooling(n, blur) for n in features.shape[2:]]
    ups = [interpolation(n, blur) for n in features.shape[2:]]
    low = along_axes(pools, features)
    offsets = [(dy, dx) for dy in range(-(size // 2), size // 2 + 1) for dx in range(-(size // 2), size // 2 + 1)]
    weights = [np.exp(-((low - shifted(low, *offset)) ** 2).sum(1, keepdims=True) / 2) for offset in offsets]

    def messages(x: np.ndarray) -> np.ndarray:
        x = along_axes(pools, x)
        return along_axes(ups, sum(weight * shifted(x, *offset) for weight, offset in zip(weights, offsets)))

    if not symmetric:
        return messages
    scale = (messages(np.ones((1, 1, *features.shape[2:]))) + LEAST) ** -0.5
    return lambda x: scale * messages(scale * x)


def shifted(x: np.ndarray, dy: int, dx: int) -> np.ndarray:
    """x[..., i + dy, j + dx], and 0 beyond the border."""
    out = np.zeros_like(x)
    height, width = x.shape[2:]
    to = (slice(max(0, -dy), height - max(0, dy)), slice(max(0, -dx), width - max(0, dx)))
    out[:, :, to[0], to[1]] = x[:, :, max(0, dy) : height - max(0, -dy), max(0, dx) : width - max(0, -dx)]
    return out


def padding(length: int, blur: int) -> int:
    return -(-(-length % blur) // 2)


def pooling(length: int, blur: int) -> np.ndarray:
    """[ceil(length / blur), length]: means over blocks of the padded axis, of the pixels that there are."""
    block = (np.arange(length) + padding(length, blur)) // blur
    inside = (np.arange(-(-length // blur))[:, None] == block).astype(float)
    return inside / inside.sum(1, keepdims=True)


def interpolation(length: int, blur: int) -> np.ndarray:
    """[length, ceil(length / blur)]: linear between the blocks' centres, cropped."""
    cells = -(-length // blur)
    top = padding(length, blur)
    return linear(cells, blur * cells)[top : top + length]
