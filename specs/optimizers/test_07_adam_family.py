"""NAdam, RAdam and Adamax: three changes to Adam.

At the end you know how NAdam looks ahead, why RAdam's first five steps are as long as the gradient,
what Adamax divides by, and that two of the three can decouple their weight decay, as AdamW does.
Read before: test_02_adam.

Below, p is a parameter and g its gradient, t = 1, 2, ... counts the steps; m and s are the moving
means of g and of g squared. Corrected for their start at 0 they are m / (1 - beta1 ** t) and
s / (1 - beta2 ** t). foreach is a kernel that updates many tensors at a time.
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

# Options of the first parameter group, and what the second group has instead: for all three, ...
OPTIONS: list[tuple[Options, Options]] = [
    ({}, {"lr": 0.1}),
    ({"lr": 0.1, "betas": (0.5, 0.9)}, {"betas": (0.9, 0.8)}),
    ({"lr": 0.1, "betas": (0.0, 0.99)}, {"betas": (0.9, 0.1)}),
    ({"lr": 0.1, "eps": 0.5}, {"eps": 1e-3}),
    ({"lr": 0.1, "weight_decay": 0.3}, {"weight_decay": 0.0}),
    ({"lr": 0.1, "weight_decay": 0.3, "maximize": True}, {"maximize": False}),
]
# ... for those that can decouple their weight decay, and for NAdam alone.
DECOUPLED: list[tuple[Options, Options]] = [
    ({"lr": 0.1, "weight_decay": 0.3, "decoupled_weight_decay": True}, {"maximize": True}),
    ({"lr": 0.1, "weight_decay": 0.3}, {"decoupled_weight_decay": True, "weight_decay": 0.5}),
]
MOMENTUM_DECAYS: list[tuple[Options, Options]] = [
    ({"lr": 0.1, "momentum_decay": 1.0}, {"momentum_decay": 0.0}),
    ({"lr": 0.1, "momentum_decay": 30.0, "betas": (0.8, 0.9)}, {"momentum_decay": 5.0}),
]

# A step rounds about 15 times, and there are 12. No parameter goes beyond 10.
ROUNDINGS = {"ulps": 15 * 12, "scale": 10.0}


class AdamLike(LookAlike):
    """What the look-alikes of this family share: the defaults, weight decay, and both means."""

    usual: ClassVar[Options] = {
        "lr": 0.002,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "momentum_decay": 0.004,
        "decoupled_weight_decay": False,
    }

    def moved(self, p: Tensor, g: Tensor, memory: dict[str, Any], o: Any) -> Tensor:
        beta1, beta2 = o.betas
        if o.decoupled_weight_decay:
            p = p * (1 - o.lr * o.weight_decay)
        else:
            g = g + o.weight_decay * p
        memory["m"] = beta1 * memory.get("m", 0) + (1 - beta1) * g
        memory["s"] = beta2 * memory.get("s", 0) + (1 - beta2) * g**2
        return p - o.lr * self.update(g, memory["m"], memory["s"], memory, o)

    def update(self, g: Tensor, m: Tensor, s: Tensor, memory: dict[str, Any], o: Any) -> Tensor:
        raise NotImplementedError


class AddsTheDecay(torch.optim.Optimizer):
    """Adds weight_decay * p to the gradient, decoupled_weight_decay or not."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["decoupled_weight_decay"] = False
        return super().step(closure)


class ForgetsWhenForeach(torch.optim.Optimizer):
    """Has no memory of gradients where all parameters are stepped by one kernel."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            if group["foreach"]:
                group["betas"] = (0.0, group["betas"][1])
        return super().step(closure)


# --- NAdam ----------------------------------------------------------------------------------------


def momentum(t: int, beta1: float = 0.9, momentum_decay: float = 0.004) -> float:
    """mu(t): it grows with t from about beta1 / 2 to beta1."""
    return beta1 * (1 - 0.96 ** (t * momentum_decay) / 2)


class NAdamLike(AdamLike):
    """NAdam's step, with its momentum and what m is weighted by as methods."""

    def mu(self, t: int, o: Any) -> float:
        return momentum(t, o.betas[0], o.momentum_decay)

    def update(self, g: Tensor, m: Tensor, s: Tensor, memory: dict[str, Any], o: Any) -> Tensor:
        t = memory["t"]
        mu = [self.mu(i, o) for i in range(1, t + 2)]
        return self.ahead(g, m, mu) / ((s / (1 - o.betas[1] ** t)).sqrt() + o.eps)

    def ahead(self, g: Tensor, m: Tensor, mu: list[float]) -> Tensor:
        return mu[-1] * m / (1 - prod(mu)) + (1 - mu[-2]) * g / (1 - prod(mu[:-1]))


class KeepsItsMomentum(NAdamLike):
    """Has the momentum beta1 from the start."""

    def mu(self, t: int, o: Any) -> float:  # noqa: ARG002
        return o.betas[0]


class DoesNotLookAhead(NAdamLike):
    """Weights m by the momentum of this step, and corrects it as the gradient."""

    def ahead(self, g: Tensor, m: Tensor, mu: list[float]) -> Tensor:
        return (mu[-2] * m + (1 - mu[-2]) * g) / (1 - prod(mu[:-1]))


@rule(
    "OPT-14",
    "NAdam divides mu(t + 1) * m / (1 - mu(1) ... mu(t + 1)) + (1 - mu(t)) * g / (1 - mu(1) ..."
    " mu(t)) by sqrt(s) + eps, where mu(t) = beta1 * (1 - 0.96 ** (t * momentum_decay) / 2).",
    kind="contract",
    source=f"{DOCS}torch.optim.NAdam.html",
    subject=torch.optim.NAdam,
    violated_by=[KeepsItsMomentum, DoesNotLookAhead],
    consequence="a first step of 1.056 * lr; Nesterov's Adam with a momentum of 0.9 from the start"
    " would begin with 1.47 * lr",
)
def test_nadam_looks_ahead_by_the_momentum_of_the_next_step(NAdam: MakeOptimizer) -> None:
    """Under a gradient of 1, m is 1 - beta1 ** t, and s is 1 when corrected."""
    first, second = steps_of(NAdam, [1.0, 1.0], lr=0.1, eps=0.0)
    mu1, mu2, mu3 = momentum(1), momentum(2), momentum(3)
    # PyTorch keeps the product of the mu in float32.
    assert first == pytest.approx(0.1 * (mu2 * 0.1 / (1 - mu1 * mu2) + 1), rel=1e-6)
    of_m = mu3 * (1 - 0.9**2) / (1 - mu1 * mu2 * mu3)
    assert second == pytest.approx(0.1 * (of_m + (1 - mu2) / (1 - mu1 * mu2)), rel=1e-6)
    assert first == pytest.approx(1.056 * 0.1, rel=1e-3)
    # A gradient as small as eps moves it half as far. lr is 0.002 by default.
    assert steps_of(NAdam, [1e-8]) == pytest.approx([0.002 * first / 0.1 / 2], rel=1e-6)


class NAdamAddsTheDecay(AddsTheDecay, torch.optim.NAdam):
    """Adds weight_decay * p to the gradient, decoupled_weight_decay or not."""


class NAdamDecouples(Decouples, torch.optim.NAdam):
    """Shrinks p by lr * weight_decay * p, asked to or not."""


class NAdamForgetsWhenForeach(ForgetsWhenForeach, torch.optim.NAdam):
    """Has no memory of gradients where all parameters are stepped by one kernel."""


@spec(
    "OPT-14",
    violated_by=[
        KeepsItsMomentum,
        DoesNotLookAhead,
        NAdamAddsTheDecay,
        NAdamDecouples,
        NAdamForgetsWhenForeach,
    ],
)
def test_every_step_of_nadam_equals_the_reference_for_every_option_group_and_kernel(
    NAdam: MakeOptimizer, device: torch.device
) -> None:
    """Two groups of two shapes, 12 random gradients, the rates halved on the way."""
    for first, second in OPTIONS + DECOUPLED + MOMENTUM_DECAYS:
        expected = expected_positions(optimizers.NAdam, first, second, device)
        for foreach in (False, True):
            gone = positions(NAdam, {**first, "foreach": foreach}, second, device)
            # PyTorch keeps the product of the mu in float32: no step is more exact than that.
            assert agree(gone.float(), expected, **ROUNDINGS)


# --- RAdam ----------------------------------------------------------------------------------------


class RAdamLike(AdamLike):
    """RAdam's step, with its threshold, and what it does below and above, as methods."""

    threshold = 5

    def update(self, _: Tensor, m: Tensor, s: Tensor, memory: dict[str, Any], o: Any) -> Tensor:
        beta1, beta2 = o.betas
        t = memory["t"]
        longest = 2 / (1 - beta2) - 1
        rho = longest - 2 * t * beta2**t / (1 - beta2**t)
        if rho <= self.threshold:
            return self.before(m / (1 - beta1**t))
        trust = (rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho)
        return sqrt(trust) * m / (1 - beta1**t) / self.root(s, 1 - beta2**t, o.eps)

    def before(self, mean: Tensor) -> Tensor:
        return mean

    def root(self, s: Tensor, correction: float, eps: float) -> Tensor:
        return (s.sqrt() + eps) / sqrt(correction)


class DividesFromTheFirstStep(torch.optim.Adam):
    """Is Adam."""


class DividesAboveFour(RAdamLike):
    """Divides as soon as s averages four squares, which the paper takes for enough."""

    threshold = 4


class WaitsForFiveSquares(RAdamLike):
    """Does not move before it can divide."""

    def before(self, mean: Tensor) -> Tensor:
        return torch.zeros_like(mean)


class AddsEpsToTheCorrectedRoot(RAdamLike):
    """Corrects s first and adds eps then, as Adam does."""

    def root(self, s: Tensor, correction: float, eps: float) -> Tensor:
        return (s / correction).sqrt() + eps


@rule(
    "OPT-15",
    "RAdam moves by lr * m / (1 - beta1 ** t), undivided, while s averages no more than five"
    " squares (rho <= 5); after that by Adam's step times a factor that grows towards 1.",
    kind="contract",
    source=f"{DOCS}torch.optim.RAdam.html",
    subject=torch.optim.RAdam,
    violated_by=[DividesFromTheFirstStep, DividesAboveFour, WaitsForFiveSquares],
    consequence="under gradients of 100 the first five steps are each 100 times as long as Adam's",
)
def test_radams_first_five_steps_are_as_long_as_the_gradient(RAdam: MakeOptimizer) -> None:
    """m is g when corrected, and the root of s is abs(g): from step 6 on the factor is all.

    With beta2 up to 2/3, s never averages more than 2 / (1 - beta2) - 1 = 5 squares.
    """
    for gradient in (0.01, 100.0):
        steps = steps_of(RAdam, [gradient] * 7, lr=0.1, eps=0.0)

        rho_end = 2 / (1 - 0.999) - 1
        factors = []
        for t in (6, 7):
            rho = rho_end - 2 * t * 0.999**t / (1 - 0.999**t)
            ratio = (rho - 4) * (rho - 2) * rho_end / ((rho_end - 4) * (rho_end - 2) * rho)
            factors.append(sqrt(ratio))
        assert steps == pytest.approx([0.1 * gradient] * 5 + [0.1 * f for f in factors])

    steps = steps_of(RAdam, [100.0] * 50, lr=0.1, betas=(0.9, 0.66))
    assert steps == pytest.approx([10.0] * 50)


class RAdamAddsTheDecay(AddsTheDecay, torch.optim.RAdam):
    """Adds weight_decay * p to the gradient, decoupled_weight_decay or not."""


class RAdamDecouples(Decouples, torch.optim.RAdam):
    """Shrinks p by lr * weight_decay * p, asked to or not."""


class RAdamForgetsWhenForeach(ForgetsWhenForeach, torch.optim.RAdam):
    """Has no memory of gradients where all parameters are stepped by one kernel."""


@spec(
    "OPT-15",
    violated_by=[
        DividesAboveFour,
        WaitsForFiveSquares,
        AddsEpsToTheCorrectedRoot,
        RAdamAddsTheDecay,
        RAdamDecouples,
        RAdamForgetsWhenForeach,
    ],
)
def test_every_step_of_radam_equals_the_reference_for_every_option_group_and_kernel(
    RAdam: MakeOptimizer, device: torch.device
) -> None:
    """Two groups of two shapes, 12 random gradients, the rates halved on the way."""
    for first, second in OPTIONS + DECOUPLED:
        expected = expected_positions(optimizers.RAdam, first, second, device)
        for foreach in (False, True):
            gone = positions(RAdam, {**first, "foreach": foreach}, second, device)
            assert agree(gone, expected, **ROUNDINGS)


# --- Adamax ---------------------------------------------------------------------------------------


class AdamaxLike(AdamLike):
    """Adamax's step, with its maximum and the correction of it as methods."""

    def maximum(self, before: Tensor, g: Tensor, o: Any) -> Tensor:
        return torch.maximum(o.betas[1] * before, g.abs() + o.eps)

    def corrected(self, u: Tensor, o: Any, t: int) -> Tensor:  # noqa: ARG002
        return u

    def update(self, g: Tensor, m: Tensor, s: Tensor, memory: dict[str, Any], o: Any) -> Tensor:
        memory["u"] = self.maximum(memory.get("u", torch.zeros_like(s)), g, o)
        return m / (1 - o.betas[0] ** memory["t"]) / self.corrected(memory["u"], o, memory["t"])


class NeverFades(AdamaxLike):
    """Divides by the largest gradient ever."""

    def maximum(self, before: Tensor, g: Tensor, o: Any) -> Tensor:
        return torch.maximum(before, g.abs() + o.eps)


class CorrectsTheMaximum(AdamaxLike):
    """Divides u by 1 - beta2 ** t, although a maximum does not start too low."""

    def corrected(self, u: Tensor, o: Any, t: int) -> Tensor:
        return u / (1 - o.betas[1] ** t)


class AddsEpsToTheMaximum(AdamaxLike):
    """Divides by u + eps."""

    def maximum(self, before: Tensor, g: Tensor, o: Any) -> Tensor:
        return torch.maximum(o.betas[1] * before, g.abs())

    def corrected(self, u: Tensor, o: Any, t: int) -> Tensor:  # noqa: ARG002
        return u + o.eps


@rule(
    "OPT-16",
    "Adamax moves by lr * m / ((1 - beta1 ** t) * u), where u = max(beta2 * u, abs(g) + eps) is a"
    " fading maximum of the gradients.",
    kind="contract",
    source=f"{DOCS}torch.optim.Adamax.html",
    subject=torch.optim.Adamax,
    violated_by=[NeverFades, CorrectsTheMaximum, AddsEpsToTheMaximum],
    consequence="one gradient a thousand times too large shortens the steps for long: of 0.999 a"
    " step, half is left after 693 steps",
)
def test_adamax_remembers_the_largest_gradient(Adamax: MakeOptimizer) -> None:
    """A gradient of 100, and zeros: m falls by beta1 a step, and u only by beta2."""
    steps = steps_of(Adamax, [100.0] + [0.0] * 20, lr=0.1, eps=1.0)

    # u starts at 100 + 1, m at (1 - beta1) * 100.
    assert steps == pytest.approx(
        [0.1 * 10 * 0.9**k / ((1 - 0.9 ** (k + 1)) * 101 * 0.999**k) for k in range(21)], rel=1e-12
    )


class AdamaxDecouples(Decouples, torch.optim.Adamax):
    """Shrinks p by lr * weight_decay * p, as AdamW does."""


class AdamaxForgetsWhenForeach(ForgetsWhenForeach, torch.optim.Adamax):
    """Has no memory of gradients where all parameters are stepped by one kernel."""


@spec(
    "OPT-16",
    violated_by=[
        NeverFades,
        CorrectsTheMaximum,
        AddsEpsToTheMaximum,
        AdamaxDecouples,
        AdamaxForgetsWhenForeach,
    ],
)
def test_every_step_of_adamax_equals_the_reference_for_every_option_group_and_kernel(
    Adamax: MakeOptimizer, device: torch.device
) -> None:
    """Two groups of two shapes, 12 random gradients, the rates halved on the way."""
    for first, second in OPTIONS:
        expected = expected_positions(optimizers.Adamax, first, second, device)
        for foreach in (False, True):
            gone = positions(Adamax, {**first, "foreach": foreach}, second, device)
            assert agree(gone, expected, **ROUNDINGS)
