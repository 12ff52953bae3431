"""The sanity check: why a Trainer validates before it has trained.

At the end you know what runs before the first training step, that it leaves no trace in weights and
metrics, and what a `validation_step` must not take for granted.

`quiet(...)` holds the options of a Trainer on one CPU that prints and writes nothing, and that
skips this check; here it is put back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from specs.harness import raising, rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe
from specs.harness.optional import optional

pl = optional("pytorch_lightning")
modules = optional("reference.lightning_modules")

TRAINER_PAGE = "https://lightning.ai/docs/pytorch/stable/common/trainer.html"

Batch = tuple[Tensor, Tensor]


def with_check() -> dict[str, Any]:
    """The options of a quiet Trainer, with Lightning's own number of batches for the check."""
    options = modules.quiet(max_epochs=2)
    del options["num_sanity_val_steps"]
    return options


def loader(batches: int) -> Any:
    """Batches of one sample each, x = 1 and y = 2."""
    ones = torch.ones(batches, 1)
    return DataLoader(TensorDataset(ones, 2 * ones), batch_size=1)


class Line(pl.LightningModule):
    """Learns y = 2x with one weight, which starts at 0: two batches to train on, three to validate.

    Keeps the mean validation loss of each epoch in `history`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.layer.weight)
        self.losses: list[float] = []
        self.history: list[float] = []

    def loss(self, batch: Batch) -> Tensor:
        x, y = batch
        return (self.layer(x) - y).square().mean()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.loss(batch)

    def on_validation_epoch_start(self) -> None:
        self.losses.clear()  # here: the check has left two losses behind

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.losses.append(self.loss(batch).item())

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:  # what is measured there is no epoch's result
            self.history.append(sum(self.losses) / len(self.losses))

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> Any:
        return loader(batches=2)

    def val_dataloader(self) -> Any:
        return loader(batches=3)


# --- What the Trainer does ------------------------------------------------------------------------


class Noisy(Line):
    """Draws random numbers in training and in validation; writes down what runs when."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[tuple[str, bool]] = []
        self.metrics_at_the_start: dict[str, Any] | None = None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.runs.append(("train", self.trainer.sanity_checking))
        return self.loss(batch) * torch.rand(1).item()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.runs.append(("validate", self.trainer.sanity_checking))
        self.losses.append(torch.rand(1).item())
        self.log("val_loss", self.losses[-1])

    def on_train_start(self) -> None:
        self.metrics_at_the_start = dict(self.trainer.callback_metrics)


class ChecksNothing(pl.Trainer):
    """Begins with the training."""

    def __init__(self, num_sanity_val_steps: int = 0, **options: Any) -> None:
        super().__init__(**options, num_sanity_val_steps=num_sanity_val_steps)


class ChecksEverything(pl.Trainer):
    """Goes through the whole validation before it trains."""

    def __init__(self, num_sanity_val_steps: int = -1, **options: Any) -> None:
        super().__init__(**options, num_sanity_val_steps=num_sanity_val_steps)


class ValidatesFirst(pl.Trainer):
    """Runs an ordinary validation of two batches in place of the check."""

    num_sanity_val_steps: int

    def fit(self, module: Any) -> None:
        if self.num_sanity_val_steps:
            super().validate(module, loader(batches=2), verbose=False)
        self.num_sanity_val_steps = 0
        super().fit(module)


@rule(
    "PL-20",
    "Before it trains, fit runs two validation batches (num_sanity_val_steps), and leaves no trace"
    " of them: validation_step has to work before any training_step did.",
    kind="contract",
    source=TRAINER_PAGE,
    subject=pl.Trainer,
    violated_by=[ChecksNothing, ChecksEverything, ValidatesFirst],
    consequence="validation losses that are collected over the check, too: 2.58 for the first epoch"
    " in place of 1.64",
)
def test_two_batches_are_validated_before_the_training(Trainer: Any, observe: Observe) -> None:
    """A mistake in validation_step shows at once, and not after the first epoch."""
    module, trainer = Noisy(), Trainer(**with_check())

    trainer.fit(module)

    check = [("validate", True)] * 2
    epoch = [("train", False)] * 2 + [("validate", False)] * 3
    observe("num_sanity_val_steps", trainer.num_sanity_val_steps)
    assert module.runs == check + epoch * 2


@spec("PL-20", violated_by=[ValidatesFirst])
def test_the_check_changes_neither_random_numbers_nor_metrics(Trainer: Any) -> None:
    """Its random numbers are given back and its metrics thrown away."""
    weights = []
    for options in (with_check(), with_check() | {"num_sanity_val_steps": 0}):
        torch.manual_seed(0)
        module = Noisy()
        Trainer(**options).fit(module)
        assert module.metrics_at_the_start == {}
        weights.append(module.layer.weight.item())

    assert weights[0] == weights[1]


# --- What the module must not assume --------------------------------------------------------------


class AsksForTheTraining(Line):
    """Compares with the training loss, which the first training_step is going to set."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.train_loss = self.loss(batch)
        return self.train_loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.gap = self.losses[-1] - self.train_loss.item()


class ClearsAfterTraining(Line):
    """Clears its losses at the end of each training epoch, as nobody does before the first."""

    def on_validation_epoch_start(self) -> None:
        pass

    def on_train_epoch_end(self) -> None:
        self.losses.clear()


class CountsTheCheck(Line):
    """Takes the check for a first epoch."""

    def on_validation_epoch_end(self) -> None:
        self.history.append(sum(self.losses) / len(self.losses))


@spec(
    "PL-20",
    subject=Line,
    violated_by=[raising(AttributeError, AsksForTheTraining), ClearsAfterTraining, CountsTheCheck],
)
def test_only_real_epochs_are_in_the_history(Line: Any) -> None:
    """The loss is 4 in the check. Each step of 0.1 leaves 0.8 of the distance of 2, squared."""
    module = Line()

    pl.Trainer(**with_check()).fit(module)

    after_two_steps, after_four_steps = (2 * 0.8**2) ** 2, (2 * 0.8**4) ** 2  # 1.64 and 0.67
    # ClearsAfterTraining has (2 * 4 + 3 * 1.64) / 5 = 2.58 in place of 1.64.
    assert agree(torch.tensor(module.history), [after_two_steps, after_four_steps])
