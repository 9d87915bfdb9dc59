"""dense_crf_loss: against dense matrices, against what the authors' codes compute, by hand, and what it refuses."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tritoncrf as tc
from assertions import assert_close
from cases import dense_exact, dense_window, leaves, random_features, random_logits
from dictionary_lattice import dense_lattice

Exact, Lattice, Window = tc.filters.Exact, tc.filters.Lattice, tc.filters.Window
FORMS = ["potts", "rloss"]
MASKS = {
    "all": [],
    "roi": ["roi"],
    "source": ["source"],
    "destination": ["destination"],
    "gated": ["source", "destination"],
    "roi-source": ["roi", "source"],
    "roi-gated": ["roi", "source", "destination"],
}
SIZE = (5, 6)

each_form = pytest.mark.parametrize("form", FORMS)
each_mask = pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)


def random_probabilities(size=SIZE, classes=3, batch=2, dtype=torch.float64):
    return random_logits(size, classes, batch).softmax(1).to(dtype)


def random_masks(names, size=SIZE, batch=2):
    """Weights from 0 to 1, a third of them 0."""
    return {name: torch.rand(batch, *size, dtype=torch.float64).mul(1.5).sub(0.5).clamp(0, 1) for name in names}


def dense_loss(p, matrix, roi=None, source=None, destination=None, form="potts"):
    """The formula, for K [Bf, N, N]."""
    ones = torch.ones_like(p[:, 0])
    d, s = (ones if m is None else m for m in (destination, source))
    d, s = (m if roi is None else m * roi for m in (d, s))
    d, s, x = d.flatten(1), s.flatten(1), p.flatten(2)
    y = x if form == "rloss" else 1 - x
    energy = torch.einsum("bi,bci,bij,bj,bcj->", d, x, matrix.expand(len(p), -1, -1), s, y)
    if form == "rloss":
        return -energy / len(p)
    count = d if destination is not None or roi is not None else s
    return energy / count.sum().clamp_min(1)


# Dense matrices ---------------------------------------------------------------------------------------------------

FILTERS = {
    "window": (lambda f: Window(f, 3), lambda f: dense_window(f, 3)),
    "window-not-self-after": (
        lambda f: Window(f, 5, include_self=False, normalization="after"),
        lambda f: dense_window(f, 5, include_self=False, normalization="after"),
    ),
    "window-blurred": (lambda f: Window(f, 3, blur=2), lambda f: dense_window(f, 3, blur=2)),
    "exact-symmetric": (
        lambda f: Exact(f, rtol=0, normalization="symmetric"),
        lambda f: dense_exact(f, normalization="symmetric"),
    ),
    "exact-before": (
        lambda f: Exact(f, rtol=0, normalization="before"),
        lambda f: dense_exact(f, normalization="before"),
    ),
}


def outcome(loss, inputs):
    """The loss and its gradients, of leaves by name."""
    given = dict(zip(inputs, leaves(*inputs.values())))
    value = loss(**given)
    return {
        "loss": value.detach(),
        **dict(zip(given, torch.autograd.grad(value, given.values(), materialize_grads=True))),
    }


def assert_same(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name in expected:
        assert_close(name, found[name], expected[name], **tolerance)


@pytest.mark.parametrize("name", FILTERS)
@each_form
@each_mask
def test_the_loss_and_every_gradient_are_those_of_the_dense_matrix(name, form, masks):
    make, dense = FILTERS[name]
    inputs = {"p": random_probabilities(), "f": random_features(SIZE, batch=2), "w": torch.tensor(0.7).double()}
    inputs |= random_masks(masks)
    found = outcome(lambda p, f, w, **m: tc.dense_crf_loss(p, [make(f)], [w], form=form, **m), inputs)
    expected = outcome(lambda p, f, w, **m: dense_loss(p, w * dense(f), form=form, **m), inputs)
    assert_same(found, expected, rms=1e-10, worst=1e-9)


@each_form
@each_mask
def test_several_filters(form, masks):
    """A lattice, whose K is not its own transpose, beside a window of other features, shared by the batch."""
    inputs = {"p": random_probabilities(), "w": torch.tensor([0.7, -0.2]).double(), **random_masks(masks)}
    f, g = random_features(SIZE, 3), random_features(SIZE, 1)
    filters, matrices = [Lattice(f), Window(g, 3)], [dense_lattice(f), dense_window(g, 3)]
    found = outcome(lambda p, w, **m: tc.dense_crf_loss(p, filters, list(w), form=form, **m), inputs)
    total = lambda w: sum(a * K for a, K in zip(w, matrices))  # noqa: E731
    expected = outcome(lambda p, w, **m: dense_loss(p, total(w), form=form, **m), inputs)
    assert_same(found, expected, rms=1e-10, worst=1e-9)


@each_form
def test_gradcheck(form):
    p, f, w = random_probabilities((3, 4), 2, 1), random_features((3, 4)), torch.tensor(0.7).double()
    d, s = random_masks(["d", "s"], (3, 4), 1).values()

    def loss(p, f, w, d, s):
        return tc.dense_crf_loss(p, [Window(f, 3)], [w], source=s, destination=d, form=form)

    assert torch.autograd.gradcheck(loss, leaves(p, f, w, 0.1 + d, 0.1 + s))


@pytest.mark.parametrize("size", [(7,), (1, 1), (4, 3), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("classes", [1, 2, 17])
@each_form
def test_sizes_and_numbers_of_classes(size, classes, form):
    p, f = torch.rand(2, classes, *size, dtype=torch.float64), random_features(size)
    [roi] = random_masks(["roi"], size).values()
    found = tc.dense_crf_loss(p, [Window(f, 3)], [2.0], roi=roi, form=form)
    assert_close("loss", found, dense_loss(p, 2 * dense_window(f, 3), roi=roi, form=form))


# What the authors' codes compute ----------------------------------------------------------------------------------


def gated_crf(image, p, radius, theta_space, theta_color, source=None, destination=None):
    """The gated CRF loss as its authors' code has it, for one image [3, H, W] and probabilities [C, H, W], in NumPy.

    Everything is padded with zeros, the features too, so that pixels beyond the border are neighbours of colour 0 at
    position 0. Their probabilities are 0: to the loss they are a constant.
    """
    classes, *size = p.shape
    grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"))
    features = np.concatenate([grid / theta_space, image / np.reshape(theta_color, (3, 1, 1))])
    pad = lambda x: np.pad(x, ((0, 0), (radius, radius), (radius, radius)))  # noqa: E731
    near, around = pad(features), pad(p)
    gate = None if source is None else pad(source[None])[0]
    total = agreement = 0.0
    for dy, dx in itertools.product(range(2 * radius + 1), repeat=2):
        if (dy, dx) == (radius, radius):
            continue
        rows, columns = slice(dy, dy + size[0]), slice(dx, dx + size[1])
        kernel = np.exp(-0.5 * ((near[:, rows, columns] - features) ** 2).sum(0))
        kernel = kernel if gate is None else kernel * gate[rows, columns]
        kernel = kernel if destination is None else kernel * destination
        total += kernel.sum()
        agreement += (kernel * (around[:, rows, columns] * p).sum(0)).sum()
    counted = destination if destination is not None else source
    count = math.prod(size) if counted is None else max(counted.sum(), 1)
    return (total - agreement) / count


@pytest.mark.parametrize("masks", [["source"], ["source", "destination"]], ids="-".join)
def test_the_gated_loss_is_its_authors(masks):
    settings, size = tc.LOSSES["gated"], (13, 9)
    image = 0.5 + 0.05 * torch.randn(1, 3, *size, dtype=torch.float64)  # colours near enough to see each other
    p = random_probabilities(size, batch=1)
    gates = {name: (torch.rand(1, *size) > 0.3).double() for name in masks}
    found = tc.dense_crf_loss(p, [settings.filter(image)], [1.0], form=settings.form, **gates)
    numbers = image[0].mul(255).numpy(), p[0].numpy(), 5, 6.0, settings.theta_color
    expected = gated_crf(*numbers, **{name: gate[0].numpy() for name, gate in gates.items()})
    assert_close("loss", found, torch.tensor(expected))


def test_without_masks_the_gated_loss_leaves_out_its_authors_constant():
    """What their code counts beyond the border, the same for all probabilities."""
    settings, size = tc.LOSSES["gated"], (6, 7)
    image = 0.02 * torch.rand(1, 3, *size, dtype=torch.float64)  # nearly black, like what they see beyond the border
    K, constants = settings.filter(image), []
    for p in random_probabilities(size).split(1):
        theirs = gated_crf(image[0].mul(255).numpy(), p[0].numpy(), 5, 6.0, settings.theta_color)
        constants.append(theirs - tc.dense_crf_loss(p, [K], [1.0]).item())
    assert constants[0] > 0.1
    assert constants[0] == pytest.approx(constants[1], rel=1e-12)


def rloss(p, roi, matrix):
    """DenseCRFLoss as its authors' code has it: -S^T A S over the images, S = 0 off the region, and its gradient."""
    s = p * roi[:, None]
    filtered = np.einsum("bnm,bcm->bcn", matrix, s.reshape(*s.shape[:2], -1)).reshape(s.shape)
    return -np.vdot(s, filtered) / len(p), -2 * filtered / len(p) * roi[:, None]


def test_rloss_is_its_authors():
    p, f, roi = random_probabilities(), random_features(SIZE, 5, batch=2), (torch.rand(2, *SIZE) > 0.3).double()
    value, gradient = rloss(p.numpy(), roi.numpy(), dense_exact(f).numpy())
    found = outcome(lambda p: tc.dense_crf_loss(p, [Exact(f, rtol=0)], [1.0], roi=roi, form="rloss"), {"p": p})
    assert_close("loss", found["loss"], torch.tensor(value))
    assert_close("gradient", found["p"], torch.from_numpy(gradient))


def test_rloss_on_a_lattice_is_its_authors():
    settings = tc.LOSSES["rloss"]
    image, p = torch.rand(2, 3, *SIZE, dtype=torch.float64), random_probabilities()
    roi = (torch.rand(2, *SIZE) > 0.3).double()
    matrix = dense_lattice(tc.features.bilateral(image, 50, 15))
    found = tc.dense_crf_loss(p, [settings.filter(image)], [1.0], roi=roi, form=settings.form)
    assert_close("loss", found, torch.tensor(rloss(p.numpy(), roi.numpy(), matrix.numpy())[0]))


def test_the_published_settings():
    """train_withdensecrfloss.sh: 2e-9, 15, and 100 at a scale of 0.5. GatedCRFLoss: 0.1 beside the cross-entropy, a radius
    of 5, and 0.1 of a deviation, at the quarter of the image that DeepLab v3+ scores."""
    rloss, gated = tc.LOSSES["rloss"], tc.LOSSES["gated"]
    assert (rloss.weight, rloss.theta_color, rloss.theta_space / rloss.scale, rloss.window_size) == (
        2e-9,
        15,
        100,
        None,
    )
    assert (gated.weight, gated.theta_space, gated.window_size // 2, gated.scale) == (0.1, 6, 5, 0.25)
    assert gated.theta_color == pytest.approx([5.8395, 5.712, 5.7375])
    with pytest.raises(TypeError):
        tc.LOSSES["rloss"] = gated


# What follows from the formula -------------------------------------------------------------------------------------


def test_two_pixels_by_hand():
    """Labelled differently, at a distance of 2, with k = exp(-2): each pixel has one neighbour, and itself."""
    K = Window(torch.tensor([[[0.0, 2.0]]], dtype=torch.float64), 3)
    p = torch.eye(2, dtype=torch.float64)[None]
    assert tc.dense_crf_loss(p, [K], [3.0]).item() == pytest.approx(3 * math.exp(-2), rel=1e-14)
    assert tc.dense_crf_loss(p, [K], [3.0], form="rloss").item() == pytest.approx(-6, rel=1e-14)
    alike = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]], dtype=torch.float64)
    assert tc.dense_crf_loss(alike, [K], [3.0]).item() == 0
    assert tc.dense_crf_loss(alike, [K], [3.0], form="rloss").item() == pytest.approx(-6 - 6 * math.exp(-2), rel=1e-14)


@each_mask
def test_the_forms_differ_by_what_each_pixel_has_of_all_neighbours(masks):
    """N potts = B rloss + sum_i d_i (sum_c S_ic) (K s)_i."""
    p, K = torch.rand(2, 3, *SIZE, dtype=torch.float64), Window(random_features(SIZE), 5, normalization="before")
    gates = random_masks(masks)
    potts, quadratic = (tc.dense_crf_loss(p, [K], [0.7], form=form, **gates) for form in FORMS)
    ones = torch.ones(2, *SIZE, dtype=torch.float64)
    d, s = (gates.get(name, ones) * gates.get("roi", ones) for name in ("destination", "source"))
    count = (s if masks == ["source"] else d).sum()
    assert_close("N potts", potts * count, 2 * quadratic + 0.7 * (d * p.sum(1) * K(s[:, None])[:, 0]).sum())


def test_a_softmax_cannot_tell_the_forms_apart():
    """Of a K that is not symmetric, too: what the forms differ by is a constant."""
    K, logits = Window(random_features(SIZE), 5, normalization="before"), random_logits(SIZE, batch=2)
    losses = [lambda z, form=form: tc.dense_crf_loss(z.softmax(1), [K], [0.7], form=form) for form in FORMS]
    potts, quadratic = (outcome(loss, {"z": logits})["z"] for loss in losses)
    assert_close("gradient", potts * 2 * math.prod(SIZE), quadratic * 2)


def test_of_a_mean_over_neighbours_the_loss_is_a_share():
    """From 0, where all pixels have one class, to the weight, where no neighbour agrees."""
    K = Window(torch.zeros(1, 1, 4, 6, dtype=torch.float64), 3, include_self=False, normalization="after")
    labels = torch.arange(24).view(1, 4, 6)
    one_hot = lambda x: F.one_hot(x, 24).movedim(-1, 1).double()  # noqa: E731
    assert tc.dense_crf_loss(one_hot(labels), [K], [0.3]).item() == pytest.approx(0.3, rel=1e-14)
    assert tc.dense_crf_loss(one_hot(0 * labels), [K], [0.3]).item() == 0


def test_one_channel_is_half_of_two():
    p, K = torch.rand(2, 1, *SIZE, dtype=torch.float64), Window(random_features(SIZE), 3)
    both = tc.dense_crf_loss(torch.cat([p, 1 - p], 1), [K], [1.0])
    assert_close("loss", 2 * tc.dense_crf_loss(p, [K], [1.0]), both)


@each_form
def test_a_batch_is_the_mean_of_its_images(form):
    p, f = random_probabilities(batch=3), random_features(SIZE, batch=3)
    single = [tc.dense_crf_loss(p[b : b + 1], [Window(f[b : b + 1], 3)], [1.0], form=form) for b in range(3)]
    assert_close("loss", tc.dense_crf_loss(p, [Window(f, 3)], [1.0], form=form), torch.stack(single).mean())


@pytest.mark.parametrize("name", ["roi", "source", "destination"])
@each_form
def test_masks_in_every_form(name, form):
    p, K = random_probabilities(), Window(random_features(SIZE), 3)
    mask = torch.rand(SIZE) > 0.4

    def loss(mask):
        return tc.dense_crf_loss(p, [K], [1.0], form=form, **{name: mask})

    expected = loss(mask.double().expand(2, 1, *SIZE))
    for same in mask[None], mask[None, None], mask.expand(2, *SIZE), mask[None].half(), mask.float()[None, None]:
        assert torch.equal(loss(same), expected)


@each_form
def test_nothing_is_known_of_pixels_off_the_region(form):
    p, K, roi = random_probabilities(), Window(random_features(SIZE), 3), torch.rand(2, *SIZE) > 0.4
    other = torch.where(roi[:, None], p, random_probabilities())
    a, b = (outcome(lambda p: tc.dense_crf_loss(p, [K], [1.0], roi=roi, form=form), {"p": x}) for x in (p, other))
    assert torch.equal(a["loss"], b["loss"]) and torch.equal(a["p"], b["p"])
    assert not a["p"].masked_select(~roi[:, None]).any() and a["p"].masked_select(roi[:, None]).all()


def test_sources_send_and_destinations_receive():
    """The first of two pixels sends, the second receives: the one is to agree with the other's class."""
    K = Window(torch.zeros(1, 1, 2, dtype=torch.float64), 3)
    p = torch.tensor([[[0.9, 0.3], [0.1, 0.7]]], dtype=torch.float64)
    first, second = torch.tensor([[True, False]]), torch.tensor([[False, True]])
    found = tc.dense_crf_loss(p, [K], [1.0], source=first, destination=second)
    assert found.item() == pytest.approx(0.3 * 0.1 + 0.7 * 0.9, rel=1e-14)


@pytest.mark.parametrize("name", ["roi", "source", "destination"])
@each_form
def test_a_mask_of_nothing(name, form):
    p, K = random_probabilities(), Window(random_features(SIZE), 3)
    nothing = {name: torch.zeros(2, *SIZE, dtype=torch.bool)}
    found = outcome(lambda p: tc.dense_crf_loss(p, [K], [1.0], form=form, **nothing), {"p": p})
    assert found["loss"] == 0 and not found["p"].any()


@each_form
def test_an_empty_batch(form):
    found = outcome(
        lambda p: tc.dense_crf_loss(p, [Window(torch.zeros(1, 1, 4, 5), 3)], [1.0], form=form),
        {"p": torch.zeros(0, 3, 4, 5)},
    )
    assert found["loss"] == 0 and found["p"].shape == (0, 3, 4, 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@each_form
def test_sums_are_of_float32_at_least(dtype, form):
    p, f = random_probabilities((12, 13), 21, dtype=dtype), random_features((12, 13), dtype=dtype)
    roi = torch.rand(1, 12, 13) > 0.2

    def result(dtype):
        K = Window(f.to(dtype), 7)
        return outcome(lambda p: tc.dense_crf_loss(p, [K], [1.0], roi=roi, form=form), {"p": p.to(dtype)})

    found, exact = result(dtype), result(torch.float64)
    assert_close("loss", found["loss"], exact["loss"], dtype=torch.float32)
    assert_close("gradient", found["p"], exact["p"], dtype=dtype)


@each_form
def test_autocast_changes_nothing(form):
    p, f, roi = random_probabilities(dtype=torch.float32), random_features(SIZE).float(), torch.rand(2, *SIZE)
    loss = lambda p: tc.dense_crf_loss(p, [Lattice(f)], [0.7], roi=roi, form=form)  # noqa: E731
    expected = outcome(loss, {"p": p})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = outcome(loss, {"p": p})
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@each_form
def test_each_filter_is_applied_once(form):
    calls = []
    K = tc.filters.Function(lambda x: calls.append(x.shape) or F.avg_pool2d(x, 3, stride=1, padding=1))
    roi = torch.rand(2, *SIZE) > 0.3
    tc.dense_crf_loss(random_probabilities(), [K, K], [1.0, 2.0], roi=roi, source=roi, destination=roi, form=form)
    assert calls == [(2, 3, *SIZE)] * 2


# In a training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["potts", *tc.LOSSES])
def test_two_labelled_pixels_label_an_image(name):
    """Of two colours, with a pixel of each labelled: the cross-entropy alone says nothing of the others."""
    truth = torch.zeros(1, 12, 16, dtype=torch.int64)
    truth[:, 3:, 7:] = 1
    image = torch.tensor([[40, 60, 80], [200, 180, 90]], dtype=torch.uint8)[truth].movedim(-1, 1)
    labels = torch.full_like(truth, 255)
    labels[0, 0, 0], labels[0, 8, 12] = 0, 1
    K, form, scale = Window(tc.features.bilateral(image, 6, 15), 11, normalization="after"), "potts", 1.0
    if name in tc.LOSSES:
        settings = tc.LOSSES[name]
        K, form, scale = settings.filter(image), settings.form, 1.0 if settings.form == "potts" else 1e-3
    logits = torch.zeros(1, 2, 12, 16, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.5)
    for _ in range(40):
        loss = F.cross_entropy(logits, labels, ignore_index=255)
        loss = loss + scale * tc.dense_crf_loss(logits.softmax(1), [K], [1.0], form=form)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.equal(logits.argmax(1), truth)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_it_compiles_whole_with_its_gradient_and_exports(fresh_compiler):
    class Module(torch.nn.Module):
        def forward(self, logits, image, roi):
            p, K = logits.softmax(1), Window(tc.features.bilateral(image, 3.0, 40.0), 3)
            quadratic = tc.dense_crf_loss(p, [K], [0.7], source=roi, form="rloss")
            return quadratic + 3 * tc.dense_crf_loss(p, [K], [0.7], roi=roi, destination=roi)

    logits, image, roi = torch.randn(2, 3, *SIZE), torch.rand(2, 3, *SIZE), torch.rand(2, *SIZE) > 0.3
    run = lambda module: outcome(lambda logits: module(logits, image, roi), {"logits": logits})  # noqa: E731
    expected = run(Module())
    assert_same(run(torch.compile(Module(), fullgraph=True, backend="aot_eager")), expected)
    exported = torch.export.export(Module(), (logits, image, roi)).module()
    assert_close("exported", exported(logits, image, roi), expected["loss"])


# Bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"probabilities": np.zeros((1, 2, 4, 5))}, TypeError, r"^probabilities: .*torch.from_numpy"),
        ({"probabilities": torch.zeros(2, 4)}, ValueError, r"^probabilities: expected \[B, C, \*S\]"),
        ({"probabilities": torch.zeros(1, 2, 4, 6)}, ValueError, r"^probabilities: expected \[B, C, 4, 5\] as the filter's"),
        ({"probabilities": torch.full((1, 2, 4, 5), math.nan)}, ValueError, "^probabilities: expected finite"),
        ({"probabilities": torch.full((1, 2, 4, 5), -3.0)}, ValueError, "^probabilities: expected 0 to 1, got -3 to -3; torch.softmax"),
        ({"filters": []}, ValueError, "^filters: expected at least one"),
        ({"filters": torch.zeros(1)}, TypeError, "^filters: expected a list"),
        ({"filters": [len]}, TypeError, r"^filters\[0\]: expected a filter"),
        ({"weights": [1.0, 2.0]}, ValueError, "^weights: expected one per filter, 1, got 2"),
        ({"weights": [math.inf]}, ValueError, r"^weights\[0\]: expected a finite number"),
        ({"weights": [torch.zeros(2)]}, ValueError, r"^weights\[0\]: expected a number or a floating-point 0-d tensor"),
        ({"weights": [torch.tensor(math.nan)]}, ValueError, r"^weights\[0\]: expected finite"),
        ({"weights": [torch.tensor(1)]}, TypeError, r"^weights\[0\]: expected a number or a floating-point 0-d tensor"),
        ({"weights": [3e38]}, ValueError, "^filters, weights, roi, source, destination: expected a loss that float32 holds"),
        ({"roi": np.ones((1, 4, 5))}, TypeError, "^roi: expected a bool or floating-point torch.Tensor"),
        ({"roi": torch.ones(1, 4, 5, dtype=torch.uint8)}, TypeError, "^roi: expected a bool or floating-point"),
        ({"roi": torch.ones(4, 5)}, ValueError, r"^roi: expected \[1, 4, 5\] or \[1, 1, 4, 5\] as the probabilities"),
        ({"source": torch.ones(1, 2, 4, 5)}, ValueError, r"^source: expected .*, got shape \[1, 2, 4, 5\]"),
        ({"source": torch.ones(2, 4, 5)}, ValueError, r"^source: expected .*, got shape \[2, 4, 5\]"),
        ({"destination": torch.full((1, 4, 5), -0.5)}, ValueError, "^destination: expected weights of at least 0, got -0.5"),
        ({"destination": torch.full((1, 4, 5), math.nan)}, ValueError, "^destination: expected finite"),
        ({"form": "gated"}, ValueError, "^form: expected one of 'potts', 'rloss', got 'gated'"),
    ],
)  # fmt: skip
def test_bad_input_is_named(change, error, message):
    arguments = {
        "probabilities": torch.full((1, 2, 4, 5), 0.5), "filters": [Window(torch.zeros(1, 1, 4, 5), 3)], "weights": [1.0]
    }  # fmt: skip
    with pytest.raises(error, match=message):
        tc.dense_crf_loss(**{**arguments, **change})


def test_a_mask_of_the_meta_device_is_named():
    K, p = Window(torch.zeros(1, 1, 4, 5), 3), torch.full((1, 2, 4, 5), 0.5)
    with pytest.raises(ValueError, match="^roi: expected the device of the probabilities, cpu, got meta"):
        tc.dense_crf_loss(p, [K], [1.0], roi=torch.ones(1, 4, 5, device="meta"))


def test_a_second_derivative_is_refused():
    [p] = leaves(random_probabilities())
    loss = tc.dense_crf_loss(p, [Window(random_features(SIZE), 3)], [1.0], form="rloss")
    [gradient] = torch.autograd.grad(loss, p, create_graph=True)
    with pytest.raises((NotImplementedError, RuntimeError), match="second"):
        gradient.square().sum().backward()
