"""The arguments of `refine`: their defaults, the methods that use them, and the settings of published pipelines."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, cast, get_args

from tritoncrf.types import Method, RefineOptions

__all__ = [
    "ARGUMENTS", "BINARY", "HARD", "METHODS", "PARAMETERS", "SCORES", "SHARES", "TEXTS", "UNKNOWN", "method_for",
    "settings",
]  # fmt: skip

METHODS: tuple[Method, ...] = get_args(Method)
GAUSSIAN: tuple[Method, ...] = ("lattice", "exact", "window")
SCORES = ("logits", "probabilities", "energies", "labels", "mask", "foreground")
BINARY = SCORES[4:]  # for one object, [H, W]
HARD = SCORES[3:5]  # labels without a network's certainty
UNKNOWN = 255  # the label of unknown pixels


class Argument(NamedTuple):
    """The default of an argument, and the methods and the kinds of scores that use it.

    gentle: the default for GAUSSIAN methods on the scores of a network, if it is another. These methods remove small
        regions whose scores are low, which a label map does not have.
    """

    default: Any
    methods: tuple[Method, ...] = METHODS
    scores: tuple[str, ...] = SCORES
    gentle: Any = None

    def value(self, method: Method, scores: str) -> Any:
        """The value where it is not given."""
        gentle = self.gentle is not None and method in GAUSSIAN and scores not in HARD
        return self.gentle if gentle else self.default


ARGUMENTS: Mapping[str, Argument] = MappingProxyType(
    {
        "theta_space": Argument("5%", GAUSSIAN),
        "theta_color": Argument(5, GAUSSIAN),
        "weight_appearance": Argument(10, gentle=1),
        "theta_smooth": Argument("0.5%", GAUSSIAN),
        "weight_smooth": Argument(3, GAUSSIAN, gentle=1),
        "spacing": Argument(None, GAUSSIAN),
        "value_range": Argument(None),
        "compatibility": Argument("potts"),
        "iterations": Argument(5),
        "damping": Argument(0.0),
        "temperature": Argument(1.0),
        "window_size": Argument(11, ("window",)),
        "blur": Argument(2, ("window",)),
        "radius": Argument(3, ("guided",)),
        "eps": Argument(1.0, ("guided",)),
        "label_confidence": Argument(0.7, scores=HARD),
        "num_classes": Argument(None, scores=SCORES[:4]),
        "unknown": Argument("auto", scores=("labels",)),
    }
)


class Text(NamedTuple):
    """What an argument means, and for a slider its minimum, maximum and step."""

    meaning: str
    numbers: tuple[float, float, float] | None = None


TEXTS: Mapping[str, Text] = MappingProxyType(
    {
        "theta_space": Text(
            "bandwidth of positions in the appearance kernel, in pixels or as a share of the diagonal, such as 16%",
            (1, 200, 1),
        ),
        "theta_color": Text("bandwidth of colours in the appearance kernel, in 0..255 units", (1, 60, 0.5)),
        "weight_appearance": Text("weight of the appearance kernel, or of the guided filter", (0, 30, 0.1)),
        "theta_smooth": Text(
            "bandwidth of the smoothness kernel, in pixels or as a share of the diagonal, such as 1%", (0.5, 20, 0.5)
        ),
        "weight_smooth": Text("weight of the smoothness kernel", (0, 10, 0.1)),
        "spacing": Text(
            "distance between neighbouring pixels along each axis, such as 2.5,0.8,0.8 in mm; the bandwidths of "
            "positions are then in the same unit"
        ),
        "value_range": Text("the pixel values that count as 0 and as 255, as numbers or as percentiles such as 1%,99%"),
        "compatibility": Text("potts, or an .npy or .npz file with the cost [C, C] of a row's class near a column's"),
        "iterations": Text("number of mean-field iterations", (0, 20, 1)),
        "damping": Text(
            "share of the previous probabilities that each iteration keeps, from 0 to below 1", (0, 0.95, 0.05)
        ),
        "temperature": Text("above 1 makes the result less certain, below 1 more certain", (0.1, 5, 0.1)),
        "window_size": Text("side of the window, an odd number of pixels after blurring", (3, 31, 2)),
        "blur": Text("messages are computed on averages of blocks of this many pixels a side", (1, 8, 1)),
        "radius": Text("radius of the filter's windows, in pixels", (1, 50, 1)),
        "eps": Text("colour variance in a window above which edges are kept, in 0..255 units squared"),
        "label_confidence": Text("probability that an input label is right", (0.5, 0.99, 0.01)),
        "num_classes": Text("number of classes"),
        "unknown": Text("labels that mark unknown pixels, such as --unknown=-1,255; none if none do; auto is 255"),
    }
)
SHARES = (0.1, 40, 0.1)  # the slider of a bandwidth of positions in percent of the diagonal


def method_for(scores: str, features: bool, given: Mapping[str, Any]) -> Method:
    """The method if none is given, see `refine`; the arguments are those of `settings`."""
    asked = [ARGUMENTS[name].methods for name, value in given.items() if value is not None]
    if not all("guided" in methods for methods in asked):
        return "lattice"
    soft = scores not in HARD and not features
    return "guided" if soft or any("lattice" not in methods for methods in asked) else "lattice"


def settings(method: Method, scores: str, features: bool, given: Mapping[str, Any]) -> dict[str, Any]:
    """Every argument: its value in `given`, or else its default.

    Args:
        method: the method of `refine`.
        scores: the name of the scores, such as "logits".
        features: whether features replace the image.
        given: arguments by name; None where one is not given.

    Raises:
        ValueError: an argument is given that the method, the features or the kind of scores does not use.
    """
    for name, value in given.items():
        if value is None:
            continue
        unused = None
        if method not in ARGUMENTS[name].methods:
            unused = f"method={method!r}"
        elif features and name in ("theta_space", "theta_color", "value_range"):
            unused = "features"
        elif scores not in ARGUMENTS[name].scores:
            unused = f"{scores}="
        if unused is not None:
            got = value if isinstance(value, (int, float, str, tuple)) else f"a {type(value).__name__}"
            raise ValueError(f"{name}: expected none with {unused}, which does not use it, got {got}")
    return {
        name: entry.value(method, scores) if given[name] is None else given[name] for name, entry in ARGUMENTS.items()
    }


def _set(iterations: int, smooth: tuple[float, float], appearance: tuple[float, float, float]) -> RefineOptions:
    """(theta, weight) of smoothness; (theta_space, theta_color, weight) of appearance."""
    names = "theta_smooth", "weight_smooth", "theta_space", "theta_color", "weight_appearance"
    found = {**dict(zip(names, (*smooth, *appearance))), "iterations": iterations}
    return cast(RefineOptions, MappingProxyType(found))  # a dict that cannot be changed


PARAMETERS: Mapping[str, RefineOptions] = MappingProxyType(
    {
        "densecrf": _set(5, (3, 3), (80, 13, 10)),
        "deeplab": _set(10, (1, 3), (67, 3, 4)),
        "seam": _set(10, (3, 3), (80, 13, 10)),
        "irn": _set(10, (3, 3), (50, 5, 10)),
        "cutler": _set(10, (3, 7), (50, 5, 10)),
    }
)
