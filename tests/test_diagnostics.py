"""trace: by hand, against the sum over all labelings, and that it is the mean field it tells of."""

import itertools
import math

import numpy as np
import pytest
import torch

import tritoncrf as tc
from assertions import assert_close
from cases import leaves, random_features, random_logits
from covering import covering
from tritoncrf.densecrf import DenseCRF
from tritoncrf.diagnostics import Record
from tritoncrf.filters.window import WindowOperator

Window, Lattice = tc.filters.Window, tc.filters.Lattice
TOTALS = "energy", "free_energy", "pydensecrf_kl"


def whole(features, **options):
    """Every pixel sees every other: the exact Gaussian."""
    return Window(features, window_size=2 * max(features.shape[2:]) - 1, **options)


def values(records, name):
    return torch.tensor([getattr(r, name) for r in records], dtype=torch.float64)


# By hand ----------------------------------------------------------------------------------------------------------


def test_one_pixel_by_hand():
    """Its own message counts: U = (0, log 3), weight 2. Q0 = (1/4, 3/4), then softmax(U + 2 Q0)."""
    f, logits = torch.zeros(1, 1, 1, dtype=torch.float64), torch.tensor([[[0.0], [math.log(3)]]], dtype=torch.float64)
    q, records = tc.trace(logits, [Window(f, 1)], [2.0], iterations=1)
    q0 = [1 / 4, 3 / 4]
    z = math.exp(0.5) + 3 * math.exp(1.5)
    q1 = [math.exp(0.5) / z, 3 * math.exp(1.5) / z]
    assert_close("Q", q.flatten(), torch.tensor(q1, dtype=torch.float64))
    for record, (a, b) in zip(records, (q0, q1), strict=True):
        unary, pair, entropy = -b * math.log(3), -2 * (a * a + b * b), -(a * math.log(a) + b * math.log(b))
        expected = Record(
            iteration=record.iteration,
            energy=unary + pair / 2,
            free_energy=unary + pair / 2 - entropy,
            pydensecrf_kl=unary + pair - entropy,
            entropy=entropy,
            changed=0.0,
        )
        assert vars(record) == pytest.approx(vars(expected), rel=1e-12)
    assert [r.iteration for r in records] == [0, 1]


def test_two_pixels_by_hand():
    """At a distance of 2, without their own messages: one pair, of weight 3 exp(-2), counted once."""
    f = torch.tensor([[[0.0, 2.0]]], dtype=torch.float64)
    logits = torch.tensor([[[0.0, 0.0], [1.0, -1.0]]], dtype=torch.float64)
    _, [record] = tc.trace(logits, [Window(f, 3, include_self=False)], [3.0], iterations=0)
    p = math.e / (1 + math.e)
    agreement = 2 * p * (1 - p)
    unary, pair = -(p - (1 - p)), -3 * math.exp(-2) * agreement
    entropy = -2 * (p * math.log(p) + (1 - p) * math.log(1 - p))
    assert record.energy == pytest.approx(unary + pair, rel=1e-12)
    assert record.free_energy == pytest.approx(unary + pair - entropy, rel=1e-12)
    assert record.pydensecrf_kl == pytest.approx(unary + 2 * pair - entropy, rel=1e-12)
    assert record.entropy == pytest.approx(entropy / 2, rel=1e-12)


def test_changes_by_hand():
    """Three pixels of one color: the third is outvoted in the first update, and then nothing moves."""
    logits = torch.tensor([[[2.0, 2.0, 0.0], [0.0, 0.0, 1.0]]])
    _, records = tc.trace(logits, [whole(torch.zeros(1, 1, 3))], [5.0], iterations=3)
    assert [r.changed for r in records] == pytest.approx([0, 1 / 3, 0, 0])


@pytest.mark.parametrize("classes", [2, 7])
def test_the_entropy_of_those_who_know_nothing(classes):
    _, records = tc.trace(torch.zeros(2, classes, 4, 5), [whole(torch.zeros(1, 1, 4, 5))], [0.0], iterations=2)
    assert values(records, "entropy").tolist() == pytest.approx([math.log(classes)] * 3)


def test_probabilities_of_zero():
    logits = 1e4 * random_logits((4, 5)).float().sign()
    q, records = tc.trace(logits, [whole(random_features((4, 5)).float())], [3.0], iterations=2)
    assert (q == 0).any()
    assert all(math.isfinite(v) for r in records for v in vars(r).values()) and records[-1].entropy >= 0


# All labelings ----------------------------------------------------------------------------------------------------


def enumerated(logits, kernels, mixings, unary_weight, q):
    """<E>_Q and KL(Q || P) by the sum over all labelings; kernels [N, N] without diagonal, costs [C, C]."""
    classes, pixels = logits.shape
    energies, chances = [], []
    for labels in itertools.product(range(classes), repeat=pixels):
        energy = -sum((unary_weight * logits[:, i])[l] for i, l in enumerate(labels))
        for (i, a), (j, b) in itertools.combinations(enumerate(labels), 2):
            energy = energy + sum(cost[a, b] * k[i, j] for k, cost in zip(kernels, mixings))
        energies.append(energy)
        chances.append(math.prod(q[l, i] for i, l in enumerate(labels)))
    energies, chances = torch.stack(energies), torch.stack(chances)
    log_p = torch.log_softmax(-energies, 0)
    return (chances * energies).sum(), (chances * (chances.log() - log_p)).sum(), torch.logsumexp(-energies, 0)


@pytest.mark.parametrize("form", ["potts", "costs", "class"])
@pytest.mark.parametrize("normalization", ["none", "symmetric"])
@pytest.mark.parametrize("classes, pixels", [(2, 4), (3, 3), (3, 4)])
def test_the_free_energy_is_the_divergence_up_to_log_z(classes, pixels, normalization, form):
    logits, features = random_logits((pixels,), classes), [random_features((pixels,), d) for d in (1, 2)]
    filters = [whole(f, include_self=False, normalization=normalization) for f in features]
    weights, unary_weight = [1.3, 0.4], 1.0
    eye = torch.eye(classes, dtype=torch.float64)
    compatibility, mixings = "potts", [-w * eye for w in weights]
    if form == "costs":
        compatibility = torch.randn(classes, classes, dtype=torch.float64)
        compatibility = compatibility + compatibility.mT
        mixings = [w * compatibility for w in weights]
        unary_weight = 1 + 0.2 * torch.randn(classes, dtype=torch.float64)
    elif form == "class":
        weights = [torch.rand(classes, dtype=torch.float64), 0.5 * eye + 0.1]
        mixings = [-weights[0].diag(), -weights[1]]
    ones = torch.eye(pixels, dtype=torch.float64)[None]
    kernels = [f(ones)[0].mT for f in filters]
    for iterations in range(3):
        q, records = tc.trace(logits, filters, weights, compatibility, iterations, unary_weight)
        energy, divergence, log_z = enumerated(logits[0], kernels, mixings, torch.as_tensor(unary_weight), q[0])
        assert records[-1].energy == pytest.approx(energy.item(), rel=1e-11)
        assert records[-1].free_energy + log_z.item() == pytest.approx(divergence.item(), rel=1e-9, abs=1e-11)


# How it moves -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [whole, tc.filters.Exact], ids=["window", "exact"])
@pytest.mark.parametrize("normalization", ["none", "symmetric"])
@pytest.mark.parametrize("weights", [[0.5, 1.0], [30.0, 20.0], [torch.tensor([1.0, 5.0, 0.0, 2.0]).double(), 3.0]])
def test_the_free_energy_never_rises_where_the_pairwise_term_is_concave(weights, normalization, kind):
    options = {"normalization": normalization, **({"rtol": 0.0} if kind is not whole else {})}
    filters = [kind(random_features((5, 6), d), **options) for d in (2, 3)]
    _, records = tc.trace(random_logits((5, 6), 4), filters, weights, iterations=25)
    f = values(records, "free_energy")
    assert (f.diff() <= 1e-12 * f.abs().max()).all() and f[1] < f[0]


def test_the_free_energy_may_rise_elsewhere():
    """Two like pixels that repel each other: both move to where the other was."""
    logits = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]], dtype=torch.float64)
    f, mu = torch.zeros(1, 1, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    _, records = tc.trace(logits, [whole(f, include_self=False)], [20.0], mu, iterations=4)
    assert values(records, "free_energy").diff().max() > 1
    assert [r.changed for r in records] == [0, 1, 1, 1, 1]


def test_damping_ends_what_swings():
    """Like pixels that repel each other, and are sure of little: undamped they swap for ever, damped they settle."""
    logits = torch.tensor([[[1.0, 0.9], [0.0, 0.0]]], dtype=torch.float64)
    f, mu = torch.zeros(1, 1, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    filters = [whole(f, include_self=False)]
    swinging, settled = (
        values(tc.trace(logits, filters, [4.0], mu, iterations=40, damping=d)[1], "free_energy") for d in (0.0, 0.5)
    )
    assert swinging.diff().max() > 0.5 and (settled.diff() <= 1e-12).all() and settled[-1] < swinging[-1]


def test_a_temperature_weighs_the_entropy():
    logits, f = random_logits((5, 6), 3), random_features((5, 6), 2)
    kernels, tau = [whole(f), whole(2 * f)], 1.7
    q, records = tc.trace(logits, kernels, [2.0, 0.5], iterations=3, temperature=tau)
    entropy = -torch.special.xlogy(q, q).sum().item()
    assert records[-1].free_energy == pytest.approx(records[-1].energy - tau * entropy, rel=1e-12)
    assert records[-1].entropy == pytest.approx(entropy / 30, rel=1e-12)
    assert (values(records, "free_energy").diff() <= 1e-12).all()


def test_pydensecrfs_number_is_that_of_the_densecrf_face():
    logits, f = random_logits((30,), 3).float(), random_features((30,), 2).float()
    crf = DenseCRF(30, 3)
    crf.setUnaryEnergy(-logits[0].numpy())
    crf.addPairwiseEnergy(f[0].numpy(), compat=2.5)
    _, records = tc.trace(logits, [Lattice(f, normalization="symmetric")], [2.5], iterations=4)
    expected = [crf.klDivergence(crf.inference(t)) for t in range(5)]
    assert values(records, "pydensecrf_kl").tolist() == pytest.approx(expected, rel=1e-5)


# It is mean field -------------------------------------------------------------------------------------------------

W = {
    "scalar": 0.7,
    "class": torch.tensor([0.5, 1.0, 0.8]),
    "matrix": torch.tensor([[1.0, 0.2, 0], [0, 0.7, 0], [0.3, 0, 1]]),
}
FILTERS = {
    "window": lambda f: Window(f, 3, normalization="symmetric"),
    "blur": lambda f: Window(f, 3, blur=2, normalization="after"),
    "not-self": lambda f: Window(f, 3, include_self=False),
    "lattice": lambda f: Lattice(f, normalization="before"),
    "exact": lambda f: tc.filters.Exact(f, normalization="symmetric"),
}


@pytest.mark.parametrize(
    "iterations, kind, weight, costs, initial",
    covering([0, 1, 3], FILTERS, W, [False, True], ["softmax", "log_softmax"]),
)
def test_the_last_q_is_that_of_mean_field(kind, weight, costs, initial, iterations):
    logits = random_logits((5, 6), 3, batch=2).float()
    filters = [FILTERS[kind](random_features((5, 6), d, dtype=torch.float32)) for d in (2, 3)]
    arguments = [W[weight], 0.4], torch.randn(3, 3) if costs else "potts", iterations, torch.tensor([1.0, 0.8, 1.1])
    q, records = tc.trace(logits, filters, *arguments, initial)
    assert_close("Q", q, tc.mean_field(logits, filters, *arguments, initial))
    assert len(records) == iterations + 1


@pytest.mark.parametrize("damping, temperature", [(0.5, 1.0), (0.0, 1.5), (0.3, torch.tensor(0.8))])
def test_the_last_q_is_that_of_a_damped_and_heated_loop(damping, temperature):
    logits, options = random_logits((5, 6), 3).float(), {"damping": damping, "temperature": temperature}
    filters = [Window(random_features((5, 6), dtype=torch.float32), 3)]
    q, _ = tc.trace(logits, filters, [2.0], **options)
    assert_close("Q", q, tc.mean_field(logits, filters, [2.0], **options))


def test_every_record_is_the_last_of_a_shorter_run():
    """Those of log_softmax too, whose first messages are not of probabilities."""
    logits, f = random_logits((5, 6)), random_features((5, 6))
    for initial in "softmax", "log_softmax":
        arguments = {"initial": initial, "unary_weight": 0.8}
        _, records = tc.trace(logits, [whole(f)], [0.9], iterations=4, **arguments)
        for t, record in enumerate(records):
            q, shorter = tc.trace(logits, [whole(f)], [0.9], iterations=t, **arguments)
            assert vars(shorter[-1]) == pytest.approx(vars(record), rel=1e-12)
            energy = -0.8 * (q * logits).sum() - 0.9 / 2 * (q * whole(f)(q)).sum()
            assert record.energy == pytest.approx(energy.item(), rel=1e-12)


@pytest.mark.parametrize("iterations", [0, 3])
def test_each_record_takes_one_application_of_each_filter(iterations, monkeypatch):
    calls, apply = [], WindowOperator.apply
    filters = [Window(random_features((4, 5)), 3) for _ in range(2)]
    monkeypatch.setattr(WindowOperator, "apply", lambda *arguments: calls.append(1) or apply(*arguments))
    tc.trace(random_logits((4, 5)), filters, [1.0, 2.0], iterations=iterations)
    assert len(calls) == 2 * (iterations + 1)


def test_a_batch_is_the_sum_of_its_images():
    logits, f = random_logits((4, 5), batch=3), random_features((4, 5), batch=3)
    _, records = tc.trace(logits, [whole(f)], [0.9], iterations=2)
    parts = [tc.trace(logits[b : b + 1], [whole(f[b : b + 1])], [0.9], iterations=2)[1] for b in range(3)]
    for name in (*TOTALS, "entropy", "changed"):
        expected = sum(values(part, name) for part in parts) / (1 if name in TOTALS else 3)
        assert_close(name, values(records, name), expected, scale=1.0)


def test_an_empty_batch():
    q, records = tc.trace(torch.zeros(0, 3, 4, 5), [whole(torch.zeros(1, 1, 4, 5))], [1.0], iterations=1)
    assert q.shape == (0, 3, 4, 5) and set(vars(records[1]).values()) == {1, 0.0}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_scores_keep_their_dtype_and_sums_are_precise(dtype):
    logits, f = random_logits((8, 9)).to(dtype), random_features((8, 9))
    q, records = tc.trace(logits, [whole(f.float())], [0.9], iterations=3)
    _, exact = tc.trace(logits.double(), [whole(f)], [0.9], iterations=3)
    assert q.dtype == dtype
    for name in TOTALS:
        assert_close(name, values(records, name), values(exact, name), rms=1e-6, worst=1e-6)


def test_autocast_changes_nothing():
    logits, f, w = random_logits((8, 9)).float(), random_features((8, 9)).float(), torch.rand(3, 3)
    expected = tc.trace(logits, [Lattice(f)], [w], w, iterations=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = tc.trace(logits, [Lattice(f)], [w], w, iterations=2)
    assert torch.equal(found[0], expected[0]) and found[1] == expected[1]


def test_nothing_is_kept_for_gradients():
    logits, f, w = leaves(random_logits((4, 5)), random_features((4, 5)), torch.rand((), dtype=torch.float64))
    q, _ = tc.trace(logits, [whole(f)], [w], iterations=2)
    assert not q.requires_grad


# Bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"logits": np.zeros((1, 2, 4, 5))}, TypeError, "^logits: .*torch.from_numpy"),
        ({"logits": torch.zeros(1, 2, 4, 6)}, ValueError, "^logits: expected"),
        ({"logits": torch.full((1, 2, 4, 5), math.nan)}, ValueError, "^logits: expected finite"),
        ({"filters": []}, ValueError, "^filters: expected at least one"),
        ({"weights": [1.0, 2.0]}, ValueError, "^weights: expected one per filter, 1, got 2"),
        ({"weights": [torch.zeros(3)]}, ValueError, r"^weights\[0\]: expected a shape"),
        ({"compatibility": "cost"}, ValueError, "^compatibility: expected 'potts'"),
        ({"iterations": -1}, ValueError, "^iterations: expected"),
        ({"unary_weight": math.inf}, ValueError, "^unary_weight: expected"),
        ({"initial": "uniform"}, ValueError, "^initial: expected one of"),
    ],
)
def test_bad_input_is_named(change, error, message):
    arguments = {"logits": torch.zeros(1, 2, 4, 5), "filters": [whole(torch.zeros(1, 1, 4, 5))], "weights": [1.0]}
    with pytest.raises(error, match=message):
        tc.trace(**{**arguments, **change})
