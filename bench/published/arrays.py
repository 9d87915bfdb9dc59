"""The common functions of the forms: the softmax, and the layers of networks, on [B, C, H, W], real or complex.

Sums over a kernel's taps are loops over its offsets, each a product of matrices; gathering and scattering are slices.
"""

from collections.abc import Sequence

import numpy as np


def softmax(scores: np.ndarray) -> np.ndarray:
    return np.exp(log_softmax(scores))


def log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted = scores - scores.real.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def relu(x: np.ndarray) -> np.ndarray:
    return np.where(x.real > 0, x, 0)


def padded(x: np.ndarray, rows: tuple[int, int], columns: tuple[int, int], value: float = 0.0) -> np.ndarray:
    return np.pad(x, ((0, 0), (0, 0), rows, columns), constant_values=value)


def conv(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None, padding: int = 0, dilation: int = 1
) -> np.ndarray:
    """sum_{d, k} weight[o, d, k] x[d, i + dilation k - padding] + bias[o]."""
    x = padded(x, (padding, padding), (padding, padding))
    side = weight.shape[2]
    height, width = (n - dilation * (side - 1) for n in x.shape[2:])
    out = 0 if bias is None else bias.reshape(1, -1, 1, 1)
    for row in range(side):
        for column in range(side):
            top, left = dilation * row, dilation * column
            seen = x[:, :, top : top + height, left : left + width]
            out = out + np.moveaxis(np.tensordot(weight[:, :, row, column], seen, (1, 1)), 0, 1)
    return out


def deconv(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None, stride: int = 1, padding: int = 0,
    by_class: bool = False,
) -> np.ndarray:  # fmt: skip
    """Every x[d, i] adds weight[d, o, k] x[d, i] at o, stride i + k - padding; `by_class`: weight[d, 0, k] at d."""
    batch, channels, height, width = x.shape
    side = weight.shape[2]
    outputs = channels if by_class else weight.shape[1]
    rows, columns = (stride * (n - 1) + side for n in (height, width))
    out = np.zeros((batch, outputs, rows, columns), np.result_type(x, weight))
    for row in range(side):
        for column in range(side):
            tap = weight[:, :, row, column]
            added = tap.reshape(1, -1, 1, 1) * x if by_class else np.moveaxis(np.tensordot(tap, x, (0, 1)), 0, 1)
            out[:, :, row : row + stride * height : stride, column : column + stride * width : stride] += added
    out = out[:, :, padding : rows - padding, padding : columns - padding]
    return out if bias is None else out + bias.reshape(1, -1, 1, 1)


def max_pool(x: np.ndarray, side: int, stride: int, padding: int = 0, ceil: bool = False) -> np.ndarray:
    """The maximum over side x side cells inside the map; with `ceil` also over a smaller last window."""
    spare = [n + 2 * padding - side for n in x.shape[2:]]
    counts = [(-(-n // stride) if ceil else n // stride) + 1 for n in spare]
    needed = [(count - 1) * stride + side - n - padding for count, n in zip(counts, x.shape[2:])]
    x = padded(x, *((padding, max(0, extra)) for extra in needed), value=-np.inf)
    ends = [(count - 1) * stride + 1 for count in counts]
    best = x[:, :, : ends[0] : stride, : ends[1] : stride]
    for row in range(side):
        for column in range(side):
            other = x[:, :, row : row + ends[0] : stride, column : column + ends[1] : stride]
            best = np.where(other.real > best.real, other, best)
    return best


def along_axes(matrices: Sequence[np.ndarray], x: np.ndarray) -> np.ndarray:
    """Apply one matrix to the rows and one to the columns of x."""
    rows, columns = matrices
    return rows @ x @ columns.T


def linear(length: int, size: int) -> np.ndarray:
    """The matrix [size, length] of linear interpolation from the centres of `length` cells to those of `size`, constant
    beyond the outermost ones."""
    at = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(length)))
