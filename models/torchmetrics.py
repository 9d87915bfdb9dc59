"""The measures of `metrics` as a torchmetrics metric, which Lightning can log and sum over processes."""

from collections.abc import Sequence
from typing import Any

import torch

from tritoncrf.checks import kind_of
from tritoncrf.models.metrics import Evaluation

try:
    from torchmetrics import Metric
except ModuleNotFoundError:
    raise ModuleNotFoundError(
        'tritoncrf.models.torchmetrics needs torchmetrics: pip install "tritoncrf[torchmetrics]"'
    ) from None


class SegmentationMetric(Metric):  # type: ignore[misc] # whose type is not looked at
    """Mean IoU, accuracies, IoU of every class, and with `widths` Boundary IoU and trimaps, over all images so far.

    The state is `Evaluation.counts`, which are integers, so the result is the same for any number of batches and
    processes.

    Args:
        num_classes: C.
        names: names of the classes; numbers by default.
        widths: widths of the bands along borders, in pixels, as in `Evaluation`; empty for none, which is faster.
        ignore: the value in a target that marks unknown pixels.
        options: options of `torchmetrics.Metric`, such as sync_on_compute or process_group.

    Raises:
        ModuleNotFoundError: torchmetrics is not installed; raised when this module is imported.
        TypeError, ValueError: as `Evaluation`; not one name per class.

    Example:
        >>> import torch
        >>> from tritoncrf.models.torchmetrics import SegmentationMetric
        >>> metric = SegmentationMetric(num_classes=2, names=["road", "tree"])
        >>> target = torch.tensor([[[0, 0, 0, 1], [0, 0, 0, 255]]])
        >>> metric.update(torch.tensor([[[0, 0, 1, 1], [0, 0, 0, 0]]]), target)
        >>> {name: round(value.item(), 4) for name, value in metric.compute().items()}
        {'miou': 0.6667, 'pixel_accuracy': 0.8571, 'mean_accuracy': 0.9167, 'iou road': 0.8333, 'iou tree': 0.5}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False  # the counts of a batch do not depend on earlier batches
    counts: torch.Tensor

    def __init__(
        self, num_classes: int, names: Sequence[str] | None = None, widths: Sequence[int] = (),
        ignore: int | None = 255, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(**options)
        self.evaluation, self.names = Evaluation(num_classes, widths, ignore), names
        self.evaluation.result(names)  # checks them
        self.add_state("counts", self.evaluation.counts.clone(), dist_reduce_fx="sum")

    def update(self, preds: torch.Tensor, target: torch.Tensor) -> None:
        """Count a batch.

        Args:
            preds: floating-point scores [B, C, H, W], of which the largest gives the class; or integer classes [B, H,
                W].
            target: true classes [B, H, W], integers.

        Raises:
            TypeError, ValueError: as `trimap_confusion`; scores of another shape.
        """
        if isinstance(preds, torch.Tensor) and preds.is_floating_point():
            classes = self.evaluation.num_classes
            if preds.ndim != 4 or preds.shape[1] != classes:
                raise ValueError(f"preds: expected scores [B, {classes}, H, W] or classes, got {kind_of(preds)}")
            preds = preds.argmax(1)
        self.counts += self.evaluation.counted(preds, target).to(self.counts.device)

    def compute(self) -> dict[str, torch.Tensor]:
        """The metrics by the names that `tritoncrf evaluate` writes; NaN where nothing was counted."""
        self.evaluation.counts = self.counts.cpu()
        numbers = self.evaluation.result(self.names).numbers()
        return {name: torch.tensor(value, device=self.counts.device) for name, value in numbers.items()}
