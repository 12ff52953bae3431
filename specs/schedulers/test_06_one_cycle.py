"""OneCycleLR: one rise and one fall of the learning rate over a whole training run.

At the end you know when to step it (after every optimizer step), where it starts, peaks and ends,
what its very last step does, and that it also writes the momentum of the optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR

from reference.data import batches, digits
from reference.schedulers import cyclic_momentum, one_cycle, one_cycle_momentum
from reference.training import train_one_epoch
from specs.harness import raising, rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe

ONE_CYCLE_PAGE = (
    "https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.OneCycleLR.html"
)

Batches = Iterable[tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]
Train = Callable[..., list[float]]

# ------------------------------------------------------------------ LR-12: when to step


def steps_once_per_epoch(
    model: nn.Module, batches: Batches, loss_function: Loss, optimizer: Optimizer,
    scheduler: LRScheduler,
) -> list[float]:
    """Steps the scheduler when the epoch is over."""
    losses = train_one_epoch(model, batches, loss_function, optimizer)
    scheduler.step()
    return losses


def skips_the_last_batch(
    model: nn.Module, batches: Batches, loss_function: Loss, optimizer: Optimizer,
    scheduler: LRScheduler,
) -> list[float]:
    """Steps the scheduler after every batch but the last one of the epoch."""
    *most, last = batches
    losses = train_one_epoch(model, most, loss_function, optimizer, scheduler)
    return losses + train_one_epoch(model, [last], loss_function, optimizer)


def rates_recorded(optimizer: Optimizer) -> list[float]:
    """A list that receives, at every optimizer step, the learning rate that the step uses."""
    rates: list[float] = []
    optimizer.register_step_pre_hook(
        lambda optimizer, args, kwargs: rates.append(optimizer.param_groups[0]["lr"])
    )
    return rates


@rule(
    "LR-12",
    "Step OneCycleLR after every optimizer step: once per batch, never once per epoch.",
    kind="practice",
    source=ONE_CYCLE_PAGE,
    subject=train_one_epoch,
    violated_by=[steps_once_per_epoch, skips_the_last_batch],
    consequence="Stepped per epoch, three epochs on digits end with more than five times the"
    " loss: the rate never gets above a fifteenth of its peak.",
)
def test_every_batch_uses_the_next_rate_of_the_cycle(train_one_epoch: Train) -> None:
    """The cycle is as long as the training run: epochs times batches."""
    model = nn.Linear(1, 1)
    optimizer = SGD(model.parameters(), lr=0.1)
    used = rates_recorded(optimizer)
    ten_batches = [(torch.ones(1, 1), torch.ones(1, 1))] * 10
    scheduler = OneCycleLR(optimizer, max_lr=0.1, epochs=4, steps_per_epoch=10)

    for _ in range(4):
        train_one_epoch(model, ten_batches, nn.functional.mse_loss, optimizer, scheduler)

    cycle = [one_cycle(t, max_lr=0.1, total_steps=4 * 10) for t in range(4 * 10)]
    assert agree(used, cycle, scale=0.1)


def loss_on_digits(train_one_epoch: Train, seed: int) -> float:
    """Loss over the training images after three epochs of 23 batches, with a peak rate of 0.2."""
    data = digits()
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = SGD(model.parameters(), lr=0.2, momentum=0.9)
    scheduler = OneCycleLR(
        optimizer, max_lr=0.2, epochs=3, steps_per_epoch=23, cycle_momentum=False
    )
    shuffle = torch.Generator().manual_seed(seed)
    for _ in range(3):
        epoch = batches(data.train_inputs, data.train_targets, batch_size=64, generator=shuffle)
        train_one_epoch(model, epoch, nn.functional.cross_entropy, optimizer, scheduler)
    with torch.no_grad():
        return nn.functional.cross_entropy(model(data.train_inputs), data.train_targets).item()


@spec("LR-12", violated_by=[steps_once_per_epoch])
def test_stepping_once_per_epoch_costs_five_times_the_loss(
    train_one_epoch: Train, observe: Observe
) -> None:
    """Per batch the loss ends below 0.2, per epoch near 1.9; guessing has log(10) = 2.3."""
    for seed in range(3):
        per_batch = loss_on_digits(train_one_epoch, seed)
        per_epoch = loss_on_digits(steps_once_per_epoch, seed)
        observe(f"losses of seed {seed}", [per_batch, per_epoch])
        assert per_epoch > 5 * per_batch


def train_accumulating(
    model: nn.Module, batches: Batches, loss_function: Loss, optimizer: Optimizer,
    scheduler: LRScheduler, accumulate: int,
) -> None:
    """One optimizer step for every `accumulate` batches, and one scheduler step after it."""
    for number, (inputs, targets) in enumerate(batches, start=1):
        (loss_function(model(inputs), targets) / accumulate).backward()
        if number % accumulate == 0:
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()


def steps_the_scheduler_for_every_batch(
    model: nn.Module, batches: Batches, loss_function: Loss, optimizer: Optimizer,
    scheduler: LRScheduler, accumulate: int,
) -> None:
    """Accumulates gradients, but steps the scheduler after every batch."""
    for number, (inputs, targets) in enumerate(batches, start=1):
        (loss_function(model(inputs), targets) / accumulate).backward()
        if number % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
        scheduler.step()


@spec("LR-12", subject=train_accumulating, violated_by=[steps_the_scheduler_for_every_batch])
def test_with_gradient_accumulation_it_steps_once_per_optimizer_step(
    train_accumulating: Callable[..., None],
) -> None:
    """40 batches, 4 to an optimizer step, are 10 steps of the schedule.

    A scheduler that is stepped for every batch runs through the schedule four times too fast.
    Here it has room for 40 steps, so nothing is raised: only a quarter of its rates is used.
    """
    model = nn.Linear(1, 1)
    optimizer = SGD(model.parameters(), lr=0.1)
    used = rates_recorded(optimizer)
    forty_batches = [(torch.ones(1, 1), torch.ones(1, 1))] * 40
    scheduler = OneCycleLR(optimizer, max_lr=0.1, total_steps=40)

    train_accumulating(
        model, forty_batches, nn.functional.mse_loss, optimizer, scheduler, accumulate=4
    )

    assert agree(used, [one_cycle(t, max_lr=0.1, total_steps=40) for t in range(10)], scale=0.1)
