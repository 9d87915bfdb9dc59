"""CRFs as layers of a network: they own the parameters and leave the mathematics to `mean_field`."""

import math

import torch
from torch import nn

from tritoncrf import checks, features, filters
from tritoncrf.filters.base import NORMALIZATIONS, compute_dtype
from tritoncrf.filters.window import MAX_WINDOW
from tritoncrf.mean_field import mean_field
from tritoncrf.published import CRFRNN_CODES, crfrnn_parameters

CONVCRF_PRESETS = (None, "released")


class ConvCRF(nn.Module):
    r"""Convolutional CRF: mean field with exact Gaussian messages in a window, all of it learnable.

    .. math::
        S_{t+1} = U + (I + c) \sum_m w_m K_m \mathrm{softmax}(S_t), \qquad S_0 = U

    with two kernels: smoothness, Gaussian in the position, and appearance, Gaussian in colour and position
    (Teichmann and Cipolla 2018, ConvCRF, section 4; Potts model in the form that rewards equal labels).

    Args:
        num_classes: C.
        window_size: pixels a side of the window, odd, 1 to 31; of the blurred image where `blur` > 1.
        blur: factor by which messages are computed at lower resolution; the window spans blur * window_size
            pixels. 1 is exact.
        iterations: mean-field updates.
        theta_smooth, theta_space: bandwidths of the position in the smoothness and the appearance kernel, in
            pixels or in the unit of `spacing`; a number or one per axis. theta_space is 80 if left out.
        theta_color: bandwidth of the colour, in 0..255 units whatever the image's dtype; a number or one
            per channel.
        appearance_position: whether the appearance kernel sees the position. If left out it does, but in the
            preset only where theta_space is given.
        weight_smooth, weight_appearance: initial kernel weights w_m.
        class_weights: learn each w_m per class, [C], instead of one number.
        compatibility: learn the 1x1 convolution c of the messages, [C, C] (the paper's +C). It starts at a
            constant, which a softmax does not see; without it c = 0, the Potts model.
        learn_positions: the spatial size *S of the images, to learn the coordinate of every pixel (the paper's
            +T), [D, *S] starting at the pixel grid; the layer then takes images of that size only.
        normalization: of both kernels, see `filters.Window`; "symmetric" if left out.
        include_self: whether a pixel sends a message to itself.
        spacing: distance of neighbouring pixels or voxels, a number or one per axis.
        preset: "released" computes what the authors' code does:
            S = (1 - w) L + w (I + c) sum_m w_m K_m Q with L = log_softmax(U), per-class w = 0.2, first
            messages from L itself, weights not normalised, no position in the appearance kernel, and
            bandwidths learnt as 1 / theta. appearance_position and normalization may still be given.
        precision, backend: see `filters.Window`.
        device, dtype: of the parameters.

    Parameters: log_theta_* (inverse_theta_* in the preset), weight_smooth, weight_appearance,
    and where asked for compatibility [C, C], positions [D, *S], class_weight [C] (preset). Freeze what should
    not be learnt with `requires_grad_(False)`.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Example:
        >>> import torch, tritoncrf as tc
        >>> crf = tc.ConvCRF(num_classes=4, window_size=5, blur=2)
        >>> image = torch.randint(0, 256, (2, 3, 20, 30), dtype=torch.uint8)
        >>> scores = crf(torch.randn(2, 4, 20, 30), image)
        >>> torch.nn.functional.cross_entropy(scores, torch.randint(0, 4, (2, 20, 30))).backward()
    """

    def __init__(
        self, num_classes, window_size=11, blur=4, iterations=5, *,
        theta_smooth=3.0, theta_space=None, theta_color=13.0, appearance_position=None,
        weight_smooth=3.0, weight_appearance=10.0, class_weights=False, compatibility=False, learn_positions=None,
        normalization=None, include_self=True, spacing=None, preset=None,
        precision="default", backend="auto", device=None, dtype=torch.float32,
    ):  # fmt: skip
        super().__init__()
        if preset not in CONVCRF_PRESETS:
            raise ValueError(f"preset: expected None or 'released', got {preset!r}")
        self.num_classes = checks.expect_int("num_classes", num_classes, 1)
        self.iterations = checks.expect_int("iterations", iterations, 0)
        self.preset, self.spacing = preset, spacing
        released, factory = preset == "released", {"device": device, "dtype": _floating(dtype)}
        if appearance_position is None:
            appearance_position = theta_space is not None or not released
        if not checks.expect_bool("appearance_position", appearance_position) and theta_space is not None:
            raise ValueError(f"theta_space: expected None with appearance_position=False, got {theta_space!r}")
        if normalization is None:
            normalization = "none" if released else "symmetric"
        self.window = {
            "window_size": checks.expect_int("window_size", window_size, 1, MAX_WINDOW, odd=True),
            "blur": checks.expect_int("blur", blur, 1),
            "include_self": checks.expect_bool("include_self", include_self),
            "normalization": checks.expect_choice("normalization", normalization, NORMALIZATIONS),
            "precision": checks.expect_choice("precision", precision, ("default", "fast")),
            "backend": checks.expect_choice("backend", backend, ("auto", "triton", "torch")),
        }

        thetas = {"theta_smooth": theta_smooth, "theta_color": theta_color}
        if appearance_position:
            thetas["theta_space"] = 80.0 if theta_space is None else theta_space
        for name, theta in thetas.items():
            value = _bandwidth(name, theta)
            setattr(self, self._stored(name), nn.Parameter((1 / value if released else value.log()).to(**factory)))
        shape = (num_classes,) if checks.expect_bool("class_weights", class_weights) else ()
        for name, weight in ("weight_smooth", weight_smooth), ("weight_appearance", weight_appearance):
            setattr(self, name, nn.Parameter(torch.full(shape, checks.expect_number(name, weight), **factory)))
        self.class_weight = nn.Parameter(torch.full((num_classes,), 0.2, **factory)) if released else None
        self.compatibility = self.positions = None
        if checks.expect_bool("compatibility", compatibility):
            start = 0.1 * math.sqrt(2 / num_classes)
            self.compatibility = nn.Parameter(torch.full((num_classes, num_classes), start, **factory))
        if learn_positions is not None:
            if not isinstance(learn_positions, (list, tuple)) or not 1 <= len(learn_positions) <= 3:
                raise ValueError(
                    f"learn_positions: expected 1 to 3 spatial sizes, got {checks.kind_of(learn_positions)}"
                )
            size = [checks.expect_int("learn_positions", n, 1) for n in learn_positions]
            self.positions = nn.Parameter(features.spatial(size, 1.0, spacing, dtype=torch.float64)[0].to(**factory))

    def _stored(self, name: str) -> str:
        return f"inverse_{name}" if self.preset == "released" else f"log_{name}"

    def theta(self, name: str) -> torch.Tensor | None:
        """The bandwidth "theta_smooth", "theta_space" or "theta_color" as it stands; None where there is none."""
        stored = getattr(self, self._stored(name), None)
        if stored is None:
            return None
        return 1 / stored if self.preset == "released" else stored.exp()

    def _over(self, raw, name: str):
        """Raw features [B, D, *S] over the bandwidth `name`."""
        stored = getattr(self, self._stored(name)).to(raw.dtype)
        inverse = stored if self.preset == "released" else (-stored).exp()
        if inverse.ndim and len(inverse) != raw.shape[1]:
            raise ValueError(f"{name}: expected one number or {raw.shape[1]} for these images, got {len(inverse)}")
        return raw * inverse.reshape(-1, *(1,) * (raw.ndim - 2))

    def forward(self, logits, image=None, *, features=None, output="logits"):
        """Refined scores [B, C, *S], dtype of `logits`.

        Args:
            logits: U, [B, C, *S], floating.
            image: [B, channels, *S], uint8 or floating in 0..1, see `tritoncrf.features`.
            features: instead of an image, [B or 1, D, *S], divided by their bandwidths: the appearance kernel's
                features as they are.
            output: "logits", "probabilities" or "log_probabilities".
        """
        _expect_inputs(self, logits, image, features)
        positions = self._positions(logits)
        appearance = self._appearance(image, positions) if features is None else features
        smooth = self._over(positions, "theta_smooth")
        kernels = [filters.Window(f, **self.window) for f in (smooth, appearance)]
        weights = [self.weight_smooth, self.weight_appearance]
        options = {"iterations": self.iterations, "output": output}
        if self.compatibility is not None:
            mixed = self.compatibility.to(positions.dtype)
            mixed = torch.eye(len(mixed), dtype=mixed.dtype, device=mixed.device) + mixed
            options["compatibility"] = -mixed
        if self.preset != "released":
            return mean_field(logits, kernels, weights, **options)

        # The class weight scales the rows of whatever the messages go through.
        class_weight = self.class_weight.to(positions.dtype)
        if self.compatibility is None:
            weights = [w * class_weight for w in weights]
        else:
            options["compatibility"] = class_weight[:, None] * options["compatibility"]
        options |= {"unary_weight": 1 - class_weight, "initial": "log_softmax"}
        log_unary = torch.log_softmax(logits.to(positions.dtype), 1)
        return mean_field(log_unary, kernels, weights, **options).to(logits.dtype)

    def _positions(self, logits):
        """Coordinates of the pixels, [1, D, *S]; float64 for float64 logits, else float32."""
        dtype = compute_dtype(logits)
        if self.positions is None:
            return features.spatial(tuple(logits.shape[2:]), 1.0, self.spacing, device=logits.device, dtype=dtype)
        size = self.positions.shape[1:]
        if logits.shape[2:] != size:
            raise ValueError(
                f"logits: expected the spatial size {list(size)} of learn_positions, got shape {list(logits.shape)}"
            )
        return self.positions[None].to(dtype)

    def _appearance(self, image, positions):
        colors = self._over(features.color(_as_precise(image, positions), 1.0), "theta_color")
        if self.theta("theta_space") is None:
            return colors
        space = self._over(positions, "theta_space").to(colors.dtype)
        return torch.cat([space.expand(colors.shape[0], *space.shape[1:]), colors], 1)

    def extra_repr(self) -> str:
        window = ", ".join(f"{k}={v!r}" for k, v in self.window.items())
        return f"num_classes={self.num_classes}, iterations={self.iterations}, preset={self.preset!r}, {window}"


class CRFRNN(nn.Module):
    r"""The fully connected CRF as a recurrent layer: mean field on the permutohedral lattice, its weights learnable.

    .. math::
        S_{t+1} = U - \mu \sum_m W_m K_m\, \mathrm{softmax}(S_t), \qquad S_0 = U

    with two kernels over all pixels: smoothness, Gaussian in the position, and appearance, Gaussian in position and
    colour (Zheng et al. 2015, CRF as RNN, sections 4 and 5, Algorithm 1).

    Args:
        num_classes: C.
        iterations, test_iterations: updates in training mode (5, in the presets 10) and in evaluation mode (10).
        theta_smooth, theta_space: bandwidths of the position in the smoothness and the appearance kernel, in pixels or
            in the unit of `spacing`; a number or one per axis.
        theta_color: bandwidth of the colour, in 0..255 units whatever the image's dtype; a number or one per channel.
        weight_smooth, weight_appearance: initial kernel weights; 3 and 5, in the preset "released-keras" 1 and 1.
        kernel_weights: learn each W_m as one number per class, "class"; as a matrix [C, C], "full" (the presets);
            or as one number, "scalar".
        learn_thetas: also learn the bandwidths, as log_theta_*. The lattice's derivative is that of its own function,
            which jumps where a pixel changes its simplex: `ConvCRF`, or `mean_field` with `filters.Exact`, learns them
            better. Without it they are fixed numbers, which no state dict holds, and the lattice of the smoothness
            kernel, which then depends on the size alone, is kept between calls.
        normalization: of both kernels, see `filters.Lattice`.
        include_self: whether a pixel sends a message to itself.
        spacing: distance of neighbouring pixels or voxels, a number or one per axis.
        preset: computes what published code does: matrices W_m, positions in the order (x, y), then blue, green and red
            minus the mean of that code's training images, for the lattice feels the order and the origin of its
            features. The image is still given as RGB. "released" is the authors' Caffe code; "released-keras"
            starts with W_m = I; in "released-pytorch" mu is a reward, S = U + mu M, and starts at +I.
            Their networks pad images to 500 x 500 pixels with that mean, which the layer leaves to the caller.
        precision, backend: see `filters.Lattice`.
        device, dtype: of the parameters.

    Parameters: weight_smooth and weight_appearance, [C], [C, C] or [], and compatibility mu [C, C], a cost for the
    class of its row where the class of its column is near; it starts at -I, the Potts model. With learn_thetas also
    log_theta_smooth, log_theta_space and log_theta_color. Only the products mu W_m count, and adding the same row to
    all rows of mu changes no probability. Freeze what should not be learnt with `requires_grad_(False)`.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Example:
        >>> import torch, tritoncrf as tc
        >>> crf = tc.CRFRNN(num_classes=4)
        >>> image = torch.randint(0, 256, (2, 3, 20, 30), dtype=torch.uint8)
        >>> scores = crf(torch.randn(2, 4, 20, 30), image)
        >>> torch.nn.functional.cross_entropy(scores, torch.randint(0, 4, (2, 20, 30))).backward()
    """

    def __init__(
        self, num_classes, iterations=None, test_iterations=10, *,
        theta_smooth=3.0, theta_space=160.0, theta_color=3.0, weight_smooth=None, weight_appearance=None,
        kernel_weights=None, learn_thetas=False, normalization="after", include_self=True, spacing=None, preset=None,
        precision="default", backend="auto", device=None, dtype=torch.float32,
    ):  # fmt: skip
        super().__init__()
        if preset is not None:
            checks.expect_choice("preset", preset, CRFRNN_CODES)
        self.preset, self.spacing = preset, spacing
        self.num_classes = checks.expect_int("num_classes", num_classes, 1)
        if iterations is None:
            iterations = 5 if preset is None else 10
        self.iterations = checks.expect_int("iterations", iterations, 0)
        self.test_iterations = checks.expect_int("test_iterations", test_iterations, 0)
        factory = {"device": device, "dtype": _floating(dtype)}
        self.lattice = {
            "include_self": checks.expect_bool("include_self", include_self),
            "normalization": checks.expect_choice("normalization", normalization, NORMALIZATIONS),
            "precision": checks.expect_choice("precision", precision, ("default", "fast")),
            "backend": checks.expect_choice("backend", backend, ("auto", "triton", "torch")),
        }

        thetas = {"theta_smooth": theta_smooth, "theta_space": theta_space, "theta_color": theta_color}
        thetas = {name: _bandwidth(name, theta) for name, theta in thetas.items()}
        self.fixed_thetas = {}
        if checks.expect_bool("learn_thetas", learn_thetas):
            for name, theta in thetas.items():
                setattr(self, f"log_{name}", nn.Parameter(theta.log().to(**factory)))
        else:
            self.fixed_thetas = {name: theta.tolist() for name, theta in thetas.items()}

        code = CRFRNN_CODES.get(preset)
        if kernel_weights is None:
            kernel_weights = "class" if code is None else "full"
        checks.expect_choice("kernel_weights", kernel_weights, ("class", "full", "scalar"))
        eye = torch.eye(num_classes, **factory)
        ones = {"scalar": torch.ones((), **factory), "class": torch.ones(num_classes, **factory), "full": eye}
        starts = (3.0, 5.0) if code is None else code.weights
        given = {"weight_smooth": weight_smooth, "weight_appearance": weight_appearance}
        for (name, weight), start in zip(given.items(), starts):
            weight = start if weight is None else checks.expect_number(name, weight)
            setattr(self, name, nn.Parameter(weight * ones[kernel_weights]))
        self.sign = -1 if code is None else code.sign
        self.compatibility = nn.Parameter(self.sign * eye)

    def theta(self, name: str):
        """The bandwidth "theta_smooth", "theta_space" or "theta_color" as it stands: a tensor if it is learnt."""
        if name in self.fixed_thetas:
            return self.fixed_thetas[name]
        stored = getattr(self, f"log_{name}")
        return stored.to(torch.promote_types(stored.dtype, torch.float32)).exp()

    @torch.no_grad()
    def load_published(self, parameters) -> None:
        """Take the parameters that the code of this layer's preset has learnt. All of them, or none and an error.

        Args:
            parameters: for "released-pytorch" a state dict, for "released-keras" a mapping of names to arrays. Both
                hold spatial_ker_weights, bilateral_ker_weights and compatibility_matrix, [C, C], perhaps behind the
                name of their layer and among those of other layers, which are passed over:
                "crfrnn.spatial_ker_weights", "crfrnn/spatial_ker_weights:0".
                For "released" the numbers [C] of the files "spatial.par" and "bilateral.par", by these names; mu is
                then -I, as it is there. For every preset a list of the three arrays in this order will do, [C, C] or
                [1, 1, C, C], such as the data of the layer's blobs in Caffe.

        Raises:
            TypeError, ValueError: the layer has no preset or other than "full" kernel weights; names that are missing,
                unknown or of several layers; an array of another shape, or with NaN or infinity.

        Example:
            >>> import torch, tritoncrf as tc
            >>> crf = tc.CRFRNN(num_classes=2, preset="released")
            >>> crf.load_published({"spatial.par": [3.5, 2.5], "bilateral.par": [5.0, 6.0]})
            >>> crf.weight_smooth.tolist()
            [[3.5, 0.0], [0.0, 2.5]]
        """
        if self.preset is None:
            raise ValueError("preset: expected the code that the parameters are of, got None; CRFRNN(preset=...)")
        if self.weight_smooth.ndim != 2:
            raise ValueError("kernel_weights: expected 'full', as in the published codes, to load their parameters")
        found = crfrnn_parameters(parameters, self.num_classes, CRFRNN_CODES[self.preset])
        for own, value in zip((self.weight_smooth, self.weight_appearance, self.compatibility), found, strict=True):
            own.copy_(value)

    def forward(self, logits, image=None, *, features=None, output="logits"):
        """Refined scores [B, C, *S], dtype of `logits`.

        Args:
            logits: U, [B, C, *S], floating.
            image: [B or 1, channels, *S], uint8 or floating in 0..1, see `tritoncrf.features`; RGB in the presets.
            features: instead of an image, [B or 1, D, *S], divided by their bandwidths: the appearance kernel's
                features as they are.
            output: "logits", "probabilities" or "log_probabilities".
        """
        _expect_inputs(self, logits, image, features)
        if features is None:
            with checks.renamed("features", "theta_space, theta_color"):
                appearance = filters.Lattice(self._appearance(_as_precise(image, logits)), **self.lattice)
        else:
            appearance = filters.Lattice(features, **self.lattice)
        return mean_field(
            logits,
            [self._smoothness(logits), appearance],
            weights=[self.weight_smooth, self.weight_appearance],
            compatibility=self.compatibility if self.sign < 0 else -self.compatibility,
            iterations=self.iterations if self.training else self.test_iterations,
            output=output,
        )

    def _smoothness(self, logits):
        """The lattice of positions alone."""
        size = tuple(logits.shape[2:])
        thetas = checks.expect_positive("theta_smooth", self.theta("theta_smooth"), len(size))
        options = {"spacing": self.spacing, "device": logits.device, "dtype": compute_dtype(logits)}
        with checks.renamed("features", "theta_smooth"):
            return filters.Lattice.spatial(size, thetas, **options, **self.lattice, flip=self.preset is not None)

    def _appearance(self, image):
        """Features of positions and colours, in the preset in its order and from its origin."""
        space, color = self.theta("theta_space"), self.theta("theta_color")
        if self.preset is None:
            return features.bilateral(image, space, color, self.spacing)
        photo, size = features.color(image, 1.0), tuple(image.shape[2:])
        mean = CRFRNN_CODES[self.preset].mean
        if photo.shape[1] != len(mean):
            raise ValueError(f"image: expected red, green and blue for the preset, got shape {list(image.shape)}")
        space = checks.expect_positive("theta_space", space, len(size))
        positions = features.spatial(size, space, self.spacing, device=photo.device, dtype=photo.dtype)
        color = checks.expect_positive("theta_color", color, len(mean), each="channel")
        colors = [(channel - m) / theta for channel, m, theta in zip(photo.unbind(1), mean, color)]
        positions = positions.expand(len(photo), *positions.shape[1:])
        return torch.cat([positions.flip(1), torch.stack(colors[::-1], 1)], 1)

    def extra_repr(self) -> str:
        shown = {name: getattr(self, name) for name in ("num_classes", "iterations", "test_iterations", "preset")}
        return ", ".join(f"{name}={value!r}" for name, value in (shown | self.fixed_thetas | self.lattice).items())


def _expect_inputs(crf, logits, image, features):
    """An error unless a layer of learnt weights can take these; what image and features hold is checked later."""
    checks.expect_tensor("logits", logits)
    checks.expect_spatial("logits", logits)
    if logits.shape[1] != crf.num_classes:
        raise ValueError(f"logits: expected {crf.num_classes} classes on axis 1, got shape {list(logits.shape)}")
    if (image is None) == (features is None):
        raise ValueError(f"image: expected an image or features, got {'neither' if image is None else 'both'}")
    if logits.device != crf.weight_smooth.device:
        raise ValueError(f"logits: expected the layer's device, {crf.weight_smooth.device}, got {logits.device}")
    name, given = ("image", image) if features is None else ("features", features)
    if isinstance(given, torch.Tensor) and given.device != logits.device:
        raise ValueError(f"{name}: expected the device of logits, {logits.device}, got {given.device}")
    if isinstance(given, torch.Tensor) and given.shape[2:] != logits.shape[2:]:
        raise ValueError(
            f"{name}: expected the spatial size {list(logits.shape[2:])} of logits, got {list(given.shape)}"
        )


def _as_precise(image, scores):
    """The image; in float64 where it is bytes beside scores of float64, for features are as precise as their image."""
    if scores.dtype == torch.float64 and isinstance(image, torch.Tensor) and image.dtype == torch.uint8:
        return image.double() / 255
    return image


def _floating(dtype) -> torch.dtype:
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype: expected a floating-point torch.dtype, got {dtype!r}")
    return dtype


def _bandwidth(name: str, theta) -> torch.Tensor:
    """A theta, one or several, as a float64 tensor [] or [n]."""
    value = _tensor(name, theta, positive=True)
    if value.ndim > 1:
        raise ValueError(f"{name}: expected a number or one per axis or channel, got shape {list(value.shape)}")
    return value


def _tensor(name: str, value, positive: bool = False) -> torch.Tensor:
    """A number, or numbers in a sequence, array or tensor, as a float64 tensor."""
    numbers = value.tolist() if hasattr(value, "tolist") else value
    flat = numbers if isinstance(numbers, (list, tuple)) else [numbers]
    for number in flat:
        checks.expect_number(name, number, positive)
    return torch.tensor(numbers, dtype=torch.float64)
