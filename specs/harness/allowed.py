"""`--allow FILE`: changes that somebody has looked at, each with the reason why it is all right.

One entry a line: the id of a rule, the class of the change, a colon, the reason.

    AG-11 behaviour: since torch 2.14, and no parameter of ours is clamped

Empty lines, and lines that begin with #, say nothing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from specs.harness.comparison import CLASSES, ROUNDING, Change
from specs.harness.rules import ID_FORM

#: The classes that need to be allowed: rounding never fails a run.
ALLOWABLE = tuple(kind for kind in CLASSES if kind != ROUNDING)

ENTRY = re.compile(rf"({ID_FORM.pattern})\s+(\w+)\s*:(.*)")


class Entry(NamedTuple):
    """One allowed kind of change of one rule."""

    rule: str
    kind: str
    reason: str

    def covers(self, change: Change) -> bool:
        """Whether the change is of this kind, and seen by this rule."""
        return change.kind == self.kind and self.rule in change.rules


def read(given: str, start: Path) -> list[Entry]:
    """The entries of a file, in its order.

    Raises pytest.UsageError that names the file, the line, and what was expected.
    """
    try:
        lines = (start / given).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise pytest.UsageError(f"--allow {given}: no such file") from None
    except UnicodeDecodeError:
        raise pytest.UsageError(f"--allow {given}: not a text") from None
    except OSError as error:
        raise pytest.UsageError(f"--allow {given}: {error.strerror}") from None
    entries = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if text and not text.startswith("#"):
            entries.append(_entry(text, f"--allow {given}, line {number}: "))
    return entries


def _entry(text: str, complaint: str) -> Entry:
    found = ENTRY.fullmatch(text)
    if found is None:
        raise pytest.UsageError(f"{complaint}expected RULE CLASS: REASON, got {text!r}")
    rule, kind, reason = found[1], found[2], found[3].strip()
    if kind not in ALLOWABLE:
        raise pytest.UsageError(f"{complaint}{kind!r} is none of {', '.join(ALLOWABLE)}")
    if not reason:
        raise pytest.UsageError(f"{complaint}expected a reason behind the colon")
    return Entry(rule, kind, reason)
