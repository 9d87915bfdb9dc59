"""The network that ConvCRF refines, with a ResNet-18 (He et al. 2016; Teichmann and Cipolla 2018): its scores.

Batch norms take their running statistics, as in evaluation.
"""

from collections.abc import Mapping

import numpy as np

from bench.published.arrays import along_axes, conv, linear, max_pool, relu

Arrays = Mapping[str, np.ndarray]
BLOCKS = 2  # of a stage, each of two 3x3 convolutions
EPS = 1e-5  # added to a variance


def scores(pixels: np.ndarray, parameters: Arrays, statistics: Arrays) -> np.ndarray:
    """[B, C, H, W] of normalised images [B, 3, H, W].

    Args:
        parameters, statistics: parameters and buffers by their names in `ResNetFCN`: "backbone.layer1.0.conv1.weight",
            "backbone.layer1.0.bn1.running_mean".
    """

    def normed(x: np.ndarray, name: str) -> np.ndarray:
        mean, variance = (statistics[f"{name}.running_{what}"].reshape(1, -1, 1, 1) for what in ("mean", "var"))
        weight, bias = (parameters[f"{name}.{what}"].reshape(1, -1, 1, 1) for what in ("weight", "bias"))
        return (x - mean) / np.sqrt(variance + EPS) * weight + bias

    def convolved(x: np.ndarray, name: str, stride: int = 1) -> np.ndarray:
        weight = parameters[f"{name}.weight"]
        return conv(x, weight, padding=weight.shape[2] // 2)[:, :, ::stride, ::stride]

    def block(x: np.ndarray, name: str, stride: int) -> np.ndarray:
        inner = relu(normed(convolved(x, f"{name}.conv1", stride), f"{name}.bn1"))
        inner = normed(convolved(inner, f"{name}.conv2"), f"{name}.bn2")
        if f"{name}.downsample.0.weight" in parameters:
            x = normed(convolved(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
        return relu(inner + x)

    x = relu(normed(convolved(pixels, "backbone.conv1", 2), "backbone.bn1"))
    x, stages = max_pool(x, 3, 2, 1), []
    for stage in range(1, 5):
        for number in range(BLOCKS):
            x = block(x, f"backbone.layer{stage}.{number}", 2 if stage > 1 and number == 0 else 1)
        stages.append(x)

    found = convolved(stages[3], "score_layer4")
    for stage in (3, 2):
        finer = convolved(stages[stage - 1], f"score_layer{stage}")
        found = resized(found, finer.shape[2:]) + finer
    return resized(found, pixels.shape[2:])


def resized(x: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    return along_axes([linear(n, m) for n, m in zip(x.shape[2:], size)], x)
