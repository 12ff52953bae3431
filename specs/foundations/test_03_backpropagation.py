"""Backpropagation: the chain rule, carried out from the end to the beginning.

At the end you know what `backward()` does, in PyTorch, by hand, and in an engine of a hundred lines
(reference/autograd.py). The engine's numbers are Values, which remember how they were computed. One
is used as a tensor with one element is: a = Value(2.0), (a * a).backward(), a.grad.

Read before: lesson 2, autograd.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference import autograd, data
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.strategies import tensors

MECHANICS = "https://docs.pytorch.org/docs/stable/notes/autograd.html"
MATMUL_PAGE = "https://docs.pytorch.org/docs/stable/generated/torch.matmul.html"

Grad = Callable[[Tensor, Sequence[Tensor]], Sequence[Tensor]]
MakeValue = Callable[[float], Any]

#: The local derivatives: an operation on a and b, its derivative by a, and its derivative by b.
TABLE = [
    ("a + b", "1", "1"),
    ("a - b", "1", "-1"),
    ("a * b", "b", "a"),
    ("a / b", "1 / b", "-a / b**2"),
    ("-a", "-1", "0"),
    ("2 - a", "-1", "0"),
    ("2 / a", "-2 / a**2", "0"),
    ("a ** 3", "3 * a**2", "0"),
    ("a ** 0", "0", "0"),
    ("a.exp()", "exp(a)", "0"),
    ("a.tanh()", "1 - tanh(a)**2", "0"),
    ("a.sigmoid()", "exp(-a) / (1 + exp(-a))**2", "0"),
    ("a.relu()", "1 if a > 0 else 0", "0"),
    ("a.log()", "1 / a", "0"),
    ("a ** 0.5", "1 / (2 * a**0.5)", "0"),
]
POINTS = [(0.7, -1.3), (2.0, 0.4), (-0.5, 3.0), (-3.0, -2.0)]

#: Every row at every point where it is defined: the logarithm and the root need a > 0.
CASES = [
    (*row, a, b)
    for row in TABLE
    for a, b in POINTS
    if a > 0 or row[0] not in ("a.log()", "a ** 0.5")
]


def computed(text: str, a: Any, b: Any) -> Any:
    """What an entry of the table gives for these a and b: numbers, tensors or Values."""
    return eval(text, {"a": a, "b": b, "exp": math.exp, "tanh": math.tanh})


def number(x: float) -> Tensor:
    """A float64 tensor with one element to differentiate by."""
    return torch.tensor(x, dtype=torch.float64, requires_grad=True)


# ---------------------------------------------------------------------------------------------
# One operation


def ones_for_gradients(outputs: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:  # noqa: ARG001
    """Knows addition only."""
    return [torch.ones_like(x) for x in inputs]


def gradients_without_signs(outputs: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Loses the sign."""
    return [gradient.abs() for gradient in torch.autograd.grad(outputs, inputs)]


@rule(
    "BP-01",
    "Each operation knows one thing about differentiation: how fast its result changes with each of"
    " its own inputs.",
    kind="contract",
    source=MECHANICS,
    subject=torch.autograd.grad,
    violated_by=[ones_for_gradients, gradients_without_signs],
)
def test_torch_knows_the_derivatives_of_the_table(grad: Grad) -> None:
    """Nothing else is ever differentiated: all that you compute is made of such operations."""
    for operation, by_a, by_b, at_a, at_b in CASES:
        a, b = number(at_a), number(at_b)

        gradients = grad(computed(operation, a, b) + 0 * (a + b), [a, b])

        expected = [computed(by_a, at_a, at_b), computed(by_b, at_a, at_b)]
        assert agree(list(gradients), expected), operation

        # What a derivative means: move a a little to both sides, and see how the result moves.
        step = 1e-5
        right = computed(operation, number(at_a + step), at_b)
        left = computed(operation, number(at_a - step), at_b)
        slope = ((right - left) / (2 * step)).item()
        assert slope == pytest.approx(expected[0], abs=1e-8), operation


# ---------------------------------------------------------------------------------------------
# A chain of operations


def last_operation_only(outputs: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Differentiates the last operation of the chain and stops there."""
    last: Any = outputs.grad_fn
    return [last(torch.ones_like(outputs)) for _ in inputs]


@rule(
    "BP-02",
    "Along a chain of operations the local derivatives multiply.",
    kind="contract",
    source=MECHANICS,
    subject=torch.autograd.grad,
    violated_by=[last_operation_only],
    consequence="twenty sigmoids in a row leave less than 1 / 4**20, about 1e-12, of a gradient",
)
def test_each_operation_multiplies_the_gradient_so_far(grad: Grad) -> None:
    """It goes backwards, since a loss is one number: so is the gradient so far, at any point."""
    a = number(0.5)
    u = a * 3
    v = u.tanh()
    w = v.exp()

    (gradient,) = grad(w, [a])

    w_by_v = math.exp(v.item())
    v_by_u = 1 - math.tanh(u.item()) ** 2
    u_by_a = 3
    assert agree(gradient, w_by_v * v_by_u * u_by_a)


@spec("BP-02", violated_by=[last_operation_only])
def test_twenty_sigmoids_leave_nothing_of_a_gradient(grad: Grad) -> None:
    """A sigmoid is nowhere steeper than 1/4. (A relu that is on has a slope of 1.)"""
    x = a = number(1.0)
    expected = 1.0
    for _ in range(20):
        x = x.sigmoid()
        expected *= x.item() * (1 - x.item())  # the slope of a sigmoid, by its result

    (gradient,) = grad(x, [a])

    assert gradient.item() == pytest.approx(expected, rel=1e-12)
    assert gradient < 1 / 4**20


# ---------------------------------------------------------------------------------------------
# Where paths meet, and in which order


class KeepsTheLastGradient(autograd.Value):
    """Writes = for +=: what another use has brought is lost."""

    def backward(self) -> None:
        self.grad = 1.0
        for value in self.users_first():
            for used, local in zip(value.inputs, value.local_derivatives, strict=True):
                used.grad = value.grad * local


@rule(
    "BP-03",
    "A value that is used several times gets the sum of the gradients of all its uses.",
    kind="contract",
    source=MECHANICS,
    subject=autograd.Value,
    violated_by=[KeepsTheLastGradient],
)
def test_three_uses_bring_three_gradients(Value: MakeValue) -> None:
    """A small move of a changes the result through every use of a at the same time."""
    a = Value(1.5)

    (a * 4 + a.exp() + 2 / a).backward()

    assert agree(a.grad, 4 + math.exp(1.5) + (-2 / 1.5**2))


@spec("BP-03", violated_by=[KeepsTheLastGradient])
def test_one_operation_may_use_a_value_twice(Value: MakeValue) -> None:
    """The slope of a * a is a + a. A second backward adds to grad, as you know from lesson 2."""
    a = Value(1.5)
    (a * a).backward()
    assert a.grad == 3
    (a * 4).backward()
    assert a.grad == 3 + 4


def as_a_search_finds_them(result: autograd.Value, take: int) -> list[autograd.Value]:
    """What a result was computed from, visiting the newest find next (-1) or the oldest (0)."""
    order: list[autograd.Value] = []
    waiting = [result]
    while waiting:
        value = waiting.pop(take)
        if value not in order:
            order.append(value)
            waiting += value.inputs
    return order


class DepthFirst(autograd.Value):
    """Follows one input as deep as it goes, before other users of what it finds there."""

    def users_first(self) -> list[autograd.Value]:
        return as_a_search_finds_them(self, take=-1)


class BreadthFirst(autograd.Value):
    """Visits what is one operation away, then two: a value used at both distances is too early."""

    def users_first(self) -> list[autograd.Value]:
        return as_a_search_finds_them(self, take=0)


@rule(
    "BP-04",
    "A value passes its gradient on once, after everything that uses the value has been visited.",
    kind="contract",
    source=MECHANICS,
    subject=autograd.Value,
    violated_by=[BreadthFirst, DepthFirst],
    consequence="to follow every path by itself takes 9e15 visits for 76 sums, in place of 77",
)
def test_a_value_waits_for_the_last_of_its_users(Value: MakeValue) -> None:
    """Here b is used by the result itself, and by c, which is two operations before the result."""
    a = Value(2.0)
    b = a * 3
    c = b * 5
    d = c * 7
    for result in (b + d, d + b):
        a.grad = 0.0
        result.backward()
        assert a.grad == 3 * (1 + 5 * 7)


@spec("BP-04", violated_by=[BreadthFirst, KeepsTheLastGradient])
def test_the_cost_does_not_grow_with_the_number_of_paths(Value: MakeValue) -> None:
    """Every number is the sum of the two before it, as Fibonacci's are; so are the paths to a."""
    a = Value(1.0)
    older, newer = a, a
    for _ in range(76):
        older, newer = newer, older + newer

    newer.backward()

    assert a.grad == 8_944_394_323_791_464  # paths, each with a gradient of 1


# ---------------------------------------------------------------------------------------------
# Any expression

#: Steps of a random program. From any x and y within -2 and 2 a step makes another such number, and
#: it multiplies a gradient by no more than 3.
STEPS = [
    "(x + y) / 2",
    "x * y / 2",
    "x / (y * y + 1)",
    "1 / (2 - x.tanh())",
    "-(x ** 3) / 4",
    "(x * x + 1) ** -0.5",
    "x.exp() / 4",
    "(x * x + 1).log()",
    "x.sigmoid() - y.tanh()",
    "x.relu()",
]
#: A program: its steps, and the places of each step's x and y among the numbers so far.
PROGRAMS = st.lists(
    st.tuples(st.sampled_from(STEPS), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6
)


def result_of(program: Sequence[tuple[str, int, int]], inputs: Sequence[Any]) -> Any:
    """Runs a program on tensors or on Values: it is the same text for both."""
    numbers = list(inputs)
    for step, i, j in program:
        x, y = numbers[i % len(numbers)], numbers[j % len(numbers)]
        numbers.append(eval(step, {"x": x, "y": y}))
    return numbers[-1] + 0 * sum(inputs)  # which makes it depend on each of the inputs


class TanhSlopeWithoutSquare(autograd.Value):
    """Takes 1 - tanh(a) for the slope of tanh."""

    def tanh(self) -> Any:
        result = math.tanh(self.data)
        return type(self)(result, (self,), (1 - result,))


class QuotientWithoutMinus(autograd.Value):
    """Lets a quotient grow with its denominator."""

    def __truediv__(self, other: Any) -> Any:
        result = super().__truediv__(other)
        by_a, by_b = result.local_derivatives
        result.local_derivatives = (by_a, -by_b)
        return result


@rule(
    "BP-05",
    "Local derivatives, products along paths and sums where they meet are all that it takes to"
    " differentiate any expression.",
    kind="contract",
    source=MECHANICS,
    subject=autograd.Value,
    violated_by=[TanhSlopeWithoutSquare, QuotientWithoutMinus, KeepsTheLastGradient],
)
@given(program=PROGRAMS, at=st.lists(st.floats(-2, 2), min_size=3, max_size=3))
def test_an_engine_of_a_hundred_lines_gives_what_torch_gives(
    Value: MakeValue, program: list[tuple[str, int, int]], at: list[float]
) -> None:
    """The same random program, run in both systems: the same value, and the same gradients."""
    values = [Value(x) for x in at]
    result = result_of(program, values)
    result.backward()

    in_torch = [number(x) for x in at]
    result_in_torch = result_of(program, in_torch)
    gradients_in_torch = torch.autograd.grad(result_in_torch, in_torch)

    # The two round exp, tanh and powers differently, and a step makes an error 3 times as large.
    scale = 3 ** len(program)
    assert agree(result.data, result_in_torch, scale=scale)
    assert agree([x.grad for x in values], list(gradients_in_torch), scale=scale)


# ---------------------------------------------------------------------------------------------
# Layers and networks


def averages_over_the_rows(input: Tensor, other: Tensor) -> Tensor:
    """Has the right value, and the mean over the rows as gradient of the weights."""
    scaled = other / len(input)
    return input @ (scaled + (other - scaled).detach())


def stops_at_the_layer(input: Tensor, other: Tensor) -> Tensor:
    """Has the right value, and no gradient for what comes before the layer."""
    return input.detach() @ other + 0 * input.sum()


@rule(
    "BP-06",
    "If y = x @ W and g is the gradient of y, then the gradient of W is x.T @ g and that of x is"
    " g @ W.T.",
    kind="contract",
    source=MATMUL_PAGE,
    subject=torch.matmul,
    violated_by=[averages_over_the_rows, stops_at_the_layer],
)
@given(x=tensors(shape=(3, 2)), weight=tensors(shape=(2, 2)), g=tensors(shape=(3, 2)))
def test_a_matrix_product_is_differentiated_by_two_more(
    matmul: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, g: Tensor
) -> None:
    """Shapes tell you the formula: a gradient has the shape of what it belongs to."""
    x.requires_grad_()
    weight.requires_grad_()
    loss = (g * matmul(x, weight)).sum()  # which has the gradient g by the product
    by_x, by_weight = torch.autograd.grad(loss, [x, weight])

    assert agree(by_x, g @ weight.T, scale=100)
    assert agree(by_weight, x.T @ g, scale=100)


@spec(
    "BP-06", subject=torch.autograd.grad, violated_by=[ones_for_gradients, gradients_without_signs]
)
def test_a_network_is_differentiated_by_hand_layer_by_layer(grad: Grad) -> None:
    """Fifty tumours with 30 measurements, 5 hidden neurons, and the probability of malignancy."""
    split = data.breast_cancer()
    x, y = split.train_inputs[:50].double(), split.train_targets[:50].double().unsqueeze(1)
    w1 = torch.randn(30, 5, dtype=torch.float64, requires_grad=True)
    b1 = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    w2 = torch.randn(5, 1, dtype=torch.float64, requires_grad=True)

    h = (x @ w1 + b1).tanh()
    p = (h @ w2).sigmoid()
    loss = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
    by_w1, by_b1, by_w2 = grad(loss, [w1, b1, w2])

    g = (p - y) / 50  # of h @ w2: the slopes of the logarithms and of the sigmoid cancel
    assert agree(by_w2, h.T @ g)
    g = g @ w2.T  # of h
    g = g * (1 - h**2)  # of x @ w1 + b1
    assert agree(by_w1, x.T @ g)
    assert agree(by_b1, g.sum(dim=0))  # the same bias was used for every row
