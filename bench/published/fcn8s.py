"""FCN-8s on VGG-16, layer by layer (Long et al. 2015, FCN; Zheng et al. 2015, CRF as RNN, section 5).

Every 3x3 convolution pads by 1, but the first by 100; poolings are of 2x2, and go on to the last row and column of odd
maps.
"""

from collections.abc import Mapping

import numpy as np

from bench.published.arrays import conv, deconv, max_pool, relu

CONVOLUTIONS = (2, 2, 3, 3, 3)  # before each pooling


def layers(pixels: np.ndarray, parameters: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """pool1 to pool5, fc6, fc7 and the scores [B, C, H, W] of images less their mean, [B, 3, H, W].

    parameters: by their names in `FCN8s`, where "features.5.weight" is of the layer 5 of VGG-16, activations and
    poolings counted.
    """

    def convolved(x: np.ndarray, name: str, padding: int = 0) -> np.ndarray:
        return conv(x, parameters[f"{name}.weight"], parameters[f"{name}.bias"], padding)

    x, number, found = pixels, 0, {}
    for group, count in enumerate(CONVOLUTIONS, 1):
        for _ in range(count):
            x = relu(convolved(x, f"features.{number}", 1 if number else 100))
            number += 2
        x = found[f"pool{group}"] = max_pool(x, 2, 2, ceil=True)
        number += 1
    found["fc6"] = relu(convolved(x, "classifier.0"))
    found["fc7"] = relu(convolved(found["fc6"], "classifier.3"))

    scores = deconv(convolved(found["fc7"], "score_fr"), parameters["upscore2.weight"], parameters["upscore2.bias"], 2)
    scores = scores + cropped(convolved(found["pool4"], "score_pool4"), 5, scores.shape[2:])
    scores = deconv(scores, parameters["upscore_pool4.weight"], stride=2)
    scores = scores + cropped(convolved(found["pool3"], "score_pool3"), 9, scores.shape[2:])
    scores = deconv(scores, parameters["upscore8.weight"], stride=8)
    return {**found, "scores": cropped(scores, 31, pixels.shape[2:])}


def cropped(x: np.ndarray, offset: int, size: tuple[int, ...]) -> np.ndarray:
    return x[:, :, offset : offset + size[0], offset : offset + size[1]]
