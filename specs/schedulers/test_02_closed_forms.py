"""Every learning rate schedule is a formula.

At the end you know, for each scheduler, the rate that it gives at step t, what its arguments mean
and which values they have when they are left out.

Each test runs a whole schedule and compares the rates that the optimizer used with the closed form
in reference/schedulers. The optimizer has two parameter groups with different base rates. Then the
test runs the schedule again, and half way saves it and goes on with fresh objects.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
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
from specs.schedulers.traces import BASE_LRS, Scheduler, momenta_used, rates_used

# The arguments that each scheduler is tried with. What is left out must have its documented value.
STEP = [{"step_size": 4}, {"step_size": 1, "gamma": 0.9}]
MULTI_STEP = [{"milestones": [3, 10]}, {"milestones": [1, 5, 8, 30], "gamma": 0.5}]
CONSTANT = [{}, {"factor": 0.25, "total_iters": 12}]
LINEAR = [
    {},
    {"start_factor": 0.01, "total_iters": 20},
    {"start_factor": 0.9, "end_factor": 0.0, "total_iters": 12},
]
EXPONENTIAL = [{"gamma": 0.9}, {"gamma": 1.02}]
POLYNOMIAL = [{}, {"total_iters": 20, "power": 2.0}, {"total_iters": 12, "power": 0.5}]
COSINE = [{"T_max": 10}, {"T_max": 25, "eta_min": 0.01}]
WARM_RESTARTS = [{"T_0": 10}, {"T_0": 4, "T_mult": 2}, {"T_0": 1, "T_mult": 3, "eta_min": 0.01}]
CYCLIC = [
    {},
    {"step_size_up": 4},
    {"step_size_up": 3, "step_size_down": 7, "mode": "triangular2"},
    {"step_size_up": 7, "step_size_down": 3, "mode": "exp_range", "gamma": 0.95},
    {"step_size_up": 7, "mode": "exp_range"},
]
ONE_CYCLE = [
    {"total_steps": 20},
    {"total_steps": 25, "pct_start": 0.4, "div_factor": 10.0, "final_div_factor": 50.0},
    {"total_steps": 25, "anneal_strategy": "linear"},
    {"total_steps": 20, "three_phase": True},
    {"total_steps": 30, "three_phase": True, "anneal_strategy": "linear", "pct_start": 0.25},
]

STEPS = 60
RESUME_AT = 7

#: Many schedulers multiply the rate that they find. Each step then rounds about three times, and
#: the roundings add up. The rates are below 1.
ULPS = 3 * STEPS


def rates_by_formula(formula: Callable[..., float], **arguments: Any) -> list[list[float]]:
    """The rate that a closed form gives each parameter group at each step."""
    return [[formula(t, base_lr, **arguments) for base_lr in BASE_LRS] for t in range(STEPS)]


def inverse(t: float) -> float:
    return 1.0 / (1.0 + t)


def wave(t: float) -> float:
    return 0.95 + 0.04 * math.cos(t)


def one_step_early(optimizer: Optimizer, lr_lambda: Any) -> LRScheduler:
    """A LambdaLR that counts its steps from 1."""
    return LambdaLR(optimizer, [lambda t, f=f: f(t + 1) for f in lr_lambda])


def one_function_for_all_groups(optimizer: Optimizer, lr_lambda: Any) -> LRScheduler:
    """A LambdaLR that uses the first function of the list in every group."""
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
    violated_by=[one_step_early, one_function_for_all_groups, ForgetsItsStep],
)
def test_lambda_lr_multiplies_the_base_rate_by_a_function_of_the_step(
    LambdaLR: Scheduler, observe: Observe
) -> None:
    """base_lr * f(t), here with a function f for each parameter group."""
    first, second = BASE_LRS
    expected = [
        [
            schedulers.lambda_(t, first, lr_lambda=inverse),
            schedulers.lambda_(t, second, lr_lambda=wave),
        ]
        for t in range(STEPS)
    ]
    scheduler = partial(LambdaLR, lr_lambda=[inverse, wave])
    used = rates_used(scheduler, STEPS)
    assert agree(used, expected, ulps=ULPS)
    assert agree(rates_used(scheduler, STEPS, RESUME_AT), expected, ulps=ULPS)
    observe("rates", used)
    observe("signature", inspect.signature(LambdaLR))
