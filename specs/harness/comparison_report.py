"""A comparison in words: for the terminal, as Markdown, as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from specs.harness.allowed import Entry
from specs.harness.comparison import BEHAVIOUR, CLASSES, ROUNDING, Change, Comparison, shown
from specs.harness.known_changes import advice

SCHEMA = "torch-rulebook/comparison"
SCHEMA_VERSION = 1

#: Changes of one rule and class that the terminal lists; the reports list all.
LISTED = 4

#: Seconds that a rule takes longer or shorter before the report mentions it.
NOTABLE_SECONDS = 1.0


@dataclass(frozen=True)
class Judgement:
    """A comparison, and which of its changes somebody allowed."""

    comparison: Comparison
    entries: list[Entry]

    @property
    def failing(self) -> list[Change]:
        """The changes that make the run fail: neither rounding, nor allowed, nor mere followers."""
        return [
            change
            for change in self.comparison.changes
            if change.kind != ROUNDING and not change.follows and self.allowing(change) is None
        ]

    @property
    def stale(self) -> list[Entry]:
        """Entries that no change needs any more."""
        return [
            entry
            for entry in self.entries
            if not any(entry.covers(change) for change in self.comparison.changes)
        ]

    def allowing(self, change: Change) -> Entry | None:
        """The entry that allows a change."""
        return next((entry for entry in self.entries if entry.covers(change)), None)

    def releases(self) -> str:
        """The versions that differ: "torch 2.13.0 -> 2.14.1"."""
        old, new = (one["versions"] for one in (self.comparison.old, self.comparison.new))
        differing = [
            f"{name} {old.get(name)} -> {new.get(name)}"
            for name in dict.fromkeys([*new, *old])
            if old.get(name) != new.get(name)
        ]
        return ", ".join(differing) or "the same versions"

    def settings(self) -> str:
        """What else differs: facts about the machine, devices, the judged subject; or ""."""
        old, new = (_settings(one) for one in (self.comparison.old, self.comparison.new))
        return ", ".join(
            f"{name} {old.get(name)} -> {new.get(name)}"
            for name in dict.fromkeys([*new, *old])
            if old.get(name) != new.get(name)
        )


def lines(judgement: Judgement) -> Iterator[str]:
    """The comparison for a terminal."""
    comparison = judgement.comparison
    yield judgement.releases()
    if judgement.settings():
        yield judgement.settings()
    for kind in CLASSES[:-1]:
        changes = comparison.of(kind)
        if changes:
            yield ""
            yield f"{kind}: {_count(len(changes), 'change')}"
        for rules, of_rule in groupby(changes, key=lambda change: change.rules):
            several = list(of_rule)
            yield f"{', '.join(rules)}: {several[0].statement}"
            for change in several[:LISTED]:
                place = f"{change.where}: " if change.where else ""
                yield f"    {place}{shown(change.old)} -> {shown(change.new)}"
            if len(several) > LISTED:
                yield f"    and {len(several) - LISTED} more (--report lists all)"
            yield f"    {_answer(several[0], judgement)}"
    yield ""
    yield from notes(judgement)


def notes(judgement: Judgement) -> Iterator[str]:
    """What never fails a run: rounding, followers, speed, what was not compared or is stale."""
    comparison = judgement.comparison
    rounded = comparison.of(ROUNDING)
    if rounded:
        most = max(change.ulps or 0.0 for change in rounded)
        yield (
            f"rounding: {_count(len(rounded), 'number')} moved, by {most:.3g} ulps at most"
            f" ({_rules(rounded)})"
        )
    following = [change for change in comparison.following if change.kind == BEHAVIOUR]
    if following:
        yield (
            f"random streams moved, which may be why {_count(len(following), 'number')} of rules"
            f" that draw did, too ({_rules(following)})"
        )
    old, new = comparison.old["seconds"], comparison.new["seconds"]
    if old["rules"].keys() == new["rules"].keys():
        both = [(id, old["rules"][id], new["rules"][id]) for id in new["rules"]]
        both.sort(key=lambda one: -abs(one[2] - one[1]))
        notable = [
            f", {id} {before:.1f} -> {after:.1f}"
            for id, before, after in both[:LISTED]
            if abs(after - before) > NOTABLE_SECONDS
        ]
        yield f"seconds: {old['total']:.0f} -> {new['total']:.0f}{''.join(notable)}"
    for line in comparison.not_compared[:LISTED]:
        yield f"not compared: {line}"
    if len(comparison.not_compared) > LISTED:
        yield f"not compared: {len(comparison.not_compared) - LISTED} more (--report FILE.json)"
    for entry in judgement.stale:
        yield f"allowed, but not seen: {entry.rule} {entry.kind}: {entry.reason}"
    failing = judgement.failing
    allowed = sum(
        judgement.allowing(change) is not None and change.kind != ROUNDING
        for change in comparison.changes
    )
    suffix = f", {allowed} allowed" if allowed else ""
    yield (
        f"{_count(len(failing), 'change')} beyond rounding{suffix}"
        if failing
        else (f"nothing changed beyond rounding{suffix}")
    )


def markdown(judgement: Judgement) -> str:
    """The comparison as a page: every change, a table for each class."""
    comparison = judgement.comparison
    parts = [f"# {judgement.releases()}", ""]
    if judgement.settings():
        parts += [f"Beside that: {judgement.settings()}.", ""]
    for kind in CLASSES[:-1]:
        changes = comparison.of(kind)
        if not changes:
            continue
        parts += [f"## {kind.capitalize()}: {_count(len(changes), 'change')}", ""]
        for rules, of_rule in groupby(changes, key=lambda change: change.rules):
            several = list(of_rule)
            parts += [f"**{', '.join(rules)}**: {several[0].statement}", ""]
            parts += [f"What to do: {_answer(several[0], judgement)}.", ""]
            parts += ["| where | old | new |", "|---|---|---|"]
            for change in several:
                cells = (change.where or "the rule", change.old, change.new)
                parts.append(f"| {' | '.join(map(_cell, cells))} |")
            parts.append("")
    parts += ["## Notes", "", *(f"- {line}" for line in notes(judgement)), ""]
    return "\n".join(parts)


def as_json(judgement: Judgement) -> str:
    """The comparison for programs."""
    comparison = judgement.comparison
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "old": _facts(comparison.old),
        "new": _facts(comparison.new),
        "failing": len(judgement.failing),
        "changes": [
            {
                **asdict(change),
                "answer": _answer(change, judgement) if change.kind != ROUNDING else None,
            }
            for change in comparison.changes
        ],
        "not_compared": comparison.not_compared,
        "stale": [entry._asdict() for entry in judgement.stale],
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _settings(ledger: dict[str, Any]) -> dict[str, Any]:
    devices = ", ".join(ledger["devices"])
    return {**ledger["machine"], "devices": devices, "subject": ledger["subject"]}


def _facts(ledger: dict[str, Any]) -> dict[str, Any]:
    return {key: ledger[key] for key in ("suite", "versions", "machine", "devices", "subject")}


def _answer(change: Change, judgement: Judgement) -> str:
    """Why a change is all right, or what to do about it."""
    entry = judgement.allowing(change)
    if entry is not None:
        return f"allowed: {entry.reason}"
    return advice(change, judgement.comparison.old, judgement.comparison.new)


def _rules(changes: Iterable[Change]) -> str:
    return ", ".join(sorted({id for change in changes for id in change.rules}))


def _cell(text: str) -> str:
    escaped = text.replace("|", "\\|").replace("\n", " ")
    return f"`{escaped}`"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
