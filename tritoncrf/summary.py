"""What a refinement changed, in a few numbers."""

from dataclasses import dataclass

import torch

from tritoncrf.diagnostics import Record

__all__ = ["Summary", "Trace", "summarized"]


@dataclass(frozen=True)
class Summary:
    """Labels and confidence before and after refining. Shares refer to all pixels, from 0 to 1.

    Attributes:
        changed: the share of pixels whose most probable class changed.
        before, after: the share of every class, in order. A pixel whose classes are all equally probable, for instance
            where a label is unknown, belongs to none.
        confidence_before, confidence_after: the mean over pixels of the probability of the most probable class.
    """

    changed: float
    before: tuple[float, ...]
    after: tuple[float, ...]
    confidence_before: float
    confidence_after: float

    def __str__(self) -> str:
        lines = [
            f"changed {self.changed:.2%} of the pixels",
            f"confidence {self.confidence_before:.4f} before, {self.confidence_after:.4f} after",
            f"{'class':>9}  {'before':>8}  {'after':>8}",
        ]
        for label, (before, after) in enumerate(zip(self.before, self.after)):
            if before or after:
                lines.append(f"{label:9}  {before:8.2%}  {after:8.2%}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Trace:
    """The course of a refinement.

    Attributes:
        records: those of `tritoncrf.trace`, one for the start and one for each iteration.
        summary: what changed in total.
    """

    records: list[Record]
    summary: Summary


def summarized(before: torch.Tensor, after: torch.Tensor) -> Summary:
    """The summary of two fields of probabilities [C, *S]."""
    old, new = _labels(before), _labels(after)
    return Summary(
        changed=(old != new).double().mean().item(),
        before=_shares(old, len(before)),
        after=_shares(new, len(after)),
        confidence_before=before.amax(0).double().mean().item(),
        confidence_after=after.amax(0).double().mean().item(),
    )


def _labels(q: torch.Tensor) -> torch.Tensor:
    """The best class [*S]; C where several classes are all equal."""
    low, high = torch.aminmax(q, dim=0)
    return torch.where(low == high, len(q), q.argmax(0))


def _shares(labels: torch.Tensor, num_classes: int) -> tuple[float, ...]:
    counts = torch.bincount(labels.flatten(), minlength=num_classes)[:num_classes]
    return tuple((counts.double() / labels.numel()).tolist())
