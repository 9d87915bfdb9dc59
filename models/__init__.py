"""Segmentation networks with CRFs, their data sets, training, evaluation and metrics.

`tritoncrf train | evaluate | predict | experiments` runs them; `models/README.md` shows how.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from tritoncrf.lazy import load_lazily

if TYPE_CHECKING:  # the same names as in `load_lazily` below
    from tritoncrf.models.fcn import FCN8s, FCN8sCRFRNN, FCN16s, FCN32s
    from tritoncrf.models.resnet_fcn import ResNetConvCRF, ResNetFCN
    from tritoncrf.models.segmenter import Segmenter, WithCRF
    from tritoncrf.models.segmodel import SegModel
    from tritoncrf.models.timm_fcn import TimmFCN

__all__ = [
    "FCN8s", "FCN8sCRFRNN", "FCN16s", "FCN32s", "ResNetConvCRF", "ResNetFCN", "SegModel", "Segmenter", "TimmFCN",
    "WithCRF",
]  # fmt: skip

BUNDLED = Path(__file__).parent / "configs"

load_lazily(
    __name__,
    {
        "FCN8s": "fcn",
        "FCN8sCRFRNN": "fcn",
        "FCN16s": "fcn",
        "FCN32s": "fcn",
        "ResNetConvCRF": "resnet_fcn",
        "ResNetFCN": "resnet_fcn",
        "SegModel": "segmodel",
        "Segmenter": "segmenter",
        "TimmFCN": "timm_fcn",
        "WithCRF": "segmenter",
    },
)
