"""`last_epoch`, the argument by which a scheduler resumes without its state.

At the end you know what it needs, what it means, and where it goes wrong. After this, resuming
through `load_state_dict` (see test_17_resume.py) looks simpler, and it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import (
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    SequentialLR,
    StepLR,
)

from reference import schedulers
from specs.harness import known_bug, rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe

Scheduler = Callable[..., LRScheduler]

#: The learning rates of the two parameter groups that every optimizer here has.
BASE_LRS = (0.1, 0.02)


def optimizer_with(rates: list[float], initial: tuple[float | None, float | None]) -> SGD:
    """An optimizer as a checkpoint leaves it: a current and an initial rate in each group."""
    groups = []
    for rate, initial_lr in zip(rates, initial, strict=True):
        group: dict[str, Any] = {"params": [nn.Parameter(torch.zeros(1))], "lr": rate}
        if initial_lr is not None:
            group["initial_lr"] = initial_lr
        groups.append(group)
    return SGD(groups, lr=0.1)


def rates_of_the_next_steps(steps: int, scheduler: LRScheduler) -> list[list[float]]:
    """The learning rates of all groups at each of the next steps, which are made."""
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


def halved_every_step(optimizer: Optimizer, LambdaLR: Scheduler, last_epoch: int) -> LRScheduler:
    """The schedule base_lr * 0.5 ** t."""
    return LambdaLR(optimizer, lambda t: 0.5**t, last_epoch=last_epoch)


class TakesTheCurrentRateAsTheInitialOne(LambdaLR):
    """Fills in what is missing, so that a schedule starts over from where it was."""

    def __init__(self, optimizer: Optimizer, lr_lambda: Any, last_epoch: int = -1) -> None:
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        super().__init__(optimizer, lr_lambda, last_epoch)


class LooksAtTheFirstGroupOnly(LambdaLR):
    """Asks the first group for its initial rate, and gives it to the others."""

    def __init__(self, optimizer: Optimizer, lr_lambda: Any, last_epoch: int = -1) -> None:
        for group in optimizer.param_groups[1:]:
            group.setdefault("initial_lr", optimizer.param_groups[0].get("initial_lr", 0.1))
        super().__init__(optimizer, lr_lambda, last_epoch)


class IgnoresLastEpoch(LambdaLR):
    """Starts from step 0."""

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Any,
        last_epoch: int = -1,  # noqa: ARG002
    ) -> None:
        super().__init__(optimizer, lr_lambda)


class GoesOnAtLastEpoch(LambdaLR):
    """Reads last_epoch as the epoch to come, not as the last one that was trained."""

    def __init__(self, optimizer: Optimizer, lr_lambda: Any, last_epoch: int = -1) -> None:
        super().__init__(optimizer, lr_lambda, last_epoch - 1)


class NamesNoGroup(LambdaLR):
    """Raises the right error without saying which group is meant."""

    def __init__(self, optimizer: Optimizer, lr_lambda: Any, last_epoch: int = -1) -> None:
        if any("initial_lr" not in group for group in optimizer.param_groups):
            raise KeyError("initial_lr")
        super().__init__(optimizer, lr_lambda, last_epoch)


@rule(
    "LR-22",
    "A scheduler that is resumed by last_epoch needs every group's 'initial_lr' and current rate.",
    kind="contract",
    source="https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.LRScheduler.html",
    subject=LambdaLR,
    violated_by=[TakesTheCurrentRateAsTheInitialOne, LooksAtTheFirstGroupOnly],
)
def test_a_group_without_an_initial_rate_is_refused(LambdaLR: Scheduler) -> None:
    """The current rate cannot stand in for it: the schedule has already changed that one."""
    for initial in [(None, None), (0.1, None), (None, 0.02)]:
        for last_epoch in (0, 3):
            with pytest.raises(KeyError):
                halved_every_step(optimizer_with([0.1, 0.02], initial), LambdaLR, last_epoch)


@spec("LR-22", violated_by=[NamesNoGroup])
def test_the_error_names_the_group(LambdaLR: Scheduler, observe: Observe) -> None:
    """The end of this message has changed between releases, its beginning has not."""
    with pytest.raises(
        KeyError, match=r"param 'initial_lr' is not specified in param_groups\[1\]"
    ) as error:
        halved_every_step(optimizer_with([0.1, 0.02], (0.1, None)), LambdaLR, 3)
    observe("error", error.value)


@spec("LR-22", violated_by=[IgnoresLastEpoch, GoesOnAtLastEpoch])
def test_last_epoch_is_the_last_one_that_was_trained(LambdaLR: Scheduler) -> None:
    """With last_epoch=k the next step is step k + 1, counted from the initial rates."""
    for k in (0, 1, 6):
        stopped = optimizer_with([lr * 0.5**k for lr in BASE_LRS], initial=BASE_LRS)
        resumed = halved_every_step(stopped, LambdaLR, last_epoch=k)
        assert rates_of_the_next_steps(3, resumed) == [
            [lr * 0.5**t for lr in BASE_LRS] for t in (k + 1, k + 2, k + 3)
        ]


class DecaysWhenItIsBuilt(ExponentialLR):
    """Multiplies the rate that it finds by gamma, as if the step had not been made."""

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1) -> None:
        found = [group["lr"] for group in optimizer.param_groups]
        super().__init__(optimizer, gamma, last_epoch)
        if last_epoch >= 0:
            for group, rate in zip(optimizer.param_groups, found, strict=True):
                group["lr"] = rate * gamma


class ForgetsTheRateItFinds(ExponentialLR):
    """Starts from the initial rate."""

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1) -> None:
        super().__init__(optimizer, gamma, last_epoch)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"]


@spec(
    "LR-22",
    subject=known_bug(
        ExponentialLR, "https://github.com/pytorch/pytorch/issues/102261", fixed_in="2.8"
    ),
    violated_by=[DecaysWhenItIsBuilt, ForgetsTheRateItFinds],
)
def test_building_leaves_the_rate_that_was_loaded(ExponentialLR: Scheduler) -> None:
    """A checkpoint is written after scheduler.step(): its rate is that of the epoch to come.

    Up to torch 2.7 the rate was multiplied once more, and the schedule skipped a step.
    """
    rates = [[lr * 0.9**t for lr in BASE_LRS] for t in range(8)]
    resumed = ExponentialLR(optimizer_with(rates[4], BASE_LRS), gamma=0.9, last_epoch=3)
    assert agree(rates_of_the_next_steps(4, resumed), rates[4:8])


class KeepsTheRateItFinds(StepLR):
    """A StepLR that changes nothing when it is built to resume."""

    def __init__(
        self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        found = [group["lr"] for group in optimizer.param_groups]
        super().__init__(optimizer, step_size, gamma, last_epoch)
        if last_epoch >= 0:
            for group, rate in zip(optimizer.param_groups, found, strict=True):
                group["lr"] = rate


class ReducesAtEveryStart(KeepsTheRateItFinds):
    """Multiplies the rate that it finds by gamma."""

    def __init__(
        self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        super().__init__(optimizer, step_size, gamma, last_epoch)
        for group in optimizer.param_groups:
            group["lr"] *= gamma


@spec(
    "LR-22",
    subject=[
        known_bug(StepLR, "https://github.com/pytorch/pytorch/issues/102261"),
        KeepsTheRateItFinds,
    ],
    violated_by=[ReducesAtEveryStart],
)
def test_a_run_that_stopped_at_a_milestone_is_not_reduced_twice(
    StepLR: Scheduler, observe: Observe
) -> None:
    """PyTorch's StepLR reduces again: 0.025 where 0.05 is due. The fix of 2.8 left it out."""
    rates = [[lr * 0.5 ** (t // 4) for lr in BASE_LRS] for t in range(10)]
    # Step 4 is the first one with the halved rate, and the checkpoint holds that rate.
    at_the_milestone = optimizer_with(rates[4], BASE_LRS)
    resumed = StepLR(at_the_milestone, step_size=4, gamma=0.5, last_epoch=3)
    resumed_rates = rates_of_the_next_steps(6, resumed)
    observe("rates", resumed_rates)
    assert resumed_rates == rates[4:10]


# A warm-up of three steps, and then an exponential decay

WARM_UP_STEPS = 3


def warm_up_then_decay(
    optimizer: Optimizer, SequentialLR: Scheduler, **last_epoch: int
) -> LRScheduler:
    """The schedule of LR-19, built by the class that is judged."""
    warm_up = LinearLR(optimizer, start_factor=0.1, total_iters=WARM_UP_STEPS)
    decay = ExponentialLR(optimizer, gamma=0.9)
    return SequentialLR(optimizer, [warm_up, decay], milestones=[WARM_UP_STEPS], **last_epoch)


def expected_rates(steps: range) -> list[list[float]]:
    """What the closed form gives at these steps, in both groups."""
    return [
        [
            schedulers.sequential(
                t,
                [
                    partial(
                        schedulers.linear,
                        base_lr=lr,
                        start_factor=0.1,
                        total_iters=WARM_UP_STEPS,
                    ),
                    partial(schedulers.exponential, base_lr=lr, gamma=0.9),
                ],
                milestones=[WARM_UP_STEPS],
            )
            for lr in BASE_LRS
        ]
        for t in steps
    ]


class ForgetsItsParts(SequentialLR):
    """Restores which step it is at, but not the schedulers that it is made of."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        own = {key: value for key, value in state_dict.items() if key != "_schedulers"}
        self.__dict__.update(own)


class ForgetsItsStep(SequentialLR):
    """Restores the schedulers that it is made of, but not which step it is at."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self._schedulers, state_dict["_schedulers"], strict=True):
            part.load_state_dict(state)


@rule(
    "LR-19",
    "Resume SequentialLR through its state_dict: with last_epoch it starts over.",
    kind="practice",
    source="https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.SequentialLR.html",
    subject=SequentialLR,
    violated_by=[ForgetsItsParts, ForgetsItsStep],
    consequence="A warm-up to 0.1 that is resumed by last_epoch in its decay begins again at 0.01"
    " where 0.081 is due, and decays from there.",
)
def test_sequential_lr_goes_on_from_its_state(SequentialLR: Scheduler) -> None:
    """Stopped in the warm-up, at the milestone, and in the decay."""
    for stop in (1, WARM_UP_STEPS, 6):
        optimizer = optimizer_with(list(BASE_LRS), initial=(None, None))
        scheduler = warm_up_then_decay(optimizer, SequentialLR)
        rates_of_the_next_steps(stop, scheduler)
        saved = optimizer.state_dict(), scheduler.state_dict()

        resumed_optimizer = optimizer_with(list(BASE_LRS), initial=(None, None))
        resumed = warm_up_then_decay(resumed_optimizer, SequentialLR)
        resumed_optimizer.load_state_dict(saved[0])
        resumed.load_state_dict(saved[1])
        # Each rate was multiplied at every step before it.
        rates = rates_of_the_next_steps(5, resumed)
        assert agree(rates, expected_rates(range(stop, stop + 5)), ulps=32)


class FastForwarded(SequentialLR):
    """What last_epoch should do: as many steps from the beginning as it says, and one more."""

    def __init__(
        self,
        optimizer: Optimizer,
        schedulers: list[LRScheduler],
        milestones: list[int],
        last_epoch: int = -1,
    ) -> None:
        super().__init__(optimizer, schedulers, milestones)
        optimizer.step()  # nothing to update yet; it only spares us a warning about the order
        for _ in range(last_epoch + 1):
            self.step()


class FastForwardedTooLittle(FastForwarded):
    """Takes last_epoch for the epoch to come."""

    def __init__(
        self,
        optimizer: Optimizer,
        schedulers: list[LRScheduler],
        milestones: list[int],
        last_epoch: int = -1,
    ) -> None:
        super().__init__(optimizer, schedulers, milestones, last_epoch - 1)


class StartsOver(SequentialLR):
    """Ignores last_epoch altogether."""

    def __init__(
        self,
        optimizer: Optimizer,
        schedulers: list[LRScheduler],
        milestones: list[int],
        last_epoch: int = -1,  # noqa: ARG002
    ) -> None:
        super().__init__(optimizer, schedulers, milestones)


@spec(
    "LR-19",
    subject=[
        known_bug(SequentialLR, "https://github.com/pytorch/pytorch/issues/162591"),
        FastForwarded,
    ],
    violated_by=[FastForwardedTooLittle, StartsOver],
)
def test_last_epoch_continues_after_the_epoch_it_names(
    SequentialLR: Scheduler, observe: Observe
) -> None:
    """As every other scheduler's last_epoch does; PyTorch's SequentialLR begins at 0.01 again."""
    observed = {}
    expected = {}
    for last_epoch in (0, 1, WARM_UP_STEPS, 4):
        expected[last_epoch] = expected_rates(range(last_epoch + 1, last_epoch + 6))
        stopped = optimizer_with(expected_rates(range(last_epoch, last_epoch + 1))[0], BASE_LRS)
        resumed = warm_up_then_decay(stopped, SequentialLR, last_epoch=last_epoch)
        observed[last_epoch] = rates_of_the_next_steps(5, resumed)
    observe("rates after last_epoch", observed)
    for last_epoch, rates in observed.items():
        assert agree(rates, expected[last_epoch], ulps=32), last_epoch
