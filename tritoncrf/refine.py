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

        Q <- softmax(U + weight_appearance K_a Q + weight_smooth K_s Q)     `iterations` times, Q0 = softmax(U)

    K_a is the Gaussian of (position / theta_space, color / theta_color), K_s that of position / theta_smooth,
    both symmetrically normalised. U are the logits: given as they are, log(max(p, 1e-5)) of probabilities,
    minus the energies, or from labels the logarithm of label_confidence for the label and of
    (1 - label_confidence) / (C - 1) for every other class, equal where the label is unknown. A mask or a foreground
    has two classes, log(1 - p) and log p: p is the foreground's probability, kept within 1e-5 and 1 - 1e-5, or
    c v + (1 - c) (1 - v) of a mask's value v from 0 to 1, with c = label_confidence.

    With method="guided" there is one kernel:

        Q <- softmax(U + weight_appearance W Q)

    W is the guided filter by the image in 0..255 units, see `filters.Guided`.

    What is not given has the value in parentheses, chosen to take nothing from the scores of real networks; what it
    does to them `tritoncrf experiments defaults` measures. Settings for one's own scores are better, and `tune` finds
    them. What is given where it plays no part is an error.

    Args:
        image: a PIL image, turned upright as its EXIF orientation says, a NumPy array [*S, M] or [*S], or a torch
            tensor [M, *S], of M channels, modalities or bands and as many spatial axes S as the scores have: [H, W, 3]
            for a photo, [D, H, W] for a volume, [W] for a signal. uint8, or floating from 0 to 1; of any real dtype
            with `value_range`, which pictures of two or four channels need too: their last could be an opacity. It may
            be left out where `features` are given, beside which it says the size alone.
        logits, probabilities, energies: exactly one of these or of the next three; a NumPy array or a torch tensor
            [C, *S] of floating dtype, two classes or more and 1 to 3 spatial axes. Logits are minus
            energies; a logit of -inf, or an energy of inf, rules a class out.
        labels: [*S] integers from 0; NumPy, torch or a PIL image of one channel.
        mask: of one object, [*S]; NumPy, torch or a PIL image: bool, integers 0 and 1, integers or grey from 0 to
            255, or floats from 0 to 1. Values between the ends say how sure it is. Integers that look like labels are
            refused: 1 and 255, one value alone between them, or none that passes 127. PIL masks and labels are turned
            upright as the image is.
        foreground: the probability of one object, [*S] floats from 0 to 1, as a sigmoid gives; NumPy or torch.
        method: which pixels see each other. "lattice": all, by the permutohedral lattice's approximation, in a time
            that grows with their number (Krähenbühl and Koltun 2011). "exact": all, in a time that grows with its
            square. "window": those of a square neighbourhood, as in ConvCRF (Teichmann and Cipolla 2018). "guided":
            those at most 2 radius away, by the guided filter, in a time that does not depend on it (SegModel: Shen et
            al. 2017, with weight_appearance=2 and iterations=3). Left out, it is "guided" for the scores of a network,
            all kinds but labels and masks, with an image and without arguments of another method; else "lattice".
        theta_space, theta_smooth: bandwidths in pixels, or in the unit of `spacing`, one number or one per axis; or a
            share of the image's diagonal ("5%", "0.5%"). Not with "guided".
        theta_color: bandwidth in 0..255 units (5); one number or one per channel. Not with "guided".
        weight_appearance, weight_smooth: weights of the two kernels (10, 3; of the Gaussian kernels 1, 1 for the
            scores of a network). The second not with "guided".
        compatibility: what the class of a row costs where the class of a column is near, [C, C] numbers, negative for a
            reward; or "potts", -1 for equal classes and 0 for others ("potts").
        iterations: mean-field steps (5); 0 gives softmax(U).
        damping: the share of the old Q that each step keeps, from 0 to below 1, for settings that swing (0.0).
        temperature: what the scores are divided by before each softmax, above 0 (1.0): above 1 for a less certain
            result.
        window_size: with "window", the side of the neighbourhood, odd, in pixels of the blurred image (11).
        blur: with "window", the messages are passed on the image averaged over blur x blur pixels, so that the
            neighbourhood is window_size * blur pixels wide (2); 1 for full resolution.
        radius: with "guided", the radius of the filter's windows in pixels, at least 1 (3); one int or one per axis.
        eps: with "guided", what counts as an edge, in 0..255 units squared, or in the unit of `features` squared:
            variances below are smoothed over. Above 0 (1).
        label_confidence: with `labels` and `mask`, the probability that they are right, between 0 and 1 (0.7).
        num_classes: number of classes C of `labels` (the largest label + 1, at least 2 and, unless it is said, at most
            200); of scores, what they must have. Not with `mask` and `foreground`.
        unknown: with `labels`, the label of pixels whose class is not known: an int, several, or None for no such
            label. "auto" is 255, and refuses what is more likely a mask: labels of 255 and one other value.
        spacing: the distance of two neighbours along each axis, in the order of the axes, or one number (1): of voxels
            that are 2.5 mm apart along one axis and 0.8 along two (2.5, 0.8, 0.8), and bandwidths in millimetres; of a
            video, whose first axis is time, (theta_space / theta_time, 1, 1). Not with "guided".
        value_range: which values of the image count as 0 and as 255, (low, high): a value v counts as
            255 (v - low) / (high - low) and is not clipped. Numbers, or percentiles, ("1%", "99%"): the least value
            that so many pixels do not exceed, of floats and of wide integers to 1 / 65,536 of their range. Or a list
            of such pairs, one per channel. ((0, 255) of bytes, (0, 1) of floats.) Other dtypes need it.
        features: [D, *S], already divided by bandwidths, in place of (position, color), so without theta_space and
            theta_color: for depth, several modalities, volumes, or features of a network. With "guided", D from 1 to
            8, in any unit, in place of the image as the guide.
        valid: [*S], bool, or integers where 0 stands for False; NumPy or torch: which pixels are there. The others,
            such as a scene's nodata, neither send nor receive messages, as if they were outside the image, and keep
            their scores; where those are no numbers, all classes are alike.
        device: where it is computed: "cuda", "cpu" or a `torch.device` (for torch, where the scores are; else the GPU
            if there is one).
        return_trace: also return how it went. Not with the next four.
        out: where the probabilities go: an array of the shape of the scores, [C, *S], or of one object's, [*S]
            (anything with shape, dtype and slicing: NumPy, a memmap, torch, Zarr, h5py), or the path of an .npy, which
            is made, and is there whole or not at all.
        out_labels: where the best classes [*S] go, of one object 0 and 1; as `out`, of an integer dtype that holds
            them, which of a new file is the smallest.
        max_memory: how much the call may allocate, bytes or text such as "4GB" (of the device where it computes on a
            GPU). The work then goes block by block, and image, scores, features and valid may be anything that is
            sliced like an array. "window" gives the bits that it gives at once, of float64 scores the same to
            rounding, as "guided" and "lattice" do; "exact" is refused: each of its pixels needs all others.
        scratch: a folder for what a run keeps beside its outputs to go on where it was killed, and, with "lattice",
            for the scores and the positions of pixels on it: a float for each class and about 12 (D + 1) bytes a pixel
            and kernel, which saves time. It is made if need be, and empty again at the end. With `max_memory`.

    The arguments of known pipelines are in `tritoncrf.PARAMETERS` by name, see `tritoncrf.published`:
    refine(image, probabilities=p, **tritoncrf.PARAMETERS["deeplab"]).

    Returns:
        Probabilities [C, *S], of the kind, the dtype and on the device of the scores; for labels float32, as a
        NumPy array unless the labels were a torch tensor. For a mask or a foreground the foreground's probability
        [*S], float32. Computed in float64 for float64 scores, else in float32.
        What was given as `out` or `out_labels` is returned instead, a pair of both.
        With return_trace=True a pair of these and a `Trace`: `trace.records` are those of `tritoncrf.trace`, one for
        the start and each iteration, with the energy, the free energy (the KL divergence up to log Z) and the share of
        labels that changed; `trace.summary` says what changed in all, by class, and the confidence.

    On a GPU, "window" and "guided" of a uint8 photo replay a CUDA graph from the second image of one size and one set
    of arguments on, so that no kernel waits for Python. `tritoncrf.clear_cache` lets go of the graphs' memory.

    Raises:
        TypeError: a kind or dtype other than the above, none or several of the scores.
        ValueError: shapes that do not fit, a value out of range, NaN or infinite, an argument that plays no part; the
            message names the argument; a budget in which no block, or no lattice, fits: it says which would do.
        OSError: a file that cannot be written; what is finished is kept for the next call, if that is the same.

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
