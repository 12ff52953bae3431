"""Runs that stop half way and are resumed: the schedules they follow, the rates they use."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiplicativeLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

Scheduler = LRScheduler | ReduceLROnPlateau
MakeOptimizer = Callable[[], Optimizer]
MakeScheduler = Callable[[Optimizer], Scheduler]
Saved = dict[str, Any]

#: A procedure that makes an optimizer and a scheduler which go on from what was saved.
Resume = Callable[[Saved, MakeOptimizer, MakeScheduler], tuple[Optimizer, Scheduler]]

#: Every run has STEPS steps; where it is interrupted, that is after STOP of them.
STEPS, STOP = 12, 5

#: Every scheduler of PyTorch, with something left to do after the stop.
SCHEDULES: dict[str, MakeScheduler] = {
    "LambdaLR": lambda optimizer: LambdaLR(optimizer, lambda t: 0.95**t),
    "MultiplicativeLR": lambda optimizer: MultiplicativeLR(optimizer, lambda _: 0.95),
    "StepLR": lambda optimizer: StepLR(optimizer, step_size=4, gamma=0.5),
    "MultiStepLR": lambda optimizer: MultiStepLR(optimizer, milestones=[3, 7], gamma=0.5),
    "ConstantLR": lambda optimizer: ConstantLR(optimizer, factor=0.1, total_iters=8),
    "LinearLR": lambda optimizer: LinearLR(optimizer, start_factor=0.1, total_iters=8),
    "ExponentialLR": lambda optimizer: ExponentialLR(optimizer, gamma=0.9),
    "PolynomialLR": lambda optimizer: PolynomialLR(optimizer, total_iters=10),
    "CosineAnnealingLR": lambda optimizer: CosineAnnealingLR(optimizer, T_max=STEPS),
    "CosineAnnealingWarmRestarts": lambda optimizer: CosineAnnealingWarmRestarts(optimizer, T_0=4),
    "CyclicLR": lambda optimizer: CyclicLR(optimizer, base_lr=0.01, max_lr=0.1, step_size_up=4),
    "OneCycleLR": lambda optimizer: OneCycleLR(optimizer, max_lr=0.1, total_steps=STEPS + 1),
    "SequentialLR": lambda optimizer: SequentialLR(
        optimizer,
        [
            LinearLR(optimizer, start_factor=0.1, total_iters=8),
            ExponentialLR(optimizer, gamma=0.9),
        ],
        milestones=[8],
    ),
    "ChainedScheduler": lambda optimizer: ChainedScheduler(
        [ConstantLR(optimizer, factor=0.1, total_iters=8), ExponentialLR(optimizer, gamma=0.9)]
    ),
    "ReduceLROnPlateau": lambda optimizer: ReduceLROnPlateau(optimizer, patience=2),
}


def two_groups(rates: tuple[float, float] = (0.1, 0.02)) -> SGD:
    """An optimizer with two parameter groups; the loss it would minimise plays no part here."""
    groups = [{"params": [Parameter(torch.zeros(1))], "lr": lr} for lr in rates]
    return SGD(groups, lr=0.1, momentum=0.9)


def other_rates() -> SGD:
    """The optimizer of a program that was edited meanwhile: what was saved has to win."""
    return two_groups((1.0, 0.5))


def rates_of_the_next_steps(steps: int, optimizer: Optimizer, scheduler: Scheduler) -> list[Any]:
    """The learning rates of all groups at each of the next steps, which are made."""
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(1.0)  # a metric that never improves
        else:
            scheduler.step()
    return rates


def rates_after_a_stop(resume: Resume, make_scheduler: MakeScheduler) -> list[Any]:
    """The learning rates of the steps after STOP, in a run that was resumed there.

    The states of both are saved, and given to `resume` with the means to make two new objects.
    """
    optimizer = two_groups()
    scheduler = make_scheduler(optimizer)
    rates_of_the_next_steps(STOP, optimizer, scheduler)
    saved = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    resumed = resume(deepcopy(saved), other_rates, make_scheduler)
    return rates_of_the_next_steps(STEPS - STOP, *resumed)


def rates_without_a_stop(make_scheduler: MakeScheduler) -> list[Any]:
    """The learning rates of the same steps in a run that never stopped."""
    optimizer = two_groups()
    scheduler = make_scheduler(optimizer)
    return rates_of_the_next_steps(STEPS, optimizer, scheduler)[STOP:]
