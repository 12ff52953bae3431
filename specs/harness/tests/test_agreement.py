"""Comparisons: the tolerance comes from the dtype, and a disagreement explains itself."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from specs.harness.agreement import agree

EPS32 = torch.finfo(torch.float32).eps
EPS64 = torch.finfo(torch.float64).eps


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (1.0, 1.0),
        (torch.tensor(1.0), 1.0),
        (torch.tensor([1.0, math.inf, -math.inf, math.nan]), [1.0, math.inf, -math.inf, math.nan]),
        (torch.empty(0, 3), torch.empty(0, 3)),
        ([[0.1, 0.2], [0.3, 0.4]], [[0.1, 0.2], [0.3, 0.4]]),
        ([torch.tensor(1.0), torch.tensor(2.0)], [1.0, 2.0]),
        (torch.tensor([True, False]), [1.0, 0.0]),
    ],
)
def test_equal_numbers_agree(got: Any, expected: Any) -> None:
    assert agree(got, expected, ulps=0)


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (1.0, math.inf),
        (math.inf, 1.0),
        (math.inf, -math.inf),
        (math.nan, 1.0),
        (1.0, math.nan),
        (math.inf, math.nan),
        (torch.ones(2), torch.ones(3)),
        (torch.ones(1), torch.tensor(1.0)),
    ],
)
def test_what_no_rounding_explains_disagrees(got: Any, expected: Any) -> None:
    assert not agree(got, expected, ulps=1e6)


@pytest.mark.parametrize(("dtype", "eps"), [(torch.float32, EPS32), (torch.float64, EPS64)])
def test_the_tolerance_follows_the_dtype_of_what_the_subject_gave(
    dtype: torch.dtype, eps: float
) -> None:
    reference = torch.tensor(1.0, dtype=torch.float64)
    assert agree((reference + 3 * eps).to(dtype), reference, ulps=4)
    assert not agree((reference + 5 * eps).to(dtype), reference, ulps=4)


def test_the_scale_of_the_intermediate_results_widens_the_tolerance() -> None:
    assert not agree(100 * EPS64, 0.0, ulps=4)
    assert agree(100 * EPS64, 0.0, ulps=4, scale=100.0)


def test_the_magnitude_of_the_reference_widens_the_tolerance() -> None:
    assert agree(1e6 * (1 + 3 * EPS64), 1e6, ulps=4)
    assert not agree(1e6 * (1 + 6 * EPS64), 1e6, ulps=4)


def test_a_disagreement_names_both_sides_and_the_worst_place() -> None:
    shown = repr(agree([1.0, 2.5, 3.0], [1.0, 2.0, 3.0 + 1e-9]))
    assert "the subject gave [1, 2.5, 3]" in shown
    assert "the reference gave [1, 2, 3]" in shown
    assert "worst at [1]: 2.5 for 2.0, off by 0.5" in shown
    assert "2 of 3 wrong" in shown


def test_other_shapes_are_named() -> None:
    assert "shapes (2,) and (3,) differ" in repr(agree(torch.ones(2), torch.ones(3)))
