"""The types of arguments, for annotations in the library and in programs that use it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias, TypedDict, Union

if TYPE_CHECKING:  # the command line reads these words without them
    import numpy as np
    import PIL.Image
    import torch

__all__ = [
    "Activation",
    "Array",
    "Backend",
    "Box",
    "Compatibility",
    "Image",
    "Initial",
    "LossForm",
    "Method",
    "Normalization",
    "Output",
    "Padding",
    "Precision",
    "RefineOptions",
    "Theta",
    "Unknown",
    "ValueRange",
]

#: NumPy or torch.
Array: TypeAlias = Union["np.ndarray", "torch.Tensor"]
#: PIL, NumPy or torch.
Image: TypeAlias = Union["PIL.Image.Image", "np.ndarray", "torch.Tensor"]
#: A bandwidth or a spacing, one number or one per axis or channel; a bandwidth of positions also as "16%".
Theta: TypeAlias = float | str | Array | Sequence[Union[float, "torch.Tensor"]]

#: How a filter is divided by its row sums.
Normalization: TypeAlias = Literal["none", "before", "after", "symmetric"]
#: How a filter computes on a GPU.
Precision: TypeAlias = Literal["default", "fast"]
#: What the filters run on; "auto" is Triton on a GPU and PyTorch elsewhere.
Backend: TypeAlias = Literal["auto", "triton", "torch"]
#: What is added to the pixels of a lattice.
Padding: TypeAlias = Literal["four"]
#: How windows are averaged at the border of the image.
Box: TypeAlias = Literal["count", "constant"]

#: The Potts model, or costs [C, C].
Compatibility: TypeAlias = Union[Literal["potts"], "torch.Tensor"]
#: The same, in the forms that `refine` takes.
Costs: TypeAlias = Literal["potts"] | Array | Sequence[Sequence[float]]
#: What the first messages of the loop are computed from.
Initial: TypeAlias = Literal["softmax", "log_softmax"]
#: What turns the scores into Q, in every update.
Activation: TypeAlias = Literal["softmax", "relu"]
#: How the energy of a dense CRF becomes a loss.
LossForm: TypeAlias = Literal["potts", "rloss"]
#: What the loop returns.
Output: TypeAlias = Literal["probabilities", "logits", "log_probabilities"]

#: One or several labels of pixels whose class is not known, or None; "auto" is 255.
Unknown: TypeAlias = int | Sequence[int] | Literal["auto"] | None

#: The values of an image that count as 0 and as 255, as two numbers or percentiles ("1%"), or a pair for each channel.
ValueRange: TypeAlias = Sequence[float | str] | Sequence[Sequence[float | str]]

#: From which pixels a pixel receives messages in `refine`.
Method: TypeAlias = Literal["lattice", "exact", "window", "guided"]


class RefineOptions(TypedDict, total=False):
    """The keyword arguments of `refine`, except the image and its scores; `PARAMETERS` has several sets of them.

    Example:
        >>> import torch, tritoncrf as tc
        >>> options: RefineOptions = {"method": "window", "window_size": 5, "iterations": 2}
        >>> tc.refine(torch.rand(3, 8, 9), logits=torch.randn(4, 8, 9), **options).shape
        torch.Size([4, 8, 9])
    """

    method: Method
    theta_space: Theta
    theta_color: Theta
    weight_appearance: float
    theta_smooth: Theta
    weight_smooth: float
    spacing: Theta
    value_range: ValueRange
    compatibility: Costs
    iterations: int
    damping: float
    temperature: float
    window_size: int
    blur: int
    radius: int | Sequence[int]
    eps: float
    label_confidence: float
    num_classes: int | None
    unknown: Unknown
    features: Array | None
    valid: Array | None
