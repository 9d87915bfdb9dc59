"""Checkpoints: every changed bit is found, and a field that is not sound is named."""

import copy
import random
import re
import subprocess
import sys

import pytest
import torch
from training_runs import CONVCRF, FCN, SGD, Killed, phase, rows, settings, trainer

import tritoncrf as tc
from tritoncrf.files import FileError
from tritoncrf.models import WithCRF, checkpoints, config, training

pytestmark = pytest.mark.usefixtures("empty_figures")


@pytest.fixture(scope="module")
def found():
    return settings(phase(epochs=2), phase("all", optimizer={"name": "adam", "lr": 0.01}), network=FCN, crf=CONVCRF)


@pytest.fixture(scope="module")
def stopped(found, shapes, tmp_path_factory):
    """The folder of a run that was killed in its last epoch, after a step: the state of an optimizer is in it."""
    folder = tmp_path_factory.mktemp("stopped")
    made = trainer(found, shapes, folder)
    seen = []

    def stop(*_):
        seen.append(made.turn)
        if seen.count(2) == 2:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(made, "_learn", lambda *a, learn=made._learn: (stop(), learn(*a))[1])
        with pytest.raises(Killed):
            made.run()
    return folder


def test_torch_loads_it(stopped):
    state = torch.load(stopped / "last.pt", weights_only=True)
    assert state["mark"] == "tritoncrf segmenter 2"
    assert (
        state["training"]["turn"] == 2
        and state["training"]["step"] == 1
        and list(state["training"]["optimizers"]) == [1]
    )


def test_every_changed_bit_is_found(stopped, tmp_path):
    whole = (stopped / "last.pt").read_bytes()
    places = [0, 1, len(whole) - 1, *range(len(whole) - 100, len(whole) - 60)]
    places += random.Random(0).sample(range(len(whole)), 30)
    path = tmp_path / "flipped.pt"
    for place in places:
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        with pytest.raises(FileError, match=re.escape(str(path))):
            checkpoints.read(path)
    for end in (0, 1, 50, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(FileError, match=re.escape(str(path))):
            checkpoints.read(path)
    path.write_bytes(whole)
    assert checkpoints.read(path)["mark"]


def test_a_damaged_file_starts_no_network(stopped, found, tmp_path):
    content = bytearray((stopped / "last.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "damaged.pt").write_bytes(content)
    with pytest.raises(FileError, match="damaged.pt: expected weights, got a damaged one"):
        checkpoints.load_weights(config.build(found, 3, "test"), tmp_path / "damaged.pt")


def test_an_fcn_goes_on_from_one_of_a_larger_stride_and_says_so(tmp_path):
    saved, crf = {}, {"name": "CRFRNN"}
    for name, has_crf in (("FCN32s", True), ("FCN16s", False), ("FCN8s", False)):
        table = {"network": {"name": name, "width": 1 / 64}, "data": {"format": "folder"}, "phases": [phase()]}
        found = config.parse(table | ({"crf": crf} if has_crf else {}), "test")
        saved[name] = config.build(found, 3, "test"), tmp_path / f"{name}.pt"
        checkpoints.save(saved[name][1], saved[name][0], found, ("a", "b", "c"))
    fcn32, fcn16 = saved["FCN32s"][0].network, saved["FCN16s"][0]
    assert checkpoints.load_weights(fcn16, saved["FCN32s"][1]) == [
        "loaded the network; the CRF is a different one and starts from its initial parameters",
        "its network has a larger stride; score_pool4, upscore2, upscore16 start from initial weights",
    ]
    assert torch.equal(fcn16.classifier[3].weight, fcn32.classifier[3].weight)
    assert checkpoints.load_weights(WithCRF(saved["FCN8s"][0], tc.CRFRNN(3)), saved["FCN16s"][1]) == [
        "its network has a larger stride; score_pool3, upscore_pool4, upscore8 start from initial weights"
    ]
    before = {name: value.clone() for name, value in fcn16.state_dict().items()}
    with pytest.raises(FileError, match="FCN8s.pt: expected the parameters of this network, got upscore16.weight miss"):
        checkpoints.load_weights(fcn16, saved["FCN8s"][1])
    assert all(torch.equal(value, before[name]) for name, value in fcn16.state_dict().items())


@pytest.mark.parametrize(
    "mark, message",
    [
        ("tritoncrf segmenter 1", "expected a checkpoint of version 2, got 'tritoncrf segmenter 1', an earlier one"),
        ("tritoncrf segmenter 3", "expected a checkpoint of version 2, got 'tritoncrf segmenter 3', a later one"),
        ("tritoncrf segmenter x", "got 'tritoncrf segmenter x', no known one"),
        ("something", "expected a checkpoint of tritoncrf.models, got another file"),
        (None, "expected a checkpoint of tritoncrf.models, got another file"),
        (torch.zeros(3), "expected a checkpoint of tritoncrf.models, got another file"),
    ],
    ids=str,
)
def test_other_versions_and_files(stopped, tmp_path, mark, message):
    torch.save(checkpoints.read(stopped / "last.pt") | {"mark": mark}, tmp_path / "other.pt")
    with pytest.raises(FileError, match=re.escape(f"{tmp_path / 'other.pt'}: ") + ".*" + re.escape(message)):
        checkpoints.read(tmp_path / "other.pt")


def test_a_file_without_its_checksum(stopped, tmp_path):
    torch.save(checkpoints.read(stopped / "last.pt"), tmp_path / "bare.pt")
    with pytest.raises(FileError, match="bare.pt: expected a checkpoint with a checksum, got one without"):
        checkpoints.read(tmp_path / "bare.pt")


GONE = object()
NAN = torch.full((3,), float("nan"))
# Where, what stands there instead, and what the error says; of a network first, then of a run.
NETWORK = [
    ("config", GONE, "config: expected a dict, got none"),
    ("config", 3, "config: expected a dict, got 3"),
    ("config", {}, "config: network: expected a value, got none"),
    ("config.network", NAN, "config.network: expected texts and numbers, got a Tensor"),
    ("config.network", {1: 2}, "config.network: expected names, got 1"),
    ("config.network.name", "UNet", "config: network.name: expected one of"),
    ("config.network.width", "wide", "config: network: width: "),
    ("config.data.workers", 100000, "config: data.workers: expected a number of at most 256, got 100000"),
    ("config.phases", [], "config: phases: expected a number of at least 1, got 0"),
    ("config.phases.0.epochs", 10**9, "config: phases.unary.epochs: expected at most 100000, got 1000000000"),
    ("classes", GONE, "classes: expected a list, got none"),
    ("classes", "abc", "classes: expected a list, got 'abc'"),
    ("classes", [], "classes: expected 1 to 255 different names, got []"),
    ("classes", ["a", "a", "b"], "classes: expected 1 to 255 different names, got ['a', 'a', 'b']"),
    ("classes", ["a", "", "b"], "classes: expected 1 to 255 different names, got ['a', '', 'b']"),
    ("classes", [1, 2, 3], "classes: expected 1 to 255 different names, got [1, 2, 3]"),
    ("model", GONE, "model: expected a dict, got none"),
    ("model", [], "model: expected a dict, got []"),
    ("model", {3: NAN}, "model: expected names of parameters, got 3"),
    (
        "model.crf.compatibility",
        "text",
        "model.crf.compatibility: expected a tensor of finite real numbers, got 'text'",
    ),
    ("model.crf.compatibility", torch.eye(3).to_sparse(), "model.crf.compatibility: expected a tensor of finite"),
    ("model.crf.compatibility", torch.eye(3) * 1j, "model.crf.compatibility: expected a tensor of finite real numbers"),
    ("model.crf.compatibility", torch.eye(3) / 0, "model.crf.compatibility: expected a tensor of finite real numbers"),
    ("model.crf.compatibility", torch.eye(4), "crf.compatibility of shape [4, 4] for [3, 3]"),
    ("model.crf.compatibility", torch.eye(3).long(), "crf.compatibility of torch.int64 for torch.float32"),
    ("model.crf.compatibility", torch.eye(3, device="meta"), "model.crf.compatibility: expected a tensor of finite"),
    ("model.crf.compatibility", GONE, "crf.compatibility missing"),
    ("model.other", torch.eye(3), "other unknown"),
    ("training", "text", "training: expected a dict, got 'text'"),
]
RUN = [
    ("training", GONE, "expected the checkpoint of a run, got one with only a network"),
    ("training.identity", GONE, "training.identity: expected a dict, got none"),
    ("training.identity.seed", NAN, "training.identity.seed: expected texts and numbers, got a Tensor"),
    ("training.identity.seed", 5, "expected a run of this configuration and data, got one that differs in seed"),
    ("training.turn", GONE, "training.turn: expected a whole number, got none"),
    ("training.turn", -1, "training.turn: expected a finite number from 0 to 3, got -1"),
    ("training.turn", 4, "training.turn: expected a finite number from 0 to 3, got 4"),
    ("training.turn", 1.0, "training.turn: expected a whole number, got 1.0"),
    ("training.turn", True, "training.turn: expected a whole number, got True"),
    ("training.step", 10**9, "training.step: expected a finite number from 0 to 4, got 1000000000"),
    ("training.step", 10**400, "training.step: expected a finite number from 0 to 4, got 1000"),
    ("training.seconds", 10**400, "training.seconds: expected a finite number of at least 0, got 1000"),
    ("training.step", "x", "training.step: expected a whole number, got 'x'"),
    ("training.seconds", float("nan"), "training.seconds: expected a finite number of at least 0, got nan"),
    ("training.best", "x", "training.best: expected a finite number from -1 to 1, got 'x'"),
    ("training.best", 7.0, "training.best: expected a finite number from -1 to 1, got 7.0"),
    ("training.loss", None, "training.loss: expected a finite number of at least 0, got None"),
    ("training.rows", {}, "training.rows: expected a list, got {}"),
    ("training.rows", [], "training.rows: expected one for each of 2 epochs, got 0"),
    ("training.rows.1", {"turn": 1}, "training.rows.1: expected turn, phase, epoch"),
    ("training.rows.1.loss", "low", "training.rows.1.loss: expected a number, got 'low'"),
    ("training.rows.1.phase", "x", "training.rows.1: expected turn, phase"),
    ("training.rows.1.turn", torch.zeros(2), "training.rows.1.turn: expected texts and numbers, got a Tensor"),
    ("training.scaler", {"scale": 1.0}, "training.scaler: expected [], got ['scale']"),
    ("training.optimizers", GONE, "training.optimizers: expected a dict, got none"),
    ("training.optimizers", {}, "training.optimizers: expected those of the phases {1}, got []"),
    ("training.optimizers", {7: {}}, "training.optimizers: expected those of the phases {1}, got [7]"),
    ("training.optimizers.1", [], "training.optimizers.1: expected a dict, got []"),
    ("training.optimizers.1.state", GONE, "training.optimizers.1.state: expected a dict, got none"),
    ("training.optimizers.1.state", {}, "training.optimizers.1.state: expected that of the parameters, got none"),
    ("training.optimizers.1.state.0", {}, "training.optimizers.1.state: expected exp_avg, exp_avg_sq, step of each"),
    ("training.optimizers.1.state.999", {}, "training.optimizers.1.state: expected exp_avg, exp_avg_sq, step of each"),
    ("training.optimizers.1.state.0.exp_avg", NAN, "state.0.exp_avg: expected a tensor of finite real numbers"),
    ("training.optimizers.1.state.0.exp_avg", torch.ones(3), "state.0.exp_avg: expected shape ["),
    ("training.optimizers.1.state.0.step", "x", "state.0.step: expected a tensor of finite real numbers, got 'x'"),
    ("training.optimizers.1.param_groups", [], "param_groups: expected the parameters that this phase trains"),
    ("training.optimizers.1.param_groups.0", 3, "param_groups: expected the parameters that this phase trains"),
    (
        "training.optimizers.1.param_groups.0.lr",
        "x",
        "param_groups.lr: expected a finite number of at least 0, got 'x'",
    ),
]


def altered(state, where, value):
    """A copy of a state with another value at a place, named with dots; parameters have dots in their own names."""
    state = copy.deepcopy(state)
    first, _, rest = where.partition(".")
    names = [first, rest] if first == "model" and rest else where.split(".")
    table = state
    for name in names[:-1]:
        table = table[int(name) if name.isdigit() else name]
    last = int(names[-1]) if names[-1].isdigit() else names[-1]
    if value is GONE:
        del table[last]
    else:
        table[last] = value
    return state


def ids(cases):
    return [f"{where}-{n}" for n, (where, _, _) in enumerate(cases)]


@pytest.mark.parametrize("where, value, message", NETWORK, ids=ids(NETWORK))
def test_a_field_of_a_network(stopped, tmp_path, device, where, value, message):
    checkpoints.write(tmp_path / "bad.pt", altered(checkpoints.read(stopped / "last.pt"), where, value))
    with pytest.raises(FileError, match=re.escape(f"{tmp_path / 'bad.pt'}: ") + ".*" + re.escape(message)):
        checkpoints.trained(tmp_path / "bad.pt", device)


@pytest.mark.parametrize("where, value, message", RUN, ids=ids(RUN))
def test_a_field_of_a_run(stopped, shapes, found, tmp_path, where, value, message):
    checkpoints.write(tmp_path / "last.pt", altered(checkpoints.read(stopped / "last.pt"), where, value))
    kept = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(FileError, match=re.escape(f"{tmp_path / 'last.pt'}: ") + ".*" + re.escape(message)):
        trainer(found, shapes, tmp_path, resume=True)
    assert (tmp_path / "last.pt").read_bytes() == kept and [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_the_file_that_the_others_alter_is_sound(stopped, shapes, found, tmp_path):
    (tmp_path / "last.pt").write_bytes((stopped / "last.pt").read_bytes())
    trainer(found, shapes, tmp_path, resume=True).run()
    assert len(rows(tmp_path)) == 3


# One run a folder -------------------------------------------------------------------------------------------------

HOLDER = """
import sys
from pathlib import Path
from tritoncrf.locks import locked

with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.processes
@pytest.mark.skipif(sys.platform == "win32", reason="no such locks on Windows")
def test_two_runs_in_one_folder(shapes, tmp_path):
    found = settings(phase(optimizer=SGD), network=FCN)
    arguments = [sys.executable, "-c", HOLDER, tmp_path]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(
            FileError, match=f"{tmp_path}: expected a folder for this run alone, got one in use by another"
        ):
            trainer(found, shapes, tmp_path)
        assert not list(tmp_path.iterdir())
        other.kill()
    made = trainer(found, shapes, tmp_path)
    with pytest.raises(FileError, match="expected a folder for this run alone"):
        trainer(found, shapes, tmp_path)
    made.run()
    trainer(found, shapes, tmp_path, resume=True)


def test_a_full_disk_is_named(shapes, tmp_path, monkeypatch):
    made = trainer(settings(phase(), network=FCN), shapes, tmp_path)
    (tmp_path / "last.pt").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device: '.*last.pt'"):
        made.run()
