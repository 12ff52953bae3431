"""Which differences between numbers rounding explains."""

from __future__ import annotations

import math

import pytest

from specs.harness.numbers import EPSILON, moved, number
from specs.harness.observations import as_record

ULP = EPSILON["torch.float32"]


def test_the_number_of_a_record_is_exact() -> None:
    for value in (0.1, -math.inf, 5e-324):
        assert number(as_record(value)) == value
    assert number(as_record(3)) is None


def test_equal_numbers_have_not_moved() -> None:
    assert moved([0.1, math.inf, 0.0], [0.1, math.inf, -0.0]) is None
    assert moved([math.nan], [math.nan]) is None


def test_a_few_ulps_are_rounding() -> None:
    found = moved([1.0, 2.0], [1.0 + 3 * ULP, 2.0], "torch.float32")
    assert found is not None
    assert not found.beyond_rounding
    assert found.place == 0
    assert found.ulps == pytest.approx(3, rel=1e-6)


def test_float32_numbers_are_recognised_as_such() -> None:
    as_float32, as_float64 = moved([1.0], [1.0 + ULP]), moved([0.1], [0.1 + 2**-56])
    assert as_float32 is not None
    assert as_float64 is not None
    assert as_float32.ulps == pytest.approx(1, rel=1e-6)
    assert 0 < as_float64.ulps < 2


@pytest.mark.parametrize(
    ("old", "new"),
    [(1.0, 1.001), (1.0, -1.0), (1.0, math.nan), (math.inf, 1.0), (0.0, 1e-9), (1e-8, 2e-8)],
)
def test_anything_else_is_a_change(old: float, new: float) -> None:
    found = moved([old], [new])
    assert found is not None
    assert found.beyond_rounding


def test_small_numbers_are_measured_beside_the_large_ones() -> None:
    """A gradient of 1e-9 beside others of 1 is what rounding has left of 0."""
    alone, beside = moved([1e-9], [3e-9]), moved([1e-9, 1.0], [3e-9, 1.0])
    assert alone is not None
    assert beside is not None
    assert alone.beyond_rounding
    assert not beside.beyond_rounding


def test_a_coarse_dtype_may_move_by_its_own_steps() -> None:
    assert not moved([1.0], [1.0 + 2**-7], "torch.bfloat16").beyond_rounding  # type: ignore[union-attr]
    assert moved([1.0], [1.0 + 2**-5], "torch.bfloat16").beyond_rounding  # type: ignore[union-attr]


def test_a_change_is_named_before_larger_rounding() -> None:
    found = moved([1000.0, 0.0], [1000.0 + 0.009, 0.5])
    assert found is not None
    assert (found.place, found.beyond_rounding) == (1, True)
