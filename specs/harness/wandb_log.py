"""`--wandb`: a run of the suite as a run of Weights & Biases.

What wandb does happens in a process of its own, after the last test: a wandb that is absent,
refuses or hangs costs one line, and never the verdict. The specs that use wandb are not disturbed
either.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from specs.harness import ledger
from specs.harness.record import RunRecord

ROOT = Path(__file__).parents[2]

#: Seconds that wandb may take in all: offline it needs two or three, online it depends.
TIME_LIMIT = 120.0

#: What is logged of a benchmark, in seconds but for the last two.
FIGURES = ("min", "median", "mean", "max", "stddev", "iqr", "ops", "rounds")


def check_project(option: Any) -> None:
    """Refuse a project that nothing is logged to, or that has no name."""
    if option.wandb_project is None:
        return
    if not option.wandb:
        raise pytest.UsageError(f"--wandb-project {option.wandb_project}: needs --wandb")
    if not option.wandb_project.strip():
        raise pytest.UsageError("--wandb-project: expected a name")


class WandbLog:
    """A pytest plugin that logs the finished run, and says where or why not."""

    def __init__(self, config: pytest.Config, record: RunRecord, devices: list[str]) -> None:
        self._option = config.option
        self._arguments = [str(argument) for argument in config.invocation_params.args]
        self._directory = config.invocation_params.dir
        self._record = record
        self._devices = devices
        self._benchmarks: list[dict[str, Any]] = []
        self._message = ""
        #: As on the user's shell: specs change the environment while they run.
        self._environment = dict(os.environ)

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_group_stats(self, benchmarks: list[dict[str, Any]]) -> None:
        """Note the figures of pytest-benchmark, which asks here how to group them."""
        self._benchmarks = [
            {key: benchmark.get(key) for key in ("fullname", "group", *FIGURES)}
            for benchmark in benchmarks
        ]

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Hand the run to wandb, unless it was interrupted or nothing ran."""
        if exitstatus not in ledger.KEPT:
            self._message = "not logged to W&B: the run did not finish"
            return
        with tempfile.TemporaryDirectory(prefix="rulebook-wandb-") as directory:
            contents = ledger.as_ledger(self._record, self._devices, self._option.subject)
            ledger.write(contents, Path(directory) / "ledger.json")
            payload = json.dumps(self._payload(contents, int(exitstatus)))
            (Path(directory) / "payload.json").write_text(payload)
            self._message = self._hand_over(directory)

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        warns = self._message.startswith("warning")
        terminalreporter.write_line(self._message, yellow=warns)

    def _payload(self, contents: dict[str, Any], exitstatus: int) -> dict[str, Any]:
        """What is logged beside the ledger: settings of the run, counts, and tables."""
        rules = contents["rules"]
        seconds = contents["seconds"]
        verdicts = Counter(rule.short_verdict for rule in self._record.rules.values())
        outcomes = Counter(test.outcome for test in self._record.tests.values())
        rejected = sum(
            test["role"] == "violation" and test["outcome"] == "passed"
            for rule in rules.values()
            for test in rule["tests"].values()
        )
        kept = ("suite", "versions", "machine", "devices", "subject")
        return {
            "project": self._option.wandb_project,
            "name": f"torch {contents['versions']['torch']} on {', '.join(self._devices)}",
            "exit_status": exitstatus,
            "config": {key: contents[key] for key in kept} | {"arguments": self._arguments},
            "summary": {
                "rules judged": len(rules),
                **{f"verdicts/{verdict}": count for verdict, count in sorted(verdicts.items())},
                **{f"tests/{outcome}": count for outcome, count in sorted(outcomes.items())},
                "violations rejected": rejected,
                "seconds": seconds["total"],
                **{
                    f"benchmarks/{benchmark['fullname']}": benchmark["median"]
                    for benchmark in self._benchmarks
                },
            },
            "rules": [
                [id, *(rule[key] for key in RULE_COLUMNS[1:-1]), seconds["rules"][id]]
                for id, rule in rules.items()
            ],
            "rule_columns": RULE_COLUMNS,
            "benchmarks": [list(benchmark.values()) for benchmark in self._benchmarks],
            "benchmark_columns": ["fullname", "group", *FIGURES],
        }

    def _hand_over(self, directory: str) -> str:
        """Let the other process log what lies in the directory; the line to print."""
        path = os.pathsep.join([str(ROOT), self._environment.get("PYTHONPATH", "")])
        try:
            done = subprocess.run(
                [sys.executable, "-m", "specs.harness.wandb_process", directory],
                cwd=self._directory,
                env=self._environment | {"PYTHONPATH": path.rstrip(os.pathsep)},
                stdin=subprocess.DEVNULL,  # nobody answers if wandb asks for a key
                capture_output=True,
                text=True,
                timeout=TIME_LIMIT,
            )
        except subprocess.TimeoutExpired:
            return f"warning: not logged to W&B: wandb did not finish within {TIME_LIMIT:g} s"
        if done.returncode == 0:
            return f"logged to W&B: {done.stdout.strip().splitlines()[-1]}"
        lines = done.stderr.strip().splitlines()
        reason = lines[-1] if lines else f"wandb ended with exit code {done.returncode}"
        return f"warning: not logged to W&B: {reason}"


#: The columns of the table of rules: keys of the ledger, but for the id and the seconds.
RULE_COLUMNS = ["id", "kind", "chapter", "statement", "verdict", "source", "seconds"]
