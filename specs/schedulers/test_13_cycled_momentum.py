"""OneCycleLR and CyclicLR, the momentum: what else they write to the optimizer.

At the end you know that both cycle the momentum against the learning rate, which value an
optimizer gets that was built without momentum, and how to keep your own.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR

from reference.schedulers import cyclic_momentum, one_cycle_momentum
from specs.harness import raising, rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe
from specs.schedulers.traces import Scheduler

#: SGD and RMSprop call it `momentum`; for Adam and AdamW it is the first of the `betas`.
OPTIMIZERS: list[Any] = [SGD, RMSprop, Adam, AdamW]

ONE_CYCLES: list[dict[str, Any]] = [
    {"total_steps": 20},
    {"total_steps": 20, "anneal_strategy": "linear", "pct_start": 0.4},
    {"total_steps": 20, "three_phase": True},
    {"total_steps": 20, "base_momentum": 0.5, "max_momentum": 0.7},
]

CYCLICS: list[dict[str, Any]] = [
    {"step_size_up": 4},
    {"step_size_up": 3, "step_size_down": 6, "mode": "triangular2"},
    {"step_size_up": 4, "mode": "exp_range", "gamma": 0.9},
    {"step_size_up": 4, "base_momentum": 0.5, "max_momentum": 0.7},
]


def momentum_of(optimizer: Optimizer) -> float:
    """The momentum of the first parameter group, by either name."""
    group = optimizer.param_groups[0]
    momentum: float = group["momentum"] if "momentum" in group else group["betas"][0]
    return momentum


def momenta_used(optimizer: Optimizer, scheduler: LRScheduler, steps: int) -> list[float]:
    """The momentum of each of `steps` optimizer steps; the scheduler steps after each."""
    momenta = []
    for _ in range(steps):
        momenta.append(momentum_of(optimizer))
        optimizer.step()
        scheduler.step()
    return momenta


def leaves_the_momentum_alone(optimizer: Optimizer, max_lr: float, **options: Any) -> LRScheduler:
    """Never writes a momentum, whatever cycle_momentum says."""
    return OneCycleLR(optimizer, max_lr, **{**options, "cycle_momentum": False})


def raises_the_momentum_with_the_rate(
    optimizer: Optimizer,
    max_lr: float,
    base_momentum: float = 0.85,
    max_momentum: float = 0.95,
    **options: Any,
) -> LRScheduler:
    """Has the highest momentum where the rate is highest."""
    return OneCycleLR(
        optimizer, max_lr, base_momentum=max_momentum, max_momentum=base_momentum, **options
    )


def ignores_the_bounds(optimizer: Optimizer, max_lr: float, **options: Any) -> LRScheduler:
    """Always goes from 0.95 to 0.85 and back."""
    return OneCycleLR(optimizer, max_lr, **{**options, "base_momentum": 0.85, "max_momentum": 0.95})


def writes_both_betas(optimizer: Optimizer, max_lr: float, **options: Any) -> LRScheduler:
    """Gives the second of the betas the momentum, too."""
    scheduler = OneCycleLR(optimizer, max_lr, **options)
    for group in optimizer.param_groups:
        if "betas" in group:
            group["betas"] = (group["betas"][0], group["betas"][0])
    return scheduler


@rule(
    "LR-15",
    "OneCycleLR and CyclicLR overwrite the optimizer's momentum, even one that was 0;"
    " cycle_momentum=False leaves it alone.",
    kind="contract",
    source="https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.OneCycleLR.html",
    subject=OneCycleLR,
    violated_by=[leaves_the_momentum_alone, writes_both_betas],
)
def test_an_optimizer_without_momentum_gets_momentum(
    OneCycleLR: Scheduler, observe: Observe
) -> None:
    """0.95 from the first step on. The second of Adam's betas is left alone."""
    sgd = SGD([torch.zeros(1)], lr=0.1, momentum=0.0)
    adam = Adam([torch.zeros(1)], lr=0.1, betas=(0.9, 0.99))

    OneCycleLR(sgd, max_lr=0.1, total_steps=20)
    OneCycleLR(adam, max_lr=0.1, total_steps=20)

    observe("momentum of SGD", sgd.param_groups[0]["momentum"])
    assert agree(sgd.param_groups[0]["momentum"], 0.95)
    assert agree(adam.param_groups[0]["betas"], (0.95, 0.99))


@spec(
    "LR-15",
    violated_by=[leaves_the_momentum_alone, raises_the_momentum_with_the_rate, ignores_the_bounds],
)
def test_one_cycle_moves_the_momentum_against_the_rate(OneCycleLR: Scheduler) -> None:
    """From max_momentum down to base_momentum where the rate peaks, and back, on the same curve."""
    for options in ONE_CYCLES:
        expected = [one_cycle_momentum(t, **options) for t in range(20)]
        for optimizer_class in OPTIMIZERS:
            optimizer = optimizer_class([torch.zeros(1)], lr=0.1)
            scheduler = OneCycleLR(optimizer, max_lr=0.1, **options)
            assert agree(momenta_used(optimizer, scheduler, steps=20), expected)


def cycles_regardless(
    optimizer: Optimizer, max_lr: float, cycle_momentum: bool, **options: Any
) -> LRScheduler:
    """Ignores cycle_momentum."""
    del cycle_momentum
    return OneCycleLR(optimizer, max_lr, **options)


@spec("LR-15", violated_by=[cycles_regardless])
def test_cycle_momentum_false_keeps_your_own(OneCycleLR: Scheduler) -> None:
    """The momentum that the optimizer was built with is the one of every step."""
    sgd = SGD([torch.zeros(1)], lr=0.1, momentum=0.3)
    adam = Adam([torch.zeros(1)], lr=0.1, betas=(0.6, 0.99))
    for optimizer, momentum in [(sgd, 0.3), (adam, 0.6)]:
        scheduler = OneCycleLR(optimizer, max_lr=0.1, total_steps=20, cycle_momentum=False)
        assert momenta_used(optimizer, scheduler, steps=20) == [momentum] * 20


def gives_up_silently(optimizer: Optimizer, max_lr: float, **options: Any) -> LRScheduler:
    """Cycles the momentum if there is one, and else only the rate."""
    group = optimizer.param_groups[0]
    options.setdefault("cycle_momentum", "momentum" in group or "betas" in group)
    return OneCycleLR(optimizer, max_lr, **options)


def refuses_all_without_momentum(optimizer: Optimizer, **options: Any) -> LRScheduler:
    """Refuses Adagrad even where only the rate is to be cycled."""
    return OneCycleLR(optimizer, **{**options, "cycle_momentum": True})


@spec("LR-15", violated_by=[gives_up_silently, raising(ValueError, refuses_all_without_momentum)])
def test_an_optimizer_that_has_no_momentum_is_refused(OneCycleLR: Scheduler) -> None:
    """Adagrad has neither name of it. With cycle_momentum=False it is welcome."""
    optimizer = Adagrad([torch.zeros(1)], lr=0.1)
    with pytest.raises(ValueError):  # noqa: PT011 (the message has a test of its own)
        OneCycleLR(optimizer, max_lr=0.1, total_steps=20)
    OneCycleLR(optimizer, max_lr=0.1, total_steps=20, cycle_momentum=False)


@spec("LR-15", violated_by=[gives_up_silently])
def test_the_refusal_says_what_the_optimizer_lacks(OneCycleLR: Scheduler, observe: Observe) -> None:
    """The message names momentum and beta1."""
    optimizer = Adagrad([torch.zeros(1)], lr=0.1)
    with pytest.raises(ValueError, match=r"^optimizer must support momentum or beta1") as refusal:
        OneCycleLR(optimizer, max_lr=0.1, total_steps=20)
    observe("refusal", refusal.value)


def cyclic_leaves_it_alone(optimizer: Optimizer, **options: Any) -> LRScheduler:
    """A CyclicLR that cycles only the rate."""
    return CyclicLR(optimizer, **{**options, "cycle_momentum": False})


def cyclic_with_the_bounds_of_one_cycle(optimizer: Optimizer, **options: Any) -> LRScheduler:
    """A CyclicLR between 0.85 and 0.95."""
    return CyclicLR(optimizer, **{"base_momentum": 0.85, "max_momentum": 0.95, **options})


@spec(
    "LR-15",
    subject=CyclicLR,
    violated_by=[cyclic_leaves_it_alone, cyclic_with_the_bounds_of_one_cycle],
)
def test_cyclic_moves_the_momentum_against_the_rate(CyclicLR: Scheduler) -> None:
    """Its own bounds are 0.9 and 0.8."""
    for options in CYCLICS:
        expected = [cyclic_momentum(t, **options) for t in range(20)]
        for optimizer_class in OPTIMIZERS:
            optimizer = optimizer_class([torch.zeros(1)], lr=0.1)
            scheduler = CyclicLR(optimizer, base_lr=0.01, max_lr=0.1, **options)
            assert agree(momenta_used(optimizer, scheduler, steps=20), expected)


def cyclic_regardless(optimizer: Optimizer, cycle_momentum: bool, **options: Any) -> LRScheduler:
    """A CyclicLR that ignores cycle_momentum."""
    del cycle_momentum
    return CyclicLR(optimizer, **options)


@spec("LR-15", subject=CyclicLR, violated_by=[cyclic_regardless])
def test_cyclic_too_can_leave_the_momentum_alone(CyclicLR: Scheduler) -> None:
    """cycle_momentum=False again."""
    optimizer = SGD([torch.zeros(1)], lr=0.1, momentum=0.3)
    scheduler = CyclicLR(optimizer, base_lr=0.01, max_lr=0.1, step_size_up=4, cycle_momentum=False)
    assert momenta_used(optimizer, scheduler, steps=20) == [0.3] * 20
