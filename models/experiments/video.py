"""The effect of a CRF over several frames of a video: the shares of labels that flicker and that are right.

A frame and its neighbours form a volume whose first axis is time. The distance of two frames in `spacing` is
theta_space / theta_time pixels. The scores of CamVid's validation frames, 15 per second, come from a small network, or
are label maps in blocks of which a quarter, chosen anew in each frame, are wrong. theta_time was chosen on the first
half of the frames; the table is for the second half.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tritoncrf import reports
from tritoncrf.models.augment import VOID
from tritoncrf.models.experiments.defaults import ScoreSet, camvid, in_blocks_of_labels
from tritoncrf.models.experiments.runs import COMMAND, Place, train
from tritoncrf.models.experiments.statistics import Estimate, in_blocks, jackknife
from tritoncrf.models.scored import MEASURES, Scored, counted, measures
from tritoncrf.refine import refine
from tritoncrf.types import RefineOptions

__all__ = ["run"]

NETWORK = "unary"
THETA_SPACE, THETA_TIME = 7.5, 4.0  # pixels, the default of 5 % of the diagonal of 90 x 120; frames
OPTIONS: RefineOptions = {
    "theta_space": THETA_SPACE, "theta_smooth": THETA_SPACE / 10, "spacing": (THETA_SPACE / THETA_TIME, 1.0, 1.0),
}  # fmt: skip
BEFORE, TRUTH = "no CRF", "the truth"
FRAMES = {"1 frame": 1, "3 frames": 3, "5 frames": 5, "9 frames": 9, "all frames": None}
COLUMNS = "changed", "falsely changed", "mean IoU", "pixel accuracy"


def noisy(scores: ScoreSet) -> ScoreSet:
    """The frames with their label maps in blocks, a quarter of which are wrong."""
    draw, items = np.random.default_rng(0), []
    for item in scores.items:
        labels = in_blocks_of_labels(np.where(item.truth == VOID, 0, item.truth), draw)
        items.append(Scored(item.image, {"labels": labels, "num_classes": scores.num_classes}, item.truth))
    return ScoreSet("noisy labels", items, scores.num_classes, video=True)


def volume(items: Sequence[Scored]) -> tuple[np.ndarray, dict[str, Any]]:
    """The frames [T, H, W, 3], and their scores by name, [C, T, H, W] or labels [T, H, W]."""
    scores: dict[str, Any] = {}
    for name, value in items[0].scores.items():
        frames = [item.scores[name] for item in items]
        scores[name] = np.stack(frames, frames[0].ndim - 2) if isinstance(value, np.ndarray) else value
    return np.stack([np.asarray(item.image) for item in items]), scores


def refined(items: Sequence[Scored], frames: int | None, **given: Any) -> Iterator[np.ndarray]:
    """Q of each frame, [C, H, W], as the middle frame of a volume, which is shorter at both ends of the video; or all
    frames in one call."""
    if frames is None:
        image, scores = volume(items)
        yield from np.moveaxis(refine(image, **scores, **given), 1, 0)
        return
    for t in range(len(items)):
        first = max(0, t - frames // 2)
        image, scores = volume(items[first : t + frames // 2 + 1])
        yield refine(image, **scores, **given)[:, t - first]


def flickers(labels: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> np.ndarray:
    """For each frame but the first: the number of pixels whose label changed, of those where the true label did not
    change, and of all pixels known in both frames."""
    found = []
    for (before, now), (old, new) in zip(pairwise(labels), pairwise(truth), strict=True):
        known = (old != VOID) & (new != VOID)
        changed = (before != now) & known
        found.append([changed.sum(), (changed & (old == new)).sum(), known.sum()])
    return np.array(found)


class Measured:
    """The result of one way of refining a set: the counts of flickers and of `counted` for each stretch of frames."""

    def __init__(self, scores: ScoreSet, q: Sequence[np.ndarray]) -> None:
        truth = [item.truth for item in scores.items]
        self.flickers = in_blocks(flickers([one.argmax(0) for one in q], truth))
        self.counts = in_blocks(np.stack([counted(*pair, scores.num_classes) for pair in zip(q, truth, strict=True)]))

    def estimates(self) -> list[Estimate]:
        return jackknife(self.flickers, _shares) + jackknife(self.counts, _right)

    def differences(self, other: "Measured") -> list[Estimate]:
        """Differences to another way on the same frames."""
        flickers, counts = np.stack([self.flickers, other.flickers], 1), np.stack([self.counts, other.counts], 1)
        return [
            *jackknife(flickers, lambda both: _shares(both[0]) - _shares(both[1])),
            *jackknife(counts, lambda both: _right(both[0]) - _right(both[1])),
        ]


def _shares(total: np.ndarray) -> np.ndarray:
    return total[:2] / total[2]


def _right(total: np.ndarray) -> np.ndarray:
    found = measures(total)
    return np.array([found[MEASURES.index(name)] for name in COLUMNS[2:]])


def measured(scores: ScoreSet) -> dict[str, Measured]:
    """The results by the titles of the rows."""
    truth = [np.eye(scores.num_classes + 1)[np.minimum(s.truth, scores.num_classes)][..., :-1] for s in scores.items]
    found = {BEFORE: Measured(scores, list(refined(scores.items, 1, iterations=0)))}
    for name, frames in FRAMES.items():
        found[name] = Measured(scores, list(refined(scores.items, frames, **OPTIONS)))
    return {**found, TRUTH: Measured(scores, [np.moveaxis(one, -1, 0) for one in truth])}


def run(root: Path, out: Path) -> None:
    """The experiment: its training, then out/video.md and .csv."""
    place = Place(root, out)
    train([NETWORK], place)
    half = camvid(NETWORK, place).half(second=True)
    lines, rows = _head(), []
    for scores in half, noisy(half):
        results, table = measured(scores), []
        for name, result in results.items():
            own, change = result.estimates(), result.differences(results[BEFORE])
            clear = name in FRAMES
            table.append(
                [name, *(f"**{e.percent()}**" if clear and c.clear else e.percent() for e, c in zip(own, change))]
            )
            rows += [
                {"set": scores.name, "row": name, "measure": m, "value": e.value, "error": e.error, "change": c.value}
                for m, e, c in zip(COLUMNS, own, change)
            ]
        lines += [f"## {scores.name}: {len(scores.items)} frames", "", reports.table(["", *COLUMNS], table), ""]
        print(f"{scores.name}: {len(scores.items)} frames", flush=True)
        reports.write(out, "video", "\n".join(lines), rows)


def _head() -> list[str]:
    return [
        reports.head("Video: a CRF over several frames", COMMAND.format("video --data CAMVID")),
        "Percent on the second half of CamVid's validation frames, 90 x 120 at 15 per second, ± one standard error "
        "(jackknife over stretches of similar frames); bold where the difference to no CRF is significant "
        "(5 %, Student's t). Changed: pixels whose label differs from that in the previous frame; "
        "falsely: where the true label does not. N frames: each frame is the middle of a volume of N frames. All "
        f"frames: one volume in one call. theta_space is {THETA_SPACE:g} pixels and theta_time {THETA_TIME:g} frames, "
        'chosen on the first half; the method is "lattice", all else is default. Noisy labels: blocks of 8 x 8 pixels, '
        "a quarter of which, chosen anew in each frame, have a label drawn from the frame's labels.",
        "",
    ]
