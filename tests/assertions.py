"""The two assertions every numerical test uses; tested themselves in test_assertions.py.

Errors are relative to the whole tensor, not to each element: an element near zero is the sum of terms that
are not, and carries their rounding.

    rms   = |actual - expected|_rms / |expected|_rms
    worst = max |actual - expected| / max |expected|
"""

import torch

# (rms, worst) where a test names none. float32: the precision the library promises for one step; the worst
# of some 1e5 elements lies about ten times above the RMS. Half precisions: their rounding (2^-11, 2^-8) after
# accumulation in float32. float64: 1e4 roundings, which is what a long sum leaves.
TOLERANCES = {
    torch.float64: (1e-12, 1e-11),
    torch.float32: (1e-5, 1e-4),
    torch.float16: (1e-3, 5e-3),
    torch.bfloat16: (8e-3, 4e-2),
}
SHOWN = 5


def assert_close(
    name: str,
    actual: torch.Tensor,
    expected: torch.Tensor,
    *,
    rms: float | None = None,
    worst: float | None = None,
    dtype: torch.dtype | None = None,
    scale: float | None = None,
) -> None:
    """Fails unless `actual` is `expected` to within the RMS and the worst relative error, both.

    Integers and booleans must be equal. NaN never passes, not even where both have it; infinities must be
    the same in the same places. Any two devices may be compared.

    Args:
        name: what the tensor is called in the failure.
        rms, worst: allowed relative errors; by default `TOLERANCES` of the dtype of `actual`.
        dtype: the dtype `actual` must have, by default that of `expected`; name it to compare with a
            reference of higher precision.
        scale: what errors are relative to, instead of the size of `expected`; for tensors whose exact value
            is zero, of which otherwise nothing but zero passes.
    """
    dtype = expected.dtype if dtype is None else dtype
    _assert_same_form(name, actual, expected, dtype)
    if expected.numel() == 0:
        return
    if not dtype.is_floating_point:
        wrong = (actual.cpu() != expected.cpu()).double()
        assert not wrong.any(), f"{name}: {int(wrong.sum())} of {wrong.numel()} values differ" + _places(
            wrong, actual, expected
        )
        return

    error = _errors(name, actual, expected)
    allowed_rms, allowed_worst = TOLERANCES[dtype]
    allowed_rms = allowed_rms if rms is None else rms
    allowed_worst = allowed_worst if worst is None else worst
    exact = _finite(expected)
    found_rms = _ratio(_rms(error), _rms(exact) if scale is None else scale)
    found_worst = _ratio(error.max().item(), exact.abs().max().item() if scale is None else scale)
    assert found_rms <= allowed_rms and found_worst <= allowed_worst, (
        f"{name}: relative error RMS {found_rms:.3g} (allowed {allowed_rms:.3g}), worst {found_worst:.3g} "
        f"(allowed {allowed_worst:.3g}), {dtype}, shape {list(actual.shape)}" + _places(error, actual, expected)
    )


def assert_within_budget(
    name: str,
    actual: torch.Tensor,
    reference64: torch.Tensor,
    same_dtype_reference: torch.Tensor,
    factor: float = 4,
) -> None:
    """Fails if `actual` is further from the truth than plain PyTorch in the same dtype is, times `factor`.

        |actual - reference64|_rms <= factor |same_dtype_reference - reference64|_rms + eps |reference64|_rms

    The tolerance follows the data: where rounding is amplified (unnormalised loops), PyTorch is amplified
    too. The last term is one rounding, for data on which PyTorch happens to be exact.

    Args:
        reference64: the reference in float64.
        same_dtype_reference: the same reference run in the dtype of `actual`.
    """
    dtype = same_dtype_reference.dtype
    assert dtype.is_floating_point, f"{name}: a budget is of rounding errors, and {dtype} has none"
    assert reference64.dtype == torch.float64, f"{name}: reference64 is {reference64.dtype}, not float64"
    _assert_same_form(name, actual, reference64, dtype)
    _assert_same_form(f"{name} (same_dtype_reference)", same_dtype_reference, reference64, dtype)
    if reference64.numel() == 0:
        return

    error = _errors(name, actual, reference64)
    budget_error = _errors(f"{name} (same_dtype_reference)", same_dtype_reference, reference64)
    found, plain = _rms(error), _rms(budget_error)
    budget = factor * plain + torch.finfo(dtype).eps * _rms(_finite(reference64))
    assert found <= budget, (
        f"{name}: RMS error {found:.3g} is over the budget {budget:.3g} ({factor:g} times the {plain:.3g} of "
        f"PyTorch in {dtype}), shape {list(actual.shape)}" + _places(error, actual, reference64)
    )


def _assert_same_form(name: str, actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert actual.shape == expected.shape, f"{name}: shape {list(actual.shape)}, expected {list(expected.shape)}"
    assert actual.dtype == dtype, f"{name}: {actual.dtype}, expected {dtype}"


def _errors(name: str, actual: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """|actual - expected| in float64 on the CPU, zero where both have the same infinity; NaN fails."""
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    for which, values in (("", actual), ("expected ", expected)):
        nans = values.isnan()
        assert not nans.any(), f"{name}: {int(nans.sum())} of {nans.numel()} {which}values are NaN" + _places(
            nans.double(), actual, expected
        )
    same_infinity = actual.isinf() & (actual == expected)
    error = torch.where(same_infinity, 0.0, (actual - expected).abs())
    assert not error.isinf().any(), f"{name}: infinite where the other is not" + _places(error, actual, expected)
    return error


def _finite(values: torch.Tensor) -> torch.Tensor:
    values = values.detach().double().cpu()
    return torch.where(values.isinf(), 0.0, values)


def _rms(values: torch.Tensor) -> float:
    """Divided by the largest first: squares of very small or large numbers leave float64's range."""
    largest = values.abs().max().item()
    return 0.0 if largest == 0 else largest * (values / largest).square().mean().sqrt().item()


def _ratio(error: float, size: float) -> float:
    if error == 0:
        return 0.0
    return error / size if size > 0 else float("inf")


def _places(error: torch.Tensor, actual: torch.Tensor, expected: torch.Tensor) -> str:
    """The worst few coordinates, one a line."""
    count = min(SHOWN, int((error != 0).sum()))
    lines = []
    for flat in error.flatten().argsort(descending=True)[:count].tolist():
        at = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), error.shape))
        lines.append(f"\n  at {list(at)}: {actual[at].item()!r}, expected {expected[at].item()!r}")
    return "".join(lines)
