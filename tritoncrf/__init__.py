"""Dense conditional random fields on segmentation scores, as Triton kernels with a PyTorch twin."""

from tritoncrf import features, filters
from tritoncrf.checks import check_values
from tritoncrf.diagnostics import trace
from tritoncrf.filters.box import box_mean
from tritoncrf.filters.guided import guided_filter
from tritoncrf.layers import CRFRNN, ConvCRF, GuidanceCRF
from tritoncrf.mean_field import mean_field
from tritoncrf.published import PARAMETERS
from tritoncrf.refine import refine

__version__ = "0.1.0"
__all__ = [
    "CRFRNN",
    "PARAMETERS",
    "ConvCRF",
    "GuidanceCRF",
    "box_mean",
    "check_values",
    "features",
    "filters",
    "guided_filter",
    "mean_field",
    "refine",
    "trace",
]
