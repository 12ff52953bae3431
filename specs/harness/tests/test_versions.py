"""Releases as numbers that compare."""

from __future__ import annotations

import pytest

from specs.harness import versions


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("2.6.1", (2, 6, 1)),
        ("2.10.0a0+git1", (2, 10, 0)),
        ("2.5.0.post0", (2, 5, 0)),
        ("0.31", (0, 31)),
        (None, ()),
    ],
)
def test_a_release_is_its_leading_numbers(
    monkeypatch: pytest.MonkeyPatch, text: str | None, release: tuple[int, ...]
) -> None:
    monkeypatch.setattr(versions, "installed", lambda _: text)
    assert versions.release_of("anything") == release


def test_an_absent_package_is_older_than_any_release() -> None:
    assert versions.release_of("no-such-package") < (0, 1)
