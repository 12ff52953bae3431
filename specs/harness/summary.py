"""What the terminal says about rules: the table of contents, the cards, the summary."""

from __future__ import annotations

import inspect
import platform
import shutil
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

import pytest

from specs.harness.chapters import place_of
from specs.harness.collection import JUDGED, Judged
from specs.harness.record import RuleRecord, RunRecord
from specs.harness.rules import Rule
from specs.harness.versions import installed

#: Text is wrapped at the terminal's width, but no line is longer than this many characters.
WIDEST = 100

#: The packages whose behaviour the rules state; their releases are printed.
JUDGED_PACKAGES = ("torch", "torchvision", "pytorch-lightning", "wandb")


def print_contents(items: Iterable[pytest.Item], reporter: pytest.TerminalReporter) -> None:
    """`--rules`: id, kind and statement of every collected rule, chapter by chapter."""
    chapters: dict[str, dict[str, Rule]] = defaultdict(dict)
    for judged in _judged(_in_reading_order(items)):
        chapters[judged.chapter][judged.rule.id] = judged.rule
    reporter.ensure_newline()
    kinds: Counter[str] = Counter()
    for chapter, rules in chapters.items():
        reporter.write_sep("-", chapter)
        for rule in rules.values():
            verdict = f" [{rule.verdict}]" if rule.verdict else ""
            reporter.write_line(f"{rule.id:<9} {rule.kind:<8} {rule.statement}{verdict}")
            kinds[rule.kind] += 1
    counted = ", ".join(_count(number, kind) for kind, number in sorted(kinds.items()))
    reporter.write_sep("=", f"{_count(sum(kinds.values()), 'rule')}: {counted or 'none'}")


def print_cards(items: Iterable[pytest.Item], reporter: pytest.TerminalReporter) -> None:
    """`--rule`: what each selected rule says, why, what breaking it costs, where it comes from."""
    shown: set[str] = set()
    for item in _in_reading_order(items):
        judged = item.stash.get(JUDGED, None)
        if judged is None or judged.rule.id in shown:
            continue
        rule = judged.rule
        shown.add(rule.id)
        reporter.ensure_newline()
        reporter.write_sep("-", f"{rule.id} ({rule.kind})")
        reporter.write_line(_wrapped("", rule.statement), bold=True)
        why = inspect.getdoc(getattr(item, "function", None))
        facts = {
            "why": " ".join(why.split("\n\n")[0].split()) if why else None,
            "consequence": rule.consequence,
            "verdict": rule.verdict,
            "source": rule.source,
        }
        for name, fact in facts.items():
            if fact:
                reporter.write_line(_wrapped(f"{name + ':':<13}", fact))


def print_summary(
    record: RunRecord, devices: list[str], subject: str | None, reporter: pytest.TerminalReporter
) -> None:
    """What was judged, which rules held, the claims' verdicts, what was skipped and why."""
    rules = record.rules.values()
    if not rules:
        return
    reporter.write_sep("=", "rulebook")
    versions = {package: installed(package) for package in JUDGED_PACKAGES}
    releases = ", ".join(f"{package} {release}" for package, release in versions.items() if release)
    judged = f"{releases} on {', '.join(devices)}, Python {platform.python_version()}"
    reporter.write_line(judged + (f", judging {subject}" if subject else ""))
    tests = [test for rule in rules for test in rule.tests.values()]
    rejected = sum(test.role == "violation" and test.outcome == "passed" for test in tests)
    held = [rule for rule in rules if rule.verdict == "held"]
    reporter.write_line(
        f"{_count(len(held), 'rule')} held, {_count(rejected, 'violation')} rejected"
    )
    claims = Counter(rule.short_verdict for rule in rules if rule.verdict == rule.claimed)
    if claims:
        counted = ", ".join(f"{number} {verdict}" for verdict, number in sorted(claims.items()))
        reporter.write_line(f"claims: {counted}")
    for line in _exceptions(rules):
        reporter.write_line(line)
    if record.not_run:
        reporter.write_line(f"{_count(len(record.not_run), 'test')} did not run")


def _exceptions(rules: Iterable[RuleRecord]) -> Iterator[str]:
    """A line for each known bug, for each reason to skip, and for each rule that failed."""
    skipped: dict[str, list[str]] = defaultdict(list)
    for rule in rules:
        for test in rule.tests.values():
            if test.outcome == "xfailed" and rule.verdict != "failed":
                yield f"{rule.id}: {test.reason}"
                break
        for reason in {test.reason for test in rule.tests.values() if test.outcome == "skipped"}:
            skipped[reason].append(rule.id)
    for reason, ids in sorted(skipped.items()):
        yield f"skipped: {reason} ({', '.join(sorted(ids))})"
    for rule in rules:
        if rule.verdict in ("failed", "not finished"):
            yield f"{rule.id} {rule.verdict.upper()}: {rule.statement}"


def _in_reading_order(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """As the files are read, also where a plugin shuffled the tests."""
    return sorted(items, key=lambda item: (place_of(item.path), item.location[1] or 0))


def _judged(items: Iterable[pytest.Item]) -> Iterator[Judged]:
    for item in items:
        judged = item.stash.get(JUDGED, None)
        if judged is not None:
            yield judged


def _wrapped(label: str, text: str) -> str:
    """A label and a text beside it, in lines that fit the terminal; an address is never cut."""
    width = min(shutil.get_terminal_size().columns, WIDEST)
    return textwrap.fill(
        text,
        width,
        initial_indent=label,
        subsequent_indent=" " * len(label),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
