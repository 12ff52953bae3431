"""`tox -e upgrade`: one environment and one run for each release, each done once."""

from __future__ import annotations

import json
import subprocess
import venv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from specs.harness import upgrade


@pytest.mark.parametrize(
    ("given", "listed"),
    [
        ("2.13.0", ["torch==2.13.0", "torchvision"]),
        ("2.13.0+cpu", ["torch==2.13.0+cpu", "torchvision"]),
        ("torch==2.14.1,wandb==0.26.1", ["torch==2.14.1", "wandb==0.26.1", "torchvision"]),
        (
            "torch==2.14.1,torchvision==0.29.1",
            ["torch==2.14.1", "torchvision==0.29.1"],
        ),
        ("pytorch-lightning==2.5.5", ["pytorch-lightning==2.5.5"]),
    ],
)
def test_a_version_is_torchs_and_torchvision_comes_along(given: str, listed: list[str]) -> None:
    assert upgrade.packages(given) == listed


@pytest.mark.parametrize("given", ["", "newest", "torch>=2.13", "torch==2.13.0 wandb==0.26.1"])
def test_anything_else_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="neither a version of torch nor package==version"):
        upgrade.packages(given)


class Shell:
    """Stands for the programs that are called: notes them, and writes the ledgers."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.stops_at = "nothing"

    def run(self, command: list[str], **_: Any) -> Any:
        text = " ".join(command)
        what = next(word for word in ("--compare", "--ledger", "install") if word in text)
        self.calls.append(what)
        if self.stops_at == what:
            raise KeyboardInterrupt
        if what == "--ledger":
            Path(command[-1]).write_text(json.dumps({}))
        return SimpleNamespace(returncode=1 if what == "--compare" else 0)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    fake = Shell()
    monkeypatch.setattr(subprocess, "run", fake.run)
    monkeypatch.setattr(upgrade, "GIGABYTES", 0)
    monkeypatch.setattr(venv, "create", lambda path, **_: Path(path).mkdir(exist_ok=True))
    monkeypatch.setattr(upgrade.Release.__init__, "__defaults__", (tmp_path,))
    return fake


RUN_ONE = ["install", "install", "--ledger"]


def test_each_release_is_installed_and_run_and_then_both_are_compared(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    assert upgrade.main(["2.13.0", "2.14.1", "--report", "changes.md"]) == 1
    assert shell.calls == [*RUN_ONE, *RUN_ONE, "--compare"]
    said = capsys.readouterr().out
    assert "torch==2.13.0, torchvision: runs, in a new environment" in said
    assert "GB are free) and about 20 minutes" in said


def test_what_is_done_is_not_done_again(shell: Shell) -> None:
    upgrade.main(["2.13.0", "2.14.1"])
    shell.calls.clear()
    upgrade.main(["2.13.0", "2.15.0"])
    assert shell.calls == [*RUN_ONE, "--compare"]


@pytest.mark.parametrize("stage", ["install", "--ledger"])
def test_an_interrupted_run_goes_on_where_it_stopped(
    shell: Shell, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.stops_at = stage
    assert upgrade.main(["2.13.0", "2.14.1"]) == 2
    assert "the same command goes on from here" in capsys.readouterr().err
    shell.stops_at = "nothing"
    shell.calls.clear()
    upgrade.main(["2.13.0", "2.14.1"])
    first = ["--ledger"] if stage == "--ledger" else RUN_ONE
    assert shell.calls == [*first, *RUN_ONE, "--compare"]


def test_other_specs_run_again(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    upgrade.main(["2.13.0", "2.14.1"])
    shell.calls.clear()
    monkeypatch.setattr(upgrade, "fingerprint", lambda: "of-other-specs")
    upgrade.main(["2.13.0", "2.14.1"])
    assert shell.calls == ["--ledger", "--ledger", "--compare"]


def test_too_small_a_disk_is_said_before_anything_starts(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(upgrade, "GIGABYTES", 10**6)
    assert upgrade.main(["2.13.0", "2.14.1"]) == 4
    assert shell.calls == []
    assert "up to 2000000 are needed" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["2.13.0"], ["--report", "changes.md"]])
def test_two_releases_are_needed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert upgrade.main(arguments) == 4
    assert capsys.readouterr().err == f"{upgrade.USAGE}\n"
