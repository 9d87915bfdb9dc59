"""TimmFCN: a segmentation network on any backbone of timm, for any of the CRFs."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn import functional as F

from tritoncrf import checks
from tritoncrf.models.blocks import expect_one_of, options
from tritoncrf.models.segmenter import Segmenter, resized

STRIDES = 32, 16, 8
Size: TypeAlias = tuple[int, int] | None
MOST = 1000  # features of a backbone
# The arguments that make timm's transformers accept images of any size; convolutional networks always do.
ANY_SIZE: tuple[dict[str, bool], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})
# Arguments of `timm.create_model` that are set here; "pretrained" would download weights.
CHOSEN = (
    "cache_dir", "checkpoint_path", "features_only", "in_chans", "num_classes", "out_indices", "output_stride",
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay",
)  # fmt: skip


class TimmFCN(Segmenter):
    r"""A fully convolutional network on a backbone of timm: scores at several resolutions, summed from coarse to fine
    as in `ResNetFCN`.

    .. math::
        s = \mathrm{up}(\ldots \mathrm{up}(W_k x_k) + W_{k-1} x_{k-1} \ldots + W_1 x_1)

    with x the backbone's features from the finest to the coarsest, W 1x1 convolutions without bias, dropout of whole
    channels before W_k, and up the bilinear interpolation to the next size, finally to that of the image. From coarse
    to fine, the initial variances of W are 2 / n, 0.02 / n, 0.0002 / n and so on, for n channels of x.

    Images are normalised with the mean and standard deviation that timm gives for the backbone's weights, and padded
    with that mean below and on the right to a multiple of the largest stride. Nothing is downloaded: weights come from
    a file with timm's parameter names, by `load_backbone` or --weights.

    Args:
        num_classes: C.
        backbone: a name from `timm.list_models()`, such as "convnext_tiny", optionally with the tag of its weights,
            "convnext_tiny.fb_in22k", if their mean or size differs.
        output_stride: 16 or 8, for backbones that support dilated convolutions instead of strides; None for the
            backbone's own.
        out_indices: indices of the features to use, in rising order; negative ones count from the last. The last three
            have strides 8, 16 and 32 in most networks, and all have the same stride in a plain vision transformer.
        dropout: probability that a channel of x_k is dropped in training.
        arguments: further arguments of `timm.create_model`, such as {"drop_path_rate": 0.1}.

    Raises:
        ModuleNotFoundError: timm is not installed; `pip install "tritoncrf[timm]"` does.
        TypeError, ValueError: naming the argument, what was expected and what came.

    Example:
        >>> from tritoncrf.models import TimmFCN
        >>> network = TimmFCN(num_classes=4, backbone="resnet10t")  # doctest: +SKIP
        >>> network(torch.rand(1, 3, 50, 70)).shape  # doctest: +SKIP
        torch.Size([1, 4, 50, 70])
    """

    backbone: Any  # a network of timm, whose attributes have no types

    def __init__(
        self, num_classes: int = 21, backbone: str = "convnext_tiny", output_stride: int | None = None,
        out_indices: Sequence[int] = (-3, -2, -1), dropout: float = 0.5, arguments: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(num_classes)
        self.name, self.arguments = backbone, options("arguments", arguments)
        if chosen := sorted(set(CHOSEN) & set(self.arguments)):
            raise ValueError(f"arguments: expected none that TimmFCN sets itself, got {', '.join(chosen)}")
        if output_stride is not None:
            self.arguments["output_stride"] = expect_one_of("output_stride", output_stride, STRIDES)
        self.backbone, self.only_size = _features(backbone, self.arguments, out_indices)
        found = self.backbone.pretrained_cfg
        self.mean, self.std = (torch.tensor(found[name]).view(3, 1, 1) for name in ("mean", "std"))
        stride = max(self.backbone.feature_info.reduction())
        self.multiple = self.only_size or (stride, stride)  # images are padded to multiples of this
        self.dropout = nn.Dropout2d(checks.expect_number("dropout", dropout))
        self.score = nn.ModuleList()
        for n, channels in enumerate(reversed(self.backbone.feature_info.channels())):
            score = nn.Conv2d(channels, num_classes, 1, bias=False)
            nn.init.normal_(score.weight, std=(2 * 100**-n / channels) ** 0.5)
            self.score.append(score)

    def scores(self, image: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[2:]
        below, right = -height % self.multiple[0], -width % self.multiple[1]
        padded = F.pad(self.normalized(image), (0, right, 0, below))
        if self.only_size not in (None, tuple(padded.shape[2:])):
            wanted, got = (" x ".join(map(str, size)) for size in (self.only_size, image.shape[2:]))
            raise ValueError(f"image: expected at most {wanted}, which {self.name} is made for (img_size), got {got}")
        *finer, coarsest = self.backbone(padded)
        scores = self.score[0](self.dropout(coarsest))
        for x, score in zip(reversed(finer), list(self.score)[1:]):
            scores = resized(scores, x.shape[2:]) + score(x)
        return resized(scores, padded.shape[2:])[..., :height, :width]

    def published(self) -> set[str]:
        """The names of the parameters in a file with timm's weights of the backbone, including its classifier."""
        return set(_made(self.name, self.arguments)[0].state_dict())


def synchronized(model: Segmenter) -> Segmenter:
    """`model` with batch norm synchronised over all ranks. timm's batch norm, which includes an activation, needs
    special treatment."""
    if isinstance(getattr(model, "network", model), TimmFCN):
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(model)
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def _features(backbone: str, arguments: dict[str, Any], out_indices: Sequence[int]) -> tuple[Any, Size]:
    """The module that computes the features, channels first, without the layers after the last of them; and the size of
    `_made`."""
    if not isinstance(out_indices, (list, tuple)) or not out_indices:
        raise TypeError(f"out_indices: expected a list of whole numbers, got {checks.kind_of(out_indices)}")
    indices = [checks.expect_int("out_indices", index, -MOST, MOST) for index in out_indices]
    found, size = _made(backbone, {**arguments, "features_only": True, "feature_cls": "getter", "out_indices": indices})
    if not hasattr(found.model, "forward_intermediates"):
        raise ValueError(f"backbone: expected a network from which timm can extract features, got {backbone!r}")
    if (strides := found.feature_info.reduction()) != sorted(strides) or len(set(found.out_indices)) < len(strides):
        raise ValueError(f"out_indices: expected different ones in rising order, got {indices}")
    return found, size


def _made(backbone: str, arguments: dict[str, Any]) -> tuple[Any, Size]:
    """A network of timm with random weights, and the only image size that it accepts, or None for any size."""
    try:
        import timm
    except ModuleNotFoundError:
        raise ModuleNotFoundError('TimmFCN needs timm: pip install "tritoncrf[timm]"') from None
    if not isinstance(backbone, str) or not timm.is_model(backbone):
        near = difflib.get_close_matches(str(backbone), timm.list_models(), 3)
        hint = f"such as {', '.join(near)}" if near else "one that timm.list_models() lists"
        raise ValueError(f"backbone: expected a network of timm, {hint}, got {backbone!r}")
    for any_size in ANY_SIZE:
        try:
            made = timm.create_model(backbone, pretrained=False, **{**any_size, **arguments})
        except TypeError as error:  # an argument that this network does not have
            refused: Exception = error
        except AssertionError as error:
            refused = error
            break
        except RuntimeError as error:  # of a tag
            raise ValueError(f"backbone: expected a network of timm, got {backbone!r}: {error}") from error
        else:
            if any_size or not made.pretrained_cfg.get("fixed_input_size"):
                return made, None
            size = arguments.get("img_size", made.pretrained_cfg["input_size"][1:])
            return made, (size, size) if isinstance(size, int) else tuple(size)
    given = ", ".join(f"{name}={value!r}" for name, value in arguments.items() if not name.startswith("feature"))
    raise ValueError(f"backbone: expected arguments that {backbone} takes, got {given}: {refused}") from refused
