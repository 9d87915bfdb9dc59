"""Evaluation: several scales and mirrored images, fused; validation over a split."""

import pytest
import torch
from torch import nn

import tritoncrf as tc
from assertions import assert_close
from tritoncrf.models import data, evaluation
from tritoncrf.models.distributed import World
from tritoncrf.models.segmenter import Segmenter, WithCRF

C = 3


class Colors(Segmenter):
    """Logits are the colours themselves: known at every scale."""

    def scores(self, image):
        return image.float() * 4


class Doubled(nn.Module):
    num_classes = C

    def forward(self, logits, image):
        return 2 * logits


@pytest.fixture
def model():
    return WithCRF(Colors(C), Doubled()).eval()


@pytest.fixture
def image():
    return torch.rand(2, 3, 12, 17)


def test_one_scale_is_the_softmax_of_what_the_network_gives(model, image):
    found = evaluation.scores(model, image)
    assert set(found) == {"unary", "refined"}
    assert_close("unary", found["unary"], (4 * image).softmax(1))
    assert_close("refined", found["refined"], (8 * image).softmax(1))


def test_a_network_without_a_crf_gives_one_labelling(image):
    assert set(evaluation.scores(Colors(C).eval(), image)) == {"refined"}


def test_bytes_are_seen_as_floats_at_every_scale(model):
    image = torch.randint(0, 256, (1, 3, 12, 16), dtype=torch.uint8)
    for scales in ((1.0,), (0.5, 1.0)):
        found = evaluation.scores(model, image, scales)
        expected = evaluation.scores(model, image.float() / 255, scales)
        assert_close("refined", found["refined"], expected["refined"])


def test_a_mirrored_view_is_mirrored_back(image):
    class Position(Colors):
        def scores(self, image):
            column = torch.linspace(0, 1, image.shape[3]).expand(image.shape[0], 1, *image.shape[2:])
            return torch.cat([image[:, :2].float(), column], 1)

    found = evaluation.scores(Position(C).eval(), image, flip=True)["refined"]
    network = Position(C).eval()
    expected = (network(image).softmax(1) + network(image.flip(3)).flip(3).softmax(1)) / 2
    assert_close("mean", found, expected)


def test_scales_are_fused_as_said(model, image):
    seen = {}
    for scale in (0.5, 1.0, 2.0):
        seen[scale] = evaluation.scores(model, image, (scale,))["unary"]
        assert seen[scale].shape == image.shape
    found = evaluation.scores(model, image, tuple(seen))["unary"]
    assert_close("mean", found, sum(seen.values()) / 3)
    assert (seen[0.5] - seen[1.0]).abs().max() > 1e-3
    fused = evaluation.scores(model, image, (1.0, 1.0), fuse="max_mean")["unary"]
    assert_close("max_mean of equals", fused, 4 * image)
    logits = torch.stack([evaluation.scores(model, image, (s,), fuse="max_mean")["unary"] for s in (0.5, 2.0)])
    fused = evaluation.scores(model, image, (0.5, 2.0), fuse="max_mean")["unary"]
    assert_close("max_mean", fused, (logits.amax(0) + logits.mean(0)) / 2)
    with pytest.raises(ValueError, match="fuse: expected one of 'mean', 'max_mean', got 'max'"):
        evaluation.scores(model, image, fuse="max")


class Reversed(Colors):
    """Other logits of the same classes."""

    def scores(self, image):
        return 2 * image.float().flip(1)


def test_several_networks_are_fused_as_several_scales_are(model, image):
    other = Reversed(C).eval()
    scales = (1.0, 0.5)
    for fuse in evaluation.FUSIONS:
        alone = evaluation.scores([model], image, scales, fuse=fuse)
        for name, maps in evaluation.scores(model, image, scales, fuse=fuse).items():
            assert torch.equal(maps, alone[name])
        found = evaluation.scores([model, other], image, fuse=fuse)
        assert set(found) == {"unary", "refined"}
        for name, factor in (("unary", 4), ("refined", 8)):
            maps = torch.stack([factor * image, 2 * image.flip(1)])
            maps = maps.softmax(2).mean(0) if fuse == "mean" else (maps.amax(0) + maps.mean(0)) / 2
            assert_close(name, found[name], maps)
    assert set(evaluation.scores([other, other], image)) == {"refined"}


@pytest.mark.parametrize("fuse", evaluation.FUSIONS)
def test_a_disconnected_crf_refines_what_the_views_are_fused_to(model, image, fuse):
    crf = tc.CRFRNN(C, theta_space=5.0, weight_appearance=2.0, test_iterations=3).eval()
    networks, scales = [model, Reversed(C).eval()], (1.0, 0.5)
    found = evaluation.scores(networks, image, scales, fuse=fuse, crf=crf)
    fused = found["unary"].log() if fuse == "mean" else found["unary"]
    assert torch.equal(found["unary"], evaluation.scores(networks, image, scales, fuse=fuse)["unary"])
    with torch.no_grad():
        assert_close("several", found["refined"], crf(fused, image, output="probabilities"))
        single = evaluation.scores(model, image, fuse=fuse, crf=crf)["refined"]
        assert_close("its own CRF is left out", single, crf(4 * image, image, output="probabilities"))


def test_a_disconnected_crf_takes_scores_beyond_what_probabilities_hold(image):
    class Sure(Colors):
        def scores(self, image):
            return 1000 * image.float()

    crf = tc.CRFRNN(C, test_iterations=1).eval()
    found = evaluation.scores(Sure(C).eval(), image, crf=crf)["refined"]
    with torch.no_grad():
        assert_close("refined", found, crf(1000 * image, image, output="probabilities"))


def test_validation_counts_every_known_pixel_once(model, shapes):
    images = data.Images(data.folder(shapes, "train"))
    found, singles = [], []
    for batch in (1, 4):
        batches = data.loader(images, data.Batches(len(images), batch, shuffle=False))
        found.append(evaluation.validate(model, batches, C, World(torch.device("cpu"))))
    for item in images:
        logits = 8 * item["image"][None].float()
        known = item["labels"] != 255
        losses = torch.nn.functional.cross_entropy(logits, item["labels"][None], ignore_index=255, reduction="none")
        singles.append((losses.sum().double(), known.sum(), ((logits.argmax(1)[0] == item["labels"]) & known).sum()))
    loss, pixels, right = (torch.stack(x).sum() for x in zip(*singles))
    for result in found:
        assert result.loss == pytest.approx((loss / pixels).item(), rel=1e-5)
        assert result.refined.pixel_accuracy == pytest.approx((right / pixels).item())
        assert result.refined == result.unary  # twice the logits have the same largest


def test_evaluation_adds_borders_to_what_validation_gives(model, shapes):
    images = data.Images(data.folder(shapes, "val"))
    batches = data.loader(images, data.Batches(len(images), 1, shuffle=False))
    found = evaluation.evaluate(model, batches, C, torch.device("cpu"))
    plain = evaluation.validate(model, batches, C, World(torch.device("cpu")))
    result = found["refined"].result()
    assert result.miou == plain.refined.miou
    assert set(result.boundary_iou) == set(range(1, 11))
    assert found["refined"].confusion.sum() == sum((item["labels"] != 255).sum() for item in images)
