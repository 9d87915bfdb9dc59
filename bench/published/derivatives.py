"""Derivatives of the forms by complex steps: df / dx = Im f(x + i h) / h (Squire and Trapp 1998).

Nothing is subtracted, so h may be so small that the result is exact to rounding. A form must be analytic where it is
evaluated: where it decides (a maximum, a ReLU), it looks at real parts alone.
"""

from collections.abc import Callable, Collection, Mapping

import numpy as np

H = 1e-30

Arguments = Mapping[str, np.ndarray]


def gradients(
    form: Callable[..., np.ndarray], arguments: Arguments, cotangent: np.ndarray, images: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """Of <cotangent, form(**arguments)> with respect to every entry of every argument.

    Args:
        form: gives [1, ...], and [n, ...] where one of `images` is [n, ...].
        arguments: by name, real; those of `images` are [1, ...].
        cotangent: [1, ...].
        images: names of arguments of which a batch is taken at once.
    """
    found = {}
    for name, value in arguments.items():
        each = np.eye(value.size).reshape(-1, *value.shape)
        if name in images:
            slopes = [along(form, arguments, {name: each[:, 0]})]
        else:
            slopes = [along(form, arguments, {name: direction}) for direction in each]
        products = np.concatenate(slopes) * cotangent
        found[name] = products.reshape(value.size, -1).sum(1).reshape(value.shape)
    return found


def along(form: Callable[..., np.ndarray], arguments: Arguments, directions: Arguments) -> np.ndarray:
    """The derivative of form(**arguments) along directions of some of them."""
    moved = {name: arguments[name] + 1j * H * direction for name, direction in directions.items()}
    return form(**{**arguments, **moved}).imag / H
