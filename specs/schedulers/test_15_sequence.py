"""SequentialLR: what a schedule takes over from the one before it.

At the end you know that every schedule begins at a milestone with its own step 0, that this
normally means the base rate, whatever was decayed before, and which schedule goes on instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiplicativeLR,
    MultiStepLR,
    PolynomialLR,
    SequentialLR,
    StepLR,
)

from reference import schedulers as closed_form
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe
from specs.schedulers.traces import Scheduler, rates_of_steps

#: Schedulers, their arguments, and the closed form of each.
RESTARTING: list[tuple[Any, dict[str, Any], Callable[..., float]]] = [
    (ExponentialLR, {"gamma": 0.9}, closed_form.exponential),
    (LambdaLR, {"lr_lambda": lambda t: 1 / (1 + t)}, closed_form.lambda_),
    (StepLR, {"step_size": 2}, closed_form.step),
    (MultiStepLR, {"milestones": [1, 4]}, closed_form.multi_step),
    (ConstantLR, {"factor": 0.5, "total_iters": 2}, closed_form.constant),
    (LinearLR, {"start_factor": 0.2, "total_iters": 4}, closed_form.linear),
    (PolynomialLR, {"total_iters": 6, "power": 2.0}, closed_form.polynomial),
    (CosineAnnealingLR, {"T_max": 6}, closed_form.cosine_annealing),
    (CosineAnnealingWarmRestarts, {"T_0": 4}, closed_form.cosine_annealing_warm_restarts),
]


class KeepsTheDecay(SequentialLR):
    """Lets the next schedule begin with the rate that the last one left."""

    def step(self) -> None:  # type: ignore[override]
        rates = [group["lr"] for group in self.optimizer.param_groups]
        super().step()
        if self.last_epoch in self._milestones:
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate


class StepsTwiceAtAMilestone(SequentialLR):
    """Lets the next schedule begin with its step 1."""

    def step(self) -> None:  # type: ignore[override]
        super().step()
        if self.last_epoch in self._milestones:
            super().step()


class RestoresTheBaseRate(SequentialLR):
    """Sets the base rate at every milestone, whatever comes next."""

    def step(self) -> None:  # type: ignore[override]
        super().step()
        if self.last_epoch in self._milestones:
            for group in self.optimizer.param_groups:
                group["lr"] = group["initial_lr"]


@rule(
    "LR-18",
    "At a milestone of SequentialLR the next schedule begins with its own step 0, computed from"
    " the base rate: the decay before it is forgotten (except by MultiplicativeLR).",
    kind="contract",
    source="https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.SequentialLR.html",
    subject=SequentialLR,
    violated_by=[KeepsTheDecay, StepsTwiceAtAMilestone],
    consequence="A rate that was halved twice jumps back up fourfold.",
)
def test_the_decay_before_a_milestone_is_forgotten(
    SequentialLR: Scheduler, observe: Observe
) -> None:
    """Two exponential decays in a row: the second one starts from the base rate again."""
    optimizer = SGD([torch.zeros(1)], lr=0.1)
    halving, slow = ExponentialLR(optimizer, gamma=0.5), ExponentialLR(optimizer, gamma=0.9)
    scheduler = SequentialLR(optimizer, [halving, slow], milestones=[3])
    rates = rates_of_steps(optimizer, scheduler, steps=6)
    observe("rates", rates)
    assert agree(rates, [0.1, 0.05, 0.025, 0.1, 0.09, 0.081], scale=0.1)


@spec("LR-18", violated_by=[KeepsTheDecay, StepsTwiceAtAMilestone])
def test_each_schedule_follows_its_own_closed_form_from_step_0(SequentialLR: Scheduler) -> None:
    """Three steps of halving, then ten steps of another schedule: its steps 0 to 9."""
    for scheduler_class, arguments, formula in RESTARTING:
        optimizer = SGD([torch.zeros(1)], lr=0.1)
        halving = ExponentialLR(optimizer, gamma=0.5)
        other = scheduler_class(optimizer, **arguments)
        scheduler = SequentialLR(optimizer, [halving, other], milestones=[3])
        rates = rates_of_steps(optimizer, scheduler, steps=13)

        expected = [0.1, 0.05, 0.025] + [formula(t, 0.1, **arguments) for t in range(10)]
        assert agree(rates, expected, ulps=64, scale=0.1)


@spec("LR-18", violated_by=[KeepsTheDecay, StepsTwiceAtAMilestone, RestoresTheBaseRate])
def test_every_milestone_and_every_group_is_served(SequentialLR: Scheduler) -> None:
    """A rise of 4 steps, a plateau of 3 at half the rate, and a fall, for two base rates."""
    base_rates = (0.1, 0.02)
    optimizer = SGD([{"params": [torch.zeros(1)], "lr": base} for base in base_rates])
    rise = LinearLR(optimizer, start_factor=0.25, total_iters=4)
    plateau = ConstantLR(optimizer, factor=0.5, total_iters=3)
    fall = CosineAnnealingLR(optimizer, T_max=8, eta_min=0.001)
    scheduler = SequentialLR(optimizer, [rise, plateau, fall], milestones=[4, 7])
    for t in range(15):
        for group, base in zip(optimizer.param_groups, base_rates, strict=True):
            pieces = [
                lambda t, base=base: closed_form.linear(t, base, start_factor=0.25, total_iters=4),
                lambda t, base=base: closed_form.constant(t, base, factor=0.5, total_iters=3),
                lambda t, base=base: closed_form.cosine_annealing(t, base, T_max=8, eta_min=0.001),
            ]
            expected = closed_form.sequential(t, pieces, milestones=[4, 7])
            assert agree(group["lr"], expected, ulps=64, scale=base)
        optimizer.step()
        scheduler.step()


@spec("LR-18", violated_by=[RestoresTheBaseRate, StepsTwiceAtAMilestone])
def test_multiplicative_lr_goes_on_from_the_rate_it_finds(
    SequentialLR: Scheduler, observe: Observe
) -> None:
    """It has no closed form: it multiplies the rate there is. So the halving is kept.

    The factor of its step 0 is 1 here. Some releases multiply by it at the milestone, others do
    not ask for it; the observation says what yours does with 0.9.
    """
    optimizer = SGD([torch.zeros(1)], lr=0.1)
    halving = ExponentialLR(optimizer, gamma=0.5)
    slow = MultiplicativeLR(optimizer, lambda t: 0.9 if t > 0 else 1.0)
    scheduler = SequentialLR(optimizer, [halving, slow], milestones=[3])
    rates = rates_of_steps(optimizer, scheduler, steps=6)
    assert agree(rates, [0.1, 0.05, 0.025, 0.025, 0.0225, 0.02025], scale=0.1)

    optimizer = SGD([torch.zeros(1)], lr=0.1)
    halving = ExponentialLR(optimizer, gamma=0.5)
    slow = MultiplicativeLR(optimizer, lambda _: 0.9)
    scheduler = SequentialLR(optimizer, [halving, slow], milestones=[3])
    observe("rates with 0.9 for step 0", rates_of_steps(optimizer, scheduler, steps=6))
