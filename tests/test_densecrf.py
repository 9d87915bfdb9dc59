"""densecrf: pydensecrf's names and numbers.

What pydensecrf gives is held in two ways. Where it can be imported, it is run beside ours. Everywhere,
`data_densecrf.npz` holds its answers to CASES on a 12 x 16 image with 3 labels. It was made by

    rng = numpy.random.default_rng(0)
    image = (numpy.linspace(40, 200, 192).reshape(12, 16, 1) + rng.integers(-40, 41, (12, 16, 3))).astype(numpy.uint8)
    energies = rng.gamma(1.0, 1.0, (3, 192)).astype(numpy.float32)
    answers = {name: run(pydensecrf.densecrf, pydensecrf.utils, *case) for name, case in CASES.items()}
    small = {f"small-{h}-{w}": of_small_image(pydensecrf.densecrf, h, w) for h, w in SMALL}
    numpy.savez_compressed("data_densecrf.npz", image=image, energies=energies,
                           divergences=[d for _, d in answers.values()], **{name: q for name, (q, _) in answers.items()},
                           **small)

with the first two as IMAGE and ENERGIES, and pydensecrf 1.0 (github.com/lucasb-eyer/pydensecrf) built for x86-64.
The sizes of CASES are multiples of 4, those of SMALL are not: there pydensecrf fills the last four pixels up with
features of 0, and the vertices that these add change the blur.
"""

import math
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import from_numpy as tensor

import tritoncrf as tc
import tritoncrf.densecrf as dcrf
from assertions import assert_close
from tritoncrf import demo
from tritoncrf.densecrf import utils

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("TRITONCRF_DATA", ROOT.parent / "shared" / "data"))
ANSWERS = np.load(Path(__file__).parent / "data_densecrf.npz")
IMAGE, ENERGIES = ANSWERS["image"], ANSWERS["energies"]
H, W, C = 12, 16, 3
NORMALIZATIONS = ["NO_NORMALIZATION", "NORMALIZE_BEFORE", "NORMALIZE_AFTER", "NORMALIZE_SYMMETRIC"]
COMPATS = {
    "number": 3,
    "vector": np.array([-2, -1.5, -1.75], dtype=np.float32),
    "matrix": np.array([[-1, 1, 0], [0, -1.5, 0.5], [1, 0, -1.25]], dtype=np.float32),
}
RAW = np.float32(0.05)  # of a compat, where messages are sums over many pixels: no label wins everywhere


@pytest.fixture(scope="module")
def peer():
    """pydensecrf's two modules."""
    return pytest.importorskip("pydensecrf.densecrf"), pytest.importorskip("pydensecrf.utils")


def gaussian(crf, utils, **options):
    crf.addPairwiseGaussian((3, 2), **options)


def bilateral(crf, utils, **options):
    crf.addPairwiseBilateral((8, 6), (30, 40, 35), IMAGE, **options)


def ties(crf, utils, **options):
    """Pixels whose coordinates on the lattice agree but for float32's rounding."""
    crf.addPairwiseBilateral(1, 25, IMAGE, **options)


def volume_gaussian(crf, utils, **options):
    crf.addPairwiseEnergy(utils.create_pairwise_gaussian((1.5, 2, 3), (4, 6, 8)), **options)


def volume_bilateral(crf, utils, **options):
    volume = IMAGE[..., :2].reshape(4, 6, 8, 2)
    crf.addPairwiseEnergy(utils.create_pairwise_bilateral((2, 3, 4), (30, 40), volume, chdim=3), **options)


def channel(crf, utils, **options):
    crf.addPairwiseEnergy(utils.create_pairwise_bilateral((5, 5), 20, IMAGE[..., 1]), **options)


def made(dcrf, utils, kernels, compat, normalization):
    crf = dcrf.DenseCRF2D(W, H, C)
    crf.setUnaryEnergy(ENERGIES)
    compat = COMPATS[compat] * (RAW if normalization == "NO_NORMALIZATION" else 1)
    for kernel in kernels:
        kernel(crf, utils, compat=compat, normalization=getattr(dcrf, normalization))
    return crf


def run(dcrf, utils, kernels, compat, normalization, iterations):
    """The marginals of a case, and the divergence before and after as many steps."""
    crf = made(dcrf, utils, kernels, compat, normalization)
    q, *spare = crf.startInference()
    divergences = [crf.klDivergence(q)]
    for _ in range(iterations):
        crf.stepInference(q, *spare)
    divergences.append(crf.klDivergence(q))
    return np.array(crf.inference(iterations), order="C"), np.array(divergences)


CASES = {
    **{f"gaussian-{n}": ([gaussian], "number", n, 5) for n in NORMALIZATIONS},
    **{f"bilateral-{n}": ([bilateral], "number", n, 5) for n in NORMALIZATIONS},
    "two-vector": ([gaussian, bilateral], "vector", "NORMALIZE_SYMMETRIC", 5),
    "two-matrix": ([gaussian, bilateral], "matrix", "NORMALIZE_SYMMETRIC", 5),
    "two-1": ([gaussian, bilateral], "number", "NORMALIZE_SYMMETRIC", 1),
    "two-10": ([gaussian, bilateral], "number", "NORMALIZE_SYMMETRIC", 10),
    "volume": ([volume_gaussian, volume_bilateral], "matrix", "NORMALIZE_AFTER", 5),
    "ties": ([ties], "number", "NORMALIZE_SYMMETRIC", 5),
}


ON_FILE = {name: (ANSWERS[name], kl) for (name, kl) in zip(CASES, ANSWERS["divergences"])}


def assert_same_answer(actual, expected):
    """To float32's rounding; the divergence's is that of its terms, of about 1 a pixel or more, which may cancel."""
    (q, kl), (expected_q, expected_kl) = actual, expected
    assert_close("marginals", tensor(q), tensor(expected_q))
    terms = max(np.abs(expected_kl).max(), H * W)
    assert_close("divergences", tensor(kl), tensor(expected_kl), rms=1e-5, worst=1e-5, scale=terms)


# Parity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_answers_of_pydensecrf(case):
    assert_same_answer(run(dcrf, utils, *CASES[case]), ON_FILE[case])


@pytest.mark.parametrize("case", CASES)
def test_the_file_holds_what_pydensecrf_says(peer, case):
    assert_same_answer(run(*peer, *CASES[case]), ON_FILE[case])


SMALL = [(1, 3), (3, 3), (3, 5), (5, 6), (7, 10)]


def of_small_image(dcrf, h, w):
    """Marginals of a part of the image at half its brightness, where the vertices around 0 join some of its own."""
    crf = dcrf.DenseCRF2D(w, h, C)
    crf.setUnaryEnergy(np.ascontiguousarray(ENERGIES[:, : h * w]))
    crf.addPairwiseGaussian(3, compat=3)
    crf.addPairwiseBilateral(10, 20, np.ascontiguousarray(IMAGE[:h, :w] // 2), compat=5)
    return np.array(crf.inference(5), order="C")


@pytest.mark.parametrize("size", SMALL, ids=str)
def test_sizes_that_no_four_divides(size):
    h, w = size
    assert_close("marginals", tensor(of_small_image(dcrf, h, w)), tensor(ANSWERS[f"small-{h}-{w}"]))


@pytest.mark.parametrize("size", SMALL, ids=str)
def test_the_file_holds_what_pydensecrf_says_of_them(peer, size):
    h, w = size
    assert_close("marginals", tensor(of_small_image(peer[0], h, w)), tensor(ANSWERS[f"small-{h}-{w}"]))


KERNELS = {
    "gaussian": [gaussian],
    "bilateral": [bilateral],
    "channel": [channel],
    "two": [gaussian, bilateral],
    "volume": [volume_gaussian, volume_bilateral],
}


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("compat", COMPATS)
@pytest.mark.parametrize("kernels", KERNELS)
def test_parity_with_pydensecrf(peer, kernels, compat, normalization):
    for iterations in (1, 5, 10):
        case = KERNELS[kernels], compat, normalization, iterations
        assert_same_answer(run(dcrf, utils, *case), run(*peer, *case))


def test_parity_on_a_photo_and_many_labels(peer):
    photo = demo.photo()[100:180, 100:200]
    h, w = photo.shape[:2]
    energies = np.random.default_rng(1).gamma(1.0, 1.0, (21, h * w)).astype(np.float32)
    answers = []
    for module in (dcrf, peer[0]):
        crf = module.DenseCRF2D(w, h, 21)
        crf.setUnaryEnergy(energies)
        crf.addPairwiseGaussian(sxy=3, compat=3)
        crf.addPairwiseBilateral(sxy=80, srgb=13, rgbim=np.ascontiguousarray(photo), compat=10)
        answers.append(tensor(np.array(crf.inference(5))))
    assert_close("marginals", *answers)


UTILS = {
    "labels": ("unary_from_labels", (IMAGE[..., 0].astype(int) % 4, 3, 0.7)),
    "labels-sure": ("unary_from_labels", (IMAGE[..., 0].astype(int) % 3, 3, 0.7, False)),
    "softmax": ("unary_from_softmax", (np.exp(-ENERGIES) / np.exp(-ENERGIES).sum(0),)),
    "softmax-scale": ("unary_from_softmax", (np.eye(3)[IMAGE[..., 0] % 3].transpose(2, 0, 1), 0.8)),
    "softmax-clip": ("unary_from_softmax", (np.eye(3, dtype=np.float32)[IMAGE[..., 0] % 3].T, None, 0.01)),
    "gaussian": ("create_pairwise_gaussian", ((3, 1.7), (4, 5))),
    "volume": ("create_pairwise_gaussian", ([1, 2.5, np.float64(0.3)], [4, 5, 6])),
    "bilateral": ("create_pairwise_bilateral", ((3, 4), (13, 14, 15), IMAGE, 2)),
    "bilateral-first": ("create_pairwise_bilateral", ((3, 4), 13, IMAGE.transpose(2, 0, 1), 0)),
    "bilateral-none": ("create_pairwise_bilateral", ((3, 4), (0.1,), IMAGE[..., 0] / 255, -1)),
    "bilateral-middle": ("create_pairwise_bilateral", ((3, 4), 2.5, IMAGE.transpose(0, 2, 1), -2)),
}


@pytest.mark.parametrize("case", UTILS)
def test_utils_equal_pydensecrfs(peer, case):
    function, arguments = UTILS[case]
    expected = getattr(peer[1], function)(*arguments)
    assert_close(function, tensor(getattr(utils, function)(*arguments)), tensor(expected), rms=1e-6, worst=1e-6)


# Known answers --------------------------------------------------------------------------------------------------

E = math.e


def one_pixel(compat):
    """Energies 0 and log 3: Q_0 = (3/4, 1/4); normalised, the message is exactly Q."""
    crf = dcrf.DenseCRF(1, 2)
    crf.setUnaryEnergy(np.array([[0.0], [math.log(3)]], dtype=np.float32))
    crf.addPairwiseEnergy(np.zeros((2, 1), dtype=np.float32), compat)
    return crf


@pytest.mark.parametrize(
    "compat, odds",
    [
        (2, 3 * E),  # scores 3/4 * 2 and 1/4 * 2 - log 3: a number attracts
        (np.array([1, 2], np.float32), 3 * E**-0.25),  # -3/4 and -2/4 - log 3: a vector repels
        (np.array([[0, 3], [1, 0]], np.float32), 3 * E),  # symmetrised (0 2; 2 0): -2/4 and -2 * 3/4 - log 3
        (-2 * np.eye(2, dtype=np.float32), 3 * E),  # the matrix that equals the number 2
        (np.array([-2, -2], np.float32), 3 * E),  # the vector that equals it
        (0, 3),
    ],
)
def test_signs_of_compat(compat, odds):
    expected = torch.tensor([[odds / (1 + odds)], [1 / (1 + odds)]])
    assert_close("q", tensor(one_pixel(compat).inference(1)), expected)


def test_divergence_of_one_pixel():
    crf = one_pixel(2)
    q, *_ = crf.startInference()
    by_hand = 0.75 * math.log(0.75) + 0.25 * math.log(0.25) + 0.25 * math.log(3) - 2 * (0.75**2 + 0.25**2)
    assert abs(crf.klDivergence(q) - by_hand) < 1e-6
    assert isinstance(crf.klDivergence(q), float)


@pytest.mark.parametrize(
    "normalization, message",
    [
        ("NO_NORMALIZATION", 5 / 6 * 2.0),  # d = 1: blurred twice along one line, 1 + 1/4, times alpha = 2/3
        ("NORMALIZE_BEFORE", 0.5),  # K / r is the mean
        ("NORMALIZE_AFTER", 0.5),
        ("NORMALIZE_SYMMETRIC", 0.5),
    ],
)
def test_pixels_that_are_all_alike(normalization, message):
    """Q_0 of label 0 is 1 for half of four equal pixels and 0 for the others: the sum is 2, the mean 1/2."""
    crf = dcrf.DenseCRF(4, 2)
    crf.setUnaryEnergy(np.array([[0, 0, 99, 99], [99, 99, 0, 0]], dtype=np.float32))
    crf.addPairwiseEnergy(np.zeros((1, 4), np.float32), np.diag([1, 0]), normalization=getattr(dcrf, normalization))
    q, *_ = crf.startInference()
    assert abs(crf.klDivergence(q) - 2 * message) < 1e-5  # entropy and unary terms are 0, two pixels have label 0


def test_unary_from_labels_by_hand():
    labels = np.array([[0, 1], [3, 2]])
    u, yes, no = math.log(3), -math.log(0.8), -math.log(0.1)
    expected = torch.tensor([[u, yes, no, no], [u, no, no, yes], [u, no, yes, no]])
    assert_close("unsure", tensor(utils.unary_from_labels(labels, 3, 0.8)), expected)
    yes, no = -math.log(0.7), -math.log(0.1)
    expected = torch.tensor([[yes, no, no, no], [no, yes, no, no], [no, no, no, yes], [no, no, yes, no]])
    assert_close("sure", tensor(utils.unary_from_labels(labels, 4, 0.7, zero_unsure=False)), expected)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.int64])
def test_labels_of_any_integer_dtype(dtype):
    labels = np.array([0, 1, 1, 0])
    expected = utils.unary_from_labels(labels, 2, 0.8)
    assert_close("energies", tensor(utils.unary_from_labels(labels.astype(dtype), 2, 0.8)), tensor(expected))


def test_unary_from_softmax_by_hand():
    p = np.array([[[0.25, 1.0]], [[0.75, 0.0]]], dtype=np.float32)  # [2, 1, 2]
    expected = -torch.tensor([[0.25, 1], [0.75, 1e-5]]).log()
    assert_close("clipped", tensor(utils.unary_from_softmax(p)), expected)
    scaled = utils.unary_from_softmax(np.array([[0.75], [0.25], [0.0]]), scale=0.4)  # 0.4 p + 0.6 / 3
    assert_close("scaled", tensor(scaled), -torch.tensor([[0.5], [0.3], [0.2]]).log())
    assert utils.unary_from_softmax(p, clip=None)[1, 1] == math.inf


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_probabilities_of_any_floating_dtype(dtype):
    p = np.array([[0.25, 1.0], [0.75, 0.0]], dtype=dtype)
    expected = -torch.tensor([[0.25, 1], [0.75, 1e-5]]).log()
    assert_close("energies", tensor(utils.unary_from_softmax(p)), expected)


def test_interpolated_probabilities_overshoot():
    p = np.array([[1.04], [-0.04]])
    assert_close("energies", tensor(utils.unary_from_softmax(p)), torch.tensor([[0.0], [-math.log(1e-5)]]))


def test_features_by_hand():
    expected = torch.tensor([[0, 0, 0, 0.5, 0.5, 0.5], [0, 0.25, 0.5, 0, 0.25, 0.5]])
    assert_close("grid", tensor(utils.create_pairwise_gaussian((2, 4), (2, 3))), expected)
    image = np.array([[[10, 4], [20, 8]]], dtype=np.uint8)  # [1, 2, 2], channels last
    expected = torch.tensor([[0, 0], [0, 0.5], [1, 2], [1, 2]])
    assert_close("image", tensor(utils.create_pairwise_bilateral((1, 2), (10, 4), image, chdim=2)), expected)
    expected = torch.tensor([[0, 0], [0, 1], [1, 2.0]])
    assert_close("gray", tensor(utils.create_pairwise_bilateral(1, 10, image[..., 0])), expected)


def test_deprecated_names():
    labels, p = np.array([0, 1, 2]), np.array([[0.25], [0.75]])
    with pytest.warns(DeprecationWarning, match="unary_from_labels"):
        energies = utils.compute_unary(labels, 2, GT_PROB=0.8)
    assert_close("labels", tensor(energies), tensor(utils.unary_from_labels(labels, 2, 0.8)))
    with pytest.warns(DeprecationWarning, match="unary_from_softmax"):
        energies = utils.softmax_to_unary(p, GT_PROB=0.5)
    assert_close("softmax", tensor(energies), tensor(utils.unary_from_softmax(p, 0.5, clip=None)))


# What a CRF is --------------------------------------------------------------------------------------------------


def features_of(sxy, srgb=None):
    """(x, y[, r, g, b]), each divided: pydensecrf's order."""
    y, x = np.mgrid[:H, :W].reshape(2, -1)
    channels = [] if srgb is None else [c / s for c, s in zip(IMAGE.reshape(-1, 3).T, srgb)]
    return np.stack([x / sxy[0], y / sxy[1], *channels]).astype(np.float32)


def test_it_is_mean_field_over_lattices():
    lattices = [
        tc.filters.Lattice(tensor(f)[None], normalization="symmetric")
        for f in (features_of((3, 2)), features_of((8, 6), (30, 40, 35)))
    ]
    expected = tc.mean_field(-tensor(ENERGIES)[None], lattices, weights=[3.0, 3.0], iterations=5)[0]
    crf = made(dcrf, utils, [gaussian, bilateral], "number", "NORMALIZE_SYMMETRIC")
    assert_close("q", tensor(crf.inference(5)), expected)


def test_the_generic_class_equals_the_image_class():
    image, points = dcrf.DenseCRF2D(W, H, C), dcrf.DenseCRF(W * H, C)
    for crf in (image, points):
        crf.setUnaryEnergy(ENERGIES)
    image.addPairwiseGaussian(sxy=(3, 2), compat=3)
    points.addPairwiseEnergy(features_of((3, 2)), compat=3)
    image.addPairwiseBilateral(sxy=(8, 6), srgb=(30, 40, 35), rgbim=IMAGE, compat=4)
    points.addPairwiseEnergy(features_of((8, 6), (30, 40, 35)), compat=4)
    assert_close("q", tensor(image.inference(5)), tensor(points.inference(5)))


@pytest.mark.parametrize("compat", COMPATS)
def test_steps_are_inference(compat):
    crf = made(dcrf, utils, [gaussian, bilateral], compat, "NORMALIZE_AFTER")
    q, tmp1, tmp2 = crf.startInference()
    assert_close("start", tensor(q), tensor(crf.inference(0)))
    kept = q
    for t in range(1, 4):
        assert crf.stepInference(q, tmp1, tmp2) is None
        assert_close(f"step {t}", tensor(kept), tensor(crf.inference(t)))


def test_a_point_cloud_in_utm_metres():
    """float64 coordinates so far from 0 that float32 cannot tell the points apart: K depends on differences."""
    cloud = np.random.default_rng(0).uniform(0, 9, (3, W * H))
    # Elevated coordinates of 4 (u_0, u_1, u_2, u_3), which add up to 0: whole periods of the lattice.
    u = np.array([-1_700_003, 2_000_001, -400_000, 100_002])
    sigma = 4 * np.sqrt(2 / 3) / np.sqrt([1 * 2, 2 * 3, 3 * 4])
    far = (
        4
        * np.array([u[0] - u[1], u[0] + u[1] - 2 * u[2], u[:3].sum() - 3 * u[3]])
        / (np.arange(1, 4) * (np.arange(1, 4) + 1))
        / sigma
    )
    outcomes = []
    for points in cloud, cloud + far[:, None]:
        crf = dcrf.DenseCRF(W * H, C)
        crf.setUnaryEnergy(ENERGIES)
        crf.addPairwiseEnergy(points, compat=4)
        outcomes.append(tensor(crf.inference(5)))
    assert_close("q", *outcomes)


def test_steps_into_a_part_of_a_larger_array():
    crf = made(dcrf, utils, [gaussian], "number", "NORMALIZE_SYMMETRIC")
    all_steps = np.empty((2, H * W, C))  # float64, and labels last
    q = all_steps[0].T
    q[...] = crf.startInference()[0]
    crf.stepInference(q, None, None)
    assert_close("step", tensor(all_steps[0].T.astype(np.float32)), tensor(crf.inference(1)))


def test_divergence_by_its_formula():
    crf = made(dcrf, utils, [gaussian, bilateral], "matrix", "NORMALIZE_SYMMETRIC")
    q = crf.inference(2)
    lattices = [
        tc.filters.Lattice(tensor(f)[None], normalization="symmetric")
        for f in (features_of((3, 2)), features_of((8, 6), (30, 40, 35)))
    ]
    cost = tensor((COMPATS["matrix"] + COMPATS["matrix"].T) / 2)
    p = tensor(q)
    expected = (p * p.log()).sum() + (p * tensor(ENERGIES)).sum()
    expected += sum((p * (cost @ lattice(p[None])[0])).sum() for lattice in lattices)
    assert_close("divergence", torch.tensor(crf.klDivergence(q)), expected)


def test_without_kernels_and_without_energies():
    crf = dcrf.DenseCRF(4, 5)
    assert_close("nothing", tensor(crf.inference(3)), torch.full((5, 4), 0.2))
    crf.addPairwiseEnergy(np.random.rand(2, 4).astype(np.float32), compat=3)
    assert_close("no energies", tensor(crf.inference(3)), torch.full((5, 4), 0.2))
    crf = dcrf.DenseCRF(4, 5)
    energies = np.random.rand(5, 4).astype(np.float32)
    crf.setUnaryEnergy(energies)
    assert_close("no kernels", tensor(crf.inference(3)), torch.softmax(-tensor(energies), 0))


def test_kernels_stay_when_energies_change():
    crf = made(dcrf, utils, [gaussian], "number", "NORMALIZE_SYMMETRIC")
    crf.setUnaryEnergy(ENERGIES[::-1])
    expected = made(dcrf, utils, [gaussian], "number", "NORMALIZE_SYMMETRIC").inference(3)[::-1]
    assert_close("q", tensor(crf.inference(3)), tensor(expected.copy()))


def test_arguments_are_copied():
    energies, features = ENERGIES.copy(), features_of((3, 2))
    crf = dcrf.DenseCRF(H * W, C)
    crf.setUnaryEnergy(energies)
    crf.addPairwiseEnergy(features, compat=3)
    before = crf.inference(2)
    energies[:], features[:] = 0, 0
    assert_close("q", tensor(crf.inference(2)), tensor(before))


@pytest.mark.parametrize("kind", ["float64", "float16", "fortran", "strided", "read-only", "big-endian"])
def test_arrays_of_any_kind(kind):
    energies, features = ENERGIES.astype(np.float16).astype(np.float32), features_of((4, 2)).copy()
    change = {
        "float64": lambda a: a.astype(np.float64),
        "float16": lambda a: a.astype(np.float16),
        "fortran": np.asfortranarray,
        "strided": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
        "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
        "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    }[kind]
    results = []
    for u, f, image in ((energies, features, IMAGE), (change(energies), change(features), IMAGE[::-1][::-1])):
        crf = dcrf.DenseCRF2D(W, H, C)
        crf.setUnaryEnergy(u)
        crf.addPairwiseEnergy(f, 3)
        crf.addPairwiseBilateral(8, 30, image, 3)
        results.append(tensor(crf.inference(3)))
    assert_close("q", *results)


@pytest.mark.parametrize(
    "compat, same",
    [
        (np.float32(3), 3),
        (np.array(3), 3),
        ([-2, -1.5, -1.75], COMPATS["vector"]),
        (COMPATS["vector"].astype(np.float64), COMPATS["vector"]),
        (np.eye(3, dtype=int), np.eye(3, dtype=np.float32)),
        (COMPATS["matrix"].tolist(), COMPATS["matrix"]),
    ],
)
def test_compat_of_any_kind(compat, same):
    results = []
    for value in (compat, same):
        crf = dcrf.DenseCRF2D(W, H, C)
        crf.setUnaryEnergy(ENERGIES)
        crf.addPairwiseGaussian(3, value)
        results.append(tensor(crf.inference(2)))
    assert_close("q", *results)


def test_an_infinite_energy_rules_a_label_out():
    energies = ENERGIES.copy()
    energies[1, ::2] = math.inf
    crf = dcrf.DenseCRF2D(W, H, C)
    crf.setUnaryEnergy(energies)
    crf.addPairwiseGaussian(3, 3)
    q = crf.inference(5)
    assert (q[1, ::2] == 0).all() and (q[1, 1::2] > 0).all()
    assert_close("sums", tensor(q.sum(0)), torch.ones(H * W))
    assert math.isfinite(crf.klDivergence(q))


def test_unary_objects():
    weights, features = np.random.rand(C, 4).astype(np.float32), np.random.rand(4, H * W).astype(np.float32)
    by_hand = dcrf.DenseCRF2D(W, H, C)
    by_hand.setUnaryEnergy(weights @ features)
    for set_energies in (
        lambda crf: crf.setUnary(dcrf.ConstUnary(weights @ features)),
        lambda crf: crf.setUnary(dcrf.LogisticUnary(weights, features)),
        lambda crf: crf.setUnaryEnergy(weights, features),
    ):
        crf = dcrf.DenseCRF2D(W, H, C)
        set_energies(crf)
        assert_close("q", tensor(crf.inference(0)), tensor(by_hand.inference(0)))


def test_constants():
    assert [int(getattr(dcrf, name)) for name in NORMALIZATIONS] == [0, 1, 2, 3]
    assert [int(k) for k in (dcrf.CONST_KERNEL, dcrf.DIAG_KERNEL, dcrf.FULL_KERNEL)] == [0, 1, 2]


def test_constants_equal_pydensecrfs(peer):
    names = [*NORMALIZATIONS, "CONST_KERNEL", "DIAG_KERNEL", "FULL_KERNEL"]
    assert [int(getattr(dcrf, n)) for n in names] == [int(getattr(peer[0], n)) for n in names]
    crf = dcrf.DenseCRF2D(W, H, C)
    crf.addPairwiseGaussian(3, 3, peer[0].FULL_KERNEL, peer[0].NORMALIZE_AFTER)


def test_a_forked_worker_takes_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    assert dcrf.DenseCRF(2, 2).startInference()[0].shape == (2, 2)


# Scripts --------------------------------------------------------------------------------------------------------

SCRIPTS = {
    "softmax": """
import numpy as np
import pydensecrf.densecrf as dcrf
from pydensecrf.utils import unary_from_softmax

h, w = image.shape[:2]
d = dcrf.DenseCRF2D(w, h, probabilities.shape[0])
U = np.ascontiguousarray(unary_from_softmax(probabilities))
d.setUnaryEnergy(U)
d.addPairwiseGaussian(sxy=(3, 3), compat=3, kernel=dcrf.DIAG_KERNEL, normalization=dcrf.NORMALIZE_SYMMETRIC)
d.addPairwiseBilateral(sxy=(20, 20), srgb=(30, 30, 30), rgbim=image, compat=3,
                       kernel=dcrf.DIAG_KERNEL, normalization=dcrf.NORMALIZE_SYMMETRIC)
Q = d.inference(5)
result = np.array(Q).reshape((-1, h, w))
labels = np.argmax(Q, axis=0).reshape((h, w))
""",
    "generic": """
import numpy as np
import pydensecrf.densecrf as dcrf
import pydensecrf.utils as utils

d = dcrf.DenseCRF(np.prod(image.shape[:2]), 3)
d.setUnaryEnergy(utils.unary_from_softmax(probabilities, scale=0.9))
feats = utils.create_pairwise_gaussian(sdims=(10, 10), shape=image.shape[:2])
d.addPairwiseEnergy(feats, compat=3, kernel=dcrf.FULL_KERNEL, normalization=dcrf.NO_NORMALIZATION)
feats = utils.create_pairwise_bilateral(sdims=(15, 15), schan=(30, 30, 30), img=image, chdim=2)
d.addPairwiseEnergy(feats, compat=0.1, kernel=dcrf.CONST_KERNEL, normalization=dcrf.NO_NORMALIZATION)
result = np.asarray(d.inference(3), np.float32).reshape(probabilities.shape)
labels = result.argmax(0)
""",
    "labels": """
import numpy as np
from pydensecrf.densecrf import DenseCRF2D
from pydensecrf.utils import unary_from_labels

d = DenseCRF2D(image.shape[1], image.shape[0], 3)
d.setUnaryEnergy(unary_from_labels(probabilities.argmax(0), 3, gt_prob=0.7, zero_unsure=False))
d.addPairwiseGaussian(3, 3)
Q = np.array(d.inference(10), dtype=np.float32)
labels = np.argmax(Q, axis=0).astype(np.uint8).reshape(image.shape[:2])
result = Q
""",
    "steps": """
import numpy as np
from pydensecrf import densecrf as dcrf, utils

d = dcrf.DenseCRF2D(image.shape[1], image.shape[0], 3)
d.setUnaryEnergy(utils.unary_from_softmax(probabilities))
d.addPairwiseBilateral(sxy=np.array([20, 10]), srgb=np.float64(25), rgbim=np.copy(image), compat=np.float32(10))
Q, tmp1, tmp2 = d.startInference()
for i in range(5):
    print("KL-divergence at {}: {}".format(i, d.klDivergence(Q) / (12 * 16)))
    d.stepInference(Q, tmp1, tmp2)
result = np.array(memoryview(Q))
labels = np.argmax(Q, axis=0)
""",
}


def translated(script):
    """The script with its imports changed, as the README says."""
    script = script.replace("from pydensecrf import densecrf as dcrf, utils", OWN_STEPS_IMPORT)
    return script.replace("pydensecrf.densecrf", "tritoncrf.densecrf").replace(
        "pydensecrf.utils", "tritoncrf.densecrf.utils"
    )


OWN_STEPS_IMPORT = "from tritoncrf import densecrf as dcrf\nfrom tritoncrf.densecrf import utils"


def execute(script):
    p = np.exp(-ENERGIES.reshape(C, H, W))
    names = {"image": IMAGE.copy(), "probabilities": p / p.sum(0)}
    exec(compile(script, "script", "exec"), names)
    return names


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_run(script):
    names = execute(translated(SCRIPTS[script]))
    assert np.isfinite(names["result"]).all() and names["labels"].size == H * W


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_give_what_they_gave(peer, script):
    ours, theirs = (execute(s)["result"] for s in (translated(SCRIPTS[script]), SCRIPTS[script]))
    assert ours.dtype == theirs.dtype
    assert_close("result", tensor(ours), tensor(theirs.copy(order="C")))


def photo_example(dcrf, utils, use_2d):
    """pydensecrf's own example: a photo with a few labelled strokes; label 0 is unknown."""
    folder = DATA / "pydensecrf_examples"
    if not folder.is_dir():
        pytest.skip("no shared data beside this checkout")
    image = np.array(Image.open(folder / "im1.png").convert("RGB"))
    strokes, out = (
        np.array(Image.open(folder / f"{name}1.png").convert("RGB"), dtype=np.uint32) for name in ("anno", "out")
    )
    codes, published = ((a * np.array([1 << 16, 1 << 8, 1], np.uint32)).sum(2) for a in (strokes, out))
    colors, labels = np.unique(codes, return_inverse=True)
    assert colors[0] == 0
    count = len(colors) - 1
    height, width = image.shape[:2]
    energies = utils.unary_from_labels(labels, count, gt_prob=0.7, zero_unsure=True)
    if use_2d:
        crf = dcrf.DenseCRF2D(width, height, count)
        crf.addPairwiseGaussian(sxy=(3, 3), compat=3)
        crf.addPairwiseBilateral(sxy=(80, 80), srgb=(13, 13, 13), rgbim=image, compat=10)
    else:
        crf = dcrf.DenseCRF(width * height, count)
        crf.addPairwiseEnergy(utils.create_pairwise_gaussian((3, 3), image.shape[:2]), compat=3)
        crf.addPairwiseEnergy(utils.create_pairwise_bilateral((80, 80), (13, 13, 13), image, chdim=2), compat=10)
    crf.setUnaryEnergy(energies)
    q = np.array(crf.inference(5))
    return q, colors[1:][q.argmax(0)].reshape(height, width), published


@pytest.mark.parametrize("use_2d", [True, False])
def test_the_published_example(use_2d):
    _, labels, published = photo_example(dcrf, utils, use_2d)
    assert (labels != published).mean() < 1e-3  # the generic form made it; the other has its features in another order


@pytest.mark.parametrize("use_2d", [True, False])
def test_parity_on_the_published_example(peer, use_2d):
    (ours, *_), (theirs, *_) = photo_example(dcrf, utils, use_2d), photo_example(*peer, use_2d)
    assert_close("marginals", tensor(ours), tensor(theirs.copy(order="C")))


# Errors ---------------------------------------------------------------------------------------------------------

U = np.random.default_rng(3).random((C, H * W)).astype(np.float32) + 1
F = np.random.default_rng(4).random((5, H * W)).astype(np.float32)


def crf2d():
    return dcrf.DenseCRF2D(W, H, C)


def bilateral_of(image):
    return lambda: crf2d().addPairwiseBilateral(sxy=80, srgb=13, rgbim=image, compat=10)


def marginals(q):
    return lambda: crf2d().klDivergence(q)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: dcrf.DenseCRF(0, 2), ValueError, "nvar: expected an int from 1 to 2147483647, got 0"),
        (lambda: dcrf.DenseCRF(4.5, 2), TypeError, "nvar: "),
        (lambda: dcrf.DenseCRF2D(4, 3, "2"), TypeError, "nlabels: "),
        (lambda: dcrf.DenseCRF2D(4, -3, 2), ValueError, "h: "),
        (lambda: crf2d().setUnaryEnergy(U.T), ValueError, r"u: expected .*\(3, 192\), got \(192, 3\); pass u.T$"),
        (lambda: crf2d().setUnaryEnergy(U.reshape(C, H, W)), ValueError, r"u: .*; pass u.reshape\(3, -1\)$"),
        (lambda: crf2d().setUnaryEnergy(U.T.reshape(H, W, C)), ValueError, r"u: .*; pass np.moveaxis\(u, -1, 0\)"),
        (lambda: crf2d().setUnaryEnergy(U[:, :-1]), ValueError, r"u: .*got \(3, 191\)$"),
        (lambda: crf2d().setUnaryEnergy(U[0]), ValueError, r"u: .*got \(192,\)$"),
        (lambda: crf2d().setUnaryEnergy(np.array(1.0)), ValueError, r"u: .*got \(\)$"),
        (lambda: crf2d().setUnaryEnergy(U.astype(int)), TypeError, "u: expected floating energies .*unary_from_labels"),
        (lambda: crf2d().setUnaryEnergy(U.tolist()), TypeError, "u: .*got a list; np.asarray"),
        (lambda: crf2d().setUnaryEnergy(tensor(U)), TypeError, r"u: .*got a Tensor; x.detach\(\).cpu\(\).numpy\(\)"),
        (lambda: crf2d().setUnaryEnergy(U * math.nan), ValueError, "u: .*NaN"),
        (lambda: crf2d().setUnaryEnergy(-U / 0.0), ValueError, "u: .*-inf; for logits pass -logits"),
        (lambda: crf2d().setUnaryEnergy(U * math.inf), ValueError, "u: expected a finite energy in every column"),
        (lambda: crf2d().setUnaryEnergy(U, F), ValueError, "f: expected 192 rows"),
        (lambda: crf2d().setUnary(U), TypeError, "u: expected a ConstUnary"),
        (lambda: crf2d().setUnary(dcrf.ConstUnary(U.T)), ValueError, "u: .*; pass u.T"),
        (lambda: crf2d().addPairwiseEnergy(F.T, 3), ValueError, r"features: expected shape \(D, 192\).*; pass features.T"),
        (lambda: crf2d().addPairwiseEnergy(F[:, 1:], 3), ValueError, r"features: .*got \(5, 191\)$"),
        (lambda: crf2d().addPairwiseEnergy(F[:0], 3), ValueError, "features: "),
        (lambda: crf2d().addPairwiseEnergy(F.reshape(5, H, W), 3), ValueError, "features: "),
        (lambda: crf2d().addPairwiseEnergy(F.astype(int), 3), TypeError, "features: expected floating"),
        (lambda: crf2d().addPairwiseEnergy(F * math.inf, 3), ValueError, "features: expected finite"),
        (lambda: crf2d().addPairwiseEnergy(F, "3"), TypeError, "compat: "),
        (lambda: crf2d().addPairwiseEnergy(F, None), TypeError, "compat: "),
        (lambda: crf2d().addPairwiseEnergy(F, math.nan), ValueError, "compat: "),
        (lambda: crf2d().addPairwiseEnergy(F, [1, math.inf, 1]), ValueError, "compat: expected finite"),
        (lambda: crf2d().addPairwiseEnergy(F, ["a", "b", "c"]), TypeError, "compat: "),
        (lambda: crf2d().addPairwiseEnergy(F, np.ones(4)), ValueError, r"compat: .*\(3,\) or \(3, 3\), got shape \(4,\)"),
        (lambda: crf2d().addPairwiseEnergy(F, np.ones((2, 2))), ValueError, "compat: "),
        (lambda: crf2d().addPairwiseEnergy(F, 3, 3), ValueError, "kernel: expected one of CONST_KERNEL, DIAG"),
        (lambda: crf2d().addPairwiseEnergy(F, 3, dcrf.NORMALIZE_BEFORE), ValueError, "kernel: .*NORMALIZE_BEFORE"),
        (lambda: crf2d().addPairwiseEnergy(F, 3, normalization=4), ValueError, "normalization: expected one of NO_NORM"),
        (lambda: crf2d().addPairwiseEnergy(F, 3, normalization="symmetric"), ValueError, "normalization: "),
        (lambda: crf2d().addPairwiseGaussian(0, 3), ValueError, "sxy: "),
        (lambda: crf2d().addPairwiseGaussian((3, 3, 3), 3), ValueError, "sxy: "),
        (lambda: crf2d().addPairwiseGaussian("3", 3), TypeError, "sxy: "),
        (lambda: crf2d().addPairwiseBilateral(80, (13, 13), IMAGE, 3), ValueError, "srgb: "),
        (bilateral_of(IMAGE.transpose(1, 0, 2)), ValueError, "rgbim: .*; DenseCRF2D takes the width first"),
        (bilateral_of(IMAGE.transpose(2, 0, 1)), ValueError, r"rgbim: .*; pass rgbim.transpose\(1, 2, 0\)"),
        (bilateral_of(IMAGE[..., 0]), ValueError, "rgbim: .*create_pairwise_bilateral"),
        (bilateral_of(IMAGE[..., :1]), ValueError, "rgbim: .*create_pairwise_bilateral"),
        (bilateral_of(IMAGE[1:]), ValueError, r"rgbim: expected .*\(12, 16, 3\), got \(11, 16, 3\)$"),
        (bilateral_of(IMAGE / 255), TypeError, r"rgbim: .*got dtype float64; pass .*\(rgbim \* 255\).astype"),
        (bilateral_of(IMAGE.astype(int)), TypeError, r"rgbim: .*; pass rgbim.astype\(np.uint8\) if it is 0..255$"),
        (bilateral_of(Image.fromarray(IMAGE)), TypeError, "rgbim: .*; np.asarray"),
        (lambda: crf2d().inference(-1), ValueError, "niter: "),
        (lambda: crf2d().inference(2.5), TypeError, "niter: "),
        (lambda: crf2d().stepInference(U[:, 1:], None, None), ValueError, r"Q: expected shape \(3, 192\)"),
        (marginals(U.reshape(C, H, W)), ValueError, "Q: "),
        (marginals(U.tolist()), TypeError, "Q: "),
    ],
)  # fmt: skip
def test_errors(call, error, message):
    with pytest.raises(error, match=f"^{message}"), np.errstate(divide="ignore"):
        call()


P = np.full((2, 3, 4), 0.5)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: utils.unary_from_labels(np.array([0, 3]), 2, 0.5), ValueError, "labels: expected 0 to 2 .*got 0 to 3"),
        (lambda: utils.unary_from_labels(np.array([2]), 2, 0.5, False), ValueError, "labels: expected 0 to 1"),
        (lambda: utils.unary_from_labels(np.array([-1]), 2, 0.5), ValueError, "labels: "),
        (lambda: utils.unary_from_labels(np.array([0.5]), 2, 0.5), TypeError, "labels: expected .*integers"),
        (lambda: utils.unary_from_labels([0, 1], 2, 0.5), TypeError, "labels: .*; np.asarray"),
        (lambda: utils.unary_from_labels(np.array([0]), 1, 0.5), ValueError, "n_labels: "),
        (lambda: utils.unary_from_labels(np.array([0]), 2, 1.0), ValueError, "gt_prob: "),
        (lambda: utils.unary_from_softmax(P * 20 - 5), ValueError, "sm: expected probabilities .*got 5 to 5; scores need"),
        (lambda: utils.unary_from_softmax(P * math.nan), ValueError, "sm: .*nan"),
        (lambda: utils.unary_from_softmax(P - 0.6, clip=None), ValueError, "sm: "),
        (lambda: utils.unary_from_softmax(np.moveaxis(P, 0, -1)), ValueError, "sm: expected classes on the first axis"),
        (lambda: utils.unary_from_softmax((P * 2).astype(int)), TypeError, "sm: "),
        (lambda: utils.unary_from_softmax(P, scale=0), ValueError, "scale: "),
        (lambda: utils.unary_from_softmax(P, scale=1.5), ValueError, "scale: "),
        (lambda: utils.unary_from_softmax(P, clip=0), ValueError, "clip: "),
        (lambda: utils.create_pairwise_gaussian((1, 2, 3), (4, 5)), ValueError, r"sdims: .*one per axis \(2\), got 3"),
        (lambda: utils.create_pairwise_gaussian((1, 0), (4, 5)), ValueError, "sdims: "),
        (lambda: utils.create_pairwise_gaussian((1, 1), (4, 0)), ValueError, "shape: "),
        (lambda: utils.create_pairwise_bilateral((1, 1), (13,), IMAGE, 2), ValueError, r"schan: .*per channel \(3\), got 1"),
        (lambda: utils.create_pairwise_bilateral((1, 1), 13, IMAGE), ValueError, "sdims: .*chdim=-1 says that img has no"),
        (lambda: utils.create_pairwise_bilateral((1, 1), 13, IMAGE, 3), ValueError, "chdim: "),
        (lambda: utils.create_pairwise_bilateral((1, 1), 13, IMAGE[:0], 2), ValueError, "img: "),
        (lambda: utils.create_pairwise_bilateral((1, 1), 13, IMAGE.tolist(), 2), TypeError, "img: "),
    ],
)  # fmt: skip
def test_errors_of_utils(call, error, message):
    with pytest.raises(error, match=f"^{message}"):
        call()


def test_probabilities_given_as_energies():
    p = torch.softmax(tensor(-ENERGIES), 0).numpy()
    with pytest.warns(UserWarning, match="^u: the values of every pixel sum to 1"):
        crf2d().setUnaryEnergy(p)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        crf2d().setUnaryEnergy(np.full_like(p, 1 / C))  # equal energies are legal
        crf2d().setUnaryEnergy(-np.log(p))


def test_the_fixture_is_small():
    assert (Path(__file__).parent / "data_densecrf.npz").stat().st_size < 40_000
    assert set(ANSWERS) == {"image", "energies", "divergences", *CASES, *(f"small-{h}-{w}" for h, w in SMALL)}
    assert IMAGE.shape == (H, W, 3) and ENERGIES.shape == (C, H * W)


def test_bandwidths_so_small_that_the_lattice_ends_are_named():
    d = dcrf.DenseCRF2D(300, 200, 2)
    with pytest.raises(ValueError, match="^sxy: expected lattice coordinates of at most"):
        d.addPairwiseGaussian(sxy=1e-3, compat=3)
    with pytest.raises(ValueError, match="^sxy, srgb: expected lattice coordinates of at most"):
        d.addPairwiseBilateral(sxy=1e-3, srgb=13, rgbim=np.zeros((200, 300, 3), np.uint8), compat=3)
