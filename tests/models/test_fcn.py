"""FCN32s, FCN16s, FCN8s: published sizes, offsets and numbers of parameters, upsampling, stages and checkpointing."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from assertions import assert_close
from tritoncrf.models.blocks import bilinear_
from tritoncrf.models.fcn import FCN8s, FCN8sCRFRNN, FCN16s, FCN32s
from tritoncrf.models.segmenter import PIXELS

C = 3
TINY = {"num_classes": C, "width": 1 / 64, "score_init": "msra"}
FCNS = [FCN32s, FCN16s, FCN8s]
# Spatial size behind the poolings, fc7 and the upsamplings of each network: of 500 as the paper's network has it, of the
# others worked out by hand: poolings round (n + 198) / 2 up, fc7 takes 6 off, an upsampling by f gives f n + f.
SIZES = {
    500: ((349, 175, 88, 44, 22), 16, ((544,), (34, 560), (34, 70, 568))),
    375: ((287, 144, 72, 36, 18), 12, ((416,), (26, 432), (26, 54, 440))),
    64: ((131, 66, 33, 17, 9), 3, ((128,), (8, 144), (8, 18, 152))),
}
UPSAMPLINGS = {
    FCN32s: ("upscore",), FCN16s: ("upscore2", "upscore16"), FCN8s: ("upscore2", "upscore_pool4", "upscore8"),
}  # fmt: skip
# (outputs, inputs, side, bias) of the layers that the prototxts of FCN's release add to VGG-16, at 21 classes; and that
# the first upsampling of two has a bias, which only CRF-RNN's release gives it.
ADDED = {
    FCN32s: [(21, 4096, 1, True), (21, 21, 64, False)],
    FCN16s: [(21, 4096, 1, True), (21, 21, 4, True), (21, 512, 1, True), (21, 21, 32, False)],
    FCN8s: [
        (21, 4096, 1, True), (21, 21, 4, True), (21, 512, 1, True), (21, 21, 4, False), (21, 256, 1, True),
        (21, 21, 16, False),
    ],
}  # fmt: skip
VGG = [(64, 3), (64, 64), (128, 64), (128, 128), (256, 128), (256, 256), (256, 256), (512, 256), *[(512, 512)] * 5]
VGG = [(outputs, inputs, 3, True) for outputs, inputs in VGG] + [(4096, 512, 7, True), (4096, 4096, 1, True)]
# torchvision's places of VGG-16's convolutions.
CONVS = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]


def on_meta(network=FCN8s, **options):
    with torch.device("meta"):
        return network(**options)


def picture(batch=1, size=(20, 25)):
    return torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8)


@pytest.mark.parametrize("kind, number", [(FCN32s, 136_152_917), (FCN16s, 134_816_015), (FCN8s, 134_489_780)])
def test_numbers_of_parameters(kind, number):
    layers = VGG + ADDED[kind]
    assert sum(outputs * inputs * side**2 + outputs * bias for outputs, inputs, side, bias in layers) == number
    assert sum(p.numel() for p in on_meta(kind).parameters()) == number
    assert f"{number:,} parameters" in kind.__doc__


def test_parameters_are_those_published():
    network = on_meta()
    full = on_meta(FCN8sCRFRNN, crf={"kernel_weights": "full"})
    assert sum(p.numel() for p in full.parameters()) == 134_489_780 + 3 * 441
    vgg = {f"features.{n}.{kind}" for n in CONVS for kind in ("weight", "bias")}
    vgg |= {f"classifier.{n}.{kind}" for n in (0, 3) for kind in ("weight", "bias")}
    scores = {f"score_{x}.{kind}" for x in ("fr", "pool4", "pool3") for kind in ("weight", "bias")}
    deconvs = {"upscore2.weight", "upscore2.bias", "upscore_pool4.weight", "upscore8.weight"}
    assert set(network.state_dict()) == vgg | scores | deconvs
    assert network.classifier[0].weight.shape == (4096, 512, 7, 7)
    assert network.upscore8.weight.shape == (21, 21, 16, 16)


@pytest.mark.parametrize("kind", FCNS)
@pytest.mark.parametrize("size", SIZES)
def test_sizes_at_every_stage(size, kind):
    pools, hidden, upsampled = SIZES[size]
    network, found = on_meta(kind, width=1 / 16), {}
    parts = {f"pool{n}": network.features[end] for n, end in enumerate((4, 9, 16, 23, 30), 1)}
    parts |= {"fc7": network.classifier[-1], **{n: getattr(network, n) for n in UPSAMPLINGS[kind]}}
    for name, part in parts.items():
        part.register_forward_hook(lambda m, i, out, name=name: found.__setitem__(name, list(out.shape[2:])))
    assert network(torch.empty(1, 3, size, size, device="meta")).shape == (1, 21, size, size)
    names = ["pool1", "pool2", "pool3", "pool4", "pool5", "fc7", *UPSAMPLINGS[kind]]
    sizes = (*pools, hidden, *upsampled[FCNS.index(kind)])
    assert found == {name: [n, n] for name, n in zip(names, sizes, strict=True)}


@pytest.mark.parametrize("kind", FCNS)
def test_images_of_any_size(kind):
    network = on_meta(kind, num_classes=C, width=1 / 64)
    for size in range(1, 72):
        assert network(torch.empty(1, 3, size, 72 - size, device="meta")).shape == (1, C, size, 72 - size)


@pytest.mark.parametrize("kind, offsets", [(FCN32s, [19]), (FCN16s, [5, 27]), (FCN8s, [5, 9, 31])])
def test_offsets_follow_from_where_the_pixels_of_every_map_are(kind, offsets):
    # A map's pixel i lies at the image's pixel step * i + start. The padding by 100 starts at -99; poolings double the
    # step and go to the middle of their pixels; fc6 moves by 3 of its pixels; deconvolutions go back by (k - 1) / 2.
    maps, step, start = {}, 1.0, -99.0
    for pool in range(1, 6):
        start, step = start + step / 2, 2 * step
        maps[pool] = step, start
    start, found, last = start + 3 * step, [], 32 >> len(kind.streams)
    finer = [(4, 2, maps[stream.pool]) for stream in kind.streams]
    for kernel, stride, (fine_step, fine_start) in (*finer, (2 * last, last, (1.0, 0.0))):
        step /= stride
        start -= step * (kernel - 1) / 2
        assert step == fine_step
        found.append((start - fine_start) / fine_step)
    # Of the last it is the image that begins within.
    assert [*found[:-1], -found[-1]] == offsets == [*(s.offset for s in kind.streams), kind.last.offset]


def test_all_strides_put_scores_where_they_belong():
    """Where the coarsest scores are linear in the position, every network interpolates them to the same map."""
    image, found = picture(size=(150, 170)), []
    for kind in FCNS:
        network = kind(C, width=1 / 64).double().eval()
        network.score_fr.register_forward_hook(lambda m, x, out: ramp(out))
        with torch.no_grad():
            found.append(network(image)[..., 48:-48, 48:-48])
    assert found[0].std() > 0.1
    for kind, scores in zip(FCNS[1:], found[1:]):
        assert_close(kind.__name__, scores, found[0])


def ramp(x):
    down, across = (torch.arange(n, dtype=x.dtype) for n in x.shape[2:])
    return (down[:, None] + 2 * across).expand(x.shape)


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


@pytest.mark.parametrize(
    "kind, skips, scales, stride, begin",
    [
        (FCN32s, "staged", (), 32, 19),
        (FCN16s, "staged", (1,), 16, 27),
        (FCN16s, "at_once", (0.01,), 16, 27),
        (FCN8s, "staged", (1, 1), 8, 31),
        (FCN8s, "at_once", (0.01, 1e-4), 8, 31),
    ],
)
def test_scores_by_hand(kind, skips, scales, stride, begin):
    options = TINY if kind is FCN32s else TINY | {"skips": skips}
    network = kind(**options).double().eval()
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
    ups = UPSAMPLINGS[kind][:-1]
    for up, (name, pool, offset), scale in zip(ups, [("score_pool4", 23, 5), ("score_pool3", 16, 9)], scales):
        x = F.conv_transpose2d(x, own[f"{up}.weight"], own.get(f"{up}.bias"), stride=2)
        skip = F.conv2d(scale * pools[pool], own[f"{name}.weight"], own[f"{name}.bias"])
        x = x + skip[:, :, offset:, offset:][:, :, : x.shape[2], : x.shape[3]]
    x = F.conv_transpose2d(x, own[f"{UPSAMPLINGS[kind][-1]}.weight"], stride=stride)
    with torch.no_grad():
        assert_close("scores", network(image), x[:, :, begin : begin + 33, begin : begin + 20])


@pytest.mark.parametrize("kind", FCNS)
def test_the_last_upsampling_never_learns(kind):
    last = f"{UPSAMPLINGS[kind][-1]}.weight"
    assert kind.frozen == (last,)
    assert [name for name, p in kind(**TINY).named_parameters() if not p.requires_grad] == [last]


@pytest.mark.parametrize(
    "coarse, fine, new",
    [
        (FCN32s, FCN16s, {"score_pool4", "upscore2", "upscore16"}),
        (FCN16s, FCN8s, {"score_pool3", "upscore_pool4", "upscore8"}),
        (FCN32s, FCN8s, {"score_pool4", "score_pool3", "upscore2", "upscore_pool4", "upscore8"}),
    ],
)
def test_a_network_goes_on_from_one_of_a_larger_stride(coarse, fine, new):
    """It has all that the other has learnt, and of its own the zero scores and the interpolation that it starts with."""
    before, after = coarse(**TINY), fine(C, width=1 / 64)
    before.score_fr.bias.data.normal_()
    start, state = {name: value.clone() for name, value in after.state_dict().items()}, before.state_dict()
    after.load_state_dict(after.continued(state))
    for name, value in after.state_dict().items():
        own = name.rpartition(".")[0] in new
        assert torch.equal(value, start[name] if own else state[name]), name
        assert not (name.startswith("score_pool") and own and value.any()), name


@pytest.mark.parametrize("kind", FCNS)
def test_a_network_takes_its_own_weights_and_no_finer_ones(kind):
    state = {name: torch.randn_like(value) for name, value in kind(**TINY).state_dict().items()}
    assert kind(**TINY).continued(state) == state
    finest = FCN8s(**TINY).state_dict()
    assert kind(**TINY).continued(finest) == finest


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


@pytest.mark.parametrize(
    "network, crf, pixels, mean",
    [
        ({}, {"preset": "released"}, "caffe", "caffe"),
        ({}, {"preset": "released-keras"}, "vgg", "vgg"),
        ({}, {"preset": "released", "mean": "demo"}, "demo", "demo"),
        ({"pixels": "vgg"}, {"preset": "released"}, "vgg", "vgg"),
        ({"pixels": "vgg"}, {"preset": "released", "mean": "caffe"}, "vgg", "caffe"),
        ({"pixels": "imagenet"}, {"preset": "released-pytorch"}, "imagenet", "vgg"),
        ({"pixels": "vgg"}, {}, "vgg", None),
    ],
)
def test_with_a_preset_the_network_and_the_crf_take_off_one_mean(network, crf, pixels, mean):
    model = FCN8sCRFRNN(C, network={"width": 1 / 64, **network}, crf=crf)
    assert model.crf.mean == mean
    assert torch.equal(model.network.mean.flatten(), torch.tensor(PIXELS[pixels][0]))


@pytest.mark.parametrize("network, crf, named", [({"pixels": ["vgg"]}, {}, "pixels"), ({}, {"mean": "rgb"}, "mean")])
def test_bad_means(network, crf, named):
    with pytest.raises(ValueError, match=f"^{named}: expected one of "):
        FCN8sCRFRNN(C, network={"width": 1 / 64, **network}, crf={"preset": "released", **crf})
