"""What only a GPU can show: real sizes, graph capture, memory, and offsets beyond 2^31."""

import pytest
import torch

import tritoncrf as tc
from assertions import assert_close, assert_within_budget
from cases import random_features
from tritoncrf.kernels.common import record_launches

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GIB = 1 << 30


def picture(device, size=(334, 500), classes=21, dtype=torch.float32):
    """Logits and a smooth image with noise, the same on every machine: [1, C, *S], [1, 3, *S]."""
    generator = torch.Generator().manual_seed(0)

    def smooth(channels):
        coarse = torch.randn(1, channels, size[0] // 16, size[1] // 16, generator=generator)
        return torch.nn.functional.interpolate(coarse, size, mode="bilinear")

    logits = 2 * smooth(classes) + torch.randn(1, classes, *size, generator=generator)
    image = (0.5 + 0.2 * smooth(3) + 0.02 * torch.randn(1, 3, *size, generator=generator)).clamp(0, 1)
    return logits.to(device, dtype), image.to(device, dtype)


def sharpen(logits, image, weights, backend="triton", k=11, blur=1, normalization="symmetric"):
    size = logits.shape[2:]
    features = [
        tc.features.spatial(size, 3.0, device=logits.device, dtype=logits.dtype),
        tc.features.bilateral(image, 80.0, 13.0),
    ]
    filters = [tc.filters.Window(f, k, blur=blur, normalization=normalization, backend=backend) for f in features]
    return tc.mean_field(logits, filters, weights, iterations=5, output="log_probabilities")


@pytest.mark.parametrize("normalization", ["none", "symmetric"])
@pytest.mark.parametrize("blur", [1, 4])
def test_a_photo_sized_loop_and_its_gradients(blur, normalization, device):
    cotangent = torch.randn(1, 21, 334, 500, dtype=torch.float64, device=device)

    def outcome(backend, dtype):
        logits, image = picture(device, dtype=dtype)
        weights = torch.tensor([[3.0], [10.0]], dtype=dtype, device=device).expand(2, 21).clone()
        inputs = [logits.requires_grad_(), image.requires_grad_(), weights.requires_grad_()]
        found = sharpen(logits, image, [*weights], backend, blur=blur, normalization=normalization)
        return [found.detach(), *torch.autograd.grad(found, inputs, cotangent.to(dtype))]

    results = outcome("triton", torch.float32), outcome("torch", torch.float64), outcome("torch", torch.float32)
    for name, found, exact, plain in zip(("log Q", "logits", "image", "weights"), *results, strict=True):
        assert_within_budget(name, found, exact, plain)


@pytest.mark.parametrize("blur", [1, 4])
def test_a_captured_graph_replays_the_loop(blur, device):
    logits, image = picture(device, (61, 83))
    f = tc.features.bilateral(image, 80.0, 13.0)
    filters = [tc.filters.Window(f, 7, blur=blur, normalization="symmetric", backend="triton")]
    weight = torch.tensor(10.0, device=device)

    def run():
        with torch.no_grad():
            return tc.mean_field(logits, filters, [weight], unary_weight=1.0)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compile and warm up outside the capture
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for scale in (1.0, -0.5):
        logits.mul_(scale)
        weight.mul_(0.7)
        graph.replay()
        assert_close("Q", captured, run())


def test_the_loop_launches_only_its_kernels(device):
    logits, image = picture(device, (61, 83))
    with torch.no_grad(), record_launches() as launches:
        sharpen(logits, image, [3.0, 10.0], normalization="none")
    assert len(launches) == 5


@pytest.mark.parametrize("blur", [1, 4])
def test_memory_stays_within_three_states(blur, device):
    logits, image = picture(device)
    weights = [3.0, 10.0]
    with torch.no_grad():
        sharpen(logits, image, weights, blur=blur)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        q = sharpen(logits, image, weights, blur=blur)
        grown = torch.cuda.max_memory_allocated() - before
    assert grown <= 4 * q.numel() * q.element_size()  # its result, and three more


@pytest.mark.slow
def test_offsets_beyond_two_to_the_31(device):
    """The last rows of an image of 2^31 scores and more equal those of a crop that ends with them."""
    classes, size, rows = 33, (8192, 8192), 16
    if torch.cuda.get_device_properties(device).total_memory < 60 * GIB:
        pytest.skip("needs 60 GiB of GPU memory")
    f = random_features((rows, size[1]), 3, dtype=torch.float32).to(device)
    low = torch.randn(1, classes, rows, size[1], device=device)
    features, logits = (
        torch.cat([torch.zeros(1, x.shape[1], size[0] - rows, size[1], device=device), x], 2) for x in (f, low)
    )
    assert logits.numel() > 1 << 31

    def run(logits, f):
        with torch.no_grad():
            window = tc.filters.Window(f, 3, backend="triton")
            return tc.mean_field(logits, [window], [0.5], iterations=2)[:, :, -rows // 2 :].clone()

    found = run(logits, features)
    assert_close("Q", found, run(low, f))


@pytest.mark.slow
def test_offsets_beyond_two_to_the_31_in_a_batch(device):
    """The last image of a batch of 2^31 scores and more is what it is alone."""
    batch, classes, size = 33, 4, (4096, 4096)
    if torch.cuda.get_device_properties(device).total_memory < 60 * GIB:
        pytest.skip("needs 60 GiB of GPU memory")
    f = random_features(size, 2, dtype=torch.float32).to(device)
    logits = torch.zeros(batch, classes, *size, device=device)
    logits[-1] = torch.randn(classes, *size, device=device)
    for blur in (1, 2):
        window = tc.filters.Window(f, 3, blur=blur, normalization="symmetric", backend="triton")
        with torch.no_grad():
            found = tc.mean_field(logits, [window], [0.5], iterations=2)[-1:].clone()
            assert_close("Q", found, tc.mean_field(logits[-1:].clone(), [window], [0.5], iterations=2))
        del found
