"""Items over a Ray cluster: each has its outcome, whatever becomes of one of them and of the cluster."""

import json
import os
import re
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import tritoncrf as tc
from cluster_stages import Toy
from tritoncrf import cli
from tritoncrf.datasets import cluster
from tritoncrf.datasets.entries import Entry
from tritoncrf.datasets.file_stages import FileStages, Task
from tritoncrf.datasets.outputs import Outputs
from tritoncrf.datasets.score_files import Reading
from tritoncrf.files import FileError

ray = pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = [
    pytest.mark.extras,
    pytest.mark.processes,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray's own, of its own settings
    # One test's actors may still be ending when the next begins.
    pytest.mark.filterwarnings("ignore:every CPU of the Ray cluster"),
]


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize("where", ["auto", f"127.0.0.1:{unused_port()}", "nowhere", "no.such.host.invalid:6379"])
def test_an_address_without_a_cluster_is_one_line(where, monkeypatch, capfd):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ValueError, match="^address: expected a Ray cluster that answers, got '.*': .+$") as told:
        next(cluster.run(Toy(), [1], address=where))
    assert where in str(told.value) and "\n" not in str(told.value)
    assert capfd.readouterr().err == ""


def test_an_address_in_the_environment_is_not_passed_over(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{unused_port()}")
    with pytest.raises(ValueError, match="^address: expected .* got '127.0.0.1:"):
        next(cluster.run(Toy(), [1]))


def test_without_ray_the_error_says_what_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=re.escape('a cluster needs Ray: pip install "tritoncrf[ray]"')):
        next(cluster.run(Toy(), [1]))


# (each machine's resources, jobs, the device and the number of actors)
PLACES = [
    ([{"CPU": 2.0}], 0, ("cpu", 2)),
    ([{"CPU": 2.0}], 5, ("cpu", 2)),
    ([{"CPU": 8.0}, {"CPU": 4.5}], 0, ("cpu", 12)),
    ([{"CPU": 8.0}, {"CPU": 4.0}], 3, ("cpu", 3)),
    ([{"CPU": 8.0, "GPU": 4.0}, {"CPU": 2.0, "GPU": 4.0}, {"CPU": 16.0}], 0, ("cuda", 6)),
]


def of(machines: list[dict[str, float]], free: float) -> SimpleNamespace:
    nodes = [{"Alive": True, "Resources": m} for m in machines] + [{"Alive": False, "Resources": {"CPU": 64.0}}]
    return SimpleNamespace(nodes=lambda: nodes, available_resources=lambda: {"CPU": free, "GPU": free})


@pytest.mark.parametrize("machines, jobs, expected", PLACES)
def test_actors_are_as_many_as_there_are_whole_places(machines, jobs, expected):
    assert cluster._places(of(machines, 2.0), jobs) == expected


@pytest.mark.parametrize("machines", [[], [{"CPU": 0.5}, {"CPU": 0.75}], [{"GPU": 2.0}]])
def test_a_cluster_on_which_nothing_could_ever_run_is_refused(machines):
    with pytest.raises(ValueError, match="address: expected a Ray cluster with a whole CPU"):
        cluster._places(of(machines, 0.0), 0)


@pytest.mark.parametrize("machine, kind", [({"CPU": 4.0}, "CPU"), ({"CPU": 4.0, "GPU": 1.0}, "GPU")])
def test_a_cluster_that_others_fill_is_waited_for_and_said_so(machine, kind, monkeypatch):
    monkeypatch.setattr(cluster, "MOMENTS", 1)
    with pytest.warns(UserWarning, match=f"every {kind} of the Ray cluster is in use"):
        cluster._places(of([machine], 0.0), 0)


@pytest.mark.slow
def test_a_cluster_that_is_begun_here_ends_here_and_says_what_it_lacks(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", "")
    with pytest.raises(
        ConnectionError, match="address: expected .* that works, got: .*No module named 'cluster_stages'"
    ):
        list(cluster.run(Toy(), [1], jobs=1))
    assert not ray.is_initialized()


# From here on there is a cluster, which a call without an address takes.


@pytest.fixture(scope="module")
def two_cores():
    """A cluster of two CPUs, whose processes find the stages of the tests."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(Path(sys.modules["cluster_stages"].__file__).parent))
        with cluster.stderr_closed():
            cluster._ray().init(
                num_cpus=2, object_store_memory=cluster.STORE, include_dashboard=False, logging_level="critical",
                log_to_driver=False,
            )  # fmt: skip
        yield
        ray.shutdown()


def test_two_actors_on_two_cores_do_every_item_and_fail_one(two_cores):
    items = [*range(20), "unreadable", *range(20, 40)]
    found = list(cluster.run(Toy(), items))
    assert {o.item: o.result[0] for o in found if o.error is None} == {n: 2 * n for n in range(40)}
    assert [(o.item, type(o.error), str(o.error)) for o in found if o.error] == [
        ("unreadable", ValueError, "unreadable: expected a number")
    ]
    assert len(found) == 41 and all(len(o.seconds) == 3 for o in found)
    _, devices, threads, processes = zip(*(o.result for o in found if o.error is None))
    assert set(devices) == {"cpu"} and set(threads) == {1} and os.getpid() not in processes
    assert ray.is_initialized()  # what others began goes on


@pytest.mark.slow
def test_an_item_that_kills_its_process_leaves_the_others(two_cores, monkeypatch):
    monkeypatch.setattr(cluster, "RETRIES", 0)
    found = list(cluster.run(Toy(), [*range(20), "killed", *range(20, 40)]))
    assert {o.item: o.result[0] for o in found if o.error is None} == {n: 2 * n for n in range(40)}
    assert [(o.item, str(o.error)[:19]) for o in found if o.error] == [("killed", "lost by the cluster")]
    assert len(found) == 41


def test_the_command_gives_the_bits_of_refine_on_a_cluster_too(two_cores, one_thread, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the processes of the cluster are not
    generator = np.random.default_rng(0)
    expected = {}
    Path("images").mkdir()
    Path("scores").mkdir()
    for name, size in ("a 1", (20, 30)), ("çé", (9, 40)), ("c", (20, 30)):
        image = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        p = generator.dirichlet(np.ones(3), size).transpose(2, 0, 1).astype(np.float32)
        Image.fromarray(image).save(f"images/{name}.png")
        np.save(f"scores/{name}.npy", p)
        expected[name] = tc.refine(image, probabilities=p, method="lattice", device="cpu")
    np.save("scores/c.npy", p[:, 1:])
    given = ["refine", "images", "--probabilities", f"file://{tmp_path}/scores", "--method", "lattice", "-o", "out"]
    assert cli.main([*given, "--engine", "ray", "--save", "probabilities"]) == 1
    for name in "a 1", "çé":
        assert np.array_equal(np.load(f"out/{name}.npz")["probabilities"], expected[name].astype(np.float16))
    records = map(json.loads, Path("out/manifest.jsonl").read_text().splitlines())
    errors = {record["name"]: record["error"] for record in records}
    assert errors.pop("c").startswith("--probabilities: expected the size of") and errors == {"a 1": None, "çé": None}


def test_a_folder_of_outputs_that_a_machine_lacks_is_an_error(tmp_path):
    stages = FileStages(Reading("probabilities"), Outputs(tmp_path / "away"), {}, "")
    with pytest.raises(FileError, match="away: expected a folder that every machine can access, got none on "):
        stages.read(Task(Entry("a", tmp_path / "a.png", tmp_path / "a.npy")), torch.device("cpu"))
    assert not (tmp_path / "away").exists()
