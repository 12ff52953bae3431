"""Autograd: what backward() does, what it needs, and what it keeps.

PyTorch records operations on tensors with requires_grad=True in a graph; backward() goes through
it from a result to its leaves, the tensors that no operation made. At the end you know where
gradients are written, how long a graph lives, how to stop recording, and which gradient a kink has.

Read before: lesson 1, tensors.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn, tensor
from torch.nn import functional as F
from torch.optim import SGD

from reference.subgradients import least_slope, log_where_positive
from specs.harness import raising, rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe
from specs.harness.versions import torch_release

DOCS = "https://docs.pytorch.org/docs/stable/"
NOTES = DOCS + "notes/autograd.html"

Function = Callable[..., Any]


def leaf(*values: float) -> Any:
    """A float64 tensor by which autograd differentiates."""
    return tensor(values, dtype=torch.float64, requires_grad=True)


def sums_first(tensors: Tensor, grad_tensors: Tensor | None = None) -> None:
    """Takes the gradient of the sum where it has more than one number to start from."""
    torch.autograd.backward(tensors.sum() if grad_tensors is None else tensors, grad_tensors)


@rule(
    "AG-07",
    "backward() starts at one number, such as a loss, and writes .grad on the leaves that require"
    " it; a result in between keeps its gradient after retain_grad() only.",
    kind="contract",
    source=DOCS + "generated/torch.autograd.backward.html",
    subject=torch.autograd.backward,
    violated_by=[sums_first],
)
def test_gradients_are_written_on_leaves(backward: Function) -> None:
    """A gradient says how much the result changes by each element: here by w, for L = (wx) ** 2."""
    w, x = leaf(2.0, 3.0), tensor([5.0, 7.0])
    y = w * x
    z = y**2
    with pytest.raises(RuntimeError):
        backward(z)
    z.retain_grad()
    y.register_hook(lambda gradient: gradient + 1)  # sees it on its way, and may replace it
    backward(z, tensor([10.0, 1.0]))  # of 10 * z[0] + 1 * z[1]

    assert (w.is_leaf, x.is_leaf, y.is_leaf) == (True, True, False)
    assert z.grad.tolist() == [10, 1]
    assert w.grad.tolist() == [(10 * 2 * 10 + 1) * 5, (1 * 2 * 21 + 1) * 7]  # by y: 2y, and 1 more
    assert x.grad is None  # nobody asked for it
    with pytest.warns(UserWarning, match=r"The \.grad attribute of a Tensor that is not"):
        assert y.grad is None


def writes_over(tensors: Tensor, inputs: Tensor) -> None:
    """Replaces the old gradient."""
    inputs.grad = None
    torch.autograd.backward(tensors, inputs=inputs)


@rule(
    "AG-01",
    "backward() adds to .grad: forget the old gradient before each step.",
    kind="contract",
    source=DOCS + "generated/torch.Tensor.backward.html",
    subject=torch.autograd.backward,
    violated_by=[writes_over],
    consequence="Gradient descent on w**2 / 2 swings between -1 and 1 for ever, where 100 steps of"
    " 0.1 should have come down to 0.9**100 = 0.00003.",
)
def test_with_old_gradients_descent_swings_for_ever(backward: Function, observe: Observe) -> None:
    """The sum of all gradients so far is a momentum without friction: a pendulum."""

    def path(*, forget: bool) -> list[float]:
        w, visited = leaf(1.0), []
        for _ in range(100):
            w.grad = None if forget else w.grad
            backward(w**2 / 2, inputs=w)  # the gradient is w
            with torch.no_grad():
                w -= 0.1 * w.grad
            visited.append(w.item())
        return visited

    assert agree(path(forget=True), [0.9**step for step in range(1, 101)])
    swinging = path(forget=False)
    observe("with old gradients", swinging)
    assert min(swinging[50:]) < -0.99 < 0.99 < max(swinging[50:])


class ZeroesByDefault(SGD):
    """Writes zeros in place of None, as torch 1 did."""

    def zero_grad(self, set_to_none: bool = False) -> None:
        super().zero_grad(set_to_none)


@rule(
    "AG-02",
    "zero_grad() sets gradients to None, and a parameter without a gradient is left out of the"
    " step; one with a gradient of 0 still moves by its momentum.",
    kind="contract",
    source=DOCS + "generated/torch.optim.Optimizer.zero_grad.html",
    subject=SGD,
    violated_by=[ZeroesByDefault],
)
def test_none_is_left_out_of_the_step_and_zero_is_not(SGD: Function) -> None:
    """The first step moves by lr * 1, the next by lr * 0.9, if there is a gradient at all."""
    for options, moved in [({}, 0.1), ({"set_to_none": False}, 0.1 + 0.1 * 0.9)]:
        p = leaf(1.0)
        optimizer = SGD([p], lr=0.1, momentum=0.9)
        p.backward()
        optimizer.step()
        optimizer.zero_grad(**options)
        optimizer.step()
        assert agree(p, [1 - moved])


def always_retains(tensors: Tensor, retain_graph: bool = True) -> None:
    """Frees nothing."""
    torch.autograd.backward(tensors, retain_graph=retain_graph or True)


@rule(
    "AG-03",
    "backward() frees what the graph has saved, so a second pass raises, unless the first one was"
    " told to retain_graph.",
    kind="contract",
    source=DOCS + "generated/torch.autograd.backward.html",
    subject=torch.autograd.backward,
    violated_by=[always_retains],
)
def test_a_graph_serves_once(backward: Function) -> None:
    """A state carried from batch to batch drags the old graph along; carry state.detach()."""
    w = leaf(3.0)
    square = w * w
    backward(square, retain_graph=True)
    backward(square)
    assert w.grad.tolist() == [2 * 3 + 2 * 3]
    with pytest.raises(RuntimeError):
        backward(square)


@rule(
    "AG-05",
    "A leaf that requires grad is changed in place under no_grad() only; w = w - ... makes a new"
    " tensor, which is no leaf and gets no .grad.",
    kind="contract",
    source=NOTES + "#in-place-correctness-checks",
    subject=torch.no_grad,
    violated_by=[raising(RuntimeError, nullcontext)],
)
def test_a_weight_is_updated_in_place_and_unrecorded(no_grad: Function) -> None:
    """An update is no part of the function that is differentiated."""
    w = leaf(1.0)
    (3 * w).backward()
    with pytest.raises(RuntimeError):
        w -= 0.1 * w.grad
    with no_grad():
        w -= 0.1 * w.grad
    assert agree(w, [1 - 0.1 * 3])
    recorded = w - 0.1 * w.grad
    assert (w.is_leaf, recorded.is_leaf, recorded.requires_grad) == (True, False, True)


def data_of(x: Tensor) -> Tensor:
    """Is .data, which shares the memory, but not the count of its changes."""
    return x.data


@rule(
    "AG-06",
    "What backward() still needs may not be changed in place: it raises, also after a change"
    " through detach(). A change through .data goes unseen.",
    kind="contract",
    source=NOTES + "#in-place-correctness-checks",
    subject=torch.detach,
    violated_by=[data_of],
    consequence="The gradient of exp(x) at 2 is 0 in place of 7.39, without an error.",
)
def test_a_change_through_detach_is_noticed(detach: Function) -> None:
    """exp saves its result, since that is its derivative; a product saves its factors."""
    x = leaf(2.0)
    y = x.exp()
    assert not detach(y).requires_grad
    detach(y).zero_()
    with pytest.raises(RuntimeError):
        y.backward()
    z = x.exp()
    z.data.zero_()
    z.backward()
    assert x.grad.tolist() == [0]  # and not exp(2)


@rule(
    "AG-08",
    "Evaluate with model.eval() and under no_grad(): neither does the other's work.",
    kind="practice",
    source=NOTES + "#evaluation-mode-nn-module-eval",
    subject=torch.no_grad,
    violated_by=[nullcontext],
    consequence="Under no_grad() alone Dropout still zeroes half of its inputs, and BatchNorm still"
    " takes the mean of the test data into its state.",
)
def test_no_grad_does_not_switch_to_evaluation(no_grad: Function) -> None:
    """no_grad() is about the recording of operations, not about what they compute."""
    model = nn.Sequential(nn.BatchNorm1d(1), nn.Dropout(0.5))
    with no_grad():
        output = model(torch.arange(64.0).unsqueeze(1))

    assert (output.requires_grad, output.is_inference()) == (False, False)
    assert 16 < (output == 0).sum() < 48  # 32 of 64, give or take four standard deviations
    assert model[0].running_mean != 0


class StopsRecording(nn.Sequential):
    """Records operations in training mode only."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.training):
            return super().forward(input)


@rule(
    "CLAIM-24",
    "model.eval() switches gradients off.",
    kind="claim",
    verdict="false",
    source=NOTES + "#evaluation-mode-nn-module-eval",
    subject=nn.Sequential,
    violated_by=[StopsRecording],
)
def test_a_model_in_eval_mode_still_records_gradients(Sequential: Function) -> None:
    """eval() is about what the modules compute: here BatchNorm leaves its state alone."""
    model = Sequential(nn.BatchNorm1d(1), nn.Dropout(0.5)).eval()
    output = model(torch.arange(1.0, 65.0).unsqueeze(1))
    assert output.requires_grad
    output.sum().backward()
    assert model[0].bias.grad.tolist() == [64]  # one for each sample: none is dropped
    assert model[0].running_mean == 0


@rule(
    "AG-09",
    "What is made in inference_mode() is out of autograd for good: it can neither be used with"
    " weights that learn nor changed in place. Clone it, or use no_grad().",
    kind="contract",
    source=DOCS + "generated/torch.autograd.grad_mode.inference_mode.html",
    subject=torch.inference_mode,
    violated_by=[torch.no_grad],
)
def test_features_of_inference_mode_train_no_head(inference_mode: Function) -> None:
    """It saves the bookkeeping by which autograd notices changes, so nothing may depend on it."""
    with inference_mode():
        features = torch.ones(3) * 2
    head = leaf(1.0)
    with pytest.raises(RuntimeError):
        head * features
    (head * features.clone()).sum().backward()
    assert head.grad.tolist() == [2 + 2 + 2]
    with pytest.raises(RuntimeError):
        features.add_(1)


@rule(
    "AG-10",
    "Add up loss.item(), a Python number, not loss, a tensor with its graph.",
    kind="practice",
    source=DOCS + "notes/faq.html",
    subject=torch.Tensor.item,
    violated_by=[torch.clone],
    consequence="The sum of ten losses of an evaluation holds ten batches in memory.",
)
def test_a_sum_of_numbers_keeps_no_batch_in_memory(item: Function) -> None:
    """For the gradient of w, w * x saves x, until a backward() frees it that never comes here."""
    w, total, batches = leaf(1.0), 0.0, []
    for _ in range(10):
        x = torch.ones(100)
        batches.append(weakref.ref(x))  # gives x, or None once x is freed
        total = total + item((w * x).mean())
    del x

    assert total == 10
    assert [batch() for batch in batches] == [None] * 10


# Functions of one number, and where each has a kink.
KINKS = [(torch.relu, 0), (torch.abs, 0), (F.hardtanh, 1), (F.relu6, 6), (F.leaky_relu, 0)]


def slope_to_the_right(function: Function) -> Function:
    """Is the slope on one side."""
    return lambda x: (function(x + 0.5) - function(x)) / 0.5


@rule(
    "AG-11",
    "At a kink autograd takes, of all slopes between those on both sides, the one nearest to 0;"
    " several inputs that are the largest share the gradient of their maximum.",
    kind="contract",
    source=NOTES + "#gradients-for-non-differentiable-functions",
    subject=torch.func.grad,
    violated_by=[slope_to_the_right],
)
def test_the_gradient_at_a_kink_is_the_smallest_one(grad: Function) -> None:
    """grad(f)(x) is the derivative of f at x. Below are also those that do not follow the rule."""
    for function, point in KINKS:
        x = tensor(point, dtype=torch.float64)
        left, right = 2 * (function(x) - function(x - 0.5)), 2 * (function(x + 0.5) - function(x))
        assert agree(grad(function)(x), least_slope(left.item(), right.item()))
    zero, tie = tensor(0.0), tensor([1.0, 1.0, 0.0])
    assert grad(torch.amax)(tie).tolist() == [0.5, 0.5, 0]
    assert grad(lambda x: x.max(dim=0).values)(tie).tolist() == [1, 0, 0]  # that of its index
    assert grad(torch.sqrt)(zero) == torch.inf  # no kink: it grows without bound
    assert grad(lambda x: F.elu(x, alpha=2.0))(zero) == 2  # though its slopes are 2 and 1


def by_a_mask(x: Tensor, min: Any) -> Tensor:
    """Passes no gradient at the bound, whatever the bound is."""
    return torch.where(x > min, x, min)


@spec("AG-11", subject=torch.clamp, violated_by=[by_a_mask])
def test_clamp_follows_the_rule_since_torch_2_14(clamp: Function, observe: Observe) -> None:
    """Before, the gradient at a bound was 1. A weight that starts at its bound is stuck since."""
    x = leaf(-1.0, 0.0, 1.0)
    (of_number,) = torch.autograd.grad(clamp(x, min=0.0).sum(), x)
    (of_tensor,) = torch.autograd.grad(clamp(x, min=torch.zeros(3).double()).sum(), x)

    observe("gradients at a number and at a tensor", [of_number, of_tensor])
    new = torch_release() >= (2, 14)
    assert of_number.tolist() == [0, 0 if new else 1, 1]
    assert of_tensor.tolist() == [0, 0.5 if new else 1, 1]  # the bound takes the other half


def masks_the_result(x: Tensor) -> Tensor:
    """Replaces the infinite results after the logarithm has been taken."""
    return torch.where(x > 0, x.log(), 0.0)


@rule(
    "AG-12",
    "Where a function has no value, replace its input; replacing its result with where() leaves a"
    " gradient of nan.",
    kind="practice",
    source=NOTES + "#gradients-for-non-differentiable-functions",
    subject=log_where_positive,
    violated_by=[masks_the_result],
    consequence="The values are right, and one element at 0 makes every weight nan in one step.",
)
def test_a_masked_logarithm_has_a_gradient_everywhere(log_where_positive: Function) -> None:
    """The branch that is not taken gets a gradient of 0, and 0 times the infinite 1/x is nan."""
    x = leaf(-1.0, 0.0, 0.5, 4.0)
    y = log_where_positive(x)
    y.sum().backward()
    assert agree(y, [0, 0, math.log(0.5), math.log(4)])
    assert agree(x.grad, [0, 0, 1 / 0.5, 1 / 4])


def never_complains(func: Function, inputs: Tensor) -> bool:
    """Is content with every gradient that there is."""
    return func(inputs).requires_grad


@rule(
    "AG-13",
    "gradcheck compares a gradient with differences of values; give it float64, or rounding fails"
    " a gradient that is right.",
    kind="contract",
    source=DOCS + "generated/torch.autograd.gradcheck.gradcheck.html",
    subject=torch.autograd.gradcheck,
    violated_by=[never_complains],
)
@pytest.mark.filterwarnings("ignore:Input #0 requires gradient and is not a double")
def test_gradcheck_finds_a_wrong_gradient_in_float64(gradcheck: Function) -> None:
    """It steps by 1e-6, where float32 has only one digit left of the difference."""
    x = leaf(0.3, -2.0)
    assert gradcheck(torch.sigmoid, x)
    with pytest.raises(RuntimeError):  # this has a gradient of 1
        gradcheck(lambda x: x + (torch.sigmoid(x) - x).detach(), x)
    with pytest.raises(RuntimeError):
        gradcheck(torch.sigmoid, x.detach().float().requires_grad_())
