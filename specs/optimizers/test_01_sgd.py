"""SGD: down the gradient, with a memory.

At the end you know each term of SGD's update: momentum, dampening, Nesterov, weight decay and
maximize, what the learning rate multiplies, and what has to be saved to resume a training.

Below, p is a parameter, g its gradient, and v its velocity (PyTorch's momentum_buffer).
"""

from __future__ import annotations

import copy
import inspect
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

SGD_PAGE = "https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html"

MakeOptimizer = Callable[..., torch.optim.Optimizer]

# Options of the first parameter group, and what the second group has instead.
OPTIONS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"lr": 0.1}),
    ({"lr": 0.1}, {"lr": 0.02, "momentum": 0.9}),
    ({"lr": 0.05, "momentum": 0.9}, {"momentum": 0.5, "dampening": 0.3}),
    ({"lr": 0.05, "momentum": 0.9, "nesterov": True}, {"nesterov": False}),
    ({"lr": 0.1, "weight_decay": 0.2}, {"momentum": 0.9}),
    ({"lr": 0.1, "weight_decay": 0.2, "maximize": True}, {"maximize": False}),
    ({"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True}, {"maximize": True}),
    # Without momentum there is no velocity to damp.
    ({"lr": 0.1, "dampening": 0.5}, {"momentum": 0.8}),
]


class DampsTheFirstStep(torch.optim.SGD):
    """Multiplies the first gradient by 1 - dampening, as it does every later one."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p not in self.state:
                    p.grad = p.grad * (1 - group["dampening"])
        return super().step(closure)


class AveragesTheGradients(torch.optim.SGD):
    """v = momentum * v + (1 - momentum) * g: a mean of the gradients, in place of their sum."""

    def __init__(self, params: Any, momentum: float = 0.0, **options: Any) -> None:
        super().__init__(params, momentum=momentum, **options | {"dampening": momentum})


class LearningRateInTheVelocity(torch.optim.SGD):
    """v = momentum * v + lr * g and p = p - v: what is remembered keeps its old learning rate."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # noqa: ARG002
        for group in self.param_groups:
            for p in group["params"]:
                v = self.state[p].get("momentum_buffer", torch.zeros_like(p))
                v = group["momentum"] * v + group["lr"] * p.grad
                self.state[p]["momentum_buffer"] = v
                p -= v


def positions(optimizer: torch.optim.Optimizer, p: Tensor, learning_rates: list[float]) -> Tensor:
    """Where p is after each step, if its gradient is always 1."""
    seen = []
    for learning_rate in learning_rates:
        optimizer.param_groups[0]["lr"] = learning_rate
        p.grad = torch.ones_like(p)
        optimizer.step()
        seen.append(p.detach().clone())
    return torch.stack(seen)


def start_at_one() -> Tensor:
    return torch.tensor(1.0, dtype=torch.float64, requires_grad=True)


@rule(
    "OPT-01",
    "SGD with momentum moves by p = p - lr * v, where v = g on the first step and"
    " v = momentum * v + (1 - dampening) * g on every later one.",
    kind="contract",
    source=SGD_PAGE,
    subject=torch.optim.SGD,
    violated_by=[AveragesTheGradients],
    consequence="the velocity is a sum: a constant gradient ends at steps 1 / (1 - momentum) times"
    " as long, ten times for 0.9",
)
def test_the_velocity_is_a_fading_sum_of_the_gradients(
    SGD: MakeOptimizer, observe: Observe
) -> None:
    """A gradient of 1 gives velocities of 1, then 0.9 + 1, then 0.9 * 1.9 + 1."""
    observe("signature", inspect.signature(SGD))
    p = start_at_one()
    seen = positions(SGD([p], lr=0.1, momentum=0.9), p, learning_rates=[0.1, 0.1, 0.1])
    assert agree(seen, [1 - 0.1, 1 - 0.1 * (1 + 1.9), 1 - 0.1 * (1 + 1.9 + 2.71)])

    p = start_at_one()
    seen = positions(SGD([p], lr=0.001, momentum=0.9), p, learning_rates=[0.001] * 200)
    assert (seen[-2] - seen[-1]).item() == pytest.approx(0.001 / (1 - 0.9))


@spec("OPT-01", violated_by=[DampsTheFirstStep, LearningRateInTheVelocity])
def test_dampening_spares_the_first_gradient(SGD: MakeOptimizer) -> None:
    """With a dampening of 0.9: v = 1, then 0.9 * 1 + 0.1 * 1, which is 1 again."""
    p = start_at_one()

    seen = positions(SGD([p], momentum=0.9, dampening=0.9), p, learning_rates=[0.1, 0.1, 0.1])

    assert agree(seen, [0.9, 0.8, 0.7])


@spec("OPT-01", violated_by=[LearningRateInTheVelocity])
def test_a_new_learning_rate_applies_to_the_whole_velocity(SGD: MakeOptimizer) -> None:
    """Not only to the gradients that are still to come: a drop of the rate is felt at once.

    In Sutskever's form of momentum v holds lr * g, and the second step here would be
    0.9 * 0.1 + 0.01, five times as long.
    """
    p = start_at_one()

    seen = positions(SGD([p], momentum=0.9), p, learning_rates=[0.1, 0.01])

    assert agree(seen, [1 - 0.1, 1 - 0.1 - 0.01 * 1.9])


# ---------------------------------------------------------------------------------------------
# The whole of it, against the reference


class IgnoresNesterov(torch.optim.SGD):
    """Steps by the velocity, nesterov or not."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["nesterov"] = False
        return super().step(closure)


class OneRateForAllGroups(torch.optim.SGD):
    """Uses the learning rate of the first group for every group."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["lr"] = self.param_groups[0]["lr"]
        return super().step(closure)


class DecaysUphill(torch.optim.SGD):
    """Turns the sign of the weight decay too when it maximizes: parameters grow."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            if group["maximize"]:
                for p in group["params"]:
                    p.grad = p.grad + 2 * group["weight_decay"] * p.detach()
        return super().step(closure)


@spec(
    "OPT-01",
    violated_by=[
        DampsTheFirstStep,
        AveragesTheGradients,
        LearningRateInTheVelocity,
        IgnoresNesterov,
        OneRateForAllGroups,
        DecaysUphill,
    ],
)
def test_every_step_equals_the_reference_for_every_option_and_group(
    SGD: MakeOptimizer, device: torch.device
) -> None:
    """Two groups with different options, 12 random gradients, the position after each step."""
    for first, second in OPTIONS:
        p, q = two_parameters(device)
        optimizer = SGD([{"params": [p]}, {"params": [q], **second}], **first)
        expected_p = optimizers.SGD([p], **first)
        expected_q = optimizers.SGD([q], **first | second)

        for gradient_of_p, gradient_of_q in random_gradients(p, q):
            p.grad, q.grad = gradient_of_p, gradient_of_q
            expected_p.step([gradient_of_p])
            expected_q.step([gradient_of_q])
            optimizer.step()
            # A step rounds about 8 times, and there are 12. Velocities are below 100.
            assert agree(p, expected_p.parameters[0], ulps=8 * 12, scale=100 * 0.1)
            assert agree(q, expected_q.parameters[0], ulps=8 * 12, scale=100 * 0.1)


class ForgetsMomentumWhenFused(torch.optim.SGD):
    """Has no velocity where all parameters are stepped by one kernel."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["momentum"] *= not (group["fused"] or group["foreach"])
        return super().step(closure)


@spec("OPT-01", violated_by=[ForgetsMomentumWhenFused])
@pytest.mark.parametrize("kernel", ["foreach", "fused"])
def test_foreach_and_fused_take_the_same_steps(
    SGD: MakeOptimizer, kernel: str, device: torch.device
) -> None:
    """They update many tensors at a time. The default depends on the device."""
    p, q = two_parameters(device)
    options = {"lr": 0.05, "momentum": 0.9, "dampening": 0.2, "weight_decay": 0.1}
    optimizer = SGD([p, q], **options, **{kernel: True})
    expected = optimizers.SGD([p, q], **options)

    for gradients in random_gradients(p, q):
        p.grad, q.grad = gradients
        expected.step(gradients)
        optimizer.step()
    assert agree(p, expected.parameters[0], ulps=8 * 12, scale=100 * 0.1)
    assert agree(q, expected.parameters[1], ulps=8 * 12, scale=100 * 0.1)


class SavesNoVelocity(torch.optim.SGD):
    """Writes a state_dict without what the optimizer remembers."""

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"state": {}}


class KeepsItsOwnOptions(torch.optim.SGD):
    """Loads the velocities, and keeps the options it was built with."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        own = self.state_dict()["param_groups"]
        super().load_state_dict(state_dict | {"param_groups": own})


@spec("OPT-01", violated_by=[SavesNoVelocity, KeepsItsOwnOptions])
def test_a_resumed_training_takes_the_same_steps(SGD: MakeOptimizer, device: torch.device) -> None:
    """What an interrupted run needs are the parameters, and the optimizer's state_dict."""
    p, q = two_parameters(device)
    gradients = random_gradients(p, q)

    def groups(p: Tensor, q: Tensor) -> list[dict[str, Any]]:
        return [{"params": [p]}, {"params": [q], "dampening": 0.5}]

    optimizer = SGD(groups(p, q), lr=0.05, momentum=0.9)
    for gradient_of_p, gradient_of_q in gradients[:6]:
        p.grad, q.grad = gradient_of_p, gradient_of_q
        optimizer.step()

    # The copy stands for writing to a file: a state_dict holds the live velocities.
    saved = copy.deepcopy(optimizer.state_dict())
    p2, q2 = (parameter.detach().clone().requires_grad_() for parameter in (p, q))
    resumed = SGD(groups(p2, q2))  # with default options, which the state_dict replaces
    resumed.load_state_dict(saved)

    for gradient_of_p, gradient_of_q in gradients[6:]:
        p.grad, q.grad = gradient_of_p, gradient_of_q
        p2.grad, q2.grad = gradient_of_p, gradient_of_q
        optimizer.step()
        resumed.step()
        assert agree(p2, p, ulps=0)
        assert agree(q2, q, ulps=0)


class TakesNesterovAlone(torch.optim.SGD):
    """Drops nesterov where it has no meaning, and says nothing."""

    def __init__(self, params: Any, nesterov: bool = False, **options: Any) -> None:
        super().__init__(params, nesterov=nesterov and "momentum" in options, **options)


@spec("OPT-01", subject=[torch.optim.SGD, optimizers.SGD], violated_by=[TakesNesterovAlone])
def test_nesterov_is_refused_without_momentum_or_with_dampening(
    SGD: MakeOptimizer, observe: Observe
) -> None:
    for wrong in ({}, {"momentum": 0.9, "dampening": 0.1}):
        with pytest.raises(ValueError, match=r"[Nn]esterov") as refusal:
            SGD([start_at_one()], nesterov=True, **wrong)
    observe("nesterov with dampening", refusal.value)
