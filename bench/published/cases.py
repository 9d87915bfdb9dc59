"""A system of the library beside its form in NumPy, on one problem, and how far apart they are.

Errors are relative: |a - b| / |b| of all elements together, b the form's, in float64. What goes in is the same in every
precision: float32's numbers.
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
        iterations: T, or None where nothing is iterated.
        module: of the library, in float32; its parameters are what it starts from.
        inputs: what it is called with, in order and by name; bytes, or floating numbers, of which there are gradients.
        form: gives S [B, C, H, W] of the inputs and the module's parameters by name.
        adjoint: gives the gradients of <cotangent, S>, called with the cotangent and like `form`; without it they are
            complex steps of `form`.
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
        """What there are gradients of: floating inputs, and the parameters."""
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
        """One image's: a batch of moved images shares it."""
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
        """By quantity: "scores", and each argument whose gradient is meant."""
        found = self.found(dtype)
        return {name: relative(found[name], expected) for name, expected in self.expected.items()}


class Network(Case):
    """A whole network, whose gradients are compared along random directions in all parameters and inputs at once.

    A direction is scaled, in each of them, by the length of its gradient. Then the sum of what they contribute to the
    error has the size of their relative errors together, and none is too small to count.
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
            # An argument whose gradient is 0 takes part too: the form may find another.
            {name: draws.standard_normal(gradients[name].shape) / (length or 1.0) for name, length in lengths.items()}
            for _ in range(DIRECTIONS)
        ]


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """|found - expected| / |expected|; NaN where either has one."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def float32(values: np.ndarray) -> np.ndarray:
    """float64 of float32's numbers."""
    return values.astype(np.float32).astype(np.float64)
