"""Packages that tests skip where they are not installed."""

from typing import Any

import pytest
import torch

# Kept: torch forgets the operators of a library that is gone.
OPERATORS = torch.library.Library("torchvision", "FRAGMENT")


def imported(name: str) -> Any:
    """`pytest.importorskip(name)`, for packages that import torchvision, but compute nothing with it.

    Where torch is built for CPUs and torchvision for GPUs, torchvision finds its operators nowhere, and fails as it
    describes two of them. They get their signatures here, and the import works.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for operator in ("nms", "qnms"):
            OPERATORS.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except ModuleNotFoundError:
        pass
    return pytest.importorskip(name)
