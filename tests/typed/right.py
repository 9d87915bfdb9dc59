"""A user's program in which every value has the type that it is said to have; it runs, too."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from typing_extensions import assert_type

import tritoncrf as tc
from tritoncrf.densecrf import DenseCRF2D
from tritoncrf.densecrf.utils import unary_from_softmax
from tritoncrf.diagnostics import Record
from tritoncrf.models import FCN8s, FCN8sCRFRNN, ResNetConvCRF, ResNetFCN, SegModel
from tritoncrf.models.config import load
from tritoncrf.models.evaluation import scores
from tritoncrf.models.metrics import Evaluation, Result, confusion_matrix
from tritoncrf.summary import Trace
from tritoncrf.synthetic import noisy_scores
from tritoncrf.types import Normalization, RefineOptions, Theta

H, W, C = 12, 14, 3
photo = np.zeros((H, W, 3), dtype=np.uint8)
labels = np.zeros((H, W), dtype=np.int64)
image = torch.zeros(1, 3, H, W, dtype=torch.uint8)
logits = torch.randn(1, C, H, W)

# One call: what comes back is of the kind of the scores, whatever the image is.
p = noisy_scores(labels, C, scale=4)
assert_type(tc.refine(photo, probabilities=p, iterations=1), np.ndarray)
assert_type(tc.refine(Image.fromarray(photo), energies=1 - p, method="guided", radius=(2, 3)), np.ndarray)
assert_type(tc.refine(photo, logits=logits[0], theta_space=(40.0, 60.0)), torch.Tensor)
assert_type(tc.refine(image[0], labels=labels, num_classes=C), np.ndarray)
assert_type(tc.refine(photo, labels=Image.fromarray(labels.astype(np.uint8))), np.ndarray)
assert_type(tc.refine(photo, labels=torch.from_numpy(labels)), torch.Tensor)
assert_type(tc.refine(logits=logits[0], features=torch.rand(4, H, W), method="exact"), torch.Tensor)
assert_type(tc.refine(photo, probabilities=p, **tc.PARAMETERS["deeplab"]), np.ndarray)
options: RefineOptions = {"method": "window", "window_size": 5, "blur": 2}
assert_type(tc.refine(photo, probabilities=p, device="cpu", **options), np.ndarray)
assert_type(tc.refine(photo, logits=logits[0], return_trace=True, **options), tuple[torch.Tensor, Trace])
refined, trace = tc.refine(photo, labels=labels, return_trace=True)
assert_type(refined, np.ndarray)
assert_type(trace.records, list[Record])
assert_type(trace.summary.before, tuple[float, ...])


# Filters and the loop, and arguments that are passed on.
def smoothing(theta: Theta, normalization: Normalization = "symmetric") -> tc.filters.Lattice:
    return tc.filters.Lattice.spatial((H, W), theta, normalization=normalization)


theta = torch.tensor([3.0, 4.0], requires_grad=True)
f = tc.features.bilateral(image, theta_space=theta, theta_color=13)
assert_type(f, torch.Tensor)
kernels = [smoothing(3), tc.filters.Exact(f, rtol=0), tc.filters.Guided(image.float(), radius=2, eps=torch.tensor(1.0))]
window = tc.filters.Window(tc.features.color(image, (13, 13, 13)), window_size=3)
assert_type(window(logits), torch.Tensor)
assert_type(tc.mean_field(logits, kernels, [1.0, torch.ones(C), 2], output="logits"), torch.Tensor)
assert_type(tc.trace(logits, [window], [1.0], compatibility=torch.eye(C)), tuple[torch.Tensor, list[Record]])
gated = tc.LOSSES["gated"]
roi = torch.ones(1, H, W, dtype=torch.bool)
assert_type(
    tc.dense_crf_loss(
        logits.softmax(1), [gated.filter(image), window], [1, torch.tensor(0.5)], roi=roi, form=gated.form
    ),
    torch.Tensor,
)
assert_type(tc.guided_filter(logits, image.float(), radius=2, eps=0.01), torch.Tensor)
assert_type(tc.box_mean(logits, radius=(1, 2), box="constant"), torch.Tensor)
with tc.check_values(True):
    assert_type(tc.features.spatial((H, W), theta=[3, 4], spacing=2.0)[0], torch.Tensor)

# Layers give tensors.
assert_type(tc.ConvCRF(C, 5, blur=2, preset="released")(logits, image), torch.Tensor)
assert_type(tc.CRFRNN(C, kernel_weights="full")(logits, features=f, output="probabilities"), torch.Tensor)
assert_type(tc.GuidanceCRF(C, radius=(2, 3)).cost, torch.Tensor)

# pydensecrf's names.
d = DenseCRF2D(W, H, C)
d.setUnaryEnergy(unary_from_softmax(p))
d.addPairwiseGaussian(sxy=(3, 3), compat=np.eye(C))
assert_type(float(d.inference(2).sum()), float)
assert_type(d.klDivergence(d.startInference()[0]), float)

# Networks: logits, or a pair of them.
narrow = {"depth": 18, "width": 0.125}
assert_type(FCN8s(C, width=1 / 16)(image), torch.Tensor)
assert_type(ResNetFCN(C, depth=18, width=0.125).eval()(image, "unary"), torch.Tensor)
both = ResNetConvCRF(C, network=narrow).eval()(image, "both")
assert_type(both, tuple[torch.Tensor, torch.Tensor])
model = SegModel(C, depth=18, width=0.125, context="none", crf={"iterations": 1}).eval()
assert_type(scores(model, image, scales=(1.0, 0.5), flip=True), dict[str, torch.Tensor])
assert_type(FCN8sCRFRNN(C, network={"width": 1 / 16}).cost if False else model.num_classes, int)
assert_type(confusion_matrix(labels, labels, num_classes=C), np.ndarray)
assert_type(confusion_matrix(logits.argmax(1), logits.argmax(1), num_classes=C), torch.Tensor)
evaluation = Evaluation(C)
evaluation.add(labels, labels)
assert_type(evaluation.result(), Result)
assert_type(load("small_unary").data.resize, tuple[int, int] | None)
assert_type(load(Path("small_unary"), changes=["seed=1"]).seed, int)
