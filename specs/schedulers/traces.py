"""What a scheduler makes an optimizer use: learning rates and momenta, step by step.

The optimizers here train nothing. They have two parameter groups with different learning rates,
because a scheduler has to follow its schedule in each group.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler

#: A scheduler class, or a function that builds a scheduler from the same arguments.
Scheduler = Callable[..., LRScheduler]

#: The learning rates of the two parameter groups.
BASE_LRS = (0.1, 0.02)

#: How many optimizer steps a trace has, unless a spec asks for fewer.
STEPS = 60


def sgd() -> Optimizer:
    """SGD with momentum over two parameter groups with the rates BASE_LRS."""
    return SGD([{"params": [torch.zeros(1)], "lr": lr} for lr in BASE_LRS], momentum=0.5)


def adam() -> Optimizer:
    """Adam over two parameter groups with the rates BASE_LRS."""
    return Adam([{"params": [torch.zeros(1)], "lr": lr} for lr in BASE_LRS])


def rates_of_steps(optimizer: Optimizer, scheduler: LRScheduler, steps: int) -> list[float]:
    """The first group's rate at each of `steps` optimizer steps; the scheduler steps after each."""
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def groups_used(
    scheduler: Scheduler,
    arguments: dict[str, Any],
    resume_at: int | None = None,
    optimizer: Callable[[], Optimizer] = sgd,
    steps: int = STEPS,
) -> list[list[dict[str, Any]]]:
    """The options of every parameter group at each of `steps` optimizer steps.

    The scheduler steps after each optimizer step. With `resume_at`, the state of both is saved
    before that step, and a fresh optimizer with a fresh scheduler goes on from it.
    """
    training = optimizer()
    schedule = scheduler(training, **arguments)
    used = []
    for t in range(steps):
        if t == resume_at:
            saved = deepcopy((training.state_dict(), schedule.state_dict()))
            training = optimizer()
            schedule = scheduler(training, **arguments)
            training.load_state_dict(saved[0])
            schedule.load_state_dict(saved[1])
        used.append([dict(group) for group in training.param_groups])
        training.step()
        schedule.step()
    return used


def rates_used(
    scheduler: Scheduler,
    arguments: dict[str, Any],
    resume_at: int | None = None,
    steps: int = STEPS,
) -> list[list[float]]:
    """The learning rate of every group at each optimizer step: one list a step."""
    trace = groups_used(scheduler, arguments, resume_at, steps=steps)
    return [[group["lr"] for group in groups] for groups in trace]


def momenta_used(
    scheduler: Scheduler,
    arguments: dict[str, Any],
    optimizer: Callable[[], Optimizer],
    resume_at: int | None = None,
) -> list[list[float]]:
    """The momentum, or for Adam the first beta, of every group at each optimizer step."""
    trace = groups_used(scheduler, arguments, resume_at, optimizer)
    return [
        [group["betas"][0] if "betas" in group else group["momentum"] for group in groups]
        for groups in trace
    ]
