"""A small reverse-mode engine for numbers: what autograd does, in plain Python.

Each operation has a row in OPERATIONS: what it computes, and its own derivatives. A Value remembers
its inputs and the derivative by each of them, and `backward` applies the chain rule to that.

Source: https://docs.pytorch.org/docs/stable/notes/autograd.html and
https://docs.pytorch.org/tutorials/beginner/blitz/autograd_tutorial.html
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import count
from typing import NamedTuple


def _sigmoid(a: float) -> float:
    """1 / (1 + exp(-a)), written so that exp never overflows."""
    return 1 / (1 + math.exp(-a)) if a >= 0 else math.exp(a) / (1 + math.exp(a))


class Operation(NamedTuple):
    """What an operation computes, and the derivative of the result by each of its inputs."""

    compute: Callable[..., float]
    local_derivatives: Callable[..., tuple[float, ...]]


#: All that the engine knows of calculus. In `pow` the exponent n is a constant.
OPERATIONS = {
    "add": Operation(lambda a, b: a + b, lambda a, b: (1.0, 1.0)),  # noqa: ARG005
    "sub": Operation(lambda a, b: a - b, lambda a, b: (1.0, -1.0)),  # noqa: ARG005
    "mul": Operation(lambda a, b: a * b, lambda a, b: (b, a)),
    "div": Operation(lambda a, b: a / b, lambda a, b: (1 / b, -a / b**2)),
    "pow": Operation(math.pow, lambda a, n: (n * math.pow(a, n - 1) if n != 0 else 0.0,)),
    "exp": Operation(math.exp, lambda a: (math.exp(a),)),
    "log": Operation(math.log, lambda a: (1 / a,)),
    "tanh": Operation(math.tanh, lambda a: (1 - math.tanh(a) ** 2,)),
    "sigmoid": Operation(_sigmoid, lambda a: (_sigmoid(a) * _sigmoid(-a),)),
    "relu": Operation(lambda a: max(a, 0.0), lambda a: (1.0 if a > 0 else 0.0,)),
}

_ages = count()


class Value:
    """A number that remembers how it was computed, as a tensor with one element does.

    data: the number, a float. grad: the sum of the gradients that every `backward` has brought, if
    the value is a leaf (it was given, not computed), else 0. Values are combined with each other
    and with plain numbers by + - * / and ** (with a plain number as exponent), and have the methods
    exp, log, tanh, sigmoid and relu.

    Where PyTorch gives inf or nan, Python's arithmetic raises: ValueError (the log of 0, a root of
    a negative number), ZeroDivisionError or OverflowError. TypeError for a Value as exponent.

    Source: https://docs.pytorch.org/docs/stable/notes/autograd.html
    """

    def __init__(
        self,
        data: float,
        inputs: tuple[Value, ...] = (),
        local_derivatives: tuple[float, ...] = (),
    ) -> None:
        self.data, self.grad = float(data), 0.0
        self.inputs, self.local_derivatives = inputs, local_derivatives
        self.age = next(_ages)

    def backward(self) -> None:
        """Add to the grad of each leaf the derivative of this value by that leaf."""
        gradients = {self: 1.0}
        for value in self.users_first():
            for used, local in zip(value.inputs, value.local_derivatives, strict=True):
                gradients[used] = gradients.get(used, 0.0) + gradients[value] * local
        for value, gradient in gradients.items():
            if not value.inputs:
                value.grad += gradient

    def users_first(self) -> list[Value]:
        """This value and all that it was computed from, each one after everything that uses it.

        A result is younger than its inputs: this is the order from the youngest to the oldest.
        """
        found, waiting = {self}, [self]
        while waiting:
            fresh = [used for used in waiting.pop().inputs if used not in found]
            found.update(fresh)
            waiting.extend(fresh)
        return sorted(found, key=lambda value: value.age, reverse=True)

    def _apply(self, name: str, *others: Value | float) -> Value:
        inputs = (self, *(one if isinstance(one, Value) else type(self)(one) for one in others))
        numbers = [one.data for one in inputs]
        operation = OPERATIONS[name]
        return type(self)(
            operation.compute(*numbers), inputs, operation.local_derivatives(*numbers)
        )

    def __add__(self, other: Value | float) -> Value:
        return self._apply("add", other)

    def __sub__(self, other: Value | float) -> Value:
        return self._apply("sub", other)

    def __mul__(self, other: Value | float) -> Value:
        return self._apply("mul", other)

    def __truediv__(self, other: Value | float) -> Value:
        return self._apply("div", other)

    def __pow__(self, exponent: float) -> Value:
        power = OPERATIONS["pow"]
        return type(self)(
            power.compute(self.data, exponent),
            (self,),
            power.local_derivatives(self.data, exponent),
        )

    def __neg__(self) -> Value:
        return self * -1.0

    __radd__, __rmul__ = __add__, __mul__

    def __rsub__(self, other: float) -> Value:
        return type(self)(other) - self

    def __rtruediv__(self, other: float) -> Value:
        return type(self)(other) / self

    def exp(self) -> Value:
        return self._apply("exp")

    def log(self) -> Value:
        return self._apply("log")

    def tanh(self) -> Value:
        return self._apply("tanh")

    def sigmoid(self) -> Value:
        return self._apply("sigmoid")

    def relu(self) -> Value:
        return self._apply("relu")
