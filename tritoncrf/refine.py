"""One call: scores of a network in, scores sharpened against the image out."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, Union, overload

import numpy as np
import torch

from tritoncrf import checks
from tritoncrf.problem import posed, solved, traced
from tritoncrf.scores import like
from tritoncrf.streaming import streamed
from tritoncrf.summary import Trace, summarized
from tritoncrf.types import Array, Costs, Image, Method, RefineOptions, Theta, Unknown, ValueRange

if TYPE_CHECKING:
    import PIL.Image
    from typing_extensions import Unpack

__all__ = ["refine"]

Scores = TypeVar("Scores", np.ndarray, torch.Tensor)
Device: TypeAlias = torch.device | str | None
Folder: TypeAlias = Union[str, "os.PathLike[str]", None]


@overload
def refine(
    image: Image | None = None, *, logits: Scores, return_trace: Literal[False] = False,
    device: Device = None, **options: "Unpack[RefineOptions]",
) -> Scores: ...  # fmt: skip
@overload
def refine(
    image: Image | None = None, *, probabilities: Scores, return_trace: Literal[False] = False,
    device: Device = None, **options: "Unpack[RefineOptions]",
) -> Scores: ...  # fmt: skip
@overload
def refine(
    image: Image | None = None, *, energies: Scores, return_trace: Literal[False] = False,
    device: Device = None, **options: "Unpack[RefineOptions]",
) -> Scores: ...  # fmt: skip
@overload
def refine(
    image: Image | None = None, *, foreground: Scores, return_trace: Literal[False] = False,
    device: Device = None, **options: "Unpack[RefineOptions]",
) -> Scores: ...  # fmt: skip
@overload
def refine(
    image: Image | None = None, *, labels: torch.Tensor, return_trace: Literal[False] = False,
    device: Device = None, **options: "Unpack[RefineOptions]",
) -> torch.Tensor: ...  # fmt: skip
@overload
def refine(
    image: Image | None = None, *, labels: Union[np.ndarray, "PIL.Image.Image"], return_trace: Literal[False] = False,
    device: Device = None, **options: "Unpack[RefineOptions]",
) -> np.ndarray: ...  # fmt: skip
@overload
def refine(
    image: Image | None = None, *, mask: torch.Tensor, return_trace: Literal[False] = False,
    device: Device = None, **options: "Unpack[RefineOptions]",
) -> torch.Tensor: ...  # fmt: skip
@overload
def refine(
    image: Image | None = None, *, mask: Union[np.ndarray, "PIL.Image.Image"], return_trace: Literal[False] = False,
    device: Device = None, **options: "Unpack[RefineOptions]",
) -> np.ndarray: ...  # fmt: skip
@overload
def refine(
    image: Image | None = None, *, logits: Scores, return_trace: Literal[True],
    device: Device = None, **options: "Unpack[RefineOptions]",
) -> tuple[Scores, Trace]: ...  # fmt: skip
@overload
def refine(
    image: Image | None = None, *, probabilities: Scores, return_trace: Literal[True],
    device: Device = None, **options: "Unpack[RefineOptions]",
) -> tuple[Scores, Trace]: ...  # fmt: skip
@overload
def refine(
    image: Image | None = None, *, energies: Scores, return_trace: Literal[True],
    device: Device = None, **options: "Unpack[RefineOptions]",
) -> tuple[Scores, Trace]: ...  # fmt: skip
@overload
def refine(
    image: Image | None = None, *, foreground: Scores, return_trace: Literal[True],
    device: Device = None, **options: "Unpack[RefineOptions]",
) -> tuple[Scores, Trace]: ...  # fmt: skip
@overload
def refine(
    image: Image | None = None, *, labels: torch.Tensor, return_trace: Literal[True],
    device: Device = None, **options: "Unpack[RefineOptions]",
) -> tuple[torch.Tensor, Trace]: ...  # fmt: skip
@overload
def refine(
    image: Image | None = None, *, labels: Union[np.ndarray, "PIL.Image.Image"], return_trace: Literal[True],
    device: Device = None, **options: "Unpack[RefineOptions]",
) -> tuple[np.ndarray, Trace]: ...  # fmt: skip
@overload
def refine(
    image: Image | None = None, *, mask: torch.Tensor, return_trace: Literal[True],
    device: Device = None, **options: "Unpack[RefineOptions]",
) -> tuple[torch.Tensor, Trace]: ...  # fmt: skip
@overload
def refine(
    image: Image | None = None, *, mask: Union[np.ndarray, "PIL.Image.Image"], return_trace: Literal[True],
    device: Device = None, **options: "Unpack[RefineOptions]",
) -> tuple[np.ndarray, Trace]: ...  # fmt: skip
@overload
def refine(
    image: Any = None, *, logits: Any = None, probabilities: Any = None, energies: Any = None, labels: Any = None,
    mask: Any = None, foreground: Any = None, out: Any, out_labels: Any = None, max_memory: int | str | None = None,
    scratch: Folder = None, return_trace: Literal[False] = False, device: Device = None,
    **options: "Unpack[RefineOptions]",
) -> Any: ...  # fmt: skip
@overload
def refine(
    image: Any = None, *, logits: Any = None, probabilities: Any = None, energies: Any = None, labels: Any = None,
    mask: Any = None, foreground: Any = None, out: Any = None, out_labels: Any, max_memory: int | str | None = None,
    scratch: Folder = None, return_trace: Literal[False] = False, device: Device = None,
    **options: "Unpack[RefineOptions]",
) -> Any: ...  # fmt: skip
@overload
def refine(
    image: Any = None, *, logits: Any = None, probabilities: Any = None, energies: Any = None, labels: Any = None,
    mask: Any = None, foreground: Any = None, out: Any = None, out_labels: Any = None, max_memory: int | str,
    scratch: Folder = None, return_trace: Literal[False] = False, device: Device = None,
    **options: "Unpack[RefineOptions]",
) -> Any: ...  # fmt: skip
@checks.old_names(trace="return_trace=True, which gives (result, trace)")
def refine(
    image: Image | None = None,
    *,
    logits: Array | None = None,
    probabilities: Array | None = None,
    energies: Array | None = None,
    labels: Image | None = None,
    mask: Image | None = None,
    foreground: Array | None = None,
    method: Method | None = None,
    theta_space: Theta | None = None,
    theta_color: Theta | None = None,
    weight_appearance: float | None = None,
    theta_smooth: Theta | None = None,
    weight_smooth: float | None = None,
    compatibility: Costs | None = None,
    iterations: int | None = None,
    damping: float | None = None,
    temperature: float | None = None,
    window_size: int | None = None,
    blur: int | None = None,
    radius: int | Sequence[int] | None = None,
    eps: float | None = None,
    label_confidence: float | None = None,
    num_classes: int | None = None,
    unknown: Unknown = "auto",
    spacing: Theta | None = None,
    value_range: ValueRange | None = None,
    features: Array | None = None,
    valid: Array | None = None,
    device: Device = None,
    return_trace: bool = False,
    out: Any = None,
    out_labels: Any = None,
    max_memory: int | str | None = None,
    scratch: Folder = None,
) -> Array | tuple[Array, Trace]:
    """Refine the scores of one image by mean field in a dense CRF.

        Q <- softmax(U + weight_appearance K_a Q + weight_smooth K_s Q)

    `iterations` times, from Q = softmax(U). K_a is the Gaussian of (position / theta_space, colour / theta_color), K_s
    that of position / theta_smooth, both symmetrically normalised. U are the logits. They are log(max(p, 1e-5)) for
    probabilities and minus the energies for energies. For labels they are log(label_confidence) for the label and
    log((1 - label_confidence) / (C - 1)) for every other class, and equal where the label is unknown. A mask or a
    foreground has two classes with log(1 - p) and log p: p is the probability of the foreground, limited to 1e-5 and 1
    - 1e-5, or for a mask with values v from 0 to 1 p = c v + (1 - c) (1 - v), where c = label_confidence.

    With method="guided" there is one kernel:

        Q <- softmax(U + weight_appearance W Q)

    W is the guided filter with the image in 0..255 units as the guide, see `filters.Guided`.

    Default values are in parentheses. They were chosen so that they do not harm the scores of real networks
    (`tritoncrf experiments defaults` measures this). Settings for your own scores are better, and `tune` finds them.
    Arguments that the method does not use are an error.

    Args:
        image: a PIL image (turned upright as its EXIF orientation says), a NumPy array [*S, M] or [*S], or a torch
            tensor [M, *S], with M channels, modalities or bands, and the spatial axes S of the scores: [H, W, 3] for a
            photo, [D, H, W] for a volume, [W] for a signal. uint8, floating-point from 0 to 1, or any real dtype with
            `value_range`. Pictures of two or four channels also need `value_range`, since their last channel might be
            opacity. Optional with `features`; it then only gives the size.
        logits, probabilities, energies: exactly one of these or of the next three; a NumPy array or a torch tensor
            [C, *S] of floating dtype, with at least two classes and 1 to 3 spatial axes. Energies are minus logits; a
            logit of -inf, or an energy of inf, rules a class out.
        labels: [*S] integers from 0; NumPy, torch or a PIL image of one channel.
        mask: one object, [*S]; NumPy, torch or a PIL image: bool, integers 0 and 1, integers or grey from 0 to 255, or
            floats from 0 to 1. Values in between say how certain the mask is. Integers that look like labels are
            refused: 1 and 255, a single value in between, or no value above 127. PIL masks and labels are turned
            upright like the image.
        foreground: the probability of one object, [*S] floats from 0 to 1, such as the output of a sigmoid; NumPy or
            torch.
        method: from which pixels a pixel receives messages. "lattice": all, approximated by the permutohedral lattice,
            in linear time (Krähenbühl and Koltun 2011). "exact": all, in quadratic time. "window": those in a square
            neighbourhood, as in ConvCRF (Teichmann and Cipolla 2018). "guided": those up to 2 radius away, through the
            guided filter, in a time that does not depend on the radius (SegModel: Shen et al. 2017, with
            weight_appearance=2 and iterations=3). The default is "guided" for all kinds of scores except labels and
            masks, with an image and without arguments of another method; otherwise "lattice".
        theta_space, theta_smooth: bandwidths in pixels, or in the unit of `spacing`, one number or one per axis; or a
            percentage of the image's diagonal ("5%", "0.5%"). Not with "guided".
        theta_color: bandwidth in 0..255 units (5); one number or one per channel. Not with "guided".
        weight_appearance, weight_smooth: weights of the two kernels (10 and 3; both 1 for the scores of a network with
            Gaussian kernels). weight_smooth not with "guided".
        compatibility: the cost of the row's class near the column's class, [C, C] numbers, negative for a reward; or
            "potts", -1 for equal classes and 0 for others ("potts").
        iterations: number of mean-field steps (5); 0 gives softmax(U).
        damping: the fraction of the old Q that each step keeps, from 0 to below 1; stops oscillations (0.0).
        temperature: the scores are divided by it before each softmax, above 0 (1.0); above 1 the result is less
            certain.
        window_size: with "window", the side of the neighbourhood, odd, in pixels of the blurred image (11).
        blur: with "window", messages are computed on the image averaged over blocks of blur x blur pixels, so the
            neighbourhood is window_size * blur pixels wide (2); 1 for full resolution.
        radius: with "guided", the radius of the filter's windows in pixels, at least 1 (3); one int or one per axis.
        eps: with "guided", what counts as an edge, in 0..255 units squared, or in the unit of `features` squared:
            smaller variances are smoothed over. Above 0 (1).
        label_confidence: with `labels` and `mask`, the probability that they are correct, between 0 and 1 (0.7).
        num_classes: number of classes C of `labels` (the largest label + 1, at least 2, and at most 200 unless
            num_classes is given); for scores, the number that they must have. Not with `mask` and `foreground`.
        unknown: with `labels`, the label of pixels whose class is not known: an int, several, or None for no such
            label. "auto" is 255, and refuses what is probably a mask: labels of 255 and one other value.
        spacing: the distance between neighbours along each axis, in the order of the axes, or one number (1). For
            voxels 2.5 mm apart along one axis and 0.8 mm along two it is (2.5, 0.8, 0.8), and bandwidths are in
            millimetres. For a video, whose first axis is time, it is (theta_space / theta_time, 1, 1). Not with
            "guided".
        value_range: the values of the image that count as 0 and as 255, (low, high): a value v counts as
            255 (v - low) / (high - low), without clipping. Numbers, or percentiles ("1%", "99%"): the smallest value
            that this share of pixels does not exceed, for floats and wide integers to 1 / 65,536 of their range. Or a
            list of such pairs, one per channel. The default is (0, 255) for uint8 and (0, 1) for floats; other dtypes
            need it.
        features: [D, *S], already divided by their bandwidths, in place of (position, colour), so without theta_space
            and theta_color: for depth, several modalities, volumes, or features of a network. With "guided", 1 to 8
            channels in any unit, as the guide in place of the image.
        valid: [*S], bool, or integers where 0 stands for False; NumPy or torch: the pixels that contain data. The
            others, such as a scene's nodata, neither send nor receive messages, as if they were outside the image, and
            keep their scores; where those are NaN, all classes get the same probability.
        device: where to compute: "cuda", "cpu" or a `torch.device` (for torch, where the scores are; otherwise the GPU
            if there is one).
        return_trace: also return a `Trace`. Not with the next four arguments.
        out: where to write the probabilities: an array of the shape of the scores, [C, *S], or [*S] for one object
            (anything with a shape, a dtype and slicing: NumPy, a memmap, torch, Zarr, h5py), or the path of an .npy,
            which is created, and written completely or not at all.
        out_labels: where to write the most probable classes [*S], 0 and 1 for one object; like `out`, with an integer
            dtype that holds them, in a new file the smallest.
        max_memory: how much memory the call may allocate, in bytes or as text such as "4GB" (on a GPU, memory of the
            device). The image is then processed block by block, and image, scores, features and valid may be anything
            that can be sliced like an array. The result is that of one call on the whole, with "window" bit for bit
            unless the scores are float64, otherwise up to rounding. Not with "exact", where each pixel needs all
            others.
        scratch: a folder for the state from which a killed run resumes and, with "lattice", for the scores and the
            pixels' positions on the lattice: a float for each class and about 12 (D + 1) bytes per pixel and kernel,
            which saves time. It is created if needed, and emptied at the end. With `max_memory`.

    `tritoncrf.PARAMETERS` has the settings of known pipelines by name, see `tritoncrf.published`:
    refine(image, probabilities=p, **tritoncrf.PARAMETERS["deeplab"]).

    Returns:
        Probabilities [C, *S], with the type, the dtype and the device of the scores; for labels float32, as a NumPy
        array unless the labels were a torch tensor. For a mask or a foreground the probability of the foreground
        [*S], float32. Computed in float64 for float64 scores, otherwise in float32. With `out` or `out_labels` these
        are returned instead, as a pair if both are given. With return_trace=True the result is a pair of the
        probabilities and a `Trace`: `trace.records` are those of `tritoncrf.trace`, one for the start and one for each
        iteration, with the energy, the free energy (the KL divergence up to log Z) and the fraction of labels that
        changed; `trace.summary` has what changed in total, the share of each class, and the confidence.

    On a GPU, "window" and "guided" replay a CUDA graph from the second uint8 photo of the same size with the same
    arguments on, so that kernels do not wait for Python. `tritoncrf.clear_cache` frees the memory of the graphs.

    Raises:
        TypeError: a type or dtype other than the above; none or several kinds of scores.
        ValueError: shapes that do not match; a value out of range, NaN or infinite; an argument that is not used; the
            message names the argument. A budget too small for a block or for the lattice; the message says what would
            be enough.
        OSError: a file that cannot be written; finished parts are kept for the next call with the same arguments.

    Example:
        >>> image = np.zeros((8, 9, 3), dtype=np.uint8)
        >>> refine(image, labels=np.zeros((8, 9), dtype=int)).shape
        (2, 8, 9)
        >>> mask = np.zeros((8, 9), dtype=np.uint8)
        >>> mask[2:5, 3:6] = 255
        >>> refine(image, mask=mask).shape
        (8, 9)
    """
    checks.expect_bool("return_trace", return_trace)
    streaming = {"out": out, "out_labels": out_labels, "max_memory": max_memory, "scratch": scratch}
    scores: dict[str, Any] = {
        "logits": logits, "probabilities": probabilities, "energies": energies, "labels": labels, "mask": mask,
        "foreground": foreground,
    }  # fmt: skip
    given = {
        "method": method, "theta_space": theta_space, "theta_color": theta_color,
        "weight_appearance": weight_appearance, "theta_smooth": theta_smooth, "weight_smooth": weight_smooth,
        "compatibility": compatibility, "iterations": iterations, "damping": damping, "temperature": temperature,
        "window_size": window_size, "blur": blur, "radius": radius, "eps": eps, "label_confidence": label_confidence,
        "num_classes": num_classes, "unknown": unknown, "spacing": spacing,
        "value_range": value_range, "features": features, "valid": valid,
    }  # fmt: skip
    if asked := [name for name, value in streaming.items() if value is not None]:
        if return_trace:
            raise ValueError(f"return_trace: expected False with {asked[0]}=, got True")
        return streamed(image, scores, device, given, **streaming)
    problem = posed(image, scores, device, given)
    name = problem.whole.name
    if not return_trace:
        return like(solved([problem])[0], name, scores[name])
    q, records = traced(problem)
    trace = Trace(records, summarized(torch.softmax(problem.unary, 0), q))
    return like(q, name, scores[name]), trace
