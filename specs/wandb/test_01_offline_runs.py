"""Runs without a server: offline, disabled, and online without a key.

At the end you know what W&B does on a machine that has neither network nor key, when the choice of
the mode comes too late, and at which moment a run is safe on the disk.
"""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from specs.harness import raising, rule, spec
from specs.harness.optional import optional
from specs.wandb.network import RefusingProxy

errors = optional("wandb.errors")
loggers = optional("pytorch_lightning.loggers")
runs = optional("reference.wandb_runs")
wandb = optional("wandb")

MODES = "https://docs.wandb.ai/models/ref/python/functions/init"
VARIABLES = "https://docs.wandb.ai/models/track/environment-variables"
LOGGER = (
    "https://lightning.ai/docs/pytorch/stable/extensions/generated/"
    "lightning.pytorch.loggers.WandbLogger.html"
)


# Disabled, and online without a key


def init_that_writes_nevertheless(**options: Any) -> Any:
    """Takes the mode "disabled" for "offline"."""
    return wandb.init(**{**options, "mode": "offline"})


def init_that_forgets_at_once(**options: Any) -> Any:
    """Gives a disabled run whose log does nothing at all."""
    run = wandb.init(**options)
    run.log = lambda *_, **__: None
    return run


@rule(
    "WB-04",
    "WANDB_MODE=disabled makes runs that can be used and write nothing; an online run without a key"
    " fails at once when nobody can be asked for it.",
    kind="contract",
    source=MODES,
    subject=wandb.init,
    violated_by=[init_that_writes_nevertheless, init_that_forgets_at_once],
    consequence="A job on a cluster that lacks the key ends at wandb.init() with a UsageError,"
    " before the first batch.",
)
@pytest.mark.usefixtures("new_process")
def test_a_disabled_run_takes_everything_and_writes_nothing(
    init: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code that logs stays as it is; config and summary work, in memory only."""
    monkeypatch.setenv("WANDB_MODE", "disabled")

    run = init(project="digits", config={"lr": 0.1})
    run.log({"loss": 2.0})
    run.log({"loss": 1.0})

    assert run.disabled
    assert run.config["lr"] == 0.1
    assert run.summary.get("loss") == 1.0
    run.finish()
    assert runs.runs_in(tmp_path) == []


def init_that_goes_offline_without_a_key(**options: Any) -> Any:
    """Writes offline, and lets everybody believe that the run is online."""
    return wandb.init(**{**options, "mode": "offline"})


@spec("WB-04", violated_by=[init_that_goes_offline_without_a_key])
@pytest.mark.usefixtures("new_process")
def test_online_without_a_key_is_an_error(
    init: Callable[..., Any], proxy: RefusingProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key is looked for in WANDB_API_KEY and in the netrc file; no server is asked."""
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(sys, "stdin", io.StringIO())  # nobody there who could type a key

    with pytest.raises(errors.UsageError):
        init(project="digits")

    assert wandb.run is None
    assert proxy.requests == []
    assert runs.runs_in(tmp_path) == []


def init_that_fails_for_another_reason(**options: Any) -> Any:
    """Says nothing of a key."""
    raise errors.UsageError(f"No project configured: {options}")


@spec("WB-04", violated_by=[init_that_fails_for_another_reason])
@pytest.mark.usefixtures("new_process")
def test_the_message_names_the_key(
    init: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """wandb 0.23.1 changed its words; both begin with what is missing."""
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(sys, "stdin", io.StringIO())

    with pytest.raises(errors.UsageError, match=r"^(No API key configured|api_key not configured)"):
        init(project="digits")


@spec("WB-04", violated_by=[init_that_writes_nevertheless])
def test_the_mode_can_be_an_argument(init: Callable[..., Any], tmp_path: Path) -> None:
    """It goes before the variable, which says "offline" here."""
    run = init(mode="disabled")

    assert run.disabled
    run.finish()
    assert runs.runs_in(tmp_path) == []


# Offline


def init_that_drops_what_is_logged(**options: Any) -> Any:
    """Writes the run, and no history."""
    run = wandb.init(**options)
    run.log = lambda *_, **__: None
    return run


@rule(
    "WB-01",
    "An offline run needs neither network nor key; what it logs is written below WANDB_DIR.",
    kind="contract",
    source=MODES,
    subject=wandb.init,
    violated_by=[init_that_drops_what_is_logged, init_that_forgets_at_once],
)
def test_an_offline_run_is_a_file_of_its_own(init: Callable[..., Any], tmp_path: Path) -> None:
    """The file wandb/offline-run-TIME-ID/run-ID.wandb holds all that a server would be sent."""
    run = init(project="digits", config={"lr": 0.1})
    run.log({"loss": 2.0})
    run.log({"loss": 1.0})
    run.finish()

    [saved] = runs.finished_runs(tmp_path)
    [file] = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert file.parent.name.endswith(f"-{run.id}")
    assert file.name == f"run-{run.id}.wandb"
    assert (saved.id, saved.project, saved.mode) == (run.id, "digits", "offline")
    assert saved.config == {"lr": 0.1}
    assert saved.history == [{"_step": 0, "loss": 2.0}, {"_step": 1, "loss": 1.0}]
    assert saved.summary == {"_step": 1, "loss": 1.0}


def init_that_calls_home(**options: Any) -> Any:
    """Asks the server for news first, and goes on if there is none."""
    with suppress(OSError):
        urllib.request.urlopen("http://api.wandb.ai/news", timeout=1)
    return wandb.init(**options)


def init_that_lets_another_process_call_home(**options: Any) -> Any:
    """Does the same from a process of its own, as the service could."""
    call = "import urllib.request; urllib.request.urlopen('http://api.wandb.ai/', timeout=1)"
    subprocess.run([sys.executable, "-S", "-c", call], check=False, stderr=subprocess.DEVNULL)
    return wandb.init(**options)


@spec("WB-01", violated_by=[init_that_calls_home, init_that_lets_another_process_call_home])
def test_nothing_leaves_the_machine(
    init: Callable[..., Any],
    proxy: RefusingProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor does the service: the proxy that it was told to use is asked for nothing.

    This process itself may talk to its service only: over a local socket, or over loopback.
    """
    connect = socket.socket.connect
    elsewhere = []

    def connect_to_this_machine_only(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] != "127.0.0.1":
            elsewhere.append(address)
            raise OSError("there is no network")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_to_this_machine_only)

    run = init(project="digits")
    run.log({"loss": 1.0})
    run.finish()

    assert [saved.history for saved in runs.finished_runs(tmp_path)] == [[{"_step": 0, "loss": 1}]]
    assert elsewhere == []
    assert proxy.requests == []


class LoggerThatIgnoresOffline(loggers.WandbLogger):
    """Takes the argument and does nothing with it."""

    def __init__(self, offline: bool = False, **options: Any) -> None:
        super().__init__(**options)


@spec(
    "WB-01",
    subject=loggers.WandbLogger,
    violated_by=[raising(errors.UsageError, LoggerThatIgnoresOffline)],
)
@pytest.mark.usefixtures("new_process")
def test_wandb_logger_has_a_switch_for_it(
    WandbLogger: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning's logger goes offline with offline=True; without it there is no key here."""
    monkeypatch.delenv("WANDB_MODE")
    logger = WandbLogger(project="digits", offline=True, save_dir=tmp_path)
    logger.log_metrics({"loss": 1.0}, step=0)
    wandb.finish()

    [saved] = runs.finished_runs(tmp_path)
    assert saved.mode == "offline"
    assert saved.history == [{"_step": 0, "loss": 1.0, "trainer/global_step": 0}]


# Too late


def init_that_reads_the_variables_again(**options: Any) -> Any:
    """Looks at WANDB_PROJECT in each call."""
    return wandb.init(**{"project": os.environ.get("WANDB_PROJECT"), **options})


@rule(
    "WB-13",
    "W&B reads its variables once in a process, at the first run: what is set later is ignored.",
    kind="contract",
    source=VARIABLES,
    subject=wandb.init,
    violated_by=[init_that_reads_the_variables_again],
    consequence="WandbLogger(offline=True) sets WANDB_MODE. After the first run of the process it"
    " has no effect: without a key the next run fails, and with a key it is online.",
)
def test_a_variable_that_is_set_later_is_ignored(
    init: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arguments of wandb.init are for what differs between the runs of one process."""
    monkeypatch.setenv("WANDB_PROJECT", "from the variable")
    init().finish()
    init(project="from the argument").finish()

    no_name, argument = runs.finished_runs(tmp_path)
    assert no_name.project != "from the variable"
    assert argument.project == "from the argument"


class LoggerThatPassesTheMode(loggers.WandbLogger):
    """Hands the mode to wandb.init as an argument, which is never too late."""

    def __init__(self, offline: bool = False, **options: Any) -> None:
        super().__init__(mode="offline" if offline else "online", **options)


@spec("WB-13", subject=loggers.WandbLogger, violated_by=[LoggerThatPassesTheMode])
def test_offline_of_wandb_logger_comes_too_late_in_a_process_that_is_online(
    WandbLogger: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run was to be online, so this one is, too, and lacks its key."""
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    wandb.setup(wandb.Settings(mode="online"))

    logger = WandbLogger(offline=True, save_dir=tmp_path)

    with pytest.raises(errors.UsageError):
        logger.log_metrics({"loss": 1.0}, step=0)


def logger_without_the_argument(**options: Any) -> Any:
    """Keeps the mode for itself."""
    del options["mode"]
    return loggers.WandbLogger(**options)


@spec(
    "WB-13",
    subject=loggers.WandbLogger,
    violated_by=[raising(errors.UsageError, logger_without_the_argument)],
)
def test_mode_as_an_argument_is_never_too_late(
    WandbLogger: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WandbLogger hands arguments that it does not know to wandb.init."""
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    wandb.setup(wandb.Settings(mode="online"))

    logger = WandbLogger(mode="offline", save_dir=tmp_path)
    logger.log_metrics({"loss": 1.0}, step=0)
    wandb.finish()

    assert [saved.mode for saved in runs.finished_runs(tmp_path)] == ["offline"]


# When a run is safe


def finish_that_waits_for_the_end_of_the_process(exit_code: int | None = None) -> None:
    """Leaves the run open."""


def finish_that_hides_failure(exit_code: int | None = None) -> None:
    """Always reports success."""
    del exit_code
    wandb.finish()


def finish_that_reports_failure(exit_code: int | None = None) -> None:
    """Reports failure unless it is told otherwise."""
    wandb.finish(exit_code=1 if exit_code is None else exit_code)


@rule(
    "WB-07",
    "A run is complete on disk once it is finished: all that was logged, and last its exit code.",
    kind="contract",
    source="https://docs.wandb.ai/models/ref/python/functions/finish",
    subject=wandb.finish,
    violated_by=[finish_that_waits_for_the_end_of_the_process, finish_that_reports_failure],
    consequence="Three rows lie in the memory of W&B's service until then: of a process that is"
    " killed before, none of them is left for `wandb sync`.",
)
def test_the_rows_are_on_disk_when_the_run_is_finished(
    finish: Callable[..., Any], tmp_path: Path
) -> None:
    """The service writes blocks of 32 KiB, and what is left when the run ends.

    `wandb sync` sends the records of this file. That a server takes them is not shown here.
    """
    run = wandb.init()
    for loss in (3.0, 2.0, 1.0):
        run.log({"loss": loss})

    [unfinished] = runs.runs_in(tmp_path)
    assert unfinished.history == []
    assert unfinished.exit_code is None

    finish()

    assert wandb.run is None
    [finished] = runs.finished_runs(tmp_path)
    assert [row["loss"] for row in finished.history] == [3.0, 2.0, 1.0]
    assert finished.summary["loss"] == 1.0
    assert finished.exit_code == 0


@spec("WB-07", violated_by=[finish_that_hides_failure])
def test_the_exit_code_says_whether_the_run_failed(
    finish: Callable[..., Any], tmp_path: Path
) -> None:
    """Anything but 0 is shown as failed by W&B's pages."""
    wandb.init()
    finish(exit_code=3)

    assert [saved.exit_code for saved in runs.finished_runs(tmp_path)] == [3]
