"""The record of a run: what each test reported, gathered into a verdict for each rule.

Tests may run in other processes. What is recorded of them therefore travels in their reports.
"""

from __future__ import annotations

import platform
import re
import sys
import time
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from specs.harness.collection import JUDGED
from specs.harness.observations import OBSERVED
from specs.harness.signatures import published_signature
from specs.harness.state import DREW

#: The attribute of a report that carries what the record needs.
CARRIED = "rulebook"

#: What is carried of a rule beside its id.
ABOUT_A_RULE = ("statement", "kind", "source", "chapter", "claimed")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach to the report which rule it is about and what the spec observed."""
    report = yield
    judged = item.stash.get(JUDGED, None)
    if judged is not None:
        rule = judged.rule
        carried = {
            "id": rule.id,
            "statement": rule.statement,
            "kind": rule.kind,
            "source": rule.source,
            "chapter": judged.chapter,
            "claimed": rule.verdict,
            "role": "subject" if judged.violation is None else "violation",
            "observations": item.stash.get(OBSERVED, {}) if report.when == "call" else {},
            "signatures": {},
            "random": item.stash.get(DREW, False),
        }
        if judged.violation is None and report.when == "call":
            signature = published_signature(judged.target)
            own_name = getattr(judged.target, "__name__", judged.parameter)
            # One parameter may stand for several subjects, such as all optimizers in turn.
            name = judged.parameter + ("" if own_name == judged.parameter else f" ({own_name})")
            carried["signatures"] = {} if signature is None else {name: signature}
        setattr(report, CARRIED, carried)
    return report


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Name the rule in JUnit's properties."""
    judged = item.stash.get(JUDGED, None)
    if judged is not None:
        item.user_properties.append(("rule", judged.rule.id))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In an xdist worker: tell the process that reports about the machine, as torch sees it."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output[CARRIED] = machine_facts()


def machine_facts() -> dict[str, Any]:
    """Facts about the machine and the torch build that observed numbers may depend on."""
    facts: dict[str, Any] = {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processor": processor(),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        blas = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
        facts |= {
            "torch_build": f"cuda {torch.version.cuda}" if torch.version.cuda else "cpu",
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "blas": blas[1] if blas else None,
            "threads": torch.get_num_threads(),
        }
    return facts


def processor() -> str:
    """The processor's name, as its maker calls it where the system tells."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


@dataclass
class TestRecord:
    """What became of one test item."""

    __test__ = False

    outcome: str = "not run"
    #: Why it was skipped or is expected to fail; how it failed.
    reason: str = ""
    seconds: float = 0.0
    role: str | None = None
    observations: dict[str, Any] = field(default_factory=dict)
    #: Whether it drew from torch's global random generator.
    random: bool = False


@dataclass
class RuleRecord:
    """What became of one rule: its tests by node id, and from them its verdict."""

    id: str
    statement: str
    kind: str
    source: str
    chapter: str
    claimed: str | None
    tests: dict[str, TestRecord] = field(default_factory=dict)
    #: Parameters and defaults of the public functions and classes that were judged, by name.
    signatures: dict[str, str] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """failed, skipped or known bug; else held, or a claim's own verdict.

        A rule failed if any of its tests did: also if it accepted a violation. It is skipped if no
        subject was judged, and not finished if a test of it did not run.
        """
        outcomes = {test.outcome for test in self.tests.values()}
        judged = {test.outcome for test in self.tests.values() if test.role == "subject"}
        if outcomes & {"failed", "error"}:
            return "failed"
        if "not run" in outcomes:
            return "not finished"
        if judged <= {"skipped"}:
            return "skipped"
        if "xfailed" in judged:
            return "known bug"
        return self.claimed or "held"

    @property
    def short_verdict(self) -> str:
        """The verdict as a word or two, to count by: a claim's condition is left out."""
        verdict = self.verdict
        return "holds under a condition" if verdict.startswith("holds if") else verdict


class RunRecord:
    """A pytest plugin of the process that reports: gathers every test's reports."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.rules: dict[str, RuleRecord] = {}
        #: Every test that reported, by node id; a rule's tests stand under the rule as well.
        self.tests: dict[str, TestRecord] = {}
        self.collected: list[str] = []
        self._machine: dict[str, Any] = {}

    @property
    def machine(self) -> dict[str, Any]:
        """Facts about the machine, from the workers if they did the work."""
        return self._machine or machine_facts()

    @property
    def others(self) -> dict[str, TestRecord]:
        """Tests that belong to no rule, by node id."""
        of_rules = {id for rule in self.rules.values() for id in rule.tests}
        return {id: test for id, test in self.tests.items() if id not in of_rules}

    @property
    def not_run(self) -> list[str]:
        """Node ids of the tests that were collected but did not report: after `-x`, or a crash."""
        return sorted(id for id in self.collected if id not in self.tests)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note what is to run; with xdist the workers collect, and this finds nothing."""
        if session.items:
            self.collected = [item.nodeid for item in session.items]

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        """Note what is to run: every xdist worker collects the same."""
        self.collected = list(ids)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Keep what an xdist worker told about the machine."""
        self._machine = getattr(node, "workeroutput", {}).get(CARRIED, self._machine)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add one phase (setup, call, teardown) of one test."""
        test = self.tests.setdefault(report.nodeid, TestRecord())
        carried = getattr(report, CARRIED, None)
        if carried is not None:
            id = carried["id"]
            if id not in self.rules:
                self.rules[id] = RuleRecord(id, **{key: carried[key] for key in ABOUT_A_RULE})
            self.rules[id].tests[report.nodeid] = test
            self.rules[id].signatures.update(carried["signatures"])
            test.role = carried["role"]
            test.observations.update(carried["observations"])
            test.random = carried["random"]
        test.seconds += report.duration
        outcome = _outcome(report)
        if outcome is not None:
            test.outcome, test.reason = outcome, _reason(report)


def _outcome(report: pytest.TestReport) -> str | None:
    """The test's outcome as far as this phase decides it."""
    if report.failed:
        return "failed" if report.when == "call" else "error"
    if report.skipped:
        return "xfailed" if hasattr(report, "wasxfail") else "skipped"
    return "passed" if report.when == "call" else None


def _reason(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return str(report.wasxfail).removeprefix("reason: ")
    if report.skipped and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        lines = str(getattr(crash, "message", report.longrepr)).strip().splitlines()
        return lines[0] if lines else ""
    return ""
