"""Score files of every kind, and what class activation maps become."""

import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import tritoncrf as tc
from assertions import assert_close
from tritoncrf.commands import CommandError
from tritoncrf.datasets.entries import matched
from tritoncrf.datasets.score_files import Reading
from tritoncrf.datasets.stored import Stored
from tritoncrf.files import FileError, address, read_image

H, W, C = 12, 15, 4
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(C, H, W)).astype(np.float32)
PROBABILITIES = np.exp(LOGITS) / np.exp(LOGITS).sum(0)
LABELS = RNG.integers(0, C, (H, W), dtype=np.uint8)
CAMS = RNG.random((2, H, W)).astype(np.float32)
KEYS = np.array([14, 3])
LIBRARIES = {".h5": "h5py", ".hdf5": "h5py", ".zarr": "zarr"}


def read(source, size=(H, W), kind="probabilities", image="image.png", **how):
    return Reading(kind, **how).scores(source, image, size)


def refused(source, message, size=(H, W), error=FileError, **how):
    with pytest.raises(error) as caught:
        read(source, size, **how)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def close(found, expected):
    assert_close("scores", torch.from_numpy(found), torch.from_numpy(expected))


def same(found, expected):
    np.testing.assert_array_equal(found, expected, strict=True)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("kind", ["probabilities", "logits", "energies"])
def test_arrays(tmp_path, kind, dtype):
    """As they are stored, float16 too, which `refine` takes."""
    scores = (PROBABILITIES if kind == "probabilities" else LOGITS).astype(dtype)
    np.save(tmp_path / "a.npy", scores)
    np.savez(tmp_path / "a.npz", scores)
    np.savez_compressed(tmp_path / "b.npz", other=LABELS, scores=scores)
    for name, key in ("a.npy", None), ("a.npz", None), ("b.npz", "scores"):
        found = read(tmp_path / name, kind=kind, scores_key=key)
        assert found.kind == kind and found.classes is None
        same(found.array, scores)
    refined = tc.refine(np.zeros((H, W, 3), np.uint8), **{kind: found.array}, iterations=1)
    assert refined.dtype == dtype and refined.shape == scores.shape


def test_one_of_several(tmp_path):
    np.savez(tmp_path / "a.npz", first=LABELS, second=LOGITS)
    refused(tmp_path / "a.npz", "a.npz: expected one array, got 2: first, second")
    refused(tmp_path / "a.npz", "a.npz: expected an array named 'third', got 2: first, second", scores_key="third")
    np.save(tmp_path / "a.npy", LOGITS)
    refused(tmp_path / "a.npy", "a.npy: expected an array named 'third', got one without a name", scores_key="third")


def test_pictures(tmp_path):
    picture = Image.fromarray(LABELS)
    picture.putpalette(np.arange(768, dtype=np.uint8).tobytes())
    picture.save(tmp_path / "labels.png")
    same(read(tmp_path / "labels.png", kind="labels").array, LABELS)
    mask = (LABELS > 1) * np.uint8(255)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    for kind in ("mask", "foreground"):
        same(read(tmp_path / "mask.png", kind=kind).array, (mask / 255).astype(np.float32))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(mask).save(tmp_path / "turned.png", exif=exif)
    same(read(tmp_path / "turned.png", (W, H), "mask").array, np.rot90(mask / 255, -1).astype(np.float32))
    same(read(tmp_path / "turned.png", kind="mask", as_stored=True).array, (mask / 255).astype(np.float32))


@pytest.mark.parametrize("kind", ["probabilities", "logits"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_upsampling(tmp_path, kind, dtype):
    """Bilinear, of logits as they are: the softmax comes after it."""
    scores = (PROBABILITIES if kind == "probabilities" else LOGITS).astype(dtype)
    np.save(tmp_path / "a.npy", scores)
    size = 2 * H + 1, 3 * W
    expected = F.interpolate(torch.from_numpy(scores).float()[None], size, mode="bilinear", align_corners=False)[0]
    found = read(tmp_path / "a.npy", size, kind, upsample="bilinear").array
    assert found.dtype == dtype
    same(found, expected.numpy().astype(dtype))
    refused(tmp_path / "a.npy", "expected the size of image.png, 25 x 45, got 12 x 15", size, CommandError, kind=kind)
    refused(
        tmp_path / "a.npy", "--upsample: expected at most the size of image.png, 11 x 15, got 12 x 15; --resize accepts any size",
        (H - 1, W), CommandError, kind=kind, upsample="bilinear",
    )  # fmt: skip
    assert read(tmp_path / "a.npy", (H - 1, W), kind, resize=True).array.shape == (C, H - 1, W)


def test_rounded_sizes_are_no_other_order_of_axes(tmp_path):
    """[81, 65, 53], of a network's strides, would fit this image better if the first two axes were H and W."""
    np.save(tmp_path / "a.npy", np.zeros((81, 65, 53), np.float32))
    assert read(tmp_path / "a.npy", (500, 400), "logits", upsample="bilinear").array.shape == (81, 500, 400)
    np.save(tmp_path / "a.npy", np.zeros((65, 53, 21), np.float32))
    refused(tmp_path / "a.npy", "expected classes first", (500, 400), CommandError, kind="logits", upsample="bilinear")


def test_files_that_hold_something_else(tmp_path):
    np.save(tmp_path / "complex.npy", LOGITS.astype(np.complex64))
    refused(tmp_path / "complex.npy", "complex.npy: expected numbers of at most 64 bits, got dtype complex64")
    np.save(tmp_path / "object.npy", {"a": LOGITS})
    refused(tmp_path / "object.npy", "object.npy: expected numbers, got a pickled object; --allow-pickle")
    np.savez(tmp_path / "object.npz", np.array({"a": 1}, dtype=object))
    for allow in False, True:  # never of an .npz
        refused(tmp_path / "object.npz", "object.npz: expected an array, unreadable: Object arrays", allow_pickle=allow)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "complex.npy").read_bytes()[:200])
    refused(tmp_path / "cut.npy", "cut.npy: expected an array, unreadable")
    refused(tmp_path / "gone.npy", "gone.npy: expected an array, got no such file")
    (tmp_path / "labels.jpg").touch()
    refused(tmp_path / "labels.jpg", "labels.jpg: expected a file ending in .png or .npy or .npz", kind="labels")


def irn(path, maps=CAMS, keys=KEYS, name="high_res", **others):
    np.save(path, {"keys": torch.from_numpy(keys), name: maps, **others})


def seam(path, maps=CAMS, keys=KEYS):
    np.save(path, dict(zip(keys.tolist(), maps)))


def by_number(path, maps=CAMS, keys=KEYS):
    np.savez(path, **{str(key): map for key, map in zip(keys, maps)})


def by_name(path, maps=CAMS, keys=KEYS):
    np.savez(path, keys=keys, high_res=maps)


FORMATS = {"irn.npy": irn, "seam.npy": seam, "number.npz": by_number, "name.npz": by_name}
FOUR = {"cams": True, "background_power": 4.0}


@pytest.mark.parametrize("name", FORMATS)
def test_class_activation_maps(tmp_path, name):
    """As SEAM's infer_SEAM.py gives them to its CRF; key k is class k + 1."""
    FORMATS[name](tmp_path / name)
    allow = name.endswith(".npy")
    found = read(tmp_path / name, **FOUR, allow_pickle=allow)
    background = np.power(1 - np.max(CAMS, axis=0, keepdims=True), 4)
    assert found.kind == "probabilities" and found.array.dtype == np.float32
    close(found.array, np.concatenate([background, CAMS]))
    assert found.classes.tolist() == [0, 15, 4]
    assert read(tmp_path / name, **FOUR, allow_pickle=allow, cam_offset=0).classes.tolist() == [0, 14, 3]
    found = read(tmp_path / name, cams=True, background_score=0.3, allow_pickle=allow)
    same(found.array, np.concatenate([np.full((1, H, W), 0.3, np.float32), CAMS]))
    if allow:
        refused(tmp_path / name, "expected numbers, got a pickled object; --allow-pickle", **FOUR)


def test_the_labels_of_maps(tmp_path):
    """As IRN's cam_to_ir_label.py gives them to its CRF, with the labels from 0 on that `refine` takes."""
    irn(tmp_path / "a.npy")
    found = read(tmp_path / "a.npy", kind="labels", cams=True, background_score=0.3, allow_pickle=True)
    padded = np.pad(CAMS, ((1, 0), (0, 0), (0, 0)), mode="constant", constant_values=0.3)
    keys = np.pad(KEYS + 1, (1, 0), mode="constant")
    same(found.classes, keys)
    same(found.array, np.argmax(padded, axis=0))


def test_refine_takes_maps_as_pydensecrf_does(tmp_path):
    """The unary is that of unary_from_softmax, which clips at 1e-5 and does not normalise: no step, no message."""
    irn(tmp_path / "a.npy")
    scores = read(tmp_path / "a.npy", **FOUR, allow_pickle=True).array
    unary = torch.from_numpy(np.log(np.clip(scores, 1e-5, 1.0)))
    image = RNG.integers(0, 256, (H, W, 3), dtype=np.uint8)
    close(tc.refine(image, probabilities=scores, iterations=0), torch.softmax(unary, 0).numpy())


def test_the_finest_maps_unless_others_are_named(tmp_path):
    coarse = RNG.random((2, 3, 4)).astype(np.float32)
    irn(tmp_path / "a.npy", cam=torch.from_numpy(coarse))
    allow = {"allow_pickle": True, **FOUR}
    same(read(tmp_path / "a.npy", **allow).array[1:], CAMS)
    found = read(tmp_path / "a.npy", **allow, scores_key="cam", upsample="bilinear").array
    big = F.interpolate(torch.from_numpy(coarse)[None], (H, W), mode="bilinear", align_corners=False)[0].numpy()
    same(found[1:], big)
    close(found[0], (1 - big.max(0)) ** 4)  # made of the upsampled maps
    refused(tmp_path / "a.npy", "--probabilities: expected the size of", error=CommandError, **allow, scores_key="cam")
    refused(tmp_path / "a.npy", "a.npy: expected x beside keys, got keys, high_res, cam", **allow, scores_key="x")
    irn(tmp_path / "a.npy", coarse, name="cam")
    same(read(tmp_path / "a.npy", (3, 4), **allow).array[1:], coarse)


def test_keys_that_name_the_background(tmp_path):
    """As PuzzleCAM's, and CLIMS's first version's: they are labels already."""
    irn(tmp_path / "a.npy", keys=np.array([0, 15, 4]), name="hr_cam")
    assert read(tmp_path / "a.npy", **FOUR, allow_pickle=True).classes.tolist() == [0, 15, 4]
    irn(tmp_path / "a.npy", keys=np.array([1, 15, 4]))
    refused(tmp_path / "a.npy", "expected 2 keys, or 0 before them, got 1, 15, 4", **FOUR, allow_pickle=True)


@pytest.mark.parametrize("name", FORMATS)
def test_an_image_without_classes(tmp_path, name):
    """COCO has some: the background alone."""
    FORMATS[name](tmp_path / name, CAMS[:0], KEYS[:0])
    if name == "number.npz":  # an empty file
        np.savez(tmp_path / name)
    for kind, expected in ("probabilities", np.ones((1, H, W), np.float32)), ("labels", np.zeros((H, W), np.int64)):
        found = read(tmp_path / name, kind=kind, **FOUR, allow_pickle=True)
        assert found.classes.tolist() == [0]
        same(found.array, expected)


def test_where_nothing_answers(tmp_path):
    """SEAM's maps go a little below 0, and are -1 where a class answers nowhere; pydensecrf clips them."""
    maps = np.stack([np.where(CAMS[0] < 0.5, -1e-6, CAMS[0]), np.full((H, W), -1.0)]).astype(np.float32)
    seam(tmp_path / "a.npy", maps)
    found = read(tmp_path / "a.npy", **FOUR, allow_pickle=True).array
    published = np.concatenate([np.power(1 - np.max(maps, axis=0, keepdims=True), 4), maps])
    close(np.clip(found, 1e-5, 1), np.clip(published, 1e-5, 1))


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"keys": KEYS, "high_res": CAMS * 5}, "expected class activation maps from 0 to 1, got "),
        ({"keys": KEYS, "high_res": CAMS * np.nan}, "expected class activation maps from 0 to 1, got nan to nan"),
        ({"keys": KEYS, "high_res": CAMS - 2}, "expected class activation maps from 0 to 1, got -2"),
        ({"keys": KEYS, "high_res": (CAMS * 255).astype(np.uint8)}, "expected 2 maps [K, h, w] of floats, got uint8"),
        ({"keys": KEYS, "high_res": CAMS[0]}, "expected 2 maps [K, h, w] of floats, got float32 [12, 15]"),
        ({"keys": KEYS[:1], "high_res": CAMS}, "expected 1 maps [K, h, w] of floats, got float32 [2, 12, 15]"),
        ({"keys": KEYS * 1.0, "high_res": CAMS}, "expected keys [K] of integers, got float64 [2]"),
        ({"keys": np.array([3, 3]), "high_res": CAMS}, "expected a different class for each map"),
        ({"keys": np.array([-1, 3]), "high_res": CAMS}, "0 for the background, got 0, 4 with --cam-offset 1"),
        ({"keys": KEYS, "maps": CAMS}, "expected high_res or hr_cam or rw or cam beside keys, got keys, maps"),
        ({"high_res": CAMS}, "expected keys and maps, or maps by number, got high_res"),
        ({"3": CAMS[0], "4": CAMS[0][:5]}, "expected maps [h, w] of one size, got (5, 15) and (12, 15)"),
        ({"3": CAMS}, "expected maps [h, w] of one size, got (2, 12, 15)"),
    ],
)
def test_bad_maps(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    refused(tmp_path / "a.npz", f"{tmp_path}/a.npz: ", **FOUR)
    refused(tmp_path / "a.npz", message, **FOUR)
    if message.startswith("expected a class"):
        by_name(tmp_path / "a.npz", keys=np.array([0, 3]))
        refused(tmp_path / "a.npz", "got 0, 3 with --cam-offset 0", **FOUR, cam_offset=0)


def test_an_array_is_no_maps(tmp_path):
    np.save(tmp_path / "a.npy", CAMS)
    refused(tmp_path / "a.npy", "expected class activation maps with their keys, got one array [2, 12, 15]", **FOUR)


@pytest.mark.parametrize(
    "how, message",
    [
        ({"background_power": 4.0}, "--background-power: expected --cams"),
        ({"background_score": 0.3}, "--background-score: expected --cams"),
        ({"cam_offset": 0}, "--cam-offset: expected --cams"),
        ({"cams": True}, "exactly one of --background-power and --background-score"),
        ({**FOUR, "background_score": 0.3}, "exactly one of"),
        (
            {**FOUR, "kind": "logits"},
            "--cams: expected --probabilities, or --labels for the best class, got --logits",
        ),
        ({"cams": True, "background_power": 0.0}, "--background-power: expected a number above 0, got 0.0"),
        ({"cams": True, "background_score": 1.5}, "--background-score: expected a score from 0 to 1, got 1.5"),
        ({**FOUR, "cam_offset": -1}, "--cam-offset: expected 0 or more, got -1"),
        ({"kind": "labels", "upsample": "bilinear"}, "--upsample: expected scores, got --labels"),
    ],
)
def test_arguments_that_do_not_go_together(how, message):
    with pytest.raises(CommandError) as caught:
        Reading(**{"kind": "probabilities", **how})
    assert message in str(caught.value)


def write_many(path, groups):
    """A file of arrays and groups of arrays by name."""
    library = pytest.importorskip(LIBRARIES[path.suffix])
    if path.suffix == ".zarr":
        root = library.open_group(str(path), mode="w")
        for name, content in groups.items():
            for key, array in content.items() if isinstance(content, dict) else [("", content)]:
                root.create_array(f"{name}/{key}".rstrip("/"), shape=array.shape, dtype=array.dtype)[...] = array
        return
    with library.File(path, "w") as root:
        for name, content in groups.items():
            for key, array in content.items() if isinstance(content, dict) else [("", content)]:
                root[f"{name}/{key}".rstrip("/")] = array


@pytest.mark.parametrize("ending", LIBRARIES)
def test_one_file_of_all(tmp_path, ending):
    path = tmp_path / f"all{ending}"
    groups = {"a b": LOGITS, "day/é": PROBABILITIES.astype(np.float16), "two": {"x": LOGITS, "y": PROBABILITIES}}
    write_many(path, {**groups, "cams": {"keys": KEYS, "high_res": CAMS}, "seam": {"14": CAMS[0], "3": CAMS[1]}})
    same(read(Stored(path, "a b"), kind="logits").array, LOGITS)
    same(read(Stored(path, "day/é")).array, PROBABILITIES.astype(np.float16))
    same(read(Stored(path, "two"), scores_key="y").array, PROBABILITIES)
    refused(Stored(path, "two"), f"all{ending}:two: expected one array, got 2: x, y")
    refused(Stored(path, "gone"), f"all{ending}: expected gone, got nothing of this name")
    for name in "cams", "seam":
        found = read(Stored(path, name), **FOUR)
        assert dict(zip(found.classes.tolist(), found.array.sum((1, 2)).tolist()))[15] == pytest.approx(CAMS[0].sum())
    small = Stored(path, "a b")
    assert read(small, (2 * H, 2 * W), "logits", upsample="bilinear").array.shape == (C, 2 * H, 2 * W)


def test_without_the_libraries(tmp_path, monkeypatch):
    (tmp_path / "a.h5").touch()
    for name in ("h5py", "zarr"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    for ending in ".h5", ".zarr":
        with pytest.raises(
            ImportError, match=r"reading it needs h5py or zarr; `pip install 'tritoncrf\[data\]'`"
        ) as error:
            read(Stored(tmp_path / f"a{ending}", "x"))
        assert error.value.name is None  # for the command line: no bug


def test_addresses(tmp_path):
    pytest.importorskip("upath")
    folder = address("memory://score_files")
    for name in ("a.npy", "b.npz", "c.png", "d.h5"):
        path = tmp_path / name
        if name == "c.png":
            Image.fromarray(LABELS).save(path)
        elif name == "d.h5":
            write_many(path, {"x": LOGITS})
        else:
            (np.save if name == "a.npy" else np.savez)(path, LOGITS)
        folder.fs.pipe_file((folder / name).path, path.read_bytes())
    same(read(folder / "a.npy", kind="logits").array, LOGITS)
    same(read(folder / "b.npz", kind="logits").array, LOGITS)
    same(read(folder / "c.png", kind="labels").array, LABELS)
    same(read(Stored(folder / "d.h5", "x"), kind="logits").array, LOGITS)
    refused(folder / "e.npy", "memory://score_files/e.npy: expected an array, got no such file")
    irn(tmp_path / "f.npy")
    folder.fs.pipe_file((folder / "f.npy").path, (tmp_path / "f.npy").read_bytes())
    assert read(folder / "f.npy", **FOUR, allow_pickle=True).classes.tolist() == [0, 15, 4]


def test_how_to_read_travels_to_other_processes(tmp_path):
    irn(tmp_path / "a.npy")
    reading, source = pickle.loads(
        pickle.dumps((Reading("probabilities", **FOUR, allow_pickle=True), tmp_path / "a.npy"))
    )
    assert reading.scores(source, "image.png", (H, W)).classes.tolist() == [0, 15, 4]


@pytest.mark.parametrize("ending", [".npy", ".npz"])
def test_an_array_is_in_memory_once(tmp_path, ending):
    scores = np.zeros((16, 256, 256), np.float32)
    path = tmp_path / f"a{ending}"
    (np.save if ending == ".npy" else np.savez)(path, scores)
    read(path, (256, 256))
    tracemalloc.start()
    try:
        read(path, (256, 256))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.3 * scores.nbytes


def test_a_networks_scores_of_real_photos():
    """float16 in .npz, of 32 photos."""
    data = Path(__file__).parents[3] / "shared" / "data"
    if not data.is_dir():
        pytest.skip("needs the shared data")
    photos, truth = data / "voc" / "images", data / "voc" / "labels"
    entries, _ = matched([str(photos)], "foreground", data / "network_scores" / "voc", truth=truth)
    assert len(entries) == 32 and all(entry.truth for entry in entries)
    for entry in entries[:3]:
        size = read_image(entry.image).size[::-1]
        with np.load(entry.scores) as arrays:
            stored = arrays["foreground"]
        assert stored.dtype == np.float16
        same(read(entry.scores, size, "foreground").array, stored.astype(np.float32))
