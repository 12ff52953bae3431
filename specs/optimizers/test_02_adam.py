"""Adam: steps of the size of the learning rate.

At the end you know why Adam's first step ignores the size of the gradient, what its bias
correction, eps and amsgrad do, and what has to be saved to resume a training.

Below, p is a parameter and g its gradient; m and s are the moving means of g and of g squared
(PyTorch's exp_avg and exp_avg_sq).
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from reference import optimizers
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe
from specs.optimizers.random_steps import random_gradients, two_parameters

DOCS = "https://docs.pytorch.org/docs/stable/generated/"

MakeOptimizer = Callable[..., torch.optim.Optimizer]

# Options of the first parameter group, and what the second group has instead.
OPTIONS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"lr": 0.1}),
    ({"lr": 0.1}, {"lr": 0.02, "betas": (0.5, 0.9)}),
    ({"lr": 0.1, "eps": 0.1}, {"eps": 1e-3}),
    ({"lr": 0.1, "weight_decay": 0.3}, {"weight_decay": 0.0}),
    ({"lr": 0.1, "weight_decay": 0.3, "maximize": True}, {"maximize": False}),
    ({"lr": 0.1, "amsgrad": True}, {"betas": (0.8, 0.7), "amsgrad": False}),
    ({"lr": 0.1, "betas": (0.8, 0.7), "amsgrad": True, "weight_decay": 0.1}, {"lr": 0.01}),
    ({"lr": 0.1, "betas": (0.0, 0.99)}, {"betas": (0.9, 0.0)}),
]

# A step rounds about 15 times, and there are 12. No parameter goes beyond 10.
ROUNDINGS = {"ulps": 15 * 12, "scale": 10.0}


class AdamLookAlike(torch.optim.Adam):
    """Adam's step with its parts as methods, for the violations to get wrong."""

    def corrected(self, mean: Tensor, beta: float, steps: int) -> Tensor:
        return mean / (1 - beta**steps)

    def denominator(self, square: Tensor, eps: float) -> Tensor:
        return square.sqrt() + eps

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # noqa: ARG002
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                state = self.state[p]
                g = p.grad + group["weight_decay"] * p
                state["step"] = state.get("step", 0) + 1
                state["m"] = beta1 * state.get("m", 0) + (1 - beta1) * g
                state["s"] = beta2 * state.get("s", 0) + (1 - beta2) * g * g
                mean = self.corrected(state["m"], beta1, state["step"])
                square = self.corrected(state["s"], beta2, state["step"])
                p -= group["lr"] * mean / self.denominator(square, group["eps"])


class NoBiasCorrection(AdamLookAlike):
    """Takes the moving means as they are, although they start at 0."""

    def corrected(self, mean: Tensor, beta: float, steps: int) -> Tensor:  # noqa: ARG002
        return mean


class EpsUnderTheRoot(AdamLookAlike):
    """Divides by sqrt(s + eps)."""

    def denominator(self, square: Tensor, eps: float) -> Tensor:
        return (square + eps).sqrt()


class NoSquares(AdamLookAlike):
    """Does not divide by the size of the gradients: it is SGD with an averaged gradient."""

    def denominator(self, square: Tensor, eps: float) -> Tensor:  # noqa: ARG002
        return torch.ones_like(square)


def first_step(make_optimizer: MakeOptimizer, gradient: float, **options: float) -> float:
    """How far a parameter that starts at 1 is moved down by its first step."""
    p = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    p.grad = torch.tensor(gradient, dtype=torch.float64)
    make_optimizer([p], **options).step()
    return 1.0 - p.item()


@rule(
    "OPT-02",
    "Adam moves by lr * m / (sqrt(s) + eps), with both means corrected for their start at 0: its"
    " first step is lr * g / (abs(g) + eps), about lr for every size of gradient.",
    kind="contract",
    source=f"{DOCS}torch.optim.Adam.html",
    subject=torch.optim.Adam,
    violated_by=[NoBiasCorrection, EpsUnderTheRoot, NoSquares],
    consequence="without the bias correction of its means the first step would be"
    " 0.1 / sqrt(0.001) = 3.2 times as long",
)
def test_the_first_step_is_the_learning_rate_for_every_size_of_gradient(
    Adam: MakeOptimizer, observe: Observe
) -> None:
    """After one step m / (1 - beta1) is g, and s / (1 - beta2) is g squared."""
    observe("signature", inspect.signature(Adam))
    for gradient in (-1000.0, -1.0, 1e-6, 0.001, 1.0, 1000.0):
        moved = first_step(Adam, gradient, lr=0.1)
        assert agree(moved, 0.1 * gradient / (abs(gradient) + 1e-8))

    # A gradient as small as eps moves by half, and none at all moves nothing.
    assert agree(first_step(Adam, 1e-8, lr=0.1), 0.1 / 2)
    assert agree(first_step(Adam, 0.5, lr=0.1, eps=0.5), 0.1 / 2)
    assert first_step(Adam, 0.0, lr=0.1) == 0.0


class SwapsTheBetas(torch.optim.Adam):
    """Averages the gradients by beta2, and their squares by beta1."""

    def step(self, closure: Any = None) -> Any:
        groups = self.param_groups
        for group in groups:
            group["betas"] = group["betas"][::-1]
        result = super().step(closure)
        for group in groups:
            group["betas"] = group["betas"][::-1]
        return result


class IgnoresAmsgrad(torch.optim.Adam):
    """Lets the mean of the squares shrink, amsgrad or not."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        for group in self.param_groups:
            group["amsgrad"] = False


class OneStepCountForAllSteps(AdamLookAlike):
    """Corrects every step as if it were the first."""

    def corrected(self, mean: Tensor, beta: float, steps: int) -> Tensor:  # noqa: ARG002
        return mean / (1 - beta)


class DecouplesTheDecay(torch.optim.AdamW):
    """Decays as AdamW does."""

    def __init__(self, params: Any, weight_decay: float = 0.0, **options: Any) -> None:
        super().__init__(params, weight_decay=weight_decay, **options)


@spec(
    "OPT-02",
    violated_by=[
        EpsUnderTheRoot,
        SwapsTheBetas,
        IgnoresAmsgrad,
        OneStepCountForAllSteps,
        DecouplesTheDecay,
    ],
)
def test_every_step_of_adam_equals_the_reference_for_every_option_and_group(
    Adam: MakeOptimizer, device: torch.device
) -> None:
    """Two groups with different options, 12 random gradients, the position after each step."""
    for first, second in OPTIONS:
        p, q = two_parameters(device)
        optimizer = Adam([{"params": [p]}, {"params": [q], **second}], **first)
        expected_p = optimizers.Adam([p], **first)
        expected_q = optimizers.Adam([q], **first | second)

        for gradient_of_p, gradient_of_q in random_gradients(p, q):
            p.grad, q.grad = gradient_of_p, gradient_of_q
            expected_p.step([gradient_of_p])
            expected_q.step([gradient_of_q])
            optimizer.step()
            assert agree(p, expected_p.parameters[0], **ROUNDINGS)
            assert agree(q, expected_q.parameters[0], **ROUNDINGS)


class MaxOfTheCorrected(AdamLookAlike):
    """Takes the maximum of s after it was corrected for its start at 0."""

    def denominator(self, square: Tensor, eps: float) -> Tensor:
        self.largest = torch.maximum(getattr(self, "largest", square), square)
        return super().denominator(self.largest, eps)


@spec("OPT-02", violated_by=[MaxOfTheCorrected])
def test_amsgrad_keeps_the_largest_square_as_it_was_before_its_correction(
    Adam: MakeOptimizer,
) -> None:
    """A gradient of 100, then one of 1: the denominator forgets half of the 100 at once.

    s = 0.001 * 100 ** 2 is the largest so far, then 0.999 * s + 0.001 * 1, which is smaller. The
    correction divides the largest by 1 - 0.999 in step 1 and by 1 - 0.999 ** 2 in step 2.
    """
    p = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    optimizer = Adam([p], lr=0.1, eps=0.0, amsgrad=True)
    for gradient in (100.0, 1.0):
        p.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()

    mean = (0.9 * 0.1 * 100 + 0.1 * 1) / (1 - 0.9**2)
    square = 0.001 * 100**2 / (1 - 0.999**2)
    # 1 - 0.999 is a thousandth of 1, and has the rounding error of 1.
    assert agree(p, -0.1 - 0.1 * mean / math.sqrt(square), ulps=1000)


class TakesAnyBetas(torch.optim.Adam):
    """Limits the betas to what works, and says nothing."""

    def __init__(self, params: Any, betas: tuple[float, float], **options: Any) -> None:
        super().__init__(params, betas=(min(betas[0], 0.99), min(betas[1], 0.99)), **options)


@spec("OPT-02", subject=[torch.optim.Adam, optimizers.Adam], violated_by=[TakesAnyBetas])
def test_a_beta_of_one_is_refused(Adam: MakeOptimizer, observe: Observe) -> None:
    """Its mean would stay at 0, where it starts, and the correction would divide 0 by 0."""
    for betas in ((1.0, 0.999), (0.9, 1.0)):
        with pytest.raises(ValueError, match="beta") as refusal:
            Adam([torch.zeros(1, requires_grad=True)], betas=betas)
    observe("beta of 1", refusal.value)


class ForgetsWhenFused(torch.optim.Adam):
    """Has no memory where all parameters are stepped by one kernel."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            if group["fused"] or group["foreach"]:
                group["betas"] = (0.0, group["betas"][1])
        return super().step(closure)


@spec("OPT-02", violated_by=[ForgetsWhenFused])
@pytest.mark.parametrize("kernel", ["foreach", "fused"])
def test_foreach_and_fused_adam_take_the_same_steps(
    Adam: MakeOptimizer, kernel: str, device: torch.device
) -> None:
    """They update many tensors at a time. The default depends on the device."""
    p, q = two_parameters(device)
    options = {"lr": 0.1, "weight_decay": 0.3, "amsgrad": True}
    optimizer = Adam([p, q], **options, **{kernel: True})
    expected = optimizers.Adam([p, q], **options)

    for gradients in random_gradients(p, q):
        p.grad, q.grad = gradients
        expected.step(gradients)
        optimizer.step()
    assert agree(p, expected.parameters[0], **ROUNDINGS)
    assert agree(q, expected.parameters[1], **ROUNDINGS)


class SavesNoMoments(torch.optim.Adam):
    """Writes a state_dict without what the optimizer remembers."""

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"state": {}}


class RestartsTheCount(torch.optim.Adam):
    """Loads the moments, and corrects them as if they were new."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state["step"] = torch.zeros_like(state["step"])


@spec("OPT-02", violated_by=[SavesNoMoments, RestartsTheCount])
def test_a_resumed_adam_takes_the_same_steps(Adam: MakeOptimizer, device: torch.device) -> None:
    """The state_dict holds both moments, the count of steps, and the options of each group."""
    p, q = two_parameters(device)
    gradients = random_gradients(p, q)

    def groups(p: Tensor, q: Tensor) -> list[dict[str, Any]]:
        return [{"params": [p]}, {"params": [q], "weight_decay": 0.5}]

    optimizer = Adam(groups(p, q), lr=0.05, betas=(0.8, 0.95), amsgrad=True)
    for gradient_of_p, gradient_of_q in gradients[:6]:
        p.grad, q.grad = gradient_of_p, gradient_of_q
        optimizer.step()

    # The copy stands for writing to a file: a state_dict holds the live moments.
    saved = copy.deepcopy(optimizer.state_dict())
    p2, q2 = (parameter.detach().clone().requires_grad_() for parameter in (p, q))
    resumed = Adam(groups(p2, q2))  # with default options, which the state_dict replaces
    resumed.load_state_dict(saved)

    for gradient_of_p, gradient_of_q in gradients[6:]:
        p.grad, q.grad = gradient_of_p, gradient_of_q
        p2.grad, q2.grad = gradient_of_p, gradient_of_q
        optimizer.step()
        resumed.step()
        assert agree(p2, p, ulps=0)
        assert agree(q2, q, ulps=0)
