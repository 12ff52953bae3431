"""Arguments of the closed forms that are easily misread.

At the end you know what a milestone does that is listed twice, from where CyclicLR counts its
iterations, how to step warm restarts by the batch when their periods are given in epochs, and that
cycled momenta belong to the parameter group.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingWarmRestarts,
    CyclicLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
)

from reference import schedulers
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe
from specs.schedulers.traces import BASE_LRS, STEPS, Scheduler, adam, momenta_used, rates_used, sgd

#: Each step rounds about three times, and the roundings of all steps add up. Nothing is above 1.
ULPS = 3 * STEPS


# ---------------------------------------------------------------- LR-04: repeated milestones


def counts_each_milestone_once(
    optimizer: Optimizer, milestones: list[int], gamma: float = 0.1
) -> LRScheduler:
    """A MultiStepLR that does not see that a milestone is repeated."""
    return MultiStepLR(optimizer, sorted(set(milestones)), gamma)


@rule(
    "LR-04",
    "A milestone that is listed n times multiplies the rate by gamma ** n.",
    kind="contract",
    source="https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.MultiStepLR.html",
    subject=MultiStepLR,
    violated_by=[counts_each_milestone_once],
)
def test_a_milestone_listed_twice_decays_twice(MultiStepLR: Scheduler, observe: Observe) -> None:
    """Milestones are counted, so [3, 3, 5] decays twice at step 3 and once at step 5."""
    optimizer = SGD([torch.zeros(1)], lr=1.0)
    scheduler = MultiStepLR(optimizer, milestones=[3, 3, 5], gamma=0.5)

    used = []
    for _ in range(7):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()

    assert used == [1.0, 1.0, 1.0, 0.25, 0.25, 0.125, 0.125]
    observe("rates", used)


@spec("LR-04", violated_by=[counts_each_milestone_once])
@given(
    milestones=st.lists(st.integers(0, 9), max_size=8).map(sorted),
    gamma=st.sampled_from([0.1, 0.5, 0.9]),
)
def test_any_list_of_milestones_follows_the_closed_form(
    MultiStepLR: Scheduler, milestones: list[int], gamma: float
) -> None:
    """base_lr * gamma ** (number of milestones m with m <= t), repetitions counted"""
    arguments = {"milestones": milestones, "gamma": gamma}
    expected = [[schedulers.multi_step(t, lr, **arguments) for lr in BASE_LRS] for t in range(12)]
    assert agree(rates_used(MultiStepLR, arguments, steps=12), expected, ulps=ULPS)


# ---------------------------------------------------------------- LR-26: momenta of the groups

ONE_CYCLES: list[dict[str, Any]] = [
    {"total_steps": 60},
    {"total_steps": 60, "three_phase": True, "pct_start": 0.25},
]
CYCLES: list[dict[str, Any]] = [
    {},
    {"step_size_up": 6},
    {"step_size_up": 3, "mode": "triangular2"},
    {"step_size_up": 6, "step_size_down": 2, "mode": "exp_range", "gamma": 0.9},
]

#: Bounds of the momentum for each of the two parameter groups.
MOMENTA: dict[str, Any] = {"base_momentum": [0.8, 0.5], "max_momentum": [0.9, 0.7]}
MOMENTA_OF_GROUP = [
    {"base_momentum": 0.8, "max_momentum": 0.9},
    {"base_momentum": 0.5, "max_momentum": 0.7},
]


def one_cycle_with_the_first_bounds(
    optimizer: Optimizer, base_momentum: list[float], max_momentum: list[float], **arguments: Any
) -> LRScheduler:
    """A OneCycleLR that gives every group the first bounds of the lists."""
    first = {"base_momentum": base_momentum[0], "max_momentum": max_momentum[0]}
    return OneCycleLR(optimizer, **first, **arguments)


@rule(
    "LR-26",
    "Each parameter group has its own momentum cycle, and a resumed run continues it.",
    kind="contract",
    source="https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.OneCycleLR.html",
    subject=OneCycleLR,
    violated_by=[one_cycle_with_the_first_bounds],
)
def test_one_cycle_lr_cycles_the_momentum_of_each_group(OneCycleLR: Scheduler) -> None:
    """The bounds may be lists with a value for each group. Adam's momentum is its first beta."""
    for shape in ONE_CYCLES:
        arguments = {"max_lr": 0.1, **shape, **MOMENTA}
        expected = [
            [schedulers.one_cycle_momentum(t, **shape, **bounds) for bounds in MOMENTA_OF_GROUP]
            for t in range(STEPS)
        ]
        for optimizer in [sgd, adam]:
            used = momenta_used(OneCycleLR, arguments, optimizer)
            resumed = momenta_used(OneCycleLR, arguments, optimizer, resume_at=7)
            assert agree(used, expected, ulps=ULPS)
            assert agree(resumed, expected, ulps=ULPS)


def cyclic_with_the_first_bounds(
    optimizer: Optimizer, base_momentum: list[float], max_momentum: list[float], **arguments: Any
) -> LRScheduler:
    """A CyclicLR that gives every group the first bounds of the lists."""
    first = {"base_momentum": base_momentum[0], "max_momentum": max_momentum[0]}
    return CyclicLR(optimizer, **first, **arguments)


@spec("LR-26", subject=CyclicLR, violated_by=[cyclic_with_the_first_bounds])
def test_cyclic_lr_cycles_the_momentum_of_each_group(CyclicLR: Scheduler) -> None:
    """Lowest where the rate peaks. Modes that lower the peaks of the rate leave it higher."""
    for shape in CYCLES:
        arguments = {"base_lr": 0.01, "max_lr": 0.1, **shape, **MOMENTA}
        expected = [
            [schedulers.cyclic_momentum(t, **shape, **bounds) for bounds in MOMENTA_OF_GROUP]
            for t in range(STEPS)
        ]
        for optimizer in [sgd, adam]:
            used = momenta_used(CyclicLR, arguments, optimizer)
            resumed = momenta_used(CyclicLR, arguments, optimizer, resume_at=7)
            assert agree(used, expected, ulps=ULPS)
            assert agree(resumed, expected, ulps=ULPS)


# ---------------------------------------------------------------- CLAIM-28: iterations since when?


def counts_anew_in_each_cycle(
    optimizer: Optimizer,
    step_size_up: int,
    gamma: float = 1.0,
    scale_fn: Callable[[float], float] | None = None,
    **arguments: Any,
) -> LRScheduler:
    """A CyclicLR that counts its iterations from the start of the cycle."""
    scale = scale_fn or (lambda iterations: gamma**iterations)
    arguments |= {"mode": "triangular", "scale_mode": "iterations"}
    return CyclicLR(
        optimizer,
        step_size_up=step_size_up,
        scale_fn=lambda t: scale(t % (2 * step_size_up)),
        **arguments,
    )


@rule(
    "CLAIM-28",
    "CyclicLR's exp_range mode and scale_mode='iterations' count the iterations since the start of"
    " the cycle.",
    kind="claim",
    source="https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.CyclicLR.html",
    subject=CyclicLR,
    violated_by=[counts_anew_in_each_cycle],
    consequence="They count since training began: with gamma=0.5 and cycles of 4 steps, each peak"
    " is 16 times lower than the one before it.",
    verdict="false",
)
def test_scale_fn_is_given_the_steps_since_training_began(CyclicLR: Scheduler) -> None:
    """A cycle here has 4 steps, but scale_mode="iterations" goes on counting: 0, 1, ... 11."""
    asked: list[float] = []

    def scale(iterations: float) -> float:
        asked.append(iterations)
        return 1.0

    optimizer = SGD([torch.zeros(1)], lr=0.1)
    scheduler = CyclicLR(
        optimizer,
        base_lr=0.0,
        max_lr=1.0,
        step_size_up=2,
        scale_fn=scale,
        scale_mode="iterations",
        cycle_momentum=False,
    )
    for _ in range(11):
        optimizer.step()
        scheduler.step()
    assert asked == list(range(12))


@spec("CLAIM-28", violated_by=[counts_anew_in_each_cycle])
def test_exp_range_lowers_the_peak_from_cycle_to_cycle(
    CyclicLR: Scheduler, observe: Observe
) -> None:
    """The peaks come at t = 2, 6 and 10, with gamma ** t. Counted anew, all were gamma ** 2."""
    optimizer = SGD([torch.zeros(1)], lr=0.1)
    scheduler = CyclicLR(
        optimizer,
        base_lr=0.0,
        max_lr=1.0,
        step_size_up=2,
        mode="exp_range",
        gamma=0.5,
        cycle_momentum=False,
    )
    used = []
    for _ in range(12):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    peaks = [used[2], used[6], used[10]]
    assert agree(peaks, [0.5**2, 0.5**6, 0.5**10])
    observe("peaks", peaks)


# ---------------------------------------------------------------- LR-27: fractional epochs


class RoundsDown(CosineAnnealingWarmRestarts):
    """A CosineAnnealingWarmRestarts that uses the whole part of an epoch."""

    def step(self, epoch: float | None = None) -> None:
        super().step(None if epoch is None else int(epoch))


class IgnoresTheEpoch(CosineAnnealingWarmRestarts):
    """A CosineAnnealingWarmRestarts that goes on by one, whatever epoch it is given."""

    def step(self, epoch: float | None = None) -> None:  # noqa: ARG002
        super().step()


@rule(
    "LR-27",
    "CosineAnnealingWarmRestarts.step(epoch) sets the rate of that epoch, and an epoch may be a"
    " fraction: with its periods in epochs, step(epoch + batch / batches) anneals batch by batch.",
    kind="contract",
    source="https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.CosineAnnealingWarmRestarts.html",
    subject=CosineAnnealingWarmRestarts,
    violated_by=[RoundsDown, IgnoresTheEpoch],
)
def test_a_fractional_epoch_has_the_rate_in_between(
    CosineAnnealingWarmRestarts: Callable[..., Any],
) -> None:
    """Here an epoch has 4 batches, and periods of 2 epochs each or of 2, 6, 18, ... epochs."""
    for arguments in [{"T_0": 2}, {"T_0": 2, "T_mult": 3, "eta_min": 0.01}]:
        optimizer = sgd()
        scheduler = CosineAnnealingWarmRestarts(optimizer, **arguments)
        for epoch in range(16):
            for batch in range(4):
                now = epoch + batch / 4
                scheduler.step(now)
                rates = [group["lr"] for group in optimizer.param_groups]
                expected = [
                    schedulers.cosine_annealing_warm_restarts(now, base_lr, **arguments)
                    for base_lr in BASE_LRS
                ]
                assert agree(rates, expected)


@spec("LR-27", violated_by=[IgnoresTheEpoch])
def test_stepping_goes_on_from_the_epoch_that_was_set(
    CosineAnnealingWarmRestarts: Callable[..., Any],
) -> None:
    """step(26) and then step() is the same as step(27)."""
    optimizer = SGD([torch.zeros(1)], lr=0.1)
    scheduler = CosineAnnealingWarmRestarts(optimizer, T_0=4, T_mult=2)
    scheduler.step(26)
    scheduler.step()
    expected = schedulers.cosine_annealing_warm_restarts(27, 0.1, T_0=4, T_mult=2)
    assert agree(optimizer.param_groups[0]["lr"], expected)
