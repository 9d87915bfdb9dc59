"""CRFRNN: the fully connected CRF, as a layer."""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import nn

from tritoncrf import checks, features, filters
from tritoncrf.backends import compute_dtype
from tritoncrf.filters.base import NORMALIZATIONS, Execution, execution
from tritoncrf.layers.base import Layer, as_precise, bandwidth, expect_inputs, expect_update, placed
from tritoncrf.mean_field import ACTIVATIONS, mean_field
from tritoncrf.published import CRFRNN_CODES, MEANS, Mean, Numbers, Preset, crfrnn_parameters
from tritoncrf.types import Activation, Backend, Normalization, Output, Padding, Precision, Theta

KernelWeights: TypeAlias = Literal["class", "full", "scalar"]
KERNEL_WEIGHTS: tuple[KernelWeights, ...] = get_args(KernelWeights)


class LatticeOptions(Execution):
    """The arguments of the layer for its filters."""

    include_self: bool
    normalization: Normalization


class CRFRNN(Layer):
    r"""The fully connected CRF as a recurrent layer: mean field on the permutohedral lattice, with learnable weights.

    .. math::
        S_{t+1} = U - \mu \sum_m W_m K_m\, \mathrm{softmax}(S_t), \qquad S_0 = U

    with two kernels over all pixels: a smoothness kernel, Gaussian in position, and an appearance kernel, Gaussian in
    position and colour (Zheng et al. 2015, CRF as RNN, sections 4 and 5, Algorithm 1).

    Args:
        num_classes: C.
        iterations, test_iterations: updates in training mode (5, in the presets 10) and in evaluation mode (10).
        theta_smooth, theta_space: bandwidths of the position in the smoothness and the appearance kernel, in pixels or
            in the unit of `spacing`; a number or one per axis. theta_space is 30 by default, 160 in the presets.
        theta_color: bandwidth of the colour, in 0..255 units whatever the image's dtype; a number or one per channel.
            5 by default, 3 in the presets.
        weight_smooth, weight_appearance: initial kernel weights; 1 and 1 by default and in "released-keras", 3 and 5 in
            the other presets.
        kernel_weights: learn each W_m as one number per class, "class"; as a matrix [C, C], "full" (the presets);
            or as one number, "scalar".
        learn_thetas: also learn the bandwidths, as log_theta_*. The gradient is that of the lattice's own function,
            which is discontinuous where a pixel changes its simplex; `ConvCRF`, or `mean_field` with `filters.Exact`,
            learns them better. Otherwise they are fixed numbers outside the state dict, and the lattice of the
            smoothness kernel, which then depends only on the size, is cached between calls.
        normalization: of both kernels, see `filters.Lattice`.
        include_self: whether a pixel sends a message to itself.
        spacing: distance between neighbouring pixels or voxels, a number or one per axis.
        damping, temperature, activation: of the updates, see `mean_field`; not in a preset.
        preset: computes what published code does: matrices W_m, positions in the order (x, y), then blue, green and red
            minus a mean, since the lattice depends on the order and the origin of its features, and the number of
            pixels padded to a multiple of four, see `filters.Lattice`. The image is still given as RGB. "released" is
            the authors' Caffe code; "released-keras" starts with W_m = I; in "released-pytorch" mu is a reward,
            S = U + mu M, and starts at +I. Their networks pad images to 500 x 500 pixels with that mean; the layer does
            not.
        mean: what a preset subtracts from red, green and blue in 0..255: "caffe", (122.67891434, 116.66876762,
            104.00698793), with which the Caffe network was trained; "vgg", (123.68, 116.779, 103.939), as in the Keras
            and the PyTorch code and in the Matlab script of the Caffe code; or "demo", (103.939, 116.779, 123.68), as
            in the Python script of the Caffe code, which subtracts the mean of red from blue and that of blue from red.
            Every preset takes each of them; the default is "caffe" for "released" and "vgg" for the others.
        precision, backend: see `filters.Lattice`.
        device, dtype: of the parameters.

    Parameters: weight_smooth and weight_appearance, [C], [C, C] or [], and compatibility mu [C, C], the cost of the
    row's class near the column's class; it starts at -I, the Potts model. With learn_thetas also log_theta_smooth,
    log_theta_space and log_theta_color. Only the products mu W_m matter, and adding the same row to all rows of mu does
    not change the probabilities. Freeze parameters with `requires_grad_(False)`.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Example:
        >>> import torch, tritoncrf as tc
        >>> crf = tc.CRFRNN(num_classes=4)
        >>> image = torch.randint(0, 256, (2, 3, 20, 30), dtype=torch.uint8)
        >>> scores = crf(torch.randn(2, 4, 20, 30), image)
        >>> torch.nn.functional.cross_entropy(scores, torch.randint(0, 4, (2, 20, 30))).backward()
    """

    weight_smooth: nn.Parameter
    weight_appearance: nn.Parameter

    def __init__(
        self, num_classes: int, iterations: int | None = None, test_iterations: int = 10, *,
        theta_smooth: Theta = 3.0, theta_space: Theta | None = None,
        theta_color: Theta | None = None, weight_smooth: float | None = None,
        weight_appearance: float | None = None, kernel_weights: KernelWeights | None = None,
        learn_thetas: bool = False, normalization: Normalization = "after", include_self: bool = True,
        spacing: Theta | None = None, damping: float = 0.0, temperature: float = 1.0,
        activation: Activation = "softmax", preset: Preset | None = None, mean: Mean | None = None,
        precision: Precision = "default",
        backend: Backend = "auto", device: torch.device | str | None = None, dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        super().__init__()
        if preset is not None:
            checks.expect_choice("preset", preset, CRFRNN_CODES)
        code = None if preset is None else CRFRNN_CODES[preset]
        self.mean = None if code is None else code.mean
        if mean is not None:
            self.mean = checks.expect_choice("mean", mean, MEANS)
            if code is None:
                presets = ", ".join(map(repr, CRFRNN_CODES))
                raise ValueError(f"mean: expected with one of the presets {presets}, got {mean!r} without a preset")
        self.preset, self.spacing = preset, spacing
        self.update = expect_update(damping, temperature, preset)
        self.activation = checks.expect_choice("activation", activation, ACTIVATIONS)
        if activation == "relu" and (preset is not None or self.update["temperature"] != 1):
            reason = f"preset={preset!r}" if preset is not None else f"temperature={temperature}"
            raise ValueError(f"activation: expected 'softmax' with {reason}, got 'relu'")
        self.num_classes = checks.expect_num_classes("num_classes", num_classes)
        if iterations is None:
            iterations = 5 if preset is None else 10
        self.iterations = checks.expect_int("iterations", iterations, 0, checks.MOST_ITERATIONS)
        self.test_iterations = checks.expect_int("test_iterations", test_iterations, 0, checks.MOST_ITERATIONS)
        factory = placed(device, dtype)
        self.lattice: LatticeOptions = {
            "include_self": checks.expect_bool("include_self", include_self),
            "normalization": checks.expect_choice("normalization", normalization, NORMALIZATIONS),
            **execution(precision, backend),
        }
        self.padding: Padding | None = None if preset is None else "four"

        # Without a preset, the defaults of `refine` for a network's scores, theta_space in pixels of a 375 x 500 photo.
        space, color = (30.0, 5.0) if preset is None else (160.0, 3.0)
        given = {
            "theta_smooth": theta_smooth,
            "theta_space": space if theta_space is None else theta_space,
            "theta_color": color if theta_color is None else theta_color,
        }
        thetas = {name: bandwidth(name, theta) for name, theta in given.items()}
        self.fixed_thetas: dict[str, float | list[float]] = {}
        if checks.expect_bool("learn_thetas", learn_thetas):
            for name, theta in thetas.items():
                setattr(self, f"log_{name}", nn.Parameter(theta.log().to(**factory)))
        else:
            self.fixed_thetas = {name: theta.tolist() for name, theta in thetas.items()}

        if kernel_weights is None:
            kernel_weights = "class" if code is None else "full"
        checks.expect_choice("kernel_weights", kernel_weights, KERNEL_WEIGHTS)
        eye = torch.eye(num_classes, **factory)
        ones = {"scalar": torch.ones((), **factory), "class": torch.ones(num_classes, **factory), "full": eye}
        starts = (1.0, 1.0) if code is None else code.weights
        weights = {"weight_smooth": weight_smooth, "weight_appearance": weight_appearance}
        for (name, weight), start in zip(weights.items(), starts):
            weight = start if weight is None else checks.expect_number(name, weight)
            setattr(self, name, nn.Parameter(weight * ones[kernel_weights]))
        self.sign = -1 if code is None else code.sign
        self.compatibility = nn.Parameter(self.sign * eye)

    def theta(self, name: str) -> float | list[float] | torch.Tensor:
        """The current bandwidth "theta_smooth", "theta_space" or "theta_color", a tensor if it is learned."""
        if name in self.fixed_thetas:
            return self.fixed_thetas[name]
        stored = getattr(self, f"log_{name}")
        return stored.to(torch.promote_types(stored.dtype, torch.float32)).exp()

    @property
    def cost(self) -> torch.Tensor:
        """mu, [C, C], in every preset the cost of the row's class near the column's class; negative values attract."""
        return self.compatibility if self.sign < 0 else -self.compatibility

    @torch.no_grad()
    def load_published(self, parameters: Mapping[str, Numbers] | Sequence[Numbers]) -> None:
        """Take the parameters that the code of this layer's preset has learned. All of them, or none and an error.

        Args:
            parameters: for "released-pytorch" a state dict, for "released-keras" a mapping of names to arrays. Both
                contain spatial_ker_weights, bilateral_ker_weights and compatibility_matrix, [C, C]; names may have the
                layer's name in front, and other layers are ignored: "crfrnn.spatial_ker_weights",
                "crfrnn/spatial_ker_weights:0". For "released", the numbers [C] of the files "spatial.par" and
                "bilateral.par", by these names; mu is then -I, as in that code. For every preset, alternatively a list
                of the three arrays in this order, [C, C] or [1, 1, C, C], such as the data of the layer's blobs in
                Caffe.

        Raises:
            TypeError, ValueError: the layer has no preset, or kernel weights that are not "full"; names are missing,
                unknown or from several layers; an array has another shape, NaN or infinity.

        Example:
            >>> import torch, tritoncrf as tc
            >>> crf = tc.CRFRNN(num_classes=2, preset="released")
            >>> crf.load_published({"spatial.par": [3.5, 2.5], "bilateral.par": [5.0, 6.0]})
            >>> crf.weight_smooth.tolist()
            [[3.5, 0.0], [0.0, 2.5]]
        """
        if self.preset is None:
            raise ValueError("preset: expected the code that saved the parameters, got None; use CRFRNN(preset=...)")
        if self.weight_smooth.ndim != 2:
            raise ValueError("kernel_weights: expected 'full', as in the published codes, to load their parameters")
        found = crfrnn_parameters(parameters, self.num_classes, CRFRNN_CODES[self.preset])
        for own, value in zip((self.weight_smooth, self.weight_appearance, self.compatibility), found, strict=True):
            own.copy_(value)

    def forward(
        self, logits: torch.Tensor, image: torch.Tensor | None = None, *,
        features: torch.Tensor | None = None, output: Output = "logits",
    ) -> torch.Tensor:  # fmt: skip
        """Refined scores [B, C, *S], dtype of `logits`.

        Args:
            logits: U, [B, C, *S], floating; -inf rules a class out.
            image: [B or 1, channels, *S], uint8 or floating-point in 0..1, see `tritoncrf.features`; RGB in the
                presets. Do not subtract the mean of ImageNet; on a GPU, where values are not checked, that would not
                raise an error.
            features: instead of an image, [B or 1, D, *S], divided by their bandwidths: the appearance kernel's
                features as they are.
            output: "logits", "probabilities" or "log_probabilities".

        Raises:
            TypeError, ValueError: naming the argument, what was expected and what came.
        """
        expect_inputs(self, logits, image, features)
        if features is None:
            assert image is not None
            with checks.renamed("features", "theta_space, theta_color"):
                found = self._appearance(as_precise(image, logits))
                appearance = filters.Lattice(found, **self.lattice, padding=self.padding)
        else:
            appearance = filters.Lattice(features, **self.lattice, padding=self.padding)
        return mean_field(
            logits,
            [self._smoothness(logits), appearance],
            weights=[self.weight_smooth, self.weight_appearance],
            compatibility=self.cost,
            iterations=self.iterations if self.training else self.test_iterations,
            output=output,
            activation=self.activation,
            **self.update,
        )

    def _smoothness(self, logits: torch.Tensor) -> filters.Lattice:
        """The lattice of positions only."""
        size = tuple(logits.shape[2:])
        thetas = checks.expect_positive("theta_smooth", self.theta("theta_smooth"), len(size))
        with checks.renamed("features", "theta_smooth"):
            return filters.Lattice.spatial(
                size, thetas, self.spacing, **self.lattice,
                flip=self.preset is not None, device=logits.device, dtype=compute_dtype(logits),
            )  # fmt: skip

    def _appearance(self, image: torch.Tensor) -> torch.Tensor:
        """Features of positions and colours, in a preset with its order and origin."""
        space, color = self.theta("theta_space"), self.theta("theta_color")
        if self.mean is None:
            return features.bilateral(image, space, color, self.spacing)
        photo, size = features.color(image, 1.0), tuple(image.shape[2:])
        mean = MEANS[self.mean]
        if photo.shape[1] != len(mean):
            raise ValueError(f"image: expected red, green and blue for the preset, got shape {list(image.shape)}")
        spaces = checks.expect_positive("theta_space", space, len(size))
        positions = features.spatial(size, spaces, self.spacing, device=photo.device, dtype=photo.dtype)
        thetas = checks.expect_positive("theta_color", color, len(mean), each="channel")
        colors = [(channel - m) / theta for channel, m, theta in zip(photo.unbind(1), mean, thetas)]
        positions = positions.expand(len(photo), *positions.shape[1:])
        return torch.cat([positions.flip(1), torch.stack(colors[::-1], 1)], 1)

    def extra_repr(self) -> str:
        names = "num_classes", "iterations", "test_iterations", "activation", "preset", "mean"
        shown = {name: getattr(self, name) for name in names}
        return ", ".join(
            f"{name}={value!r}" for name, value in (shown | self.fixed_thetas | self.lattice | self.update).items()
        )
