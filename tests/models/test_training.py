"""Training: what each kind of phase learns, runs that are killed and resumed, several ranks."""

import copy
import math
import os
import random
import re
import shlex
import signal
import subprocess
import sys

import pytest
import torch
from training_runs import CONVCRF, FCN, RESNET, SGD, Killed, phase, rows, settings, state, trainer

from assertions import assert_close
from covering import covering
from ranks import run_ranks
from tritoncrf.cli import _parser
from tritoncrf.files import FileError
from tritoncrf.models import checkpoints, config, data, training
from tritoncrf.models.distributed import World
from tritoncrf.models.optimization import matches, select

pytestmark = pytest.mark.usefixtures("empty_figures")

# On the CPU wherever the tests run: there sums have one order, and no rank needs a GPU.
ON_CPU = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def run(found, root, folder):
    """The network's state before and after a run."""
    made = trainer(found, root, folder)
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    made.run()
    return before, state(folder)


# What is learnt ---------------------------------------------------------------------------------------------------


def test_a_network_learns(shapes, tmp_path):
    adam = {"name": "adam", "lr": 0.01, "power": 0.9}
    network = {**RESNET, "width": 0.25, "dropout": 0.0}
    run(settings(phase(epochs=16, optimizer=adam), network=network, validate_every=4), shapes, tmp_path)
    found = rows(tmp_path)
    assert len(found) == 16
    assert float(found[-1]["val_miou"]) > 0.4 > float(found[3]["val_miou"])
    assert float(found[-1]["loss"]) < 0.25 * float(found[0]["loss"])
    assert {p.name for p in tmp_path.iterdir()} == {
        "best.pt", "config.json", "curves.png", "last.pt", "log.csv", "panels",
    }  # fmt: skip
    assert len(list((tmp_path / "panels").iterdir())) == 16


def test_the_unary_phase_leaves_the_crf(shapes, tmp_path):
    found = changed(*run(settings(phase("unary"), crf=CONVCRF), shapes, tmp_path))
    assert found and not any(name.startswith("crf.") for name in found)


def test_the_crf_phase_leaves_the_network_and_its_averages(shapes, tmp_path):
    before, after = run(settings(phase("crf", split="held_out", batch=3), crf=CONVCRF, data={
        "format": "folder", "workers": 0, "held_out": 3}), shapes, tmp_path)  # fmt: skip
    assert changed(before, after) == {name for name in before if name.startswith("crf.")}


def test_the_joint_phase_moves_everything_but_what_is_frozen(shapes, tmp_path):
    found = settings(phase("all", auxiliary=1.0, freeze=["crf.log_theta_*"]), crf=CONVCRF, network=FCN)
    before, after = run(found, shapes, tmp_path)
    still = set(before) - changed(before, after)
    assert still == {"network.upscore8.weight", *(name for name in before if "log_theta" in name)}


@pytest.mark.parametrize("epochs, learns", [(1, False), (2, True)])
def test_every_other_step_learns_from_the_unary_alone(epochs, learns, shapes, tmp_path):
    """Epochs of one step: the first is the unary's, the second that of both."""
    found = settings(phase("all", alternate=True, batch=8, epochs=epochs), crf=CONVCRF, network=FCN)
    before, after = run(found, shapes, tmp_path)
    assert any(name.startswith("crf.") for name in changed(before, after)) is learns


def test_statistics_are_the_means_over_the_batches(shapes, tmp_path):
    found = settings(phase("statistics", epochs=2, batch=4, augment=False), network={**RESNET, "dropout": 0.9})
    made = trainer(found, shapes, tmp_path)
    seen = []
    hook = made.model.network if hasattr(made.model, "network") else made.model
    hook.backbone.bn1.register_forward_pre_hook(lambda m, x: seen.append(x[0].mean((0, 2, 3))) if m.training else None)
    before = {name: p.clone() for name, p in made.model.named_parameters()}
    made.run()
    assert len(seen) == 4
    after = state(tmp_path)
    assert_close("running mean", after["backbone.bn1.running_mean"], torch.stack(seen).mean(0))
    assert not changed(before, after)


def test_statistics_that_follow_begin_anew_each_time(shapes, tmp_path):
    found = settings(phase(epochs=2), phase("statistics", follows="unary", batch=4, augment=False))
    made, seen = trainer(found, shapes, tmp_path), []
    made.model.backbone.bn1.register_forward_pre_hook(
        lambda m, x: seen.append(x[0].mean((0, 2, 3))) if m.training and m.momentum is None else None
    )
    made.run()
    assert len(seen) == 4
    after = state(tmp_path)
    assert_close("running mean", after["backbone.bn1.running_mean"], torch.stack(seen[2:]).mean(0))
    assert after["backbone.bn1.num_batches_tracked"] == 2


def test_statistics_are_those_of_torch(shapes, tmp_path):
    """Of `update_bn` on the same batches; its training mode draws dropout, so there is none here."""
    network = {**RESNET, "dropout": 0.0}
    made = trainer(settings(phase("statistics", batch=4, augment=False), network=network), shapes, tmp_path)
    expected = copy.deepcopy(made.model)
    torch.optim.swa_utils.update_bn([batch["image"] for batch in made._loader(0)], expected)
    made.run()
    found = state(tmp_path)
    assert all(torch.equal(value, found[name]) for name, value in expected.state_dict().items())


def test_a_follower_runs_after_each_epoch(shapes, tmp_path):
    found = settings(
        phase("all", epochs=2), phase("crf", follows="all", split="held_out", batch=1), crf=CONVCRF,
        data={"format": "folder", "workers": 0, "held_out": 2},
    )  # fmt: skip
    run(found, shapes, tmp_path)
    assert [(row["phase"], row["epoch"]) for row in rows(tmp_path)] == [
        ("all", "1"),
        ("crf", "1"),
        ("all", "2"),
        ("crf", "2"),
    ]


def test_a_phase_learns_by_the_robust_loss(shapes, tmp_path):
    """-log(Q + 1) is below 0, and the validation's cross-entropy is not."""
    run(settings(phase(robust=1.0, batch=8), network=FCN), shapes, tmp_path)
    [row] = rows(tmp_path)
    assert -math.log(2) < float(row["loss"]) < 0 < float(row["val_loss"])


def test_a_sum_is_the_mean_times_the_pixels(shapes, tmp_path):
    """One step on all images: the gradient of the sum is the mean's times the number of known pixels."""
    plain = {**SGD, "momentum": 0.0, "weight_decay": 0.0}
    pixels = sum(int((item["labels"] != 255).sum()) for item in data.Images(data.folder(shapes, "train")))
    found = []
    for loss, lr in (("mean", 0.01), ("sum", 0.01 / pixels)):
        changes = {"loss": loss, "batch": 8, "optimizer": {**plain, "lr": lr}}
        found.append(run(settings(phase(**changes), network=FCN), shapes, tmp_path / loss)[1])
    for name in found[0]:
        assert_close(name, found[1][name], found[0][name])


def test_bfloat16(shapes, tmp_path):
    found = settings(phase("all", epochs=2), crf=CONVCRF, amp="bfloat16")
    before, after = run(found, shapes, tmp_path)
    assert all(value.dtype != torch.bfloat16 for value in after.values())
    assert "crf.compatibility" in changed(before, after)


def test_multipliers_and_decay(shapes, tmp_path):
    options = {**SGD, "multipliers": {"crf.*": 100, "*.bias": 2, "crf.compatibility": 0.5}, "also_decay": ["crf.w*"]}
    made = trainer(settings(phase("all", optimizer=options), crf=CONVCRF, network=FCN), shapes, tmp_path)
    optimizer = training.optimizer(made.model, made.config.phases[0].optimizer)
    rates = {id(p): (g["base"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    names = {name: rates[id(p)] for name, p in made.model.named_parameters() if id(p) in rates}
    assert names["network.features.0.weight"] == (0.01, 1e-3)
    assert names["network.features.0.bias"] == (0.02, 0)
    assert names["crf.weight_smooth"] == (1.0, 1e-3)
    assert names["crf.compatibility"] == (0.5, 0)
    training.set_rates(optimizer, power=2, done=0.5)
    assert all(group["lr"] == group["base"] / 4 for group in optimizer.param_groups)


def test_rates_are_those_of_torch():
    """And none depends on those before it, so a run that goes on at a step has that step's."""
    steps, power = 60, 0.9
    options = {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 2e-3, "base": 2e-3}
    ours, theirs = (torch.optim.SGD([dict(options)]) for _ in range(2))
    scheduler = torch.optim.lr_scheduler.PolynomialLR(theirs, total_iters=steps, power=power)
    for step in range(steps):
        training.set_rates(ours, power, step / steps)
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-13)
        theirs.step()
        scheduler.step()


def test_rates_and_decays_are_those_of_the_released_crfrnn():
    """Layer by layer as the example of training in its Caffe code has them: factors of the rate and of the decay."""
    found = config.load("crfrnn_released", ["network.width=0.015625"])
    model = config.build(found, 3, "test")
    select(model, found.phases[0])
    groups = training.optimizer(model, found.phases[0].optimizer).param_groups
    factors = {id(p): (g["lr"] / 1e-13, g["weight_decay"] / 0.0016) for g in groups for p in g["params"]}
    expected = {f"crf.weight_{kernel}": (10_000, 1) for kernel in ("smooth", "appearance")}
    expected |= {"crf.compatibility": (1000, 1), "network.upscore_pool4.weight": (1, 1)}
    layers = [f"features.{n}" for n in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)]
    layers += ["classifier.0", "classifier.3", "score_fr", "score_pool4", "score_pool3", "upscore2"]
    for layer in layers:
        expected |= {f"network.{layer}.weight": (1, 1), f"network.{layer}.bias": (2, 0)}
    parameters = dict(model.named_parameters())
    assert parameters.keys() - expected.keys() == {"network.upscore8.weight"}
    for name, wanted in expected.items():
        assert factors[id(parameters[name])] == pytest.approx(wanted, rel=1e-6), name
    assert len(factors) == len(expected)
    crf = model.crf
    assert torch.equal(crf.weight_smooth, 3 * torch.eye(3)) and torch.equal(crf.weight_appearance, 5 * torch.eye(3))
    assert torch.equal(crf.compatibility, -torch.eye(3)) and (crf.iterations, crf.test_iterations) == (10, 10)


def tiny(name, changes=()):
    """A bundled configuration made small: each phase an epoch on tiny images with a tiny network."""
    table = config.load(name, changes).table()
    table["network"]["width"] = 1 / 16
    table["data"] |= {"format": "folder", "train": "train", "validate": "val", "sbd": "", "workers": 0}
    table["data"] |= {"resize": [32, 40], "held_out": min(table["data"]["held_out"], 4)}
    if table["augment"] is not None:
        table["augment"]["crop"] = [32, 40]
    if table["crf"] is not None and "learn_positions" in table["crf"]:
        table["crf"]["learn_positions"] = [32, 40]
    for entry in table["phases"]:
        entry |= {"epochs": 1, "batch": min(entry["batch"], 2)}
        if entry["optimizer"]:
            entry["optimizer"]["lr"] = max(entry["optimizer"]["lr"], 1e-9)
    return config.parse(table, name)


# Of four that differ in what of the CRF is learnt, convcrf_decoupled_ct learns all of it.
DECOUPLED = "convcrf_decoupled", "convcrf_decoupled_c", "convcrf_decoupled_t"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(path.stem, marks=[pytest.mark.slow] * (path.stem in DECOUPLED))
        for path in sorted(config.BUNDLED.glob("*.toml"))
    ],
)
def test_every_configuration_runs(name, shapes, tmp_path):
    """What a phase says that it learns gets gradients and moves."""
    found = tiny(name)
    before, after = run(found, shapes, tmp_path)
    moved = changed(before, after)
    learnt = {entry.train for entry in found.phases}
    if "crf" in learnt or "all" in learnt:
        frozen = [pattern for entry in found.phases for pattern in entry.freeze]
        crf = {name for name in before if name.startswith("crf.") and not matches(name, frozen)}
        assert crf <= moved, f"{sorted(crf - moved)} did not move"
    if learnt & {"unary", "all"}:
        assert any(not name.startswith("crf.") for name in moved)


def test_the_staged_protocol_goes_on_from_stage_to_stage(shapes, tmp_path):
    """The commands that the two configurations name, each from the one before, down to the CRF."""
    rates, start = [], None
    for name in ("fcn_staged", "crfrnn_released"):
        text = re.sub(r" \\\n# +", " ", (config.BUNDLED / f"{name}.toml").read_text())
        for command in re.findall(r"^#.*tritoncrf (train .*)$", text, re.MULTILINE):
            options = _parser().parse_args(shlex.split(command))
            rates.append(config.load(options.config, options.changes).phases[0].optimizer.lr)
            made = trainer(tiny(options.config, options.changes), shapes, tmp_path / options.out)
            if start is not None:
                assert options.weights == start
                checkpoints.load_weights(made.model, tmp_path / start)
                scores = {k: v for k, v in state(tmp_path / start.parent).items() if k.startswith("score_fr")}
                own = getattr(made.model, "network", made.model).state_dict()
                assert scores["score_fr.weight"].any() and all(torch.equal(own[k], v) for k, v in scores.items())
            before = {k: v.clone() for k, v in made.model.state_dict().items()}
            made.run()
            moved = changed(before, state(tmp_path / options.out))
            still = {k for k in before if "upscore" in k} if name == "fcn_staged" else {"network.upscore8.weight"}
            assert not moved & still
            start = options.out / "last.pt"
    assert rates == [1e-10, 1e-12, 1e-14, 1e-13]


# Killed and resumed -----------------------------------------------------------------------------------------------

INTERRUPTED = {
    "phases": [
        phase("all", epochs=2, auxiliary=0.5, alternate=True, optimizer={**SGD, "power": 0.9}),
        phase("crf", epochs=1, follows="all", split="held_out", optimizer={"name": "adam", "lr": 0.01}),
        phase("statistics"),
    ],
    "network": {**RESNET, "dropout": 0.5},
    "crf": CONVCRF,
    "augment": {"scale": [0.7, 1.4], "mirror": 0.5, "crop": [32, 40]},
    "data": {"format": "folder", "workers": 0, "held_out": 2},
}


@pytest.fixture(scope="module")
def unbroken(shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    run(config.parse(INTERRUPTED, "test"), shapes, folder)
    return folder


def assert_same_run(folder, other):
    assert rows(folder) == rows(other)
    for name in ("last.pt", "best.pt"):
        assert not changed(state(folder, name), state(other, name)), name


# Of its 9 steps: within an epoch, at the end of one, in the follower, in the statistics.
# And a checkpoint after each step, or after each epoch alone.
@pytest.mark.parametrize("step, seconds", covering([1, 2, 4, 5, 8], [0.0, 300.0], at_once=1))
def test_a_run_that_breaks_off_ends_as_an_unbroken_one(step, seconds, shapes, tmp_path, unbroken, monkeypatch):
    found = config.parse(INTERRUPTED, "test")
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", seconds)
    made, forward = trainer(found, shapes, tmp_path), []

    def count(*_):
        if made.model.training or made.model.crf.training or made.model.network.backbone.bn1.training:
            forward.append(1)
        if len(forward) > step:
            raise Killed

    made.model.register_forward_pre_hook(count)
    with pytest.raises(Killed):
        made.run()
    torch.manual_seed(12345)
    trainer(found, shapes, tmp_path, resume=True).run()
    assert_same_run(tmp_path, unbroken)


@pytest.mark.parametrize("part", ["_log", "_panel", "_checkpoint"])
def test_a_run_that_breaks_off_between_its_files(part, shapes, tmp_path, unbroken, monkeypatch):
    """At the end of the second epoch: before the log, the panel or the checkpoint of it are written."""
    made, whole = trainer(config.parse(INTERRUPTED, "test"), shapes, tmp_path), getattr(training.Trainer, part)

    def break_off(self):
        if len(self.rows) == 2:
            raise Killed
        whole(self)

    monkeypatch.setattr(training.Trainer, part, break_off)
    with pytest.raises(Killed):
        made.run()
    monkeypatch.undo()
    trainer(config.parse(INTERRUPTED, "test"), shapes, tmp_path, resume=True).run()
    assert_same_run(tmp_path, unbroken)
    assert len(list((tmp_path / "panels").iterdir())) == 5


def test_leftovers_of_a_killed_run_go_and_other_files_stay(shapes, tmp_path):
    token = "0123456789abcdef"
    own = [tmp_path / f".last.pt.{token}.part", tmp_path / "panels" / f".epoch_0001.png.{token}.part"]
    foreign = [tmp_path / ".movie.mkv.part", tmp_path / f".x.pt.{token}.part", tmp_path / "panels" / ".x.part"]
    foreign += [tmp_path / "a" / "b" / f".last.pt.{token}.part"]
    for path in own + foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / ".d.part").mkdir()
    trainer(settings(phase()), shapes, tmp_path)
    assert not any(path.exists() for path in own)
    assert all(path.exists() for path in [*foreign, tmp_path / ".d.part"])


CALLS = 15_000  # of functions, about as many as a step makes

# The command line with a checkpoint after each step; some calls of functions after a certain one the process kills itself.
KILLED = """
import os, signal, sys
from tritoncrf.models import __main__ as cli, training

left, checkpoint = {calls}, training.Trainer._checkpoint

def count(*_):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)

def saved(trainer):
    checkpoint(trainer)
    if (trainer.turn, trainer.step) >= {reached}:
        sys.setprofile(count)

training.CHECKPOINT_SECONDS, training.Trainer._checkpoint = 0.0, saved
sys.exit(cli.main({arguments}))
"""


def toml(table):
    """A configuration as text; enough of TOML for these."""

    def value(v):
        if isinstance(v, dict):
            return "{" + ", ".join(f'"{k}" = {value(x)}' for k, x in v.items()) + "}"
        if isinstance(v, (list, tuple)):
            return "[" + ", ".join(map(value, v)) + "]"
        return str(v).lower() if isinstance(v, bool) else repr(v) if not isinstance(v, str) else f'"{v}"'

    return "\n".join(f"{key} = {value(entry)}" for key, entry in table.items())


def progress(folder):
    """(turn, step) of the last checkpoint."""
    training = checkpoints.read(folder / "last.pt")["training"]
    return training["turn"], training["step"]


@pytest.mark.processes
def test_a_killed_process_resumes(shapes, tmp_path, unbroken):
    """SIGKILL within the first epoch, and again in a later phase, each at whatever moment of a step; then to the end."""
    path, folder = tmp_path / "run.toml", tmp_path / "run"
    path.write_text(toml(INTERRUPTED))
    arguments = ["train", str(path), "--data", str(shapes), "-o", str(folder)]
    for resume, reached in ([], (0, 1)), (["--resume"], (2, 1)):
        code = KILLED.format(calls=random.randrange(CALLS), reached=reached, arguments=[*arguments, *resume])
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ON_CPU)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert reached <= progress(folder) < (5, 0)
    trainer(config.load(path), shapes, folder, resume=True).run()
    assert_same_run(folder, unbroken)
    assert not list(folder.rglob(".*.part"))


def test_other_runs_that_break_off(shapes, tmp_path, monkeypatch):
    """With workers, hard pixels, half precision and its scaler, a lattice, and momentum of SGD."""
    table = {
        "phases": [phase("all", epochs=2, ohem=0.5)],
        "network": FCN | {"dropout": 0.5},
        "crf": {
            "name": "CRFRNN",
            "iterations": 2,
            "test_iterations": 2,
            "weight_smooth": 1.0,
            "weight_appearance": 1.0,
        },
        "data": {"format": "folder", "workers": 1},
        "amp": "float16",
    }
    found = config.parse(table, "test")
    run(found, shapes, tmp_path / "whole")
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    made, seen = trainer(found, shapes, tmp_path / "broken"), []
    made.model.register_forward_pre_hook(lambda *_: seen.append(1) if made.model.training else None)
    made.model.register_forward_hook(lambda *_: break_off() if len(seen) == 6 else None)

    def break_off():
        raise Killed

    with pytest.raises(Killed):
        made.run()
    trainer(found, shapes, tmp_path / "broken", resume=True).run()
    assert_same_run(tmp_path / "broken", tmp_path / "whole")


# Several ranks ----------------------------------------------------------------------------------------------------


@pytest.mark.processes
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
@pytest.mark.parametrize(
    "alternate, torchrun",
    [
        pytest.param(False, True, id="joint-torchrun", marks=pytest.mark.slow),
        pytest.param(True, False, id="alternate"),
    ],
)
def test_two_ranks_learn_as_one_does(alternate, torchrun, shapes, tmp_path):
    """The same loss curve and weights; images have different numbers of known pixels, which count over the ranks.

    Few steps, and slow ones: a batch in two halves rounds otherwise, and from the first unit on whose sign or place in a
    maximum that turns over, the runs part by more than rounding."""
    slow = {**SGD, "lr": 1e-3}
    table = {
        "network": FCN,
        "crf": CONVCRF,
        "phases": [
            phase("unary", batch=4, optimizer=slow),
            phase("all", epochs=1 + alternate, batch=4, auxiliary=0.5, alternate=alternate, optimizer=slow),
            phase("crf", batch=2, optimizer=slow),
        ],
        "data": {"format": "folder", "workers": 0},
    }
    path = tmp_path / "run.toml"
    path.write_text(toml(table))
    before, _ = run(config.parse(table, "test"), shapes, tmp_path / "one")
    start = torch.cat([x.flatten() for x in before.values()])
    command = ["-m", "tritoncrf.models", "train", path, "--data", shapes, "-o", tmp_path / "two"]
    if torchrun:
        launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", *command]
        done = subprocess.run(list(map(str, launch)), capture_output=True, text=True, env=ON_CPU)
        assert done.returncode == 0, done.stderr
    else:
        ranks = run_ranks([sys.executable, *command], ON_CPU)
        assert all(status == 0 for status, _ in ranks), ranks
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert len(one) == len(two) == 3 + alternate
    for a, b in zip(one, two):
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-5)
        assert float(a["val_loss"]) == pytest.approx(float(b["val_loss"]), rel=1e-5)
    one, two = (torch.cat([x.flatten() for x in state(tmp_path / name).values()]) for name in ("one", "two"))
    assert_close("what was learnt", two - start, one - start)


def test_batch_norm_on_ranks_without_gpus_is_refused(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda x: x)  # the other rank has nothing to say
    found = settings(phase())
    splits = {name: data.folder(shapes, split) for name, split in (("train", "train"), ("validate", "val"))}
    with pytest.raises(ValueError, match="torchrun: expected GPUs for a network with batch norm"):
        training.Trainer(
            found, config.build(found, 3, "test"), splits, None, tmp_path, World(torch.device("cpu"), 0, 2), False
        )


@pytest.mark.processes
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_a_fault_is_said_once(shapes, tmp_path):
    """Both ranks end, and one says why."""
    path = tmp_path / "run.toml"
    path.write_text(toml({"network": FCN, "data": {"format": "folder"}, "phases": [phase(batch=2, freeze=["x"])]}))
    command = [sys.executable, "-m", "tritoncrf.models", "train", path, "--data", shapes, "-o", tmp_path / "run"]
    (first, said), (second, also_said) = run_ranks(command, ON_CPU)
    assert first != 0 and second != 0
    assert (said + also_said).count("tritoncrf.models: error: ") == 1
    assert "phases.unary.freeze: expected patterns of parameters' names" in said
    assert not (tmp_path / "run").exists()


# Bad input --------------------------------------------------------------------------------------------------------


def test_a_folder_with_a_run_is_kept(shapes, tmp_path):
    found = settings(phase(epochs=2))
    run(found, shapes, tmp_path)
    kept = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(FileError, match=re.escape(f"{tmp_path}: expected a new folder, got one with a run; --resume")):
        trainer(found, shapes, tmp_path)
    with pytest.raises(
        FileError, match="last.pt: expected a run of this configuration and data, got one that differs in seed"
    ):
        trainer(settings(phase(epochs=2), seed=3), shapes, tmp_path, resume=True)
    assert (tmp_path / "last.pt").read_bytes() == kept


def test_a_checkpoint_of_a_network_alone_is_no_run(shapes, tmp_path):
    found = settings(phase())
    run(found, shapes, tmp_path)
    (tmp_path / "last.pt").write_bytes((tmp_path / "best.pt").read_bytes())
    with pytest.raises(FileError, match="last.pt: expected the checkpoint of a run, got one with only a network"):
        trainer(found, shapes, tmp_path, resume=True)


def test_a_run_from_before_a_key_existed_goes_on(shapes, tmp_path):
    run(settings(phase(epochs=2)), shapes, tmp_path)
    old = checkpoints.read(tmp_path / "last.pt")
    for table in (old["config"], old["training"]["identity"]):
        del table["phases"][0]["hardest"], table["validate_every"]
    del old["mark"]
    checkpoints.write(tmp_path / "last.pt", old)
    trainer(settings(phase(epochs=2)), shapes, tmp_path, resume=True).run()
    changed_since = settings(phase(epochs=2, ohem=0.5, hardest="released"))
    with pytest.raises(
        FileError, match="expected a run of this configuration and data, got one that differs in phases"
    ):
        trainer(changed_since, shapes, tmp_path, resume=True)


def test_where_and_how_images_are_read_may_change(shapes, tmp_path):
    run(settings(phase()), shapes, tmp_path)
    data = {"format": "folder", "workers": 1, "root": "elsewhere"}
    trainer(settings(phase(), data=data), shapes, tmp_path, resume=True).run()


def test_a_finished_run_resumes_to_nothing(shapes, tmp_path):
    found = settings(phase())
    run(found, shapes, tmp_path)
    kept = (tmp_path / "last.pt").read_bytes()
    trainer(found, shapes, tmp_path, resume=True).run()
    assert (tmp_path / "last.pt").read_bytes() == kept


def test_a_loss_that_is_not_finite_stops_the_run(shapes, tmp_path):
    found = settings(phase(epochs=2, optimizer={**SGD, "lr": 1e30}), network=FCN)
    made = trainer(found, shapes, tmp_path)
    with pytest.raises(ValueError, match="phases.unary: the loss is not finite at step .* a smaller optimizer.lr"):
        made.run()
    assert all(value.isfinite().all() for value in state(tmp_path).values())


def test_a_batch_larger_than_its_split(shapes, tmp_path):
    with pytest.raises(ValueError, match="phases.unary.batch: expected at most the 8 images of its split, got 9"):
        trainer(settings(phase(batch=9)), shapes, tmp_path)
