"""GuidanceCRF: against dense matrices and the published algorithm by hand, and what its own arguments do."""

import math

import pytest
import torch
import torch.nn.functional as F

import tritoncrf as tc
from assertions import assert_close
from cases import dense_apply, dense_guided, dense_scores, disturbed, leaves, random_logits
from problems import CLASSES, GUIDANCE_CRF, assert_same, results

C = CLASSES
SIZE, LARGE = GUIDANCE_CRF.size, GUIDANCE_CRF.large  # of the scores, and of the image
layer, picture, problem = GUIDANCE_CRF.make, GUIDANCE_CRF.picture, GUIDANCE_CRF.problem
variants = pytest.mark.parametrize("variant", GUIDANCE_CRF.variants)


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
        scores = dense_scores(logits, [matrix], [crf.strength], mu, crf.iterations, **crf.update)
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
    assert_same(results(crf, *inputs), results(crf, *inputs, run=dense_layer), rms=1e-11, worst=1e-10)


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


@pytest.mark.parametrize("variant", ["default", "subsampled", "released"])
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


def test_features_are_the_guide_as_it_is():
    crf, logits = layer(eps=0.1), random_logits(SIZE, C, batch=2)
    (f,) = leaves(torch.randn(2, 4, *SIZE, dtype=torch.float64))
    s = crf(logits, features=f)
    assert_close("S", s, dense_scores(logits, [dense_guided(f, 1, 0.1)], [2.0], iterations=3))
    assert_close("S", s, crf(logits, features=f + 7))
    s.square().sum().backward()
    assert f.grad.isfinite().all() and f.grad.abs().max() > 0
    with pytest.raises(ValueError, match="^features: expected values of at most"):
        crf(logits.float(), features=1e30 * f.detach().float())


@variants
def test_without_iterations_logits_come_out_at_the_images_size(variant):
    crf, (logits, image) = layer(variant, iterations=0), problem()
    assert_close("S", crf(logits, image), resized(logits, LARGE, interpolation) if crf.upsample else logits)


def test_subsampled_is_nearly_the_same():
    logits, image = problem((32, 40), (32, 40))
    image = F.avg_pool2d(image.double(), 5, 1, 2) / 255
    plain, subsampled = (layer(radius=8, subsample=n)(logits, image) for n in (1, 2))
    assert torch.equal(plain, layer(radius=8)(logits, image))
    assert 1e-4 < (subsampled - plain).abs().max() < (plain - logits).abs().max() / 2


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

    assert_same(results(crf, logits, image), results(crf, logits, image, run=oracle), rms=1e-11, worst=1e-10)


def test_eps_grows_with_every_update_of_the_released_code():
    """One update is that of the plain layer with constant boxes; more are not."""
    inputs = problem()
    for iterations, same in (1, True), (2, False):
        arguments = {"iterations": iterations, "eps": 40.0}
        a, b = (layer(v, **arguments)(*inputs).log_softmax(1) for v in ("released", "constant"))
        assert ((a - b).abs().max() < 1e-10) == same


@pytest.mark.parametrize("name, none, bad", [("compatibility", False, True), ("subsample", 1, 2)])
def test_what_the_released_code_does_not_offer(name, none, bad):
    layer("released", **{name: none})
    with pytest.raises(ValueError, match=f"^{name}: expected {none} with preset='released', .*, got {bad}"):
        layer("released", **{name: bad})


@pytest.mark.parametrize("fast", [True, False])
def test_an_old_argument_names_the_new_one(fast):
    with pytest.raises(TypeError, match="^fast: no longer an argument; use subsample"):
        tc.GuidanceCRF(C, fast=fast)
