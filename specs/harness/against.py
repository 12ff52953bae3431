"""`--against FILE` and `--compare OLD NEW`: what changed between two runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from specs.harness import allowed, comparison_report, files, ledger, ledger_file
from specs.harness.comparison import compare
from specs.harness.comparison_report import Judgement
from specs.harness.record import RunRecord

#: How a report is written, by the ending of its name.
FORMATS: dict[str, Callable[[Judgement], str]] = {
    ".md": comparison_report.markdown,
    ".json": comparison_report.as_json,
}


class Request(NamedTuple):
    """What was asked for on the command line, checked."""

    old: dict[str, Any]
    entries: list[allowed.Entry]
    reports: list[Path]


def requested(option: argparse.Namespace, start: Path) -> Request | None:
    """The comparison to make after the run, if any.

    Raises pytest.UsageError for whatever cannot be read or written.
    """
    if option.against is None:
        for name in ("allow", "report"):
            if getattr(option, name):
                raise pytest.UsageError(f"--{name}: needs --against or --compare")
        return None
    return _request(option, option.against, "--against", start)


def compare_files(config: pytest.Config) -> int:
    """Compare two ledgers and run nothing; the exit code says whether anything fails."""
    option, start = config.option, config.invocation_params.dir
    if option.against is not None:
        raise pytest.UsageError("--compare: compares two files, and --against a run: choose one")
    request = _request(option, option.compare[0], "--compare", start)
    new = ledger_file.read(option.compare[1], start, "--compare")
    judgement = Judgement(compare(request.old, new), request.entries)
    print(*comparison_report.lines(judgement), sep="\n")
    for path in request.reports:
        files.write(FORMATS[path.suffix](judgement), path)
        print(f"report written to {path}")
    failed = bool(judgement.failing)
    return int(pytest.ExitCode.TESTS_FAILED if failed else pytest.ExitCode.OK)


class Against:
    """A pytest plugin that compares the finished run with an older ledger."""

    def __init__(
        self, request: Request, record: RunRecord, devices: list[str], subject: str | None
    ) -> None:
        self._request = request
        self._record = record
        self._devices = devices
        self._subject = subject
        self._lines: list[str] = []

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Compare, unless the run was interrupted or nothing ran; changes make the run fail."""
        if exitstatus not in ledger.KEPT:
            self._lines = ["not compared: the run did not finish"]
            return
        new = ledger.as_ledger(self._record, self._devices, self._subject)
        judgement = Judgement(compare(self._request.old, new), self._request.entries)
        self._lines = list(comparison_report.lines(judgement))
        for path in self._request.reports:
            try:
                files.write(FORMATS[path.suffix](judgement), path)
            except OSError as error:
                self._lines.append(f"report {path} not written: {error.strerror}")
                session.exitstatus = pytest.ExitCode.USAGE_ERROR
            else:
                self._lines.append(f"report written to {path}")
        if judgement.failing and exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.write_sep("=", "compared with the older ledger")
        for line in self._lines:
            terminalreporter.write_line(line)


def _request(option: argparse.Namespace, old: str, name: str, start: Path) -> Request:
    reports = [files.check_destination("--report", one, start) for one in option.report]
    for given, path in zip(option.report, reports, strict=True):
        if path.suffix not in FORMATS:
            raise pytest.UsageError(
                f"--report {given}: expected a name that ends with .md or .json"
            )
    entries = allowed.read(option.allow, start) if option.allow is not None else []
    return Request(ledger_file.read(old, start, name), entries, reports)
