"""FCN8s: the published sizes, offsets and numbers of parameters, its upsampling, skips and checkpointing."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from assertions import assert_close
from tritoncrf.models.blocks import bilinear_
from tritoncrf.models.fcn8s import OFFSETS, FCN8s, FCN8sCRFRNN

C = 3
TINY = {"num_classes": C, "width": 1 / 64, "score_init": "msra"}
# Spatial size behind the poolings, fc7 and the three upsamplings: of 500 as the paper's network has it, of the others
# worked out by hand: poolings round (n + 198) / 2 up, fc7 takes 6 off, the upsamplings give 2 n + 2, 2 n + 2, 8 n + 8.
SIZES = {
    500: ((349, 175, 88, 44, 22), 16, (34, 70, 568)),
    375: ((287, 144, 72, 36, 18), 12, (26, 54, 440)),
    64: ((131, 66, 33, 17, 9), 3, (8, 18, 152)),
}
# torchvision's places of VGG-16's convolutions.
CONVS = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]


def on_meta(network=FCN8s, **options):
    with torch.device("meta"):
        return network(**options)


def picture(batch=1, size=(20, 25)):
    return torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8)


def test_parameters_are_those_published():
    network = on_meta()
    assert sum(p.numel() for p in network.parameters()) == 134_489_780
    full = on_meta(FCN8sCRFRNN, crf={"kernel_weights": "full"})
    assert sum(p.numel() for p in full.parameters()) == 134_489_780 + 3 * 441
    vgg = {f"features.{n}.{kind}" for n in CONVS for kind in ("weight", "bias")}
    vgg |= {f"classifier.{n}.{kind}" for n in (0, 3) for kind in ("weight", "bias")}
    scores = {f"score_{x}.{kind}" for x in ("fr", "pool4", "pool3") for kind in ("weight", "bias")}
    deconvs = {"upscore2.weight", "upscore2.bias", "upscore_pool4.weight", "upscore8.weight"}
    assert set(network.state_dict()) == vgg | scores | deconvs
    assert network.classifier[0].weight.shape == (4096, 512, 7, 7)
    assert network.upscore8.weight.shape == (21, 21, 16, 16)


@pytest.mark.parametrize("size", SIZES)
def test_sizes_at_every_stage(size):
    pools, hidden, upsampled = SIZES[size]
    network, found = on_meta(width=1 / 16), {}
    parts = {f"pool{n}": network.features[end] for n, end in enumerate((4, 9, 16, 23, 30), 1)}
    parts |= {
        "fc7": network.classifier[-1],
        **{n: getattr(network, n) for n in ("upscore2", "upscore_pool4", "upscore8")},
    }
    for name, part in parts.items():
        part.register_forward_hook(lambda m, i, out, name=name: found.__setitem__(name, list(out.shape[2:])))
    assert network(torch.empty(1, 3, size, size, device="meta")).shape == (1, 21, size, size)
    names = ["pool1", "pool2", "pool3", "pool4", "pool5", "fc7", "upscore2", "upscore_pool4", "upscore8"]
    assert found == {name: [n, n] for name, n in zip(names, (*pools, hidden, *upsampled))}


def test_images_of_any_size():
    network = on_meta(num_classes=C, width=1 / 64)
    for size in range(1, 72):
        assert network(torch.empty(1, 3, size, 72 - size, device="meta")).shape == (1, C, size, 72 - size)


def test_offsets_follow_from_where_the_pixels_of_every_map_are():
    # A map's pixel i lies at the image's pixel step * i + start. The padding by 100 starts at -99; poolings double the
    # step and go to the middle of their pixels; fc6 moves by 3 of its pixels; deconvolutions go back by (k - 1) / 2.
    maps, step, start = {}, 1.0, -99.0
    for pool in range(1, 6):
        start, step = start + step / 2, 2 * step
        maps[pool] = step, start
    start, found = start + 3 * step, []
    for kernel, stride, (fine_step, fine_start) in ((4, 2, maps[4]), (4, 2, maps[3]), (16, 8, (1.0, 0.0))):
        step /= stride
        start -= step * (kernel - 1) / 2
        assert step == fine_step
        found.append((start - fine_start) / fine_step)
    assert tuple(found[:2]) == OFFSETS[:2] and -found[2] == OFFSETS[2]


@pytest.mark.parametrize("kernel, stride, padding, groups", [(4, 2, 0, 1), (16, 8, 0, 1), (4, 2, 1, C), (8, 4, 2, C)])
def test_upsampling_starts_as_interpolation_of_every_class_by_itself(kernel, stride, padding, groups):
    deconv = bilinear_(nn.ConvTranspose2d(C, C, kernel, stride=stride, padding=padding, groups=groups)).double()
    x = torch.randn(2, C, 7, 6, dtype=torch.float64)
    expected = F.interpolate(x, scale_factor=stride, mode="bilinear", align_corners=False)
    begin = (kernel - stride) // 2 - padding
    found = deconv(x)[:, :, begin : begin + expected.shape[2], begin : begin + expected.shape[3]]
    inside = (..., slice(stride, -stride), slice(stride, -stride))
    assert_close("interior", found[inside], expected[inside])
    assert (found - expected).abs()[..., 0, :].max() > 0.01  # beyond the border it sees zeros


def test_scores_start_at_zero_or_with_the_variance_of_their_fan_in():
    with torch.no_grad():
        assert not FCN8s(C, width=1 / 64)(picture()).any()
    weight = FCN8s(21, width=0.25, score_init="msra").score_fr.weight
    assert weight.std().item() == pytest.approx((2 / weight.shape[1]) ** 0.5, rel=0.05)


@pytest.mark.parametrize("skips, scales", [("staged", (1, 1)), ("at_once", (0.01, 1e-4))])
def test_scores_by_hand(skips, scales):
    network = FCN8s(**TINY, skips=skips).double().eval()
    for parameter in network.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    image, own = picture(size=(33, 20)), network.state_dict()
    x, pools = F.pad(network.normalized(image), [99] * 4), {}  # the first convolution pads by one more, as all others
    for n in range(31):
        if n in CONVS:
            x = F.conv2d(x, own[f"features.{n}.weight"], own[f"features.{n}.bias"], padding=1).relu()
        elif n in (4, 9, 16, 23, 30):
            x = pools[n] = F.max_pool2d(x, 2, ceil_mode=True)
    for n in (0, 3):
        x = F.conv2d(x, own[f"classifier.{n}.weight"], own[f"classifier.{n}.bias"]).relu()
    x = F.conv2d(x, own["score_fr.weight"], own["score_fr.bias"])
    x = F.conv_transpose2d(x, own["upscore2.weight"], own["upscore2.bias"], stride=2)
    for name, pool, scale, offset, up in ("score_pool4", 23, scales[0], 5, 2), ("score_pool3", 16, scales[1], 9, 8):
        skip = F.conv2d(scale * pools[pool], own[f"{name}.weight"], own[f"{name}.bias"])
        x = x + skip[:, :, offset:, offset:][:, :, : x.shape[2], : x.shape[3]]
        x = F.conv_transpose2d(x, own["upscore_pool4.weight" if up == 2 else "upscore8.weight"], stride=up)
    with torch.no_grad():
        assert_close("scores", network(image), x[:, :, 31:64, 31:51])


def test_the_last_upsampling_never_learns():
    network = FCN8s(**TINY)
    assert FCN8s.frozen == ("upscore8.weight",)
    assert [name for name, p in network.named_parameters() if not p.requires_grad] == ["upscore8.weight"]


def test_dropout_only_in_training():
    network, image = FCN8s(**TINY, dropout=0.9), picture()
    with torch.no_grad():
        assert not torch.equal(network(image), network(image))
        assert torch.equal(network.eval()(image), network(image))


def test_checkpointing_changes_neither_outputs_nor_gradients():
    plain, thrifty = FCN8s(**TINY), FCN8s(**TINY, checkpointing=True)
    thrifty.load_state_dict(plain.state_dict())
    image, results = picture(), []
    for network in (plain, thrifty):
        torch.manual_seed(1)  # of the dropout
        scores = network(image)
        scores.square().mean().backward()
        results.append({n: p.grad for n, p in network.named_parameters() if p.requires_grad} | {"scores": scores})
    for name, expected in results[0].items():
        assert_close(name, results[1][name], expected)


def test_defaults_of_the_pipeline_are_the_papers():
    crf = FCN8sCRFRNN(C, network={"width": 1 / 64}).crf
    assert crf.fixed_thetas == {"theta_smooth": 3.0, "theta_space": 160.0, "theta_color": 3.0}
    assert (crf.iterations, crf.test_iterations) == (5, 10)
    assert crf.weight_smooth.tolist() == [3.0] * C and crf.weight_appearance.tolist() == [5.0] * C


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"skips": "both"}, ValueError, "skips: expected one of 'staged', 'at_once', got 'both'"),
        ({"score_init": "xavier"}, ValueError, "score_init: expected one of 'zero', 'msra', got 'xavier'"),
        ({"width": -1}, ValueError, "width: expected a finite number above 0, got -1"),
        ({"checkpointing": "yes"}, TypeError, "checkpointing: expected True or False"),
        ({"dropout": "half"}, TypeError, "dropout: expected a finite number"),
    ],
)
def test_bad_options_are_one_clear_error(options, error, message):
    with pytest.raises(error, match=message):
        FCN8s(C, **options)
