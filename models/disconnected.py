"""The disconnected CRF: an untrained layer on the scores of a network that was trained without it."""

from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args

from tritoncrf import CRFRNN, ConvCRF, GuidanceCRF
from tritoncrf.layers import Layer

__all__ = ["KINDS", "LAYERS", "Kind"]

Kind: TypeAlias = Literal["lattice", "window", "guided"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LAYERS: Mapping[Kind, type[Layer]] = {"lattice": CRFRNN, "window": ConvCRF, "guided": GuidanceCRF}
