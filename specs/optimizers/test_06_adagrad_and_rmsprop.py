"""Adagrad and RMSprop: a rate for each number, from the size of its own gradients.

At the end you know why Adagrad's steps shrink and RMSprop's do not, where eps stands, how long
RMSprop's first steps are, and when its centered form runs away.

Below, p is a parameter and g its gradient; s is the sum (Adagrad) or the moving mean (RMSprop) of
the squares of g. foreach and fused are kernels that update many tensors at a time.
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
from specs.harness.observations import Observe
from specs.harness.versions import torch_release
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
ADAGRAD_OPTIONS: list[tuple[Options, Options]] = [
    ({}, {"lr": 0.1}),
    ({"lr": 0.5, "lr_decay": 0.3}, {"lr_decay": 0.0}),
    ({"lr": 0.5, "eps": 0.5}, {"eps": 1e-3}),
    ({"lr": 0.5, "initial_accumulator_value": 2.0}, {"lr_decay": 0.1}),
    ({"lr": 0.5, "weight_decay": 0.3}, {"weight_decay": 0.0}),
    ({"lr": 0.5, "weight_decay": 0.3, "maximize": True}, {"maximize": False}),
]
RMSPROP_OPTIONS: list[tuple[Options, Options]] = [
    ({}, {"lr": 0.1}),
    ({"lr": 0.1, "alpha": 0.7}, {"alpha": 0.9, "eps": 0.5}),
    ({"momentum": 0.9}, {"momentum": 0.5, "alpha": 0.8}),
    ({"lr": 0.05, "centered": True, "alpha": 0.8}, {"centered": False}),
    ({"centered": True, "momentum": 0.8, "eps": 0.1}, {"centered": True, "alpha": 0.5}),
    ({"lr": 0.1, "weight_decay": 0.3}, {"weight_decay": 0.0}),
    ({"lr": 0.1, "weight_decay": 0.3, "maximize": True}, {"maximize": False, "momentum": 0.5}),
]

# A step rounds about 10 times, and there are 12. No parameter goes beyond 10.
ROUNDINGS = {"ulps": 10 * 12, "scale": 10.0}

# --- Adagrad --------------------------------------------------------------------------------------


class AdagradLookAlike(LookAlike):
    """Adagrad's step with its parts as methods, for the violations to get wrong."""

    usual: ClassVar[Options] = {
        "lr": 0.01,
        "lr_decay": 0.0,
        "weight_decay": 0.0,
        "initial_accumulator_value": 0.0,
        "eps": 1e-10,
    }

    def rate(self, o: Any, t: int) -> float:
        return o.lr / (1 + (t - 1) * o.lr_decay)

    def sum_of_squares(self, before: Any, g: Tensor) -> Tensor:
        return before + g**2

    def denominator(self, s: Tensor, eps: float) -> Tensor:
        return s.sqrt() + eps

    def moved(self, p: Tensor, g: Tensor, memory: dict[str, Any], o: Any) -> Tensor:
        g = g + o.weight_decay * p
        s = memory.get("sum", torch.full_like(p, o.initial_accumulator_value))
        memory["sum"] = self.sum_of_squares(s, g)
        return p - self.rate(o, memory["t"]) * g / self.denominator(memory["sum"], o.eps)


class ForgetsOldGradients(AdagradLookAlike):
    """Takes a moving mean of the squares, as RMSprop does."""

    def sum_of_squares(self, before: Any, g: Tensor) -> Tensor:
        return 0.9 * before + 0.1 * g**2


class SumsTheSizes(AdagradLookAlike):
    """Sums the absolute values of the gradients: the steps shrink as 1 / t."""

    def sum_of_squares(self, before: Any, g: Tensor) -> Tensor:
        return (before.sqrt() + g.abs()) ** 2


class AdagradWithEpsUnderTheRoot(AdagradLookAlike):
    """Divides by sqrt(s + eps)."""

    def denominator(self, s: Tensor, eps: float) -> Tensor:
        return (s + eps).sqrt()


class DecaysFromTheFirstStep(AdagradLookAlike):
    """Divides the first rate by 1 + lr_decay already."""

    def rate(self, o: Any, t: int) -> float:
        return o.lr / (1 + t * o.lr_decay)


@rule(
    "OPT-12",
    "Adagrad moves by lr / (1 + (t - 1) * lr_decay) * g / (sqrt(s) + eps), where s is the sum of"
    " all squared gradients since the first step, initial_accumulator_value included.",
    kind="contract",
    source=f"{DOCS}torch.optim.Adagrad.html",
    subject=torch.optim.Adagrad,
    violated_by=[ForgetsOldGradients, SumsTheSizes],
    consequence="nothing is forgotten: under a constant gradient step 100 is a tenth of step 1",
)
def test_adagrads_steps_shrink_with_the_root_of_their_number(Adagrad: MakeOptimizer) -> None:
    """After t gradients of size g the sum is t * g ** 2. How large g is makes no difference."""
    for gradient in (1e-3, 1e3):
        steps = steps_of(Adagrad, [gradient] * 100, lr=0.1)
        # eps is a ten-millionth of the smallest gradient.
        assert steps == pytest.approx([0.1 / sqrt(t) for t in range(1, 101)], rel=2e-7)


class StartsFromZero(torch.optim.Adagrad):
    """Takes initial_accumulator_value, and starts at 0."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options | {"initial_accumulator_value": 0.0})


class StartsFromItsSquare(torch.optim.Adagrad):
    """Takes initial_accumulator_value for the size of an earlier gradient."""

    def __init__(self, params: Any, initial_accumulator_value: float, **options: Any) -> None:
        squared = initial_accumulator_value**2
        super().__init__(params, initial_accumulator_value=squared, **options)


@spec("OPT-12", violated_by=[AdagradWithEpsUnderTheRoot, StartsFromZero, StartsFromItsSquare])
def test_a_start_value_and_eps_shorten_the_first_step(
    Adagrad: MakeOptimizer, observe: Observe
) -> None:
    """A start value of 8 beside a gradient of 1 leaves a third, and an eps of 1 then a fourth.

    It is the optimizer's. Whether a group's own start value counts is no documented matter, and
    recorded only.
    """
    first = steps_of(Adagrad, [1.0], lr=0.1, initial_accumulator_value=8.0, eps=0.0)
    assert agree(first, [0.1 / 3])
    first = steps_of(Adagrad, [1.0], lr=0.1, initial_accumulator_value=8.0, eps=1.0)
    assert agree(first, [0.1 / 4])

    p = torch.ones(1, requires_grad=True)
    own = Adagrad([{"params": [p], "initial_accumulator_value": 8.0}], initial_accumulator_value=3)
    p.grad = torch.ones(1)
    own.step()
    observe("the sum of a group with a start value of its own", own.state[p].get("sum"))


class AdagradDecouplesTheDecay(Decouples, torch.optim.Adagrad):
    """Shrinks p by lr * weight_decay * p, and keeps the decay out of the sum."""


class FusedIgnoresTheDecayOfTheRate(torch.optim.Adagrad):
    """Keeps the rate where all parameters are stepped by one kernel."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["lr_decay"] *= not group["fused"]
        return super().step(closure)


@spec(
    "OPT-12",
    violated_by=[
        ForgetsOldGradients,
        AdagradWithEpsUnderTheRoot,
        DecaysFromTheFirstStep,
        StartsFromZero,
        AdagradDecouplesTheDecay,
        FusedIgnoresTheDecayOfTheRate,
    ],
)
def test_every_step_of_adagrad_equals_the_reference_for_every_option_group_and_kernel(
    Adagrad: MakeOptimizer, device: torch.device
) -> None:
    """Two groups of two shapes, 12 random gradients, the rates halved on the way."""
    kernels = [{"foreach": False}, {"foreach": True}]
    # Adagrad has a fused kernel for CUDA since torch 2.14, and none for other accelerators.
    if device.type == "cpu" or (device.type == "cuda" and torch_release() >= (2, 14)):
        kernels += [{"fused": True}]
    for first, second in ADAGRAD_OPTIONS:
        expected = expected_positions(optimizers.Adagrad, first, second, device)
        for kernel in kernels:
            gone = positions(Adagrad, {**first, **kernel}, second, device)
            assert agree(gone, expected, **ROUNDINGS)


# --- RMSprop --------------------------------------------------------------------------------------


class RMSpropLookAlike(LookAlike):
    """RMSprop's step with its parts as methods, for the violations to get wrong."""

    usual: ClassVar[Options] = {
        "lr": 0.01,
        "alpha": 0.99,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "momentum": 0.0,
        "centered": False,
    }

    def mean_square(self, s: Tensor, o: Any, t: int) -> Tensor:  # noqa: ARG002
        return s

    def denominator(self, s: Tensor, eps: float) -> Tensor:
        return s.sqrt() + eps

    def numerator(self, g: Tensor, m: Tensor) -> Tensor:  # noqa: ARG002
        return g

    def moved(self, p: Tensor, g: Tensor, memory: dict[str, Any], o: Any) -> Tensor:
        g = g + o.weight_decay * p
        zero = torch.zeros_like(p)
        memory["s"] = o.alpha * memory.get("s", zero) + (1 - o.alpha) * g**2
        memory["m"] = o.alpha * memory.get("m", zero) + (1 - o.alpha) * g
        s = self.mean_square(memory["s"], o, memory["t"])
        s = s - memory["m"] ** 2 if o.centered else s
        move = self.numerator(g, memory["m"]) / self.denominator(s, o.eps)
        memory["v"] = o.momentum * memory.get("v", zero) + move
        return p - o.lr * memory["v"]


class CorrectsTheStart(RMSpropLookAlike):
    """Undoes the start of s at 0, as Adam does."""

    def mean_square(self, s: Tensor, o: Any, t: int) -> Tensor:
        return s / (1 - o.alpha**t)


class RMSpropWithEpsUnderTheRoot(RMSpropLookAlike):
    """Divides by sqrt(s + eps), as TensorFlow does."""

    def denominator(self, s: Tensor, eps: float) -> Tensor:
        return (s + eps).sqrt()


class NeverForgets(RMSpropLookAlike):
    """Takes the mean over all steps, the first as much as the last."""

    def mean_square(self, s: Tensor, o: Any, t: int) -> Tensor:  # noqa: ARG002
        return s * t


@rule(
    "OPT-13",
    "RMSprop moves by lr * g / (sqrt(s) + eps), where s is a moving mean of g squared that starts"
    " at 0 and is not corrected for it; momentum sums these moves up.",
    kind="contract",
    source=f"{DOCS}torch.optim.RMSprop.html",
    subject=torch.optim.RMSprop,
    violated_by=[CorrectsTheStart, NeverForgets],
    consequence="the first step is lr / sqrt(1 - alpha): ten times lr for the default alpha, 0.99",
)
def test_rmsprops_first_step_is_ten_times_its_rate(RMSprop: MakeOptimizer) -> None:
    """Under a constant gradient s is (1 - alpha ** t) * g ** 2, and the steps fall towards lr."""
    for gradient in (1e-3, 1e3):
        steps = steps_of(RMSprop, [gradient] * 400, lr=0.01)
        # eps is 1e-4 of the root of the first s.
        assert steps == pytest.approx([0.01 / sqrt(1 - 0.99**t) for t in range(1, 401)], rel=2e-4)
    assert steps[0] == pytest.approx(10 * 0.01)
    assert steps[-1] == pytest.approx(0.01, rel=0.02)


@spec("OPT-13", violated_by=[RMSpropWithEpsUnderTheRoot])
def test_eps_is_added_to_the_root(RMSprop: MakeOptimizer) -> None:
    """A gradient of 1 gives a root of 0.1. An eps of 0.1 beside it halves the step.

    TensorFlow adds eps to s: settings that are copied from there mean something else.
    """
    assert agree(steps_of(RMSprop, [1.0], lr=0.01, eps=0.1), [0.01 / (0.1 + 0.1)])


class DoesNotCenter(torch.optim.RMSprop):
    """Takes centered, and divides by the root mean square all the same."""

    def __init__(self, params: Any, centered: bool, **options: Any) -> None:  # noqa: ARG002
        super().__init__(params, **options)


class CentersTheGradientToo(RMSpropLookAlike):
    """Takes the mean away from the gradient as well: where it does not change, p comes to rest."""

    def numerator(self, g: Tensor, m: Tensor) -> Tensor:
        return g - m


@spec("OPT-13", violated_by=[DoesNotCenter, CentersTheGradientToo])
def test_centered_runs_away_where_the_gradient_does_not_change(
    RMSprop: MakeOptimizer, observe: Observe
) -> None:
    """Centered, it divides by the standard deviation of the gradients, which then goes to 0.

    s - m ** 2 = (1 - a) - (1 - a) ** 2 = (1 - a) * a, with a = alpha ** t, for a gradient of 1.
    In the end rounding decides what is left of it: a step of lr / eps, or the root of a negative
    number, which is NaN.
    """
    steps = steps_of(RMSprop, [1.0] * 100, lr=0.01, alpha=0.9, centered=True)

    powers = [0.9**t for t in range(1, 101)]
    assert steps == pytest.approx([0.01 / sqrt((1 - a) * a) for a in powers], rel=1e-4)
    assert steps[-1] > 190 * 0.01
    long = steps_of(RMSprop, [0.1] * 400, lr=0.01, alpha=0.9, centered=True)
    observe("longest of 400 steps", max(long))
    observe("step 400", long[-1])


class RateInTheVelocity(torch.optim.RMSprop):
    """v = momentum * v + lr * move and p = p - v: what is remembered keeps its old rate."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if "momentum_buffer" in self.state[p]:
                    old = group.setdefault("old_lr", group["lr"])
                    self.state[p]["momentum_buffer"] *= old / group["lr"]
            group["old_lr"] = group["lr"]
        return super().step(closure)


class RMSpropDecouplesTheDecay(Decouples, torch.optim.RMSprop):
    """Shrinks p by lr * weight_decay * p, and keeps the decay out of s."""


class ForeachDoesNotCenter(torch.optim.RMSprop):
    """Divides by the root mean square where all parameters are stepped by one kernel."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["centered"] &= not group["foreach"]
        return super().step(closure)


@spec(
    "OPT-13",
    violated_by=[
        CorrectsTheStart,
        RMSpropWithEpsUnderTheRoot,
        RateInTheVelocity,
        RMSpropDecouplesTheDecay,
        ForeachDoesNotCenter,
    ],
)
def test_every_step_of_rmsprop_equals_the_reference_for_every_option_group_and_kernel(
    RMSprop: MakeOptimizer, device: torch.device
) -> None:
    """Two groups of two shapes, 12 random gradients, the rates halved on the way."""
    for first, second in RMSPROP_OPTIONS:
        expected = expected_positions(optimizers.RMSprop, first, second, device)
        for foreach in (False, True):
            gone = positions(RMSprop, {**first, "foreach": foreach}, second, device)
            assert agree(gone, expected, **ROUNDINGS)
