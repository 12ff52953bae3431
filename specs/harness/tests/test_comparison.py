"""Two ledgers side by side: each change is found once, in its class, under its rule."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch

from specs.harness.comparison import Change, compare, parameters_that_differ
from specs.harness.observations import as_record
from specs.harness.version import VERSION

TEST = "specs/a/test_a.py::test_doubling[torch]"

Ledger = dict[str, Any]


def rule(observed: Any = None, **changes: Any) -> Ledger:
    """The record of a rule with one test and one observation, "seen"."""
    test = {"role": "subject", "outcome": "passed", "reason": ""}
    return {
        "statement": "double(x) is twice x.",
        "kind": "contract",
        "chapter": "a",
        "source": "https://example.org",
        "verdict": "held",
        "signatures": {},
        "tests": {TEST: {**test, "observations": {"seen": as_record(observed)}}},
    } | changes


def ledger(**rules: Ledger) -> Ledger:
    """A ledger of these rules; DBL_01 stands for DBL-01."""
    return {
        "schema": "torch-rulebook/ledger",
        "schema_version": 1,
        "suite": VERSION,
        "versions": {"python": "3.12.1", "torch": "2.13.0"},
        "machine": {"torch_build": "cpu"},
        "devices": ["cpu"],
        "subject": None,
        "complete": True,
        "rules": {name.replace("_", "-"): one for name, one in rules.items()},
        "other_tests": {},
        "not_run": [],
        "drew": [],
        "seconds": {"total": 1.0, "rules": {}, "tests": {}},
    }


def changes(old: Any, new: Any) -> list[tuple[str, str, str]]:
    """Class, old and new of what differs between two observations."""
    found = compare(ledger(DBL_01=rule(old)), ledger(DBL_01=rule(new))).changes
    assert all(one.rules == ("DBL-01",) for one in found)
    return [(one.kind, one.old, one.new) for one in found]


def warning(category: type[Warning], message: str, file: str = "lr_scheduler.py") -> Any:
    return warnings.WarningMessage(category(message), category, f"/site/{file}", 1)


class Unlikely(ValueError):
    pass


@pytest.mark.parametrize(
    ("old", "new", "change"),
    [
        (1.0, 1.5, ("behaviour", "1.0", "1.5")),
        (1, 2, ("behaviour", "1", "2")),
        (1, 1.0, ("behaviour", "1", "1.0")),
        ("cpu", "cuda", ("behaviour", "cpu", "cuda")),
        (None, ValueError("no"), ("behaviour", "None", "ValueError: no")),
        (ValueError("no"), None, ("behaviour", "ValueError: no", "None")),
        (ValueError("no"), Unlikely("no"), ("behaviour", "ValueError", "Unlikely")),
        (ValueError("no"), ValueError("never"), ("text", "no", "never")),
        (["zero", "step"], ["step", "zero"], ("behaviour", "zero", "step")),
        ([1.0], [1.0, 2.0], ("behaviour", "[1.0]", "[1.0, 2.0]")),
        (torch.ones(2), torch.ones(2).double(), ("behaviour", "torch.float32", "torch.float64")),
        (torch.ones(2), torch.ones(1, 2), ("behaviour", "[2]", "[1, 2]")),
        (torch.tensor([1, 2]), torch.tensor([2, 1]), ("behaviour", "[1, 2]", "[2, 1]")),
        (
            warning(UserWarning, "soon"),
            warning(FutureWarning, "soon"),
            ("warning", "UserWarning", "FutureWarning"),
        ),
        (warning(UserWarning, "soon"), None, ("warning", "UserWarning: soon", "None")),
        ([warning(UserWarning, "soon")], [], ("warning", "[UserWarning: soon]", "[]")),
        (
            warning(UserWarning, "soon"),
            warning(UserWarning, "soon", "training.py"),
            ("warning", "lr_scheduler.py", "training.py"),
        ),
        (warning(UserWarning, "soon"), warning(UserWarning, "now"), ("text", "soon", "now")),
    ],
)
def test_a_change_has_a_class(old: Any, new: Any, change: tuple[str, str, str]) -> None:
    assert change in changes(old, new)
    assert changes(old, copy.copy(old)) == []


def test_rounding_is_measured_in_ulps() -> None:
    old = torch.tensor([1.0, 2.0])
    new = old + torch.tensor([2.0**-23, 0.0])
    (found,) = compare(ledger(DBL_01=rule(old)), ledger(DBL_01=rule(new))).changes
    assert found.kind == "rounding"
    assert found.ulps == pytest.approx(1.0, rel=1e-6)


def test_the_worst_element_of_a_tensor_is_shown_with_its_place() -> None:
    old, new = ledger(DBL_01=rule(torch.zeros(9))), ledger(DBL_01=rule(torch.zeros(9)))
    new["rules"]["DBL-01"] = rule(torch.tensor([0.0, 0.1, 0.0, 0.7, 0.0, 0.0, 0.0, 0.0, 0.0]))
    (found,) = compare(old, new).changes
    assert found.where == "test_doubling[torch]: seen[3]"
    assert (found.old, found.new) == ("0.0", repr(torch.tensor(0.7).item()))


def test_a_large_tensor_is_compared_by_its_summary() -> None:
    numbers = torch.rand(1000)
    assert changes(numbers, numbers.clone()) == []
    assert {kind for kind, _, _ in changes(numbers, numbers * (1 + 2.0**-22))} == {"rounding"}
    assert "behaviour" in {kind for kind, _, _ in changes(numbers, numbers.flip(0))}
    order = torch.randperm(1000)
    assert {kind for kind, _, _ in changes(order, order.flip(0))} == {"behaviour"}


def test_an_observation_that_appears_or_vanishes_is_behaviour() -> None:
    old, new = rule(1), rule(1)
    new["tests"][TEST]["observations"] = {"other": 2}
    found = compare(ledger(DBL_01=old), ledger(DBL_01=new)).changes
    assert [(one.where, one.old, one.new) for one in found] == [
        ("test_doubling[torch]: seen", "1", "(absent)"),
        ("test_doubling[torch]: other", "(absent)", "2"),
    ]


def test_a_failed_test_is_a_verdict_and_not_a_lost_observation() -> None:
    failed = rule(verdict="failed")
    failed["tests"][TEST] |= {"outcome": "failed", "reason": "assert 3 == 2", "observations": {}}
    (found,) = compare(ledger(DBL_01=rule(1)), ledger(DBL_01=failed)).changes
    assert (found.kind, found.where, found.old) == ("verdict", "", "held")
    assert found.new == "failed (test_doubling[torch]: assert 3 == 2)"


def test_a_test_that_is_skipped_now_is_a_verdict_and_the_reverse_is_not() -> None:
    skipped = rule()
    skipped["tests"][TEST] |= {"outcome": "skipped", "reason": "needs it", "observations": {}}
    held, lost = ledger(DBL_01=rule(1)), ledger(DBL_01=skipped)
    (found,) = compare(held, lost).changes
    assert (found.kind, found.old, found.new) == ("verdict", "passed", "skipped (needs it)")
    gained = compare(lost, held)
    assert gained.changes == []
    assert gained.not_compared == ["skipped before: needs it (DBL-01)"]


def test_a_changed_default_is_shown_once_for_all_rules_that_judge_the_function() -> None:
    old = {"double": "(x, factor=2, *, out=None)"}
    new = {"double": "(x, factor=3, *, out=None, dtype=None)"}
    before = ledger(DBL_01=rule(signatures=old), DBL_02=rule(signatures=old))
    after = ledger(DBL_01=rule(signatures=new), DBL_02=rule(signatures=new))
    (found,) = compare(before, after).changes
    assert found == Change(
        "signature",
        ("DBL-01", "DBL-02"),
        "these rules judge double",
        "double",
        "factor=2",
        "factor=3, dtype=None",
    )


def test_parameters_are_cut_at_commas_outside_brackets_and_quotes() -> None:
    old, new = "(a=(1, 2), b='x, y', c=[])", "(a=(1, 3), b='x, y', c=[])"
    assert parameters_that_differ(old, new) == ("a=(1, 2)", "a=(1, 3)")
    assert parameters_that_differ("(a, b)", "(b, a)") == ("(a, b)", "(b, a)")


def test_values_that_depend_on_the_machine_are_compared_between_alike_machines() -> None:
    def observed(value: Any, build: str) -> Ledger:
        depending = {"type": "depending", "depends_on": "torch_build", "value": value}
        one = rule()
        one["tests"][TEST]["observations"]["seen"] = depending
        return ledger(DBL_01=one) | {"machine": {"torch_build": build}}

    apart = compare(observed("cpu", "cpu"), observed("cuda", "cuda 13.2"))
    assert apart.changes == []
    assert apart.not_compared == [
        "test_doubling[torch]: seen: depends on torch_build, and the ledgers differ in that"
    ]
    alike = compare(observed("cuda", "cuda 12.6"), observed("cpu", "cuda 13.2"))
    assert [one.kind for one in alike.changes] == ["behaviour"]


def test_numbers_of_rules_that_draw_may_follow_from_a_moved_stream() -> None:
    old = ledger(SEED_02=rule(0.1), DBL_01=rule(0.5), DBL_02=rule(0.5))
    new = ledger(SEED_02=rule(0.2), DBL_01=rule(0.6), DBL_02=rule(0.6))
    drawing = TEST.replace("doubling", "drawing")
    for one in (old, new):
        tests = one["rules"]["DBL-01"]["tests"]
        tests[drawing] = tests.pop(TEST)
        one["drew"] = [drawing]
    found = compare(old, new)
    assert [one.rules for one in found.of("behaviour")] == [("SEED-02",), ("DBL-02",)]
    assert [one.rules for one in found.following] == [("DBL-01",)]
    del old["rules"]["SEED-02"]
    assert compare(old, new).following == []


def test_a_subject_that_moved_to_another_module_is_still_the_same() -> None:
    old, new = rule(1), rule(2)
    new["tests"] = {TEST.replace("torch", "torch_next"): new["tests"][TEST]}
    (found,) = compare(ledger(DBL_01=old), ledger(DBL_01=new)).changes
    assert (found.old, found.new) == ("1", "2")


def test_what_ran_only_once_is_named() -> None:
    more = rule(1)
    more["tests"][TEST.replace("doubling", "more")] = more["tests"][TEST]
    old = ledger(DBL_01=rule(1), DBL_02=rule(1)) | {"not_run": ["one", "two"]}
    found = compare(old, ledger(DBL_01=more, DBL_03=rule(1)))
    assert found.changes == []
    assert found.not_compared == [
        "the old run is not complete: 2 tests did not run",
        "only in the old ledger: DBL-02",
        "only in the new ledger: DBL-03",
        "DBL-01: test_more[torch] ran only in the new ledger",
    ]
    back = compare(ledger(DBL_01=more), ledger(DBL_01=rule(1)))
    assert back.not_compared == ["DBL-01: test_more[torch] ran only in the old ledger"]


def test_the_gravest_come_first() -> None:
    old = ledger(DBL_01=rule(ValueError("a")), DBL_02=rule(1), DBL_03=rule(1, verdict="held"))
    new = ledger(DBL_01=rule(ValueError("b")), DBL_02=rule(2), DBL_03=rule(1, verdict="failed"))
    kinds = [one.kind for one in compare(old, new).changes]
    assert kinds == ["verdict", "behaviour", "text"]
