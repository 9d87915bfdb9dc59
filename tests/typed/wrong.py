"""A user's program that must not pass: every marked line gives the error that it names, and no other line gives any."""

import numpy as np
import torch

import tritoncrf as tc
from tritoncrf.densecrf import DenseCRF2D
from tritoncrf.models import FCN8s
from tritoncrf.models.metrics import confusion_matrix
from tritoncrf.types import RefineOptions

photo, p = np.zeros((12, 14, 3), dtype=np.uint8), np.zeros((3, 12, 14))
image, logits = torch.rand(1, 3, 12, 14), torch.randn(1, 3, 12, 14)

tc.refine(photo)  # error: call-overload
tc.refine(photo, logits=p, probabilities=p)  # error: call-overload
tc.refine(photo, probs=p)  # error: call-overload
tc.refine(photo, logits=p, method="latice")  # error: call-overload
tc.refine("photo.png", logits=p)  # error: call-overload
q: torch.Tensor = tc.refine(photo, logits=p)  # error: assignment
tc.refine(photo, logits=p, trace=[])  # error: call-overload
tc.refine(photo, logits=p, return_trace=True).argmax(0)  # error: attr-defined
tc.refin(photo, logits=p)  # error: attr-defined
options: RefineOptions = {"theta": 3}  # error: typeddict-unknown-key
tc.PARAMETERS["deeplab"] = {}  # error: index

f = tc.features.spatial(12, theta=3)  # error: arg-type
tc.features.bilateral(photo, 80, 13)  # error: arg-type
window = tc.filters.Window(f)  # error: call-arg
lattice = tc.filters.Lattice(f, normalization="symetric")  # error: arg-type
lattice(p)  # error: arg-type
tc.filters.Guided(image, radius=3, eps=1.0, box="counts")  # error: arg-type
tc.mean_field(logits, lattice, [1.0])  # error: arg-type
tc.mean_field(logits, [lattice], [1.0], compatibility="pots")  # error: arg-type
tc.mean_field(logits, [lattice], [1.0], output="softmax")  # error: arg-type
tc.trace(logits, [lattice], [1.0]).argmax(1)  # error: attr-defined
tc.dense_crf_loss(logits, [lattice], [1.0], form="gated")  # error: arg-type
tc.dense_crf_loss(logits, [lattice], [1.0], image)  # error: call-arg
tc.LOSSES["rloss"].weight = 1.0  # error: misc

crf = tc.ConvCRF(21, preset="release")  # error: arg-type
tc.CRFRNN("21")  # error: arg-type
tc.GuidanceCRF(21, radius=2.5)  # error: arg-type
tc.GuidanceCRF(21, fast=True)  # error: call-arg
crf(logits, photo)  # error: arg-type
crf(logits, image, guide=image)  # error: call-arg

DenseCRF2D(14, 12, 3).setUnaryEnergy(logits)  # error: arg-type
FCN8s(21, skips="none")  # error: arg-type
FCN8s(21)(image, "all")  # error: call-overload
confusion_matrix(p, logits, num_classes=3)  # error: type-var
