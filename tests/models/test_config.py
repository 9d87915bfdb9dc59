"""Configurations: read strictly, changed from the command line, kept in checkpoints."""

import re
import sys

import pytest
import torch

from tritoncrf.files import FileError
from tritoncrf.models import config

MINIMAL = """
[network]
name = "ResNetFCN"
depth = 18
width = 0.125

[data]
format = "camvid"

[[phases]]
name = "unary"
train = "unary"
epochs = 3
batch = 2
[phases.optimizer]
name = "sgd"
lr = 1
"""
TUNED = (
    MINIMAL.replace('"camvid"', '"camvid"\nheld_out = 4')
    + """
[[phases]]
name = "tune"
train = "unary"
split = "held_out"
epochs = 2
batch = 1
follows = "unary"
[phases.optimizer]
name = "adam"
lr = 0.1
"""
)


def written(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text)
    return path


def test_defaults_and_types(tmp_path):
    found = config.load(written(tmp_path, MINIMAL))
    assert found.seed == 0 and found.crf is None and found.augment is None and found.amp == "off"
    assert found.data.train == "train" and found.data.resize is None
    assert found.phases[0].optimizer.lr == 1.0 and isinstance(found.phases[0].optimizer.lr, float)
    assert found.phases[0].optimizer.multipliers == {}


def test_a_table_reads_back_as_the_same_configuration(tmp_path):
    text = TUNED.replace("[data]", "[data]\nresize = [90, 120]") + 'multipliers = { "crf.*" = 2 }\n'
    found = config.load(written(tmp_path, text))
    assert found.data.resize == (90, 120)
    assert config.parse(found.table(), "checkpoint") == found


def test_turns_run_a_follower_after_each_epoch(tmp_path):
    found = config.load(written(tmp_path, TUNED))
    assert list(found.turns()) == [(0, 0), (1, 0), (1, 1), (0, 1), (1, 2), (1, 3), (0, 2), (1, 4), (1, 5)]
    assert found.epochs(0) == 3 and found.epochs(1) == 6


def test_changes_from_the_command_line(tmp_path):
    path = written(tmp_path, MINIMAL)
    changes = ["seed=7", "phases.unary.epochs=9", "data.resize=[8, 9]", "network.name=FCN8s", "data.root=/some/where"]
    found = config.load(path, changes)
    assert (found.seed, found.phases[0].epochs, found.data.resize) == (7, 9, (8, 9))
    assert found.network["name"] == "FCN8s" and found.data.root == "/some/where"


@pytest.mark.parametrize("path", sorted(config.BUNDLED.glob("*.toml")), ids=lambda path: path.stem)
def test_installed_configurations_are_found_by_name(path):
    found = config.load(path.stem)
    assert found == config.load(path)
    config.augmentation(found, path.stem)
    with torch.device("meta"):
        config.build(found, 21, path.stem)


BAD = [
    ("seed = 0", "sead = 0", "sead: unknown key; did you mean 'seed'?"),
    (
        'name = "ResNetFCN"',
        'name = "UNet"',
        "network.name: expected one of FCN32s, FCN16s, FCN8s, ResNetFCN, SegModel, TimmFCN, got 'UNet'",
    ),
    (
        'format = "camvid"',
        'format = "kitti"',
        "data.format: expected one of 'camvid', 'voc', 'folder', 'cityscapes', 'ade20k', "
        "'pascal_context', 'coco', got 'kitti'",
    ),
    ('format = "camvid"', 'format = "camvid"\nresize = [90]', "data.resize: expected a list of 2, got [90]"),
    ('format = "camvid"', 'format = "camvid"\nworkers = true', "data.workers: expected a whole number, got True"),
    ("epochs = 3", 'epochs = "3"', "phases.unary.epochs: expected a whole number, got '3'"),
    ("epochs = 3", "epochs = 0", "phases.unary.epochs: expected at least 1, got 0"),
    ("batch = 2\n", "", "phases[0].batch: expected a value, got none"),
    ("lr = 1", 'lr = "fast"', "phases.unary.optimizer.lr: expected a finite number, got 'fast'"),
    ("lr = 1", "rate = 1", "phases.unary.optimizer.rate: unknown key"),
    ("epochs = 3", "epochs = 3\nohem = 2", "phases.unary.ohem: expected a share above 0 and at most 1, got 2.0"),
    (
        "epochs = 3",
        'epochs = 3\nhardest = "all"',
        "phases.unary.hardest: expected one of 'known', 'released', got 'all'",
    ),
    ("epochs = 3", 'epochs = 3\nhardest = "released"', "phases.unary.hardest: expected 'known' where all pixels count"),
    ("epochs = 3", "epochs = 3\nrobust = 2", "phases.unary.robust: expected a number from 0 to 1, got 2.0"),
    ("epochs = 3", 'epochs = 3\nsplit = "held_out"', "phases.unary.split: expected images of it: set data.held_out"),
    ("epochs = 3", 'epochs = 3\nfollows = "x"', "phases.unary.follows: expected an earlier phase"),
    ('train = "unary"', 'train = "statistics"', "phases.unary.optimizer: expected one where something is learned"),
    ('train = "unary"', 'train = "crf"', "phases.unary.train: expected something else where there is no CRF"),
    ("[data]", '[crf]\nname = "MRF"\n[data]', "crf.name: expected one of ConvCRF, CRFRNN, GuidanceCRF, got 'MRF'"),
    ("[data]", "[data", "expected TOML, unreadable"),
    ("seed = 0", "seed = -1", "seed: expected a number from 0 to 4294967295, got -1"),
    ("seed = 0", "validate_every = 0", "validate_every: expected a number of at least 1, got 0"),
    ("[data]", "[data]\nworkers = -1", "data.workers: expected a number of at least 0, got -1"),
    ("[data]", "[data]\nresize = [0, 4]", "data.resize: expected a number of at least 1, got 0"),
    ("[data]", "[data]\nworkers = 100000", "data.workers: expected a number of at most 256, got 100000"),
    ("[data]", "[data]\nresize = [4, 99999]", "data.resize: expected a number of at most 16384, got 99999"),
    ("epochs = 3", "epochs = 1000000000", "phases.unary.epochs: expected at most 100000, got 1000000000"),
    ("seed = 0", f"seed = {'[' * 5000}", "expected TOML, unreadable: "),
    ("seed = 0", f"seed = {'1' * 5000}", "expected TOML, unreadable: "),
    ("depth = 18", f"depth = {'[' * 9}1{']' * 9}", "expected at most 8 nested tables or lists, got more"),
    ("lr = 1", f"lr = 1{'0' * 400}", "phases.0.optimizer.lr: expected a number of at most 64 bits, got 1329 bits"),
    ("lr = 1", "lr = 0", "phases.unary.optimizer.lr: expected numbers above 0, got 0.0"),
    ("lr = 1", "lr = nan", "phases.unary.optimizer.lr: expected a finite number, got nan"),
    ("lr = 1", "lr = 1\nmomentum = 1.0", "phases.unary.optimizer.momentum: expected numbers from 0 to below 1"),
    ("lr = 1", "lr = 1\nweight_decay = -1", "phases.unary.optimizer.weight_decay: expected numbers of at least 0"),
    ("lr = 1", "lr = 1\npower = -1", "phases.unary.optimizer.power: expected numbers of at least 0, got -1.0"),
    ("lr = 1", "lr = 1\nmultipliers = { a = -2 }", "phases.unary.optimizer.multipliers: expected numbers of at least"),
    ("epochs = 3", "epochs = 3\nauxiliary = 1", "phases.unary.auxiliary: expected 0 unless a network and its CRF"),
    ("epochs = 3", "epochs = 3\nalternate = true", "phases.unary.alternate: expected false unless a network and its"),
    (
        'name = "ResNetFCN"',
        'name = ["a"]',
        "network.name: expected one of FCN32s, FCN16s, FCN8s, ResNetFCN, SegModel, TimmFCN, got ['a']",
    ),
]


@pytest.mark.parametrize("old, new, message", BAD, ids=[case[2] for case in BAD])
def test_bad_configurations(tmp_path, old, new, message):
    text = ("seed = 0\n" + MINIMAL).replace(old, new, 1)
    path = written(tmp_path, text)
    with pytest.raises(FileError, match=re.escape(f"{path}: ") + ".*" + re.escape(message)):
        config.load(path)


def test_bad_arguments_of_what_is_built(tmp_path):
    path = written(tmp_path, MINIMAL.replace("depth = 18", "depth = 19") + "[augment]\nmirror = 2\n")
    found = config.load(path)
    with pytest.raises(FileError, match="run.toml: network: depth: expected one of 18, 34, 50, 101, 152, got 19"):
        config.build(found, 3, str(path))
    with pytest.raises(FileError, match="run.toml: augment: mirror: expected a number from 0 to 1, got 2"):
        config.augmentation(found, str(path))
    found = config.load(written(tmp_path, MINIMAL.replace("depth = 18", "depht = 18")))
    with pytest.raises(FileError, match="run.toml: network.depht: unknown key; did you mean 'depth'"):
        config.build(found, 3, "run.toml")


@pytest.mark.parametrize(
    "change",
    ["seed", "=3", "phases.no.epochs=3", "phases.unary=3", "seed.x=1", "data.resize.a.b=5", "phases.unary.freeze.x=1"],
)
def test_bad_changes(tmp_path, change):
    with pytest.raises(FileError, match="^--set|phases|data.resize: expected a list"):
        config.load(written(tmp_path, "seed = 1\n" + MINIMAL), [change])


def test_epochs_of_all_phases_together(tmp_path):
    path = written(tmp_path, TUNED)
    with pytest.raises(FileError, match="run.toml: phases: expected at most 100000 epochs in all, got 120003"):
        config.load(path, ["phases.tune.epochs=40000"])


def test_a_change_too_deep_to_read(tmp_path):
    with pytest.raises(FileError, match="--set seed: expected a value, got one nested too deeply"):
        config.load(written(tmp_path, MINIMAL), [f"seed={'[' * 5000}"])


@pytest.mark.parametrize("key", ["network.device", "network.dtype", "crf.device"])
def test_where_a_network_is_made_is_none_of_its_arguments(tmp_path, key):
    found = config.load(written(tmp_path, MINIMAL + '[crf]\nname = "CRFRNN"\n'), [f"{key}=x"])
    with pytest.raises(FileError, match=f"run.toml: {key}: expected none, since the run chooses it, got 'x'"):
        config.build(found, 3, "run.toml")


def test_a_backbone_of_timm_without_timm(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    found = config.load(written(tmp_path, MINIMAL), ["network={name='TimmFCN', backbone='resnet10t'}"])
    with pytest.raises(ModuleNotFoundError, match=r'^TimmFCN needs timm: pip install "tritoncrf\[timm\]"$'):
        config.build(found, 3, "run.toml")


def test_no_such_file(tmp_path):
    with pytest.raises(FileError, match="missing.toml: expected a configuration file, or one of .*small_unary"):
        config.load(tmp_path / "missing.toml")
