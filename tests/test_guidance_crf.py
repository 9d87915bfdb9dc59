"""GuidanceCRF: against dense matrices, the published algorithm by hand, and its errors."""

import copy
import itertools
import math
import pickle

import pytest
import torch
import torch.nn.functional as F

import tritoncrf as tc
from assertions import assert_close
from cases import dense_apply, dense_guided, dense_scores, disturbed, leaves, random_logits

C = 3
SIZE, LARGE = (5, 6), (11, 14)  # of the scores, and of the image
SMALL = {"num_classes": C, "radius": 1, "eps": 400.0}
VARIANTS = {
    "default": {},
    "radius-per-axis": {"radius": (2, 1)},
    "compatibility": {"compatibility": True},
    "constant": {"box": "constant"},
    "fast": {"fast": True, "subsample": 2, "radius": 3},
    "all": {"fast": True, "subsample": 2, "box": "constant", "compatibility": True, "strength": -1.5, "iterations": 2},
    "at-the-scores-size": {"upsample": False},
    "released": {"preset": "released"},
}
variants = pytest.mark.parametrize("variant", VARIANTS)


def layer(variant="default", **changes):
    return tc.GuidanceCRF(**{**SMALL, **VARIANTS[variant], **changes})


def picture(size=LARGE, batch=1, channels=3):
    return torch.randint(0, 256, (batch, channels, *size), dtype=torch.uint8)


def problem(size=SIZE, large=LARGE, batch=1, dtype=torch.float64):
    return random_logits(size, C, batch, dtype), picture(large, batch)


def call(crf, logits, image):
    return crf(logits, image)


def results(run, crf, logits, image):
    """Scores, and the gradients of <a fixed random cotangent, scores> by name; the image's if it is floating."""
    inputs = {"logits": logits, "image": image}
    inputs = {name: x.detach().clone().requires_grad_(x.is_floating_point()) for name, x in inputs.items()}
    scores = run(crf, *inputs.values())
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(scores.shape, dtype=torch.float64, generator=generator).to(scores.dtype)
    inputs = {name: x for name, x in (inputs | dict(crf.named_parameters())).items() if x.requires_grad}
    gradients = torch.autograd.grad(scores, list(inputs.values()), cotangent)
    return {"scores": scores.detach(), **{f"{name}'s gradient": g for name, g in zip(inputs, gradients)}}


def assert_same(found: dict, expected: dict, **tolerance):
    assert found.keys() == expected.keys()
    for name in expected:
        assert_close(name, found[name], expected[name], **tolerance)


# In dense matrices ------------------------------------------------------------------------------------------------


def averaging(n: int, m: int) -> torch.Tensor:
    """[m, n]: the mean over all pixels that the i-th of m equal parts of n pixels touches."""
    matrix = torch.zeros(m, n, dtype=torch.float64)
    for i in range(m):
        matrix[i, i * n // m : -(-(i + 1) * n // m)] = 1
    return matrix / matrix.sum(1, keepdim=True)


def interpolation(n: int, m: int) -> torch.Tensor:
    """[m, n]: linear between the centres of n pixels, constant beyond the outermost ones."""
    matrix = torch.zeros(m, n, dtype=torch.float64)
    for i in range(m):
        source = min(max((i + 0.5) * n / m - 0.5, 0), n - 1)
        first = math.floor(source)
        matrix[i, first] += 1 - (source - first)
        matrix[i, min(first + 1, n - 1)] += source - first
    return matrix


def resized(x, size, matrix):
    """x [B, C, *S] at another size, axis by axis."""
    for axis, m in enumerate(size, 2):
        x = torch.movedim(torch.movedim(x, axis, -1) @ matrix(x.shape[axis], m).to(x.dtype).mT, -1, axis)
    return x


def guide_of(image, size):
    """In 0..255 units, at the size of the scores, in float64."""
    return resized(image.double() * (1 if image.dtype == torch.uint8 else 255), size, averaging)


def dense_layer(crf, logits, image):
    """S from the parameters alone."""
    guide = guide_of(image, logits.shape[2:])
    form = {name: crf.guided[name] for name in ("radius", "box", "subsample")}
    if crf.preset is None:
        mu = "potts" if crf.compatibility is None else crf.compatibility
        matrix = dense_guided(guide, eps=crf.eps, **form)
        scores = dense_scores(logits, [matrix], [crf.strength], mu, crf.iterations)
    else:
        scores = logits
        for t in range(crf.iterations):
            g = dense_apply(dense_guided(guide, eps=(t + 1) * crf.eps, **form), scores.softmax(1))
            scores = logits - crf.strength * (g.sum(1, keepdim=True) - g)
    return resized(scores, image.shape[2:], interpolation) if crf.upsample else scores


@variants
def test_scores_and_every_gradient_are_those_of_dense_matrices(variant):
    crf = disturbed(layer(variant, dtype=torch.float64))
    logits, image = problem(batch=2)
    inputs = logits, image.double() / 255
    assert_same(results(call, crf, *inputs), results(dense_layer, crf, *inputs), rms=1e-11, worst=1e-10)


SIZES = {
    "signal": ((9,), (21,)),
    "signal-alone": ((9,), (9,)),
    "pixel": ((1, 1), (3, 2)),
    "row": ((1, 7), (1, 15)),
    "column": ((8, 1), (9, 4)),
    "image-whole-ratio": ((4, 5), (16, 10)),
    "image-any-ratio": ((5, 7), (13, 9)),
    "image-alone": ((5, 7), (5, 7)),
    "image-one-axis": ((5, 7), (5, 20)),
    "volume": ((2, 4, 3), (5, 4, 7)),
    "volume-alone": ((3, 4, 3), (3, 4, 3)),
}


@pytest.mark.parametrize("variant", ["default", "fast", "released"])
@pytest.mark.parametrize("shape", SIZES)
def test_signals_images_and_volumes_of_any_ratio(shape, variant):
    crf, inputs = layer(variant), problem(*SIZES[shape], batch=2)
    assert_close("S", crf(*inputs), dense_layer(crf, *inputs))


@pytest.mark.parametrize("channels", [1, 2, 8])
def test_images_and_features_of_any_number_of_channels(channels):
    crf, logits, image = layer(upsample=False), random_logits(SIZE, C), picture(channels=channels)
    assert_close("S of an image", crf(logits, image), dense_layer(crf, logits, image))
    assert_close("S of features", crf(logits, features=guide_of(image, SIZE)), dense_layer(crf, logits, image))


# The layer is mean_field ------------------------------------------------------------------------------------------

OUTPUTS = {
    "logits": torch.Tensor.clone,
    "probabilities": lambda s: s.softmax(1),
    "log_probabilities": lambda s: s.log_softmax(1),
}


@pytest.mark.parametrize("output", OUTPUTS)
def test_defaults_are_mean_field_by_hand(output):
    """SegModel's: at a quarter of the image, radius 3, eps 1, weight 2, 3 updates; scores are made larger, then turned."""
    logits, image = problem((10, 12), (40, 48), batch=2, dtype=torch.float32)
    kernel = tc.filters.Guided(F.avg_pool2d(image.float(), 4), radius=3, eps=1.0, box="count")
    s = tc.mean_field(logits, [kernel], weights=[2.0], iterations=3, output="logits")
    s = F.interpolate(s, scale_factor=4, mode="bilinear", align_corners=False)
    assert_close(output, tc.GuidanceCRF(C)(logits, image, output=output), OUTPUTS[output](s))


def test_logits_are_what_comes_out_unless_asked_otherwise():
    inputs = problem()
    assert torch.equal(layer()(*inputs), layer()(*inputs, output="logits"))


@pytest.mark.parametrize("output", OUTPUTS)
@variants
def test_outputs_agree(variant, output):
    crf, inputs = layer(variant), problem(batch=2)
    assert_close(output, crf(*inputs, output=output), OUTPUTS[output](crf(*inputs)))


@pytest.mark.parametrize("variant", ["compatibility", "all"])
def test_at_the_start_the_compatibility_is_the_potts_model(variant):
    inputs = problem()
    learnt, plain = (
        layer(variant, compatibility=c, dtype=torch.float64)(*inputs, output="log_probabilities") for c in (True, False)
    )
    assert_close("log-probabilities", learnt, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@variants
def test_an_image_of_bytes_is_the_same_in_floats(variant, dtype):
    crf, (logits, image) = layer(variant), problem(batch=2, dtype=dtype)
    assert_close("S", crf(logits, image), crf(logits, image.to(dtype) / 255))


def test_features_are_the_guide_as_it_is():
    crf, logits = layer(eps=0.1), random_logits(SIZE, C, batch=2)
    (f,) = leaves(torch.randn(2, 4, *SIZE, dtype=torch.float64))
    s = crf(logits, features=f)
    assert_close("S", s, dense_scores(logits, [dense_guided(f, 1, 0.1)], [2.0], iterations=3))
    assert_close("S", s, crf(logits, features=f + 7))
    s.square().sum().backward()
    assert f.grad.isfinite().all() and f.grad.abs().max() > 0


def test_one_image_serves_a_batch_of_scores():
    logits, image = random_logits(SIZE, C, batch=3), picture()
    for variant in VARIANTS:
        crf = layer(variant)
        assert_close("image", crf(logits, image), crf(logits, image.expand(3, -1, -1, -1)))
        f = guide_of(image, SIZE)
        assert_close("features", crf(logits, features=f), crf(logits, features=f.expand(3, -1, -1, -1)))


@variants
def test_without_iterations_scores_are_the_logits(variant):
    crf, (logits, image) = layer(variant, iterations=0), problem()
    assert torch.equal(crf(logits, picture(SIZE)), logits)
    assert_close("larger", crf(logits, image), resized(logits, LARGE, interpolation) if crf.upsample else logits)


def test_fast_is_nearly_the_same():
    logits, image = problem((32, 40), (32, 40))
    image = F.avg_pool2d(image.double(), 5, 1, 2) / 255
    plain, fast = (layer(radius=8, fast=fast, subsample=2)(logits, image) for fast in (False, True))
    assert torch.equal(plain, layer(radius=8)(logits, image))
    assert 1e-4 < (fast - plain).abs().max() < (plain - logits).abs().max() / 2


# The published algorithm ------------------------------------------------------------------------------------------


def published(logits, guide, radius, eps, iterations, alpha):
    """What SegModel's code computes for one image: logits [C, H, W], guide [3, H, W] in 0..255, both float64.

    S = U + alpha (1 - I) GF(softmax(S)); the guided filter's means are sums over the window, zero outside the image,
    over the size of the whole window; eps is added to the covariances in place by every call.
    """
    (height, width), side = guide.shape[1:], 2 * radius + 1
    ones = torch.ones(1, 1, side, side, dtype=guide.dtype)

    def mean(x):
        sums = F.conv2d(x.reshape(-1, 1, height, width), ones, padding=radius)
        return sums.view(x.shape) / (min(side, height) * min(side, width))

    mu = mean(guide)
    sigma = mean(guide[:, None] * guide) - mu[:, None] * mu  # [3, 3, H, W]
    scores = logits
    for _ in range(iterations):
        q = torch.softmax(scores, 0)
        sigma += eps * torch.eye(3, dtype=guide.dtype)[:, :, None, None]
        inverse = torch.linalg.inv(sigma.permute(2, 3, 0, 1))  # [H, W, 3, 3]
        mean_q = mean(q)
        covariance = mean(q[:, None] * guide) - mean_q[:, None] * mu  # [C, 3, H, W]
        a = torch.einsum("hwde,cehw->cdhw", inverse, covariance)
        b = mean_q - (a * mu).sum(1)
        g = (mean(a) * guide).sum(1) + mean(b)
        others = 1 - torch.eye(len(q), dtype=guide.dtype)
        scores = logits + alpha * torch.einsum("lk,khw->lhw", others, g)
    return scores


@pytest.mark.parametrize(
    "settings", [{}, {"radius": 2, "eps": 30.0, "iterations": 5, "strength": 1.3}], ids=["deployed", "other"]
)
@pytest.mark.parametrize("size", [(20, 24), (13, 17), (7, 9), (4, 30), (2, 3)], ids=str)
def test_the_released_preset_is_the_published_algorithm(size, settings):
    crf = tc.GuidanceCRF(C, preset="released", **settings)
    logits, image = problem(size, size, batch=2)
    arguments = {"radius": 3, "eps": 1.0, "iterations": 3} | settings
    alpha = -arguments.pop("strength", 2.0)
    exact = torch.stack([published(u, i, alpha=alpha, **arguments) for u, i in zip(logits, image.double())])
    assert_close("S", crf(logits, image), exact)
    assert_close("log-softmax", crf(logits, image, output="log_probabilities"), exact.log_softmax(1))
    single = crf(logits.float(), image)
    assert_close("S in float32", single, exact, rms=1e-5, dtype=torch.float32)
    assert torch.equal(single, torch.cat([crf(logits[b : b + 1].float(), image[b : b + 1]) for b in range(2)]))


def test_the_released_gradient_is_that_of_its_own_function():
    logits, image = problem()
    guide = guide_of(image, SIZE)
    crf = layer("released", upsample=False)

    def oracle(crf, logits, image):
        return published(logits[0], guide[0], 1, 400.0, 3, -2.0)[None]

    assert_same(results(call, crf, logits, image), results(oracle, crf, logits, image), rms=1e-11, worst=1e-10)


def test_eps_grows_with_every_update_of_the_released_code():
    """One update is that of the plain layer with constant boxes; more are not."""
    inputs = problem()
    for iterations, same in (1, True), (2, False):
        arguments = {"iterations": iterations, "eps": 40.0}
        a, b = (layer(v, **arguments)(*inputs).log_softmax(1) for v in ("released", "constant"))
        assert ((a - b).abs().max() < 1e-10) == same


# Sizes, batches and symmetries ------------------------------------------------------------------------------------


@variants
def test_a_batch_is_its_images_one_by_one(variant):
    crf = disturbed(layer(variant, dtype=torch.float64))
    logits, image = problem(batch=3)
    singles = [crf(logits[b : b + 1], image[b : b + 1]) for b in range(3)]
    assert_close("S", crf(logits, image), torch.cat(singles))


@variants
def test_an_empty_batch(variant):
    crf = layer(variant)
    found = results(call, crf, *problem(batch=0, dtype=torch.float32))
    assert found["scores"].shape == (0, C, *(LARGE if crf.upsample else SIZE))
    assert not any(found[f"{name}'s gradient"].any() for name, _ in crf.named_parameters())


def test_one_layer_serves_several_sizes():
    crf = layer()
    for shape in "signal", "image-any-ratio", "volume", "image-alone", "signal":
        inputs = problem(*SIZES[shape])
        assert_close(f"S of {shape}", crf(*inputs), dense_layer(crf, *inputs))


@pytest.mark.parametrize("dims", [(2,), (3,), (2, 3)], ids=["rows", "columns", "both"])
@pytest.mark.parametrize("variant", ["default", "released"])
def test_mirrored_images_have_mirrored_scores(variant, dims):
    crf, (logits, image) = layer(variant), problem()
    assert_close("S", crf(logits.flip(dims), image.flip(dims)), crf(logits, image).flip(dims))


def test_transposed_images_have_transposed_scores():
    logits, image = problem()
    assert_close("S", layer(radius=(1, 2))(logits.mT, image.mT), layer(radius=(2, 1))(logits, image).mT)


@pytest.mark.parametrize("variant", ["default", "compatibility", "released"])
def test_classes_have_no_order(variant):
    crf, (logits, image) = disturbed(layer(variant, dtype=torch.float64)), problem()
    order = torch.tensor([2, 0, 1])
    permuted = copy.deepcopy(crf)
    if crf.compatibility is not None:
        permuted.compatibility.data = crf.compatibility.data[order][:, order]
    assert_close("S", permuted(logits[:, order], image), crf(logits, image)[:, order])


@pytest.mark.parametrize("variant", ["default", "constant", "fast", "released"])
def test_one_class_is_certain(variant):
    q = layer(variant, num_classes=1)(torch.randn(1, 1, *SIZE), picture(), output="probabilities")
    assert_close("Q", q, torch.ones_like(q))


# Training ---------------------------------------------------------------------------------------------------------


@variants
def test_parameters_and_their_shapes(variant):
    shapes = {"compatibility": [C, C]} if VARIANTS[variant].get("compatibility") else {}
    crf = layer(variant)
    assert {name: list(p.shape) for name, p in crf.named_parameters()} == shapes
    assert crf.state_dict().keys() == shapes.keys()


def halves(size=(16, 16)):
    """A picture of two halves, their labels, and scores at half the size that are wrong at a third of the pixels."""
    labels = (torch.arange(size[1]) >= size[1] // 2).long().expand(1, *size)
    image = (100 + 60 * labels)[:, None].expand(-1, 3, -1, -1) + torch.randint(0, 8, (1, 3, *size))
    low = labels[:, ::2, ::2]
    logits = 2 * F.one_hot(torch.where(torch.rand(low.shape) < 1 / 3, 1 - low, low), 2).movedim(-1, 1).float()
    return logits, image.to(torch.uint8), labels


def test_one_step_of_training_moves_the_compatibility():
    crf = layer("compatibility", num_classes=2)
    logits, image, labels = halves()
    F.cross_entropy(crf(logits, image), labels).backward()
    before = crf.compatibility.detach().clone()
    assert crf.compatibility.grad.isfinite().all() and (crf.compatibility.grad != 0).all()
    torch.optim.SGD(crf.parameters(), lr=0.01).step()
    assert (crf.compatibility != before).all()


def test_rows_that_are_added_to_mu_change_nothing():
    crf, inputs = layer("compatibility", dtype=torch.float64), problem()
    expected = crf(*inputs, output="log_probabilities")
    crf.compatibility.data += torch.randn(C, dtype=torch.float64)
    assert_close("log-probabilities", crf(*inputs, output="log_probabilities"), expected)


def test_a_frozen_compatibility_gets_no_gradient():
    crf, (logits, image) = layer("compatibility").requires_grad_(False), problem(dtype=torch.float32)
    (logits,) = leaves(logits)
    crf(logits, image).square().mean().backward()
    assert crf.compatibility.grad is None and logits.grad.abs().max() > 0


def test_training_lowers_the_loss():
    logits, image, labels = halves()
    crf = layer("compatibility", num_classes=2, strength=0.3)
    optimizer, losses = torch.optim.Adam(crf.parameters(), lr=0.05), []
    for _ in range(8):
        optimizer.zero_grad()
        loss = F.cross_entropy(crf(logits, image), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(later < earlier for earlier, later in itertools.pairwise(losses)), losses


def test_it_repairs_noise():
    logits, image, labels = halves((40, 40))
    before, after = ((s.argmax(1) != labels).float().mean() for s in (
        F.interpolate(logits, scale_factor=2), layer(num_classes=2, radius=3, strength=10)(logits, image)))  # fmt: skip
    assert before > 0.2 and after < before / 4


# A module among modules -------------------------------------------------------------------------------------------

LEARNT = ["compatibility", "all"]


@pytest.mark.parametrize("variant", LEARNT)
def test_state_survives_saving_and_loading(variant, tmp_path):
    crf, inputs = disturbed(layer(variant)), problem(dtype=torch.float32)
    torch.save(crf.state_dict(), tmp_path / "crf.pt")
    other = layer(variant)
    assert not torch.equal(other(*inputs), crf(*inputs))
    other.load_state_dict(torch.load(tmp_path / "crf.pt", weights_only=True))
    assert torch.equal(other(*inputs), crf(*inputs))


@pytest.mark.parametrize("make", [copy.deepcopy, lambda crf: pickle.loads(pickle.dumps(crf))], ids=["copy", "pickle"])
@variants
def test_a_copy_is_equal_and_apart(variant, make):
    crf, inputs = disturbed(layer(variant)), problem(dtype=torch.float32)
    expected = crf(*inputs).detach()
    other = make(crf)
    assert torch.equal(other(*inputs), expected)
    disturbed(other)
    assert torch.equal(crf(*inputs), expected)
    assert torch.equal(other(*inputs), expected) == (crf.compatibility is None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("variant", LEARNT)
def test_parameters_of_half_precision(variant, dtype):
    crf, (logits, image) = layer(variant).to(dtype), problem(dtype=torch.float32)
    found = results(call, crf, logits, image)
    assert_close("S", found["scores"], copy.deepcopy(crf).float()(logits, image).detach())
    gradient = found["compatibility's gradient"]
    assert gradient.dtype == crf.compatibility.dtype == dtype
    assert gradient.isfinite().all() and gradient.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@variants
def test_scores_of_half_precision_are_summed_in_float32(variant, dtype):
    crf, (logits, image) = layer(variant), problem(dtype=dtype)
    for output in OUTPUTS:
        s = crf(logits, image, output=output)
        assert s.dtype == dtype
        assert torch.equal(s, crf(logits.float(), image, output=output).to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@variants
def test_autocast_changes_nothing(variant, dtype):
    crf, (logits, image) = disturbed(layer(variant)), problem(dtype=dtype)
    expected = results(call, crf, logits, image / 255)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = results(call, crf, logits, image / 255)
    for name in expected:
        assert found[name].dtype == expected[name].dtype and torch.equal(found[name], expected[name]), name


def test_parameters_are_made_where_and_as_asked():
    crf = layer("compatibility", device="meta", dtype=torch.float16)
    assert {(p.device.type, p.dtype) for p in crf.parameters()} == {("meta", torch.float16)}


def test_it_says_what_it_is():
    text = repr(tc.GuidanceCRF(21, radius=(5, 4), eps=2, strength=3, preset="released"))
    for part in ("GuidanceCRF(", "num_classes=21", "radius=(5, 4)", "eps=2.0", "iterations=3", "strength=3.0", "upsample=True",
                 "'released'", "'constant'"):  # fmt: skip
        assert part in text


# Compilers --------------------------------------------------------------------------------------------------------


COMPILED = ["default", "all", "released"]


@pytest.mark.parametrize("variant", COMPILED)
def test_compiled_whole_it_is_the_same(variant):
    torch.compiler.reset()
    crf = disturbed(layer(variant))
    compiled = torch.compile(crf, fullgraph=True, backend="aot_eager")
    logits, image = problem(batch=2, dtype=torch.float32)
    inputs = logits, image / 255
    assert_same(results(lambda _, *inputs: compiled(*inputs), crf, *inputs), results(call, crf, *inputs))


def test_compiled_it_serves_several_sizes():
    torch.compiler.reset()
    crf = layer()
    compiled = torch.compile(crf, fullgraph=True, backend="aot_eager")
    for size, large in ((5, 6), (10, 12)), ((7, 9), (15, 23)), ((8, 11), (17, 24)):
        inputs = problem(size, large, dtype=torch.float32)
        assert_close(f"S of {size}", compiled(*inputs), crf(*inputs))


@pytest.mark.parametrize("variant", COMPILED)
def test_exported_it_is_the_same(variant):
    crf, inputs = disturbed(layer(variant)), problem(dtype=torch.float32)
    program = torch.export.export(crf, inputs)
    others = problem(dtype=torch.float32)
    assert_close("S", program.module()(*others), crf(*others))


# Bad input --------------------------------------------------------------------------------------------------------

BAD_ARGUMENTS = [
    ("num_classes", 0, ValueError),
    ("num_classes", 2.5, TypeError),
    ("radius", 0, ValueError),
    ("radius", 1.0, TypeError),
    ("radius", None, TypeError),
    ("radius", (1, 0), ValueError),
    ("radius", (), ValueError),
    ("radius", (1, 2, 3), ValueError),
    *((name, value, error) for name in ("eps", "strength") for value, error in (
        (math.nan, ValueError), (math.inf, ValueError), ("1", TypeError), (None, TypeError), ([1.0], TypeError),
        (True, TypeError))),
    ("eps", 0, ValueError),
    ("eps", -1.0, ValueError),
    ("iterations", -1, ValueError),
    ("iterations", None, TypeError),
    ("compatibility", "potts", TypeError),
    ("compatibility", None, TypeError),
    ("box", "mean", ValueError),
    ("box", True, ValueError),
    ("fast", 1, TypeError),
    ("subsample", 0, ValueError),
    ("subsample", 2.0, TypeError),
    ("upsample", 4, TypeError),
    ("preset", "release", ValueError),
    ("preset", True, ValueError),
    ("precision", "high", ValueError),
    ("backend", "cuda", ValueError),
    ("backend", "triton", ValueError),
    ("dtype", torch.int32, TypeError),
]  # fmt: skip


def described(value) -> str:
    return str(value).replace("torch.", "") or "nothing"


@pytest.mark.parametrize("preset", [None, "released"])
@pytest.mark.parametrize("name, value, error", BAD_ARGUMENTS, ids=described)
def test_bad_arguments(name, value, error, preset):
    """What the layer cannot know without an image, such as the number of axes, it says at the first call."""
    with pytest.raises(error, match=rf"^{name}: .*(expected|runs on).*got "):
        layer(**{"preset": preset, name: value})(*problem(dtype=torch.float32))


@pytest.mark.parametrize("name", ["compatibility", "fast"])
def test_what_the_released_code_does_not_offer(name):
    with pytest.raises(ValueError, match=f"^{name}: expected False with preset='released', .*, got True"):
        layer("released", **{name: True})


LOGITS, IMAGE = torch.zeros(1, C, 4, 5), torch.zeros(1, 3, 9, 10, dtype=torch.uint8)
NAN = torch.full((1, 3, 4, 5), math.nan)


@pytest.mark.parametrize("preset", [None, "released"])
@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"logits": LOGITS.numpy()}, TypeError, "^logits: expected a floating.*ndarray.*torch.from_numpy"),
        ({"logits": LOGITS.int()}, TypeError, "^logits: expected a floating.*got a int32"),
        ({"logits": LOGITS[0, 0]}, ValueError, r"^logits: expected \[B, C, \*S\].*got shape \[4, 5\]"),
        ({"logits": LOGITS[..., :0]}, ValueError, "^logits: expected at least one pixel"),
        ({"logits": LOGITS[:, :2]}, ValueError, r"^logits: expected 3 classes on axis 1, got shape \[1, 2, 4, 5\]"),
        ({"logits": LOGITS + math.nan}, ValueError, "^logits: expected finite values, got 60 NaN or infinite of 60"),
        ({"logits": LOGITS - math.inf}, ValueError, "^logits: expected finite values, got 60"),
        ({"image": None}, ValueError, "^image: expected an image or features, got neither"),
        ({"features": LOGITS}, ValueError, "^image: expected an image or features, got both"),
        ({"image": IMAGE.numpy()}, TypeError, "^image: expected a uint8 .*ndarray.*torch.from_numpy"),
        ({"image": "photo.jpg"}, TypeError, "^image: expected a uint8 .*got 'photo.jpg'"),
        ({"image": IMAGE.int()}, TypeError, "^image: expected a uint8 .*got a int32"),
        ({"image": IMAGE[..., :4]}, ValueError, r"^image: expected at least the spatial size \[4, 5\] of logits, got \[1, 3, 9, 4\]"),
        ({"image": IMAGE[:, :, :3]}, ValueError, r"^image: expected at least the spatial size \[4, 5\] of logits, got \[1, 3, 3, 10\]"),
        ({"image": IMAGE[0]}, ValueError, r"^image: expected at least the spatial size \[4, 5\].*got \[3, 9, 10\]"),
        ({"image": IMAGE[..., None]}, ValueError, r"^image: expected at least the spatial size \[4, 5\].*got \[1, 3, 9, 10, 1\]"),
        ({"image": IMAGE[:, :0]}, ValueError, r"^image: expected at least one channel, got shape \[1, 0, 9, 10\]"),
        ({"image": IMAGE.repeat(1, 3, 1, 1)}, ValueError, r"^image: expected 1 to 8 channels on axis 1, got shape \[1, 9, "),
        ({"image": IMAGE.expand(2, -1, -1, -1)}, ValueError, r"^logits: expected a batch of 2 .*got \[1, 3, 4, 5\]"),
        ({"image": IMAGE.float() + 255}, ValueError, "^image: expected floating values from 0 to 1, got 255 to 255"),
        ({"image": NAN}, ValueError, "^image: expected finite values, got 60"),
        ({"image": IMAGE.to("meta")}, ValueError, "^image: expected the device of logits, cpu, got meta"),
        ({"image": None, "features": NAN.numpy()}, TypeError, "^features: expected a floating.*torch.from_numpy"),
        ({"image": None, "features": NAN.int()}, TypeError, "^features: expected a floating.*got a int32"),
        ({"image": None, "features": NAN}, ValueError, "^features: expected finite values, got 60"),
        ({"image": None, "features": NAN.mT}, ValueError, r"^features: expected the spatial size \[4, 5\] of logits"),
        ({"image": None, "features": IMAGE.float()}, ValueError, r"^features: expected the spatial size \[4, 5\] of logits"),
        ({"image": None, "features": NAN[:, :0]}, ValueError, "^features: expected 1 to 8 channels"),
        ({"image": None, "features": torch.zeros(1, 9, 4, 5)}, ValueError, "^features: expected 1 to 8 channels"),
        ({"output": "prob"}, ValueError, "^output: expected one of 'probabilities', .* got 'prob'"),
        ({"output": None}, ValueError, "^output: expected one of .* got None"),
    ],
)  # fmt: skip
def test_bad_inputs(change, error, message, preset):
    with pytest.raises(error, match=message):
        layer(preset=preset)(**{"logits": LOGITS, "image": IMAGE, **change})


def test_the_layers_device_is_that_of_its_parameter():
    with pytest.raises(ValueError, match="^logits: expected the layer's device, meta, got cpu"):
        layer("compatibility", device="meta")(LOGITS, IMAGE)
    assert layer(device="meta")(LOGITS, IMAGE).device.type == "cpu"  # it has none


@pytest.mark.parametrize("variant", ["default", "released"])
def test_only_first_derivatives_are_offered(variant):
    logits, image = problem()
    (logits,) = leaves(logits)
    (gradient,) = torch.autograd.grad(layer(variant)(logits, image).square().sum(), logits, create_graph=True)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        gradient.sum().backward()
