"""Sums and means over boxes, in plain PyTorch.

    box(x)_i = sum of x_j over the pixels j = i + s t of the image, t a whole vector with |t_a| <= r_a;  s: dilation
    mean(x)_i = box(x)_i / area_i

with area_i the number of those pixels ("count"), or the product of min(2 r_a + 1, n_a) everywhere ("constant", as
SegModel's code released it). box is symmetric, so the adjoint of the mean is box(y / area).

A window of w pixels is combined from sums of 1, 2, 4, ... neighbours, so every result is a tree sum of its own pixels.
It takes about 2 log2(w) additions and, unlike running sums, loses no accuracy over long rows.
"""

import math

import torch

BOXES = ("count", "constant")


def box_sum(x, radii, dilation: int = 1):
    """box(x) for x [..., *S] and one radius per axis of S."""
    for axis, r in zip(range(-len(radii), 0), radii, strict=True):
        x = _along(x, axis, r, dilation)
    return x


def _along(x, axis: int, r: int, dilation: int):
    n = x.shape[axis]
    r = min(r, (n - 1) // dilation)  # a larger radius reaches nothing else in the image
    if r <= 0:
        return x
    before, width, axis = r * dilation, 2 * r + 1, axis % x.ndim
    shape = [*x.shape]
    shape[axis] += before
    power = x.new_empty(shape)  # sums of `taken` neighbours from each place on, without those beyond the end
    power.narrow(axis, 0, before).zero_()
    power.narrow(axis, before, n).copy_(x)
    total, reach, taken = None, 0, 1  # total: of `reach` neighbours
    spare = [torch.empty_like(power) for _ in range(2)]  # allocating memory for every sum would cost more than the sum
    while True:
        if width & taken:
            if total is None:
                total = power
            else:
                found = _ahead(total, power, axis, reach * dilation, spare.pop())
                spare.append(total)
                total = found
            reach += taken
        if total is not None and reach == width:
            return total.narrow(axis, 0, n)
        found = _ahead(power, power, axis, taken * dilation, spare.pop())
        if power is not total:
            spare.append(power)
        power, taken = found, 2 * taken


def _ahead(near, far, axis: int, offset: int, found):
    """near_i + far_{i + offset}; near_i where that is beyond the end."""
    left = near.shape[axis] - offset
    if left <= 0:
        return found.copy_(near)
    torch.add(near.narrow(axis, 0, left), far.narrow(axis, offset, left), out=found.narrow(axis, 0, left))
    found.narrow(axis, left, offset).copy_(near.narrow(axis, left, offset))
    return found


def areas(size, radii, dilation: int = 1, box: str = "count", spare: int = 0, *, dtype, device):
    """area: [*size] for "count", [1, 1, ...] for "constant".

    The last `spare` axes end with a block of no pixel, see reference.blur: an infinite area makes 0 of all its means.
    """
    found = torch.ones((), dtype=dtype, device=device)
    for axis, (n, r) in enumerate(zip(size, radii, strict=True), spare - len(size)):
        i, pixels = torch.arange(n, device=device), n - 1 if axis >= 0 else n
        if box == "constant":
            count = torch.sym_min(2 * r + 1, -(-pixels // dilation))
        else:
            before, after = i // dilation, (pixels - 1 - i) // dilation
            count = (before.clamp(max=r) + after.clamp(max=r) + 1).to(dtype)
        found = found[..., None] * count
        if axis >= 0:
            found = torch.where(i < pixels, found, math.inf)
    return found
