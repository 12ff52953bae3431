"""Adadelta and Rprop: steps of a size that they find themselves.

At the end you know that Adadelta's eps is its first rate, and why Rprop wants the gradient of the
whole data set and knows no schedule.

Below, p is a parameter and g its gradient, and t = 1, 2, ... counts the steps. foreach is a kernel
that updates many tensors at a time.
"""

from __future__ import annotations

from math import sqrt
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from reference import optimizers
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.optimizers.two_groups import (
    Decouples,
    LookAlike,
    MakeOptimizer,
    Options,
    expected_positions,
    positions,
    steps_of,
)

DOCS = "https://docs.pytorch.org/docs/stable/generated/"

# Options of the first parameter group, and what the second group has instead.
ADADELTA_OPTIONS: list[tuple[Options, Options]] = [
    ({}, {"lr": 0.5}),
    ({"rho": 0.5}, {"rho": 0.99, "eps": 1e-3}),
    ({"eps": 0.5}, {"lr": 0.1}),
    ({"eps": 0.1, "weight_decay": 0.3}, {"weight_decay": 0.0}),
    ({"eps": 0.1, "weight_decay": 0.3, "maximize": True}, {"maximize": False}),
]
RPROP_OPTIONS: list[tuple[Options, Options]] = [
    ({}, {"lr": 0.1}),
    ({"lr": 0.1, "etas": (0.3, 1.5)}, {"etas": (0.9, 1.1)}),
    ({"lr": 0.1, "step_sizes": (0.08, 0.15)}, {"step_sizes": (1e-3, 0.2)}),
    ({"lr": 0.1, "maximize": True}, {"maximize": False}),
]

# A step rounds about 10 times, and there are 12. No parameter goes beyond 10.
ROUNDINGS = {"ulps": 10 * 12, "scale": 10.0}

# --- Adadelta -------------------------------------------------------------------------------------


class AdadeltaLike(LookAlike):
    """Adadelta's step with its parts as methods, for the violations to get wrong."""

    usual: ClassVar[Options] = {"lr": 1.0, "rho": 0.9, "eps": 1e-6, "weight_decay": 0.0}

    def root(self, mean_square: Tensor, eps: float) -> Tensor:
        return (mean_square + eps).sqrt()

    def remembered(self, d: Tensor, o: Any) -> Tensor:  # noqa: ARG002
        return d

    def moved(self, p: Tensor, g: Tensor, memory: dict[str, Any], o: Any) -> Tensor:
        g = g + o.weight_decay * p
        s = o.rho * memory.get("s", torch.zeros_like(p)) + (1 - o.rho) * g**2
        u = memory.get("u", torch.zeros_like(p))
        d = self.root(u, o.eps) / self.root(s, o.eps) * g
        u = o.rho * u + (1 - o.rho) * self.remembered(d, o) ** 2
        memory |= {"s": s, "u": u}
        return p - o.lr * d


class EpsBesideTheRoots(AdadeltaLike):
    """Adds eps to the roots: the first step is a thousandth of what it should be."""

    def root(self, mean_square: Tensor, eps: float) -> Tensor:
        return mean_square.sqrt() + eps


class NeverLearnsItsUnit(AdadeltaLike):
    """Remembers no updates: RMSprop, with the square root of eps for its rate."""

    def remembered(self, d: Tensor, o: Any) -> Tensor:  # noqa: ARG002
        return torch.zeros_like(d)


class RemembersTheScaledUpdate(AdadeltaLike):
    """Takes lr * d for the update, and so applies lr again and again."""

    def remembered(self, d: Tensor, o: Any) -> Tensor:
        return o.lr * d


@rule(
    "OPT-17",
    "Adadelta moves by lr * d, d = sqrt(u + eps) / sqrt(s + eps) * g, where s is the moving mean of"
    " g squared and u that of the d squared of all steps before.",
    kind="contract",
    source=f"{DOCS}torch.optim.Adadelta.html",
    subject=torch.optim.Adadelta,
    violated_by=[EpsBesideTheRoots, NeverLearnsItsUnit],
    consequence="eps is the first rate: with the default of 1e-6 the first step is 0.003, whatever"
    " the gradient; with 1e-2 it is 0.3",
)
def test_adadeltas_first_steps_come_from_eps(Adadelta: MakeOptimizer) -> None:
    """Before there is an update to remember, u is 0, and s is (1 - rho) * g ** 2."""
    for eps in (1e-6, 1e-2):
        for g in (0.1, 100.0):
            first, second = steps_of(Adadelta, [g, g], eps=eps)

            assert first == pytest.approx(sqrt(eps) / sqrt(0.1 * g**2 + eps) * g, rel=1e-9)
            u, s = 0.1 * first**2, (0.9 * 0.1 + 0.1) * g**2
            assert second == pytest.approx(sqrt(u + eps) / sqrt(s + eps) * g, rel=1e-9)
    assert steps_of(Adadelta, [100.0]) == pytest.approx([sqrt(1e-6 / 0.1)], rel=1e-3)


class AdadeltaDecouplesTheDecay(Decouples, torch.optim.Adadelta):
    """Shrinks p by lr * weight_decay * p, and keeps the decay out of both means."""


class ForeachForgetsTheRate(torch.optim.Adadelta):
    """Has a rate of 1 where all parameters are stepped by one kernel."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["lr"] = 1.0 if group["foreach"] else group["lr"]
        return super().step(closure)


@spec(
    "OPT-17",
    violated_by=[
        EpsBesideTheRoots,
        RemembersTheScaledUpdate,
        AdadeltaDecouplesTheDecay,
        ForeachForgetsTheRate,
    ],
)
def test_every_step_of_adadelta_equals_the_reference_for_every_option_group_and_kernel(
    Adadelta: MakeOptimizer, device: torch.device
) -> None:
    """Two groups of two shapes, 12 random gradients, the rates halved on the way."""
    for first, second in ADADELTA_OPTIONS:
        expected = expected_positions(optimizers.Adadelta, first, second, device)
        for foreach in (False, True):
            gone = positions(Adadelta, {**first, "foreach": foreach}, second, device)
            assert agree(gone, expected, **ROUNDINGS)


# --- Rprop ----------------------------------------------------------------------------------------


class RpropLike(LookAlike):
    """Rprop's step with its parts as methods, for the violations to get wrong."""

    usual: ClassVar[Options] = {"lr": 0.01, "etas": (0.5, 1.2), "step_sizes": (1e-6, 50)}

    def kept(self, g: Tensor, turned: Tensor) -> Tensor:
        return torch.where(turned, 0.0, g)

    def move(self, size: Tensor, g: Tensor) -> Tensor:
        return size * g.sign()

    def moved(self, p: Tensor, g: Tensor, memory: dict[str, Any], o: Any) -> Tensor:
        sign = (g * memory.get("g", torch.zeros_like(p))).sign()
        factor = torch.where(sign > 0, o.etas[1], torch.where(sign < 0, o.etas[0], 1.0))
        size = memory.get("size", torch.full_like(p, o.lr)) * factor
        memory["size"] = size.clamp(*o.step_sizes)
        memory["g"] = self.kept(g, turned=sign < 0)
        return p - self.move(memory["size"], memory["g"])


class StepsOnWhenItTurns(RpropLike):
    """Moves by the smaller step at once when the sign turns."""

    def kept(self, g: Tensor, turned: Tensor) -> Tensor:  # noqa: ARG002
        return g


class ScalesByTheGradient(RpropLike):
    """Multiplies the step by the size of the gradient."""

    def move(self, size: Tensor, g: Tensor) -> Tensor:
        return size * g


class TakesTheSizeAsItWas(torch.optim.Rprop):
    """Moves by the same step, whatever the signs were."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options | {"etas": (0.999999, 1.000001)})


@rule(
    "OPT-19",
    "Rprop moves each number by its own step size, against the sign of g: times etas[1] while the"
    " sign stays, times etas[0] and a step of rest when it turns; lr is the first size, no more.",
    kind="contract",
    source=f"{DOCS}torch.optim.Rprop.html",
    subject=torch.optim.Rprop,
    violated_by=[StepsOnWhenItTurns, ScalesByTheGradient, TakesTheSizeAsItWas],
    consequence="nine batches with a gradient of 0.1 and one with -0.9, a sum of 0, move it by 0.2;"
    " SGD ends where it began",
)
def test_only_the_signs_count(Rprop: MakeOptimizer) -> None:
    """So it wants the gradient of all data: the signs of batches do not add up to its sign."""
    steps = steps_of(Rprop, [5.0, 0.1, 0.1, -3.0, -9.0, -1.0, 0.0, -1.0, -1.0], lr=0.1)

    grown = 0.1 * 1.2**2
    turned = grown / 2
    # After the turn there is nothing to compare with, and after the 0 neither: the size stays.
    up = [-turned, -turned * 1.2, 0.0, -turned * 1.2, -turned * 1.2**2]
    assert agree(steps, [0.1, 0.1 * 1.2, grown, 0.0, *up])

    moved = sum(steps_of(Rprop, [0.1] * 9 + [-0.9], lr=0.01))
    assert moved == pytest.approx(0.01 * (1.2**9 - 1) / (1.2 - 1))


class IgnoresTheLimits(torch.optim.Rprop):
    """Lets the size grow and shrink without end."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options | {"step_sizes": (0.0, 1e9)})


@spec("OPT-19", violated_by=[IgnoresTheLimits])
def test_sizes_stay_between_a_millionth_and_fifty(Rprop: MakeOptimizer) -> None:
    assert agree(steps_of(Rprop, [1.0] * 4, lr=40.0), [40.0, 48.0, 50.0, 50.0], scale=200.0)
    # Each turn, which takes a step of rest, halves the size: at the third it would be half of 1e-6.
    turning = steps_of(Rprop, [1.0, -1.0, -1.0, 1.0, 1.0, -1.0, -1.0], lr=4e-6)
    assert agree(turning, [4e-6, 0.0, -2e-6, 0.0, 1e-6, 0.0, -1e-6])


class SwapsTheEtas(torch.optim.Rprop):
    """Shrinks while the sign stays."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        for group in self.param_groups:
            group["etas"] = group["etas"][::-1]


class FollowsTheSchedule(torch.optim.Rprop):
    """Changes all sizes in proportion when lr is changed."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if "step_size" in self.state[p]:
                    self.state[p]["step_size"] *= group["lr"] / group["old_lr"]
            group["old_lr"] = group["lr"]
        return super().step(closure)


class ForeachKeepsTheSizes(torch.optim.Rprop):
    """Neither grows nor shrinks where all parameters are stepped by one kernel."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["etas"] = (0.999999, 1.000001) if group["foreach"] else group["etas"]
        return super().step(closure)


@spec(
    "OPT-19",
    violated_by=[
        StepsOnWhenItTurns,
        ScalesByTheGradient,
        IgnoresTheLimits,
        SwapsTheEtas,
        FollowsTheSchedule,
        ForeachKeepsTheSizes,
    ],
)
def test_every_step_of_rprop_equals_the_reference_for_every_option_group_and_kernel(
    Rprop: MakeOptimizer, device: torch.device
) -> None:
    """Two groups of two shapes, 12 random gradients. That lr is halved on the way is no matter."""
    for first, second in RPROP_OPTIONS:
        expected = expected_positions(optimizers.Rprop, first, second, device)
        for foreach in (False, True):
            gone = positions(Rprop, {**first, "foreach": foreach}, second, device)
            assert agree(gone, expected, **ROUNDINGS)
