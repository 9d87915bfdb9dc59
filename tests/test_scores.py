"""The scores that refine takes: masks, foregrounds, label ids, classes that are ruled out, and what to do about others."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

import tritoncrf as tc
from assertions import assert_close

H, W, C = 10, 12, 3
GENERATOR = np.random.default_rng(0)
IMAGE = GENERATOR.integers(0, 256, (H, W, 3), dtype=np.uint8)
LOGITS = GENERATOR.normal(size=(C, H, W)).astype(np.float32)
LABELS = GENERATOR.integers(0, C, (H, W))
BOX = np.zeros((H, W), bool)
BOX[3:7, 4:9] = True
PICTURE = (BOX[..., None] * 200 + 20).repeat(3, 2).astype(np.uint8)  # bright where the box is


def tensor(x):
    return torch.from_numpy(np.asarray(x))


def refined(image=IMAGE, **arguments):
    return tc.refine(image, **{"method": "window", "window_size": 3, "blur": 1, **arguments})


def jpeg(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "jpeg", quality=95)
    return Image.open(file)


# One object ---------------------------------------------------------------------------------------------------------

BYTES = BOX.astype(np.uint8)


def palette_of(indices):
    picture = Image.fromarray(indices, "P")
    picture.putpalette([0, 0, 0, 128, 0, 0])
    return picture


MASKS = {
    "bool": BOX,
    "0 and 1": BYTES,
    "0 and 255": BYTES * 255,
    "int64": BYTES.astype(np.int64) * 255,
    "floats": BOX.astype(np.float32),
    "float64": BOX.astype(np.float64),
    "one channel": BYTES[..., None] * 255,
    "grey as RGB": BYTES[..., None].repeat(3, 2) * 255,
    "grey as RGBA": np.dstack([BYTES * 255] * 3 + [np.full_like(BYTES, 9)]),
    "PIL, black and white": Image.fromarray(BOX),
    "PIL, grey": Image.fromarray(BYTES * 255),
    "PIL, grey with alpha": Image.fromarray(BYTES * 255).convert("LA"),
    "PIL, RGB": Image.fromarray(BYTES * 255).convert("RGB"),
    "PIL, CMYK": Image.fromarray(BYTES * 255).convert("RGB").convert("CMYK"),
    "PIL, a palette of black and white": Image.fromarray(BYTES[..., None].repeat(3, 2) * 255).quantize(2),
    "PIL, a palette of colours": palette_of(BYTES),
}


@pytest.mark.parametrize("kind", MASKS)
def test_a_mask_is_the_same_in_every_kind(kind):
    probability = np.where(BOX, 0.8, 0.2).astype(np.float32)
    q = refined(PICTURE, mask=MASKS[kind], label_confidence=0.8)
    assert isinstance(q, np.ndarray) and q.dtype == np.float32
    two = refined(
        PICTURE, probabilities=np.stack([1 - probability, probability]), weight_smooth=3, weight_appearance=10
    )
    assert_close("q", tensor(q), tensor(two[1]))
    assert np.array_equal(q > 0.5, BOX)


@pytest.mark.parametrize("mask", [tensor(BOX), tensor(BYTES * 255), tensor(BYTES * 255)[None], tensor(BOX).double()])
def test_a_mask_of_torch_gives_a_tensor(mask):
    q = refined(PICTURE, mask=mask)
    assert isinstance(q, torch.Tensor) and q.shape == (H, W) and q.dtype == torch.float32
    assert np.array_equal(q.numpy(), refined(PICTURE, mask=BOX))


def test_grey_says_how_sure_a_mask_is():
    grey = np.array([[0, 51, 255]], np.uint8)
    q = refined(np.zeros((1, 3), np.uint8), mask=grey, label_confidence=0.9, iterations=0)
    assert_close("q", tensor(q), torch.tensor([[0.1, 0.9 * 0.2 + 0.1 * 0.8, 0.9]]))


def test_a_mask_from_a_jpeg():
    assert np.array_equal(refined(PICTURE, mask=jpeg(BYTES[..., None].repeat(3, 2) * 255)) > 0.5, BOX)


@pytest.mark.parametrize("value", [0, 255])
def test_a_mask_without_or_full_of_its_object(value):
    q = refined(PICTURE, mask=np.full((H, W), value, np.uint8), label_confidence=0.9, iterations=0)
    assert_close("q", tensor(q), torch.full((H, W), 0.9 if value else 0.1))


def test_a_mask_on_a_line_and_in_a_volume():
    for size in (7,), (3, 4, 5):
        f, mask = np.zeros((1, *size), np.float32), np.ones(size, bool)
        assert tc.refine(None, mask=mask, features=f, method="exact").shape == size


def test_a_foreground_is_a_probability():
    p = GENERATOR.random((H, W)).astype(np.float32)
    p[0, 0], p[0, 1] = 0, 1
    q = refined(foreground=p, iterations=0)
    assert q.dtype == np.float32
    assert_close("q", tensor(q), tensor(p.clip(1e-5, 1 - 1e-5)))
    assert_close("q", tensor(refined(foreground=p)), tensor(refined(probabilities=np.stack([1 - p, p]))[1]))
    for kind in tensor(p), tensor(p).double(), p.astype(np.float16):
        q = refined(foreground=kind)
        assert type(q) is type(kind) and str(q.dtype).endswith("float32")


def test_a_trace_of_a_mask():
    q, trace = refined(PICTURE, mask=BOX, return_trace=True)
    assert q.shape == (H, W) and len(trace.records) == 6
    assert trace.summary.before == pytest.approx((1 - BOX.mean(), BOX.mean()))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"mask": LABELS}, "^mask: expected 0 and 1, or grey .*, got 0 to 2; pass labels as labels="),
        ({"mask": LABELS - 1}, "^mask: expected 0 and 1, or grey .*, got -1 to 1"),
        ({"mask": BYTES.astype(np.uint16) * 65535}, "^mask: .* got 0 to 65535; pass weak masks as floats from 0 to 1"),
        ({"mask": BYTES * 255.0}, "^mask: expected 0 to 1, got 0 to 255; pass mask / 255"),
        ({"mask": np.where(BOX, np.nan, 0)}, "^mask: .*NaN"),
        ({"mask": IMAGE}, "^mask: expected one channel, or a grey picture, got colours"),
        ({"mask": np.where(BOX, 1, 255)}, "^mask: .* pass labels as labels= with unknown="),
        ({"mask": BYTES * 140}, "^mask: .* got 0 to 140; .*weak masks as floats"),
        ({"mask": BYTES * 100}, "^mask: .* some exceed 127, got 0 to 100"),
        ({"mask": np.stack([~BOX, BOX, BOX], -1)}, "^mask: .*colours"),
        ({"mask": tensor(np.stack([BYTES, 1 - BYTES, BYTES]))}, "^mask: .*colours"),
        ({"mask": np.dstack([np.full((H, W, 3), 255, np.uint8), BYTES * 255])}, "^mask: expected no transparency"),
        ({"mask": BOX[None, None]}, r"^mask: expected \[H, W\]"),
        ({"mask": BOX[1:]}, "^image: expected the size of mask"),
        ({"mask": BOX, "num_classes": 2}, "^num_classes: expected none with mask="),
        ({"mask": BOX, "unknown": 255}, "^unknown: expected none with mask="),
        ({"foreground": BOX * 1.0, "num_classes": 2}, "^num_classes: expected none with foreground="),
        ({"foreground": BOX * 1.0, "unknown": None}, "^unknown: expected none with foreground="),
        ({"foreground": BOX * 1.0, "label_confidence": 0.9}, "^label_confidence: expected none with foreground="),
        ({"foreground": LOGITS[0]}, "^foreground: expected 0 to 1, got .*sigmoid"),
        ({"foreground": np.full((H, W), np.inf)}, "^foreground: .*infinite"),
        ({"foreground": LOGITS[:1]}, r"^foreground: expected \[H, W\].*remove the axis of 1"),
        ({"foreground": LOGITS}, r"^foreground: expected \[H, W\].*probabilities="),
    ],
)  # fmt: skip
def test_what_is_no_mask_and_no_foreground(arguments, message):
    with pytest.raises(ValueError, match=message):
        refined(**arguments)


@pytest.mark.parametrize("foreground", [BOX, BYTES, Image.fromarray(BYTES * 255)])
def test_a_foreground_of_integers_is_refused(foreground):
    with pytest.raises(TypeError, match="^foreground: expected a floating-point"):
        refined(foreground=foreground)


# One class ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tc.CRFRNN, tc.ConvCRF, tc.GuidanceCRF])
def test_layers_refuse_one_class(make):
    with pytest.raises(
        ValueError, match=r"^num_classes: expected .* from 2 .*got 1; .*torch.cat\(\[-z / 2, z / 2\], 1\)"
    ):
        make(1)


@pytest.mark.parametrize("call", [tc.mean_field, tc.trace])
def test_mean_field_refuses_one_class(call):
    logits = torch.zeros(1, 1, H, W)
    with pytest.raises(ValueError, match=r"^logits: expected at least 2 classes .*torch.cat\(\[-z / 2, z / 2\], 1\)"):
        call(logits, [tc.filters.Window(logits, 3)], [1.0])


def test_densecrf_refuses_one_label():
    for make in (lambda: tc.densecrf.DenseCRF(5, 1), lambda: tc.densecrf.DenseCRF2D(4, 5, 1)):
        with pytest.raises(ValueError, match="^nlabels: expected .* from 2"):
            make()


@pytest.mark.parametrize("name, hint", [("probabilities", r"p\[0\]"), ("logits", "sigmoid"), ("energies", "-e")])
@pytest.mark.parametrize("shape", [(1, H, W), (H, W)])
def test_refine_refuses_one_class(name, hint, shape):
    with pytest.raises(ValueError, match=f"^{name}: .*foreground=.*{hint if len(shape) == 3 else ''}"):
        refined(**{name: np.zeros(shape, np.float32)})


def test_the_two_logits_of_one_give_its_sigmoid():
    z = torch.randn(1, 1, H, W)
    logits = torch.cat([-z / 2, z / 2], 1)
    q = tc.mean_field(logits, [tc.filters.Window(z, 3)], [0.0])
    assert_close("q", q[:, 1:], z.sigmoid())


# Labels -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, 1, 7])
def test_labels_that_are_a_mask_are_refused(value):
    labels = np.where(BOX, 255, value)
    with pytest.raises(ValueError, match=f"^labels: .*got only {value} and 255; .* mask="):
        refined(labels=labels)
    q = refined(labels=labels, num_classes=8, iterations=0)
    assert_close("unknown", tensor(q[:, BOX]), torch.full((8, BOX.sum()), 1 / 8))
    assert (q.argmax(0)[~BOX] == value).all()
    assert np.array_equal(refined(labels=labels, unknown=255, num_classes=8, iterations=0), q)


@pytest.mark.parametrize("unknown", [0, -1, 254, 65535, (0, -1), [3, 254], None, ()])
def test_unknown_labels(unknown):
    marks = [unknown] if isinstance(unknown, int) else list(unknown or ())
    labels = np.concatenate([np.arange(6), marks]).astype(np.int64)[None]
    q = refined(np.zeros(labels.shape, np.uint8), labels=labels, num_classes=6, unknown=unknown, iterations=0)[:, 0]
    known = ~np.isin(labels[0], marks)
    assert_close("unknown", tensor(q[:, ~known]), torch.full((6, (~known).sum()), 1 / 6))
    assert np.array_equal(q.argmax(0)[known], labels[0][known])


def test_unknown_counts_no_class():
    assert len(refined(labels=np.where(BOX, 99, LABELS), unknown=99)) == C
    assert len(refined(labels=np.where(BOX, 99, LABELS))) == 100
    assert len(refined(labels=np.where(BOX, 255, LABELS), unknown=None, num_classes=256)) == 256


def test_a_class_255_is_asked_about():
    labels = np.where(BOX, 255, 299)
    with pytest.raises(ValueError, match="^unknown: expected 255 or None, since num_classes=300 makes 255 a class"):
        refined(labels=labels, num_classes=300)
    assert (refined(labels=labels, num_classes=300, unknown=None, iterations=0).argmax(0)[BOX] == 255).all()
    q = refined(labels=labels, num_classes=300, unknown=255, iterations=0)
    assert_close("unknown", tensor(q[:, BOX]), torch.full((300, BOX.sum()), 1 / 300))


@pytest.mark.parametrize(
    "labels",
    [
        np.where(BOX, 65535, LABELS).astype(np.uint16),  # unknown in 16 bits
        np.where(BOX, 0xFF0000, 0),  # colours in integers
        np.arange(H * W).reshape(H, W) * 200,  # instances
        np.linspace(0, 254, H * W).astype(np.uint8).reshape(H, W),  # grey levels
    ],
)
def test_labels_that_are_no_classes_are_refused(labels):
    distinct = len(np.unique(labels))
    message = f"^labels: expected 0 to 199, .*{distinct} of them distinct.*num_classes=.*unknown=.*mask=.*np.unique"
    with pytest.raises(ValueError, match=message):
        refined(labels=labels)


@pytest.mark.parametrize("labels, got", [(LABELS - 1, "-1 to 1"), (np.full((H, W), -1), "-1 to -1")])
def test_negative_labels_name_unknown(labels, got):
    with pytest.raises(ValueError, match=f"^labels: expected 0 or more, .*got {got}; pass unknown=-1"):
        refined(labels=labels)


@pytest.mark.parametrize("bad", ["none", 2.5, (1, "a"), np.array([1, 2]), True])
def test_what_unknown_cannot_be(bad):
    with pytest.raises((TypeError, ValueError), match="^unknown: expected"):
        refined(labels=LABELS, unknown=bad)


# Classes that are ruled out -----------------------------------------------------------------------------------------

RULED_OUT = np.where(GENERATOR.random(LOGITS.shape) < 0.3, -np.inf, LOGITS).astype(np.float32)
RULED_OUT[0][np.isinf(RULED_OUT).all(0)] = 0


@pytest.mark.parametrize("method", ["lattice", "exact", "window", "guided"])
def test_a_class_that_is_ruled_out_has_no_probability(method):
    arguments = {"method": method, "window_size": None, "blur": None}
    q = refined(logits=RULED_OUT, **arguments)
    assert (q[np.isinf(RULED_OUT)] == 0).all()
    assert_close("q", tensor(q), tensor(refined(logits=RULED_OUT.clip(-1e4), **arguments)))
    assert np.array_equal(q, refined(energies=-RULED_OUT, **arguments))


@pytest.mark.parametrize("make", [tc.CRFRNN, tc.ConvCRF, tc.GuidanceCRF])
@pytest.mark.parametrize("preset", [None, "released"])
def test_layers_take_classes_that_are_ruled_out(make, preset):
    logits = tensor(RULED_OUT)[None].requires_grad_()
    image = tensor(IMAGE).permute(2, 0, 1)[None]
    q = make(C, preset=preset)(logits, image, output="probabilities")
    assert (q[logits == -math.inf] == 0).all()
    q.square().sum().backward()
    assert logits.grad.isfinite().all() and (logits.grad[logits == -math.inf] == 0).all()


@pytest.mark.parametrize("preset", [None, "released"])
def test_ruled_out_classes_are_upsampled(preset):
    logits = torch.zeros(1, C, H, W)
    logits[:, 1, :, : W // 2] = -math.inf
    image = torch.rand(1, 3, 2 * H, 2 * W)
    q = tc.GuidanceCRF(C, preset=preset)(logits, image, output="probabilities")
    assert q.isfinite().all() and (q[:, 1, :, : W - 2] == 0).all()


def test_no_other_logit_nor_weight_brings_a_ruled_out_class_back():
    low = np.stack([np.full((H, W), -1.5e5), np.full((H, W), -np.inf)])
    assert (refined(logits=low)[1] == 0).all()
    q = refined(logits=RULED_OUT, weight_appearance=1e6, weight_smooth=1e6, theta_color=200)
    assert (q[np.isinf(RULED_OUT)] == 0).all()
    scores = tc.mean_field(
        tensor(RULED_OUT)[None], [tc.filters.Window(torch.rand(1, 2, H, W), 3)], [1.0], unary_weight=1e-5
    )
    assert (scores[0][np.isinf(RULED_OUT)] == 0).all()


def test_a_trace_of_ruled_out_classes_is_finite():
    _, trace = refined(logits=RULED_OUT, return_trace=True)
    assert all(math.isfinite(record.free_energy) for record in trace.records)


@pytest.mark.parametrize("bad, message", [(np.nan, "NaN"), (np.inf, "others that are NaN or infinite")])
def test_other_values_that_are_not_finite_are_refused(bad, message):
    logits = LOGITS.copy()
    logits[1, 2, 3] = bad
    with pytest.raises(ValueError, match=f"^logits: .*{message}"):
        refined(logits=logits)
    with pytest.raises(ValueError, match=f"^energies: .*{message}"):
        refined(energies=-logits)


@pytest.mark.parametrize("name, infinity", [("logits", -np.inf), ("energies", np.inf)])
def test_a_pixel_without_a_class_is_refused(name, infinity):
    scores = LOGITS.copy()
    scores[:, 2, 3] = infinity
    with pytest.raises(ValueError, match=f"^{name}: expected a class that is not ruled out, got 1 pixels"):
        refined(**{name: scores})


# Other axes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, hint",
    [
        ({"logits": LOGITS[None]}, r"remove the batch axis: l\[0\]"),
        ({"probabilities": LOGITS[None]}, r"remove the batch axis: p\[0\]"),
        ({"logits": LOGITS.transpose(1, 2, 0)}, r"classes come first: l.permute\(2, 0, 1\)"),
        ({"logits": LOGITS[None].repeat(2, 0)}, "one image per call"),
        ({"labels": LABELS[None]}, "remove the axis of 1: labels.squeeze"),
        ({"labels": IMAGE}, "a palette's indices are labels"),
        ({"logits": LOGITS, "image": IMAGE[None]}, r"remove the batch axis: image\[0\]"),
        ({"logits": LOGITS, "image": IMAGE.transpose(2, 0, 1)}, r"channels come last in arrays"),
        ({"logits": LOGITS, "image": tensor(IMAGE)}, r"channels come first in tensors"),
        ({"logits": LOGITS, "image": tensor(IMAGE[..., 0])}, r"image\[None\]"),
        ({"logits": LOGITS, "image": np.dstack([IMAGE, IMAGE[..., :1]])}, r"image\[..., :-1\]"),
        (
            {"logits": LOGITS, "image": np.zeros((4, 5, 6), np.uint8)},
            r"volumes, \[\*S\] or .*\[\*S, M\], need scores",
        ),
    ],
)
def test_what_to_do_about_other_axes(arguments, hint):
    with pytest.raises(ValueError, match=f"; .*{hint}"):
        refined(**{"image": IMAGE, **arguments})


def test_an_image_of_one_channel():
    assert np.array_equal(refined(IMAGE[..., :1], logits=LOGITS), refined(IMAGE[..., 0], logits=LOGITS))


@pytest.mark.parametrize("image", [IMAGE.astype(np.uint16) * 257, IMAGE.astype(int)], ids=["uint16", "int64"])
def test_images_of_other_integers(image):
    with pytest.raises(TypeError, match="^image: expected uint8, or floats from 0 to 1, got .*; value_range=.* sets"):
        refined(image, logits=LOGITS)


@pytest.mark.parametrize("name", ["logits", "probabilities", "labels", "mask", "foreground"])
def test_masked_sparse_and_meta_scores_are_refused(name):
    value = BOX * 1.0 if name in ("mask", "foreground") else LABELS if name == "labels" else np.abs(LOGITS) / 9
    for bad in np.ma.masked_array(value, value > 0), tensor(value).to_sparse(), tensor(value).to("meta"):
        with pytest.raises((TypeError, ValueError), match=f"^{name}: expected"):
            refined(**{name: bad})


# Pictures -----------------------------------------------------------------------------------------------------------


def turned(array, orientation):
    """A photo as a phone stores it: pixels as they are, and how to turn them."""
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(array).save(file, "png", exif=exif)
    return Image.open(file)


def test_photos_are_turned_upright():
    stored = np.rot90(IMAGE)  # a viewer turns it back by a quarter to the right
    assert np.array_equal(refined(turned(stored, 6), logits=LOGITS), refined(IMAGE, logits=LOGITS))
    square = IMAGE[:H, :H]
    upright = refined(turned(square, 3), logits=LOGITS[..., :H])
    assert np.array_equal(upright, refined(np.rot90(square, 2), logits=LOGITS[..., :H]))


def test_masks_and_labels_are_turned_as_the_photo_is():
    q = refined(turned(np.rot90(PICTURE), 6), mask=turned(np.rot90(BYTES * 255), 6))
    assert np.array_equal(q, refined(PICTURE, mask=BOX))
    labels = turned(np.rot90(LABELS.astype(np.uint8)), 6)
    assert np.array_equal(refined(labels=labels), refined(labels=LABELS))


def test_a_size_that_does_not_fit_mentions_the_orientation():
    with pytest.raises(
        ValueError, match=r"^image: expected the size of logits, \[10, 12\], got \[12, 10\]; it was rotated by its EXIF"
    ):
        refined(turned(IMAGE, 6), logits=LOGITS)


def test_integers_beyond_64_bits_signed():
    with pytest.raises(ValueError, match=r"^labels: expected integers below 2\*\*63"):
        refined(labels=np.full((H, W), 2**63, np.uint64))
