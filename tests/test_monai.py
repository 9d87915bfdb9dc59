"""MONAI's filters as docs/coming-from.md writes them here: the answers are those of MONAI's own tests."""

import math

import pytest
import torch
import torch.nn.functional as F

import tritoncrf as tc
from assertions import assert_close


def phl(values, features, sigmas):
    """MONAI's `PHLFilter`: the lattice, normalised by its response; further sigmas than features play no part there."""
    scale = torch.tensor(sigmas[: features.shape[1]]).view(1, -1, *(1,) * (features.ndim - 2))
    return tc.filters.Lattice(features / scale, normalization="after")(values)


def bilateral(values, spatial_sigma, color_sigma):
    """MONAI's exact `BilateralFilter`: a window of an odd number of pixels, at least 5 sigma, over replicated borders."""
    window = math.ceil(5 * spatial_sigma) | 1
    pad = [window // 2] * 2 * (values.ndim - 2)
    padded = F.pad(values, pad, mode="replicate")
    positions = tc.features.spatial(padded.shape[2:], theta=spatial_sigma)
    positions = positions.expand(len(padded), *positions.shape[1:])
    kernel = tc.filters.Window(torch.cat([positions, padded / color_sigma], 1), window, normalization="after")
    inside = [slice(window // 2, -(window // 2))] * (values.ndim - 2)
    return kernel(padded)[(..., *inside)]


CORNERS = [[1, 0, 0, 0, 1], *[[0] * 5] * 3, [1, 0, 0, 0, 1]]
STEP = [[9, 9, 0, 0, 0]] * 3 + [[9, 9, 6, 6, 6]] * 2
COLUMNS, ROWS = [list(range(5))] * 5, [[n] * 5 for n in range(5)]


@pytest.mark.parametrize(
    "values, features, sigmas, expected",
    [
        (
            [[[1, 0, 0, 0, 1]], [[0, 0, 1, 0, 0]]], [[[1, 0.2, 0.5, 0, 1]], [[0.5, 0, 1, 1, 1]]], [1, 0.2],
            [
                [[0.468968, 0.364596, 0.4082, 0.332579, 0.468968]],
                [[0.202473, 0.176527, 0.220995, 0.220995, 0.220995]],
            ],
        ),
        (
            [[[1, 0, 0, 0, 0], [0, 0, 1, 0, 0]]], [[[1, 0.2, 0.5, 0.2, 1]]], [1],
            [
                [
                    [0.229572, 0.182884, 0.202637, 0.182884, 0.229572],
                    [0.201235, 0.208194, 0.205409, 0.208194, 0.201235],
                ]
            ],
        ),
        (
            [[STEP]], [[STEP, COLUMNS, ROWS]], [5, 3, 3],
            [
                [
                    [
                        [7.696051, 7.427121, 1.191990, 1.156004, 1.157489],
                        [7.670297, 7.371155, 1.340232, 1.287871, 1.304018],
                        [7.639579, 7.365163, 1.473319, 1.397826, 1.416861],
                        [7.613517, 7.359183, 5.846500, 5.638952, 5.350098],
                        [7.598255, 7.458446, 5.912375, 5.583625, 5.233126],
                    ]
                ]
            ],
        ),
    ],
)  # fmt: skip
def test_the_permutohedral_filter(values, features, sigmas, expected):
    found = phl(torch.tensor(values, dtype=torch.float32), torch.tensor(features, dtype=torch.float32), sigmas)
    assert_close("filtered", found, torch.tensor(expected), rms=2e-6, worst=4e-6)


@pytest.mark.parametrize(
    "values, sigmas, expected",
    [
        (
            [[[1, 0, 0, 0, 1]], [[0, 0, 1, 0, 0]]], (1, 0.9),
            [
                [[0.813183, 0.186817, 0.061890, 0.186817, 0.813183]],
                [[0.030148, 0.148418, 0.555452, 0.148418, 0.030148]],
            ],
        ),
        (
            [[[1, 0, 0, 0, 1]]], (4, 0.2),
            [[[0.999999, 0.000009, 0.000009, 0.000009, 0.999999]]],
        ),
        (
            [[[1, 0, 0, 0, 0], [1, 0, 1, 0, 0], [0, 0, 1, 0, 1], [0, 0, 0, 0, 1]]], (1, 0.9),
            [
                [
                    [0.889742, 0.141296, 0.027504, 0.000000, 0.000000],
                    [0.909856, 0.256817, 0.725970, 0.115520, 0.020114],
                    [0.020114, 0.115520, 0.725970, 0.256817, 0.909856],
                    [0.000000, 0.000000, 0.027504, 0.141296, 0.889742],
                ]
            ],
        ),
        (
            [[CORNERS]], (4, 0.9),
            [
                [
                    [
                        [0.688943, 0.374599, 0.368574, 0.374599, 0.688943],
                        [0.374599, 0.358248, 0.352546, 0.358248, 0.374599],
                        [0.368574, 0.352546, 0.346955, 0.352546, 0.368574],
                        [0.374599, 0.358248, 0.352546, 0.358248, 0.374599],
                        [0.688943, 0.374599, 0.368574, 0.374599, 0.688943],
                    ]
                ]
            ],
        ),
    ],
)  # fmt: skip
def test_the_exact_bilateral_filter(values, sigmas, expected):
    found = bilateral(torch.tensor(values, dtype=torch.float32), *sigmas)
    assert_close("filtered", found, torch.tensor(expected), rms=2e-6, worst=4e-6)
