"""Every public call with every bad value in the place of every argument.

It is served, with numbers that are finite, or refused by a ValueError, a TypeError or a NotImplementedError that names
the argument. Nothing else may come out, and nothing that takes long.
"""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch

import tritoncrf as tc
from tritoncrf.densecrf import DenseCRF, DenseCRF2D, utils

H, W, C = 4, 5, 3
GENERATOR = np.random.default_rng(0)
IMAGE = GENERATOR.integers(0, 256, (H, W, 3), dtype=np.uint8)
LOGITS = GENERATOR.standard_normal((C, H, W)).astype(np.float32)
LABELS = GENERATOR.integers(0, C, (H, W))
P = np.exp(LOGITS) / np.exp(LOGITS).sum(0)
BATCH, PHOTO = torch.from_numpy(LOGITS)[None], torch.from_numpy(IMAGE).permute(2, 0, 1)[None]
FEATURES = torch.from_numpy(LOGITS[:2].copy())[None]
POINTS = FEATURES[0].flatten(1).numpy()
KERNEL = tc.filters.Window(FEATURES, 3)


class Rude:
    """Has all that a number has, and raises in it."""

    def __repr__(self):
        raise RuntimeError("no words")

    __float__ = __index__ = __len__ = __repr__


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of prototypes in torch
    BAD = {
        "True": True,
        "a word": "banana",
        "no word": "",
        "a long word": "x" * 10_000,
        "bytes": b"x",
        "-1": -1,
        "0": 0,
        "2.5": 2.5,
        "1e-46": 1e-46,
        "1e39": 1e39,
        "-1e39": -1e39,
        "1e38": 1e38,
        "10**20": 10**20,
        "10**400": 10**400,
        "inf": math.inf,
        "nan": math.nan,
        "complex": 1 + 2j,
        "numpy complex": np.complex64(3 + 9j),
        "numpy bool": np.bool_(True),
        "numpy word": np.array("a"),
        "numpy pair": np.array([1, 2]),
        "numpy objects": np.array([{}, None]),
        "numpy void": np.zeros(3, np.dtype([("a", "f4")])),
        "numpy date": np.datetime64("2026-01-01"),
        "torch complex": torch.tensor(1 + 2j),
        "torch bool": torch.tensor(True),
        "torch float": torch.tensor(2.5),
        "torch pair": torch.tensor([1.0, 2.0]),
        "torch empty": torch.empty(0),
        "list": [],
        "ragged": [[1.0], [1.0, 2.0]],
        "words": ["a", "b"],
        "nested": [[[[1]]]],
        "dict": {},
        "object": object(),
        "function": len,
        "type": float,
        "rude": Rude(),
        "NaN tensor": torch.full((1, C, H, W), math.nan),
        "NaN array": np.full((C, H, W), math.nan, np.float32),
        "infinite tensor": torch.full((1, C, H, W), math.inf),
        "infinite array": np.full((C, H, W), -math.inf),
        "huge tensor": torch.full((1, C, H, W), 3e38),
        "huge array": np.full((C, H, W), 1e300),
        "integers": torch.ones(1, C, H, W, dtype=torch.int64),
        "uint64": np.full((H, W), 2**63, np.uint64),
        "minus one": np.full((H, W), -1),
        "2**40": np.full((H, W), 2**40),
        "float8": BATCH.to(torch.float8_e4m3fn),
        "complex tensor": BATCH.to(torch.complex64),
        "complex array": LOGITS.astype(np.complex128),
        "sparse": BATCH.to_sparse(),
        "sparse map": BATCH[0].to_sparse(),
        "torch nested": torch.nested.nested_tensor([BATCH[0], BATCH[0, :, :1]]),
        "torch masked": torch.masked.masked_tensor(BATCH, BATCH > 0),
        "numpy masked": np.ma.masked_array(LOGITS, LOGITS > 0),
        "numpy masked map": np.ma.masked_array(LABELS, LABELS > 0),
        "meta": BATCH.to("meta"),
        "empty batch": BATCH[:, :0],
        "no pixels": torch.empty(1, C, 0, W),
        "strided backwards": LOGITS[:, ::-1, ::-1],
        "6 axes": torch.zeros(1, 1, 1, 1, 1, 1),
    }


def gaussian(kind, **settings):
    return lambda **given: kind(**given)(BATCH), {"features": FEATURES, **settings}


GAUSSIAN = {"include_self": True, "normalization": "symmetric", "precision": "default", "backend": "auto"}
THETAS = {"theta_space": 8.0, "theta_color": 5.0, "theta_smooth": 3.0}
WEIGHTS = {"weight_appearance": 2.0, "weight_smooth": 1.0}
LOOP = {"logits": BATCH, "filters": [KERNEL], "weights": [1.0], "iterations": 1, "unary_weight": 1.0}
LAYER = {"num_classes": C, "iterations": 1, "precision": "default", "backend": "auto", "device": None, "dtype": None}


def point_crf(unary, features, compat, niter):
    crf = DenseCRF(H * W, C)
    crf.setUnaryEnergy(unary)
    crf.addPairwiseEnergy(features, compat)
    return crf.inference(niter)


def image_crf(sxy, srgb, rgbim, compat, **size):
    crf = DenseCRF2D(**size)
    crf.addPairwiseGaussian(sxy, compat)
    crf.addPairwiseBilateral(sxy, srgb, rgbim, compat)
    return crf.inference(1)


def step(Q):
    crf = DenseCRF(H * W, C)
    crf.addPairwiseEnergy(POINTS, 3.0)
    crf.stepInference(Q, None, None)
    return crf.klDivergence(Q)


def refined(**given):
    return tc.refine(given.pop("image", IMAGE), **given)


def layer(make):
    def called(logits=BATCH, image=PHOTO, features=None, output="logits", **given):
        if given.get("dtype", torch.float32) is None:
            given["dtype"] = torch.float32
        return make(**given)(logits, None if features is not None else image, features=features, output=output)

    return called


# A call, its good arguments; and where a message says something else than the argument's name, what.
CALLS = {
    "refine, lattice": (refined, {"image": IMAGE, "logits": LOGITS, "iterations": 1, **THETAS, **WEIGHTS}),
    "refine, window": (
        refined,
        {"probabilities": P, "method": "window", "window_size": 3, "blur": 2, **THETAS, "device": None},
    ),
    "refine, exact": (
        refined,
        {"energies": LOGITS, "method": "exact", "iterations": 1, **THETAS, "return_trace": False},
    ),
    "refine, guided": (
        refined,
        {"logits": LOGITS, "method": "guided", "radius": 2, "eps": 1.0, "weight_appearance": 2},
    ),
    "refine, features": (refined, {"logits": LOGITS, "features": FEATURES[0], "num_classes": C}),
    "refine, labels": (
        refined,
        {"labels": LABELS, "label_confidence": 0.6, "num_classes": C, "unknown": 255, "method": "window"},
    ),
    "refine, mask": (refined, {"mask": LABELS > 0, "label_confidence": 0.6, "method": "window"}),
    "refine, foreground": (refined, {"foreground": P[0], "method": "window"}),
    "mean_field": (tc.mean_field, {**LOOP, "compatibility": "potts", "initial": "softmax", "output": "logits"}),
    "trace": (lambda **given: tc.trace(**given)[0], LOOP),
    "dense_crf_loss": (
        tc.dense_crf_loss,
        {
            **{"probabilities": torch.from_numpy(P)[None], "filters": [KERNEL], "weights": [1.0], "form": "potts"},
            **dict.fromkeys(("roi", "source", "destination"), torch.ones(1, H, W)),
        },
    ),
    "a weight of dense_crf_loss": (
        lambda weights: tc.dense_crf_loss(torch.from_numpy(P)[None], [KERNEL], [weights]),
        {"weights": 1.0},
    ),
    "Window": gaussian(tc.filters.Window, window_size=3, blur=1, dilation=1, **GAUSSIAN),
    "Lattice": gaussian(tc.filters.Lattice, **GAUSSIAN),
    "Exact": gaussian(tc.filters.Exact, **GAUSSIAN),
    "Lattice.spatial": (
        lambda **given: tc.filters.Lattice.spatial(**given)(BATCH),
        {"size": (H, W), "theta": 3.0, "spacing": 1.0, "flip": False, "device": None, "dtype": torch.float32},
    ),
    "Guided": (
        lambda **given: tc.filters.Guided(**given)(BATCH),
        {"guide": FEATURES, "radius": 2, "eps": 1.0, "subsample": 1, "box": "count", "backend": "auto"},
    ),
    "Function": (tc.filters.Function, {"apply": torch.relu, "adjoint": torch.relu}),
    "guided_filter": (tc.guided_filter, {"values": BATCH, "guide": FEATURES, "radius": 2, "eps": 1.0}),
    "a filter's values": (lambda values: KERNEL(values), {"values": BATCH}),
    "spatial": (tc.features.spatial, {"size": (H, W), "theta": 3.0, "spacing": 1.0, "device": None}),
    "color": (tc.features.color, {"image": PHOTO, "theta_color": 5.0}),
    "bilateral": (tc.features.bilateral, {"image": PHOTO, "theta_space": 8.0, "theta_color": 5.0, "spacing": 1.0}),
    "CRFRNN": (
        layer(tc.CRFRNN),
        {
            **LAYER,
            **THETAS,
            **WEIGHTS,
            "learn_thetas": True,
            "kernel_weights": "class",
            "preset": None,
            "spacing": None,
        },
    ),
    "ConvCRF": (
        layer(tc.ConvCRF),
        {**LAYER, **THETAS, **WEIGHTS, "window_size": 3, "blur": 1, "compatibility": True, "learn_positions": (H, W)},
    ),
    "GuidanceCRF": (
        layer(tc.GuidanceCRF),
        {**LAYER, "radius": 1, "eps": 1.0, "strength": 2.0, "box": "count", "subsample": 1, "upsample": True},
    ),
    "CRFRNN's call": (layer(tc.CRFRNN), {"num_classes": C, "logits": BATCH, "image": PHOTO, "output": "logits"}),
    "ConvCRF's call": (layer(tc.ConvCRF), {"num_classes": C, "logits": BATCH, "features": FEATURES}),
    "GuidanceCRF's call": (layer(tc.GuidanceCRF), {"num_classes": C, "logits": BATCH, "features": FEATURES}),
    "check_values": (lambda enabled: tc.check_values(enabled).__exit__(), {"enabled": False}),
    "DenseCRF": (point_crf, {"unary": LOGITS.reshape(C, -1), "features": POINTS, "compat": 3.0, "niter": 2}),
    "DenseCRF2D": (image_crf, {"w": W, "h": H, "nlabels": C, "sxy": 3.0, "srgb": 5.0, "rgbim": IMAGE, "compat": 3.0}),
    "stepInference": (step, {"Q": P.reshape(C, -1)}),
    "unary_from_labels": (
        utils.unary_from_labels,
        {"labels": LABELS, "n_labels": C, "gt_prob": 0.7, "zero_unsure": False},
    ),
    "unary_from_softmax": (utils.unary_from_softmax, {"sm": P, "scale": 0.9, "clip": 1e-5}),
    "create_pairwise_gaussian": (utils.create_pairwise_gaussian, {"sdims": 3.0, "shape": (H, W)}),
    "create_pairwise_bilateral": (utils.create_pairwise_bilateral, {"sdims": 3, "schan": 5, "img": IMAGE, "chdim": 2}),
}
OVERFLOW = [("values", "huge tensor")]  # a filter's sums are infinite as any sums of such numbers are
# What else a message may name: what the argument goes into.
ALSO = {
    "unary": "u:", "sdims": "schan", "w": "w, h", "h": "w, h", "spacing": "expected at most 1e+18",
    "weight_smooth": "weights", "weight_appearance": "weights", "strength": "weights", "compat": "weights",
}  # fmt: skip


def numbers(result):
    """The tensors and arrays in what a call gave."""
    if isinstance(result, (tuple, list)):
        return [x for part in result for x in numbers(part)]
    return [torch.as_tensor(result)] if isinstance(result, (torch.Tensor, np.ndarray)) else []


def complaint(call, arguments, argument) -> str | None:
    """What is wrong with how a call takes these arguments, of which one is bad."""
    try:
        result = call(**arguments)
    except (ValueError, TypeError, NotImplementedError) as error:
        said = str(error)
        named = argument in said or ALSO.get(argument, argument) in said
        return None if named and len(said) < 600 and "\n" not in said else said
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finite = all(x.is_meta or not x.is_floating_point() or x.isfinite().all() for x in numbers(result))
    return None if finite else "NaN or infinity"


@pytest.mark.parametrize("name", CALLS)
def test_bad_values_are_served_or_refused_by_name(name):
    call, good = CALLS[name]
    found = []
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        call(**good)
        for argument, kind in itertools.product(good, BAD):
            if (argument, kind) not in OVERFLOW:
                said = complaint(call, {**good, argument: BAD[kind]}, argument)
                found += [] if said is None else [f"{argument}={kind}: {said}"]
    assert not found, "\n".join(found)
