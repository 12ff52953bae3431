"""Observations: exact, typed, and only of subjects."""

from __future__ import annotations

import inspect
import json
import math
import warnings
from typing import Any

import pytest
import torch

from specs.harness.observations import LISTED_ELEMENTS, Observe, as_record
from specs.harness.tests.conftest import Suite


def reduce_lr(optimizer: object, *, factor: float = 0.1, mode: str = "min") -> None:
    """Something with a signature."""


RECORDS: list[tuple[Any, Any]] = [
    (True, True),
    (3, 3),
    ("text", "text"),
    (None, None),
    (0.1, {"type": "float", "value": "0.1", "hex": "0x1.999999999999ap-4"}),
    (math.inf, {"type": "float", "value": "inf", "hex": "inf"}),
    (math.nan, {"type": "float", "value": "nan", "hex": "nan"}),
    ([1, (2, "x")], [1, [2, "x"]]),
    ({1: 2}, {"type": "mapping", "items": {"1": 2}}),
    (torch.float16, {"type": "dtype", "value": "torch.float16"}),
    (torch.device("cpu"), {"type": "device", "value": "cpu"}),
    (torch.Size([2, 3]), {"type": "Size", "value": "torch.Size([2, 3])"}),
    (
        torch.tensor([[1, 2]]),
        {"type": "tensor", "dtype": "torch.int64", "shape": [1, 2], "values": [1, 2]},
    ),
    (
        ValueError("first line\nsecond line"),
        {"type": "exception", "class": "ValueError", "message": "first line"},
    ),
    (
        inspect.signature(reduce_lr),
        {"type": "signature", "text": "(optimizer, *, factor=0.1, mode='min')"},
    ),
]


@pytest.mark.parametrize(("value", "record"), RECORDS)
def test_a_value_is_written_with_its_type(value: Any, record: Any) -> None:
    assert as_record(value) == record
    json.dumps(as_record(value), allow_nan=False)


def test_a_caught_warning_is_written_with_its_category_and_file() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn("Detected call", FutureWarning, stacklevel=1)
    assert as_record(caught[0]) == {
        "type": "warning",
        "category": "FutureWarning",
        "message": "Detected call",
        "file": "test_observations.py",
    }


def test_floats_differ_in_the_last_bit() -> None:
    assert as_record(0.1 + 0.2) != as_record(0.3)
    assert as_record(-0.0) != as_record(0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_a_large_tensor_is_written_by_digest_and_summary(dtype: torch.dtype) -> None:
    tensor = torch.arange(LISTED_ELEMENTS + 1).to(dtype)
    record = as_record(tensor)
    assert record["shape"] == [LISTED_ELEMENTS + 1]
    assert record["summary"]["max"]["value"] == f"{float(LISTED_ELEMENTS)}"
    tensor[7] = 9
    assert as_record(tensor)["sha256"] != record["sha256"]


def test_what_has_no_record_is_refused() -> None:
    with pytest.raises(TypeError, match="no record for an observation of type object"):
        as_record(object())


def test_a_name_is_observed_once_in_a_test() -> None:
    observe = Observe({}, keep=True)
    observe("floor", 1.0)
    with pytest.raises(ValueError, match="'floor' is observed twice in one test"):
        observe("floor", 1.0)


def test_the_fixture_takes_what_a_violation_shows_and_drops_it(suite: Suite) -> None:
    suite.write(
        """
@rule("DBL-01", "double(x) is twice x.", kind="contract", source=SOURCE,
      subject=double, violated_by=[triple])
def test_twice(double, observe):
    observe("of one", double(1))
    assert double(1) == 2
"""
    )
    suite.run("--ledger", "run.json").assert_outcomes(passed=2)
    tests = json.loads((suite.path / "run.json").read_text())["rules"]["DBL-01"]["tests"]
    assert {test["role"]: test["observations"] for test in tests.values()} == {
        "subject": {"of one": 2},
        "violation": {},
    }
