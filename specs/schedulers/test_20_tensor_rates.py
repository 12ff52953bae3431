"""A learning rate may be a tensor, and a scheduler then writes into it.

At the end you know why that matters (a compiled optimizer step, or a CUDA graph, keeps reading the
same tensor), which schedulers got it wrong before torch 2.10, and what the mistake did to a
warm-up.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    LinearLR,
    LRScheduler,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from reference import schedulers
from specs.harness import known_bug, rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe

Scheduler = Callable[..., Any]


def sgd(rate: Tensor) -> SGD:
    """An optimizer whose learning rate is this very tensor."""
    return SGD([nn.Parameter(torch.zeros(1))], lr=rate)


class ReplacesTheTensor(StepLR):
    """Puts a new tensor in the place of the old one at every step."""

    def step(self, epoch: int | None = None) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = torch.as_tensor(group["lr"]).clone()
        super().step(epoch)


class TurnsItIntoANumber(StepLR):
    """Computes with floats from the first step on."""

    def step(self, epoch: int | None = None) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = float(group["lr"])
        super().step(epoch)


class ReadsItOnly(StepLR):
    """Keeps the tensor, and never writes into it."""

    def step(self, epoch: int | None = None) -> None:
        before = self.optimizer.param_groups[0]["lr"].clone()
        super().step(epoch)
        self.optimizer.param_groups[0]["lr"].copy_(before)


@rule(
    "LR-25",
    "A learning rate that is a tensor is written in place, and get_last_lr() gives copies of it.",
    kind="contract",
    source="https://docs.pytorch.org/tutorials/recipes/compiling_optimizer_lr_scheduler.html",
    subject=StepLR,
    violated_by=[ReplacesTheTensor, TurnsItIntoANumber, ReadsItOnly],
)
def test_the_tensor_stays_the_same_and_its_value_follows_the_schedule(StepLR: Scheduler) -> None:
    """Whoever holds the tensor sees each new rate: nothing has to be compiled again."""
    for dtype in (torch.float32, torch.float64):
        rate = torch.tensor(0.1, dtype=dtype)
        optimizer = sgd(rate)
        scheduler = StepLR(optimizer, step_size=2, gamma=0.5)
        used = []
        for _ in range(6):
            used.append(rate.clone())
            optimizer.step()
            scheduler.step()
            assert optimizer.param_groups[0]["lr"] is rate
        assert agree(
            torch.stack(used), [schedulers.step(t, 0.1, step_size=2, gamma=0.5) for t in range(6)]
        )


class SharesTheTensor(SequentialLR):
    """Lets its schedulers take the tensor in use for their base rate."""

    def __init__(
        self, optimizer: Optimizer, schedulers: list[LRScheduler], milestones: list[int]
    ) -> None:
        super().__init__(optimizer, schedulers, milestones)
        for scheduler in schedulers:
            scheduler.base_lrs = [group["lr"] for group in optimizer.param_groups]


@spec(
    "LR-25",
    subject=known_bug(
        SequentialLR, "https://github.com/pytorch/pytorch/issues/162359", fixed_in="2.10"
    ),
    violated_by=[SharesTheTensor],
)
def test_a_warm_up_reaches_the_rate_that_the_tensor_began_with(
    SequentialLR: Scheduler, observe: Observe
) -> None:
    """Up to torch 2.9 the base rate was the tensor itself: the warm-up to 0.1 ended at 0.07."""
    rate = torch.tensor(0.1, dtype=torch.float64)
    optimizer = sgd(rate)
    warm_up = LinearLR(optimizer, start_factor=0.1, total_iters=3)
    cosine = CosineAnnealingLR(optimizer, T_max=6)
    scheduler = SequentialLR(optimizer, [warm_up, cosine], milestones=[3])
    used = []
    for _ in range(9):
        used.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    observe("rates", used)
    pieces = [
        partial(schedulers.linear, base_lr=0.1, start_factor=0.1, total_iters=3),
        partial(schedulers.cosine_annealing, base_lr=0.1, T_max=6),
    ]
    assert agree(used, [schedulers.sequential(t, pieces, milestones=[3]) for t in range(9)])


class ReducesToANumber(ReduceLROnPlateau):
    """Puts the reduced rate in the place of the tensor."""

    def step(self, metrics: Any, epoch: int | None = None) -> None:
        super().step(metrics, epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = float(group["lr"])


@spec(
    "LR-25",
    subject=known_bug(
        ReduceLROnPlateau, "https://github.com/pytorch/pytorch/issues/163093", fixed_in="2.10"
    ),
    violated_by=[ReducesToANumber],
)
def test_reduce_lr_on_plateau_reduces_the_tensor_itself(ReduceLROnPlateau: Scheduler) -> None:
    """Up to torch 2.9 the first reduction put a float in its place."""
    rate = torch.tensor(0.1, dtype=torch.float64)
    optimizer = sgd(rate)
    scheduler = ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
    for _ in range(5):  # the first value is the best; each second one after it reduces
        scheduler.step(1.0)
    assert optimizer.param_groups[0]["lr"] is rate
    assert agree(rate, 0.1 * 0.5 * 0.5)


class RestartsWithANewTensor(CosineAnnealingWarmRestarts):
    """Puts a new tensor in the place of the old one at every step."""

    def step(self, epoch: float | None = None) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"].clone()
        super().step(epoch)  # type: ignore[arg-type]


@spec(
    "LR-25",
    subject=known_bug(
        CosineAnnealingWarmRestarts,
        "https://github.com/pytorch/pytorch/pull/163098",
        fixed_in="2.10",
    ),
    violated_by=[RestartsWithANewTensor],
)
def test_warm_restarts_write_into_the_tensor_too(CosineAnnealingWarmRestarts: Scheduler) -> None:
    """Up to torch 2.9 it made a new tensor at every step."""
    rate = torch.tensor(0.1, dtype=torch.float64)
    optimizer = sgd(rate)
    scheduler = CosineAnnealingWarmRestarts(optimizer, T_0=3)
    used = []
    for _ in range(7):
        used.append(rate.clone())
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] is rate
    expected = [schedulers.cosine_annealing_warm_restarts(t, 0.1, T_0=3) for t in range(7)]
    assert agree(torch.stack(used), expected)


class GivesTheTensorItself(StepLR):
    """Hands out the tensor that the optimizer reads."""

    def get_last_lr(self) -> list[Any]:
        return [group["lr"] for group in self.optimizer.param_groups]


@spec(
    "LR-25",
    subject=known_bug(StepLR, "https://github.com/pytorch/pytorch/issues/163103", fixed_in="2.10"),
    violated_by=[GivesTheTensorItself],
)
def test_a_log_of_get_last_lr_keeps_the_rates_of_the_past(
    StepLR: Scheduler, observe: Observe
) -> None:
    """Up to torch 2.9 it was full of one tensor, and showed the last rate at every step."""
    optimizer = sgd(torch.tensor(0.1, dtype=torch.float64))
    scheduler = StepLR(optimizer, step_size=1, gamma=0.5)
    log = []
    for _ in range(4):
        log += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    observe("log", torch.stack(log))
    assert agree(torch.stack(log), [0.1, 0.05, 0.025, 0.0125])


class LetsItsReaderWrite(StepLR):
    """Takes over what a reader of get_last_lr() did to it."""

    def step(self, epoch: int | None = None) -> None:
        if self.last_epoch >= 0:  # not while it is being built
            self.optimizer.param_groups[0]["lr"].copy_(self._last_lr[0])
        super().step(epoch)


@spec(
    "LR-25",
    subject=known_bug(StepLR, "https://github.com/pytorch/pytorch/issues/163103", fixed_in="2.10"),
    violated_by=[LetsItsReaderWrite],
)
def test_changing_what_get_last_lr_gave_does_not_change_the_rate(StepLR: Scheduler) -> None:
    """The rate belongs to the optimizer."""
    optimizer = sgd(torch.tensor(0.1, dtype=torch.float64))
    scheduler = StepLR(optimizer, step_size=10)
    scheduler.get_last_lr()[0].fill_(7.0)
    optimizer.step()
    scheduler.step()
    assert agree(optimizer.param_groups[0]["lr"], 0.1)
