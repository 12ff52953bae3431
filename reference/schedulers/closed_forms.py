"""Schedules that are one formula of the step t and the group's base learning rate.

`base_lr` is the rate the optimizer was built with, t the number of scheduler steps done so far.
Everything is a float; a rate has the unit of `base_lr`, a factor has none.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable


def lambda_(t: int, base_lr: float, *, lr_lambda: Callable[[int], float]) -> float:
    """The rate of LambdaLR: base_lr * lr_lambda(t).

    Units: lr_lambda maps a step to a factor. Errors: none of its own.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.LambdaLR.html
    """
    return base_lr * lr_lambda(t)


def multiplicative(t: int, base_lr: float, *, lr_lambda: Callable[[int], float]) -> float:
    """The rate of MultiplicativeLR: base_lr * lr_lambda(1) * lr_lambda(2) * ... * lr_lambda(t).

    lr_lambda(0) is never asked for: at step 0 the rate is base_lr.

    Units: lr_lambda maps a step to a factor. Errors: none of its own.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.MultiplicativeLR.html
    """
    return base_lr * math.prod(lr_lambda(i) for i in range(1, t + 1))


def step(t: int, base_lr: float, *, step_size: int, gamma: float = 0.1) -> float:
    """The rate of StepLR: base_lr * gamma ** floor(t / step_size).

    Units: step_size in steps, gamma a factor. Errors: ZeroDivisionError if step_size is 0.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.StepLR.html
    """
    return base_lr * gamma ** (t // step_size)


def multi_step(t: int, base_lr: float, *, milestones: Iterable[int], gamma: float = 0.1) -> float:
    """The rate of MultiStepLR: base_lr * gamma ** (number of milestones m with m <= t).

    A milestone that is listed twice is counted twice.

    Units: milestones in steps, in any order; gamma a factor. Errors: none of its own.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.MultiStepLR.html
    """
    return base_lr * gamma ** bisect_right(sorted(milestones), t)


def constant(t: int, base_lr: float, *, factor: float = 1.0 / 3, total_iters: int = 5) -> float:
    """The rate of ConstantLR: base_lr * factor while t < total_iters, then base_lr.

    Units: total_iters in steps, at least 1. Errors: none of its own.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.ConstantLR.html
    """
    return base_lr * factor if t < total_iters else base_lr


def linear(
    t: int,
    base_lr: float,
    *,
    start_factor: float = 1.0 / 3,
    end_factor: float = 1.0,
    total_iters: int = 5,
) -> float:
    """The rate of LinearLR: base_lr * (start + (end - start) * min(t, total_iters) / total_iters).

    Units: total_iters in steps. Errors: ZeroDivisionError if total_iters is 0.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.LinearLR.html
    """
    done = min(t, total_iters) / total_iters
    return base_lr * (start_factor + (end_factor - start_factor) * done)


def exponential(t: int, base_lr: float, *, gamma: float) -> float:
    """The rate of ExponentialLR: base_lr * gamma ** t.

    Units: gamma is the factor of one step. Errors: none of its own.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.ExponentialLR.html
    """
    return base_lr * gamma**t


def polynomial(t: int, base_lr: float, *, total_iters: int = 5, power: float = 1.0) -> float:
    """The rate of PolynomialLR: base_lr * (1 - min(t, total_iters) / total_iters) ** power.

    Units: total_iters in steps. Errors: ZeroDivisionError if total_iters is 0.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.PolynomialLR.html
    """
    factor: float = (1.0 - min(t, total_iters) / total_iters) ** power
    return base_lr * factor


def cosine_annealing(t: int, base_lr: float, *, T_max: int, eta_min: float = 0.0) -> float:
    """The rate of CosineAnnealingLR: eta_min + (base_lr - eta_min) * (1 + cos(pi t / T_max)) / 2.

    There is no restart: after T_max steps the same formula leads back up to base_lr.

    Units: T_max in steps, eta_min a rate. Errors: ZeroDivisionError if T_max is 0.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.CosineAnnealingLR.html
    """
    return eta_min + (base_lr - eta_min) * (1.0 + math.cos(math.pi * t / T_max)) / 2.0


def cosine_annealing_warm_restarts(
    t: float, base_lr: float, *, T_0: int, T_mult: int = 1, eta_min: float = 0.0
) -> float:
    """The rate of CosineAnnealingWarmRestarts, with T_cur steps done in a cycle of T_i steps:

        eta_min + (base_lr - eta_min) * (1 + cos(pi T_cur / T_i)) / 2

    The first cycle has T_0 steps, each later one T_mult times as many as the one before it.

    Units: t and T_0 in steps, t may be fractional; eta_min a rate.
    Errors: ValueError if T_0 or T_mult is less than 1.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.CosineAnnealingWarmRestarts.html
    """
    if T_0 < 1 or T_mult < 1:
        raise ValueError(f"T_0 and T_mult must be at least 1, got {T_0} and {T_mult}")
    t_cur, t_i = t, T_0
    while t_cur >= t_i:
        t_cur -= t_i
        t_i *= T_mult
    return eta_min + (base_lr - eta_min) * (1.0 + math.cos(math.pi * t_cur / t_i)) / 2.0
