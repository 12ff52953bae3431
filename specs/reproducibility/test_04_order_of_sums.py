"""Floating-point sums depend on their order, and the order on things that you did not think of.

At the end you know why two right results differ in their last bits, by how much they may, and how
to compare them.

Read before: lesson 1 (dtypes).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from specs.harness import rule, spec
from specs.harness.observations import Observe

ACCURACY = "https://docs.pytorch.org/docs/stable/notes/numerical_accuracy.html"
TESTING = "https://docs.pytorch.org/docs/stable/testing.html"

Function = Callable[..., Any]


def summed_exactly(numbers: Tensor) -> Tensor:
    """Rounds once, at the end: the same for every order, and slow."""
    return torch.tensor(math.fsum(numbers.tolist()), dtype=numbers.dtype)


def summed_from_the_left(numbers: Tensor) -> Tensor:
    """Adds one number after the other, and rounds each time."""
    return torch.as_tensor(np.add.accumulate(numbers.numpy())[-1])


def in_any_order(numbers: Tensor, seed: int) -> Tensor:
    """The same numbers, shuffled."""
    return numbers[torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed))]


@rule(
    "SEED-05",
    "The order of a sum changes its last bits, and batch size, threads and layout change the order:"
    " compare floats with a tolerance that fits their dtype.",
    kind="practice",
    source=ACCURACY,
    subject=torch.sum,
    violated_by=[summed_exactly],
    consequence="10,000 numbers from N(0, 1) in 20 orders have 4 to 16 different sums in float32,"
    " 3 to 12 in float64 (eight seeds), all of them right",
)
def test_the_same_numbers_in_another_order_have_another_sum(
    sum: Function, observe: Observe
) -> None:
    """Right means: off by less than one rounding of the sum of all sizes, |x1| + |x2| + ..."""
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        numbers = torch.randn(10_000, dtype=dtype)
        exact, sizes = math.fsum(numbers.tolist()), math.fsum(numbers.abs().tolist())

        sums = [sum(in_any_order(numbers, seed)).item() for seed in range(20)]

        observe(f"different sums, {dtype}", len(set(sums)))
        assert len(set(sums)) > 1
        assert all(abs(one - exact) < torch.finfo(dtype).eps * sizes for one in sums)


@spec("SEED-05", violated_by=[summed_from_the_left])
def test_torch_sums_in_blocks_and_loses_less(sum: Function) -> None:
    """A million times 0.1 in float32: one after the other, 1 % is lost."""
    tenths = torch.full((2**20,), 0.1)
    exact = math.fsum(tenths.tolist())
    assert abs(sum(tenths).item() - exact) < 1e-6 * exact
    assert abs(summed_from_the_left(tenths).item() - exact) > 0.005 * exact


@spec("SEED-05", violated_by=[summed_exactly])
def test_the_number_of_threads_changes_the_order(sum: Function, observe: Observe) -> None:
    """Each thread sums its part. On the same number of threads, the bits are the same."""
    torch.manual_seed(0)
    several = [torch.rand(2**16) for _ in range(10)]
    sums: dict[int, list[float]] = {}
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        sums[threads] = [sum(numbers).item() for numbers in several]
        assert [sum(numbers).item() for numbers in several] == sums[threads]

    observe("sums", {str(threads): sums[threads] for threads in sums})
    assert sums[2] != sums[1] or sums[4] != sums[1]
    for threads in (2, 4):
        for one, other in zip(sums[1], sums[threads], strict=True):
            assert abs(one - other) < 1e-6 * one


# --- Comparing ------------------------------------------------------------------------------------


def bit_for_bit(got: Tensor, expected: Tensor, **_: Any) -> None:
    """Wants the same bits."""
    assert torch.equal(got, expected)


def within_a_percent(got: Tensor, expected: Tensor, **_: Any) -> None:
    """Lets errors pass that no rounding makes."""
    assert torch.allclose(got, expected, rtol=1e-2, atol=1e-2, equal_nan=True)


def absolute_only(got: Tensor, expected: Tensor, **_: Any) -> None:
    """Asks the same of 1e-6 and of 1e6."""
    assert (got - expected).abs().max() <= 1e-5


def relative_only(got: Tensor, expected: Tensor, **_: Any) -> None:
    """Asks for the leading digits of what should have been zero."""
    assert ((got - expected).abs() <= 1.3e-6 * expected.abs()).all()


def accepts(assert_close: Function, got: Tensor, expected: Tensor, **tolerances: Any) -> bool:
    """Whether the comparison raises nothing."""
    try:
        assert_close(got, expected, **tolerances)
    except AssertionError:
        return False
    return True


#: How large the numbers are, and what the default tolerances accept: the same sum in another
#: order, and a sum with one of its 64 terms left out.
SCALES = [
    (1.0, True, False),
    (1e4, False, False),  # a result near zero keeps the rounding errors of its large terms
    (1e-6, True, True),  # everything is within the absolute tolerance of 1e-5
]


@spec("SEED-05", subject=assert_close, violated_by=[bit_for_bit, within_a_percent, relative_only])
def test_the_default_tolerance_is_made_for_numbers_around_one(assert_close: Function) -> None:
    """For others, give rtol and atol yourself: a tolerance cannot know how large the terms were."""
    for scale, accepts_rounding, accepts_a_mistake in SCALES:
        torch.manual_seed(0)
        weight, rows = torch.randn(64, 10) / 8, scale * torch.randn(64, 64)
        order = torch.randperm(64)
        without_a_term = rows.index_fill(1, torch.tensor([5]), 0.0)

        reordered, mistaken = rows[:, order] @ weight[order], without_a_term @ weight

        assert accepts(assert_close, reordered, rows @ weight) == accepts_rounding
        assert accepts(assert_close, mistaken, rows @ weight) == accepts_a_mistake


def same_for_all_dtypes(got: Tensor, expected: Tensor, **_: Any) -> None:
    """Uses the tolerances of float32 whatever the dtype."""
    torch.testing.assert_close(got, expected, rtol=1.3e-6, atol=1e-5)


def ignores_the_dtype(got: Tensor, expected: Tensor, **tolerances: Any) -> None:
    """Converts before it compares."""
    torch.testing.assert_close(got, expected, check_dtype=False, **tolerances)


def nan_is_nan(got: Tensor, expected: Tensor, **tolerances: Any) -> None:
    """Takes two results for equal that both are no numbers."""
    torch.testing.assert_close(got, expected, equal_nan=True, **tolerances)


def the_other_way_round(got: Tensor, expected: Tensor, **tolerances: Any) -> None:
    """Takes the relative tolerance of what it got."""
    torch.testing.assert_close(expected, got, **tolerances)


#: dtype, relative and absolute tolerance: |got - expected| <= atol + rtol * |expected|.
TOLERANCES = [
    (torch.float64, 1e-7, 1e-7),
    (torch.float32, 1.3e-6, 1e-5),
    (torch.float16, 1e-3, 1e-5),
    (torch.bfloat16, 1.6e-2, 1e-5),
]


@rule(
    "SEED-07",
    "torch.testing.assert_close accepts |got - expected| <= atol + rtol * |expected|, with"
    " tolerances that come from the dtype, and refuses another dtype, another shape, and NaN.",
    kind="contract",
    source=f"{TESTING}#torch.testing.assert_close",
    subject=assert_close,
    violated_by=[
        same_for_all_dtypes,
        absolute_only,
        relative_only,
        the_other_way_round,
        ignores_the_dtype,
        nan_is_nan,
    ],
)
def test_each_dtype_has_its_tolerance(assert_close: Function) -> None:
    """Just inside and just outside, for a large number, for one and for zero."""
    for dtype, rtol, atol in TOLERANCES:
        for value in (0.0, 1.0, 1000.0):
            expected = torch.tensor([value], dtype=dtype)
            for factor in (0.6, 1.5):
                target = expected.double() + factor * (atol + rtol * value)
                got = target.to(dtype)
                # Numbers of 16 bits lie far apart: what counts is where this one came to lie.
                inside = abs(got.item() - value) <= atol + rtol * value
                assert accepts(assert_close, got, expected) == inside, (dtype, value, factor)
    one, two = torch.ones(1), 2 * torch.ones(1)
    assert accepts(assert_close, one, two, rtol=0.5, atol=0.0)  # half of what is expected
    assert not accepts(assert_close, two, one, rtol=0.5, atol=0.0)
    assert not accepts(assert_close, one.double(), one)
    assert not accepts(assert_close, torch.ones(2), one)
    assert not accepts(assert_close, one * math.nan, one * math.nan)
    assert accepts(assert_close, one * math.inf, one * math.inf)


@spec("SEED-07", violated_by=[bit_for_bit])
def test_the_failure_counts_what_differs(assert_close: Function, observe: Observe) -> None:
    """How many elements, and the greatest difference: enough to tell rounding from a mistake."""
    with pytest.raises(AssertionError, match="Tensor-likes are not close!") as failure:
        assert_close(torch.tensor([1.0, 2.5, 3.0]), torch.tensor([1.0, 2.0, 3.0]))
    observe("failure", failure.value)
    for part in ("Mismatched elements: 1 / 3", "Greatest absolute difference: 0.5 at index (1,)"):
        assert part in str(failure.value)
