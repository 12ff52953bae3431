"""Where the values go that save_hyperparameters() keeps.

At the end you know which values land in self.hparams, in the checkpoint and in the logger, when
they get there, and what happens when the module and its data disagree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from specs.harness import raising, rule, spec
from specs.harness.observations import Observe
from specs.harness.optional import optional
from specs.harness.versions import release_of

pl = optional("pytorch_lightning")
callbacks = optional("pytorch_lightning.callbacks")
loggers = optional("pytorch_lightning.loggers")
modules = optional("reference.lightning_modules")

API = "https://lightning.ai/docs/pytorch/stable/common/lightning_module.html#save-hyperparameters"
TRAINER = "https://lightning.ai/docs/pytorch/stable/common/trainer.html"

#: One batch of each kind is enough to see what is logged.
ONE_BATCH = {
    "max_epochs": 1,
    "limit_train_batches": 1,
    "limit_val_batches": 1,
    "limit_test_batches": 1,
}


class Notebook(loggers.Logger):
    """A logger that writes down every set of hyperparameters that it is given, and nothing else."""

    name, version = "notebook", 0

    def __init__(self) -> None:
        super().__init__()
        self.given: list[dict[str, Any]] = []

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        self.given.append(dict(params))

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        pass


# Where they go, and when


class SavesNothing(modules.DigitsClassifier):
    """Has a save_hyperparameters() that does nothing."""

    def save_hyperparameters(self, *names: Any, **options: Any) -> None:
        pass


class LeavesThemOutOfTheCheckpoint(modules.DigitsClassifier):
    """Takes the hyperparameters out of the checkpoint before it is written."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        del checkpoint["hyper_parameters"]


@rule(
    "PL-01",
    "save_hyperparameters() keeps the arguments of __init__ in self.hparams and in every"
    " checkpoint; the Trainer gives them to its loggers each time that fit, validate, test or"
    " predict starts.",
    kind="contract",
    source=API,
    subject=modules.DigitsClassifier,
    violated_by=[SavesNothing, LeavesThemOutOfTheCheckpoint],
)
def test_all_arguments_are_kept_and_written_into_the_checkpoint(
    DigitsClassifier: Callable[..., Any],
) -> None:
    """Those that keep their default are kept, too: a later default does not change an old run."""
    arguments = {"hidden": 8, "dropout": 0.0, "lr": 0.1, "batch_size": 64}

    module = DigitsClassifier(hidden=8, lr=0.1)
    assert dict(module.hparams) == arguments

    trainer = pl.Trainer(**modules.quiet(**ONE_BATCH))
    trainer.fit(module)
    trainer.save_checkpoint("digits.ckpt")
    assert torch.load("digits.ckpt").get("hyper_parameters") == arguments


class SavesWithoutLogging(modules.DigitsClassifier):
    """Keeps its hyperparameters from the logger."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.save_hyperparameters(logger=False)


class SavesAfterTheStart(SavesWithoutLogging):
    """Wants its hyperparameters logged, and says so when the Trainer has done with logging them."""

    def on_train_start(self) -> None:
        self.save_hyperparameters(dict(self.hparams))


class LooksIntoTheNotebook(callbacks.Callback):
    """Notes what the logger has been given before the first batch."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.seen = list(trainer.logger.given)


@spec("PL-01", violated_by=[SavesWithoutLogging, SavesAfterTheStart])
def test_the_logger_gets_them_when_a_run_starts(
    DigitsClassifier: Callable[..., Any], observe: Callable[[str, Any], None]
) -> None:
    """Not when the module is made, and not when the Trainer is made: nobody knows the other yet."""
    notebook, start = Notebook(), LooksIntoTheNotebook()
    module = DigitsClassifier(hidden=8, lr=0.1)
    trainer = pl.Trainer(**modules.quiet(logger=notebook, callbacks=[start], **ONE_BATCH))
    assert notebook.given == []

    trainer.fit(module)
    assert start.seen == [{"hidden": 8, "dropout": 0.0, "lr": 0.1, "batch_size": 64}]
    assert notebook.given == start.seen

    trainer.validate(module, verbose=False)
    assert notebook.given == start.seen * 2
    trainer.test(module, verbose=False)
    assert notebook.given == start.seen * 3
    one_image = TensorDataset(torch.zeros(1, 64), torch.zeros(1))
    trainer.predict(module, DataLoader(one_image, batch_size=1))
    assert notebook.given == start.seen * 4
    observe("given to the logger", notebook.given[-1])


class LogsTheLatestValues(modules.DigitsClassifier):
    """Gives the logger what self.hparams says now."""

    @property
    def hparams_initial(self) -> dict[str, Any]:
        return dict(self.hparams)


@spec("PL-01", violated_by=[LogsTheLatestValues])
def test_a_value_that_changes_later_reaches_the_checkpoint_and_not_the_logger(
    DigitsClassifier: Callable[..., Any],
) -> None:
    """The logger gets a copy from the time of the call; the checkpoint gets self.hparams."""
    notebook, module = Notebook(), DigitsClassifier(hidden=8, lr=0.1)

    module.hparams["lr"] = 0.5
    trainer = pl.Trainer(**modules.quiet(logger=notebook, **ONE_BATCH))
    trainer.fit(module)
    trainer.save_checkpoint("digits.ckpt")

    assert notebook.given[0]["lr"] == 0.1
    assert torch.load("digits.ckpt")["hyper_parameters"]["lr"] == 0.5


class IgnoresAutolog(pl.Trainer):
    """Takes enable_autolog_hparams and does nothing with it."""

    def __init__(self, *, enable_autolog_hparams: bool = True, **options: Any) -> None:
        super().__init__(**options)


@spec("PL-01", subject=pl.Trainer, violated_by=[IgnoresAutolog])
def test_a_trainer_can_keep_them_from_its_loggers(
    Trainer: Callable[..., Any], observe: Observe
) -> None:
    """Since Lightning 2.6.0; an older Trainer does not know the option."""
    notebook = Notebook()
    options = modules.quiet(logger=notebook, **ONE_BATCH)

    known = release_of("pytorch-lightning") >= (2, 6)
    observe("Trainer has enable_autolog_hparams", known)
    if not known:
        with pytest.raises(TypeError, match="enable_autolog_hparams"):
            Trainer(enable_autolog_hparams=False, **options)
        return

    Trainer(enable_autolog_hparams=False, **options).fit(modules.DigitsClassifier(hidden=8))
    assert notebook.given == []


class HasNoLogger(pl.Trainer):
    """Drops the logger that it is given."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options | {"logger": False})


class AlwaysLogs(pl.Trainer):
    """Logs the hyperparameters of every module, asked or not."""

    def fit(self, module: Any) -> None:
        for logger in self.loggers:
            logger.log_hyperparams(module.hparams)
        module.save_hyperparameters({}, logger=False)  # once is enough
        super().fit(module)


@rule(
    "CLAIM-21",
    "save_hyperparameters() logs the hyperparameters to W&B.",
    kind="claim",
    verdict="holds if the Trainer has a WandbLogger, a run starts, and neither logger=False nor"
    " enable_autolog_hparams=False was given",
    source="https://docs.wandb.ai/guides/integrations/lightning/",
    subject=pl.Trainer,
    violated_by=[HasNoLogger, AlwaysLogs],
)
def test_it_takes_a_trainer_with_a_logger_and_a_run_that_starts(
    Trainer: Callable[..., Any],
) -> None:
    """The call itself only notes the values. Any logger shows it; WandbLogger is one of them."""
    notebook = Notebook()
    saved = modules.DigitsClassifier(hidden=8)
    saved_quietly = SavesWithoutLogging(hidden=8)

    with_notebook = [Trainer(**modules.quiet(logger=notebook, **ONE_BATCH)) for _ in range(2)]
    assert notebook.given == []

    Trainer(**modules.quiet(logger=False, **ONE_BATCH)).fit(saved)
    assert notebook.given == []

    with_notebook[0].fit(saved_quietly)
    assert notebook.given == []

    with_notebook[1].fit(saved)
    assert notebook.given == [dict(saved.hparams)]


# Module and data


class BlankImages(pl.LightningDataModule):
    """Black images of a zero, in a datamodule: hyperparameters can be saved there, too."""

    def __init__(self, batch_size: int, images: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self) -> DataLoader[Any]:
        images = self.hparams["images"]
        blank = TensorDataset(torch.zeros(images, 64), torch.zeros(images, dtype=torch.long))
        return DataLoader(blank, batch_size=self.hparams["batch_size"])


class LetsTheDataWin(pl.Trainer):
    """Logs the hyperparameters of the datamodule only."""

    def fit(self, module: Any, datamodule: Any) -> None:
        module.save_hyperparameters({}, logger=False)
        super().fit(module, datamodule=datamodule)


@rule(
    "PL-54",
    "The logger gets the hyperparameters of module and datamodule as one dictionary; a name that"
    " has two values in them is a RuntimeError.",
    kind="contract",
    source=API,
    subject=pl.Trainer,
    violated_by=[LetsTheDataWin],
)
def test_module_and_datamodule_must_agree(Trainer: Callable[..., Any]) -> None:
    """Which of the two batch sizes was trained with, the logger could not tell."""
    notebook = Notebook()

    def trainer() -> Any:
        return Trainer(**modules.quiet(max_epochs=1, limit_val_batches=0, logger=notebook))

    module = modules.DigitsClassifier(hidden=8, batch_size=4)
    trainer().fit(module, datamodule=BlankImages(batch_size=4))
    assert notebook.given == [{**module.hparams, "images": 4}]

    with pytest.raises(RuntimeError, match="Error while merging hparams: the keys"):
        trainer().fit(module, datamodule=BlankImages(batch_size=2))


class AlwaysCompares(pl.Trainer):
    """Compares the batch sizes, also where nothing is logged."""

    def fit(self, module: Any, datamodule: Any) -> None:
        if module.hparams["batch_size"] != datamodule.hparams["batch_size"]:
            raise RuntimeError("two batch sizes")


@spec("PL-54", violated_by=[raising(RuntimeError, AlwaysCompares)])
def test_without_a_logger_nobody_compares(Trainer: Callable[..., Any]) -> None:
    """They are compared when they are merged for a logger. The datamodule's loader is used."""
    trainer = Trainer(**modules.quiet(max_epochs=1, limit_val_batches=0))
    module = modules.DigitsClassifier(hidden=8, batch_size=4)
    trainer.fit(module, datamodule=BlankImages(batch_size=2))

    assert trainer.global_step == 4 / 2
