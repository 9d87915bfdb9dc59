"""Dense conditional random fields on segmentation scores, with Triton kernels and an equivalent PyTorch
implementation."""

import os
import sys
from typing import TYPE_CHECKING

from tritoncrf.lazy import load_lazily

if TYPE_CHECKING:  # the same names as in `load_lazily` below
    from tritoncrf import densecrf as densecrf
    from tritoncrf import diagnostics as diagnostics
    from tritoncrf import features, filters
    from tritoncrf import figures as figures
    from tritoncrf import files as files
    from tritoncrf import layers as layers
    from tritoncrf import losses as losses
    from tritoncrf import models as models
    from tritoncrf import published as published
    from tritoncrf import synthetic as synthetic
    from tritoncrf import types as types
    from tritoncrf.checks import check_values
    from tritoncrf.datasets.many import refine_many
    from tritoncrf.diagnostics import trace
    from tritoncrf.filters.box import box_mean
    from tritoncrf.filters.guided import guided_filter
    from tritoncrf.filters.lattice import clear_cache
    from tritoncrf.layers import CRFRNN, ConvCRF, GuidanceCRF
    from tritoncrf.losses import LOSSES, dense_crf_loss
    from tritoncrf.mean_field import mean_field
    from tritoncrf.models.tuning import load_parameters, tune
    from tritoncrf.options import PARAMETERS
    from tritoncrf.refine import refine

__version__ = "0.2.0"
__all__ = [
    "CRFRNN",
    "LOSSES",
    "PARAMETERS",
    "ConvCRF",
    "GuidanceCRF",
    "box_mean",
    "check_values",
    "clear_cache",
    "dense_crf_loss",
    "features",
    "filters",
    "guided_filter",
    "load_parameters",
    "mean_field",
    "refine",
    "refine_many",
    "trace",
    "tune",
]

load_lazily(
    __name__,
    {
        "CRFRNN": "layers",
        "ConvCRF": "layers",
        "GuidanceCRF": "layers",
        "LOSSES": "losses",
        "PARAMETERS": "options",
        "box_mean": "filters.box",
        "check_values": "checks",
        "clear_cache": "filters.lattice",
        "dense_crf_loss": "losses",
        "guided_filter": "filters.guided",
        "load_parameters": "models.tuning",
        "mean_field": "mean_field",
        "refine": "refine",
        "refine_many": "datasets.many",
        "trace": "diagnostics",
        "tune": "models.tuning",
        "densecrf": "densecrf",
        "diagnostics": "diagnostics",
        "features": "features",
        "figures": "figures",
        "files": "files",
        "filters": "filters",
        "layers": "layers",
        "losses": "losses",
        "models": "models",
        "published": "published",
        "synthetic": "synthetic",
        "types": "types",
    },
)
# In a checkout, `tritoncrf.models` is beside this folder; in an installed package, it is inside.
if not os.path.isdir(os.path.join(__path__[0], "models")):
    __path__.append(os.path.dirname(__path__[0]))


def _one_thread() -> None:
    """A fork does not inherit OpenMP's threads, and code that used them before would wait for them forever."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_one_thread)
