"""The assertion helpers: what must pass, what must fail, and that memory and seeds are as promised."""

import pytest
import torch

from assertions import TOLERANCES, assert_close, assert_within_budget
from memory import nan_filled

INF, NAN = float("inf"), float("nan")


def noisy(exact: torch.Tensor, relative: float) -> torch.Tensor:
    """`exact` with an error of exactly `relative` times its RMS at every element, signs alternating."""
    signs = torch.tensor([1.0, -1.0], dtype=exact.dtype).repeat(exact.numel())[: exact.numel()].reshape(exact.shape)
    return exact + relative * exact.square().mean().sqrt() * signs


@pytest.fixture
def exact() -> torch.Tensor:
    return torch.randn(3, 5, 7, dtype=torch.float64)


# What must pass -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*TOLERANCES, torch.int64, torch.uint8, torch.bool])
def test_equal_tensors_pass(dtype):
    x = torch.arange(12).reshape(3, 4).to(dtype)
    assert_close("x", x, x.clone())


@pytest.mark.parametrize("shape", [(0,), (2, 0, 3), ()])
def test_empty_and_zero_dimensional_tensors_pass(shape):
    x = torch.ones(shape)
    assert_close("x", x, x.clone())
    assert_within_budget("x", x, x.double(), x)


def test_errors_under_both_tolerances_pass(exact):
    assert_close("x", noisy(exact, 0.9e-6), exact, rms=1e-6, worst=1e-6)


def test_the_same_infinities_pass_and_do_not_hide_the_rest():
    x = torch.tensor([1.0, INF, -INF])
    assert_close("x", x, x.clone())
    with pytest.raises(AssertionError, match="relative error"):
        assert_close("x", torch.tensor([2.0, INF, -INF]), x)


def test_a_low_precision_tensor_meets_a_float64_reference_when_its_dtype_is_named(exact):
    assert_close("x", exact.float(), exact, dtype=torch.float32, rms=1e-7, worst=1e-7)


def test_zero_is_compared_with_a_stated_scale():
    zero = torch.zeros(4)
    assert_close("x", zero, zero.clone())
    assert_close("x", zero + 1e-7, zero, scale=1.0, rms=1e-6, worst=1e-6)
    with pytest.raises(AssertionError):
        assert_close("x", zero + 1e-7, zero, rms=1e-6, worst=1e-6)
    with pytest.raises(AssertionError):
        assert_close("x", zero + 1e-5, zero, scale=1.0, rms=1e-6, worst=1e-6)


def test_tiny_numbers_are_compared_relatively():
    x = torch.full((4,), 1e-200, dtype=torch.float64)
    assert_close("x", x, x.clone())
    with pytest.raises(AssertionError):
        assert_close("x", 2 * x, x)


def test_gradient_carrying_and_strided_tensors_pass(exact):
    strided = exact.transpose(0, 2).contiguous().transpose(0, 2).requires_grad_()
    assert_close("x", strided, exact)


# What must fail -------------------------------------------------------------------------------------------------


def test_an_error_everywhere_fails_by_rms(exact):
    with pytest.raises(AssertionError, match="RMS 1.1e-06"):
        assert_close("x", noisy(exact, 1.1e-6), exact, rms=1e-6, worst=1.0)


def test_one_bad_element_fails_by_worst_though_its_rms_is_small():
    exact = torch.ones(10_000)
    actual = exact.clone()
    actual[1234] += 0.01
    assert_close("x", actual, exact, rms=1e-3, worst=1.0)
    with pytest.raises(AssertionError, match="worst 0.01"):
        assert_close("x", actual, exact, rms=1e-3, worst=1e-3)


def test_the_failure_names_the_tensor_and_its_worst_places():
    exact = torch.ones(4, 5)
    actual = exact.clone()
    actual[2, 3] = 7.5
    actual[1, 0] = 2.0
    with pytest.raises(AssertionError) as failure:
        assert_close("gradient of logits", actual, exact)
    message = str(failure.value)
    assert message.startswith("gradient of logits:")
    assert message.index("[2, 3]: 7.5, expected 1.0") < message.index("[1, 0]: 2.0, expected 1.0")
    assert message.count("\n  at ") == 2


@pytest.mark.parametrize(
    "actual, expected",
    [([1.0, NAN], [1.0, 2.0]), ([1.0, 2.0], [1.0, NAN]), ([1.0, NAN], [1.0, NAN])],
    ids=["actual", "expected", "both"],
)
def test_nan_never_passes(actual, expected):
    with pytest.raises(AssertionError, match=r"x: 1 of 2 (expected )?values are NaN"):
        assert_close("x", torch.tensor(actual), torch.tensor(expected), rms=INF, worst=INF)


@pytest.mark.parametrize("actual, expected", [(INF, 1.0), (1.0, INF), (INF, -INF)])
def test_an_infinity_fails_where_the_other_is_not_the_same(actual, expected):
    with pytest.raises(AssertionError, match="infinite"):
        assert_close("x", torch.tensor([actual, 1.0]), torch.tensor([expected, 1.0]), rms=INF, worst=INF)


@pytest.mark.parametrize("shape", [(4,), (1, 4), (4, 1), (2, 2), (0,)])
def test_another_shape_fails_even_where_it_would_broadcast(shape):
    with pytest.raises(AssertionError, match="x: shape"):
        assert_close("x", torch.ones(shape), torch.ones(4, 4))


def test_another_dtype_fails():
    with pytest.raises(AssertionError, match="x: torch.float32, expected torch.float64"):
        assert_close("x", torch.ones(3), torch.ones(3, dtype=torch.float64))
    with pytest.raises(AssertionError, match="x: torch.float64, expected torch.float32"):
        assert_close("x", torch.ones(3, dtype=torch.float64), torch.ones(3), dtype=torch.float32)


def test_integers_must_be_equal():
    with pytest.raises(AssertionError, match=r"x: 1 of 3 values differ\n  at \[1\]: 2, expected 5"):
        assert_close("x", torch.tensor([1, 2, 3]), torch.tensor([1, 5, 3]))
    with pytest.raises(AssertionError, match="values differ"):
        assert_close("x", torch.tensor([2**60 + 1]), torch.tensor([2**60]))


# The error budget -----------------------------------------------------------------------------------------------


def test_a_result_within_the_budget_passes_and_one_beyond_fails(exact):
    plain = noisy(exact, 1e-4).float()
    assert_within_budget("q", noisy(exact, 3.9e-4).float(), exact, plain)
    with pytest.raises(AssertionError, match=r"q: RMS error .* over the budget .*\n  at "):
        assert_within_budget("q", noisy(exact, 4.1e-4).float(), exact, plain)
    with pytest.raises(AssertionError, match="over the budget"):
        assert_within_budget("q", noisy(exact, 2.1e-4).float(), exact, plain, factor=2)


def test_where_plain_pytorch_is_exact_one_rounding_is_allowed():
    ones = torch.ones(8)
    eps = torch.finfo(torch.float32).eps
    assert_within_budget("q", ones + eps, ones.double(), ones)
    with pytest.raises(AssertionError, match="over the budget"):
        assert_within_budget("q", ones + 4 * eps, ones.double(), ones)


@pytest.mark.parametrize("place", ["actual", "reference64", "same_dtype_reference"])
def test_nan_is_within_no_budget(place):
    tensors = {
        "actual": torch.ones(3),
        "reference64": torch.ones(3, dtype=torch.float64),
        "same_dtype_reference": torch.ones(3),
    }
    tensors[place][1] = NAN
    with pytest.raises(AssertionError, match="NaN"):
        assert_within_budget("q", **tensors)


def test_a_budget_refuses_other_shapes_and_dtypes():
    ones = torch.ones(3)
    with pytest.raises(AssertionError, match="shape"):
        assert_within_budget("q", torch.ones(1), ones.double(), ones)
    with pytest.raises(AssertionError, match=r"same_dtype_reference\): shape"):
        assert_within_budget("q", ones, ones.double(), torch.ones(1))
    with pytest.raises(AssertionError, match="torch.float64, expected torch.float32"):
        assert_within_budget("q", ones.double(), ones.double(), ones)
    with pytest.raises(AssertionError, match="not float64"):
        assert_within_budget("q", ones, ones, ones)
    with pytest.raises(AssertionError, match="has none"):
        assert_within_budget("q", ones.long(), ones.double(), ones.long())


# Fixtures -------------------------------------------------------------------------------------------------------


def test_nan_memory_fills_what_nobody_wrote(nan_memory):
    like = torch.ones(3)
    for fresh in (torch.empty(3), torch.empty_like(like), like.new_empty(3), torch.empty(3, dtype=torch.float16)):
        assert fresh.isnan().all()
    assert (torch.empty(3, dtype=torch.int32) == torch.iinfo(torch.int32).max).all()


@pytest.mark.parametrize("fill", [True, False])
@pytest.mark.parametrize("mode", [0, 1])
def test_nan_filled_restores_what_it_found_even_after_an_error(monkeypatch, fill, mode):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", fill)
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode(mode)
    try:
        with pytest.raises(ZeroDivisionError), nan_filled():
            assert torch.empty(1).isnan().all()
            raise ZeroDivisionError
        assert torch.utils.deterministic.fill_uninitialized_memory is fill
        assert torch.get_deterministic_debug_mode() == mode
    finally:
        torch.set_deterministic_debug_mode(before)


def test_every_test_starts_from_the_same_seed():
    assert torch.initial_seed() == 0
