"""Evaluate one network or several together, with and without a CRF, at one scale or several."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, get_args

import torch

from tritoncrf.checks import expect_choice
from tritoncrf.layers import Layer
from tritoncrf.models.data import Batch
from tritoncrf.models.distributed import World
from tritoncrf.models.losses import cross_entropy
from tritoncrf.models.metrics import WIDTHS, Evaluation, Result
from tritoncrf.models.segmenter import Segmenter, resized

if TYPE_CHECKING:
    from typing_extensions import Unpack

Fusion: TypeAlias = Literal["mean", "max_mean"]
FUSIONS: tuple[Fusion, ...] = get_args(Fusion)
Networks: TypeAlias = Segmenter | Sequence[Segmenter]
MOST_SCALE = 16


class Testing(TypedDict, total=False):
    """Keyword arguments of `scores`: scales and mirroring."""

    scales: Sequence[float]
    flip: bool
    fuse: Fusion
    crf: Layer | None


@dataclass(frozen=True)
class Validation:
    """Means over a split; `unary` is None where the network has no CRF."""

    loss: float  # mean cross-entropy of the refined logits over all pixels with a known label
    refined: Result
    unary: Result | None


@torch.no_grad()
def validate(
    model: Segmenter, batches: Iterable[Batch], num_classes: int, world: World,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> Validation:  # fmt: skip
    """The validation during training: the loss, and all metrics except those of borders.

    Args:
        model: in evaluation mode.
        batches: the batches of this rank, from `data.loader`.
        num_classes: C.
        world: the ranks, over which counts are summed.
        autocast: a context in which the network runs.
    """
    scores = {name: Evaluation(num_classes, widths=()) for name in outputs(model)}
    loss = torch.zeros(2, dtype=torch.float64, device=world.device)
    for batch in batches:
        images, labels = batch["image"].to(world.device), batch["labels"].to(world.device)
        with autocast():
            logits = by_output(model, images)
        loss += torch.stack(cross_entropy(logits["refined"], labels))
        for name, found in logits.items():
            scores[name].add(found.argmax(1), labels)
    total, pixels = world.total(loss).tolist()
    results = {}
    for name, score in scores.items():
        score.counts = world.total(score.counts.to(world.device)).cpu()
        results[name] = score.result()
    return Validation(total / max(pixels, 1.0), results["refined"], results.get("unary"))


@torch.no_grad()
def evaluate(
    model: Networks, batches: Iterable[Batch], num_classes: int, device: torch.device | str,
    **testing: "Unpack[Testing]",
) -> dict[str, Evaluation]:  # fmt: skip
    """All metrics of the "refined" scores and, if there is a CRF, of the "unary" ones; `testing` are arguments of
    `scores`."""
    found = {name: Evaluation(num_classes, WIDTHS) for name in outputs(model, testing.get("crf"))}
    for batch in batches:
        maps = scores(model, batch["image"].to(device), **testing)
        for name, evaluation in found.items():
            evaluation.add(maps[name].argmax(1).cpu(), batch["labels"])
    return found


@torch.no_grad()
def scores(
    model: Networks, image: torch.Tensor, scales: Sequence[float] = (1.0,), flip: bool = False, fuse: Fusion = "mean",
    crf: Layer | None = None,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Scores [B, C, H, W] of a network in evaluation mode, by name as in `by_output`; the class has the largest score.

    Args:
        model: a network, or several for the same classes, whose scores are fused like those of several scales. A
            network without a CRF among others with one counts with the same scores as "unary" and "refined".
        image: [B, 3, H, W], uint8, or floating in 0..1.
        scales: factors, at most 16, by which the image is resized; the scores are resized back.
        flip: also use the mirror image at each scale.
        fuse: "mean" of the probabilities, or "max_mean", (max + mean) / 2 of the logits (Shen et al. 2017, SegModel,
            in the released code).
        crf: a disconnected CRF instead of the networks' own: it refines the fused "unary" scores once, at the image's
            size.
    """
    expect_choice("fuse", fuse, FUSIONS)
    photo = image if image.is_floating_point() else image.float() / 255
    names = outputs(model, crf)
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in (names if crf is None else names[:1])}
    for network in _several(model):
        for scale in scales:
            view = photo if scale == 1 else _scaled(photo, scale)
            for mirrored in (False, True) if flip else (False,):
                turned = view.flip(3) if mirrored else view
                found = by_output(network, turned) if crf is None else {"unary": network(turned, "unary")}
                for name, maps in seen.items():
                    logits = found[name] if name in found else found["refined"]
                    maps.append(resized((logits.flip(3) if mirrored else logits).float(), image.shape[2:]))
    fused = {name: _fused(maps, fuse) for name, maps in seen.items()}
    if crf is not None:
        views = seen["unary"]
        # The logarithm of the mean of the probabilities, up to a constant.
        logits = torch.stack([x.log_softmax(1) for x in views]).logsumexp(0) if fuse == "mean" else fused["unary"]
        fused["refined"] = crf(logits, image, output="probabilities")
    return fused


def _fused(logits: Sequence[torch.Tensor], fuse: Fusion) -> torch.Tensor:
    """Fuse the scores [B, C, H, W] of several views."""
    if fuse == "mean":
        return torch.stack([x.softmax(1) for x in logits]).mean(0)
    maps = torch.stack([*logits])
    return (maps.amax(0) + maps.mean(0)) / 2


def outputs(model: Networks, crf: Layer | None = None) -> tuple[str, ...]:
    """The names of the outputs: "refined", and also "unary" if the networks have a CRF or one is given."""
    return ("refined",) if crf is None and all(m.crf is None for m in _several(model)) else ("unary", "refined")


def by_output(model: Segmenter, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """The logits by these names, from one forward pass."""
    found = model(image, "refined" if model.crf is None else "both")
    return dict(zip(outputs(model), [found] if model.crf is None else found))


def _several(model: Networks) -> Sequence[Segmenter]:
    return [model] if isinstance(model, Segmenter) else model


def _scaled(photo: torch.Tensor, scale: float) -> torch.Tensor:
    size = [max(1, round(n * scale)) for n in photo.shape[2:]]
    return torch.nn.functional.interpolate(photo, size=size, mode="bilinear", align_corners=False, antialias=True)
