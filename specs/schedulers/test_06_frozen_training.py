"""On trial: does a learning rate without a floor decay to zero, and does training freeze then?

At the end you will know which schedules end at zero for good, which only get close, which come
back up, and what each of them means for a training that goes on.

A list of rates is always: the learning rate before the first scheduler step, after it, and so on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from math import cos, pi
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    PolynomialLR,
    ReduceLROnPlateau,
)

from reference import plateau
from reference.data import batches, digits
from reference.training import train_one_epoch
from specs.harness import rule, spec

PAGE = "https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler"

# A scheduler class, or a function that builds a scheduler from the same arguments.
Scheduler = Callable[..., Any]


def optimizer_with(rate: float) -> SGD:
    """An optimizer with one parameter."""
    return SGD([torch.zeros(1, requires_grad=True)], lr=rate)


def rates_of(scheduler: LRScheduler, steps: int) -> list[float]:
    """The rate before each of `steps` scheduler steps, and after the last."""
    rates = [scheduler.optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        scheduler.optimizer.step()
        scheduler.step()
        rates.append(scheduler.optimizer.param_groups[0]["lr"])
    return rates


def loss_change(*rates: float) -> float:
    """How much the training loss of a half-trained digits classifier changes in further epochs.

    One epoch is trained with each of the rates. Learning makes the change negative.
    """
    inputs, targets = digits()[:2]
    torch.manual_seed(0)
    model = nn.Linear(64, 10)
    optimizer = SGD(model.parameters(), lr=0.5)
    data = batches(inputs, targets, 240)
    losses = []
    for rate in (0.5, *rates):
        optimizer.param_groups[0]["lr"] = rate
        train_one_epoch(model, data, cross_entropy, optimizer)
        losses.append(cross_entropy(model(inputs), targets).item())
    return losses[-1] - losses[0]


# --- Zero for good --------------------------------------------------------------------------------


def polynomial_with_a_floor(optimizer: Optimizer, total_iters: int) -> LRScheduler:
    """Stops falling at a tenth of the rate."""
    return LambdaLR(optimizer, lambda t: max(0.1, 1 - t / total_iters))


def polynomial_that_comes_back(optimizer: Optimizer, total_iters: int) -> LRScheduler:
    """Rises again after its end."""
    return LambdaLR(optimizer, lambda t: abs(1 - t / total_iters))


def polynomial_that_warns(optimizer: Optimizer, total_iters: int) -> LRScheduler:
    """Ends at zero, but says so."""

    def share(t: int) -> float:
        if t >= total_iters:
            warnings.warn("the learning rate is 0", stacklevel=2)
        return max(0.0, 1 - t / total_iters)

    return LambdaLR(optimizer, share)


@rule(
    "CLAIM-07",
    "Without a floor the learning rate decays to zero and training silently freezes.",
    kind="claim",
    source=f"{PAGE}.PolynomialLR.html",
    subject=PolynomialLR,
    violated_by=[polynomial_with_a_floor, polynomial_that_comes_back, polynomial_that_warns],
    verdict="holds if the schedule stays down: PolynomialLR and LinearLR(end_factor=0) at zero,"
    " ExponentialLR and ReduceLROnPlateau near it; the cosine schedules come back up",
)
def test_polynomial_lr_freezes_training_for_good_and_says_nothing(PolynomialLR: Scheduler) -> None:
    """From step total_iters on the rate is exactly zero, and no warning tells."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        rates = rates_of(PolynomialLR(optimizer_with(0.5), total_iters=5), steps=9)
    assert rates[5:] == [0.0, 0.0, 0.0, 0.0, 0.0]
    assert loss_change(*rates[5:]) == 0.0
    assert said == []


class KeepsATenth(LinearLR):
    """Ends at a tenth where it should end at zero."""

    def __init__(self, optimizer: Optimizer, **settings: Any) -> None:
        super().__init__(optimizer, **{**settings, "end_factor": 0.1})


@spec("CLAIM-07", subject=LinearLR, violated_by=[KeepsATenth])
def test_linear_lr_freezes_training_if_its_end_factor_is_zero(LinearLR: Scheduler) -> None:
    """The default end_factor of 1.0 is a warm-up and freezes nothing."""
    down = LinearLR(optimizer_with(0.5), start_factor=1.0, end_factor=0.0, total_iters=5)
    rates = rates_of(down, steps=9)
    assert rates[5:] == [0.0, 0.0, 0.0, 0.0, 0.0]
    assert loss_change(*rates[5:]) == 0.0

    warm_up = LinearLR(optimizer_with(0.5), start_factor=0.5, total_iters=5)
    assert rates_of(warm_up, steps=9)[5:] == [0.5, 0.5, 0.5, 0.5, 0.5]


# --- Never zero, but too small to matter ----------------------------------------------------------


class ExponentialWithAFloor(ExponentialLR):
    """Never falls below a hundredth."""

    def get_lr(self) -> list[Any]:
        rates = zip(super().get_lr(), self.base_lrs, strict=True)
        return [max(rate, 0.01 * base) for rate, base in rates]


def exponential_cut_to_zero(optimizer: Optimizer, gamma: float) -> LRScheduler:
    """Rounds a tiny rate to zero."""
    return LambdaLR(optimizer, lambda t: gamma**t if t < 100 else 0.0)


@spec(
    "CLAIM-07",
    subject=ExponentialLR,
    violated_by=[ExponentialWithAFloor, exponential_cut_to_zero],
)
def test_exponential_lr_is_never_zero_but_gets_too_small(ExponentialLR: Scheduler) -> None:
    """A tenth less in each of 200 epochs leaves 0.9**200 = 7e-10 of the rate. That is lost in the
    rounding of float32 weights: five more epochs do not move the loss by a millionth."""
    rates = rates_of(ExponentialLR(optimizer_with(0.5), gamma=0.9), steps=205)
    assert min(rates) > 0.0
    assert rates[200] == pytest.approx(0.5 * 0.9**200, rel=1e-12)
    assert abs(loss_change(*rates[200:205])) < 1e-6
    assert loss_change(*rates[10:15]) < -0.1  # in the epochs from 10 on it still learns well


def rate_after_20_bad_epochs(scheduler_class: Scheduler, **settings: Any) -> float:
    """The rate to which ReduceLROnPlateau has brought 0.5 down, with patience 0."""
    optimizer = optimizer_with(0.5)
    scheduler = scheduler_class(optimizer, patience=0, **settings)
    for _ in range(21):  # the first epoch sets the best
        scheduler.step(1.0)
    return float(optimizer.param_groups[0]["lr"])


class PlateauWithAFloor(plateau.ReduceLROnPlateau):
    """Has min_lr=0.01 by default."""

    def __init__(self, optimizer: Any, **settings: Any) -> None:
        super().__init__(optimizer, **{"min_lr": 0.01, **settings})


class PlateauDownToZero(plateau.ReduceLROnPlateau):
    """Rounds a rate below 1e-7 to zero."""

    def reduce(self) -> None:
        super().reduce()
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"] if group["lr"] > 1e-7 else 0.0


@spec(
    "CLAIM-07",
    subject=[ReduceLROnPlateau, plateau.ReduceLROnPlateau],
    violated_by=[PlateauWithAFloor, PlateauDownToZero],
)
def test_reduce_lr_on_plateau_stalls_above_zero_but_too_low(ReduceLROnPlateau: Scheduler) -> None:
    """Without min_lr it ends near 1e-8 (LR-07). A min_lr of 0.01 keeps the same training going."""
    rate = rate_after_20_bad_epochs(ReduceLROnPlateau)
    assert 0.0 < rate < 1e-7
    assert abs(loss_change(rate, rate, rate, rate, rate)) < 1e-6

    rate = rate_after_20_bad_epochs(ReduceLROnPlateau, min_lr=0.01)
    assert loss_change(rate, rate, rate, rate, rate) < -0.02


# --- Down and back up -----------------------------------------------------------------------------


def cosine_that_stays_down(optimizer: Optimizer, T_max: int) -> LRScheduler:
    """Stays at zero after T_max steps."""
    return LambdaLR(optimizer, lambda t: (1 + cos(pi * min(t, T_max) / T_max)) / 2)


@spec("CLAIM-07", subject=CosineAnnealingLR, violated_by=[cosine_that_stays_down])
def test_cosine_annealing_lr_stands_still_for_one_step(CosineAnnealingLR: Scheduler) -> None:
    """At step T_max=5 the rate is zero, in the steps after it the rate and the learning return."""
    rates = rates_of(CosineAnnealingLR(optimizer_with(0.5), T_max=5), steps=9)
    assert loss_change(rates[5]) == 0.0
    assert loss_change(*rates[6:]) < -0.1


def restarts_one_step_late(optimizer: Optimizer, T_0: int) -> LRScheduler:
    """Takes one step at zero before each restart."""
    return LambdaLR(optimizer, lambda t: (1 + cos(pi * (t % (T_0 + 1)) / T_0)) / 2)


@spec("CLAIM-07", subject=CosineAnnealingWarmRestarts, violated_by=[restarts_one_step_late])
def test_warm_restarts_never_reach_zero(CosineAnnealingWarmRestarts: Scheduler) -> None:
    """Where the cosine would be at zero, the next one starts at the top."""
    rates = rates_of(CosineAnnealingWarmRestarts(optimizer_with(0.5), T_0=5), steps=20)
    assert min(rates) > 0.0
    assert rates[5] == rates[10] == rates[15] == 0.5
