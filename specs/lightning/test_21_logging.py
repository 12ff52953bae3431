"""self.log: one line that decides which numbers of a training are kept, and where.

At the end you know what that line writes in each step, how Lightning averages an epoch, which
numbers it refuses, and who sees them. How they arrive in a file is told in test_22_metrics_csv.py.

The data of most examples are ten samples, eight of 0 and two of 10, in batches of eight and two.
The mean of the samples is 2. The mean of the two batch means, 0 and 10, is 5.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader

from reference import data
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe
from specs.harness.optional import optional

pl = optional("pytorch_lightning")
loggers = optional("pytorch_lightning.loggers")
exceptions = optional("pytorch_lightning.utilities.exceptions")
modules = optional("reference.lightning_modules")

LOGGING_PAGE = "https://lightning.ai/docs/pytorch/stable/extensions/logging.html"

Row = tuple[int, dict[str, float]]


class KeepsRows(loggers.Logger):
    """A logger that keeps what it is given: a step, and the values that belong to it."""

    name, version = "rows", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Row] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        # Lightning adds the number of the epoch, which none of these examples is about.
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        self.rows.append((step, values))

    def log_hyperparams(self, *_: Any) -> None:
        """Not looked at here."""


def ten_samples() -> DataLoader[Any]:
    """Eight times 0, then two times 10."""
    return DataLoader([0.0] * 8 + [10.0] * 2, batch_size=8)


class OneWeight:
    """What a module needs beside its logging: a weight, an optimizer, and steps to be replaced."""

    def setup(self, stage: str) -> None:
        self.weight = nn.Parameter(torch.tensor(1.0))

    def configure_optimizers(self) -> Any:
        return SGD([self.weight], lr=0.1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.weight * 0.0

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Logs nothing."""


def fitted(module: Any, batches: Any, **options: Any) -> Any:
    """The Trainer that has fitted the module for one epoch, with validation on the same batches."""
    settings = {"max_epochs": 1, "log_every_n_steps": 1} | options
    trainer = pl.Trainer(**modules.quiet(**settings))
    trainer.fit(module, batches, batches)
    return trainer


# --- Steps and epochs --------------------------------------------------------------------------


class LogsValidationBatches(pl.LightningModule):
    """Writes every batch of a validation, beside the epoch."""

    in_a_batch = False

    def on_validation_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.in_a_batch = True

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.in_a_batch = False

    def log(self, name: str, value: Any, **options: Any) -> None:
        defaults = {"on_step": True} if self.in_a_batch else {}
        super().log(name, value, **{**defaults, **options})


class AveragesTrainingToo(pl.LightningModule):
    """Writes an epoch's mean, wherever it is called."""

    def log(self, name: str, value: Any, **options: Any) -> None:
        super().log(name, value, **{"on_epoch": True, **options})


class WritesOneOfTheTwo(pl.LightningModule):
    """Forgets the epoch if it is also asked for the steps."""

    def log(self, name: str, value: Any, **options: Any) -> None:
        if options.get("on_step"):
            options["on_epoch"] = False
        super().log(name, value, **options)


class CountsBatches(pl.LightningModule):
    """Gives every batch the same say in the mean, however few samples it has."""

    def log(self, name: str, value: Any, **options: Any) -> None:
        super().log(name, value, **{**options, "batch_size": 1})


@rule(
    "PL-12",
    "self.log writes each step in training_step, and the epoch's mean in validation_step and"
    " test_step; with on_step and on_epoch it writes both, as NAME_step and NAME_epoch. The mean"
    " is one over samples.",
    kind="contract",
    source=LOGGING_PAGE,
    subject=pl.LightningModule,
    violated_by=[LogsValidationBatches, AveragesTrainingToo, WritesOneOfTheTwo, CountsBatches],
)
def test_training_logs_steps_and_validation_logs_the_epoch(
    LightningModule: Any, observe: Observe
) -> None:
    """A step is counted by the optimizer: 0 and 1 here. The hooks at the end of an epoch have one
    value, and write it once. The steps of the validation have a count of their own."""

    class Module(OneWeight, LightningModule):  # type: ignore[misc]
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            self.log("train", batch.mean())
            self.log("train_both", batch.mean(), on_step=True, on_epoch=True)
            return self.weight * 0.0

        def on_train_epoch_end(self) -> None:
            self.log("train_end", 7.0)

        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            self.log("val", batch.mean())
            self.log("val_both", batch.mean(), on_step=True, on_epoch=True)

        def on_validation_epoch_end(self) -> None:
            self.log("val_end", 8.0)

        def test_step(self, batch: Tensor, batch_idx: int) -> None:
            self.log("test", batch.mean())

    logger = KeepsRows()
    module = Module()
    trainer = fitted(module, ten_samples(), logger=logger)
    observe("rows", [[step, values] for step, values in logger.rows])
    assert logger.rows == [
        (0, {"train": 0.0, "train_both_step": 0.0}),
        (1, {"train": 10.0, "train_both_step": 10.0}),
        (0, {"val_both_step": 0.0}),
        (1, {"val_both_step": 10.0}),
        (1, {"val": 2.0, "val_both_epoch": 2.0, "val_end": 8.0}),
        (1, {"train_both_epoch": 2.0, "train_end": 7.0}),
    ]
    assert trainer.test(module, ten_samples(), verbose=False) == [{"test": 2.0}]


# --- The mean of an epoch -------------------------------------------------------------------------


class IgnoresBatchSize(pl.LightningModule):
    """Always finds the batch size by itself."""

    def log(self, name: str, value: Any, **options: Any) -> None:
        super().log(name, value, **{**options, "batch_size": None})


class LooksAtTheLastTensor(pl.LightningModule):
    """Takes the batch size from the tensor at the end of the batch."""

    def on_validation_batch_start(self, batch: Any, batch_idx: int) -> None:
        parts = list(batch.values()) if isinstance(batch, dict) else batch
        self.size = len(parts[-1])

    def log(self, name: str, value: Any, **options: Any) -> None:
        super().log(name, value, **{"batch_size": self.size, **options})


@spec("PL-12", violated_by=[CountsBatches, IgnoresBatchSize, LooksAtTheLastTensor])
def test_the_mean_is_weighted_by_the_first_tensors_length_or_by_batch_size(
    LightningModule: Any,
) -> None:
    """Whatever else is in a batch, its first tensor's first dimension counts, also where that is
    not the number of samples. Only batch_size= says otherwise, and then for this value alone."""

    class Module(OneWeight, LightningModule):  # type: ignore[misc]
        def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
            value = batch["value"]
            self.log("found", value)
            self.log("given", value, batch_size=batch["mask"].numel())

    # The first tensors have lengths 3 and 1. The samples are counted by the masks: 1 and 4.
    batches: Any = [
        {"images": torch.zeros(3, 8), "value": torch.tensor(1.0), "mask": torch.ones(1)},
        {"images": torch.zeros(1, 8), "value": torch.tensor(6.0), "mask": torch.ones(4)},
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning says that the lengths differ
        trainer = fitted(Module(), DataLoader(batches, batch_size=None))
    assert trainer.callback_metrics["found"] == (3 * 1.0 + 1 * 6.0) / (3 + 1)
    assert trainer.callback_metrics["given"] == (1 * 1.0 + 4 * 6.0) / (1 + 4)


class MeanOfBatchMeans(modules.DigitsClassifier):
    """Collects the accuracies of the batches, and averages them by hand."""

    def on_validation_epoch_start(self) -> None:
        self.accuracies: list[Tensor] = []

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, targets = batch
        self.accuracies.append((self(images).argmax(dim=1) == targets).float().mean())

    def on_validation_epoch_end(self) -> None:
        self.log("val_accuracy", torch.stack(self.accuracies).mean())


@rule(
    "PL-71",
    "Log the mean of a batch with self.log, and leave the mean of the epoch to Lightning.",
    kind="practice",
    source=LOGGING_PAGE,
    subject=modules.DigitsClassifier,
    violated_by=[MeanOfBatchMeans],
    consequence="237 digits in batches of 118 leave one over. In a mean of batch means it counts as"
    " much as 118 others: after one epoch an accuracy of 62 % is logged as 42 %.",
)
def test_the_accuracy_of_an_epoch_is_the_share_of_its_samples(
    DigitsClassifier: Any, observe: Observe
) -> None:
    """Over five seeds the mean of batch means was 0.18 to 0.21 too low: the last image is a hard
    one. Had it been right, the mean would have been as much too high."""
    module = DigitsClassifier(batch_size=118)
    trainer = pl.Trainer(**modules.quiet(max_epochs=1))
    trainer.fit(module)

    images = data.digits().train_inputs[modules.TRAINED_ON :]
    targets = data.digits().train_targets[modules.TRAINED_ON :]
    right = (module(images).argmax(dim=1) == targets).sum().item()
    observe("right of 237", right)
    assert agree(trainer.callback_metrics["val_accuracy"], right / 237, ulps=8)


# --- What may be logged, and where it goes --------------------------------------------------------


class TakesTheMeanOfATensor(pl.LightningModule):
    """Makes one number of several without being asked."""

    def log(self, name: str, value: Any, **options: Any) -> None:
        super().log(name, torch.as_tensor(value).mean(), **options)


@spec("PL-12", violated_by=[TakesTheMeanOfATensor])
@pytest.mark.parametrize("value", [torch.tensor([1.0, 2.0]), torch.tensor([]), [1.0, 2.0]])
def test_only_a_single_number_can_be_logged(LightningModule: Any, value: Any) -> None:
    """Lightning cannot know whether their mean, sum or maximum is meant. A tensor of one element
    is a number, whatever its shape."""

    class Module(OneWeight, LightningModule):  # type: ignore[misc]
        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            self.log("one", torch.tensor([[3.0]]))
            self.log("several", value)

    with pytest.raises(ValueError, match=r"`self\.log\(several, .*` was called, but"):
        fitted(Module(), ten_samples())


class KeepsTheFirst(pl.LightningModule):
    """Drops a second value of the same name."""

    def on_validation_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.logged: set[str] = set()

    def log(self, name: str, value: Any, **options: Any) -> None:
        if name not in self.logged:
            super().log(name, value, **options)
        self.logged.add(name)


@spec("PL-12", violated_by=[KeepsTheFirst])
def test_a_name_has_the_same_options_in_every_call(LightningModule: Any) -> None:
    """A second call with the same options adds a value to the mean; with others it is refused."""

    class Module(OneWeight, LightningModule):  # type: ignore[misc]
        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            self.log("value", 1.0)
            self.log("value", 5.0, **self.second_call)

    module = Module()
    module.second_call = {}
    assert fitted(module, ten_samples()).callback_metrics["value"] == (1.0 + 5.0) / 2
    module.second_call = {"prog_bar": True}
    with pytest.raises(exceptions.MisconfigurationException, match=r"You called `self\.log\(value"):
        fitted(module, ten_samples())


class AlwaysOnTheBar(pl.LightningModule):
    """Shows every value on the progress bar."""

    def log(self, name: str, value: Any, **options: Any) -> None:
        super().log(name, value, **{**options, "prog_bar": True})


class AlwaysToTheLogger(pl.LightningModule):
    """Gives every value to the loggers."""

    def log(self, name: str, value: Any, **options: Any) -> None:
        super().log(name, value, **{**options, "logger": True})


class ForgetsOptionsOfDicts(pl.LightningModule):
    """Logs a dict with the defaults."""

    def log_dict(self, dictionary: dict[str, Any], **_: Any) -> None:
        super().log_dict(dictionary)


@spec("PL-12", violated_by=[AlwaysOnTheBar, AlwaysToTheLogger, ForgetsOptionsOfDicts])
def test_prog_bar_and_logger_say_who_sees_a_value(LightningModule: Any) -> None:
    """prog_bar=False and logger=True are the defaults. Callbacks, such as EarlyStopping, see every
    value in trainer.callback_metrics, whatever the two say. log_dict is log for each value."""

    class Module(OneWeight, LightningModule):  # type: ignore[misc]
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            self.log("by_default", 1.0)
            self.log("on_the_bar", 2.0, prog_bar=True)
            self.log_dict({"bar_only": 3.0, "bar_too": 4.0}, prog_bar=True, logger=False)
            self.log("for_callbacks", 5.0, logger=False)
            return self.weight * 0.0

    logger = KeepsRows()
    trainer = fitted(Module(), ten_samples(), logger=logger)
    to_the_logger = {"by_default": 1.0, "on_the_bar": 2.0}
    assert logger.rows == [(0, to_the_logger), (1, to_the_logger)]
    assert trainer.logged_metrics == to_the_logger
    assert trainer.progress_bar_metrics == {"on_the_bar": 2.0, "bar_only": 3.0, "bar_too": 4.0}
    assert trainer.callback_metrics == {
        **to_the_logger,
        "bar_only": 3.0,
        "bar_too": 4.0,
        "for_callbacks": 5.0,
    }


class AlwaysAverages(pl.LightningModule):
    """Takes the mean, whatever is asked for."""

    def log(self, name: str, value: Any, reduce_fx: Any = "mean", **options: Any) -> None:
        super().log(name, value, **options)


# Batches of five, five, five samples and one, each of equal samples: 3, 2, 6 and 5.
FOUR_BATCHES = [3.0] * 5 + [2.0] * 5 + [6.0] * 5 + [5.0]
REDUCTIONS = {
    "mean": (5 * 3.0 + 5 * 2.0 + 5 * 6.0 + 5.0) / 16,
    "sum": 3.0 + 2.0 + 6.0 + 5.0,
    "max": 6.0,
    "min": 2.0,
}


@spec("PL-12", violated_by=[AlwaysAverages])
def test_reduce_fx_makes_one_value_of_an_epoch(LightningModule: Any) -> None:
    """Only the mean looks at the sizes of the batches. No other function is taken: a median is a
    median of batch values, and hardly ever meant."""

    class Module(OneWeight, LightningModule):  # type: ignore[misc]
        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            for reduction in self.reductions:
                self.log(reduction, batch.mean(), reduce_fx=reduction)

    module = Module()
    batches: Any = DataLoader(FOUR_BATCHES, batch_size=5)
    module.reductions = REDUCTIONS
    assert fitted(module, batches).callback_metrics == REDUCTIONS
    module.reductions = ["median"]
    with pytest.raises(exceptions.MisconfigurationException, match=r"Only `self\.log"):
        fitted(module, batches)
