"""Segmentation networks around the CRFs, their data sets, training and evaluation; and the metrics for them.

`python -m tritoncrf.models train | evaluate | predict` runs them; `models/README.md` shows how.
"""

from tritoncrf.models.fcn8s import FCN8s, FCN8sCRFRNN
from tritoncrf.models.resnet_fcn import ResNetConvCRF, ResNetFCN
from tritoncrf.models.segmenter import Segmenter, WithCRF
from tritoncrf.models.segmodel import SegModel

__all__ = ["FCN8s", "FCN8sCRFRNN", "ResNetConvCRF", "ResNetFCN", "SegModel", "Segmenter", "WithCRF"]
