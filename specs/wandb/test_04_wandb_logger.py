"""WandbLogger: what Lightning's Trainer sends to W&B.

At the end you know how hyperparameters get into the config, over what the curves are drawn, and why
no step belongs into a log() of your own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from reference import data
from specs.harness import rule, spec
from specs.harness.optional import optional

callbacks = optional("pytorch_lightning.callbacks")
loggers = optional("pytorch_lightning.loggers")
modules = optional("reference.lightning_modules")
pl = optional("pytorch_lightning")
runs = optional("reference.wandb_runs")
wandb = optional("wandb")

LOGGER = (
    "https://lightning.ai/docs/pytorch/stable/extensions/generated/"
    "lightning.pytorch.loggers.WandbLogger.html"
)
GUIDE = "https://docs.wandb.ai/models/integrations/lightning"


def four_batches() -> DataLoader[Any]:
    """The first 64 images of the digits, 16 at a time."""
    images = data.digits()
    return DataLoader(TensorDataset(images.train_inputs[:64], images.train_targets[:64]), 16)


# Hyperparameters


class Linear(pl.LightningModule):
    """10 logits from 64 pixels; what derives from it says what becomes of its arguments."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.layer = nn.Linear(64, 10)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, targets = batch
        return cross_entropy(self.layer(images), targets)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class LinearModule(Linear):
    """Saves its arguments."""

    def __init__(self, lr: float = 0.1, note: str = "first try") -> None:
        super().__init__(lr)
        self.save_hyperparameters()


class KeepsItsArguments(Linear):
    """Has its arguments as attributes only."""

    def __init__(self, lr: float = 0.1, note: str = "first try") -> None:
        super().__init__(lr)
        self.note = note


class SavesForCheckpointsOnly(Linear):
    """Saves its arguments, but not for loggers."""

    def __init__(self, lr: float = 0.1, note: str = "first try") -> None:
        super().__init__(lr)
        self.save_hyperparameters(logger=False)


class SavesAfterTheStart(Linear):
    """Saves its arguments when the Trainer has already sent what there was."""

    def __init__(self, lr: float = 0.1, note: str = "first try") -> None:
        super().__init__(lr)
        self.note = note

    def on_train_start(self) -> None:
        self.save_hyperparameters({"lr": self.lr, "note": self.note})


class ConfigAtTheStart(callbacks.Callback):
    """Notes what the run's config holds before the first batch."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.config = dict(trainer.logger.experiment.config)


@rule(
    "WB-02",
    "A module's arguments reach the config when fit() starts, and only if __init__ calls"
    " save_hyperparameters().",
    kind="practice",
    source=LOGGER,
    subject=LinearModule,
    violated_by=[KeepsItsArguments, SavesForCheckpointsOnly, SavesAfterTheStart],
    consequence="Without the call the config of the run is empty: of a hundred runs none says which"
    " learning rate it had.",
)
def test_the_trainer_sends_saved_arguments_when_fit_starts(
    LinearModule: Callable[..., Any], tmp_path: Path
) -> None:
    """Neither the module nor the Trainer sends anything while it is made."""
    module = LinearModule(lr=0.3)
    logger = loggers.WandbLogger(offline=True, save_dir=tmp_path)
    at_start = ConfigAtTheStart()
    trainer = pl.Trainer(**modules.quiet(max_steps=2, logger=logger, callbacks=[at_start]))
    assert dict(logger.experiment.config) == {}

    trainer.fit(module, four_batches())
    wandb.finish()

    [saved] = runs.finished_runs(tmp_path)
    assert at_start.config == {"lr": 0.3, "note": "first try"}
    assert saved.config == {"lr": 0.3, "note": "first try"}


class SendsArgumentsAgain(LinearModule):
    """Sends its arguments after the training, too."""

    def on_train_end(self) -> None:
        self.logger.log_hyperparams(self.hparams)


@spec("WB-02", violated_by=[SendsArgumentsAgain])
def test_a_later_change_of_hparams_is_not_sent(
    LinearModule: Callable[..., Any], tmp_path: Path
) -> None:
    """The config shows what the module was made with, not what a hook made of it."""
    module = LinearModule(lr=0.3)
    logger = loggers.WandbLogger(offline=True, save_dir=tmp_path)
    trainer = pl.Trainer(**modules.quiet(max_steps=2, logger=logger))

    module.hparams["lr"] = 0.7
    trainer.fit(module, four_batches())
    wandb.finish()

    assert [saved.config["lr"] for saved in runs.finished_runs(tmp_path)] == [0.3]


# Rows and their axis


class LoggerWithoutTheTrainersStep(loggers.WandbLogger):
    """Leaves W&B to count."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        del step
        super().log_metrics(metrics)


class LoggerThatSetsTheStep(loggers.WandbLogger):
    """Gives the Trainer's step to W&B as its own."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.experiment.log(metrics, step=step)


#: Two epochs of two batches, log_every_n_steps=1: the Trainer's step, and what is logged at it.
VALIDATION = {"val_loss", "val_accuracy"}
ROWS = [
    (0, {"train_loss_step"}),
    (1, {"train_loss_step"}),
    (1, VALIDATION),
    (1, {"train_loss_epoch"}),
    (2, {"train_loss_step"}),
    (3, {"train_loss_step"}),
    (3, VALIDATION),
    (3, {"train_loss_epoch"}),
]


@rule(
    "WB-14",
    "WandbLogger draws every curve over trainer/global_step, a column of each row; W&B's own step"
    " counts the rows.",
    kind="contract",
    source=LOGGER,
    subject=loggers.WandbLogger,
    violated_by=[LoggerWithoutTheTrainersStep, LoggerThatSetsTheStep],
    consequence="After two epochs of two batches trainer/global_step is 3 and W&B's step is 7.",
)
def test_each_row_says_at_which_step_of_the_trainer_it_was_logged(
    WandbLogger: Callable[..., Any], tmp_path: Path, observe: Callable[[str, Any], None]
) -> None:
    """A training step, a validation and the mean of an epoch are rows of their own."""
    logger = WandbLogger(offline=True, save_dir=tmp_path)
    trainer = pl.Trainer(
        **modules.quiet(
            max_epochs=2,
            limit_train_batches=2,
            limit_val_batches=1,
            log_every_n_steps=1,
            logger=logger,
        )
    )
    trainer.fit(modules.DigitsClassifier())
    wandb.finish()

    [saved] = runs.finished_runs(tmp_path)
    assert saved.x_axes == {"*": "trainer/global_step"}
    assert [row["_step"] for row in saved.history] == list(range(len(ROWS)))
    assert [row.get("trainer/global_step") for row in saved.history] == [step for step, _ in ROWS]
    columns = [set(row) - {"_step", "trainer/global_step", "epoch"} for row in saved.history]
    assert columns == [logged for _, logged in ROWS]
    assert [row["epoch"] for row in saved.history] == [0] * 4 + [1] * 4
    losses = [row["train_loss_step"] for row in saved.history if "train_loss_step" in row]
    observe("losses", losses)
    means = [row["train_loss_epoch"] for row in saved.history if "train_loss_epoch" in row]
    assert means == pytest.approx([(losses[0] + losses[1]) / 2, (losses[2] + losses[3]) / 2])


class TrainerThatLogsEachStep(pl.Trainer):
    """Ignores log_every_n_steps."""

    def __init__(self, log_every_n_steps: int = 50, **options: Any) -> None:
        del log_every_n_steps
        super().__init__(log_every_n_steps=1, **options)


@spec("WB-14", subject=pl.Trainer, violated_by=[TrainerThatLogsEachStep])
def test_log_every_n_steps_thins_out_the_rows_of_steps(
    Trainer: Callable[..., Any], tmp_path: Path
) -> None:
    """Every second step of six, counted over both epochs; the means of the epochs all arrive."""
    logger = loggers.WandbLogger(offline=True, save_dir=tmp_path)
    options = {"max_epochs": 2, "limit_train_batches": 3, "limit_val_batches": 0}
    trainer = Trainer(**modules.quiet(log_every_n_steps=2, logger=logger, **options))
    trainer.fit(modules.DigitsClassifier())
    wandb.finish()

    [saved] = runs.finished_runs(tmp_path)

    def steps_with(name: str) -> list[int]:
        return [row["trainer/global_step"] for row in saved.history if name in row]

    assert steps_with("train_loss_step") == [1, 3, 5]
    assert steps_with("train_loss_epoch") == [2, 5]


# Own metrics beside the logger


class OwnMetricModule(modules.DigitsClassifier):
    """Logs the perplexity of each batch through the Trainer."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log_perplexity(loss.detach().exp())
        return loss

    def log_perplexity(self, perplexity: Tensor) -> None:
        self.log("perplexity", perplexity)


class PassesTheStep(OwnMetricModule):
    """Logs directly to the run, with the Trainer's step as W&B's."""

    def log_perplexity(self, perplexity: Tensor) -> None:
        self.logger.experiment.log({"perplexity": perplexity}, step=self.global_step)


class LogsRowsOfItsOwn(OwnMetricModule):
    """Logs directly to the run, without any step."""

    def log_perplexity(self, perplexity: Tensor) -> None:
        self.logger.experiment.log({"perplexity": perplexity})


@rule(
    "WB-12",
    "Beside WandbLogger, log with self.log(); never give the run's log() the Trainer's step.",
    kind="practice",
    source=GUIDE,
    subject=OwnMetricModule,
    violated_by=[PassesTheStep, LogsRowsOfItsOwn],
    consequence="Each epoch of four batches brings six rows, so that the Trainer's step falls"
    " behind W&B's: only the 4 values of the first epoch are kept, and none of the later ones."
    " Without a step all are kept, in rows that have no place on the x axis.",
)
def test_a_metric_of_ones_own_is_complete_and_on_the_axis(
    OwnMetricModule: Callable[..., Any], tmp_path: Path
) -> None:
    """Steps that are smaller than W&B's are dropped (WB-06), and no line of the program fails."""
    logger = loggers.WandbLogger(offline=True, save_dir=tmp_path)
    options = {"max_epochs": 2, "limit_train_batches": 4, "limit_val_batches": 1}
    trainer = pl.Trainer(**modules.quiet(log_every_n_steps=1, logger=logger, **options))
    trainer.fit(OwnMetricModule())
    wandb.finish()

    [saved] = runs.finished_runs(tmp_path)
    rows = [row for row in saved.history if "perplexity" in row]
    assert len(rows) == 2 * 4
    assert [row.get("trainer/global_step") for row in rows] == [0, 1, 2, 3, 4, 5, 6, 7]


def perplexities_that_are_kept(module: Any, directory: Path) -> int:
    """How many of the perplexities of three epochs of four batches are left in the run."""
    logger = loggers.WandbLogger(offline=True, save_dir=directory)
    options = {"max_epochs": 3, "limit_train_batches": 4, "limit_val_batches": 1}
    trainer = pl.Trainer(**modules.quiet(log_every_n_steps=1, logger=logger, **options))
    trainer.fit(module)
    wandb.finish()
    [saved] = runs.finished_runs(directory)
    return sum("perplexity" in row for row in saved.history)


class RemembersItsStep(PassesTheStep):
    """Gives W&B a step that it has not reached yet."""

    def log_perplexity(self, perplexity: Tensor) -> None:
        run = self.logger.experiment
        run.log({"perplexity": perplexity}, step=max(run.step, self.global_step))


@spec("WB-12", subject=PassesTheStep, violated_by=[RemembersItsStep, OwnMetricModule])
def test_with_the_trainers_step_only_the_first_epoch_is_kept(
    PassesTheStep: Callable[..., Any], tmp_path: Path
) -> None:
    """4 of 12: what the mistake costs, as long as W&B drops rows and Lightning adds some."""
    assert perplexities_that_are_kept(PassesTheStep(), tmp_path) == 4
