"""What is compared with what: the rows of each table, as the papers have them."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """What a run learnt is measured as: without its CRF, with it, or with a fixed one that a grid chose.

    checkpoint: that of the last epoch, which looks at no validation image; "best" where the others start from that.
    """

    run: str
    crf: str = "own"  # or "none", "grid"
    testing: dict[str, Any] = field(default_factory=dict)  # of `evaluation.scores`
    checkpoint: str = "last"


@dataclass(frozen=True)
class Experiment:
    """A table: rows by title, the pairs whose differences say what the paper's table says, and the paper's numbers."""

    title: str
    rows: dict[str, Row]
    pairs: tuple[tuple[str, str], ...]
    published: str


MULTI_SCALE = {"scales": (0.7, 1.0, 1.2), "flip": True, "fuse": "max_mean"}  # as in SegModel's code
EXPERIMENTS = {
    "decoupled": Experiment(
        "Decoupled: CRFs on a network that stays as it is",
        {
            "network alone": Row("unary", "none", checkpoint="best"),
            "fully connected CRF, fixed": Row("unary", "grid", checkpoint="best"),
            "CRF-RNN": Row("crfrnn"),
            "ConvCRF": Row("convcrf"),
            "ConvCRF +T": Row("convcrf_t"),
            "ConvCRF +C": Row("convcrf_c"),
            "ConvCRF +CT": Row("convcrf_ct"),
        },
        (
            ("fully connected CRF, fixed", "network alone"), ("CRF-RNN", "network alone"),
            ("ConvCRF", "network alone"), ("ConvCRF", "fully connected CRF, fixed"), ("ConvCRF +T", "ConvCRF"),
            ("ConvCRF +C", "ConvCRF"), ("ConvCRF +CT", "ConvCRF"), ("CRF-RNN", "ConvCRF +C"),
        ),
        "Table 2 of Teichmann and Cipolla 2018 has mean IoU 71.23 for a ResNet-101 alone on Pascal VOC, 72.02 with a "
        "fixed fully connected CRF, and ConvCRF 72.04, +T 72.07, +C 72.30, +CT 72.37. +T: the pixels' coordinates are "
        "learnt, +C: the compatibility is.",
    ),
    "end_to_end": Experiment(
        "End to end: networks and CRFs that learn together",
        {
            "network alone": Row("unary", "none", checkpoint="best"),
            "network alone, as long": Row("longer", "none"),
            "fully connected CRF, disconnected": Row("unary", "grid", checkpoint="best"),
            "CRF-RNN, end to end": Row("crfrnn_joint"),
            "its network alone": Row("crfrnn_joint", "none"),
            "ConvCRF, end to end": Row("convcrf_joint"),
            "its network alone, ConvCRF": Row("convcrf_joint", "none"),
        },
        (
            ("network alone, as long", "network alone"), ("fully connected CRF, disconnected", "network alone"),
            ("CRF-RNN, end to end", "network alone"), ("CRF-RNN, end to end", "network alone, as long"),
            ("CRF-RNN, end to end", "fully connected CRF, disconnected"), ("ConvCRF, end to end", "network alone"),
            ("ConvCRF, end to end", "network alone, as long"), ("CRF-RNN, end to end", "ConvCRF, end to end"),
        ),
        "Table 1 of Zheng et al. 2015 has mean IoU 61.3 for FCN-8s on Pascal VOC, 63.7 with a disconnected CRF, 69.6 "
        "end to end. Table 3 of Teichmann and Cipolla 2018 has 70.99 for the network, 72.18 for ConvCRF and 69.6 for "
        "CRF-RNN, both end to end. Here both start from CRFs that learnt on the fixed network, from 40 images that the "
        "networks alone never saw.",
    ),
    "segmodel": Experiment(
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
            ("Context", "Unary"), ("+ Patch", "Context"), ("+ Guide", "+ Patch"),
            ("+ Guide", "its network without the guidance CRF"), ("+ multi-scale, mirrored", "+ Guide"),
        ),
        "Table 3 of Shen et al. 2017 has mean IoU 69.5 for Unary on Pascal VOC, 76.3 with Context, 76.8 with Patch, "
        "77.7 with Guide, and 80.9 multi-scale (also trained on COCO). Each part is a training of its own, 12 epochs.",
    ),
}  # fmt: skip
