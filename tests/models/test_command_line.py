"""python -m tritoncrf.models: train, evaluate and predict as a user would, and every bad input before any training."""

import csv
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import tritoncrf as tc
from tritoncrf.models import WithCRF, __main__, checkpoints, config, data, evaluation, metrics, toml_tables
from tritoncrf.models.__main__ import main
from tritoncrf.models.disconnected import KINDS

CONFIG = """
[network]
name = "ResNetFCN"
depth = 18
width = 0.125

[crf]
name = "ConvCRF"
window_size = 3
blur = 1
compatibility = true

[data]
format = "folder"
workers = 0

[[phases]]
name = "joint"
train = "all"
epochs = 1
batch = 4
[phases.optimizer]
name = "adam"
lr = 0.01
"""


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):
    """A run's folder, from a configuration file beside it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "run.toml").write_text(CONFIG)
    assert main(["train", str(folder / "run.toml"), "--data", str(shapes), "-o", str(folder / "run")]) == 0
    return folder / "run"


def refused(capsys, *arguments):
    """The one line that a command ends with."""
    assert main([str(a) for a in arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("tritoncrf.models: error: ") and "\n" not in error
    return error.removeprefix("tritoncrf.models: error: ")


def picture(path):
    """Mode and pixels of a file."""
    with Image.open(path) as image:
        return image.mode, np.array(image)


def test_it_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "tritoncrf.models", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "train | evaluate | predict" in done.stdout


def test_the_parser_knows_the_words_of_the_rest():
    assert __main__.FUSIONS == evaluation.FUSIONS and __main__.CRFS == KINDS


def test_evaluate_reports_both_labellings(trained, shapes, tmp_path, capsys):
    out = tmp_path / "report"
    assert main(["evaluate", str(trained / "last.pt"), "--data", str(shapes), "-o", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "without CRF, 3 images" in shown and "with CRF, 3 images" in shown and "IoU house" in shown
    with open(out / "results.csv", newline="") as file:
        table = {row["metric"]: row for row in csv.DictReader(file)}
    assert {"miou", "pixel_accuracy", "mean_accuracy", "boundary_iou 1", "trimap_accuracy 10", "iou tree"} <= set(table)
    with open(trained / "log.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(table["miou"]["with CRF"]) == pytest.approx(float(row["val_miou"]))
    assert float(table["miou"]["without CRF"]) == pytest.approx(float(row["val_unary_miou"]))
    pictures = {path.name for path in out.glob("*.png")}
    assert pictures == {"compatibility.png", "confusion_refined.png", "confusion_unary.png", "trimap.png"}


def test_evaluate_at_several_scales(trained, shapes, capsys):
    options = ["--scales", "0.5", "1", "1.5", "--flip", "--fuse", "max_mean"]
    assert main(["evaluate", str(trained / "last.pt"), "--data", str(shapes), "--split", "train", *options]) == 0
    assert "with CRF, 8 images" in capsys.readouterr().out


@pytest.fixture
def other(shapes, tmp_path):
    """A checkpoint of another network for the same classes, without a CRF."""
    table = config.load(config.BUNDLED / "small_unary.toml", ["network.width=0.125", "data.resize=[32, 40]"]).table()
    settings = config.parse(table | {"data": table["data"] | {"format": "folder", "resize": None}}, "other")
    classes = data.folder(shapes, "train").classes
    checkpoints.save(tmp_path / "other.pt", config.build(settings, len(classes), "other"), settings, classes)
    return tmp_path / "other.pt"


def table(path):
    """The columns of results.csv by name, as {metric: number}."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: {row["metric"]: float(row[name]) for row in rows} for name in rows[0] if name != "metric"}


@pytest.mark.parametrize("kind", KINDS)
def test_evaluate_with_a_disconnected_crf(trained, shapes, other, tmp_path, capsys, kind):
    """In place of the checkpoint's own, and on a network that has none; with no iterations it changes nothing."""
    key = "test_iterations" if kind == "lattice" else "iterations"
    command = "evaluate", str(trained / "last.pt"), "--data", str(shapes), "-o", str(tmp_path / "report"), "--crf", kind
    assert main([*command, "--set", f"crf.{key}=0"]) == 0
    shown = capsys.readouterr().out
    assert f"last.pt: its own CRF is not used; --crf {kind} refines" in shown and "with CRF, 3 images" in shown
    found = table(tmp_path / "report" / "results.csv")
    assert found["with CRF"] == found["without CRF"]
    assert not (tmp_path / "report" / "compatibility.png").exists()
    command = "evaluate", str(other), "--data", str(shapes), "-o", str(tmp_path / "other"), "--crf", kind
    assert main([*command, "--set", f"crf.{key}=2"]) == 0
    assert "its own CRF" not in capsys.readouterr().out
    found = table(tmp_path / "other" / "results.csv")
    assert set(found) == {"with CRF", "without CRF"}


def test_several_checkpoints_together(trained, shapes, other, tmp_path, device):
    """Evaluated and predicted by the mean of their probabilities."""
    photos, both = shapes / "val" / "images", [str(trained / "last.pt"), str(other)]
    assert main(["predict", *both, str(photos), "-o", str(tmp_path / "out")]) == 0
    assert main(["evaluate", *both, "--data", str(shapes), "-o", str(tmp_path / "report")]) == 0
    models, confusion = [checkpoints.trained(path, device).model for path in both], 0
    for path in photos.iterdir():
        image = torch.from_numpy(picture(path)[1]).permute(2, 0, 1)[None].to(device)
        with torch.no_grad():
            fused = sum(model(image).softmax(1) for model in models)
        labels = fused[0].argmax(0).cpu().numpy()
        assert np.array_equal(picture(tmp_path / "out" / "labels" / path.name)[1], labels)
        truth = picture(shapes / "val" / "labels" / path.name)[1].astype(int)
        confusion = confusion + metrics.confusion_matrix(labels, truth, models[0].num_classes)
    found = table(tmp_path / "report" / "results.csv")
    assert found["with CRF"]["miou"] == pytest.approx(metrics.mean_iou(confusion)) and "without CRF" in found


def test_predict_with_a_disconnected_crf(trained, shapes, tmp_path, device):
    options = ["--crf", "lattice", "--set", "crf.theta_space=4", "--set", "crf.weight_appearance=3"]
    photo = shapes / "val" / "images" / "0.png"
    assert main(["predict", str(trained / "last.pt"), str(photo), "-o", str(tmp_path), *options]) == 0
    image = torch.from_numpy(picture(photo)[1]).permute(2, 0, 1)[None].to(device)
    model = checkpoints.trained(trained / "last.pt", device).model
    crf = tc.CRFRNN(model.num_classes, theta_space=4, weight_appearance=3).to(device).eval()
    with torch.no_grad():
        labels = crf(model(image, "unary"), image)[0].argmax(0).cpu().numpy()
    assert np.array_equal(picture(tmp_path / "labels" / "0.png")[1], labels)


def test_bad_crfs_and_checkpoints_that_do_not_go_together(trained, shapes, other, tmp_path, capsys):
    command = "evaluate", trained / "last.pt", "--data", shapes
    error = refused(capsys, *command, "--set", "crf.theta_color=3")
    assert error == "--set crf.theta_color=3: expected --crf, since a trained CRF cannot be changed, got none"
    error = refused(capsys, *command, "--crf", "lattice", "--set", "crf.theta_colour=3")
    assert error == "--set: crf.theta_colour: unknown key; did you mean 'theta_color'?"
    error = refused(capsys, *command, "--crf", "lattice", "--set", "crf.theta_color=-3")
    assert error.startswith("--set: crf: theta_color: expected")
    error = refused(capsys, *command, "--crf", "lattice", "--set", "crf.name=ConvCRF")
    assert error == "--set crf.name: expected none beside --crf lattice, got one"
    for kept in ("crf=3", "crf.device=cpu"):
        assert refused(capsys, *command, "--crf", "guided", "--set", kept).startswith("--set: crf")
    assert main([*map(str, command), "--crf", "exact"]) == 2 and "invalid choice: 'exact'" in capsys.readouterr().err
    both = "predict", trained / "last.pt", shapes, "-o", tmp_path, "--no-crf", "--crf", "lattice"
    assert main([*map(str, both)]) == 2 and "not allowed with argument" in capsys.readouterr().err

    state = checkpoints.read(other)
    for name, change in (("classes", {"classes": ["a", "b", "c"]}), ("size", {"config": _resized(state["config"])})):
        checkpoints.write(tmp_path / f"{name}.pt", {k: v for k, v in (state | change).items() if k != "mark"})
    error = refused(capsys, "evaluate", other, tmp_path / "classes.pt", "--data", shapes)
    assert (
        error
        == f"{tmp_path / 'classes.pt'}: expected the classes of {other}, {', '.join(state['classes'])}, got a, b, c"
    )
    error = refused(capsys, "evaluate", other, tmp_path / "size.pt", "--data", shapes)
    wanted = f"{tmp_path / 'size.pt'}: expected data.resize of {other}, None, got (16, 20); --set data.resize=[H,W] sets it for"
    assert error.startswith(wanted)
    resized = ["--set", "data.resize=[16, 20]"]
    assert main(["evaluate", str(other), str(tmp_path / "size.pt"), "--data", str(shapes), *resized]) == 0


def _resized(table):
    return table | {"data": table["data"] | {"resize": [16, 20]}}


def test_predict_labels_a_folder(trained, shapes, tmp_path, device):
    photos = shapes / "val" / "images"
    for name, options in (("with", []), ("without", ["--no-crf"])):
        assert main(["predict", str(trained / "last.pt"), str(photos), "-o", str(tmp_path / name), *options]) == 0
    network = checkpoints.trained(trained / "last.pt", device)
    for path in photos.iterdir():
        image = torch.from_numpy(picture(path)[1]).permute(2, 0, 1)[None].to(device)
        with torch.no_grad():
            unary, refined = network.model(image, "both")
        for name, logits in (("with", refined), ("without", unary)):
            mode, labels = picture(tmp_path / name / "labels" / path.name)
            assert mode == "P"
            assert np.array_equal(labels, logits[0].argmax(0).cpu().numpy())
            mode, overlay = picture(tmp_path / name / "overlays" / path.name)
            assert mode == "RGB" and overlay.shape[:2] == labels.shape


def test_predict_takes_one_photo_of_another_size(trained, tmp_path):
    Image.new("L", (53, 47), 90).save(tmp_path / "grey.png")
    out = tmp_path / "out"
    assert main(["predict", str(trained / "last.pt"), str(tmp_path / "grey.png"), "-o", str(out)]) == 0
    assert picture(out / "labels" / "grey.png")[1].shape == (47, 53)


def test_a_network_seen_at_another_size_labels_photos_at_theirs(shapes, tmp_path):
    """data.resize: predictions come back at the photo's size; here also in a run without a CRF."""
    (tmp_path / "run.toml").write_text(CONFIG.replace("workers = 0", "workers = 0\nresize = [16, 20]"))
    changes = ["--set", "phases.joint.train=unary"]
    run = ["train", str(tmp_path / "run.toml"), "--data", str(shapes), "-o", str(tmp_path / "run"), *changes]
    assert main(run) == 0
    photos = shapes / "val" / "images"
    assert main(["predict", str(tmp_path / "run" / "best.pt"), str(photos), "-o", str(tmp_path / "out")]) == 0
    assert {picture(path)[1].shape for path in (tmp_path / "out" / "labels").iterdir()} == {(32, 40)}


@pytest.mark.parametrize("folder", ["labels", "overlays"])
def test_photos_are_never_written_over(folder, trained, shapes, tmp_path, capsys):
    photos = tmp_path / folder
    shutil.copytree(shapes / "val" / "images", photos)
    before = {path.name: path.read_bytes() for path in photos.iterdir()}
    for given in (photos, photos / "0.png"):
        error = refused(capsys, "predict", trained / "best.pt", given, "-o", tmp_path)
        assert f"{photos / '0.png'}: expected a folder of its own to write to, got one that is read from" in error
    assert {path.name: path.read_bytes() for path in photos.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == [folder]


def test_data_is_never_written_over(trained, shapes, tmp_path, capsys):
    root = tmp_path / "data"
    shutil.copytree(shapes, root)
    before = sorted(root.rglob("*"))
    train = ["train", trained.parent / "run.toml", "--data", root, "-o"]
    for command in (["evaluate", trained / "best.pt", "--data", root, "-o"], train):
        for folder in ("images", "labels"):
            error = refused(capsys, *command, root / "val" / folder)
            assert "expected a folder of its own to write to, got one that is read from" in error
    assert sorted(root.rglob("*")) == before


def test_outputs_that_are_files(trained, shapes, tmp_path, capsys):
    (tmp_path / "file").touch()
    for command, wanted in (
        (["predict", trained / "best.pt", shapes / "val" / "images"], "that can be created, got"),
        (["evaluate", trained / "best.pt", "--data", shapes], "that can be created, got"),
        (["train", trained.parent / "run.toml", "--data", shapes], ", got the file"),
    ):
        error = refused(capsys, *command, "-o", tmp_path / "file")
        assert error.startswith("--out: expected a folder") and f"{wanted} {tmp_path / 'file'}" in error


# Weights ----------------------------------------------------------------------------------------------------------


def built(text=CONFIG, crf=True):
    table = toml_tables.tomllib.loads(text)
    if not crf:
        del table["crf"]
        table["phases"][0]["train"] = "unary"
    torch.manual_seed(3)
    return config.build(config.parse(table, "test"), 3, "test"), config.parse(table, "test")


def assert_same(model, other):
    for name, value in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_weights_of_a_network_serve_it_with_a_crf_and_without(tmp_path):
    plain, plain_config = built(crf=False)
    whole, whole_config = built()
    checkpoints.save(tmp_path / "plain.pt", plain, plain_config, ("a", "b", "c"))
    checkpoints.save(tmp_path / "whole.pt", whole, whole_config, ("a", "b", "c"))
    for name in ("plain", "whole"):
        for fresh in (built(crf=False)[0], built()[0]):
            for parameter in fresh.parameters():
                torch.nn.init.zeros_(parameter)
            checkpoints.load_weights(fresh, tmp_path / f"{name}.pt")
            assert_same(fresh.network if isinstance(fresh, WithCRF) else fresh, plain)


def test_torchvision_weights(tmp_path):
    model = built()[0]
    state = {name: torch.randn_like(x) if x.is_floating_point() else x for name, x in
             model.network.backbone.state_dict().items()}  # fmt: skip
    torch.save({**state, "fc.weight": torch.zeros(1000, 8), "fc.bias": torch.zeros(1000)}, tmp_path / "resnet.pth")
    checkpoints.load_weights(model, tmp_path / "resnet.pth")
    assert torch.equal(model.network.backbone.conv1.weight, state["conv1.weight"])


def test_what_starts_anew_is_said(shapes, tmp_path, capsys):
    """FCN-16s from FCN-32s, by the command that a user gives."""
    text = re.sub(r"\[crf\].*?(?=\[data\])", "", CONFIG, flags=re.DOTALL)
    text = text.replace('"ResNetFCN"\ndepth = 18\nwidth = 0.125', '"FCN32s"\nwidth = 0.015625')
    (tmp_path / "run.toml").write_text(text.replace("batch = 4", "batch = 8"))
    command = ["train", str(tmp_path / "run.toml"), "--data", str(shapes)]
    assert main([*command, "-o", str(tmp_path / "32")]) == 0
    start = tmp_path / "32" / "last.pt"
    finer = ["--set", "network.name=FCN16s", "--weights", str(start), "-o", str(tmp_path / "16")]
    capsys.readouterr()
    assert main([*command, *finer]) == 0
    assert capsys.readouterr().out.splitlines()[0] == (
        f"{start}: its network has a larger stride; score_pool4, upscore2, upscore16 start from initial weights"
    )


def test_bad_weights_are_refused_before_training(shapes, trained, tmp_path, capsys):
    path = tmp_path / "run.toml"
    path.write_text(CONFIG)
    command = ["train", path, "--data", shapes, "-o", tmp_path / "run", "--weights"]
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "other.pth")
    assert "other.pth: state: expected the parameters of this backbone" in refused(
        capsys, *command, tmp_path / "other.pth"
    )
    torch.save([1], tmp_path / "list.pth")
    assert "list.pth: expected weights, got a list" in refused(capsys, *command, tmp_path / "list.pth")
    wide = ["--set", "network.width=0.25"]
    error = refused(capsys, *command, trained / "last.pt", *wide)
    assert "last.pt: expected the parameters of this network, got" in error and "of shape [8" in error
    assert not (tmp_path / "run").exists()


# Bad input --------------------------------------------------------------------------------------------------------


def test_checkpoints_that_are_none(trained, shapes, tmp_path, capsys):
    whole = (trained / "last.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    for name, wanted in (
        ("missing.pt", "expected a checkpoint, got no such file"),
        ("cut.pt", "expected a checkpoint, unreadable"),
        ("other.pt", "expected a checkpoint of tritoncrf.models, got another file"),
    ):
        for command in (
            ["evaluate", tmp_path / name, "--data", shapes],
            ["predict", tmp_path / name, shapes, "-o", tmp_path],
        ):
            if command[0] == "predict":
                command[2] = shapes / "val" / "images"
            assert f"{tmp_path / name}: {wanted}" in refused(capsys, *command)


def test_a_checkpoint_whose_parameters_do_not_fit(trained, tmp_path, shapes, capsys):
    state = checkpoints.read(trained / "last.pt")
    del state["model"]["crf.compatibility"]
    checkpoints.write(tmp_path / "less.pt", state)
    error = refused(capsys, "evaluate", tmp_path / "less.pt", "--data", shapes)
    assert "less.pt: expected the parameters of this network, got crf.compatibility missing" in error


def test_data_is_checked_before_training(shapes, tmp_path, capsys):
    path, root, out = tmp_path / "run.toml", tmp_path / "data", tmp_path / "run"
    path.write_text(CONFIG)
    shutil.copytree(shapes, root)
    command = ["train", path, "--data", root, "-o", out]

    mask = root / "train" / "labels" / "3.png"
    kept = mask.read_bytes()
    Image.fromarray(np.full((32, 40), 7, np.uint8)).save(mask)
    assert f"{mask}: expected labels from 0 to 2 or void 255, got 7" in refused(capsys, *command)
    Image.fromarray(np.zeros((32, 41), np.uint8)).save(mask)
    assert f"{mask}: expected 32 x 40 labels" in refused(capsys, *command)
    mask.unlink()
    assert "3: expected a mask for 3.png, got none" in refused(capsys, *command)
    mask.write_bytes(kept)

    assert "expected a folder, got no such folder" in refused(
        capsys, "train", path, "--data", tmp_path / "no", "-o", out
    )
    assert "--data: expected the data set's folder" in refused(capsys, "train", path, "-o", out)
    assert "sead: unknown key" in refused(capsys, *command, "--set", "sead=1")
    assert "crf: window_size: expected an odd int" in refused(capsys, *command, "--set", "crf.window_size=4")
    assert "phases.joint.batch: expected at most the 8 images" in refused(
        capsys, *command, "--set", "phases.joint.batch=9"
    )
    assert "data.held_out: expected fewer than the 8 images" in refused(capsys, *command, "--set", "data.held_out=8")
    error = refused(capsys, *command, "--set", "crf.learn_positions=[32, 41]")
    assert "images of 32 x 40: " in error and "learn_positions" in error
    error = refused(capsys, *command, "--set", 'phases.joint.optimizer.multipliers={"crf.weigth*" = 2}')
    assert "phases.joint.optimizer.multipliers: expected patterns of parameters' names" in error and "weigth" in error
    error = refused(capsys, *command, "--set", 'phases.joint.optimizer.also_decay=["crf.*", "crf.weigth_*"]')
    assert "phases.joint.optimizer.also_decay: expected patterns of parameters' names" in error and "weigth" in error
    error = refused(capsys, *command, "--set", 'phases.joint.freeze=["*"]')
    assert "phases.joint: expected something to learn, got no parameter that is learned" in error
    assert not out.exists()

    Image.new("RGB", (41, 33)).save(root / "train" / "images" / "3.png")
    Image.new("L", (41, 33)).save(mask)
    error = refused(capsys, *command)
    assert "phases.joint.batch: expected 1, or data.resize or augment.crop, for images of several sizes, got 4" in error


@pytest.mark.parametrize(
    "marks, missing", [({0: 0, 1: 255, 2: 255}, "1 (house), 2 (tree)"), (dict.fromkeys(range(3), 255), "0 (ground)")]
)
def test_objects_marked_by_255_are_not_void(shapes, tmp_path, capsys, marks, missing):
    """Masks of 0 and 255, as most tools write them, and masks that are void alone."""
    root = tmp_path / "data"
    shutil.copytree(shapes, root)
    for path in (root / "train" / "labels").iterdir():
        labels = picture(path)[1]
        Image.fromarray(np.vectorize({**marks, 255: 255}.get)(labels).astype(np.uint8)).save(path)
    (tmp_path / "run.toml").write_text(CONFIG)
    for changes in ([], ["--set", "data.held_out=2"]):
        error = refused(capsys, "train", tmp_path / "run.toml", "--data", root, "-o", tmp_path / "run", *changes)
        assert f"data.train: expected every class where some pixels are void, got none of class {missing}" in error
    assert "change it to the index of its class, such as 1" in error and not (tmp_path / "run").exists()


def test_a_run_that_is_there_already(trained, shapes, capsys):
    command = ["train", trained.parent / "run.toml", "--data", shapes, "-o", trained]
    assert "expected a new folder, got one with a run; --resume continues it" in refused(capsys, *command)
    assert main([*map(str, command), "--resume"]) == 0


def test_bad_options(trained, shapes, tmp_path, capsys):
    assert "PHOTOS" in refused(capsys, "predict", trained / "last.pt")
    error = refused(capsys, "predict", trained / "last.pt", tmp_path, "-o", tmp_path / "out")
    assert f"{tmp_path}: expected photos ending in .jpg" in error
    command = ["evaluate", trained / "last.pt", "--data", shapes]
    for scale, wanted in [("0", "above 0"), ("-1", "above 0"), ("nan", "above 0"), ("inf", "of at most 16")]:
        wanted = f"--scales: expected numbers {wanted}, got {float(scale)}"
        assert wanted in refused(capsys, *command, "--scales", "1", scale)
    (tmp_path / "set" / "val" / "images").mkdir(parents=True)
    shutil.copytree(shapes, tmp_path / "renamed")
    (tmp_path / "renamed" / "classes.txt").write_text("ground\nhouse\nbush\n")
    error = refused(capsys, "evaluate", trained / "last.pt", "--data", tmp_path / "renamed")
    assert "expected a network for the classes of the data, got one for others" in error
