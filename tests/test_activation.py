"""The ReLU in place of the softmax: by hand, against dense matrices, gradients, and what is refused."""

import math

import pytest
import torch

import tritoncrf as tc
from assertions import assert_close
from cases import leaves, random_features, random_logits

SIZE = (4, 5)
OUTPUTS = "logits", "probabilities", "log_probabilities"
FILTERS = {
    "window": lambda f: tc.filters.Window(f, 3, normalization="symmetric"),
    "lattice": lambda f: tc.filters.Lattice(f, normalization="after"),
    "exact": lambda f: tc.filters.Exact(f),
    "guided": lambda f: tc.filters.Guided(f, 1, eps=0.5),
    "function": lambda f: tc.filters.Function(lambda x: x.roll(1, -1)),
}


def relu(logits, filters, weights, **options):
    return tc.mean_field(logits, filters, weights, activation="relu", **options)


def normalized(scores):
    """Of scores of which at least one is above 0."""
    return scores.clamp_min(0) / scores.clamp_min(0).sum(1, keepdim=True)


@pytest.mark.parametrize("damping", [0.0, 0.4])
def test_by_hand(damping):
    """One pixel, whose only message is its own."""
    u, w = torch.tensor([0.5, -0.3, 2.0], dtype=torch.float64), 1.7
    K = tc.filters.Window(torch.zeros(1, 1, 1, dtype=torch.float64), 3)
    q = u.clamp_min(0) / 2.5
    for iterations in range(4):
        found = relu(u.view(1, 3, 1), [K], [w], iterations=iterations, damping=damping)
        assert_close("Q", found[0, :, 0], q)
        s = (u + w * q).clamp_min(0)
        q = (1 - damping) * s / s.sum() + damping * q
    assert q[1] == 0  # exactly: the ReLU leaves no tail


@pytest.mark.parametrize("name", FILTERS)
def test_the_updates_are_those_of_the_filters_themselves(name):
    logits, f = random_logits(SIZE), random_features(SIZE)
    K, mu, weight, a = FILTERS[name](f), torch.randn(3, 3).double() - 2 * torch.eye(3), torch.rand(3).double(), 0.8
    logits[:, 0] += 3.0  # so that some score is above 0
    scores = logits
    for _ in range(3):
        q = normalized(scores)
        scores = a * logits - torch.einsum("lk,bkhw->blhw", mu, weight.view(3, 1, 1) * K(q))
    assert (scores.amax(1) > 0).all()
    options = dict(compatibility=mu, unary_weight=a, iterations=3)
    found = {output: relu(logits, [K], [weight], output=output, **options) for output in OUTPUTS}
    assert_close("logits", found["logits"], scores)
    assert_close("probabilities", found["probabilities"], normalized(scores))
    assert_close("log", found["log_probabilities"], normalized(scores).clamp_min(1e-30).log())


def test_where_no_score_is_above_zero_all_classes_are_alike():
    logits = torch.tensor([[-1.0, 0.0, 2.0, -1.0], [-2.0, 0.0, 1.0, -math.inf], [-3.0, -5.0, -1.0, -2.0]])
    (logits,) = leaves(logits[None].double())
    K = tc.filters.Function(lambda x: 0 * x)
    for iterations in range(3):
        q = relu(logits, [K], [1.0], iterations=iterations)
        third = [1 / 3, 1 / 3, 1 / 3]
        expected = torch.tensor([third, third, [2 / 3, 1 / 3, 0], [0.5, 0, 0.5]], dtype=torch.float64).T[None]
        assert_close("Q", q, expected)
        (gradient,) = torch.autograd.grad(q, logits, torch.randn_like(q))
        assert torch.isfinite(gradient).all() and not gradient[..., [0, 1, 3]].any() and gradient[..., 2].any()


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_gradcheck(name, damping):
    logits, f = random_logits(SIZE), random_features(SIZE)
    mu = -torch.eye(3).double() + 0.1 * torch.randn(3, 3)
    weight, a = torch.rand(2, 3).double().add(0.5).unbind()

    def run(logits, weight, mu, a, f=f):
        K = FILTERS[name](f)
        return relu(logits, [K], [weight], compatibility=mu, iterations=2, unary_weight=a, damping=damping)

    inputs = leaves(logits, weight, mu, a)
    if name in ("window", "exact", "guided"):  # the lattice's derivative jumps
        inputs += leaves(f)
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


def test_the_layer_learns_by_it():
    image = torch.randint(0, 256, (2, 3, 9, 11), dtype=torch.uint8)
    logits = torch.rand(2, 4, 9, 11, requires_grad=True)
    crf = tc.CRFRNN(4, iterations=2, test_iterations=3, theta_space=4.0, theta_color=40.0, activation="relu")
    assert "activation='relu'" in repr(crf)
    loss = torch.nn.functional.cross_entropy(crf(logits, image), torch.randint(0, 4, (2, 9, 11)))
    for gradient in torch.autograd.grad(loss, [logits, *crf.parameters()]):
        assert torch.isfinite(gradient).all() and gradient.any()
    with torch.no_grad():
        appearance = tc.filters.Lattice(tc.features.bilateral(image, 4.0, 40.0), normalization="after")
        smoothness = tc.filters.Lattice.spatial((9, 11), 3.0, normalization="after")
        q = relu(logits, [smoothness, appearance], [1.0, 1.0], iterations=3)
        assert_close("Q", crf.eval()(logits, image, output="probabilities"), q)
        plain = tc.CRFRNN(4, test_iterations=3, theta_space=4.0, theta_color=40.0).eval()
        assert (plain(logits, image, output="probabilities") - q).abs().max() > 0.01


LOGITS, K = torch.zeros(1, 3, 4, 5), tc.filters.Window(torch.zeros(1, 2, 4, 5), 3)


@pytest.mark.parametrize("change, message", [
    ({"activation": "gelu"}, "^activation: expected one of 'softmax', 'relu', got 'gelu'"),
    ({"initial": "log_softmax"}, "^initial: expected 'softmax' with activation='relu', .*got 'log_softmax'"),
    ({"temperature": 2.0}, "^temperature: expected 1 with activation='relu', .*got 2.0"),
])  # fmt: skip
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        tc.mean_field(LOGITS, [K], [1.0], **{"activation": "relu", **change})


@pytest.mark.parametrize("change, message", [
    ({"activation": "gelu"}, "^activation: expected one of 'softmax', 'relu', got 'gelu'"),
    ({"preset": "released"}, "^activation: expected 'softmax' with preset='released', got 'relu'"),
    ({"temperature": 0.5}, "^activation: expected 'softmax' with temperature=0.5, got 'relu'"),
])  # fmt: skip
def test_bad_arguments_of_the_layer(change, message):
    with pytest.raises(ValueError, match=message):
        tc.CRFRNN(3, **{"activation": "relu", **change})
