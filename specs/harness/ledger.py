"""`--ledger FILE`: the record of a run as JSON, written whole or not at all."""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path
from typing import Any

import pytest

from specs.harness import files
from specs.harness.record import RunRecord, TestRecord
from specs.harness.version import VERSION
from specs.harness.versions import RECORDED, installed

#: Names the format; the number changes when a reader of the old format would misread the new one.
SCHEMA = "torch-rulebook/ledger"
SCHEMA_VERSION = 1

#: Digits of seconds behind the point: a tenth of a millisecond is more than a clock promises.
DIGITS = 4

#: Runs that ended like this are complete enough to keep; interrupted ones are not.
KEPT = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)


def as_ledger(record: RunRecord, devices: list[str], subject: str | None) -> dict[str, Any]:
    """The ledger of a run. All is reproducible but "seconds", and "drew" in another order."""
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "suite": VERSION,
        "versions": {
            "python": platform.python_version(),
            **{package: installed(package) for package in RECORDED},
        },
        "machine": record.machine,
        "devices": devices,
        "subject": subject,
        "complete": not record.not_run,
        "rules": {
            id: {
                "statement": rule.statement,
                "kind": rule.kind,
                "chapter": rule.chapter,
                "source": rule.source,
                "verdict": rule.verdict,
                "signatures": dict(sorted(rule.signatures.items())),
                "tests": {
                    nodeid: {"role": test.role, **_test_entry(test)}
                    for nodeid, test in sorted(rule.tests.items())
                },
            }
            for id, rule in sorted(record.rules.items())
        },
        "other_tests": {
            nodeid: _test_entry(test) for nodeid, test in sorted(record.others.items())
        },
        "not_run": record.not_run,
        "drew": sorted(nodeid for nodeid, test in record.tests.items() if test.random),
        "seconds": {
            "total": round(time.perf_counter() - record.started, DIGITS),
            "rules": {
                id: round(sum(test.seconds for test in rule.tests.values()), DIGITS)
                for id, rule in sorted(record.rules.items())
            },
            "tests": {
                nodeid: round(test.seconds, DIGITS) for nodeid, test in sorted(record.tests.items())
            },
        },
    }


def write(ledger: dict[str, Any], path: Path) -> None:
    """Write a ledger, whole or not at all. Raises OSError if the disk refuses."""
    text = json.dumps(ledger, indent=1, ensure_ascii=False, allow_nan=False)
    files.write(text + "\n", path)


class LedgerWriter:
    """A pytest plugin that writes the ledger when the run ends, and says that it did."""

    def __init__(
        self, path: Path, record: RunRecord, devices: list[str], subject: str | None
    ) -> None:
        self._path = path
        self._record = record
        self._devices = devices
        self._subject = subject
        self._message = ""

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write, unless the run was interrupted or nothing ran."""
        if exitstatus not in KEPT:
            self._message = f"ledger {self._path} not written: the run did not finish"
            return
        try:
            write(as_ledger(self._record, self._devices, self._subject), self._path)
        except OSError as error:
            self._message = f"ledger {self._path} not written: {error.strerror}"
            session.exitstatus = pytest.ExitCode.USAGE_ERROR
        else:
            self._message = f"ledger written to {self._path}"

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.write_line(self._message)


def _test_entry(test: TestRecord) -> dict[str, Any]:
    return {"outcome": test.outcome, "reason": test.reason, "observations": test.observations}
