"""AdamW: Adam, with a weight decay that stays out of the moments.

At the end you know what Adam and AdamW do with weight_decay, which of the two decays when you say
nothing, and what has to be saved to resume a training.

Below, p is a parameter and g its gradient. Adam's moments are the moving means of g and of g
squared.
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
from specs.harness.versions import torch_release
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


def position_without_gradient(make_optimizer: MakeOptimizer, **options: Any) -> float:
    """Where a parameter that starts at 1 is after one step with a gradient of 0."""
    p = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    p.grad = torch.zeros_like(p)
    make_optimizer([p], **options).step()
    return p.item()


class CouplesTheDecay(torch.optim.Adam):
    """Adds weight_decay * p to the gradient, as Adam does."""

    def __init__(self, params: Any, weight_decay: float = 0.01, **options: Any) -> None:
        super().__init__(params, weight_decay=weight_decay, **options)


class DecaysWithoutTheRate(torch.optim.AdamW):
    """Shrinks by weight_decay * p, not multiplied by the learning rate."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                p.data *= 1 - group["weight_decay"] + group["lr"] * group["weight_decay"]
        return super().step(closure)


@rule(
    "OPT-03",
    "AdamW shrinks a parameter by lr * weight_decay * p beside Adam's step; Adam adds"
    " weight_decay * p to the gradient, so that the decay passes through both moments.",
    kind="contract",
    source=f"{DOCS}torch.optim.AdamW.html",
    subject=torch.optim.AdamW,
    violated_by=[CouplesTheDecay, DecaysWithoutTheRate],
    consequence="with no gradient, lr = 0.1 and weight_decay = 0.1, AdamW shrinks a weight by 1 %,"
    " and Adam by 0.1, whatever weight_decay is",
)
def test_adamw_shrinks_by_the_product_of_rate_and_decay(AdamW: MakeOptimizer) -> None:
    assert agree(position_without_gradient(AdamW, lr=0.1, weight_decay=0.1), 1 - 0.1 * 0.1)
    assert agree(position_without_gradient(AdamW, lr=0.1, weight_decay=0.001), 1 - 0.1 * 0.001)
    assert agree(position_without_gradient(AdamW, lr=0.01, weight_decay=0.1), 1 - 0.01 * 0.1)


class DecouplesTheDecay(torch.optim.AdamW):
    """Decays as AdamW does, though by nothing unless told."""

    def __init__(self, params: Any, weight_decay: float = 0.0, **options: Any) -> None:
        super().__init__(params, weight_decay=weight_decay, **options)


@spec("OPT-03", subject=torch.optim.Adam, violated_by=[DecouplesTheDecay])
def test_adam_normalises_its_decay_to_a_whole_step(Adam: MakeOptimizer) -> None:
    """The decay is all there is in the gradient, and Adam scales every gradient to lr."""
    for weight_decay in (0.1, 0.001):
        position = position_without_gradient(Adam, lr=0.1, weight_decay=weight_decay)
        assert agree(position, 1 - 0.1 * weight_decay / (weight_decay + 1e-8))


class DecaysByDefault(torch.optim.Adam):
    """Has AdamW's default."""

    def __init__(self, params: Any, weight_decay: float = 0.01, **options: Any) -> None:
        super().__init__(params, weight_decay=weight_decay, **options)


@spec("OPT-03", violated_by=[DecouplesTheDecay])
def test_adamw_decays_by_a_hundredth_by_default(AdamW: MakeOptimizer, observe: Observe) -> None:
    observe("signature", inspect.signature(AdamW))
    observe("is a kind of Adam", isinstance(AdamW, type) and issubclass(AdamW, torch.optim.Adam))
    assert agree(position_without_gradient(AdamW, lr=0.1), 1 - 0.1 * 0.01)


@spec("OPT-03", subject=torch.optim.Adam, violated_by=[DecaysByDefault])
def test_adam_does_not_decay_by_default(Adam: MakeOptimizer) -> None:
    assert position_without_gradient(Adam, lr=0.1) == 1.0


class DecaysAfterTheStep(torch.optim.AdamW):
    """Takes Adam's step first, and shrinks the result."""

    def step(self, closure: Any = None) -> Any:
        decays = [group["weight_decay"] for group in self.param_groups]
        for group in self.param_groups:
            group["weight_decay"] = 0.0
        super().step(closure)
        for group, decay in zip(self.param_groups, decays, strict=True):
            group["weight_decay"] = decay
            for p in group["params"]:
                p.data *= 1 - group["lr"] * decay


@spec("OPT-03", violated_by=[CouplesTheDecay, DecaysWithoutTheRate, DecaysAfterTheStep])
def test_every_step_of_adamw_equals_the_reference_for_every_option_and_group(
    AdamW: MakeOptimizer, device: torch.device
) -> None:
    """Two groups with different options, 12 random gradients, the position after each step."""
    for first, second in OPTIONS:
        p, q = two_parameters(device)
        optimizer = AdamW([{"params": [p]}, {"params": [q], **second}], **first)
        expected_p = optimizers.AdamW([p], **first)
        expected_q = optimizers.AdamW([q], **first | second)

        for gradient_of_p, gradient_of_q in random_gradients(p, q):
            p.grad, q.grad = gradient_of_p, gradient_of_q
            expected_p.step([gradient_of_p])
            expected_q.step([gradient_of_q])
            optimizer.step()
            assert agree(p, expected_p.parameters[0], **ROUNDINGS)
            assert agree(q, expected_q.parameters[0], **ROUNDINGS)


class ForgetsWhenFused(torch.optim.AdamW):
    """Has no memory where all parameters are stepped by one kernel."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            if group["fused"] or group["foreach"]:
                group["betas"] = (0.0, group["betas"][1])
        return super().step(closure)


@spec("OPT-03", violated_by=[ForgetsWhenFused])
@pytest.mark.parametrize("kernel", ["foreach", "fused"])
def test_foreach_and_fused_adamw_take_the_same_steps(
    AdamW: MakeOptimizer, kernel: str, device: torch.device
) -> None:
    """They update many tensors at a time. The default depends on the device."""
    p, q = two_parameters(device)
    options = {"lr": 0.1, "weight_decay": 0.3, "amsgrad": True}
    optimizer = AdamW([p, q], **options, **{kernel: True})
    expected = optimizers.AdamW([p, q], **options)

    for gradients in random_gradients(p, q):
        p.grad, q.grad = gradients
        expected.step(gradients)
        optimizer.step()
    assert agree(p, expected.parameters[0], **ROUNDINGS)
    assert agree(q, expected.parameters[1], **ROUNDINGS)


class SavesNoMoments(torch.optim.AdamW):
    """Writes a state_dict without what the optimizer remembers."""

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"state": {}}


class RestartsTheCount(torch.optim.AdamW):
    """Loads the moments, and corrects them as if they were new."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state["step"] = torch.zeros_like(state["step"])


@spec("OPT-03", violated_by=[SavesNoMoments, RestartsTheCount])
def test_a_resumed_adamw_takes_the_same_steps(AdamW: MakeOptimizer, device: torch.device) -> None:
    """The state_dict holds both moments, the count of steps, and the options of each group."""
    p, q = two_parameters(device)
    gradients = random_gradients(p, q)

    def groups(p: Tensor, q: Tensor) -> list[dict[str, Any]]:
        return [{"params": [p]}, {"params": [q], "weight_decay": 0.5}]

    optimizer = AdamW(groups(p, q), lr=0.05, betas=(0.8, 0.95), amsgrad=True)
    for gradient_of_p, gradient_of_q in gradients[:6]:
        p.grad, q.grad = gradient_of_p, gradient_of_q
        optimizer.step()

    # The copy stands for writing to a file: a state_dict holds the live moments.
    saved = copy.deepcopy(optimizer.state_dict())
    p2, q2 = (parameter.detach().clone().requires_grad_() for parameter in (p, q))
    resumed = AdamW(groups(p2, q2))  # with default options, which the state_dict replaces
    resumed.load_state_dict(saved)

    for gradient_of_p, gradient_of_q in gradients[6:]:
        p.grad, q.grad = gradient_of_p, gradient_of_q
        p2.grad, q2.grad = gradient_of_p, gradient_of_q
        optimizer.step()
        resumed.step()
        assert agree(p2, p, ulps=0)
        assert agree(q2, q, ulps=0)


class IgnoresTheSwitch(torch.optim.Adam):
    """Takes decoupled_weight_decay, and adds the decay to the gradient."""

    def __init__(
        self,
        params: Any,
        decoupled_weight_decay: bool = False,  # noqa: ARG002
        **options: Any,
    ) -> None:
        super().__init__(params, **options)


@spec("OPT-03", subject=torch.optim.Adam, violated_by=[IgnoresTheSwitch])
@pytest.mark.skipif(torch_release() < (2, 7), reason="Adam has decoupled_weight_decay since 2.7")
def test_adam_with_decoupled_weight_decay_is_adamw(Adam: MakeOptimizer) -> None:
    p, q = two_parameters(torch.device("cpu"))
    optimizer = Adam([p, q], lr=0.1, weight_decay=0.3, decoupled_weight_decay=True)
    expected = optimizers.AdamW([p, q], lr=0.1, weight_decay=0.3)

    for gradients in random_gradients(p, q):
        p.grad, q.grad = gradients
        expected.step(gradients)
        optimizer.step()
    assert agree(p, expected.parameters[0], **ROUNDINGS)
    assert agree(q, expected.parameters[1], **ROUNDINGS)
