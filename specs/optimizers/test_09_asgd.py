"""ASGD: gradient descent, and beside it the average of the path.

At the end you know how ASGD's rate falls, where it keeps its average, when it starts it, and what
the average is good for.

Below, p is a parameter and g its gradient, and t = 1, 2, ... counts the steps. foreach is a kernel
that updates many tensors at a time.
"""

from __future__ import annotations

from math import prod, sqrt
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from reference import optimizers
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe
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
ASGD_OPTIONS: list[tuple[Options, Options]] = [
    ({}, {"lr": 0.1}),
    ({"lr": 0.05, "lambd": 0.5}, {"alpha": 0.3, "t0": 3.0}),
    ({"lr": 0.05, "lambd": 0.5, "alpha": 0.0, "t0": 0.0}, {"lambd": 0.0}),
    ({"lr": 0.05, "weight_decay": 0.3}, {"weight_decay": 0.0, "lambd": 1.0}),
    ({"lr": 0.05, "weight_decay": 0.3, "maximize": True}, {"maximize": False}),
]
# A step rounds about 10 times, and there are 12. No parameter goes beyond 10.
ROUNDINGS = {"ulps": 10 * 12, "scale": 10.0}


class AsgdLike(LookAlike):
    """ASGD's step with its rate and its average as methods, for the violations to get wrong."""

    usual: ClassVar[Options] = {
        "lr": 0.01,
        "lambd": 1e-4,
        "alpha": 0.75,
        "t0": 1e6,
        "weight_decay": 0.0,
    }

    def rate(self, o: Any, t: int) -> float:
        return o.lr / (1 + o.lambd * o.lr * (t - 1)) ** o.alpha

    def share(self, o: Any, t: int) -> float:
        return 1 / max(1, t - 1 - o.t0)

    def moved(self, p: Tensor, g: Tensor, memory: dict[str, Any], o: Any) -> Tensor:
        eta = self.rate(o, memory["t"])
        p = p - eta * (g + (o.weight_decay + o.lambd) * p)
        average = memory.get("ax", torch.zeros_like(p))
        memory["ax"] = average + self.share(o, memory["t"]) * (p - average)
        return p


class KeepsItsRate(AsgdLike):
    """Steps with lr to the end."""

    def rate(self, o: Any, t: int) -> float:  # noqa: ARG002
        return o.lr


class RootOfTheStepsAlone(AsgdLike):
    """Raises t to the power of alpha, and not the whole denominator."""

    def rate(self, o: Any, t: int) -> float:
        return o.lr / (1 + o.lambd * o.lr * (t - 1) ** o.alpha)


class FallsFromTheFirstStep(AsgdLike):
    """Begins with the rate of the second step."""

    def rate(self, o: Any, t: int) -> float:
        return super().rate(o, t + 1)


@rule(
    "OPT-18",
    "ASGD takes SGD's steps with a rate of lr / (1 + lambd * lr * (t - 1)) ** alpha and a decay of"
    " lambd; from step t0 + 2 on it keeps the mean of the parameters in its state, as `ax`.",
    kind="contract",
    source=f"{DOCS}torch.optim.ASGD.html",
    subject=torch.optim.ASGD,
    violated_by=[KeepsItsRate, RootOfTheStepsAlone, FallsFromTheFirstStep],
    consequence="the model itself is not averaged, and with the default t0 nothing is for a million"
    " steps",
)
def test_the_rate_falls_and_the_decay_with_it(ASGD: MakeOptimizer) -> None:
    """Without a gradient p shrinks by lambd times the rate of each step."""
    gone = steps_of(ASGD, [0.0] * 20, lr=0.5, lambd=0.4, alpha=0.75)

    rates = [0.5 / (1 + 0.4 * 0.5 * (t - 1)) ** 0.75 for t in range(1, 21)]
    # PyTorch keeps the rate in float32.
    assert 1 - sum(gone) == pytest.approx(prod(1 - 0.4 * rate for rate in rates), rel=1e-6)
    assert gone[0] == pytest.approx(0.4 * 0.5)


class AveragesFromTheStart(AsgdLike):
    """Takes the mean of all positions since the first."""

    def share(self, o: Any, t: int) -> float:  # noqa: ARG002
        return 1 / t


class AveragesByAFixedShare(AsgdLike):
    """Keeps a moving mean, which forgets."""

    def share(self, o: Any, t: int) -> float:
        return 1.0 if t <= o.t0 + 1 else 0.1


class MovesToTheAverage(torch.optim.ASGD):
    """Puts the average into the model after each step."""

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        for p, state in self.state.items():
            p.data.copy_(state["ax"])


@spec("OPT-18", violated_by=[AveragesFromTheStart, AveragesByAFixedShare, MovesToTheAverage])
def test_the_average_lies_beside_the_parameters(ASGD: MakeOptimizer) -> None:
    """100 numbers, each at the bottom of a parabola whose gradient comes with noise of size 1.

    At a rate of 0.5 each keeps jumping about it, by a root mean square of sqrt(0.5 / (2 - 0.5)).
    The mean of 200 steps is ten times as near: 1 / sqrt(200).
    """
    for foreach in (False, True):
        random = torch.Generator().manual_seed(0)
        p = torch.zeros(100, dtype=torch.float64, requires_grad=True)
        optimizer = ASGD([p], lr=0.5, lambd=0.0, t0=99, foreach=foreach)
        path = []
        for _ in range(300):
            p.grad = p.detach() + torch.randn(100, generator=random)
            optimizer.step()
            path.append(p.detach().clone())

        average = optimizer.state[p]["ax"]
        # From step t0 + 2 = 101 to step 300. The shares of the mean are kept in float32.
        assert agree(average.float(), torch.stack(path[100:]).mean(0), ulps=200)
        assert p.detach().square().mean().sqrt() == pytest.approx(sqrt(0.5 / 1.5), rel=0.25)
        assert average.square().mean().sqrt() == pytest.approx(1 / sqrt(200), rel=0.25)

        # With the default t0, a million, the average of the first steps is the last position.
        optimizer = ASGD([p], foreach=foreach)
        for _ in range(5):
            optimizer.step()
        assert agree(optimizer.state[p]["ax"], p, ulps=0)


class AsgdDecouplesTheDecay(Decouples, torch.optim.ASGD):
    """Shrinks p by lr * weight_decay * p, with a rate that does not fall."""


class ForeachIgnoresTheDecay(torch.optim.ASGD):
    """Keeps weight_decay out where all parameters are stepped by one kernel."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["weight_decay"] *= not group["foreach"]
        return super().step(closure)


@spec(
    "OPT-18",
    violated_by=[
        KeepsItsRate,
        RootOfTheStepsAlone,
        FallsFromTheFirstStep,
        AsgdDecouplesTheDecay,
        ForeachIgnoresTheDecay,
    ],
)
def test_every_step_of_asgd_equals_the_reference_for_every_option_group_and_kernel(
    ASGD: MakeOptimizer, device: torch.device
) -> None:
    """Two groups of two shapes, 12 random gradients."""
    for first, second in ASGD_OPTIONS:
        expected = expected_positions(optimizers.ASGD, first, second, device, halved=False)
        for foreach in (False, True):
            options = {**first, "foreach": foreach}
            gone = positions(ASGD, options, second, device, halved=False)
            # PyTorch keeps the rate in float32: no step is more exact than that.
            assert agree(gone.float(), expected, **ROUNDINGS)


class FollowsNoSchedule(torch.optim.ASGD):
    """Goes on with the rate that it was built with."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["lr"] = self.defaults["lr"]
        return super().step(closure)


@spec("OPT-18", violated_by=[FollowsNoSchedule])
def test_a_new_learning_rate_counts_from_the_second_step_on(
    ASGD: MakeOptimizer, observe: Observe
) -> None:
    """PyTorch computes the rate of a step at the end of the step before.

    That what a schedule sets counts one step late is on no page, and therefore recorded only.
    """
    p = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    optimizer = ASGD([p], lr=0.1, lambd=0.0)
    path = []
    for lr in (0.1, 0.01, 0.01, 0.01):
        optimizer.param_groups[0]["lr"] = lr
        p.grad = torch.tensor(-1.0, dtype=torch.float64)
        optimizer.step()
        path.append(p.item())

    observe("length of the step after the change", path[1] - path[0])
    # PyTorch keeps the rate in float32.
    assert path[3] - path[2] == pytest.approx(0.01, rel=1e-6)
