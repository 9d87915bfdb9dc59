"""What only a GPU can show: real sizes, graph capture, memory, the same bits many times, and offsets beyond 2^31."""

import copy
import warnings
from dataclasses import replace

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


def filters_of(image, kind=tc.filters.Window, backend="triton", normalization="symmetric", **options):
    """The usual two filters of a picture, of smoothness and of appearance."""
    positions = tc.features.spatial(image.shape[2:], 3.0, device=image.device, dtype=image.dtype)
    options |= {"normalization": normalization, "backend": backend}
    return [kind(f, **options) for f in (positions, tc.features.bilateral(image, 80.0, 13.0))]


def sharpen(logits, filters, weights=(3.0, 10.0)):
    return tc.mean_field(logits, filters, weights, iterations=5, output="log_probabilities")


def guided_of(image, radius=3, backend="triton"):
    """The guidance CRF's filter of a picture."""
    return [tc.filters.Guided(255 * image, radius, 1.0, backend=backend)]


def class_weights(device, dtype=torch.float32):
    return torch.tensor([[3.0], [10.0]], dtype=dtype, device=device).expand(2, 21).clone()


@pytest.mark.parametrize("normalization", ["none", "symmetric"])
@pytest.mark.parametrize("blur", [1, 4])
def test_a_photo_sized_loop_and_its_gradients(blur, normalization, device):
    cotangent = torch.randn(1, 21, 334, 500, dtype=torch.float64, device=device)

    def outcome(backend, dtype):
        inputs = [x.requires_grad_() for x in (*picture(device, dtype=dtype), class_weights(device, dtype))]
        logits, image, weights = inputs
        filters = filters_of(image, backend=backend, normalization=normalization, window_size=11, blur=blur)
        found = sharpen(logits, filters, [*weights])
        return [found.detach(), *torch.autograd.grad(found, inputs, cotangent.to(dtype))]

    results = outcome("triton", torch.float32), outcome("torch", torch.float64), outcome("torch", torch.float32)
    for name, found, exact, plain in zip(("log Q", "logits", "image", "weights"), *results, strict=True):
        assert_within_budget(name, found, exact, plain)


def rebased(filter, backend, dtype):
    """The same filter on another backend, its floating-point tensors copies that require gradients."""
    filter = copy.copy(filter)
    filter.plan = replace(filter.plan, backend=backend)
    filter.tensors = [
        t.detach().to(dtype).clone().requires_grad_() if t.is_floating_point() else t for t in filter.tensors
    ]
    return filter


@pytest.mark.parametrize("normalization", ["none", "symmetric"])
def test_a_photo_sized_loop_on_lattices_and_its_gradients(normalization, device):
    """On one and the same lattice: built in float64, a pixel between two simplices may lie in the other."""
    logits, image = picture(device)
    built = filters_of(image, tc.filters.Lattice, normalization=normalization)
    cotangent = torch.randn(1, 21, 334, 500, dtype=torch.float64, device=device)

    def outcome(backend, dtype):
        filters = [rebased(f, backend, dtype) for f in built]
        inputs = [logits.to(dtype).clone().requires_grad_(), class_weights(device, dtype).requires_grad_()]
        inputs += [t for f in filters for t in f.tensors if t.is_floating_point()]
        found = sharpen(inputs[0], filters, [*inputs[1]])
        return [found.detach(), *torch.autograd.grad(found, inputs, cotangent.to(dtype))]

    results = outcome("triton", torch.float32), outcome("torch", torch.float64), outcome("torch", torch.float32)
    for n, (found, exact, plain) in enumerate(zip(*results, strict=True)):
        name = ("log Q", "logits", "weights")[n] if n < 3 else f"tensor {n - 3} of the lattices"
        assert_within_budget(name, found, exact, plain)


@pytest.mark.parametrize("radius", [3, 7, 8, 64, 200])
def test_a_photo_sized_guidance_crf_and_its_gradients(radius, device):
    cotangent = torch.randn(1, 21, 334, 500, dtype=torch.float64, device=device)

    def outcome(backend, dtype):
        logits, image = picture(device, dtype=dtype)
        inputs = [logits.requires_grad_(), class_weights(device, dtype)[0].clone().requires_grad_()]
        found = sharpen(inputs[0], guided_of(image, radius, backend), inputs[1:])
        return [found.detach(), *torch.autograd.grad(found, inputs, cotangent.to(dtype))]

    results = outcome("triton", torch.float32), outcome("torch", torch.float64), outcome("torch", torch.float32)
    for name, found, exact, plain in zip(("log Q", "logits", "weights"), *results, strict=True):
        assert_within_budget(name, found, exact, plain)


CAPTURED = {
    "window": dict(window_size=7),
    "window-blur-4": dict(window_size=7, blur=4),
    "lattice": dict(kind=tc.filters.Lattice),
    "exact": dict(kind=tc.filters.Exact),
    "guided": dict(radius=3),
    "guided-long": dict(radius=20),
}


@pytest.mark.parametrize("name", CAPTURED)
def test_a_captured_graph_replays_the_loop(name, device):
    logits, image = picture(device, (61, 83))
    make = guided_of if name.startswith("guided") else filters_of
    filters = make(image, **CAPTURED[name])
    weight = torch.tensor(10.0, device=device)

    def run():
        with torch.no_grad():
            return tc.mean_field(logits, filters, [weight] * len(filters), unary_weight=1.0)

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


def test_a_captured_graph_keeps_its_lattice(device):
    """Of positions, asked for within the capture; the cache has let go of it when the graph is replayed."""
    x = torch.randn(1, 4, 61, 83, device=device)

    def run():
        return tc.filters.Lattice.spatial((61, 83), 3.0, device=device)(x)

    expected, graph = run(), torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        captured = run()
    tc.clear_cache()
    torch.cuda.empty_cache()
    overwritten = [torch.full((1 << 16,), 9, dtype=torch.int32, device=device) for _ in range(100)]
    graph.replay()
    assert torch.equal(captured, expected) and len(overwritten) == 100


@pytest.mark.parametrize("options", [
    dict(method="window", blur=1), dict(method="window"), dict(method="guided"), dict(method="guided", radius=20),
])  # fmt: skip
def test_refine_replays_photos_of_one_size(options, device):
    """On two streams, one of which is still busy."""
    logits, image = picture(device, (61, 83))
    photos = [(255 * image[0].roll(9 * n, 2)).byte() for n in range(5)]
    expected = [tc.refine(photo / 255, logits=logits[0] * (n - 2), **options) for n, photo in enumerate(photos)]
    found, other = [], torch.cuda.Stream()
    for n, photo in enumerate(photos):
        with torch.cuda.stream(other if n % 2 else torch.cuda.current_stream()):
            found.append(tc.refine(photo, logits=logits[0] * (n - 2), **options))
    torch.cuda.synchronize()
    for own, q in zip(found, expected, strict=True):
        assert_close("Q", own, q)


def test_the_loop_launches_only_its_kernels(device):
    logits, image = picture(device, (61, 83))
    filters = filters_of(image, normalization="none", window_size=11)
    with torch.no_grad(), record_launches() as launches:
        sharpen(logits, filters)
    assert len(launches) == 5


@pytest.mark.parametrize("options, states", [
    (dict(window_size=11), 3), (dict(window_size=11, blur=4), 3), (dict(kind=tc.filters.Lattice), 8),
])  # fmt: skip
def test_memory_stays_within_states(options, states, device):
    """The filters included."""
    logits, image = picture(device)
    with torch.no_grad():
        sharpen(logits, filters_of(image, **options))
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        q = sharpen(logits, filters_of(image, **options))
        grown = torch.cuda.max_memory_allocated() - before
    assert grown <= (states + 1) * q.numel() * q.element_size()  # and its result


def test_building_a_lattice_waits_once(device):
    features = tc.features.bilateral(picture(device)[1], 80.0, 13.0)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        tc.filters.Lattice(features, normalization="symmetric")  # compiled, before waits are counted
        torch.cuda.set_sync_debug_mode("warn")
        try:
            tc.filters.Lattice(features, normalization="symmetric")
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [warning for warning in found if "called a synchronizing" in str(warning.message)]
    assert len(waits) == 1, [str(warning) for warning in waits]


def test_lattices_give_the_same_bits_twenty_times(device):
    """Built, run and differentiated anew each time."""

    def outcome():
        inputs = [x.requires_grad_() for x in (*picture(device), class_weights(device))]
        scores = sharpen(inputs[0], filters_of(inputs[1], tc.filters.Lattice), [*inputs[2]])
        return scores.detach(), *torch.autograd.grad(scores, inputs, torch.cos(scores.detach()))

    first = outcome()
    for _ in range(19):
        for name, a, b in zip(("log Q", "logits", "image", "weights"), first, outcome(), strict=True):
            assert torch.equal(a, b), name


def test_a_guidance_crf_stays_within_six_states(device):
    """Its statistics included; beside its result."""
    logits, image = picture(device)
    with torch.no_grad():
        sharpen(logits, guided_of(image), [2.0])
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        q = sharpen(logits, guided_of(image), [2.0])
        grown = torch.cuda.max_memory_allocated() - before
    assert grown <= 7 * q.numel() * q.element_size()


@pytest.mark.parametrize("radius", [3, 64])
def test_a_guidance_crf_gives_the_same_bits_twenty_times(radius, device):
    """Its second pass reads what its program's other threads have left for it."""

    def outcome():
        inputs = [x.requires_grad_() for x in picture(device)]
        scores = sharpen(inputs[0], guided_of(inputs[1], radius), [2.0])
        return scores.detach(), *torch.autograd.grad(scores, inputs, torch.cos(scores.detach()))

    first = outcome()
    for _ in range(19):
        for name, a, b in zip(("log Q", "logits", "image"), first, outcome(), strict=True):
            assert torch.equal(a, b), name


@pytest.mark.slow
@pytest.mark.parametrize("radius", [3, 64])
def test_offsets_of_a_guided_filter_beyond_two_to_the_31(radius, device):
    """The last rows of an image of 2^31 numbers of z and more equal those of a crop that ends with them."""
    classes, size, rows = 9, (8192, 8192), 4 * radius
    if torch.cuda.get_device_properties(device).total_memory < 60 * GIB:
        pytest.skip("needs 60 GiB of GPU memory")
    guide = random_features((rows, size[1]), 3, dtype=torch.float32).to(device)
    low = torch.randn(1, classes, rows, size[1], device=device)
    whole, values = (torch.cat([x.new_zeros(1, x.shape[1], size[0] - rows, size[1]), x], 2) for x in (guide, low))
    assert 4 * values.numel() > 1 << 31

    def run(values, guide):
        with torch.no_grad():
            return tc.filters.Guided(guide, radius, 0.3, backend="triton")(values)[:, :, -rows // 2 :].clone()

    found = run(values, whole)
    assert_close("W x", found, run(low, guide))


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


@pytest.mark.parametrize("method", ["guided", "window", "lattice"])
def test_a_data_set(method, device):
    """Images of two sizes, those of one together, read and given back by threads: each as it is by itself."""
    items = []
    for n in range(40):
        logits, image = picture("cpu", size=(96, 128 + 16 * (n % 2)))
        photo = (image[0].roll(n, 2) * 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        items.append((f"{n}", photo, logits[0].roll(n, 1).softmax(0).numpy()))
    found = list(tc.refine_many(items, devices=[device], method=method))
    assert [name for name, _ in found] == [name for name, *_ in items]
    for (_, q), (_, photo, p) in zip(found, items, strict=True):
        expected = torch.from_numpy(tc.refine(photo, probabilities=p, method=method, device=device))
        assert_close("Q", torch.from_numpy(q), expected, dtype=torch.float32)
