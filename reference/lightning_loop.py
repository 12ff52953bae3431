"""The training loop of reference/training.py, run by Lightning's Trainer.

The functions have the signatures of the plain loop, so that whatever judges the one can judge the
other. What the plain loop writes out, a Trainer does: it forgets the old gradients, differentiates,
clips, updates, steps the scheduler, switches modes and gradients for validation.

Source: https://lightning.ai/docs/pytorch/stable/common/lightning_module.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from reference.lightning_modules import quiet
from reference.training import Batches, History, Loss, Stopper


class LoopModule(pl.LightningModule):
    """The step of the plain loop, around a model, a loss and an optimizer that exist already.

    interval: whether the scheduler counts every "step" of the optimizer or every "epoch".
    losses: one float a batch of the last epoch, each taken before the update that it caused.

    Source: https://lightning.ai/docs/pytorch/stable/common/lightning_module.html
    """

    def __init__(
        self,
        model: nn.Module,
        loss_function: Loss,
        optimizer: Optimizer,
        scheduler: LRScheduler | ReduceLROnPlateau | None,
        *,
        interval: str,
        validate: Callable[[], float] | None = None,
        early_stopping: Stopper | None = None,
    ) -> None:
        super().__init__()
        self.model, self.loss_function = model, loss_function
        self.optimizer, self.scheduler, self.interval = optimizer, scheduler, interval
        self.validate, self.early_stopping = validate, early_stopping
        self.losses: list[float] = []
        self.history = History()

    def on_train_epoch_start(self) -> None:
        """Note the rate that the epoch begins with."""
        self.losses = []
        self.history.learning_rates.append(float(self.optimizer.param_groups[0]["lr"]))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Predict and compare. The rest of the step is the Trainer's."""
        inputs, targets = batch
        loss = self.loss_function(self.model(inputs), targets)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Ask for the value, in eval mode and without gradients; once logged it can be watched."""
        if self.validate is not None:
            value = self.validate()
            self.history.validation_losses.append(value)
            # A float would be rounded to float32.
            self.log("validation", torch.tensor(value, dtype=torch.float64), batch_size=1)

    def on_train_epoch_end(self) -> None:
        """The name does not say it: this comes after the epoch's validation."""
        self.history.losses.append(sum(self.losses) / len(self.losses))
        if self.early_stopping is not None:
            judged = self.history.validation_losses[-1]
            self.trainer.should_stop = self.early_stopping.should_stop(judged)

    def configure_optimizers(self) -> Any:
        """The optimizer as it is, and when its scheduler steps; "monitor" is for a plateau."""
        if self.scheduler is None:
            return self.optimizer
        plan = {"scheduler": self.scheduler, "interval": self.interval, "monitor": "validation"}
        return {"optimizer": self.optimizer, "lr_scheduler": plan}


class Loader:
    """Batches as a Trainer takes them: a bare list would be one loader for each of its items.

    Source: https://lightning.ai/docs/pytorch/stable/data/iterables.html
    """

    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def train_one_epoch(
    model: nn.Module,
    batches: Batches,
    loss_function: Loss,
    optimizer: Optimizer,
    scheduler: LRScheduler | None = None,
    *,
    max_norm: float | None = None,
) -> list[float]:
    """Train on every batch once, on the CPU, and return each batch's loss.

    A scheduler given here steps after every optimizer step. With `max_norm` the gradients of the
    optimizer's parameters are clipped to that norm. A Trainer does not leave eval mode by itself.

    Source: https://lightning.ai/docs/pytorch/stable/common/trainer.html
    """
    module = LoopModule(model, loss_function, optimizer, scheduler, interval="step").train()
    trainer = pl.Trainer(**quiet(max_epochs=1, gradient_clip_val=max_norm, limit_val_batches=0))
    trainer.fit(module, Loader(batches), Loader([0]))
    return module.losses


def fit(
    model: nn.Module,
    batches: Batches,
    loss_function: Loss,
    optimizer: Optimizer,
    *,
    epochs: int,
    scheduler: LRScheduler | ReduceLROnPlateau | None = None,
    validate: Callable[[], float] | None = None,
    early_stopping: Stopper | None = None,
) -> History:
    """Train for some epochs, on the CPU, with a scheduler that steps once per epoch.

    `validate` is called after each epoch, by the Trainer's own validation, and gives the value that
    ReduceLROnPlateau and early stopping watch. The epoch order is: train, step the scheduler,
    validate, ask for the stop; ReduceLROnPlateau steps last.

    Raises ValueError if something that watches a value is given without `validate`.

    Source: https://lightning.ai/docs/pytorch/stable/common/trainer.html
    """
    watches = early_stopping is not None or isinstance(scheduler, ReduceLROnPlateau)
    if watches and validate is None:
        raise ValueError("ReduceLROnPlateau and early stopping need `validate`")
    module = LoopModule(
        model,
        loss_function,
        optimizer,
        scheduler,
        interval="epoch",
        validate=validate,
        early_stopping=early_stopping,
    ).train()
    once = 0 if validate is None else 1
    trainer = pl.Trainer(**quiet(max_epochs=epochs, limit_val_batches=once))
    trainer.fit(module, Loader(batches), Loader([0]))
    return module.history
