"""SegModel: patches, the ablation's configurations, its contexts by hand, and what happens at borders."""

import pytest
import torch
from torch.nn import functional as F

import tritoncrf as tc
from assertions import assert_close
from tritoncrf.models import config, optimization
from tritoncrf.models.segmodel import BoxContext, LabelContext, SegModel, patch_shuffle

C = 3
TINY = {"num_classes": C, "depth": 18, "width": 0.125}
# The paper's ablation: what is on, and the resolution of the scores before the CRF, of 1 / n.
ABLATION = {
    "unary": ({"context": "none", "patch": 1, "guidance": False}, 16),
    "context": ({"patch": 1, "guidance": False}, 4),
    "patch": ({"guidance": False}, 4),
    "guidance": ({}, 4),
}
OTHERS = {
    "paper": ({"context": "paper"}, 4),
    "twice": ({"context_iterations": 2}, 4),
    "guidance-alone": ({"context": "none", "patch": 1}, 4),
    "learnt-cost": ({"crf": {"compatibility": True, "radius": 2}}, 4),
    "released": ({"preset": "released", "backbone": "preactivation", "pixels": "raw"}, 4),
}
ablation = pytest.mark.parametrize("variant", ABLATION)
variants = pytest.mark.parametrize("variant", [*ABLATION, *OTHERS])


def made(variant="guidance", **options):
    return SegModel(**TINY, **(ABLATION | OTHERS)[variant][0], **options)


def picture(batch=1, size=(37, 50)):
    return torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_patches_are_laid_out_position_major(n):
    x = torch.randn(2, n * n * C, 4, 5)
    expected = torch.empty(2, C, 4 * n, 5 * n)
    for h in range(4):
        for w in range(5):
            for dy in range(n):
                for dx in range(n):
                    for c in range(C):
                        expected[:, c, n * h + dy, n * w + dx] = x[:, (dy * n + dx) * C + c, h, w]
    assert torch.equal(patch_shuffle(x, n), expected)


@variants
@pytest.mark.parametrize("size", [(37, 50), (32, 48)], ids=str)
def test_every_configuration_at_its_resolution_forward_and_backward(variant, size):
    model, image = made(variant), picture(2, size)
    stride = (ABLATION | OTHERS)[variant][1]
    padded = [-(-n // 16) * 16 for n in size]
    scores = model.scores(image)
    assert list(scores.shape) == [2, C, *(n // stride for n in padded)]
    logits = model.finish(scores, image, crf=True)
    assert logits.shape == (2, C, *size)
    F.cross_entropy(logits, torch.randint(0, C, (2, *size))).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert without == ([] if variant == "unary" else ["up4.weight"])
    assert all(p.grad.abs().max() > 0 for n, p in model.named_parameters() if n not in without)


def test_parameters_of_each_part():
    names = {
        variant: {n.split(".")[0] for n, _ in made(variant).named_parameters()} - {"backbone", "score"}
        for variant in (*ABLATION, "guidance-alone", "learnt-cost", "released")
    }
    contexts = {"feature_context", "label_context"}
    assert names == {
        "unary": set(),
        "context": {"up2", "up4"} | contexts,
        "patch": {"up2", "up4"} | contexts,
        "guidance": {"up2", "up4"} | contexts,
        "guidance-alone": {"up2", "up4"},
        "learnt-cost": {"up2", "up4", "crf"} | contexts,
        "released": {"up2", "up4"} | contexts,
    }


def test_sizes_of_the_full_network():
    with torch.device("meta"):
        model = SegModel(19)
    shapes = {n: list(p.shape) for n, p in model.named_parameters() if not n.startswith("backbone.")}
    assert shapes == {
        "score.weight": [76, 2048, 1, 1],
        "score.bias": [76],
        "feature_context.convs.0.weight": [76, 2048, 3, 3],
        "feature_context.convs.0.bias": [76],
        "feature_context.convs.1.weight": [76, 2048, 3, 3],
        "feature_context.convs.1.bias": [76],
        "label_context.conv1.weight": [128, 19, 7, 7],
        "label_context.conv1.bias": [128],
        "label_context.conv2.weight": [19, 128, 1, 1],
        "label_context.conv2.bias": [19],
        "up2.weight": [19, 1, 4, 4],
        "up2.bias": [19],
        "up4.weight": [19, 1, 8, 8],
    }
    assert [c.dilation[0] for c in model.feature_context.convs] == [6, 12] and model.feature_context.radii == [2, 4]
    assert [block.conv2.dilation[0] for block in model.backbone.layer4] == [1, 2, 2]
    assert model(torch.empty(1, 3, 500, 375, device="meta")).shape == (1, 19, 500, 375)


def test_unary_is_one_convolution_and_one_interpolation():
    model, image = made("unary").eval(), picture(size=(32, 48))
    with torch.no_grad():
        features = model.backbone(model.normalized(image))[-1]
        expected = F.conv2d(features, model.score.weight, model.score.bias)
        expected = F.interpolate(expected, scale_factor=16, mode="bilinear", align_corners=False)
        assert_close("logits", model(image), expected)


def box(x, radius):
    """Sums of zero-padded windows over min(2 r + 1, n)^2: the mean in a box of constant area."""
    height, width = x.shape[2:]
    weight = torch.ones(x.shape[1], 1, 2 * radius + 1, 2 * radius + 1, dtype=x.dtype)
    area = min(2 * radius + 1, height) * min(2 * radius + 1, width)
    return F.conv2d(x, weight, padding=radius, groups=x.shape[1]) / area


def conv(module, x, **options):
    return F.conv2d(x, module.weight, module.bias, **options)


@pytest.mark.parametrize("context", ["released", "paper"])
@pytest.mark.parametrize("patch, iterations", [(1, 1), (2, 1), (2, 3)])
def test_context_by_hand(context, patch, iterations):
    options = {"context": context, "patch": patch, "context_iterations": iterations, "guidance": False}
    model, image = SegModel(**TINY, **options).double().eval(), picture(size=(96, 112))
    near, far = model.feature_context.convs
    with torch.no_grad():
        h = model.backbone(model.normalized(image))[-1]  # [1, 64, 6, 7]
        first = conv(model.score, h)
        first = first + conv(near, box(h, 2), padding=6, dilation=6) + conv(far, box(h, 4), padding=12, dilation=12)
        if patch == 1:
            first = F.interpolate(first, scale_factor=2, mode="bilinear", align_corners=False)
        else:
            first = patch_shuffle(first, 2)
        scores = first
        for _ in range(iterations):
            if context == "released":
                l = F.max_pool2d(scores, 25, stride=1, padding=12)
                l = l / (l.pow(2).sum(1, keepdim=True) + 1e-5).sqrt()
                l = conv(model.label_context.conv2, conv(model.label_context.conv1, l, padding=3))
            else:
                q, (near, far) = scores.softmax(1), model.label_context[1].convs
                l = conv(near, box(q, 4), padding=12, dilation=12) + conv(far, box(q, 8), padding=24, dilation=24)
            scores = first + l
        expected = F.conv_transpose2d(scores, model.up2.weight, model.up2.bias, stride=2, padding=1, groups=C)
        assert_close("scores", model.scores(image), expected)


def test_the_crf_refines_the_quarter_by_the_image_and_is_left_out_on_request():
    model, image = made().double().eval(), picture(size=(32, 48))
    crf = tc.GuidanceCRF(C, radius=3, eps=1.0, iterations=3, upsample=False)
    with torch.no_grad():
        scores = model.scores(image)
        expected = crf(scores, image.double() / 255)
        unary, refined = model(image, output="both")
        assert_close("unary", unary, model.up4(scores))
        assert_close("refined", refined, model.up4(expected), rms=1e-6, worst=1e-5)
    assert not torch.equal(unary, refined)


def test_padding_is_with_the_mean_colour():
    model = made().eval()
    image = torch.rand(1, 3, 37, 50)
    padded = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).repeat(1, 1, 48, 64)
    padded[:, :, :37, :50] = image
    with torch.no_grad():
        assert_close("logits", model(image), model(padded)[:, :, :37, :50], rms=1e-4, worst=1e-3)


def test_parameters_of_the_released_network_are_the_prototxts():
    """45,573,459 from bn_data to upscore19, the frozen weights of that among them, counted from the file."""
    with torch.device("meta"):
        plain, released = SegModel(19), SegModel(19, **OTHERS["released"][0])
    shapes = [{n: p.shape for n, p in m.named_parameters() if "backbone." not in n} for m in (plain, released)]
    assert shapes[1] == shapes[0] | {"up4.bias": (19,)}
    assert sum(p.numel() for p in released.parameters()) == 45_573_459
    assert [block.conv2.dilation[0] for block in released.backbone.stage4] == [1, 2, 2]


@pytest.mark.parametrize("size", [(37, 50), (96, 112)], ids=str)
def test_released_by_hand(size):
    """The layers of the released prototxt in order; only the guidance CRF is the library's, in its preset."""
    model, image = made("released").double().eval(), picture(2, size).double() / 255
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.uniform_(-1, 1)
    height, width = (-(-n // 16) * 16 for n in size)
    padded = torch.zeros(2, 3, height, width, dtype=torch.float64)
    padded[:, :, : size[0], : size[1]] = image
    near, far = model.feature_context.convs
    with torch.no_grad():
        h = model.backbone(padded / model.std)[-1]  # 1 / 255, which the model holds in float32
        first = patch_shuffle(conv(model.score, h), 2)
        first = first + patch_shuffle(conv(near, box(h, 2), padding=6, dilation=6), 2)
        first = first + patch_shuffle(conv(far, box(h, 4), padding=12, dilation=12), 2)
        l = F.max_pool2d(first, 25, stride=1, padding=12)
        l = l / (l.pow(2).sum(1, keepdim=True) + 1e-5).sqrt()
        scores = first + conv(model.label_context.conv2, conv(model.label_context.conv1, l, padding=3))
        scores = F.conv_transpose2d(scores, model.up2.weight, model.up2.bias, stride=2, padding=1, groups=C)
        unary = scores
        crf = tc.GuidanceCRF(C, radius=3, eps=1.0, iterations=3, strength=2.0, upsample=False, preset="released")
        scores = crf(scores, F.avg_pool2d(padded, 4))
        taps = torch.tensor([1, 3, 5, 7, 7, 5, 3, 1]).double() / 8
        taps = torch.outer(taps, taps).expand(C, 1, 8, 8)
        for crf, maps in ((False, unary), (True, scores)):
            expected = F.conv_transpose2d(maps, taps, model.up4.bias, stride=4, padding=2, groups=C)
            found = model.finish(model.scores(image), image, crf)
            assert_close("logits", found, expected[:, :, : size[0], : size[1]], rms=1e-12, worst=1e-10)


def test_the_preset_learns_the_last_bias_and_keeps_its_weights():
    model = made("released")
    assert model.up4.bias.requires_grad and not model.up4.weight.requires_grad
    assert model.crf.preset == "released" and made("released", crf={"preset": None}).crf.preset is None
    assert made().up4.bias is None and made().crf.preset is None


def test_rates_and_decay_of_the_released_configuration():
    """As the released layers set them: biases of convolutions at twice the rate and without decay, all else decays."""
    found = config.load("segmodel_released", ["network.width=0.05", "network.depth=18"])
    model, phase = config.build(found, C, "test"), found.phases[0]
    learnt = optimization.select(model, phase)
    groups = optimization.optimizer(model, phase.optimizer).param_groups
    given = {id(p): (group["base"], group["weight_decay"]) for group in groups for p in group["params"]}
    rates = {name: given[id(p)] for name, p in model.named_parameters() if name in learnt}
    biases = {
        "score",
        "feature_context.convs.0",
        "feature_context.convs.1",
        "label_context.conv1",
        "label_context.conv2",
    }
    biases = {f"{name}.bias" for name in biases | {"up2", "up4"}}
    assert "backbone.bn_data.bias" in rates and "up2.weight" in rates and "up4.weight" not in rates
    assert rates == {name: (0.02, 0.0) if name in biases else (0.01, 1e-4) for name in rates}


def test_the_preset_starts_uniform_by_both_fans():
    model = SegModel(21, depth=18, width=0.5, preset="released")
    weight = model.feature_context.convs[0].weight  # 256 channels to 84
    bound = (12 / (9 * (256 + 84))) ** 0.5
    assert 0.99 * bound < weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)
    assert not model.feature_context.convs[0].bias.any()


def test_new_layers_start_with_the_variance_of_their_fan_in_and_without_bias():
    for module, fan_in in ((BoxContext(64, 40).convs[1], 64 * 9), (LabelContext(21, 64).conv1, 21 * 49)):
        assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)
        assert not module.bias.any()


def test_checkpointing_changes_neither_outputs_nor_statistics():
    plain, thrifty = made(), made(checkpointing=True)
    thrifty.load_state_dict(plain.state_dict())
    image = picture(2)
    for model in (plain, thrifty):
        model(image).square().mean().backward()
    for (name, expected), found in zip(plain.state_dict().items(), thrifty.state_dict().values()):
        assert_close(name, found, expected)
    assert_close("gradient", thrifty.backbone.conv1.weight.grad, plain.backbone.conv1.weight.grad)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"context": "label"}, ValueError, "context: expected one of 'released', 'paper', 'none', got 'label'"),
        ({"context": None}, ValueError, "context: expected one of 'released', 'paper', 'none', got None"),
        ({"patch": 9}, ValueError, "patch: expected an int from 1 to 8, got 9"),
        ({"guidance": {"radius": 2}}, TypeError, "guidance: expected True or False"),
        ({"guidance": False, "crf": {"radius": 2}}, ValueError, "crf: expected None with guidance=False"),
        ({"crf": 3}, TypeError, "crf: expected a dict of options or None, got 3"),
        ({"crf": {"radius": 0}}, ValueError, "radius: expected an int of at least 1, got 0"),
        ({"backbone": "vgg"}, ValueError, "backbone: expected one of 'resnet', 'preactivation', got 'vgg'"),
        ({"preset": "paper"}, ValueError, "preset: expected None or 'released', got 'paper'"),
        ({"context_iterations": 0}, ValueError, "context_iterations: expected an int of at least 1, got 0"),
        ({"depth": 20}, ValueError, "depth: expected one of 18, 34, 50, 101, 152, got 20"),
    ],
)
def test_bad_options_are_one_clear_error(options, error, message):
    with pytest.raises(error, match=message):
        SegModel(**(TINY | options))
