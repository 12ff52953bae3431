"""What the project knows about a change, and what it advises where it knows nothing."""

from __future__ import annotations

from typing import Any

import pytest

from specs.harness.comparison import CLASSES, Change
from specs.harness.known_changes import ADVICE, KNOWN, advice, known
from specs.harness.tests.conftest import ROOT
from specs.harness.versions import as_release

CLAMP = Change("behaviour", ("AG-11",), "clamp has a slope.", "test: gradient", "1.0", "0.0")


def release(torch: str | None) -> dict[str, Any]:
    return {"versions": {"torch": torch}}


@pytest.mark.parametrize(
    ("old", "new", "applies"),
    [
        ("2.13.0", "2.14.1", True),
        ("2.9.1", "2.15.0", True),
        ("2.15.0", "2.13.0+cpu", True),
        ("2.14.0", "2.15.0", False),
        ("2.9.1", "2.13.0", False),
        (None, "2.15.0", False),
    ],
)
def test_a_change_is_known_between_the_releases_around_it(
    old: str | None, new: str, applies: bool
) -> None:
    found = known(CLAMP, release(old), release(new))
    assert (found is not None) == applies


def test_what_to_do_names_the_release_if_it_is_known_and_the_rule_if_not() -> None:
    assert advice(CLAMP, release("2.13.0"), release("2.14.0")).startswith("since torch 2.14: ")
    assert "the spec of AG-11" in advice(CLAMP, release("2.14.0"), release("2.15.0"))


def test_every_class_but_rounding_has_advice() -> None:
    assert set(ADVICE) == set(CLASSES) - {"rounding"}


def test_every_known_change_names_rules_of_the_book() -> None:
    specs = "".join(path.read_text() for path in ROOT.glob("specs/*/test_*.py"))
    for one in KNOWN:
        assert as_release(one.since)
        assert set(one.kinds) <= set(CLASSES)
        assert one.advice
        for id in one.rules:
            assert f'"{id}"' in specs
