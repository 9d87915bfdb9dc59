"""TimmFCN: any backbone of timm as a segmentation network, its published weights, its training with a CRF."""

import math
import re

import pytest
import torch
from torch.nn import functional as F
from training_runs import CONVCRF, SGD, phase, rows, settings, state, trainer

from assertions import assert_close
from optional import imported
from tritoncrf.files import FileError
from tritoncrf.models import TimmFCN, checkpoints
from tritoncrf.models.config import Optimizer
from tritoncrf.models.optimization import optimizer
from tritoncrf.models.timm_fcn import synchronized
from tritoncrf.models.weights import load_backbone

pytestmark = pytest.mark.extras

timm = imported("timm")

# A transformer whose features are channels last, made small.
SWIN = "swin_tiny_patch4_window7_224", {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
CONVOLUTIONAL = [("test_resnet", {}), ("test_convnext", {}), ("test_efficientnet", {}), SWIN]
OTHERS = [("test_vit", {}), ("test_maxvit", {}), ("test_byobnet", {})]


def image(height, width, batch=1):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(height))


def network(backbone="test_resnet", **others):
    torch.manual_seed(0)
    return TimmFCN(4, backbone, **others)


@pytest.mark.parametrize("backbone, arguments", CONVOLUTIONAL + OTHERS, ids=lambda value: str(value)[:16])
def test_any_backbone_gives_scores_and_learns_as_a_whole(backbone, arguments):
    made = network(backbone, arguments=arguments)
    scores = made(image(50, 70, batch=2))
    assert scores.shape == (2, 4, 50, 70)
    (scores * torch.randn_like(scores)).sum().backward()
    still = [name for name, p in made.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not still  # ranks wait for each parameter's gradient


@pytest.mark.parametrize("backbone, arguments", CONVOLUTIONAL, ids=lambda value: str(value)[:16])
def test_published_weights_give_the_features_of_the_published_network(backbone, arguments):
    """Against what the layers of the whole network gave, classifier and all."""
    torch.manual_seed(1)
    whole, made = timm.create_model(backbone, **arguments).eval(), network(backbone, arguments=arguments).eval()
    load_backbone(made, whole.state_dict())
    names = [entry["module"] for entry in whole.feature_info[-3:]]
    seen = {}
    for name in names:
        whole.get_submodule(name).register_forward_hook(lambda module, x, y, name=name: seen.update({name: y}))
    photo = image(224, 224)
    mean, std = (torch.tensor(whole.default_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    whole((photo - mean) / std)
    found = made.backbone(made.normalized(photo))
    for name, x in zip(names, found):
        wanted = seen[name] if seen[name].shape == x.shape else seen[name].permute(0, 3, 1, 2)
        assert_close(name, x, wanted)


def test_scores_are_added_from_the_coarsest_on():
    made = network(dropout=0.9).eval()
    photo = image(64, 96)
    features = made.backbone(made.normalized(photo))
    wanted = 0
    for k, x in enumerate(features):
        score = torch.einsum("oc,bchw->bohw", made.score[2 - k].weight[:, :, 0, 0], x)
        for size in (*[x.shape[2:] for x in reversed(features[:k])], photo.shape[2:]):
            score = F.interpolate(score, size=size, mode="bilinear")
        wanted = wanted + score
    assert_close("scores", made(photo), wanted)
    spreads = [layer.weight.std().item() for layer in made.score]
    for k, (spread, x) in enumerate(zip(spreads, reversed(features))):
        assert math.isclose(spread, (2 * 100**-k / x.shape[1]) ** 0.5, rel_tol=0.2)


def test_images_are_filled_up_with_the_mean():
    made = network("test_convnext").eval()
    photo = image(50, 70)
    filled = made.mean.expand(1, 3, 64, 96).clone()
    filled[..., :50, :70] = photo
    assert_close("scores", made(photo), made(filled)[..., :50, :70])


def test_a_smaller_output_stride():
    made = network("test_resnet", output_stride=8)
    assert [x.shape[2] for x in made.backbone(made.normalized(image(64, 64)))] == [8, 8, 8]


def test_which_features():
    made = network("test_resnet", out_indices=[1, 4])
    assert [x.shape[2] for x in made.backbone(made.normalized(image(64, 64)))] == [16, 2]


BAD = [
    ({"backbone": "resnet10"}, "backbone: expected a network of timm, such as resnet10t, "),
    ({"backbone": "hf-hub:timm/resnet10t"}, "backbone: expected a network of timm, "),
    ({"backbone": 3}, "backbone: expected a network of timm, "),
    ({"backbone": "test_resnet.none"}, "backbone: expected a network of timm, got 'test_resnet.none': Invalid pretrained"),
    ({"backbone": "test_vit", "output_stride": 8}, "backbone: expected arguments that test_vit takes, got output_stride=8"),
    ({"output_stride": 4}, "output_stride: expected one of 32, 16, 8, got 4"),
    ({"out_indices": [2, 1]}, "out_indices: expected different ones in rising order, got [2, 1]"),
    ({"out_indices": [2, -3]}, "out_indices: expected different ones in rising order, got [2, -3]"),
    ({"out_indices": [9]}, "backbone: expected arguments that test_resnet takes, got out_indices=[9]: "),
    ({"out_indices": []}, "out_indices: expected a list of whole numbers, got []"),
    ({"out_indices": 3}, "out_indices: expected a list of whole numbers, got 3"),
    ({"arguments": {"pretrained": True}}, "arguments: expected none that TimmFCN sets itself, got pretrained"),
    ({"arguments": {"drop": 1}}, "backbone: expected arguments that test_resnet takes, got drop=1, "),
    ({"dropout": "a"}, "dropout: expected "),
]  # fmt: skip


@pytest.mark.parametrize("arguments, message", BAD, ids=[case[1][:60] for case in BAD])
def test_bad_arguments(arguments, message):
    with pytest.raises((TypeError, ValueError), match="^" + re.escape(message)) as error:
        network(**arguments)
    assert "\n" not in str(error.value)


def test_an_image_too_large_for_a_backbone_of_one_size():
    made = network("test_vit_relpos")
    with pytest.raises(ValueError, match=r"image: expected at most 160 x 160, which test_vit_relpos is made for .*161"):
        made(image(100, 161))


# Files of weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_weights_from_a_file(ending, tmp_path):
    path, whole = tmp_path / f"model.{ending}", timm.create_model("test_efficientnet")
    if ending == "pth":
        torch.save(whole.state_dict(), path)
    else:
        pytest.importorskip("safetensors.torch").save_file(whole.state_dict(), path)
    made = network("test_efficientnet")
    assert not checkpoints.load_weights(made, path)
    for name, value in made.backbone.model.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x: x.pop("layer1.0.conv1.weight"), "got layer1.0.conv1.weight missing"),
        (lambda x: x.update({"layer9.weight": x["bn1.weight"]}), "got layer9.weight unknown"),
        (lambda x: x.update({"bn1.weight": torch.ones(3)}), "got bn1.weight of shape [3] for "),
        (lambda x: x.update({"bn1.weight": x["bn1.weight"] / 0}), "got bn1.weight with NaN or infinity"),
    ],
    ids=["missing", "unknown", "shape", "infinite"],
)
def test_other_weights_are_one_clear_error_and_change_nothing(change, message):
    made, given = network(), timm.create_model("test_resnet").state_dict()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    change(given)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_backbone(made, given)
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


def test_a_damaged_file_is_named(tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"no tensors")
    with pytest.raises(FileError, match=f"{re.escape(str(path))}: expected weights, unreadable: "):
        checkpoints.load_weights(network(), path)


# Training ---------------------------------------------------------------------------------------------------------


def test_it_trains_with_a_crf_and_is_built_again(shapes, tmp_path):
    backbone = {
        "name": "TimmFCN",
        "backbone": "test_convnext",
        "out_indices": [-2, -1],
        "arguments": {"drop_path_rate": 0.1},
    }
    adamw = {**SGD, "name": "adamw"}
    found = settings(phase("all", batch=4, auxiliary=1.0, optimizer=adamw), network=backbone, crf=CONVCRF)
    made = trainer(found, shapes, tmp_path)
    before = {name: p.clone() for name, p in made.model.named_parameters()}
    made.run()
    assert rows(tmp_path)[0]["steps"] == "2"
    still = [name for name, p in made.model.named_parameters() if torch.equal(p, before[name])]
    assert not [name for name in still if "score" in name or name.startswith("crf.")]
    again = checkpoints.trained(tmp_path / "last.pt", torch.device("cpu")).model
    assert state(tmp_path).keys() == again.state_dict().keys()
    assert torch.equal(again(image(32, 40)), made.model.eval()(image(32, 40)))


def test_kernels_and_matrices_decay_and_nothing_else():
    made = network("test_vit")
    groups = optimizer(made, Optimizer(name="adamw", lr=0.1, weight_decay=0.5)).param_groups
    decaying = {id(p) for group in groups for p in group["params"] if group["weight_decay"]}
    names = {name for name, p in made.named_parameters() if id(p) in decaying}
    assert {
        "backbone.model.blocks.0.mlp.fc1.weight",
        "backbone.model.patch_embed.proj.weight",
        "score.0.weight",
    } <= names
    assert not [name for name in names if "norm" in name or "bias" in name or "pos_embed" in name]


def test_shared_batch_norm_keeps_the_activation_inside():
    made = network("test_efficientnet").eval()
    photo, names = image(64, 64), list(made.state_dict())
    wanted = made(photo)
    shared = synchronized(made)
    assert any(isinstance(part, torch.nn.SyncBatchNorm) for part in shared.modules())
    assert list(shared.state_dict()) == names
    assert_close("scores", shared(photo), wanted)
