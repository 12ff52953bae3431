"""Every learning rate schedule is a formula.

At the end you know, for each scheduler, the rate that it gives at step t, what its arguments mean
and which values they have when they are left out.

Each test runs a whole schedule and compares the rates that the optimizer used with the closed form
in reference/schedulers. The optimizer has two parameter groups with different base rates. Then the
test runs the schedule once more, saves it at step 7 and goes on with fresh objects.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch.optim import Optimizer
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
    SequentialLR,
    StepLR,
)

from reference import schedulers
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe
from specs.schedulers.traces import BASE_LRS, STEPS, Scheduler, rates_used


def inverse(t: float) -> float:
    return 1 / (1 + t)


def wave(t: float) -> float:
    return 0.95 + 0.04 * math.cos(t)


# The arguments that each scheduler is tried with. What is left out must have its documented value.
Table = list[dict[str, Any]]
STEP: Table = [{"step_size": 4}, {"step_size": 1, "gamma": 0.9}]
MULTI_STEP: Table = [{"milestones": [3, 10]}, {"milestones": [1, 5, 8, 30], "gamma": 0.5}]
CONSTANT: Table = [{}, {"factor": 0.25, "total_iters": 12}]
LINEAR: Table = [
    {},
    {"start_factor": 0.01, "total_iters": 20},
    {"start_factor": 0.9, "end_factor": 0.0, "total_iters": 12},
]
EXPONENTIAL: Table = [{"gamma": 0.9}, {"gamma": 1.02}]
POLYNOMIAL: Table = [{}, {"total_iters": 20, "power": 2.0}, {"total_iters": 12, "power": 0.5}]
COSINE: Table = [{"T_max": 10}, {"T_max": 25, "eta_min": 0.01}]
WARM_RESTARTS: Table = [
    {"T_0": 10},
    {"T_0": 4, "T_mult": 2},
    {"T_0": 1, "T_mult": 3, "eta_min": 0.01},
]
CYCLIC: Table = [
    {},
    {"step_size_up": 4},
    {"step_size_up": 3, "step_size_down": 7, "mode": "triangular2"},
    {"step_size_up": 7, "step_size_down": 3, "mode": "exp_range", "gamma": 0.95},
    {"step_size_up": 7, "mode": "exp_range"},
    {"step_size_up": 5, "scale_fn": inverse},
    {"step_size_up": 5, "scale_fn": inverse, "scale_mode": "iterations"},
]
ONE_CYCLE: Table = [
    {"total_steps": 60},
    {"total_steps": 60, "pct_start": 0.26, "div_factor": 10.0, "final_div_factor": 50.0},
    {"total_steps": 60, "anneal_strategy": "linear"},
    {"total_steps": 60, "three_phase": True},
    {"total_steps": 60, "three_phase": True, "anneal_strategy": "linear", "pct_start": 0.2},
]

#: Many schedulers multiply the rate that they find. Each step then rounds about three times, and
#: the roundings add up. No rate is above 1.
ULPS = 3 * STEPS


def rates_by_formula(formula: Callable[..., float], arguments: dict[str, Any]) -> list[list[float]]:
    """The rate that a closed form gives each parameter group at each step."""
    return [[formula(t, base_lr, **arguments) for base_lr in BASE_LRS] for t in range(STEPS)]


class CountsFromOne(LambdaLR):
    """A LambdaLR that asks f for step t + 1."""

    def get_lr(self) -> list[Any]:
        t = self.last_epoch + 1
        return [lr * f(t) for lr, f in zip(self.base_lrs, self.lr_lambdas, strict=True)]


def one_function_for_all_groups(optimizer: Optimizer, lr_lambda: Any) -> LRScheduler:
    """A LambdaLR that gives every group the first function of the list."""
    return LambdaLR(optimizer, lr_lambda[0])


class ForgetsItsStep(LambdaLR):
    """A LambdaLR that starts over when its state is loaded."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


@rule(
    "LR-03",
    "Every scheduler follows its closed form: the rate at step t is a formula of t, the base rate"
    " and the scheduler's arguments.",
    kind="contract",
    source="https://docs.pytorch.org/docs/stable/optim.html#how-to-adjust-learning-rate",
    subject=LambdaLR,
    violated_by=[CountsFromOne, one_function_for_all_groups, ForgetsItsStep],
)
def test_lambda_lr_asks_a_function_of_the_step(LambdaLR: Scheduler, observe: Observe) -> None:
    """base_lr * f(t), with one f for each parameter group or one for all of them"""
    own = {"lr_lambda": [inverse, wave]}
    groups = list(zip(BASE_LRS, [inverse, wave], strict=True))
    expected = [[schedulers.lambda_(t, lr, lr_lambda=f) for lr, f in groups] for t in range(STEPS)]
    assert agree(rates_used(LambdaLR, own), expected, ulps=ULPS)
    assert agree(rates_used(LambdaLR, own, resume_at=7), expected, ulps=ULPS)
    observe("rates", rates_used(LambdaLR, own))

    shared = {"lr_lambda": wave}
    expected = rates_by_formula(schedulers.lambda_, shared)
    assert agree(rates_used(LambdaLR, shared), expected, ulps=ULPS)


class BeginsWithStepZero(MultiplicativeLR):
    """A MultiplicativeLR that also multiplies by f(0)."""

    def get_lr(self) -> list[Any]:
        rates = [group["lr"] for group in self.optimizer.param_groups]
        return [lr * f(self.last_epoch) for lr, f in zip(rates, self.lr_lambdas, strict=True)]


@spec("LR-03", subject=MultiplicativeLR, violated_by=[BeginsWithStepZero])
def test_multiplicative_lr_multiplies_by_a_function_of_each_step(
    MultiplicativeLR: Scheduler, observe: Observe
) -> None:
    """base_lr * f(1) * f(2) * ... * f(t), with one f for each group or one for all of them"""
    own = {"lr_lambda": [inverse, wave]}
    groups = list(zip(BASE_LRS, [inverse, wave], strict=True))
    expected = [
        [schedulers.multiplicative(t, lr, lr_lambda=f) for lr, f in groups] for t in range(STEPS)
    ]
    assert agree(rates_used(MultiplicativeLR, own), expected, ulps=ULPS)
    assert agree(rates_used(MultiplicativeLR, own, resume_at=7), expected, ulps=ULPS)
    observe("rates", rates_used(MultiplicativeLR, own))

    shared = {"lr_lambda": wave}
    expected = rates_by_formula(schedulers.multiplicative, shared)
    assert agree(rates_used(MultiplicativeLR, shared), expected, ulps=ULPS)


def one_step_late(optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> LRScheduler:
    """A StepLR that counts its steps from -1."""
    return LambdaLR(optimizer, lambda t: gamma ** (max(t - 1, 0) // step_size))


@spec("LR-03", subject=StepLR, violated_by=[one_step_late])
def test_step_lr_decays_every_step_size_steps(StepLR: Scheduler, observe: Observe) -> None:
    """base_lr * gamma ** floor(t / step_size)"""
    for arguments in STEP:
        expected = rates_by_formula(schedulers.step, arguments)
        assert agree(rates_used(StepLR, arguments), expected, ulps=ULPS)
        assert agree(rates_used(StepLR, arguments, resume_at=7), expected, ulps=ULPS)
    observe("rates", rates_used(StepLR, STEP[0]))


def after_the_milestone(
    optimizer: Optimizer, milestones: list[int], gamma: float = 0.1
) -> LRScheduler:
    """A MultiStepLR that still uses the old rate at the milestone."""
    return MultiStepLR(optimizer, [milestone + 1 for milestone in milestones], gamma)


@spec("LR-03", subject=MultiStepLR, violated_by=[after_the_milestone])
def test_multi_step_lr_decays_at_each_milestone(MultiStepLR: Scheduler, observe: Observe) -> None:
    """base_lr * gamma ** (number of milestones m with m <= t)"""
    for arguments in MULTI_STEP:
        expected = rates_by_formula(schedulers.multi_step, arguments)
        assert agree(rates_used(MultiStepLR, arguments), expected, ulps=ULPS)
        assert agree(rates_used(MultiStepLR, arguments, resume_at=7), expected, ulps=ULPS)
    observe("rates", rates_used(MultiStepLR, MULTI_STEP[0]))


def one_step_too_long(
    optimizer: Optimizer, factor: float = 1 / 3, total_iters: int = 5
) -> LRScheduler:
    """A ConstantLR that is reduced for total_iters + 1 steps."""
    return ConstantLR(optimizer, factor, total_iters + 1)


@spec("LR-03", subject=ConstantLR, violated_by=[one_step_too_long])
def test_constant_lr_is_reduced_for_total_iters(ConstantLR: Scheduler, observe: Observe) -> None:
    """base_lr * factor while t < total_iters, then base_lr"""
    for arguments in CONSTANT:
        expected = rates_by_formula(schedulers.constant, arguments)
        assert agree(rates_used(ConstantLR, arguments), expected, ulps=ULPS)
        assert agree(rates_used(ConstantLR, arguments, resume_at=7), expected, ulps=ULPS)
    observe("rates", rates_used(ConstantLR, CONSTANT[0]))


def reaches_its_end_one_step_late(
    optimizer: Optimizer, start_factor: float = 1 / 3, end_factor: float = 1, total_iters: int = 5
) -> LRScheduler:
    """A LinearLR that takes total_iters + 1 steps."""
    return LinearLR(optimizer, start_factor, end_factor, total_iters + 1)


@spec("LR-03", subject=LinearLR, violated_by=[reaches_its_end_one_step_late])
def test_linear_lr_goes_straight_to_its_end_factor(LinearLR: Scheduler, observe: Observe) -> None:
    """base_lr * (start + (end - start) * min(t, total_iters) / total_iters)"""
    for arguments in LINEAR:
        expected = rates_by_formula(schedulers.linear, arguments)
        assert agree(rates_used(LinearLR, arguments), expected, ulps=ULPS)
        assert agree(rates_used(LinearLR, arguments, resume_at=7), expected, ulps=ULPS)
    observe("rates", rates_used(LinearLR, LINEAR[0]))


def subtracts(optimizer: Optimizer, gamma: float) -> LRScheduler:
    """An ExponentialLR that takes off the same amount at each step."""
    return LambdaLR(optimizer, lambda t: max(0.0, 1 - (1 - gamma) * t))


@spec("LR-03", subject=ExponentialLR, violated_by=[subtracts])
def test_exponential_lr_decays_every_step(ExponentialLR: Scheduler, observe: Observe) -> None:
    """base_lr * gamma ** t"""
    for arguments in EXPONENTIAL:
        expected = rates_by_formula(schedulers.exponential, arguments)
        assert agree(rates_used(ExponentialLR, arguments), expected, ulps=ULPS)
        assert agree(rates_used(ExponentialLR, arguments, resume_at=7), expected, ulps=ULPS)
    observe("rates", rates_used(ExponentialLR, EXPONENTIAL[0]))


def raises_the_time_to_the_power(
    optimizer: Optimizer, total_iters: int = 5, power: float = 1.0
) -> LRScheduler:
    """A PolynomialLR with 1 - (t / T) ** power in place of (1 - t / T) ** power."""
    return LambdaLR(optimizer, lambda t: 1 - (min(t, total_iters) / total_iters) ** power)


@spec("LR-03", subject=PolynomialLR, violated_by=[raises_the_time_to_the_power])
def test_polynomial_lr_falls_to_zero(PolynomialLR: Scheduler, observe: Observe) -> None:
    """base_lr * (1 - min(t, total_iters) / total_iters) ** power"""
    for arguments in POLYNOMIAL:
        expected = rates_by_formula(schedulers.polynomial, arguments)
        assert agree(rates_used(PolynomialLR, arguments), expected, ulps=ULPS)
        assert agree(rates_used(PolynomialLR, arguments, resume_at=7), expected, ulps=ULPS)
    observe("rates", rates_used(PolynomialLR, POLYNOMIAL[0]))


def restarts(optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> LRScheduler:
    """A CosineAnnealingLR that jumps back to the base rate after T_max steps."""
    return CosineAnnealingWarmRestarts(optimizer, T_max, eta_min=eta_min)


@spec("LR-03", subject=CosineAnnealingLR, violated_by=[restarts])
def test_cosine_annealing_lr_falls_and_climbs_back(
    CosineAnnealingLR: Scheduler, observe: Observe
) -> None:
    """eta_min + (base_lr - eta_min) * (1 + cos(pi t / T_max)) / 2, also for t > T_max"""
    for arguments in COSINE:
        expected = rates_by_formula(schedulers.cosine_annealing, arguments)
        assert agree(rates_used(CosineAnnealingLR, arguments), expected, ulps=ULPS)
        assert agree(rates_used(CosineAnnealingLR, arguments, resume_at=7), expected, ulps=ULPS)
    observe("rates", rates_used(CosineAnnealingLR, COSINE[0]))


def keeps_its_first_period(optimizer: Optimizer, **arguments: Any) -> LRScheduler:
    """A CosineAnnealingWarmRestarts that ignores T_mult."""
    return CosineAnnealingWarmRestarts(optimizer, **arguments | {"T_mult": 1})


@spec("LR-03", subject=CosineAnnealingWarmRestarts, violated_by=[keeps_its_first_period])
def test_cosine_annealing_warm_restarts_makes_each_period_t_mult_times_longer(
    CosineAnnealingWarmRestarts: Scheduler, observe: Observe
) -> None:
    """eta_min + (base_lr - eta_min) * (1 + cos(pi T_cur / T_i)) / 2, T_cur of T_i steps done"""
    Restarts = CosineAnnealingWarmRestarts
    for arguments in WARM_RESTARTS:
        expected = rates_by_formula(schedulers.cosine_annealing_warm_restarts, arguments)
        assert agree(rates_used(Restarts, arguments), expected, ulps=ULPS)
        assert agree(rates_used(Restarts, arguments, resume_at=7), expected, ulps=ULPS)
    observe("rates", rates_used(Restarts, WARM_RESTARTS[0]))


def falls_as_fast_as_it_rises(optimizer: Optimizer, **arguments: Any) -> LRScheduler:
    """A CyclicLR that ignores step_size_down."""
    return CyclicLR(optimizer, **arguments | {"step_size_down": None})


@spec("LR-03", subject=CyclicLR, violated_by=[falls_as_fast_as_it_rises])
def test_cyclic_lr_goes_up_and_down_again(CyclicLR: Scheduler, observe: Observe) -> None:
    """base_lr + (max_lr - base_lr) * height(t) * scale(t): a triangle, scaled as the mode says"""
    bounds = {"base_lr": [0.01, 0.002], "max_lr": list(BASE_LRS)}
    for arguments in CYCLIC:
        expected = [
            [schedulers.cyclic(t, base_lr=lr / 10, max_lr=lr, **arguments) for lr in BASE_LRS]
            for t in range(STEPS)
        ]
        assert agree(rates_used(CyclicLR, bounds | arguments), expected, ulps=ULPS)
        assert agree(rates_used(CyclicLR, bounds | arguments, resume_at=7), expected, ulps=ULPS)
    observe("rates", rates_used(CyclicLR, bounds | CYCLIC[1]))


def forgets_div_factor(
    optimizer: Optimizer, div_factor: float = 25, final_div_factor: float = 1e4, **arguments: Any
) -> LRScheduler:
    """A OneCycleLR that ends at max_lr / final_div_factor."""
    relative = final_div_factor / div_factor
    return OneCycleLR(optimizer, div_factor=div_factor, final_div_factor=relative, **arguments)


@spec("LR-03", subject=OneCycleLR, violated_by=[forgets_div_factor])
def test_one_cycle_lr_goes_up_once_and_down_once(OneCycleLR: Scheduler, observe: Observe) -> None:
    """max_lr / div_factor, then max_lr, in the end max_lr / div_factor / final_div_factor"""
    peaks = {"max_lr": list(BASE_LRS)}
    for arguments in ONE_CYCLE:
        expected = [
            [schedulers.one_cycle(t, max_lr=lr, **arguments) for lr in BASE_LRS]
            for t in range(STEPS)
        ]
        assert agree(rates_used(OneCycleLR, peaks | arguments), expected, ulps=ULPS)
        assert agree(rates_used(OneCycleLR, peaks | arguments, resume_at=7), expected, ulps=ULPS)
    observe("rates", rates_used(OneCycleLR, peaks | ONE_CYCLE[0]))


def switches_one_step_late(
    optimizer: Optimizer, schedulers: list[LRScheduler], milestones: list[int]
) -> LRScheduler:
    """A SequentialLR that leaves the milestone to the schedule that ends there."""
    return SequentialLR(optimizer, schedulers, [milestone + 1 for milestone in milestones])


@spec("LR-03", subject=SequentialLR, violated_by=[switches_one_step_late])
def test_sequential_lr_starts_each_schedule_at_its_own_step_zero(
    SequentialLR: Scheduler, observe: Observe
) -> None:
    """first(t) while t < m, then second(t - m), for milestones [m]"""

    def scheduler(optimizer: Optimizer) -> LRScheduler:
        warm_up = LinearLR(optimizer, start_factor=0.1, total_iters=5)
        anneal = CosineAnnealingLR(optimizer, T_max=20, eta_min=0.001)
        decay = ExponentialLR(optimizer, gamma=0.9)
        return SequentialLR(optimizer, [warm_up, anneal, decay], milestones=[5, 20])

    def formula(t: int, base_lr: float) -> float:
        warm_up = partial(schedulers.linear, base_lr=base_lr, start_factor=0.1, total_iters=5)
        anneal = partial(schedulers.cosine_annealing, base_lr=base_lr, T_max=20, eta_min=0.001)
        decay = partial(schedulers.exponential, base_lr=base_lr, gamma=0.9)
        return schedulers.sequential(t, [warm_up, anneal, decay], milestones=[5, 20])

    expected = rates_by_formula(formula, {})
    assert agree(rates_used(scheduler, {}), expected, ulps=ULPS)
    assert agree(rates_used(scheduler, {}, resume_at=7), expected, ulps=ULPS)
    observe("rates", rates_used(scheduler, {}))


def last_one_only(schedulers: list[LRScheduler]) -> LRScheduler:
    """A ChainedScheduler that steps the last of its schedulers alone."""
    return schedulers[-1]


@spec("LR-03", subject=ChainedScheduler, violated_by=[last_one_only])
def test_chained_scheduler_multiplies_the_factors(
    ChainedScheduler: Scheduler, observe: Observe
) -> None:
    """base_lr times the factor of every schedule at step t"""

    def scheduler(optimizer: Optimizer) -> LRScheduler:
        warm_up = ConstantLR(optimizer, factor=0.5, total_iters=12)
        decay = ExponentialLR(optimizer, gamma=0.95)
        drops = MultiStepLR(optimizer, milestones=[20, 40])
        return ChainedScheduler([warm_up, decay, drops])

    def formula(t: int, base_lr: float) -> float:
        warm_up = partial(schedulers.constant, factor=0.5, total_iters=12)
        decay = partial(schedulers.exponential, gamma=0.95)
        drops = partial(schedulers.multi_step, milestones=[20, 40])
        return schedulers.chained(t, base_lr, [warm_up, decay, drops])

    expected = rates_by_formula(formula, {})
    assert agree(rates_used(scheduler, {}), expected, ulps=ULPS)
    assert agree(rates_used(scheduler, {}, resume_at=7), expected, ulps=ULPS)
    observe("rates", rates_used(scheduler, {}))
