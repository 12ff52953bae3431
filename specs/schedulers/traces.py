"""What a scheduler makes an optimizer use: learning rates and momenta, step by step.

The optimizers here train nothing. They have two parameter groups with different learning rates,
because a scheduler has to follow its schedule in each group.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler

#: A scheduler class, or a function that builds a scheduler from the same arguments.
Scheduler = Callable[..., LRScheduler]

#: The learning rates of the two parameter groups.
BASE_LRS = (0.1, 0.02)


def sgd() -> SGD:
    """SGD with momentum over two parameter groups with the rates BASE_LRS."""
    return SGD([{"params": [Parameter(torch.ones(1))], "lr": lr} for lr in BASE_LRS], momentum=0.5)


def adam() -> Adam:
    """Adam over two parameter groups with the rates BASE_LRS."""
    return Adam([{"params": [Parameter(torch.ones(1))], "lr": lr} for lr in BASE_LRS])


def groups_used(
    build: Callable[[Optimizer], LRScheduler],
    steps: int,
    resume_at: int | None = None,
    optimizer: Callable[[], Optimizer] = sgd,
) -> list[list[dict[str, Any]]]:
    """The options of every parameter group at each of `steps` optimizer steps.

    `build` makes the scheduler, which steps after each optimizer step. With `resume_at`, both are
    saved before that step, and a fresh optimizer and a fresh scheduler go on from what was saved.
    """
    training = optimizer()
    scheduler = build(training)
    used = []
    for t in range(steps):
        if t == resume_at:
            saved = deepcopy((training.state_dict(), scheduler.state_dict()))
            training = optimizer()
            scheduler = build(training)
            training.load_state_dict(saved[0])
            scheduler.load_state_dict(saved[1])
        used.append([dict(group) for group in training.param_groups])
        training.step()
        scheduler.step()
    return used


def rates_used(
    build: Callable[[Optimizer], LRScheduler], steps: int, resume_at: int | None = None
) -> list[list[float]]:
    """The learning rate of every group at each optimizer step: one list a step."""
    return [[group["lr"] for group in groups] for groups in groups_used(build, steps, resume_at)]
