"""Several runs in one process.

At the end you know what a second training logs to when the first run was not finished, what
wandb.init does about an open run, and why `with` and an absolute directory are worth their letters.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specs.harness import raising, rule, spec
from specs.harness.optional import optional
from specs.harness.versions import release_of

errors = optional("wandb.errors")
loggers = optional("pytorch_lightning.loggers")
modules = optional("reference.lightning_modules")
pl = optional("pytorch_lightning")
runs = optional("reference.wandb_runs")
wandb = optional("wandb")

INIT = "https://docs.wandb.ai/models/ref/python/functions/init"
FINISH = "https://docs.wandb.ai/models/ref/python/functions/finish"
LOGGER = (
    "https://lightning.ai/docs/pytorch/stable/extensions/generated/"
    "lightning.pytorch.loggers.WandbLogger.html"
)

#: Three updates, each of which logs its loss.
THREE_STEPS = {"max_steps": 3, "limit_val_batches": 0, "log_every_n_steps": 1}


# Two trainings


def train_with_each_rate(rates: list[float], directory: Path) -> None:
    """One training after the other, each with a run of its own."""
    for lr in rates:
        logger = loggers.WandbLogger(offline=True, save_dir=directory)
        trainer = pl.Trainer(**modules.quiet(logger=logger, **THREE_STEPS))
        trainer.fit(modules.DigitsClassifier(lr=lr))
        wandb.finish()


def forgets_to_finish(rates: list[float], directory: Path) -> None:
    """Makes a new logger for each training, and leaves the run open."""
    for lr in rates:
        logger = loggers.WandbLogger(offline=True, save_dir=directory)
        trainer = pl.Trainer(**modules.quiet(logger=logger, **THREE_STEPS))
        trainer.fit(modules.DigitsClassifier(lr=lr))
    wandb.finish()


def takes_the_logger_along(rates: list[float], directory: Path) -> None:
    """Uses one logger for all."""
    logger = loggers.WandbLogger(offline=True, save_dir=directory)
    for lr in rates:
        trainer = pl.Trainer(**modules.quiet(logger=logger, **THREE_STEPS))
        trainer.fit(modules.DigitsClassifier(lr=lr))
    wandb.finish()


def losses_of(run: Any) -> list[tuple[int, float]]:
    """The Trainer's step and the loss of each row that has one."""
    return [
        (row["trainer/global_step"], row["train_loss_step"])
        for row in run.history
        if "train_loss_step" in row
    ]


@rule(
    "WB-03",
    "Finish a run before the next one begins in the same process: wandb.finish(). At the end of a"
    " script that happens by itself.",
    kind="practice",
    source=FINISH,
    subject=train_with_each_rate,
    violated_by=[forgets_to_finish, takes_the_logger_along],
    consequence="Two trainings of 3 steps become one run with 6 losses over the steps 0, 1, 2, 0,"
    " 1, 2, whose config names the learning rate of the second one for all of them.",
)
def test_each_training_has_a_run_of_its_own(
    train_with_each_rate: Callable[..., Any], tmp_path: Path, observe: Callable[[str, Any], None]
) -> None:
    """What a run logs is its own config and its own three losses."""
    train_with_each_rate([0.1, 0.2], tmp_path)

    saved = runs.finished_runs(tmp_path)
    assert [run.config["lr"] for run in saved] == [0.1, 0.2]
    for run in saved:
        assert [step for step, _ in losses_of(run)] == [0, 1, 2]
    observe("losses", [[loss for _, loss in losses_of(run)] for run in saved])


def finishes_after_all(rates: list[float], directory: Path) -> None:
    """Forgets nothing."""
    train_with_each_rate(rates, directory)


@spec("WB-03", subject=forgets_to_finish, violated_by=[finishes_after_all])
def test_without_finish_two_trainings_are_mixed_in_one_run(
    forgets_to_finish: Callable[..., Any], tmp_path: Path
) -> None:
    """2 x 3 losses in one history, and one learning rate for both."""
    forgets_to_finish([0.1, 0.2], tmp_path)

    saved = runs.finished_runs(tmp_path)
    assert [run.config["lr"] for run in saved] == [0.2]
    assert [step for step, _ in losses_of(saved[0])] == [0, 1, 2, 0, 1, 2]


class LoggerThatFinishesTheOther(loggers.WandbLogger):
    """Ends an open run before its own begins."""

    @property
    def experiment(self) -> Any:
        if self._experiment is None:
            wandb.finish()
        return super().experiment


@spec("WB-03", subject=loggers.WandbLogger, violated_by=[LoggerThatFinishesTheOther])
def test_a_second_wandb_logger_warns_and_goes_on_with_the_open_run(
    WandbLogger: Callable[..., Any], tmp_path: Path
) -> None:
    """The warning is all that tells; after wandb.finish() there is a new run, and no warning."""
    first = WandbLogger(offline=True, save_dir=tmp_path).experiment
    with pytest.warns(UserWarning, match="There is a wandb run already in progress"):
        second = WandbLogger(offline=True, save_dir=tmp_path).experiment
    assert second.id == first.id

    wandb.finish()
    third = WandbLogger(offline=True, save_dir=tmp_path).experiment
    assert third.id != first.id


# What wandb.init does about an open run


def init_that_always_creates(**options: Any) -> Any:
    """Leaves an open run alone and makes another one."""
    return wandb.init(**{**options, "reinit": "create_new"})


def init_that_always_finishes(**options: Any) -> Any:
    """Ends an open run."""
    return wandb.init(**{**options, "reinit": "finish_previous"})


def init_that_always_returns(**options: Any) -> Any:
    """Gives an open run back."""
    return wandb.init(**{**options, "reinit": "return_previous"})


@rule(
    "WB-17",
    'While a run is open wandb.init gives it back; reinit="finish_previous" ends it first, and'
    ' "create_new" opens another one beside it.',
    kind="contract",
    source=INIT,
    subject=wandb.init,
    violated_by=[init_that_always_creates, init_that_always_finishes],
)
def test_a_second_init_gives_the_open_run_back(init: Callable[..., Any], tmp_path: Path) -> None:
    """Its arguments are ignored: project and config are those of the first call."""
    first = init(project="first", config={"lr": 0.1})
    second = init(project="second", config={"lr": 0.2})

    assert second is first
    first.finish()
    assert [(run.project, run.config) for run in runs.finished_runs(tmp_path)] == [
        ("first", {"lr": 0.1})
    ]


@spec("WB-17", violated_by=[init_that_always_creates, init_that_always_returns])
def test_finish_previous_ends_the_open_run(init: Callable[..., Any], tmp_path: Path) -> None:
    """The first run is complete, and takes no further row."""
    first = init()
    first.log({"loss": 2.0})
    second = init(reinit="finish_previous")
    second.log({"loss": 1.0})

    assert wandb.run is second
    with pytest.raises(errors.UsageError, match="is finished"):
        first.log({"loss": 0.0})
    second.finish()
    saved = runs.finished_runs(tmp_path)
    assert [run.id for run in saved] == [first.id, second.id]
    assert [run.summary["loss"] for run in saved] == [2.0, 1.0]
    assert [run.exit_code for run in saved] == [0, 0]


@spec(
    "WB-17",
    violated_by=[init_that_always_returns, init_that_always_finishes],
)
def test_create_new_keeps_both_open(init: Callable[..., Any], tmp_path: Path) -> None:
    """Each takes its own rows; wandb.run and wandb.log stay with the first one.

    wandb.init() gives back the run that was opened last.
    """
    first = init()
    second = init(reinit="create_new")
    assert second is not first
    assert wandb.run is first
    assert init() is second
    second.log({"loss": 2.0})
    first.log({"loss": 1.0})
    wandb.log({"loss": 0.5})
    second.finish()
    first.finish()

    saved = runs.finished_runs(tmp_path)
    losses = {run.id: [row["loss"] for row in run.history] for run in saved}
    assert losses == {first.id: [1.0, 0.5], second.id: [2.0]}


# with


def init_whose_with_does_nothing(**options: Any) -> Any:
    """Leaves the run open at the end of the block."""
    return Block(wandb.init(**options), at_the_end=lambda run: run)


def init_whose_with_hides_failure(**options: Any) -> Any:
    """Reports success, whatever happened in the block."""
    return Block(wandb.init(**options), at_the_end=lambda run: run.finish())


class Block:
    """A run with another end of its `with`."""

    def __init__(self, run: Any, at_the_end: Callable[[Any], object]) -> None:
        self.run, self.at_the_end = run, at_the_end

    def __enter__(self) -> Any:
        return self.run

    def __exit__(self, *_: object) -> None:
        self.at_the_end(self.run)


@rule(
    "WB-18",
    "`with wandb.init() as run:` finishes the run at the end of the block, as failed if the block"
    " ends by an exception.",
    kind="contract",
    source=INIT,
    subject=wandb.init,
    violated_by=[init_whose_with_does_nothing, init_whose_with_hides_failure],
    consequence="A run that is left open by an exception takes the rows of the next training in"
    " the same process (WB-03).",
)
def test_with_finishes_the_run_also_after_an_exception(
    init: Callable[..., Any], tmp_path: Path
) -> None:
    """What was logged before the exception is kept; the exception itself goes on."""
    with init() as run:
        run.log({"loss": 2.0})
    assert wandb.run is None

    with pytest.raises(ZeroDivisionError):
        divides_by_zero(init)
    assert wandb.run is None

    saved = runs.finished_runs(tmp_path)
    assert [run.summary["loss"] for run in saved] == [2.0, 1.0]
    assert [run.exit_code for run in saved] == [0, 1]


def divides_by_zero(init: Callable[..., Any]) -> None:
    """Logs one loss, and fails at the next."""
    with init() as run:
        run.log({"loss": 1.0})
        run.log({"loss": 1 / 0})


# The directory


def logs_to_an_absolute_directory(directory: Path, loss: float) -> None:
    """Says where the run is to be written, from the root on."""
    logger = loggers.WandbLogger(offline=True, save_dir=directory.resolve())
    logger.log_metrics({"loss": loss}, step=0)
    wandb.finish()


def logs_to_the_working_directory(directory: Path, loss: float) -> None:
    """Leaves save_dir at ".", since the program is in the right directory already."""
    assert directory == Path.cwd()
    logger = loggers.WandbLogger(offline=True)
    logger.log_metrics({"loss": loss}, step=0)
    wandb.finish()


#: The service of wandb 0.22.0 stops when it cannot write; since 0.22.1 it goes on without the file.
LOST = (
    raising(wandb.sdk.mailbox.HandleAbandonedError, logs_to_the_working_directory)
    if release_of("wandb") < (0, 22, 1)
    else logs_to_the_working_directory
)


@rule(
    "WB-19",
    "Give W&B an absolute directory in a process that changes its working directory: the service"
    " stays where it was started.",
    kind="practice",
    source=LOGGER,
    subject=logs_to_an_absolute_directory,
    violated_by=[LOST],
    consequence='WandbLogger\'s save_dir is ".": of two runs from two directories the second one is'
    " not written, and nothing fails (since wandb 0.22.1; 0.22.0 raises an error).",
)
@pytest.mark.usefixtures("new_process")
def test_a_run_is_written_from_any_working_directory(
    logs_to_an_absolute_directory: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So do tools that start each of several jobs in a directory of its own."""
    for loss, name in ((1.0, "first"), (2.0, "second")):
        directory = tmp_path / name
        directory.mkdir()
        monkeypatch.chdir(directory)
        logs_to_an_absolute_directory(directory, loss)

    assert [run.summary["loss"] for run in runs.finished_runs(tmp_path)] == [1.0, 2.0]
