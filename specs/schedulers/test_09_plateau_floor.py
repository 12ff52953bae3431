"""Where ReduceLROnPlateau's falling rate ends: not at zero, but where eps or min_lr stops it.

At the end you will know why the rate stalls near 1e-8 by default, that eps is a step and min_lr a
floor, and that both can leave a rate where you did not expect it.

The metric is 1.0 in every epoch: the first one sets the best, all others are bad, and with
patience=0 each of them lowers the rate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau

from reference import plateau
from specs.harness import rule, spec
from specs.harness.observations import Observe

# A scheduler class, or whatever builds a scheduler from the same arguments.
Scheduler = Callable[..., Any]


def optimizer_with(*rates: float) -> SGD:
    """An optimizer with one parameter group for each rate."""
    return SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in rates])


def rates_after_bad_epochs(
    scheduler_class: Scheduler, start: float, bad_epochs: int, **settings: Any
) -> list[float]:
    """The rate at the start and after each of so many bad epochs, with patience 0."""
    optimizer = optimizer_with(start)
    scheduler = scheduler_class(optimizer, patience=0, **settings)
    scheduler.step(1.0)  # the first epoch sets the best
    rates = [start]
    for _ in range(bad_epochs):
        scheduler.step(1.0)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


class NeverStalls(plateau.ReduceLROnPlateau):
    """Goes on to zero: has no eps."""

    def __init__(self, optimizer: Any, **settings: Any) -> None:
        super().__init__(optimizer, **{**settings, "eps": 0.0})


class TakesEpsForAFloor(plateau.ReduceLROnPlateau):
    """Keeps the rate at or above eps."""

    def __init__(self, optimizer: Any, eps: float = 1e-8, **settings: Any) -> None:
        super().__init__(optimizer, **{**settings, "min_lr": eps, "eps": 0.0})


# Rate at the start, factor, and the number of reductions until it stalls: the first k for which
# the next reduction, start * factor**k * (1 - factor), is not more than 1e-8.
STALLS = [
    (0.1, 0.1, 7),  # 1.0e-8
    (0.1, 0.5, 23),  # 1.2e-8
    (1.0, 0.9, 153),  # 1.0e-7
    (3e-4, 0.3, 9),  # 5.9e-9
    (1e-8, 0.1, 0),  # a rate so low is never reduced
]


@rule(
    "LR-07",
    "ReduceLROnPlateau never reaches zero by default: it stalls near 1e-8, where a reduction would"
    " be eps=1e-8 or less; min_lr sets a floor.",
    kind="contract",
    source="https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.ReduceLROnPlateau.html",
    subject=[ReduceLROnPlateau, plateau.ReduceLROnPlateau],
    violated_by=[NeverStalls, TakesEpsForAFloor],
)
def test_by_default_the_rate_stalls_where_a_step_down_is_below_eps(
    ReduceLROnPlateau: Scheduler, observe: Observe
) -> None:
    """eps is the smallest step, not the smallest rate: where the rate stalls depends on the
    factor."""
    for start, factor, reductions in STALLS:
        rates = rates_after_bad_epochs(ReduceLROnPlateau, start, bad_epochs=160, factor=factor)
        observe(f"last rate from {start} by {factor}", rates[-1])
        for k, rate in enumerate(rates):
            assert rate == pytest.approx(start * factor ** min(k, reductions), rel=1e-12)


class AllowsAStepOfEps(plateau.ReduceLROnPlateau):
    """Lowers the rate by eps exactly, too."""

    def __init__(self, optimizer: Any, eps: float = 1e-8, **settings: Any) -> None:
        super().__init__(optimizer, eps=eps * (1 - 1e-9), **settings)


@spec("LR-07", violated_by=[AllowsAStepOfEps, TakesEpsForAFloor, NeverStalls])
def test_a_step_down_must_be_larger_than_eps(ReduceLROnPlateau: Scheduler) -> None:
    """Also the last step to min_lr: a floor may be missed by eps."""
    rates = rates_after_bad_epochs(ReduceLROnPlateau, 1.0, bad_epochs=3, factor=0.5, eps=0.25)
    assert rates == [1.0, 0.5, 0.5, 0.5]  # from 0.5 to 0.25 is a step of 0.25
    settings = {"factor": 0.5, "min_lr": 0.45, "eps": 0.1}
    rates = rates_after_bad_epochs(ReduceLROnPlateau, 1.0, bad_epochs=3, **settings)
    assert rates == [1.0, 0.5, 0.5, 0.5]  # from 0.5 to 0.45 is a step of 0.05


class IgnoresEps(plateau.ReduceLROnPlateau):
    """Always uses the default eps."""

    def __init__(self, optimizer: Any, **settings: Any) -> None:
        super().__init__(optimizer, **{**settings, "eps": 1e-8})


@spec("LR-07", violated_by=[IgnoresEps])
def test_with_eps_zero_the_rate_does_reach_zero(ReduceLROnPlateau: Scheduler) -> None:
    """0.1 ** 324 is too small for a float. It takes that many reductions, so it hardly matters."""
    rates = rates_after_bad_epochs(ReduceLROnPlateau, 0.1, bad_epochs=330, eps=0.0)
    assert rates[320] > 0.0
    assert rates[330] == 0.0


class HasNoFloor(plateau.ReduceLROnPlateau):
    """Ignores min_lr."""

    def __init__(self, optimizer: Any, **settings: Any) -> None:
        super().__init__(optimizer, **{**settings, "min_lr": 0.0})


class SharesTheFirstFloor(plateau.ReduceLROnPlateau):
    """Uses the first min_lr for every group."""

    def reduce(self) -> None:
        self.min_lrs = [self.min_lrs[0]] * len(self.min_lrs)
        super().reduce()


class RaisesToTheFloor(plateau.ReduceLROnPlateau):
    """Lifts a rate that starts below its floor."""

    def reduce(self) -> None:
        for group, floor in zip(self.optimizer.param_groups, self.min_lrs, strict=True):
            group["lr"] = max(group["lr"] * self.factor, floor)


@spec("LR-07", violated_by=[HasNoFloor, SharesTheFirstFloor, RaisesToTheFloor])
def test_min_lr_is_a_floor_for_all_groups_or_one_for_each(ReduceLROnPlateau: Scheduler) -> None:
    """A group that starts below its floor stays where it is."""
    for min_lr, expected in [(0.3, [0.3, 0.3, 0.1]), ([0.3, 0.0, 0.2], [0.3, 0.125, 0.1])]:
        optimizer = optimizer_with(1.0, 1.0, 0.1)
        scheduler = ReduceLROnPlateau(optimizer, factor=0.5, patience=0, min_lr=min_lr)
        for _ in range(4):  # the first epoch sets the best, three are bad
            scheduler.step(1.0)
        assert [group["lr"] for group in optimizer.param_groups] == expected
