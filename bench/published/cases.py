"""A system of the library and its form in NumPy on one problem, and their differences.

Errors are relative, |a - b| / |b| over all elements, where b is the form's result in float64. The inputs are the same
in every precision: float32 numbers.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from bench.published import derivatives

DIRECTIONS = 3  # along which the derivatives of a whole network are compared

Arrays = Mapping[str, np.ndarray]


@dataclass
class Case:
    """One system at one size and number of updates.

    Attributes:
        system: its name.
        size: H and W of the image.
        iterations: T, or None if nothing is iterated.
        module: the library's module in float32, with its initial parameters.
        inputs: its inputs, in order and by name: bytes, or floats, for which there are gradients.
        form: computes S [B, C, H, W] from the inputs and the module's parameters by name.
        adjoint: computes the gradients of <cotangent, S>, called with the cotangent and the arguments of `form`; by
            default they are complex steps of `form`.
    """

    system: str
    size: tuple[int, int]
    iterations: int | None
    module: nn.Module
    inputs: Arrays
    form: Callable[..., np.ndarray]
    adjoint: Callable[..., dict[str, np.ndarray]] | None = field(default=None)

    @cached_property
    def arguments(self) -> dict[str, np.ndarray]:
        """The arguments with gradients: floating-point inputs, and the parameters."""
        inputs = {name: value for name, value in self.inputs.items() if value.dtype != np.uint8}
        return inputs | {name: p.detach().double().numpy() for name, p in self.module.named_parameters()}

    @cached_property
    def constants(self) -> dict[str, np.ndarray]:
        return {name: value for name, value in self.inputs.items() if value.dtype == np.uint8}

    @cached_property
    def expected(self) -> dict[str, np.ndarray]:
        """The scores of the form, and the gradients of <cotangent, scores> by name."""
        scores = self.form(**self.arguments, **self.constants)
        if self.adjoint is not None:
            return {"scores": scores, **self.adjoint(self.cotangent, **self.arguments, **self.constants)}
        images = [name for name in self.inputs if name in self.arguments]
        found = derivatives.gradients(self._of_arguments, self.arguments, self.cotangent, images)
        return {"scores": scores, **found}

    @cached_property
    def cotangent(self) -> np.ndarray:
        """The cotangent of one image, shared by a batch of perturbed images."""
        shape = self.form(**self.arguments, **self.constants).shape
        return float32(np.random.default_rng(1).standard_normal(shape))

    def _of_arguments(self, **arguments: np.ndarray) -> np.ndarray:
        return self.form(**arguments, **self.constants)

    def found(self, dtype: torch.dtype) -> dict[str, np.ndarray]:
        """The same from the library in one precision."""
        module = copy.deepcopy(self.module).to(dtype)
        leaves = {name: torch.tensor(value, dtype=dtype, requires_grad=True) for name, value in self.arguments.items()}
        constants = {name: torch.tensor(value) for name, value in self.constants.items()}
        inputs = [(leaves | constants)[name] for name in self.inputs]
        parameters = {name: leaf for name, leaf in leaves.items() if name not in self.inputs}
        scores = functional_call(module, parameters, tuple(inputs))
        gradients = torch.autograd.grad(scores, list(leaves.values()), torch.tensor(self.cotangent, dtype=dtype))
        found = {"scores": scores.detach(), **dict(zip(leaves, gradients, strict=True))}
        return {name: value.double().numpy() for name, value in found.items()}

    def errors(self, dtype: torch.dtype) -> dict[str, float]:
        """The errors by quantity: "scores", and each argument for its gradient."""
        found = self.found(dtype)
        return {name: relative(found[name], expected) for name, expected in self.expected.items()}


class Network(Case):
    """A whole network, whose gradients are compared along random directions in all parameters and inputs at once.

    In each argument, a direction is scaled by the length of its gradient. Then each argument contributes its relative
    error to the sum, and none is too small to count.
    """

    def errors(self, dtype: torch.dtype) -> dict[str, float]:
        found, exact = self.found(dtype), self._of_arguments(**self.arguments)
        wrong = [
            self._slope(found, directions) - np.sum(self.cotangent * self._along(directions))
            for directions in self._directions
        ]
        return {"scores": relative(found["scores"], exact), "gradients": float(np.sqrt(np.mean(np.square(wrong))))}

    def _along(self, directions: Arrays) -> np.ndarray:
        return derivatives.along(self._of_arguments, self.arguments, directions)

    def _slope(self, gradients: Arrays, directions: Arrays) -> float:
        return sum(float(np.sum(gradients[name] * direction)) for name, direction in directions.items())

    @cached_property
    def _directions(self) -> list[dict[str, np.ndarray]]:
        draws, gradients = np.random.default_rng(2), self.found(torch.float64)
        lengths = {name: np.linalg.norm(gradients[name]) for name in self.arguments}
        return [
            # Arguments with a gradient of 0 are included too: the form may find another gradient.
            {name: draws.standard_normal(gradients[name].shape) / (length or 1.0) for name, length in lengths.items()}
            for _ in range(DIRECTIONS)
        ]


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """|found - expected| / |expected|; NaN if either has a NaN."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def float32(values: np.ndarray) -> np.ndarray:
    """Round to float32, in float64."""
    return values.astype(np.float32).astype(np.float64)
