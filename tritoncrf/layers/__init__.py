"""CRFs as network layers. They own the parameters; `mean_field` does the mathematics."""

from tritoncrf.layers.base import Layer
from tritoncrf.layers.conv_crf import ConvCRF
from tritoncrf.layers.crf_rnn import CRFRNN
from tritoncrf.layers.guidance_crf import GuidanceCRF

__all__ = ["CRFRNN", "ConvCRF", "GuidanceCRF", "Layer"]
