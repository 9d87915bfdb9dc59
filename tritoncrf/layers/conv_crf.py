"""ConvCRF: the CRF in a window, as a layer."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from tritoncrf import checks, features, filters
from tritoncrf.backends import compute_dtype
from tritoncrf.features import evenly_spaced
from tritoncrf.filters.base import NORMALIZATIONS, Execution, execution
from tritoncrf.filters.window import MAX_WINDOW
from tritoncrf.layers import conv_crf_start
from tritoncrf.layers.base import Layer, as_precise, expect_inputs, expect_update, placed
from tritoncrf.layers.conv_crf_start import Mixture
from tritoncrf.mean_field import INITIALS, mean_field, possible
from tritoncrf.published import Numbers, convcrf_arguments, convcrf_parameters
from tritoncrf.types import Backend, Compatibility, Initial, Normalization, Output, Precision, Theta

PRESETS = (None, "released")


class WindowOptions(Execution):
    """The arguments of the layer for its filters."""

    window_size: int
    blur: int
    include_self: bool
    normalization: Normalization


class ConvCRF(Layer):
    r"""Convolutional CRF: mean field with exact Gaussian messages in a window, with learnable kernels and weights.

    .. math::
        S_{t+1} = U + (I + c) \sum_m w_m K_m \mathrm{softmax}(S_t), \qquad S_0 = U

    with two kernels: a smoothness kernel, Gaussian in position, and an appearance kernel, Gaussian in colour and
    position (Teichmann and Cipolla 2018, ConvCRF, section 4; Potts model in the form that rewards equal labels).

    Args:
        num_classes: C.
        window_size: side of the window in pixels, odd, 1 to 31; in pixels of the blurred image if `blur` > 1.
        blur: messages are computed at a resolution lower by this factor; the window spans blur * window_size
            pixels. 1 is exact.
        iterations: mean-field updates.
        theta_smooth, theta_space: bandwidths of the position in the smoothness and the appearance kernel, in
            pixels or in the unit of `spacing`; a number or one per axis. theta_space is 30 by default, 80 in the
            preset.
        theta_color: bandwidth of the colour, in 0..255 units whatever the image's dtype; a number or one
            per channel. 5 by default, 13 in the preset.
        appearance_position: whether the appearance kernel depends on the position. By default it does, in the
            preset only if theta_space is given.
        weight_smooth, weight_appearance: initial kernel weights w_m. 1 and 1 by default, 3 and 10 in the preset.
        class_weights: learn each w_m per class, [C], instead of one number.
        compatibility: learn the 1x1 convolution c of the messages, [C, C] (the paper's +C). It starts at a
            constant, which does not change the softmax; without it c = 0, the Potts model.
        learn_positions: the spatial size *S of the images, to learn the coordinates of every pixel (the paper's
            +T), [D, *S] starting at the pixel grid; the layer then takes only images of that size. They are used by
            the smoothness kernel, in the preset also by the appearance kernel, as in the authors' code.
        normalization: of both kernels, see `filters.Window`; "symmetric" by default.
        include_self: whether a pixel sends a message to itself.
        spacing: distance between neighbouring pixels or voxels, a number or one per axis.
        damping, temperature: of the updates, see `mean_field`; not in a preset.
        unary_weight: a, the weight of the logits.
        initial: what the first messages are computed from, see `mean_field`; "softmax" if left out, in the preset
            "log_softmax".
        preset: "released" computes what the authors' code does:
            S = (a - w) L + w (I + c) sum_m w_m K_m Q with L = log_softmax(U), per-class w = 0.2, first
            messages from L itself, no normalisation, no position in the appearance kernel, and bandwidths learned as
            1 / theta. appearance_position, normalization, unary_weight and initial may still be given.
            `from_published` takes the authors' configurations.
        mixture: in the preset, how w is learned: one number per "class" (the default), one number in all, "scalar",
            or "none", for S = a L + (I + c) sum_m w_m K_m Q.
        weight_mixture: initial w, 0.2 by default.
        precision, backend: see `filters.Window`.
        device, dtype: of the parameters.

    Parameters: log_theta_* (inverse_theta_* in the preset), weight_smooth, weight_appearance, and if requested
    compatibility [C, C], positions [D, *S], class_weight w, [C] or [] (preset). Freeze parameters with
    `requires_grad_(False)`.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Example:
        >>> import torch, tritoncrf as tc
        >>> crf = tc.ConvCRF(num_classes=4, window_size=5, blur=2)
        >>> image = torch.randint(0, 256, (2, 3, 20, 30), dtype=torch.uint8)
        >>> scores = crf(torch.randn(2, 4, 20, 30), image)
        >>> torch.nn.functional.cross_entropy(scores, torch.randint(0, 4, (2, 20, 30))).backward()
    """

    weight_smooth: nn.Parameter
    weight_appearance: nn.Parameter

    def __init__(
        self, num_classes: int, window_size: int = 11, blur: int = 4, iterations: int = 5, *,
        theta_smooth: Theta = 3.0, theta_space: Theta | None = None,
        theta_color: Theta | None = None, appearance_position: bool | None = None,
        weight_smooth: float | None = None, weight_appearance: float | None = None, class_weights: bool = False,
        compatibility: bool = False, learn_positions: Sequence[int] | None = None,
        normalization: Normalization | None = None, include_self: bool = True, spacing: Theta | None = None,
        damping: float = 0.0, temperature: float = 1.0, unary_weight: float = 1.0, initial: Initial | None = None,
        preset: Literal["released"] | None = None, mixture: Mixture | None = None,
        weight_mixture: float | None = None, precision: Precision = "default",
        backend: Backend = "auto", device: torch.device | str | None = None, dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        super().__init__()
        if preset not in PRESETS:
            raise ValueError(f"preset: expected None or 'released', got {checks.shown(preset)}")
        self.num_classes = checks.expect_num_classes("num_classes", num_classes)
        self.iterations = checks.expect_int("iterations", iterations, 0, checks.MOST_ITERATIONS)
        self.preset, self.spacing = preset, spacing
        self.update = expect_update(damping, temperature, preset)
        released, factory = preset == "released", placed(device, dtype)
        self.unary_weight = checks.expect_number("unary_weight", unary_weight)
        if initial is None:
            initial = "log_softmax" if released else "softmax"
        self.initial: Initial = checks.expect_choice("initial", initial, INITIALS)
        if damping and initial != "softmax":
            raise ValueError(f"initial: expected 'softmax' with damping={damping}, got {initial!r}")
        if normalization is None:
            normalization = "none" if released else "symmetric"
        self.window: WindowOptions = {
            "window_size": checks.expect_int("window_size", window_size, 1, MAX_WINDOW, odd=True),
            "blur": checks.expect_int("blur", blur, 1),
            "include_self": checks.expect_bool("include_self", include_self),
            "normalization": checks.expect_choice("normalization", normalization, NORMALIZATIONS),
            **execution(precision, backend),
        }

        given = conv_crf_start.thetas(preset, theta_smooth, theta_space, theta_color, appearance_position)
        for name, value in given.items():
            setattr(self, self._stored(name), nn.Parameter((1 / value if released else value.log()).to(**factory)))
        shape = (num_classes,) if checks.expect_bool("class_weights", class_weights) else ()
        for name, weight in conv_crf_start.weights(preset, weight_smooth, weight_appearance, shape, factory).items():
            setattr(self, name, weight)
        self.class_weight = conv_crf_start.mixture_weight(preset, mixture, weight_mixture, num_classes, factory)
        self.compatibility: nn.Parameter | None = None
        self.positions: nn.Parameter | None = None
        if checks.expect_bool("compatibility", compatibility):
            self.compatibility = conv_crf_start.compatibility(num_classes, factory)
        if learn_positions is not None:
            self.positions = conv_crf_start.positions(learn_positions, spacing, factory)

    def _stored(self, name: str) -> str:
        return f"inverse_{name}" if self.preset == "released" else f"log_{name}"

    def theta(self, name: str) -> torch.Tensor | None:
        """The current bandwidth "theta_smooth", "theta_space" or "theta_color"; None if the kernel has none."""
        stored = getattr(self, self._stored(name), None)
        if stored is None:
            return None
        return 1 / stored if self.preset == "released" else stored.exp()

    @property
    def cost(self) -> torch.Tensor:
        """mu = -(I + c), [C, C], the cost of the row's class near the column's class; negative values attract."""
        eye = torch.eye(self.num_classes, device=self.weight_smooth.device, dtype=self.weight_smooth.dtype)
        return -eye if self.compatibility is None else -eye - self.compatibility

    def _over(self, raw: torch.Tensor, name: str) -> torch.Tensor:
        """Raw features [B, D, *S] divided by the bandwidth `name`."""
        stored = getattr(self, self._stored(name)).to(raw.dtype)
        inverse = stored if self.preset == "released" else (-stored).exp()
        if inverse.ndim and len(inverse) != raw.shape[1]:
            raise ValueError(f"{name}: expected one number or {raw.shape[1]} for these images, got {len(inverse)}")
        return raw * inverse.reshape(-1, *(1,) * (raw.ndim - 2))

    def forward(
        self, logits: torch.Tensor, image: torch.Tensor | None = None, *,
        features: torch.Tensor | None = None, output: Output = "logits",
    ) -> torch.Tensor:  # fmt: skip
        """Refined scores [B, C, *S], dtype of `logits`.

        Args:
            logits: U, [B, C, *S], floating; -inf rules a class out.
            image: [B, channels, *S], uint8 or floating-point in 0..1, see `tritoncrf.features`. Do not subtract the
                mean of ImageNet; on a GPU, where values are not checked, that would not raise an error.
            features: instead of an image, [B or 1, D, *S], divided by their bandwidths: the appearance kernel's
                features as they are.
            output: "logits", "probabilities" or "log_probabilities".

        Raises:
            TypeError, ValueError: naming the argument, what was expected and what came.
        """
        expect_inputs(self, logits, image, features)
        grid = self._grid(logits)
        positions = grid if self.positions is None else self.positions[None].to(grid.dtype)
        appearance = features
        if appearance is None:
            assert image is not None
            appearance = self._appearance(image, positions if self.preset == "released" else grid)
        smooth = self._over(positions, "theta_smooth")
        if self.positions is None:
            smooth = evenly_spaced(smooth)
        kernels = [filters.Window(f, **self.window) for f in (smooth, appearance)]
        weights: list[torch.Tensor] = [self.weight_smooth, self.weight_appearance]
        cost: Compatibility = "potts"
        if self.compatibility is not None:
            mixed = self.compatibility.to(positions.dtype)
            mixed = torch.eye(len(mixed), dtype=mixed.dtype, device=mixed.device) + mixed
            cost = -mixed
        unary = torch.log_softmax(possible(logits), 1) if self.preset == "released" else logits
        scale: float | torch.Tensor = self.unary_weight
        if self.class_weight is not None:
            # It scales the rows of the matrix that mixes the messages.
            mixture = self.class_weight.to(positions.dtype)
            scale = scale - mixture
            if isinstance(cost, str):
                weights = [w * mixture for w in weights]
            else:
                cost = mixture.reshape(-1, 1) * cost
        refined = mean_field(unary, kernels, weights, cost, self.iterations, scale, self.initial, output, **self.update)
        return refined.to(logits.dtype)

    @classmethod
    def from_published(
        cls, conf: Mapping[str, Any], num_classes: int, size: Sequence[int] | None = None, iterations: int = 5, *,
        precision: Precision = "default", backend: Backend = "auto", device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "ConvCRF":  # fmt: skip
        """The layer that computes what the authors' GaussCRF(conf, size, num_classes) does.

        Args:
            conf: their configuration, such as `default_conf`; `published.CONVCRF_CONF` has the values of omitted keys.
                schan is for images of 0..255. With logsoftmax=False their unary is probabilities; pass their logarithm
                to the layer. trainable=False freezes the thetas and weights, but, as in their code, not the convolution
                or the coordinates.
            num_classes: C.
            size: H and W of the images; needed only for trainable_bias=True.
            iterations: num_iter in their call.
            precision, backend, device, dtype: see the class.

        Raises:
            TypeError, ValueError: a key or a value that their code does not know, or an option that is not supported:
                softmax=False (messages of scores); final_softmax=True (use `output` in the call); merge=True with
                norm="sym", which their code rejects too.

        Example:
            >>> import tritoncrf as tc
            >>> conf = {"filter_size": 7, "weight": None, "pos_feats": {"sdims": 2, "compat": 3}}
            >>> tc.ConvCRF.from_published(conf, num_classes=21).window["window_size"]
            7
        """
        arguments, trainable = convcrf_arguments(conf, size)
        with checks.renamed("window_size", "conf['filter_size']"), checks.renamed("learn_positions", "size"):
            crf = cls(
                num_classes, iterations=iterations, **arguments,
                precision=precision, backend=backend, device=device, dtype=dtype,
            )  # fmt: skip
        for name, parameter in crf.named_parameters():
            parameter.requires_grad_(trainable or name in ("compatibility", "positions"))
        return crf

    @torch.no_grad()
    def load_published(self, parameters: Mapping[str, Numbers]) -> None:
        """Take the parameters that the authors' code has learned. All of them, or none and an error.

        Args:
            parameters: the state dict of its GaussCRF; names may have the layer's name in front, "crf.pos_sdims", and
                other layers are ignored. The layer must have the same options as theirs.

        Raises:
            TypeError, ValueError: the layer has no preset; names are missing, unknown or from several layers; an
                array of another shape, or with NaN or infinity; learned coordinates for a layer that learns none.

        Example:
            >>> import torch, tritoncrf as tc
            >>> crf = tc.ConvCRF(num_classes=2, preset="released", mixture="none")
            >>> scalars = {"pos_sdims": [0.3], "col_schan": [0.1], "pos_compat": [2.0], "col_compat": [9.0]}
            >>> crf.load_published({name: torch.tensor(value) for name, value in scalars.items()})
            >>> round(crf.theta("theta_color").item())
            10
        """
        if self.preset is None:
            raise ValueError("preset: expected 'released', as the parameters are its, got None")
        own = dict(self.named_parameters())
        found = convcrf_parameters(parameters, {name: p.shape for name, p in own.items()})
        for name, value in found.items():
            own[name].copy_(value)

    def _grid(self, logits: torch.Tensor) -> torch.Tensor:
        """The coordinates of the pixels, [1, D, *S]; float64 for float64 logits, otherwise float32."""
        size, dtype = tuple(logits.shape[2:]), compute_dtype(logits)
        if self.positions is not None and size != tuple(self.positions.shape[1:]):
            wanted = list(self.positions.shape[1:])
            raise ValueError(
                f"logits: expected the spatial size {wanted} of learn_positions, got shape {list(logits.shape)}"
            )
        return features.spatial(size, 1.0, self.spacing, device=logits.device, dtype=dtype)

    def _appearance(self, image: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        colors = self._over(features.color(as_precise(image, positions), 1.0), "theta_color")
        if self.theta("theta_space") is None:
            return colors
        space = self._over(positions, "theta_space").to(colors.dtype)
        return torch.cat([space.expand(colors.shape[0], *space.shape[1:]), colors], 1)

    def extra_repr(self) -> str:
        window = ", ".join(f"{k}={v!r}" for k, v in {**self.window, **self.update}.items())
        return f"num_classes={self.num_classes}, iterations={self.iterations}, preset={self.preset!r}, {window}"
