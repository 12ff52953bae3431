"""What else can be logged: learning rates, gradients and parameters, checkpoints.

At the end you know how often LearningRateMonitor and watch() log, and what log_model keeps of an
offline run.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specs.harness import raising, rule, spec
from specs.harness.optional import optional

callbacks = optional("pytorch_lightning.callbacks")
exceptions = optional("pytorch_lightning.utilities.exceptions")
loggers = optional("pytorch_lightning.loggers")
modules = optional("reference.lightning_modules")
pl = optional("pytorch_lightning")
runs = optional("reference.wandb_runs")
wandb = optional("wandb")

LOGGER = (
    "https://lightning.ai/docs/pytorch/stable/extensions/generated/"
    "lightning.pytorch.loggers.WandbLogger.html"
)
MONITOR = (
    "https://lightning.ai/docs/pytorch/stable/api/"
    "lightning.pytorch.callbacks.LearningRateMonitor.html"
)


# The learning rate


class MonitorOfTheFirstRate(callbacks.LearningRateMonitor):
    """Logs the first learning rate again and again."""

    def _extract_stats(self, trainer: Any, interval: str) -> dict[str, float]:
        stats = super()._extract_stats(trainer, interval)
        return dict.fromkeys(stats, 0.2)


class MonitorOfEachStep(callbacks.LearningRateMonitor):
    """Logs at each step unless it is told otherwise."""

    def __init__(self, logging_interval: str | None = None) -> None:
        super().__init__(logging_interval or "step")


class MonitorOfEpochs(callbacks.LearningRateMonitor):
    """Logs at the start of an epoch only, whatever it is told."""

    def __init__(self, logging_interval: str | None = None) -> None:
        super().__init__("epoch")


@rule(
    "WB-15",
    "LearningRateMonitor logs the learning rate, as lr-<optimizer>, as often as the scheduler"
    ' steps, or at every logged step with logging_interval="step".',
    kind="contract",
    source=MONITOR,
    subject=callbacks.LearningRateMonitor,
    violated_by=[MonitorOfTheFirstRate, MonitorOfEachStep],
)
def test_the_rate_is_logged_at_the_interval_of_the_scheduler(
    LearningRateMonitor: Callable[..., Any], tmp_path: Path
) -> None:
    """DigitsClassifier divides its rate by 10 after two epochs: its interval is an epoch."""
    rates = logged_rates(LearningRateMonitor(), tmp_path)

    assert rates == pytest.approx({0: 0.2, 2: 0.2, 4: 0.02})


@spec("WB-15", violated_by=[MonitorOfTheFirstRate, MonitorOfEpochs])
def test_the_rate_of_each_step_is_logged_on_demand(
    LearningRateMonitor: Callable[..., Any], tmp_path: Path
) -> None:
    """The rate is the one that the update at this step uses."""
    rates = logged_rates(LearningRateMonitor(logging_interval="step"), tmp_path)

    assert rates == pytest.approx({0: 0.2, 1: 0.2, 2: 0.2, 3: 0.2, 4: 0.02, 5: 0.02})


def logged_rates(monitor: Any, directory: Path) -> dict[int, float]:
    """The learning rates in the history, by the Trainer's step, of three epochs of two batches."""
    logger = loggers.WandbLogger(offline=True, save_dir=directory)
    options = {"max_epochs": 3, "limit_train_batches": 2, "limit_val_batches": 0}
    trainer = pl.Trainer(
        **modules.quiet(log_every_n_steps=1, logger=logger, callbacks=[monitor], **options)
    )
    trainer.fit(modules.DigitsClassifier(lr=0.2))
    wandb.finish()
    [saved] = runs.finished_runs(directory)
    return {row["trainer/global_step"]: row["lr-SGD"] for row in saved.history if "lr-SGD" in row}


# Gradients and parameters


class LoggerThatWatchesGradients(loggers.WandbLogger):
    """Watches gradients, whatever it is told to watch."""

    def watch(self, model: Any, log: str = "gradients", log_freq: int = 100) -> None:
        super().watch(model, log="gradients", log_freq=log_freq)


class LoggerThatWatchesEachStep(loggers.WandbLogger):
    """Does not wait for log_freq batches."""

    def watch(self, model: Any, log: str = "gradients", log_freq: int = 100) -> None:
        super().watch(model, log=log, log_freq=1)


@rule(
    "WB-16",
    'watch(module, log="all", log_freq=n) puts histograms of gradients and parameters into every'
    " n-th row of steps.",
    kind="contract",
    source=LOGGER,
    subject=loggers.WandbLogger,
    violated_by=[LoggerThatWatchesGradients, LoggerThatWatchesEachStep],
)
def test_watch_logs_gradients_and_parameters_at_its_frequency(
    WandbLogger: Callable[..., Any], tmp_path: Path
) -> None:
    """They join the row that the Trainer logs next, so that they are on the same axis."""
    module = modules.DigitsClassifier()
    logger = WandbLogger(offline=True, save_dir=tmp_path)
    logger.watch(module, log="all", log_freq=2)
    options = {"max_steps": 4, "limit_val_batches": 0, "log_every_n_steps": 1}
    trainer = pl.Trainer(**modules.quiet(logger=logger, **options))
    trainer.fit(module)
    wandb.finish()

    [saved] = runs.finished_runs(tmp_path)
    weights = {name for name, _ in module.named_parameters()}
    for part in ("gradients/", "parameters/"):
        watched = [
            # Every further module that is watched in a process has its number in its names.
            {re.sub(rf"{part}(graph_\d+)?", "", name) for name in row if name.startswith(part)}
            for row in saved.history
            if "train_loss_step" in row
        ]
        assert watched == [set(), weights, set(), weights]


# Checkpoints


class LoggerThatForgetsModels(loggers.WandbLogger):
    """Logs no checkpoint, whatever it is told."""

    def __init__(self, log_model: bool | str = False, **options: Any) -> None:
        del log_model
        super().__init__(**options)


@rule(
    "WB-05",
    "WandbLogger refuses offline=True together with log_model; offline by WANDB_MODE it keeps the"
    " checkpoints for `wandb sync`.",
    kind="contract",
    source=LOGGER,
    subject=loggers.WandbLogger,
    violated_by=[LoggerThatForgetsModels],
)
@pytest.mark.parametrize("log_model", [True, "all"])
def test_offline_and_log_model_are_refused_together(
    WandbLogger: Callable[..., Any], log_model: bool | str
) -> None:
    """The refusal comes while the logger is made, before there is a run."""
    with pytest.raises(exceptions.MisconfigurationException, match="invalid configuration"):
        WandbLogger(offline=True, log_model=log_model)

    assert wandb.run is None


def logger_that_refuses(log_model: bool, **options: Any) -> Any:
    """Takes a run that is offline by its settings for one that was made with offline=True."""
    return loggers.WandbLogger(offline=True, log_model=log_model, **options)


@spec(
    "WB-05",
    violated_by=[
        LoggerThatForgetsModels,
        raising(exceptions.MisconfigurationException, logger_that_refuses),
    ],
)
def test_offline_by_the_settings_keeps_the_checkpoint(
    WandbLogger: Callable[..., Any], tmp_path: Path
) -> None:
    """WANDB_MODE is "offline" here: the checkpoint becomes an artifact of the run's file."""
    logger = WandbLogger(log_model=True, save_dir=tmp_path)
    trainer = pl.Trainer(
        **modules.quiet(max_steps=2, limit_val_batches=0, logger=logger, enable_checkpointing=True)
    )
    trainer.fit(modules.DigitsClassifier())
    wandb.finish()

    [saved] = runs.finished_runs(tmp_path)
    assert [(artifact.name, artifact.type, artifact.files) for artifact in saved.artifacts] == [
        (f"model-{saved.id}", "model", ["model.ckpt"])
    ]
