"""What a training leaves in its log: rows in a file, metrics.csv.

At the end you know how many steps have to pass until one is logged, how the rows of that file are
to be read, and how the learning rate gets into it.

A fit counts its updates from 0, so the row of step 49 tells about update number 50.
"""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader

from specs.harness import rule, spec
from specs.harness.observations import Observe
from specs.harness.optional import optional

pl = optional("pytorch_lightning")
callbacks = optional("pytorch_lightning.callbacks")
exceptions = optional("pytorch_lightning.utilities.exceptions")
loggers = optional("pytorch_lightning.loggers")
modules = optional("reference.lightning_modules")

TRAINER_PAGE = "https://lightning.ai/docs/pytorch/stable/common/trainer.html#log-every-n-steps"
LOGGERS_PAGE = (
    "https://lightning.ai/docs/pytorch/stable/extensions/generated/"
    "lightning.pytorch.loggers.CSVLogger.html"
)
MONITOR_PAGE = (
    "https://lightning.ai/docs/pytorch/stable/api/"
    "lightning.pytorch.callbacks.LearningRateMonitor.html"
)

Row = dict[str, float]


def rows_of(logger: Any) -> list[Row]:
    """The rows of the logger's metrics.csv, each without its empty cells."""
    file = Path(logger.log_dir) / "metrics.csv"
    if not file.exists():  # nothing was logged
        return []
    with file.open() as lines:
        rows = list(csv.DictReader(lines))
    return [{name: float(cell) for name, cell in row.items() if cell != ""} for row in rows]


def column(logger: Any, name: str) -> list[tuple[int, float]]:
    """The cells of one column that are filled, each after its step."""
    return [(int(row["step"]), row[name]) for row in rows_of(logger) if name in row]


def batches(number: int) -> DataLoader[Any]:
    """So many batches of one sample."""
    return DataLoader([0.0] * number)


class LogsItsUpdates(pl.LightningModule):
    """Two weights, and one logged value a batch: the number of updates so far."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.log("updates", float(self.global_step), on_step=True, on_epoch=True)
        return self.weight * 0.0 + self.bias * 0.0

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=1.0)


# --- How many steps a row takes -------------------------------------------------------------------


class LogsEveryStep(pl.Trainer):
    """Leaves no step out."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "log_every_n_steps": 1})


class LogsEvery20Steps(pl.Trainer):
    """Has another interval where none is given."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"log_every_n_steps": 20, **options})


class EachThirdBatch(callbacks.Callback):
    """Has the third batch of an epoch logged, and no other."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        trainer.log_every_n_steps = 1 if batch_idx == 2 else 1000


class StartsAnewInEachEpoch(pl.Trainer):
    """Counts the batches of an epoch, not the updates of the training."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "callbacks": [EachThirdBatch()]})


@rule(
    "PL-13",
    "A step's values reach the loggers after every log_every_n_steps updates, 50 by default: a"
    " training of fewer updates leaves no step in the log.",
    kind="contract",
    source=TRAINER_PAGE,
    subject=pl.Trainer,
    violated_by=[LogsEveryStep, StartsAnewInEachEpoch],
)
def test_every_nth_update_is_logged(Trainer: Any) -> None:
    """The count goes on from epoch to epoch. It is one of updates: with two batches accumulated
    into each, every second batch counts. What an epoch logs does not depend on it."""
    for n, accumulated, steps in [
        (1, 1, [0, 1, 2, 3, 4, 5, 6, 7]),
        (3, 1, [2, 5]),
        (2, 2, [1, 3]),
        (9, 1, []),
    ]:
        logger = loggers.CSVLogger("logs")
        options = {"max_epochs": 2, "log_every_n_steps": n, "accumulate_grad_batches": accumulated}
        Trainer(**modules.quiet(logger=logger, **options)).fit(LogsItsUpdates(), batches(4))
        assert [step for step, _ in column(logger, "updates_step")] == steps, f"n={n}"
        assert len(column(logger, "updates_epoch")) == 2, f"n={n}"


@spec("PL-13", violated_by=[LogsEvery20Steps])
def test_the_default_is_every_fiftieth_update(Trainer: Any) -> None:
    """101 updates leave two rows, of number 50 and of number 100, and the mean of the epoch."""
    logger = loggers.CSVLogger("logs")
    Trainer(**modules.quiet(max_epochs=1, logger=logger)).fit(LogsItsUpdates(), batches(101))
    assert column(logger, "updates_step") == [(49, 49.0), (99, 99.0)]
    assert column(logger, "updates_epoch") == [(100, 50.0)]  # the mean of 0, 1, ..., 100


class SaysNothing(pl.Trainer):
    """Keeps its warnings to itself."""

    def fit(self, *arguments: Any, **options: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            super().fit(*arguments, **options)


@spec("PL-13", violated_by=[SaysNothing])
def test_a_warning_says_that_an_epoch_is_shorter_than_the_interval(Trainer: Any) -> None:
    """It is the only sign: the training goes on, and its log stays without steps."""
    trainer = Trainer(**modules.quiet(max_epochs=1, logger=loggers.CSVLogger("logs")))
    with pytest.warns(UserWarning, match="The number of training batches"):
        trainer.fit(LogsItsUpdates(), batches(4))


@spec("PL-13", violated_by=[LogsEveryStep])
def test_two_epochs_on_the_digits_leave_no_step_in_the_log(Trainer: Any, observe: Observe) -> None:
    """1,200 images in batches of 64 are 19 updates an epoch. The loss of a step is on the progress
    bar, and callbacks see it, but no logger is told."""
    logger = loggers.CSVLogger("logs")
    trainer = Trainer(**modules.quiet(max_epochs=2, logger=logger))
    trainer.fit(modules.DigitsClassifier())
    columns = {name for row in rows_of(logger) for name in row}
    observe("columns", sorted(columns))
    assert columns == {"epoch", "step", "train_loss_epoch", "val_loss", "val_accuracy"}
    assert "train_loss_step" in trainer.progress_bar_metrics
    assert "train_loss_step" in trainer.callback_metrics


# --- A file of rows -------------------------------------------------------------------------------


class KeepsTheFirstColumns(loggers.CSVLogger):
    """Drops what the first row did not have."""

    names: frozenset[str] = frozenset()

    def log_metrics(self, metrics: Row, step: int | None = None) -> None:
        self.names = self.names or frozenset(metrics)
        super().log_metrics({name: metrics[name] for name in metrics if name in self.names}, step)


class CountsRows(loggers.CSVLogger):
    """Numbers its rows instead of the training's steps."""

    rows = 0

    def log_metrics(self, metrics: Row, step: int | None = None) -> None:
        super().log_metrics(metrics, self.rows)
        self.rows += 1


class AlwaysWritesVersion0(loggers.CSVLogger):
    """Writes every run into the same directory."""

    def __init__(self, save_dir: str, name: str) -> None:
        super().__init__(save_dir, name, version=0)


@rule(
    "PL-75",
    "CSVLogger writes metrics.csv, with one row each time that something is logged and empty cells"
    " for all that was not; each run gets a directory of its own, version_0, version_1, ...",
    kind="contract",
    source=LOGGERS_PAGE,
    subject=loggers.CSVLogger,
    violated_by=[KeepsTheFirstColumns, CountsRows],
)
def test_steps_and_epochs_are_rows_of_their_own(CSVLogger: Any, observe: Observe) -> None:
    """So look at a column without its empty cells. The end of an epoch has two rows of the same
    step: first the validation's, then the training's."""
    logger = CSVLogger("logs", name="digits")
    options = {"max_epochs": 2, "limit_train_batches": 4, "log_every_n_steps": 3}
    trainer = pl.Trainer(**modules.quiet(logger=logger, **options))
    trainer.fit(modules.DigitsClassifier())

    rows = rows_of(logger)
    observe("rows", rows)
    assert [(row["step"], row["epoch"], set(row) - {"step", "epoch"}) for row in rows] == [
        (2, 0, {"train_loss_step"}),
        (3, 0, {"val_loss", "val_accuracy"}),
        (3, 0, {"train_loss_epoch"}),
        (5, 1, {"train_loss_step"}),
        (7, 1, {"val_loss", "val_accuracy"}),
        (7, 1, {"train_loss_epoch"}),
    ]


@spec("PL-75", violated_by=[AlwaysWritesVersion0])
def test_a_second_run_does_not_touch_the_first(CSVLogger: Any) -> None:
    """A logger with a version= of its own does: it warns, and deletes the files of that version."""
    first, second = (CSVLogger("logs", name="digits") for _ in range(2))
    for logger, number_of_batches in [(first, 2), (second, 5)]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = pl.Trainer(**modules.quiet(max_epochs=1, logger=logger))
            trainer.fit(LogsItsUpdates(), batches(number_of_batches))
    assert [Path(logger.log_dir).name for logger in (first, second)] == ["version_0", "version_1"]
    assert [column(first, "updates_epoch"), column(second, "updates_epoch")] == [
        [(1, (0 + 1) / 2)],
        [(4, (0 + 1 + 2 + 3 + 4) / 5)],
    ]


# --- The learning rate in the log -----------------------------------------------------------------


class HalvesItsRate(LogsItsUpdates):
    """Starts with 1.0, and halves it after every epoch or every step."""

    def __init__(self, interval: str) -> None:
        super().__init__()
        self.interval = interval
        self.rates_used: list[float] = []

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=1.0)
        schedule = {"scheduler": ExponentialLR(optimizer, 0.5), "interval": self.interval}
        return [optimizer], [schedule]

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.rates_used.append(optimizer.param_groups[0]["lr"])


class LogsTheRateAfterwards(callbacks.LearningRateMonitor):
    """Writes at the end of an epoch or batch what it should have written at its start."""

    def on_train_epoch_start(self, *_: Any, **__: Any) -> None:
        """Not yet."""

    def on_train_batch_start(self, *_: Any, **__: Any) -> None:
        """Not yet."""

    def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
        super().on_train_batch_start(trainer)

    def on_train_epoch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
        super().on_train_epoch_start(trainer)


class GoesByTheScheduler(callbacks.LearningRateMonitor):
    """Has no interval of its own."""

    def __init__(self, logging_interval: str | None = None, **options: Any) -> None:
        super().__init__(None, **options)


# the scheduler's interval, the monitor's, log_every_n_steps, the steps that are logged
INTERVALS: list[tuple[str, str | None, int, list[int]]] = [
    ("epoch", None, 50, [0, 3, 6]),
    ("step", None, 1, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
    ("step", None, 2, [1, 3, 5, 7]),
    ("step", None, 50, []),  # as for every value of a step
    ("step", "epoch", 50, [0, 3, 6]),
    ("epoch", "step", 4, [3, 7]),
]


@rule(
    "PL-72",
    "LearningRateMonitor logs the rate that the update at hand uses: at the start of each epoch,"
    " or before each logged step if the scheduler, or the monitor itself, has interval step.",
    kind="contract",
    source=MONITOR_PAGE,
    subject=callbacks.LearningRateMonitor,
    violated_by=[LogsTheRateAfterwards, GoesByTheScheduler],
)
def test_the_logged_rate_is_the_one_that_is_used(LearningRateMonitor: Any) -> None:
    """A scheduler that steps with every batch is logged like any other step: in a run of fewer
    than 50 updates not at all, unless the monitor is told "epoch"."""
    for scheduler_interval, interval, n, steps in INTERVALS:
        logger, module = loggers.CSVLogger("logs"), HalvesItsRate(scheduler_interval)
        monitor = LearningRateMonitor(logging_interval=interval)
        options = {"max_epochs": 3, "log_every_n_steps": n, "callbacks": [monitor]}
        pl.Trainer(**modules.quiet(logger=logger, **options)).fit(module, batches(3))
        used = [(step, module.rates_used[step]) for step in steps]
        assert column(logger, "lr-SGD") == used, f"{scheduler_interval}, {interval}, {n}"


class DoesWithoutALogger(callbacks.LearningRateMonitor):
    """Stays quiet where there is nothing to write to."""

    def on_train_start(self, trainer: Any, *arguments: Any) -> None:
        if trainer.loggers:
            super().on_train_start(trainer, *arguments)


@spec("PL-72", violated_by=[DoesWithoutALogger])
def test_a_monitor_without_a_logger_is_refused(LearningRateMonitor: Any) -> None:
    """Unlike a Trainer, which trains without a logger as well."""
    trainer = pl.Trainer(**modules.quiet(max_epochs=1, callbacks=[LearningRateMonitor()]))
    with pytest.raises(exceptions.MisconfigurationException, match="Cannot use"):
        trainer.fit(LogsItsUpdates(), batches(1))


class LogsOneRate(callbacks.LearningRateMonitor):
    """Knows nothing of groups."""

    def on_train_epoch_start(self, trainer: Any, *_: Any) -> None:
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        trainer.logger.log_metrics({"lr": rate}, step=trainer.global_step)


class GroupsWithoutNames(LogsItsUpdates):
    """A parameter group for each of the two weights."""

    def configure_optimizers(self) -> Any:
        groups = [{"params": [self.weight], "lr": 0.5}, {"params": [self.bias], "lr": 0.25}]
        return SGD(groups, momentum=0.75, weight_decay=0.125)


class NamedGroups(LogsItsUpdates):
    """The same, with names, and a scheduler with a name of its own."""

    def configure_optimizers(self) -> Any:
        weight = {"params": [self.weight], "lr": 0.5, "name": "weight"}
        bias = {"params": [self.bias], "lr": 0.25, "name": "bias"}
        optimizer = Adam([weight, bias], betas=(0.75, 0.5), weight_decay=0.125)
        schedule = {"scheduler": ExponentialLR(optimizer, 0.5), "name": "rate"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}


@rule(
    "PL-73",
    "LearningRateMonitor calls a rate lr-OPTIMIZER or by the scheduler's name, and adds the"
    " parameter group's number or name where there are several.",
    kind="contract",
    source=MONITOR_PAGE,
    subject=callbacks.LearningRateMonitor,
    violated_by=[LogsOneRate],
)
def test_every_group_has_a_column(LearningRateMonitor: Any) -> None:
    """Momentum (Adam's first beta) and weight decay are added if asked for."""
    for module, weight, bias in [
        (GroupsWithoutNames(), "lr-SGD/pg1", "lr-SGD/pg2"),
        (NamedGroups(), "rate/weight", "rate/bias"),
    ]:
        logger = loggers.CSVLogger("logs")
        monitor = LearningRateMonitor(log_momentum=True, log_weight_decay=True)
        trainer = pl.Trainer(**modules.quiet(max_epochs=1, logger=logger, callbacks=[monitor]))
        trainer.fit(module, batches(1))
        of_the_weight = {weight: 0.5, f"{weight}-momentum": 0.75, f"{weight}-weight_decay": 0.125}
        of_the_bias = {bias: 0.25, f"{bias}-momentum": 0.75, f"{bias}-weight_decay": 0.125}
        assert rows_of(logger)[0] == {"step": 0, **of_the_weight, **of_the_bias}
