"""Whom step() calls: the closure that computes a loss, and hooks before and after the update.

At the end you know what a closure may rely on, what step() returns, and in which order hooks run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, optim
from torch.nn import Parameter
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from specs.harness import rule, spec
from specs.harness.agreement import agree

STEP = "https://docs.pytorch.org/docs/stable/generated/torch.optim.Optimizer.step.html"
HOOKS = "https://docs.pytorch.org/docs/stable/generated/torch.optim.Optimizer."

MakeOptimizer = Callable[..., Any]


def one() -> Parameter:
    """A parameter of value 1, without a gradient."""
    return Parameter(torch.ones(1, dtype=torch.float64))


# --- The closure ----------------------------------------------------------------------------------


class StepsFirst(optim.SGD):
    """Updates with the gradients of the call before, and computes the new ones afterwards."""

    def step(self, closure: Any = None) -> Any:
        super().step()
        if closure is not None:
            with torch.enable_grad():
                return closure()
        return None


class CallsTwice(optim.SGD):
    """Evaluates the loss again after the update, and returns that."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        return closure() if closure is not None else loss


class WithoutGrad(optim.SGD):
    """Calls the closure as it finds gradients switched, on or off."""

    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else closure()
        super().step()
        return loss


class ReturnsNothing(optim.SGD):
    """Keeps the loss to itself."""

    def step(self, closure: Any = None) -> Any:
        super().step(closure)


@rule(
    "OPT-31",
    "step(closure) calls the closure once, with gradients switched on, then updates by what it left"
    " in .grad, and returns its loss, the one from before. (LBFGS calls it several times.)",
    kind="contract",
    source=STEP,
    subject=optim.SGD,
    violated_by=[StepsFirst, CallsTwice, WithoutGrad, ReturnsNothing],
)
def test_the_closure_computes_loss_and_gradient_once_and_before_the_update(
    SGD: MakeOptimizer,
) -> None:
    """Loss p ** 2 / 2 has the gradient p: every step shrinks p by the factor 0.9."""
    p = one()
    optimizer = SGD([p], lr=0.1)
    seen = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (p**2 / 2).sum()
        seen.append((p.item(), torch.is_grad_enabled()))
        if loss.requires_grad:
            loss.backward()
        return loss

    with torch.no_grad():
        losses = [optimizer.step(closure) for _ in range(3)]

    values = [1.0, 0.9, 0.9**2]
    assert agree([value for value, _ in seen], values)
    assert [enabled for _, enabled in seen] == [True, True, True]
    assert None not in losses
    assert agree(losses, [value**2 / 2 for value in values])
    assert agree(p, [0.9**3])


class WantsAClosure(optim.SGD):
    """Returns 0 where there is no loss to return."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        return 0.0 if loss is None else loss


@spec("OPT-31", violated_by=[WantsAClosure])
def test_without_a_closure_step_returns_none(SGD: MakeOptimizer) -> None:
    """And it takes the gradients that are there. What a closure returns comes back as it is."""
    p = one()
    p.grad = torch.ones_like(p)
    optimizer = SGD([p], lr=0.1)

    assert optimizer.step() is None
    assert agree(p, [0.9])
    assert optimizer.step(lambda: 3.5) == 3.5


class LeavesGradSwitchedOff(optim.SGD):
    """Switches gradients off for the update, and not on again."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        torch.set_grad_enabled(False)
        return loss


class StepsInTheGraph(optim.SGD):
    """Updates with gradients switched on, and so replaces the leaf by a result."""

    def step(self, closure: Any = None) -> Any:  # noqa: ARG002
        for group in self.param_groups:
            group["params"][:] = [p - group["lr"] * p.grad for p in group["params"]]


@spec("OPT-31", violated_by=[LeavesGradSwitchedOff, StepsInTheGraph])
def test_the_update_itself_is_no_part_of_any_graph(SGD: MakeOptimizer) -> None:
    """The parameter is changed in place, and stays the same leaf; gradients are on afterwards."""
    p = one()
    p.grad = torch.ones_like(p)
    optimizer = SGD([p], lr=0.1)

    optimizer.step()

    assert torch.is_grad_enabled()
    assert optimizer.param_groups[0]["params"][0] is p
    assert (p.is_leaf, p.requires_grad, p.grad_fn) == (True, True, None)


# --- Hooks ----------------------------------------------------------------------------------------


class PostHooksBefore(optim.SGD):
    """Runs what is registered for after the step before it."""

    def register_step_post_hook(self, hook: Any) -> Any:
        return self.register_step_pre_hook(lambda *call: hook(*call))


class LastHookFirst(optim.SGD):
    """Runs the hooks in the reverse order, as a stack would."""

    def register_step_pre_hook(self, hook: Any) -> Any:
        handle = super().register_step_pre_hook(hook)
        self._optimizer_step_pre_hooks.move_to_end(handle.id, last=False)  # type: ignore[attr-defined]
        return handle


class KeepsHooks(optim.SGD):
    """Gives out handles that remove nothing."""

    def register_step_post_hook(self, hook: Any) -> Any:
        super().register_step_post_hook(hook)
        return super().register_step_post_hook(lambda *call: None)  # noqa: ARG005


@rule(
    "OPT-32",
    "Hooks run around each step: the global pre-hooks, the optimizer's own pre-hooks, closure and"
    " update, its post-hooks, the global ones; each kind in the order of registration.",
    kind="contract",
    source=f"{HOOKS}register_step_pre_hook.html",
    subject=optim.SGD,
    violated_by=[PostHooksBefore, LastHookFirst, KeepsHooks],
)
def test_pre_hooks_see_the_old_value_and_post_hooks_the_new_one(SGD: MakeOptimizer) -> None:
    """A pre-hook is the last chance to look at the gradients, or to clip them."""
    p = one()
    p.grad = torch.ones_like(p)
    optimizer = SGD([p], lr=0.1)
    calls: list[tuple[str, float]] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *call: calls.append((name, round(p.item(), 6)))  # noqa: ARG005

    handles = [
        optimizer.register_step_post_hook(note("own, after")),
        optimizer.register_step_post_hook(note("own, after, second")),
        optimizer.register_step_pre_hook(note("own, before")),
        optimizer.register_step_pre_hook(note("own, before, second")),
        register_optimizer_step_post_hook(note("global, after")),
        register_optimizer_step_pre_hook(note("global, before")),
    ]
    try:
        optimizer.step(lambda: note("closure")())
    finally:
        for handle in handles:
            handle.remove()
    optimizer.step()  # heard by nobody

    assert calls == [
        ("global, before", 1.0),
        ("own, before", 1.0),
        ("own, before, second", 1.0),
        ("closure", 1.0),
        ("own, after", 0.9),
        ("own, after, second", 0.9),
        ("global, after", 0.9),
    ]


class TakesNoAdvice(optim.SGD):
    """Runs pre-hooks, and ignores what they return."""

    def register_step_pre_hook(self, hook: Any) -> Any:
        return super().register_step_pre_hook(lambda *call: [hook(*call), None][1])


@spec("OPT-32", violated_by=[TakesNoAdvice])
def test_a_pre_hook_may_replace_the_arguments_of_the_step(SGD: MakeOptimizer) -> None:
    """It returns new (args, kwargs), or None to leave them; anything else is refused."""
    optimizer = SGD([one()], lr=0.1)
    handle = optimizer.register_step_pre_hook(lambda self, *_: ((self, lambda: "replaced"), {}))
    assert optimizer.step(lambda: "as called") == "replaced"
    handle.remove()
    assert optimizer.step(lambda: "as called") == "as called"

    optimizer.register_step_pre_hook(lambda *_: "nonsense")
    with pytest.raises(RuntimeError, match="must return None or a tuple"):
        optimizer.step()
