"""The layers on the kernels: scores and the gradient of every parameter against PyTorch in float64."""

import pytest
import torch

import tritoncrf as tc
from assertions import assert_close
from cases import disturbed, interpreted, random_logits

C = 3
SIZE = (5, 7)
VARIANTS = {
    "full-resolution": {"blur": 1},
    "blurred": {"blur": 2},
    "released": {"blur": 1, "preset": "released"},
    "released-blurred": {"blur": 2, "preset": "released", "normalization": "symmetric", "appearance_position": True},
    "compatibility": {"blur": 1, "compatibility": True},
    "compatibility-blurred": {"blur": 2, "compatibility": True},
    "class-weights": {"blur": 1, "class_weights": True},
    "learn-positions": {"blur": 1, "learn_positions": SIZE},
    "released-all": {"blur": 2, "preset": "released", "class_weights": True, "compatibility": True,
                     "learn_positions": SIZE},
}  # fmt: skip


def results(crf, logits, image):
    """Scores, and the gradients of <a fixed random cotangent, scores> by name."""
    inputs = {"logits": logits.clone().requires_grad_(), **dict(crf.named_parameters())}
    scores = crf(inputs["logits"], image)
    cotangent = torch.randn(scores.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(scores, list(inputs.values()), cotangent.to(scores))
    return {"scores": scores.detach(), **{f"{name}'s gradient": g for name, g in zip(inputs, gradients)}}


@pytest.mark.parametrize("variant", interpreted(VARIANTS, "released-all"))
def test_scores_and_every_gradient_are_those_of_float64(variant, device):
    assert_as_in_float64(tc.ConvCRF, {"window_size": 3, **VARIANTS[variant]}, device)


RECURRENT = {
    "class": {},
    "full": {"kernel_weights": "full"},
    "scalar-not-self": {"kernel_weights": "scalar", "include_self": False, "normalization": "symmetric"},
    "learn-thetas": {"learn_thetas": True},
    "released-pytorch": {"preset": "released-pytorch"},
    "relu": {"activation": "relu"},
}


@pytest.mark.parametrize("variant", RECURRENT)
def test_the_recurrent_layer_is_that_of_float64(variant, device):
    thetas = {"theta_smooth": 2.0, "theta_space": 9.0, "theta_color": 11.0}
    assert_as_in_float64(tc.CRFRNN, {**thetas, **RECURRENT[variant]}, device)


def assert_as_in_float64(kind, options, device):
    options = {"num_classes": C, "iterations": 2, **options}
    crf = disturbed(kind(backend="triton", device=device, **options))
    exact = kind(backend="torch", device=device, dtype=torch.float64, **options)
    exact.load_state_dict(crf.state_dict())
    logits = random_logits(SIZE, C, batch=2, dtype=torch.float32).to(device)
    image = torch.randint(100, 140, (2, 3, *SIZE), dtype=torch.uint8, device=device)
    found, expected = results(crf, logits, image), results(exact, logits.double(), image)
    assert found.keys() == expected.keys()
    for name in expected:
        # A number's gradient is a sum over all pixels that may cancel; PyTorch in float32 is off by 2e-5 here too.
        rms = 1e-4 if expected[name].ndim == 0 else None
        assert_close(name, found[name], expected[name], rms=rms, dtype=torch.float32)
