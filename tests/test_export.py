"""Exported layers: with sizes that stay open, in standard operators alone, in ONNX, and without this library."""

import shutil
import subprocess
import sys

import pytest
import torch
from torch.export import Dim
from torch.nn import functional as F

import tritoncrf as tc
from assertions import assert_close
from tritoncrf import graph
from tritoncrf.filters import Guided, Window

pytestmark = pytest.mark.extras

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler")


def inputs(size, batch=2, image=None, channels=3):
    """Logits of 3 classes and an image, perhaps larger."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(batch, 3, *size, generator=generator)
    return logits, torch.rand(batch, channels, *(image or size), generator=generator)


SIZES = {0: Dim("b"), 2: Dim("y", min=2), 3: Dim("x", min=2)}
OPEN = SIZES, SIZES
OPEN_LARGER = SIZES, {0: SIZES[0], 2: Dim("Y", min=2), 3: Dim("X", min=2)}


def exported(module, given, sizes=OPEN):
    with torch.no_grad():
        return torch.export.export(module.eval(), given, dynamic_shapes=sizes)


def operators(program):
    return {str(node.target).split(".")[0] for node in program.graph.nodes if node.op == "call_function"}


def assert_same_gradients(run, module, size):
    cotangent, found = torch.randn(2, 3, *size), []
    for function in run, module:
        given = [x.requires_grad_() for x in inputs(size)]
        scores = function(*given)
        found.append([scores.detach(), *torch.autograd.grad(scores, given, cotangent)])
    for name, ours, expected in zip(("Q", "logits", "image"), *found, strict=True):
        assert_close(name, ours, expected)


@pytest.mark.parametrize("crf", [
    tc.ConvCRF(3, window_size=3, blur=2, iterations=2),
    tc.ConvCRF(3, window_size=3, blur=4, iterations=2),
    tc.GuidanceCRF(3, radius=3, iterations=2, subsample=4),
], ids=["blur 2", "blur 4", "subsample 4"])  # fmt: skip
def test_blocks_leave_sizes_open(crf):
    """One graph serves all sizes, multiples of a block's or not, and those of a single block, to the last bit."""
    run = exported(crf, inputs((6, 7))).module()
    with torch.no_grad():
        for size in (5, 4), (2, 3), (9, 6), (4, 13):
            assert torch.equal(run(*inputs(size, 1)), crf(*inputs(size, 1))), size


@pytest.mark.parametrize("crf", [
    tc.ConvCRF(3, window_size=3, blur=2, iterations=2, backend="torch"),
    tc.GuidanceCRF(3, radius=3, iterations=2, subsample=4),
], ids=["blur", "subsample"])  # fmt: skip
def test_an_axis_of_one_pixel_beside_open_ones(crf):
    """It is not averaged, so there are no spare blocks, and open sizes begin above a block's."""
    size = {0: SIZES[0], 3: Dim("x", min=5)}
    run = exported(crf, inputs((1, 7)), (size, size)).module()
    with torch.no_grad():
        for width in 5, 9:
            assert_close("S", run(*inputs((1, width))), crf(*inputs((1, width))))


def test_gradients_where_an_axis_may_be_a_single_block():
    """Of the library's operators, and with pixels that are not there."""

    class Smoothed(torch.nn.Module):
        def forward(self, logits, image):
            kernels = [
                Window(tc.features.color(image, 30.0), 3, blur=4, normalization="after", valid=image[:, 0] > 0.1),
                Guided(image, 6, 0.01, subsample=4),
            ]
            return tc.mean_field(logits, kernels, [2.0, 1.0], iterations=1)

    module, given = Smoothed(), [x.requires_grad_() for x in inputs((9, 10))]
    run = torch.export.export(module, tuple(given), dynamic_shapes=OPEN).module()
    for size in (2, 3), (4, 9):
        assert_same_gradients(run, module, size)


def test_an_image_of_any_larger_size():
    """One graph serves scores as large as the image, and smaller ones in any ratio."""
    crf = tc.GuidanceCRF(3, radius=1, iterations=1)
    run = exported(crf, inputs((5, 6), image=(21, 23)), OPEN_LARGER).module()
    with torch.no_grad():
        for size, image in ((4, 7), (16, 28)), ((3, 8), (3, 11)), ((5, 6), (5, 6)):
            given = inputs(size, 1, image)
            assert torch.equal(run(*given), crf(*given)), (size, image)


@pytest.mark.parametrize("size, larger", [((1,), (5,)), ((3, 7), (3, 8)), ((4, 5), (12, 10)), ((2, 3, 4), (5, 4, 11))])
def test_means_over_shares_are_those_of_torch(size, larger):
    x = torch.rand(2, 3, *larger)
    assert_close("means", graph.area.averaged(x, size), F.interpolate(x, size, mode="area"))


LAYERS = {
    "window": (tc.ConvCRF(3, window_size=3, blur=1, iterations=1, backend="torch"), 3),
    "blur": (
        tc.ConvCRF(
            3, window_size=3, blur=2, iterations=1, class_weights=True, compatibility=True, normalization="none",
            backend="torch",
        ), 3,
    ),
    "subsample": (tc.GuidanceCRF(3, radius=4, eps=100.0, iterations=1, subsample=2, damping=0.1, backend="torch"), 1),
    "guided": (tc.GuidanceCRF(3, radius=1, iterations=2, backend="torch"), 3),
    "released": (tc.GuidanceCRF(3, radius=1, iterations=1, preset="released", backend="torch"), 1),
}  # fmt: skip
"""By name a layer, and the channels of its images."""
named_layers = pytest.mark.parametrize("name", LAYERS)


@named_layers
def test_in_pytorch_by_name_a_graph_has_standard_operators_alone(name):
    crf, channels = LAYERS[name]
    fixed = name in ("guided", "released")  # "subsample" runs their code with open sizes, which take seconds
    program = exported(crf, inputs((7, 8), channels=channels), None if fixed else OPEN)
    assert not any(operator.startswith("tritoncrf") for operator in operators(program))
    run = program.module()
    with torch.no_grad():
        for batch, size in [(2, (7, 8))] if fixed else [(1, (7, 8)), (2, (2, 9)), (3, (10, 5))]:
            given = inputs(size, batch, channels=channels)
            assert_close("scores", run(*given), crf(*given))


def test_elsewhere_a_graph_has_the_operators_of_this_library():
    assert "tritoncrf" in operators(exported(tc.GuidanceCRF(3, iterations=1), inputs((7, 8)), None))


def test_a_loop_with_one_filter_that_is_not_written_out_is_an_operator():
    class Mixed(torch.nn.Module):
        def forward(self, logits, image):
            near = Window(tc.features.spatial((7, 8), 3.0), 3, backend="torch")
            far = tc.filters.Exact(tc.features.spatial((7, 8), 3.0), backend="torch")
            return tc.mean_field(logits, [near, far], [1.0, 0.5], iterations=2)

    program = exported(Mixed(), inputs((7, 8)), None)
    assert "tritoncrf" in operators(program)
    assert_close("Q", program.module()(*inputs((7, 8))), Mixed()(*inputs((7, 8))))


def test_gradients_of_a_graph_of_standard_operators():
    class Smoothed(torch.nn.Module):
        def forward(self, logits, image):
            valid = torch.ones(1, 7, 8, dtype=torch.bool).index_fill(1, torch.tensor(2), False)
            kernels = [
                Window(tc.features.color(image, 30.0), 3, normalization="symmetric", valid=valid, backend="torch"),
                Guided(image, 2, 0.01, valid=valid, backend="torch"),
            ]
            return tc.mean_field(logits, kernels, [2.0, torch.tensor([1.0, 2.0, 3.0])], iterations=2)

    module = Smoothed()
    assert_same_gradients(torch.export.export(module, inputs((7, 8))).module(), module, (7, 8))


# ONNX -------------------------------------------------------------------------------------------------------------


def to_onnx(module, given, path, **options):
    for package in "onnx", "onnxscript", "onnxruntime":
        pytest.importorskip(package)
    with torch.no_grad():
        program = torch.onnx.export(module.eval(), given, dynamo=True, opset_version=18, verbose=False, **options)
    program.save(path)
    return program


def run_onnx(path, given):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return torch.from_numpy(session.run(None, {n: x.numpy() for n, x in zip(names, given, strict=True)})[0])


def onnx(test):
    """A test of the exporter, which warns of much of its own."""
    ignored = (f"ignore::{kind}Warning" for kind in ("Deprecation", "Future", "User"))
    return pytest.mark.filterwarnings(*ignored)(test)


@onnx
@pytest.mark.parametrize("crf, image", [
    (tc.ConvCRF(3, window_size=3, blur=2, iterations=1), (7, 8)),
    (tc.GuidanceCRF(3, radius=2, iterations=1, backend="torch"), (28, 31)),
], ids=["conv", "guided, a larger image"])  # fmt: skip
def test_onnx_computes_the_same(crf, image, tmp_path):
    given = inputs((7, 8), image=image)
    program = to_onnx(crf, given, tmp_path / "crf.onnx")
    assert {node.domain for node in program.model.graph} <= {""}
    assert_close("scores", run_onnx(tmp_path / "crf.onnx", given), crf(*given).detach())


@onnx
@pytest.mark.slow
@named_layers
def test_onnx_with_open_sizes(name, tmp_path):
    crf, channels = LAYERS[name]
    to_onnx(crf, inputs((7, 8), channels=channels), tmp_path / "crf.onnx", dynamic_shapes=OPEN)
    for batch, size in (1, (7, 8)), (3, (2, 9)), (2, (10, 5)):
        given = inputs(size, batch, channels=channels)
        assert_close("scores", run_onnx(tmp_path / "crf.onnx", given), crf(*given).detach())


@onnx
@pytest.mark.slow
def test_onnx_with_an_image_of_any_larger_size(tmp_path):
    crf = tc.GuidanceCRF(3, radius=1, iterations=1, backend="torch")
    to_onnx(crf, inputs((5, 6), 2, (21, 23), 1), tmp_path / "crf.onnx", dynamic_shapes=OPEN_LARGER)
    for size, image in ((5, 6), (21, 23)), ((4, 7), (16, 28)), ((3, 8), (3, 11)), ((5, 6), (5, 6)):
        given = inputs(size, 1, image, 1)
        assert_close("scores", run_onnx(tmp_path / "crf.onnx", given), crf(*given).detach())


@onnx
def test_onnx_of_a_lattice_says_what_works():
    pytest.importorskip("onnxscript")
    with pytest.raises(
        Exception, match="expected Window or Guided in PyTorch for ONNX.*GuidanceCRF and ConvCRF export"
    ):
        torch.onnx.export(tc.CRFRNN(3).eval(), inputs((7, 8)), dynamo=True, opset_version=18, verbose=False)


# Compiled ahead of time -------------------------------------------------------------------------------------------

ELSEWHERE = """
import sys, torch
if sys.argv[3] == "imported":
    import tritoncrf.layers
given, expected = torch.load(sys.argv[2])
found = torch._inductor.aoti_load_package(sys.argv[1])(*given)
assert ("tritoncrf" in sys.modules) == (sys.argv[3] == "imported")
torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
"""


@needs_compiler
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of PyTorch, in itself
@pytest.mark.parametrize("name, library", [("window", "absent"), ("guided", "absent"), ("lattice", "imported")])
def test_a_compiled_package_runs_in_another_process(name, library, tmp_path):
    """What is written in standard operators needs this library no longer; of a lattice the operators stay."""
    network = torch.nn.ModuleList([torch.nn.Conv2d(3, 3, 1), tc.CRFRNN(3) if name == "lattice" else LAYERS[name][0]])

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = network

        def forward(self, image):
            return self.parts[1](self.parts[0](image), image)

    model, (_, image) = Network().eval(), inputs((7, 8))
    package, data = tmp_path / "network.pt2", tmp_path / "data.pt"
    with torch.no_grad():
        program = torch.export.export(model, (image,))
        torch._inductor.aoti_compile_and_package(program, package_path=str(package))
        other = torch.rand_like(image)
        torch.save(((other,), model(other)), data)
    command = [sys.executable, "-c", ELSEWHERE, package, data, library]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
