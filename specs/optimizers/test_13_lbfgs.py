"""L-BFGS: an optimizer that asks for the loss itself.

At the end you know why LBFGS wants a closure, how it learns the curvature from two gradients, how
far that brings it in twenty iterations, and what a line search saves it from.
"""

from __future__ import annotations

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
from specs.optimizers.two_groups import MakeOptimizer

LBFGS_PAGE = "https://docs.pytorch.org/docs/stable/generated/torch.optim.LBFGS.html"

#: Curvatures of a bowl along its five axes: from the flattest to the steepest, a factor of 100.
CURVATURES = torch.tensor([1.0, 3.0, 10.0, 30.0, 100.0], dtype=torch.float64)

Loss = Callable[[], Tensor]


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def bowl(x: Tensor) -> Tensor:
    return (CURVATURES * x**2 / 2).sum()


def closure_of(optimizer: torch.optim.Optimizer, loss: Loss, calls: list[float]) -> Loss:
    """Computes the loss and its gradients anew, and notes each loss in `calls`."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        calls.append(value.item())
        return value

    return closure


class StepsWithoutAClosure(torch.optim.LBFGS):
    """Moves down the gradient that is there, as other optimizers do."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure) if closure is not None else None


class TakesSeveralGroups(torch.optim.LBFGS):
    """Puts all groups together, and drops their options."""

    def __init__(self, params: Any, **options: Any) -> None:
        groups = [one["params"] if isinstance(one, dict) else [one] for one in params]
        super().__init__([p for group in groups for p in group], **options)


@rule(
    "OPT-11",
    "LBFGS's step needs a closure that zeroes the gradients, computes the loss and its gradients,"
    " and returns it: a step evaluates it at several points. All parameters are one group.",
    kind="contract",
    source=LBFGS_PAGE,
    subject=torch.optim.LBFGS,
    violated_by=[StepsWithoutAClosure],
    consequence="in a bowl 100 times as steep one way as the other, 20 iterations leave a"
    " hundred-thousandth of the distance to the bottom; gradient descent at its best rate leaves"
    " 0.67",
)
def test_a_step_without_a_closure_is_refused(LBFGS: MakeOptimizer, observe: Observe) -> None:
    p = numbers(1.0)
    p.grad = torch.ones_like(p)
    with pytest.raises(TypeError, match="closure") as refusal:
        LBFGS([p]).step()
    observe("refusal", refusal.value)


@spec("OPT-11", violated_by=[TakesSeveralGroups])
def test_a_second_group_is_refused(LBFGS: MakeOptimizer, observe: Observe) -> None:
    """It has one direction for all parameters, and one length."""
    with pytest.raises(ValueError, match="per-parameter options") as refusal:
        LBFGS([{"params": [numbers(1.0)]}, {"params": [numbers(2.0)], "lr": 0.1}])
    observe("refusal", refusal.value)


class OneIterationPerStep(torch.optim.LBFGS):
    """Moves once and waits for the next batch, as other optimizers do."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options | {"max_iter": 1})


class ReturnsTheLastLoss(torch.optim.LBFGS):
    """Returns the loss of the last evaluation."""

    def step(self, closure: Any) -> Any:
        values = []

        def noted() -> Tensor:
            values.append(closure())
            return values[-1]

        super().step(noted)
        return values[-1]


@spec("OPT-11", violated_by=[OneIterationPerStep, ReturnsTheLastLoss])
def test_a_step_calls_the_closure_once_for_each_iteration(LBFGS: MakeOptimizer) -> None:
    """It returns the loss of the first call: that of where the step began."""
    for max_iter in (1, 2, 5):
        x = numbers(1.0, 1.0, 1.0, 1.0, 1.0)
        optimizer = LBFGS([x], max_iter=max_iter)
        calls: list[float] = []

        returned: Any = optimizer.step(closure_of(optimizer, lambda x=x: bowl(x), calls))

        assert len(calls) == max_iter
        assert returned.item() == calls[0] == CURVATURES.sum().item() / 2


def valley(x: Tensor) -> Tensor:
    """Rosenbrock's: narrow and bent."""
    return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2


class HasTimeForAll(torch.optim.LBFGS):
    """Evaluates as often as its iterations want."""

    def __init__(self, params: Any, max_eval: Any = None, **options: Any) -> None:  # noqa: ARG002
        super().__init__(params, max_eval=10_000, **options)


@spec("OPT-11", violated_by=[OneIterationPerStep, HasTimeForAll])
def test_a_step_ends_after_max_iter_iterations_or_max_eval_evaluations(
    LBFGS: MakeOptimizer,
) -> None:
    """By default 20 and 25: a line search may need several evaluations for an iteration."""
    for options, evaluations in (
        ({}, 20),
        ({"max_eval": 3}, 3),
        ({"line_search_fn": "strong_wolfe"}, 25),
    ):
        x = numbers(-1.2, 1.0)
        optimizer = LBFGS([x], **options)
        calls: list[float] = []
        optimizer.step(closure_of(optimizer, lambda x=x: valley(x), calls))
        assert len(calls) == evaluations


class FollowsTheGradient(torch.optim.LBFGS):
    """Never looks at the curvature: each step begins as the first."""

    def step(self, closure: Any) -> Any:
        self.state.clear()
        return super().step(closure)


class FirstStepByTheRate(torch.optim.LBFGS):
    """Takes lr * g for the first step, however long g is."""

    def step(self, closure: Any) -> Any:
        if not self.state:
            loss = closure()
            for p in self.param_groups[0]["params"]:
                p.data -= self.param_groups[0]["lr"] * p.grad
            self.state[self.param_groups[0]["params"][0]]["began"] = True
            return loss
        return super().step(closure)


@spec("OPT-11", violated_by=[FollowsTheGradient, FirstStepByTheRate])
def test_two_gradients_of_a_parabola_tell_where_its_bottom_is(LBFGS: MakeOptimizer) -> None:
    """The first step goes down the gradient by no more than 1. How much the gradient has changed on
    the way gives the curvature, and the second step is Newton's."""
    for curvature in (0.2, 1.0, 50.0):
        x = numbers(7.0)
        optimizer = LBFGS([x], max_iter=1)
        closure = closure_of(optimizer, lambda x=x, c=curvature: (c * (x - 3) ** 2 / 2).sum(), [])

        optimizer.step(closure)
        gradient = curvature * (7 - 3)
        assert agree(x, [7 - min(1, 1 / gradient) * gradient], scale=7.0)
        optimizer.step(closure)
        assert agree(x, [3.0], ulps=64, scale=7.0)


class RemembersOnePair(torch.optim.LBFGS):
    """Knows the curvature of the last step only."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options | {"history_size": 1})


class RemembersEveryPair(torch.optim.LBFGS):
    """Keeps what is older than history_size."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options | {"history_size": 100})


class IgnoresTheRate(torch.optim.LBFGS):
    """Takes the whole step, whatever lr is."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options | {"lr": 1.0})


@spec(
    "OPT-11",
    violated_by=[RemembersOnePair, RemembersEveryPair, IgnoresTheRate, FollowsTheGradient],
)
def test_every_iteration_equals_the_reference(LBFGS: MakeOptimizer) -> None:
    """Two parameters, in a bowl with walls that become steeper. The reference writes the estimate
    of the inverse Hessian out as a matrix; LBFGS never builds it."""
    start = torch.tensor([0.5, -1.5, 2.0, 1.0, -1.0], dtype=torch.float64)
    for lr, history_size in ((1.0, 100), (0.5, 100), (1.0, 2), (0.7, 3)):
        expected = optimizers.lbfgs_path(
            lambda x: CURVATURES * x + x**3, start, steps=10, lr=lr, history_size=history_size
        )
        p, q = numbers(*start[:3].tolist()), start[3:].reshape(2, 1).clone().requires_grad_()
        # Tolerances of 0: it is not to stop early.
        options = {"history_size": history_size, "tolerance_grad": 0, "tolerance_change": 0}
        optimizer = LBFGS([p, q], lr=lr, max_iter=1, **options)

        def loss(p: Tensor = p, q: Tensor = q) -> Tensor:
            x = torch.cat([p, q.flatten()])
            return bowl(x) + (x**4).sum() / 4

        closure = closure_of(optimizer, loss, [])
        path = []
        for _ in range(10):
            optimizer.step(closure)
            path.append(torch.cat([p, q.flatten()]).detach().clone())

        # A direction is a sum of up to 20 products of 5 numbers, and errors are stretched by 100.
        assert agree(torch.stack(path), torch.stack(expected), ulps=20 * 5 * 100, scale=2.0)


@spec("OPT-11", violated_by=[OneIterationPerStep, FollowsTheGradient, RemembersOnePair])
def test_a_few_iterations_reach_the_bottom_of_a_bowl(
    LBFGS: MakeOptimizer, observe: Observe
) -> None:
    """The best constant rate of gradient descent, 2 / (1 + 100), leaves a share of 99 / 101 of the
    distance along the flattest and the steepest axis in each step: 0.67 after 20."""
    for line_search_fn in (None, "strong_wolfe"):
        x = numbers(1.0, 1.0, 1.0, 1.0, 1.0)
        optimizer = LBFGS([x], max_iter=10, line_search_fn=line_search_fn)
        closure = closure_of(optimizer, lambda x=x: bowl(x), [])

        for _ in range(2):
            optimizer.step(closure)

        assert x.abs().max() < 1e-5
        observe(f"distance with line search {line_search_fn}", x.abs().max().item())
    left_by_gradient_descent = (99 / 101) ** 20
    assert left_by_gradient_descent == pytest.approx(0.67, abs=0.01)


class IgnoresTheLineSearch(torch.optim.LBFGS):
    """Takes the whole step, line_search_fn or not."""

    def __init__(self, params: Any, line_search_fn: Any = None, **options: Any) -> None:  # noqa: ARG002
        super().__init__(params, **options)


@spec("OPT-11", violated_by=[IgnoresTheLineSearch])
def test_a_line_search_keeps_it_from_running_away(LBFGS: MakeOptimizer) -> None:
    """sqrt(1 + x ** 2) is a parabola at its bottom and a straight line far out, where a curvature
    of almost 0 makes Newton's step almost infinite. Nothing but the line search checks the loss."""
    ends = {}
    for line_search_fn in (None, "strong_wolfe"):
        x = numbers(3.0)
        optimizer = LBFGS([x], max_iter=20, line_search_fn=line_search_fn)
        optimizer.step(closure_of(optimizer, lambda x=x: (1 + x**2).sqrt().sum(), []))
        ends[line_search_fn] = abs(x.item())

    assert ends["strong_wolfe"] < 1e-4
    assert ends[None] > 1e10


class GoesDownAllTheSame(torch.optim.LBFGS):
    """Takes maximize, and minimizes."""

    def __init__(self, params: Any, maximize: bool = False, **options: Any) -> None:  # noqa: ARG002
        super().__init__(params, **options)


@spec("OPT-11", violated_by=[GoesDownAllTheSame])
@pytest.mark.skipif(torch_release() < (2, 14), reason="LBFGS has maximize since 2.14")
def test_maximize_climbs_to_the_top(LBFGS: MakeOptimizer) -> None:
    for line_search_fn in (None, "strong_wolfe"):
        x = numbers(1.0, 1.0, 1.0, 1.0, 1.0)
        optimizer = LBFGS([x], max_iter=20, line_search_fn=line_search_fn, maximize=True)
        calls: list[float] = []

        returned: Any = optimizer.step(closure_of(optimizer, lambda x=x: -bowl(x), calls))

        assert x.abs().max() < 1e-4
        assert returned.item() == calls[0] == -CURVATURES.sum().item() / 2
