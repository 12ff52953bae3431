"""`--wandb` logs a run to Weights & Biases, and whatever wandb does, the verdict stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reference.wandb_runs import Run, runs_in
from specs.harness import wandb_log
from specs.harness.tests.conftest import HOLDS, Suite
from specs.harness.tests.test_options import HALF, assert_usage_error

FAILS = HOLDS.replace("double(4) == 4 + 4", "double(4) == 9")

BENCHMARKS = """
def test_doubling_is_fast(benchmark):
    assert benchmark(double, 4) == 8
"""


@pytest.fixture(autouse=True)
def no_settings_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where wandb was never used."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


def logged(suite: Suite) -> Run:
    """The one run that was logged."""
    (run,) = runs_in(suite.path / "wandb")
    return run


def fake_wandb(suite: Suite, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Put a module in the place of wandb, for processes that start from now on."""
    directory = suite.path / "fakes"
    directory.mkdir()
    (directory / "wandb.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(directory))


def test_versions_counts_rules_and_the_ledger_are_logged(suite: Suite) -> None:
    suite.write(HOLDS, HALF)
    result = suite.run("--wandb", "--wandb-project", "upgrades", "-n", "2")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(
        ["logged to W&B: */wandb/offline-run-* (send it with: wandb sync *)"]
    )
    run = logged(suite)
    assert run.project == "upgrades"
    assert run.exit_code == 0
    assert run.config["versions"]["pytest"] == pytest.__version__
    assert run.config["devices"] == ["cpu"]
    assert run.config["arguments"][-2:] == ["-n", "2"]
    assert run.summary["rules judged"] == 3
    assert run.summary["verdicts/held"] == 2
    assert run.summary["verdicts/holds under a condition"] == 1
    assert run.summary["tests/passed"] == 6
    assert run.summary["violations rejected"] == 3
    (table,) = (suite.path / "wandb").rglob("rules*.table.json")
    contents = json.loads(table.read_text())
    assert contents["columns"] == wandb_log.RULE_COLUMNS
    assert [row[:3] for row in contents["data"]] == [
        ["CLAIM-01", "claim", "arithmetic"],
        ["DBL-01", "contract", "arithmetic"],
        ["HLF-01", "practice", "arithmetic"],
    ]
    assert [(one.name, one.type, one.files) for one in run.artifacts if one.type == "ledger"] == [
        ("ledger", "ledger", ["ledger.json"])
    ]


def test_a_failed_run_is_logged_as_failed(suite: Suite) -> None:
    suite.write(FAILS)
    assert suite.run("--wandb").ret == pytest.ExitCode.TESTS_FAILED
    run = logged(suite)
    assert run.project == "torch-rulebook"
    assert run.exit_code == 1
    assert run.summary["verdicts/failed"] == 1


def test_figures_of_benchmarks_are_logged(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pytest_benchmark")
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # there it measures nothing
    suite.write(BENCHMARKS)
    suite.run("--wandb").assert_outcomes(passed=1)
    (name,) = (key for key in logged(suite).summary if key.startswith("benchmarks/"))
    assert name == "benchmarks/arithmetic/test_doubling.py::test_doubling_is_fast"
    (table,) = (suite.path / "wandb").rglob("benchmarks*.table.json")
    contents = json.loads(table.read_text())
    (row,) = (dict(zip(contents["columns"], row, strict=True)) for row in contents["data"])
    assert row["fullname"] == name.removeprefix("benchmarks/")
    assert 0 < row["min"] <= row["median"] <= row["max"]
    assert logged(suite).summary[name] == row["median"]


def test_the_users_own_mode_is_kept(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    suite.write(HOLDS)
    result = suite.run("--wandb")
    result.stdout.fnmatch_lines(["logged to W&B: nothing, since your settings of wandb disable it"])
    assert not (suite.path / "wandb").exists()


def test_without_a_key_an_online_run_is_one_warning(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    suite.write(HOLDS)
    result = suite.run("--wandb")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["warning: not logged to W&B: UsageError: No API key configured*"])


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ModuleNotFoundError('gone', name='wandb')", "wandb is not installed"),
        ("raise OSError('no space left')", "OSError: no space left"),
        ("import os; os._exit(11)", "wandb ended with exit code 11"),
        ("import time; time.sleep(60)", "wandb did not finish within 2 s"),
    ],
)
@pytest.mark.parametrize(
    ("rules", "verdict"),
    [(HOLDS, pytest.ExitCode.OK), (FAILS, pytest.ExitCode.TESTS_FAILED)],
    ids=["holds", "fails"],
)
def test_a_wandb_that_is_absent_crashes_or_hangs_costs_one_line(
    suite: Suite,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    reason: str,
    rules: str,
    verdict: pytest.ExitCode,
) -> None:
    monkeypatch.setattr(wandb_log, "TIME_LIMIT", 2.0)
    fake_wandb(suite, monkeypatch, code)
    suite.write(rules)
    result = suite.run("--wandb")
    assert result.ret == verdict
    lines = [line for line in result.outlines if "W&B" in line]
    assert lines == [f"warning: not logged to W&B: {reason}"]


def test_what_runs_nothing_logs_nothing(suite: Suite) -> None:
    suite.write(HOLDS)
    for option in ("--rules", "--collect-only"):
        assert "W&B" not in suite.run("--wandb", option).stdout.str()
    assert not (suite.path / "wandb").exists()


def test_an_interrupted_run_is_not_logged(suite: Suite) -> None:
    suite.write("def test_stops():\n    raise KeyboardInterrupt\n")
    result = suite.run_apart("--wandb")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert not (suite.path / "wandb").exists()


def test_a_project_needs_the_option_and_a_name(suite: Suite) -> None:
    suite.write(HOLDS)
    without = suite.run("--wandb-project", "upgrades")
    assert_usage_error(without, "--wandb-project upgrades: needs --wandb")
    assert_usage_error(
        suite.run("--wandb", "--wandb-project", " "), "--wandb-project: expected a name"
    )
