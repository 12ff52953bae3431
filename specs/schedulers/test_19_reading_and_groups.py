"""Reading the learning rate, and parameter groups that come late.

At the end you know which number get_last_lr() gives and which one get_lr() gives, and what happens
to a group that is added after the scheduler was built.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingWarmRestarts,
    LambdaLR,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)

from reference import schedulers
from specs.harness import known_bug, raising, rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe
from specs.harness.versions import torch_release

Scheduler = Callable[..., Any]


def sgd(*rates: float) -> SGD:
    """An optimizer with one parameter group for each learning rate."""
    return SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates])


def add_group(optimizer: Optimizer, lr: float) -> None:
    """Add a parameter group with this learning rate to the optimizer."""
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": lr})


def rates_in_use(optimizer: Optimizer) -> list[float]:
    """The rate of every group that the next optimizer step will use."""
    return [float(group["lr"]) for group in optimizer.param_groups]


# Reading the rate


class ReportsTheRateBefore(StepLR):
    """Reports what the last step used, not what the next one will use."""

    def step(self, epoch: int | None = None) -> None:
        before = [group["lr"] for group in self.optimizer.param_groups]
        super().step(epoch)
        self._last_lr = before


class ReportsTheFirstGroup(StepLR):
    """Reports one rate, whatever the number of groups."""

    def get_last_lr(self) -> list[float]:
        return [float(self.optimizer.param_groups[0]["lr"])]


class ReportsGetLr(StepLR):
    """Calls get_lr() instead of looking at the rate in use."""

    def get_last_lr(self) -> list[float]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [float(rate) for rate in self.get_lr()]


@rule(
    "LR-23",
    "Read the learning rate with get_last_lr(), not with get_lr().",
    kind="contract",
    source="https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.LRScheduler.html",
    subject=StepLR,
    violated_by=[ReportsTheRateBefore, ReportsTheFirstGroup, ReportsGetLr],
)
def test_get_last_lr_gives_the_rates_that_the_next_optimizer_step_uses(StepLR: Scheduler) -> None:
    """One for each parameter group, from the moment the scheduler is built."""
    optimizer = sgd(0.1, 0.02)
    scheduler = StepLR(optimizer, step_size=3, gamma=0.5)
    for t in range(10):
        expected = [schedulers.step(t, lr, step_size=3, gamma=0.5) for lr in (0.1, 0.02)]
        assert agree(scheduler.get_last_lr(), expected)
        assert scheduler.get_last_lr() == rates_in_use(optimizer)
        optimizer.step()
        scheduler.step()


class GetLrGivesTheRateInUse(StepLR):
    """Answers get_lr() as a reader of its name would expect."""

    def get_lr(self) -> list[Any]:
        return super().get_lr() if self._get_lr_called_within_step else self.get_last_lr()


@spec("LR-23", violated_by=[GetLrGivesTheRateInUse])
@pytest.mark.filterwarnings("ignore:To get the last learning rate")
def test_get_lr_reduces_once_more_at_a_milestone(StepLR: Scheduler) -> None:
    """It is what step() computes the next rate with, from the rate that it finds."""
    optimizer = sgd(0.1)
    scheduler = StepLR(optimizer, step_size=2, gamma=0.5)
    for _ in range(2):
        optimizer.step()
        scheduler.step()
    assert (rates_in_use(optimizer), scheduler.get_lr()) == ([0.05], [0.025])


@spec("LR-23", violated_by=[GetLrGivesTheRateInUse])
def test_get_lr_warns_when_it_is_not_called_by_step(StepLR: Scheduler, observe: Observe) -> None:
    """The warning names the method that was meant."""
    scheduler = StepLR(sgd(0.1), step_size=2)
    message = "To get the last learning rate computed by the scheduler"
    with pytest.warns(UserWarning, match=message) as caught:
        scheduler.get_lr()
    observe("warning", caught[0])


class ReportsTheInitialRate(ReduceLROnPlateau):
    """Reports the rate that training began with."""

    def get_last_lr(self) -> list[float]:
        return [0.1, 0.02]


@spec(
    "LR-23",
    subject=ReduceLROnPlateau,
    violated_by=[ReportsTheInitialRate],
)
def test_reduce_lr_on_plateau_reports_its_rate_too(ReduceLROnPlateau: Scheduler) -> None:
    """It has no get_lr(): its next rate depends on a metric that is not known yet."""
    optimizer = sgd(0.1, 0.02)
    scheduler = ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    assert scheduler.get_last_lr() == [0.1, 0.02]
    for expected in ([0.1, 0.02], [0.05, 0.01], [0.025, 0.005]):
        scheduler.step(1.0)  # never better than the first time
        assert scheduler.get_last_lr() == rates_in_use(optimizer) == expected


class TakesAnEpochInSilence(StepLR):
    """Jumps to any epoch without a word."""

    def step(self, epoch: int | None = None) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            super().step(epoch)


class IgnoresTheEpoch(StepLR):
    """Warns, and then makes one step."""

    def step(self, epoch: int | None = None) -> None:
        super().step(epoch if epoch is None else self.last_epoch + 1)


@spec("LR-23", violated_by=[TakesAnEpochInSilence, IgnoresTheEpoch])
def test_step_with_an_epoch_is_deprecated_and_jumps(StepLR: Scheduler, observe: Observe) -> None:
    """Call step() without an argument, once for each step of the schedule."""
    optimizer = sgd(0.1)
    scheduler = StepLR(optimizer, step_size=2, gamma=0.5)
    optimizer.step()
    with pytest.warns(UserWarning, match="The epoch parameter in `scheduler.step") as caught:
        scheduler.step(5)
    observe("warning", caught[0])
    assert scheduler.get_last_lr() == [0.1 * 0.5**2]


class StepsByOne(CosineAnnealingWarmRestarts):
    """Makes one step, whatever part of an epoch it is told."""

    def step(self, epoch: float | None = None) -> None:  # noqa: ARG002
        super().step()


class WarnsAboutTheEpoch(CosineAnnealingWarmRestarts):
    """Treats the epoch as the other schedulers do."""

    def step(self, epoch: float | None = None) -> None:
        if epoch is not None:
            warnings.warn("The epoch parameter is deprecated", UserWarning, stacklevel=2)
        super().step(epoch)  # type: ignore[arg-type]


@spec(
    "LR-23",
    subject=CosineAnnealingWarmRestarts,
    violated_by=[StepsByOne, raising(UserWarning, WarnsAboutTheEpoch)],
)
@pytest.mark.filterwarnings("error")
def test_cosine_annealing_warm_restarts_takes_parts_of_an_epoch(
    CosineAnnealingWarmRestarts: Scheduler,
) -> None:
    """The one scheduler whose step(epoch) is documented: epoch + batch / batches, no warning."""
    optimizer = sgd(0.1)
    scheduler = CosineAnnealingWarmRestarts(optimizer, T_0=2, eta_min=0.01)
    for batch in range(12):
        epoch = batch / 4
        optimizer.step()
        scheduler.step(epoch)
        # With T_0=2 in epochs and 4 batches an epoch, this is a schedule of T_0=8 batches.
        expected = schedulers.cosine_annealing_warm_restarts(batch, 0.1, T_0=8, eta_min=0.01)
        assert agree(scheduler.get_last_lr(), [expected])


class AcceptsVerbose(StepLR):
    """Still takes verbose=True, and says nothing."""

    def __init__(self, optimizer: Optimizer, step_size: int, *, verbose: bool = False) -> None:
        self.verbose = verbose
        super().__init__(optimizer, step_size)


@spec("LR-23", violated_by=[AcceptsVerbose])
def test_verbose_is_gone_since_2_7(StepLR: Scheduler, observe: Observe) -> None:
    """Up to torch 2.6 it was deprecated. Print get_last_lr() instead."""
    if torch_release() >= (2, 7):
        with pytest.raises(TypeError, match="verbose") as error:
            StepLR(sgd(0.1), step_size=2, verbose=True)
        observe("verbose", error.value)
    else:
        with pytest.warns(UserWarning, match="The verbose parameter is deprecated") as caught:
            StepLR(sgd(0.1), step_size=2, verbose=True)
        observe("verbose", caught[0])


# Parameter groups that come late


class IgnoresLateGroups(LambdaLR):
    """Leaves a group alone that has no function."""

    def get_lr(self) -> list[Any]:
        known = zip(self.lr_lambdas, self.base_lrs, strict=True)
        rates = [base_lr * function(self.last_epoch) for function, base_lr in known]
        return rates + rates_in_use(self.optimizer)[len(rates) :]


class GivesLateGroupsTheFirstFunction(LambdaLR):
    """Makes do with what it has."""

    def get_lr(self) -> list[Any]:
        for group in self.optimizer.param_groups[len(self.base_lrs) :]:
            self.base_lrs.append(group["lr"])
            self.lr_lambdas.append(self.lr_lambdas[0])
        return super().get_lr()


@rule(
    "LR-24",
    "Add every parameter group before the scheduler is built.",
    kind="practice",
    source="https://docs.pytorch.org/docs/stable/generated/torch.optim.Optimizer.add_param_group.html",
    subject=known_bug(
        LambdaLR,
        "https://github.com/pytorch/pytorch/blob/v2.10.0/torch/optim/lr_scheduler.py#L296",
        fixed_in="2.10",
    ),
    violated_by=[IgnoresLateGroups, GivesLateGroupsTheFirstFunction],
    consequence="A group that asks for 0.1 during a warm-up by a factor of 0.5 gets 0.2 after it.",
)
def test_a_scheduler_with_a_value_for_each_group_refuses_a_late_one(LambdaLR: Scheduler) -> None:
    """LambdaLR, MultiplicativeLR, CyclicLR and CosineAnnealingWarmRestarts raise at the next step.

    Up to torch 2.9 they left the new group at its rate, in silence.
    """
    optimizer = sgd(0.1)
    scheduler = LambdaLR(optimizer, lambda t: 0.5**t)
    add_group(optimizer, lr=0.1)
    optimizer.step()
    with pytest.raises(ValueError):  # noqa: PT011 - the message is that of Python's zip
        scheduler.step()


class FillsInWhatIsMissing(OneCycleLR):
    """Gives late groups the cycle of the first one."""

    def step(self, epoch: int | None = None) -> None:
        for group in self.optimizer.param_groups[1:]:
            for key in ("initial_lr", "max_lr", "min_lr"):
                group.setdefault(key, self.optimizer.param_groups[0][key])
        super().step(epoch)


@spec("LR-24", subject=OneCycleLR, violated_by=[FillsInWhatIsMissing])
def test_one_cycle_refuses_a_late_group(OneCycleLR: Scheduler) -> None:
    """It keeps the rates of the cycle in the groups themselves, and the new one has none."""
    optimizer = sgd(0.1)
    scheduler = OneCycleLR(optimizer, max_lr=0.1, total_steps=10, cycle_momentum=False)
    add_group(optimizer, lr=0.1)
    optimizer.step()
    with pytest.raises(KeyError, match="initial_lr"):
        scheduler.step()


class RepeatsTheLastFloor(ReduceLROnPlateau):
    """Gives late groups the floor of the last group that has one."""

    def step(self, metrics: Any, epoch: int | None = None) -> None:
        missing = len(self.optimizer.param_groups) - len(self.min_lrs)
        self.min_lrs = [*self.min_lrs, *self.min_lrs[-1:] * missing]
        super().step(metrics, epoch)


@spec("LR-24", subject=ReduceLROnPlateau, violated_by=[RepeatsTheLastFloor])
def test_reduce_lr_on_plateau_with_a_floor_for_each_group_refuses_a_late_one(
    ReduceLROnPlateau: Scheduler,
) -> None:
    """Not when the group is added, and not at the next step: when it is time to reduce."""
    optimizer = sgd(0.1)
    scheduler = ReduceLROnPlateau(optimizer, patience=0, min_lr=[0.001])
    scheduler.step(1.0)
    add_group(optimizer, lr=0.1)
    with pytest.raises(RuntimeError, match="The number of param groups in the `optimizer`"):
        scheduler.step(1.0)


class RefusesEveryLateGroup(ReduceLROnPlateau):
    """Never lets the number of groups change."""

    def step(self, metrics: Any, epoch: int | None = None) -> None:
        if len(self.optimizer.param_groups) > 1:
            raise RuntimeError("the number of param groups has changed")
        super().step(metrics, epoch)


class ReducesTheFirstGroup(ReduceLROnPlateau):
    """Leaves late groups alone."""

    def step(self, metrics: Any, epoch: int | None = None) -> None:
        late = self.optimizer.param_groups[1:]
        rates = [group["lr"] for group in late]
        super().step(metrics, epoch)
        for group, rate in zip(late, rates, strict=True):
            group["lr"] = rate


@spec(
    "LR-24",
    subject=ReduceLROnPlateau,
    violated_by=[raising(RuntimeError, RefusesEveryLateGroup), ReducesTheFirstGroup],
)
def test_reduce_lr_on_plateau_with_one_floor_takes_a_late_group(
    ReduceLROnPlateau: Scheduler,
) -> None:
    """It needs nothing from the group but its rate, and the floor is the same for all."""
    optimizer = sgd(0.1)
    scheduler = ReduceLROnPlateau(optimizer, factor=0.5, patience=0, min_lr=0.03)
    scheduler.step(1.0)
    add_group(optimizer, lr=0.4)
    used = []
    for _ in range(3):
        scheduler.step(1.0)
        used.append(rates_in_use(optimizer))
    assert used == [[0.05, 0.2], [0.03, 0.1], [0.03, 0.05]]


class StartsLateGroupsLow(ConstantLR):
    """Applies the factor of the warm-up to a group that comes during it."""

    def step(self, epoch: int | None = None) -> None:
        for group in self.optimizer.param_groups:
            if "initial_lr" not in group:
                group["initial_lr"] = group["lr"]
                group["lr"] *= self.factor
        super().step(epoch)


@spec("LR-24", subject=ConstantLR, violated_by=[StartsLateGroupsLow])
def test_a_warm_up_raises_a_late_group_above_the_rate_it_asked_for(
    ConstantLR: Scheduler, observe: Observe
) -> None:
    """At its end the warm-up takes back the factor 0.5, which the new group never had: 0.1 / 0.5.

    LinearLR, PolynomialLR and CosineAnnealingLR scale the rate that they find in the same way.
    """
    optimizer = sgd(0.1)
    scheduler = ConstantLR(optimizer, factor=0.5, total_iters=3)
    used = [rates_in_use(optimizer)]
    for step in range(4):
        if step == 1:
            add_group(optimizer, lr=0.1)
        optimizer.step()
        scheduler.step()
        used.append(rates_in_use(optimizer))
    observe("rates", used)
    assert used == [[0.05], [0.05], [0.05, 0.1], [0.1, 0.2], [0.1, 0.2]]
