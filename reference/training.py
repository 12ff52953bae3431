"""The training loop in its canonical order, per batch and per epoch.

Source: https://docs.pytorch.org/tutorials/beginner/basics/optimization_tutorial.html and
https://docs.pytorch.org/docs/stable/optim.html#how-to-adjust-learning-rate
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

Batches = Iterable[tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]


class Stopper(Protocol):
    """Decides after each epoch, from its validation value, whether training ends."""

    def should_stop(self, value: float) -> bool: ...


@dataclass
class History:
    """What happened in each epoch: one entry an epoch in every list."""

    losses: list[float] = field(default_factory=list)
    validation_losses: list[float] = field(default_factory=list)
    #: The learning rate of the first parameter group that the epoch was trained with.
    learning_rates: list[float] = field(default_factory=list)


def train_one_epoch(
    model: nn.Module,
    batches: Batches,
    loss_function: Loss,
    optimizer: Optimizer,
    scheduler: LRScheduler | None = None,
) -> list[float]:
    """Train on every batch once and return each batch's loss.

    Forget the old gradients, predict, compare, differentiate, update, and only then let the
    schedule move on. A scheduler given here is one that steps per batch (OneCycleLR, CyclicLR,
    warm-up in steps).
    """
    model.train()
    losses = []
    for inputs, targets in batches:
        optimizer.zero_grad()
        loss = loss_function(model(inputs), targets)
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        losses.append(loss.item())
    return losses


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
    """Train for some epochs, with a scheduler that steps once per epoch.

    `validate` is called after each epoch and gives the value that ReduceLROnPlateau and early
    stopping watch. The epoch order is: train, validate, step the scheduler, ask for the stop.

    Raises ValueError if something that watches a value is given without `validate`.
    """
    watches = early_stopping is not None or isinstance(scheduler, ReduceLROnPlateau)
    if watches and validate is None:
        raise ValueError("ReduceLROnPlateau and early stopping need `validate`")
    history = History()
    for _ in range(epochs):
        history.learning_rates.append(float(optimizer.param_groups[0]["lr"]))
        losses = train_one_epoch(model, batches, loss_function, optimizer)
        history.losses.append(sum(losses) / len(losses))
        if validate is not None:
            history.validation_losses.append(validate())
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(history.validation_losses[-1])
        elif scheduler is not None:
            scheduler.step()
        if early_stopping is not None and early_stopping.should_stop(history.validation_losses[-1]):
            break
    return history


def accuracy(model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    """Share of samples whose largest logit is at the target's class, in eval mode.

    `inputs` has samples along dimension 0, `targets` is int64 of shape (n,). The model's mode is
    put back afterwards.
    """
    was_training = model.training
    model.eval()
    with torch.no_grad():
        predicted = model(inputs).argmax(dim=1)
    model.train(was_training)
    return float((predicted == targets).double().mean())
