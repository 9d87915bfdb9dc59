"""The rows of each table, and what the papers claim about them.

EXPERIMENTS use CamVid at a size that a small machine can train; PUBLISHED use Pascal VOC, as in the papers.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """How a trained run is measured: without its CRF, with it, or with a fixed CRF that a search chose.

    checkpoint: "last", of the last epoch, which used no validation image, or "best" if other runs start from that.
    """

    run: str
    crf: str = "own"  # or "none", "search"
    testing: dict[str, Any] = field(default_factory=dict)  # arguments of `evaluation.scores`
    checkpoint: str = "last"


@dataclass(frozen=True)
class Claim:
    """Two rows whose difference tests a claim of a paper.

    published: the paper's difference in points of mean IoU; None if no paper compares the two.
    """

    first: str
    second: str
    published: float | None = None

    @property
    def title(self) -> str:
        return f"{self.first} \N{MINUS SIGN} {self.second}"


@dataclass(frozen=True)
class Experiment:
    """A table: its rows by title, the claims about them, and where the paper gives its numbers.

    validate: the split that all rows are measured on; "" for the split that their configurations name.
    """

    title: str
    rows: dict[str, Row]
    claims: tuple[Claim, ...]
    published: str
    validate: str = ""


MULTI_SCALE = {"scales": (0.7, 1.0, 1.2), "flip": True, "fuse": "max_mean"}  # as in SegModel's code
_decoupled = (
    "Table 2 of Teichmann and Cipolla 2018 has mean IoU 71.23 for a ResNet-101 alone on Pascal VOC, 72.02 with a "
    "fixed fully connected CRF, and ConvCRF 72.04, +T 72.07, +C 72.30, +CT 72.37. +T learns the pixels' coordinates, "
    "+C the compatibility."
)
_crfrnn = (
    "Table 1 of Zheng et al. 2015 has mean IoU 61.3 for FCN-8s on Pascal VOC, 63.7 with a disconnected CRF, 69.6 end "
    "to end."
)
_end_to_end = (
    "Table 3 of Teichmann and Cipolla 2018 has 70.99 for the network, 72.18 for ConvCRF and 69.6 for CRF-RNN, both end "
    "to end."
)
_segmodel = (
    "Table 3 of Shen et al. 2017 has mean IoU 69.5 for Unary on Pascal VOC, 76.3 with Context, 76.8 with Patch, 77.7 "
    "with Guide. Multi-scale testing raises 79.5 to 80.9, both also trained on COCO. Each part is a separate training."
)
_conv_claims = (
    Claim("fully connected CRF, fixed", "network alone", 0.79), Claim("ConvCRF", "network alone", 0.81),
    Claim("ConvCRF", "fully connected CRF, fixed", 0.02), Claim("ConvCRF +T", "ConvCRF", 0.03),
    Claim("ConvCRF +C", "ConvCRF", 0.26), Claim("ConvCRF +CT", "ConvCRF", 0.33),
)  # fmt: skip
_conv_rows = {
    "network alone": Row("unary", "none", checkpoint="best"),
    "fully connected CRF, fixed": Row("unary", "search", checkpoint="best"),
    "ConvCRF": Row("convcrf"),
    "ConvCRF +T": Row("convcrf_t"),
    "ConvCRF +C": Row("convcrf_c"),
    "ConvCRF +CT": Row("convcrf_ct"),
}
_segmodel_experiment = Experiment(
    "SegModel, part by part",
    {
        "Unary": Row("segmodel_unary"),
        "Context": Row("segmodel_context"),
        "+ Patch": Row("segmodel_patch"),
        "+ Guide": Row("segmodel_guide"),
        "its network without the guidance CRF": Row("segmodel_guide", "none"),
        "+ multi-scale, mirrored": Row("segmodel_guide", testing=MULTI_SCALE),
    },
    (
        Claim("Context", "Unary", 6.8), Claim("+ Patch", "Context", 0.5), Claim("+ Guide", "+ Patch", 0.9),
        Claim("+ Guide", "its network without the guidance CRF"), Claim("+ multi-scale, mirrored", "+ Guide", 1.4),
    ),
    _segmodel,
)  # fmt: skip
EXPERIMENTS = {
    "decoupled": Experiment(
        "Decoupled: CRFs on a fixed network",
        {**_conv_rows, "CRF-RNN": Row("crfrnn")},
        (*_conv_claims, Claim("CRF-RNN", "network alone"), Claim("CRF-RNN", "ConvCRF +C")),
        _decoupled,
    ),
    "end_to_end": Experiment(
        "End to end: networks and CRFs trained together",
        {
            "network alone": Row("unary", "none", checkpoint="best"),
            "network alone, as long": Row("longer", "none"),
            "fully connected CRF, disconnected": Row("unary", "search", checkpoint="best"),
            "CRF-RNN, end to end": Row("crfrnn_joint"),
            "its network alone": Row("crfrnn_joint", "none"),
            "ConvCRF, end to end": Row("convcrf_joint"),
            "its network alone, ConvCRF": Row("convcrf_joint", "none"),
        },
        (
            Claim("network alone, as long", "network alone"),
            Claim("fully connected CRF, disconnected", "network alone", 2.4),
            Claim("CRF-RNN, end to end", "network alone", 8.3),
            Claim("CRF-RNN, end to end", "network alone, as long"),
            Claim("CRF-RNN, end to end", "fully connected CRF, disconnected", 5.9),
            Claim("ConvCRF, end to end", "network alone"),
            Claim("ConvCRF, end to end", "network alone, as long", 1.19),
            Claim("ConvCRF, end to end", "CRF-RNN, end to end", 2.58),
        ),
        f"{_crfrnn} {_end_to_end} Here both start from CRFs that were trained on the fixed network, on 40 images that "
        "the networks alone were never trained on.",
    ),
    "segmodel": _segmodel_experiment,
}
PUBLISHED = {
    "decoupled": Experiment(EXPERIMENTS["decoupled"].title, _conv_rows, _conv_claims, _decoupled),
    "end_to_end": Experiment(
        EXPERIMENTS["end_to_end"].title,
        {
            "FCN-8s": Row("fcn8s", "none"),
            "FCN-8s, fully connected CRF, disconnected": Row("fcn8s", "search"),
            "CRF-RNN, end to end": Row("crfrnn"),
            "ResNet-101": Row("longer", "none"),
            "ConvCRF, end to end": Row("convcrf_joint"),
        },
        (
            Claim("FCN-8s, fully connected CRF, disconnected", "FCN-8s", 2.4),
            Claim("CRF-RNN, end to end", "FCN-8s", 8.3),
            Claim("CRF-RNN, end to end", "FCN-8s, fully connected CRF, disconnected", 5.9),
            Claim("ConvCRF, end to end", "ResNet-101", 1.19),
            Claim("ConvCRF, end to end", "CRF-RNN, end to end", 2.58),
        ),
        f"{_crfrnn} {_end_to_end} All are measured on the 346 validation images that no training used.",
        validate="val_reduced",
    ),
    "segmodel": _segmodel_experiment,
}  # fmt: skip
