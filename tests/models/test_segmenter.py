"""What all pipelines have in common: photos in, logits at their size out, with the CRF or without it."""

import pytest
import torch

import tritoncrf as tc
from assertions import assert_close
from tritoncrf.models.fcn import FCN8s, FCN8sCRFRNN
from tritoncrf.models.resnet_fcn import ResNetConvCRF, ResNetFCN
from tritoncrf.models.segmenter import PIXELS, Segmenter, WithCRF, resized
from tritoncrf.models.segmodel import SegModel

C = 3
RESNET, VGG = {"depth": 18, "width": 0.125}, {"width": 1 / 64, "score_init": "msra"}
UNARY = {
    "FCN8s": lambda: FCN8s(C, **VGG),
    "ResNetFCN": lambda: ResNetFCN(C, **RESNET),
    "SegModel-unary": lambda: SegModel(C, **RESNET, context="none", patch=1, guidance=False),
}
PIPELINES = {
    "FCN8sCRFRNN": lambda: FCN8sCRFRNN(C, network=VGG, crf={"iterations": 2, "test_iterations": 2}),
    "ResNetConvCRF": lambda: ResNetConvCRF(C, network=RESNET, crf={"window_size": 3, "compatibility": True}),
    "SegModel": lambda: SegModel(C, **RESNET, crf={"compatibility": True}),
}
networks = pytest.mark.parametrize("name", [*UNARY, *PIPELINES])
pipelines = pytest.mark.parametrize("name", PIPELINES)


def made(name):
    return (UNARY | PIPELINES)[name]()


def picture(batch=1, size=(37, 50)):
    return torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8)


@networks
@pytest.mark.parametrize("size", [(1, 1), (17, 40), (33, 64)])
def test_logits_have_the_images_size_and_every_gradient_is_finite(name, size):
    model, image = made(name), picture(2, size)
    logits = model(image)
    assert logits.shape == (2, C, *size) and logits.dtype == torch.float32 and logits.is_contiguous()
    torch.nn.functional.cross_entropy(logits, torch.randint(0, C, (2, *size))).backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad != (p.grad is not None)]
    assert not missing
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@networks
def test_a_batch_is_its_images(name):
    model, image = made(name).double().eval(), picture(2)
    with torch.no_grad():
        assert_close("logits", model(image), torch.cat([model(one) for one in image.split(1)]), rms=1e-6, worst=1e-5)


@networks
def test_bytes_count_as_their_255th(name):
    model, image = made(name).eval(), picture()
    with torch.no_grad():
        assert_close("logits", model(image), model(image / 255), rms=1e-4, worst=1e-3)


@networks
def test_both_is_a_pair_of_the_two(name):
    model, image = made(name).eval(), picture()
    with torch.no_grad():
        unary, refined = model(image, output="both")
        assert_close("unary", unary, model(image, output="unary"))
        assert_close("refined", refined, model(image))
    assert torch.equal(unary, refined) == (model.crf is None)


@pipelines
def test_every_parameter_of_the_crf_learns(name):
    model, image = made(name), picture(2, (20, 25))
    before = {n: p.detach().clone() for n, p in model.named_parameters() if n.startswith("crf.")}
    assert before.keys() == {f"crf.{n}" for n, _ in model.crf.named_parameters()} and before
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.nn.functional.cross_entropy(model(image), torch.randint(0, C, (2, 20, 25))).backward()
    optimizer.step()
    after = dict(model.named_parameters())
    for n, value in before.items():
        assert not torch.equal(after[n], value), n


@networks
def test_a_state_dict_carries_everything(name):
    first, second, image = made(name).eval(), made(name).eval(), picture()
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        assert torch.equal(first(image), second(image))


@networks
def test_names_of_parameters_that_never_learn_exist(name):
    model = made(name)
    network = getattr(model, "network", model)
    fixed = {n for n, p in network.named_parameters() if not p.requires_grad}
    assert fixed == set(getattr(network, "frozen", ())) & set(dict(network.named_parameters()))


def test_images_are_normalised_as_the_weights_expect():
    image = torch.tensor([255, 0, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    found = {pixels: Segmenter(C, pixels).normalized(image).flatten() for pixels in PIXELS}
    imagenet = [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225]
    assert_close("imagenet", found["imagenet"], torch.tensor(imagenet))
    assert_close("caffe", found["caffe"], torch.tensor([255 - 122.67891434, -116.66876762, 51 - 104.00698793]))
    assert_close("vgg", found["vgg"], torch.tensor([255 - 123.68, -116.779, 51 - 103.939]))
    assert_close("demo", found["demo"], torch.tensor([255 - 103.939, -116.779, 51 - 123.68]))
    assert_close("raw", found["raw"], torch.tensor([255.0, 0.0, 51.0]))
    assert not Segmenter(C).state_dict()


def test_resizing_is_linear_between_the_centres_of_pixels():
    x = torch.tensor([[[[0.0, 4.0]]]])
    assert resized(x, (1, 4)).flatten().tolist() == [0.0, 1.0, 3.0, 4.0]
    assert resized(x, (1, 2)) is x


def test_the_window_of_the_pipeline_starts_as_in_the_paper():
    """But for what is given, and what a preset has."""

    def thetas(**crf):
        layer = ResNetConvCRF(C, network=RESNET, crf=crf).crf
        found = [layer.theta(f"theta_{name}") for name in ("smooth", "space", "color")]
        return [None if theta is None else round(theta.item(), 4) for theta in found], layer

    found, layer = thetas()
    assert found == [3, 80, 13] and (layer.weight_smooth, layer.weight_appearance) == (3, 10)
    assert thetas(theta_space=20)[0] == [3, 20, 13] and thetas(appearance_position=False)[0] == [3, None, 13]
    assert thetas(preset="released")[0] == [3, None, 13]


@networks
@pytest.mark.parametrize(
    "image, message",
    [
        (torch.zeros(3, 20, 20), r"image: expected photos \[B, 3, H, W\], got"),
        (torch.zeros(1, 1, 20, 20), r"image: expected photos \[B, 3, H, W\], got"),
        ("photo.jpg", r"image: expected photos \[B, 3, H, W\], got 'photo.jpg'"),
        (torch.full((1, 3, 20, 20), 200.0), "image: expected floating values from 0 to 1, got 200 to 200"),
    ],
)
def test_bad_images_are_one_clear_error(name, image, message):
    with pytest.raises(ValueError, match=message):
        made(name)(image)


def test_bad_options_are_one_clear_error():
    with pytest.raises(ValueError, match="output: expected one of 'refined', 'unary', 'both', got 'labels'"):
        made("ResNetFCN")(picture(), output="labels")
    with pytest.raises(
        ValueError, match="pixels: expected one of 'imagenet', 'caffe', 'vgg', 'demo', 'raw', got 'bgr'"
    ):
        ResNetFCN(C, **RESNET, pixels="bgr")
    with pytest.raises(ValueError, match="num_classes: expected an int of at least 1, got 0"):
        ResNetFCN(0, **RESNET)
    with pytest.raises(ValueError, match="crf: expected 3 classes, as in the network, got 4"):
        WithCRF(made("ResNetFCN"), tc.ConvCRF(4))
    for pipeline in (FCN8sCRFRNN, ResNetConvCRF):
        with pytest.raises(TypeError, match="network: expected a dict of options or None, got 0.5"):
            pipeline(C, network=0.5)
        with pytest.raises(TypeError, match=r"unexpected keyword argument 'windows'"):
            pipeline(C, network={"width": 0.1}, crf={"windows": 3})


def test_a_float64_photo_serves_a_float32_network():
    photo = torch.rand(1, 3, 5, 6, dtype=torch.float64)
    assert Segmenter(C).normalized(photo).dtype == torch.float32


def test_bytes_are_as_precise_as_a_float64_network():
    network, image = Segmenter(C).double(), torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
    expected = (image.double() / 255 - network.mean) / network.std
    assert_close("normalised", network.normalized(image), expected, rms=1e-15)


def test_dropout_stands_before_the_coarsest_scores_alone():
    dropped, whole, image = ResNetFCN(C, **RESNET, dropout=1.0), ResNetFCN(C, **RESNET, dropout=0.0), picture()
    whole.load_state_dict(dropped.state_dict())
    torch.nn.init.zeros_(whole.score_layer4.weight)
    assert torch.equal(dropped.train()(image), whole.train()(image))
    assert dropped(image).abs().max() > 0
