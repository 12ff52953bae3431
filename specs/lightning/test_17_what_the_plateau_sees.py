"""Which value a Trainer gives to ReduceLROnPlateau, and when in the epoch.

At the end you know how logging decides what the scheduler sees, and the order of validation, hooks
and schedulers at the end of an epoch. Read before: test_16_plateau.py and test_21_logging.py.

The samples of every example are 0, 0 and 3, in batches of two and one. The mean of the samples is
1, the mean of the two batch means is 1.5, and the last batch's is 3. All of them are multiplied by
the number of the epoch, so that an old value is not taken for a new one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader

from specs.harness import rule, spec
from specs.harness.observations import Observe
from specs.harness.optional import optional

pl: Any = optional("pytorch_lightning")
quiet = optional("reference.lightning_modules").quiet

PAGE = (
    "https://lightning.ai/docs/pytorch/stable/api/lightning.pytorch.core.LightningModule.html"
    "#lightning.pytorch.core.LightningModule.configure_optimizers"
)


class Watched(pl.LightningModule):
    """Logs its data in several ways, and has a plateau for each of the monitors.

    It notes what the plateaus see, and what happens in which order.
    """

    def __init__(self, *monitors: str, interval: str = "epoch") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.monitors, self.interval = monitors, interval
        self.seen: dict[str, list[float]] = {monitor: [] for monitor in monitors}
        self.events: list[str] = []

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader([0.0, 0.0, 3.0], batch_size=2)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader([0.0, 0.0, 3.0], batch_size=2)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        value = batch.mean() * (self.current_epoch + 1)
        self.log("train", value)
        self.log("train_per_epoch", value, on_step=False, on_epoch=True)
        self.log("train_twice", value, on_step=True, on_epoch=True)
        self.events.append("train")
        return (self.weight * batch).sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        value = batch.mean() * (self.current_epoch + 1)
        self.log("val", value)
        self.log("val_best", value, reduce_fx="max")
        self.events.append("validate")

    def on_train_epoch_end(self) -> None:
        self.log("epoch_end", 7.0 * (self.current_epoch + 1))
        self.events.append("on_train_epoch_end")

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=1.0)
        self.plateaus = [ReduceLROnPlateau(optimizer) for _ in self.monitors]
        watching = [
            {"scheduler": plateau, "monitor": monitor, "interval": self.interval}
            for plateau, monitor in zip(self.plateaus, self.monitors, strict=True)
        ]
        return [optimizer], [*watching, StepLR(optimizer, step_size=1)]

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """The hook in which schedulers step; `metric` is None for those that watch nothing."""
        self.events.append(type(scheduler).__name__)
        if isinstance(scheduler, ReduceLROnPlateau):
            self.seen[self.monitors[self.plateaus.index(scheduler)]].append(float(metric))
            scheduler.step(metric)
        else:
            scheduler.step()


#: What is monitored, and what the scheduler then sees in the first epoch.
SEEN = [
    ("val", (0.0 + 0.0 + 3.0) / 3),  # the mean over samples
    ("val_best", 3.0),  # reduced as the module says
    ("train", 3.0),  # logged by default in training: the last batch
    ("train_per_epoch", 1.0),
    ("train_twice", 1.0),  # of both values this name means the epoch's
    ("train_twice_epoch", 1.0),
    ("train_twice_step", 3.0),
    ("epoch_end", 7.0),  # a hook at the end of the epoch comes early enough
]


class SeesTheMeanOfBatchMeans(pl.Trainer):
    """Takes every batch for equally large."""

    @property
    def callback_metrics(self) -> dict[str, Any]:
        return {**super().callback_metrics, "val": 1.5 * (self.current_epoch + 1)}


class SeesTheLastBatch(pl.Trainer):
    """Averages nothing."""

    @property
    def callback_metrics(self) -> dict[str, Any]:
        return {**super().callback_metrics, "val": 3.0 * (self.current_epoch + 1)}


class SeesTheMeanOfTraining(pl.Trainer):
    """Averages what a training step logs, also where it was not told to."""

    @property
    def callback_metrics(self) -> dict[str, Any]:
        return {**super().callback_metrics, "train": 1.0 * (self.current_epoch + 1)}


@rule(
    "PL-65",
    "ReduceLROnPlateau sees the metric of the whole epoch, weighted by samples, after validation"
    " and after on_train_epoch_end; what a training_step logs by default is the last batch's.",
    kind="contract",
    source=PAGE,
    subject=pl.Trainer,
    violated_by=[SeesTheMeanOfBatchMeans, SeesTheLastBatch, SeesTheMeanOfTraining],
)
def test_it_sees_what_the_logging_makes_of_an_epoch(Trainer: Any, observe: Observe) -> None:
    """Log a training loss with on_epoch=True, or one small last batch decides about the rate."""
    module = Watched(*(monitor for monitor, _ in SEEN))

    Trainer(**quiet(max_epochs=2)).fit(module)

    observe("seen", module.seen)
    for monitor, in_the_first_epoch in SEEN:
        assert module.seen[monitor] == [in_the_first_epoch, 2 * in_the_first_epoch], monitor


class ValidatesAfterEveryBatch(pl.Trainer):
    """Does not wait for the end of the epoch."""

    def __init__(self, **options: Any) -> None:
        super().__init__(val_check_interval=1, **options)


class StepsAllSchedulersLast(pl.Trainer):
    """Treats a scheduler that counts epochs as one that waits for a metric."""

    @property
    def lr_scheduler_configs(self) -> list[Any]:
        configs = super().lr_scheduler_configs
        return [replace(c, reduce_on_plateau=True, monitor="val") for c in configs]


@spec("PL-65", violated_by=[ValidatesAfterEveryBatch, StepsAllSchedulersLast])
def test_the_plateau_steps_last_and_other_schedulers_before_validation(
    Trainer: Any, observe: Observe
) -> None:
    """So a rate that is read during validation is already that of the next epoch, and a checkpoint
    that is written there holds it."""
    module = Watched("val")

    Trainer(**quiet(max_epochs=2)).fit(module)

    one_epoch = [
        *("train", "train"),
        "StepLR",
        *("validate", "validate"),
        "on_train_epoch_end",
        "ReduceLROnPlateau",
    ]
    observe("order", module.events)
    assert module.events == one_epoch * 2


class CountsEpochsOnly(pl.Trainer):
    """Steps every scheduler after an epoch, whatever its interval is."""

    @property
    def lr_scheduler_configs(self) -> list[Any]:
        return [replace(config, interval="epoch") for config in super().lr_scheduler_configs]


@spec("PL-65", violated_by=[CountsEpochsOnly])
def test_in_steps_it_sees_each_batch(Trainer: Any) -> None:
    """With interval="step" it steps after every optimizer step, on what that step has logged."""
    module = Watched("train", interval="step")

    Trainer(**quiet(max_epochs=2)).fit(module)

    assert module.seen == {"train": [0.0, 3.0, 2 * 0.0, 2 * 3.0]}
