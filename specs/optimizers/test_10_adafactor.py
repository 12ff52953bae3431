"""Adafactor: Adam's division by the root mean square, at the price of a row and a column.

At the end you know how Adafactor estimates the square of every gradient from the means of rows and
columns, why its steps are a share of the parameter, and what lr, d and the two eps limit.

Below, p is a parameter and g its gradient, t = 1, 2, ... counts the steps, and RMS is the root of
the mean square of all entries. foreach is a kernel that updates many tensors at a time.
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
from specs.optimizers.two_groups import (
    LookAlike,
    MakeOptimizer,
    Options,
    expected_positions,
    positions,
    steps_of,
)

ADAFACTOR_PAGE = "https://docs.pytorch.org/docs/stable/generated/torch.optim.Adafactor.html"

# Options of the first parameter group, and what the second group has instead.
OPTIONS: list[tuple[Options, Options]] = [
    ({}, {"lr": 0.1}),
    ({"lr": 2.0}, {"lr": 0.3}),  # from step 2 on 1 / sqrt(t) is less
    ({"lr": 0.1, "beta2_decay": -0.3}, {"beta2_decay": -2.0}),
    ({"lr": 0.1, "eps": (0.5, 0.1)}, {"eps": (1e-3, 2.0)}),
    ({"lr": 0.1, "d": 1.3}, {"d": 5.0}),
    ({"lr": 0.1, "weight_decay": 0.3}, {"weight_decay": 0.0}),
    ({"lr": 0.1, "weight_decay": 0.3, "maximize": True}, {"maximize": False}),
]

# A step rounds about 20 times, and there are 12. No parameter goes beyond 10.
ROUNDINGS = {"ulps": 20 * 12, "scale": 10.0}


def rms(entries: Tensor) -> Tensor:
    return entries.square().mean().sqrt()


class AdafactorLike(LookAlike):
    """Adafactor's step with its parts as methods, for the violations to get wrong."""

    usual: ClassVar[Options] = {
        "lr": 0.01,
        "beta2_decay": -0.8,
        "eps": (None, 1e-3),
        "d": 1.0,
        "weight_decay": 0.0,
    }

    def moved(self, p: Tensor, g: Tensor, memory: dict[str, Any], o: Any) -> Tensor:
        t = memory["t"]
        eps1 = o.eps[0] or torch.finfo(p.dtype).eps
        u = self.normalised(g, self.mean_squares(g**2, memory, o, eps1), eps1)
        u = u / max(1.0, self.excess(u, o.d))
        rate = self.rate(o, t) * self.size(p, o.eps[1])
        return self.decayed(p, o) - rate * u

    def mean_squares(self, squares: Tensor, memory: dict[str, Any], o: Any, eps1: float) -> Tensor:
        share = self.share(o, memory["t"])
        if squares.dim() < 2 or "entries" in memory:
            memory["s"] = (1 - share) * memory.get("s", 0) + share * squares
            return memory["s"]
        for name, dim in (("rows", -1), ("columns", -2)):
            mean = squares.mean(dim, keepdim=True)
            memory[name] = (1 - share) * memory.get(name, 0) + share * mean
        rows = memory["rows"]
        return rows * memory["columns"] / self.total(rows, eps1)

    def share(self, o: Any, t: int) -> float:
        return t**o.beta2_decay

    def total(self, rows: Tensor, eps1: float) -> Tensor:
        return rows.mean(-2, keepdim=True).clamp(min=eps1)

    def normalised(self, g: Tensor, s: Tensor, eps1: float) -> Tensor:
        return g / s.sqrt().clamp(min=eps1)

    def excess(self, u: Tensor, d: float) -> float:
        return rms(u).item() / d

    def rate(self, o: Any, t: int) -> float:
        return min(o.lr, 1 / sqrt(t))

    def size(self, p: Tensor, eps2: float) -> float:
        return max(eps2, rms(p).item())

    def decayed(self, p: Tensor, o: Any) -> Tensor:
        return p * (1 - o.lr * o.weight_decay)


class StepsByTheRate(AdafactorLike):
    """Moves by lr itself, as Adam does."""

    def size(self, p: Tensor, eps2: float) -> float:  # noqa: ARG002
        return 1.0


class AddsEpsToTheSize(AdafactorLike):
    """Takes RMS(p) + eps[1] for the size of p."""

    def size(self, p: Tensor, eps2: float) -> float:
        return eps2 + rms(p).item()


@rule(
    "OPT-20",
    "Adafactor moves by min(lr, 1 / sqrt(t)) * max(eps[1], RMS(p)) * u, where u is g over the root"
    " of a mean square that it estimates, in a matrix, from the means of rows and of columns.",
    kind="contract",
    source=ADAFACTOR_PAGE,
    subject=torch.optim.Adafactor,
    violated_by=[StepsByTheRate, AddsEpsToTheSize],
    consequence="at an lr of 0.01 a parameter of 100 moves by 1, and one of zeros by 0.00001; Adam"
    " would move both by 0.01",
)
def test_a_step_is_a_share_of_the_parameter(Adafactor: MakeOptimizer) -> None:
    """All entries of this gradient have the same size, and u is their sign."""
    signs = torch.tensor([[1.0, -1.0, 1.0], [-1.0, -1.0, 1.0]], dtype=torch.float64)
    for size in (100.0, 1.0, 0.0):
        for length in (1e-3, 1e3):
            p = torch.full((2, 3), size, dtype=torch.float64, requires_grad=True)
            p.grad = length * signs

            Adafactor([p], lr=0.01).step()

            moved = (size - p.detach()) * signs
            assert agree(moved, [[0.01 * max(0.001, size)] * 3] * 2, scale=100.0)


class RemembersEveryEntry(AdafactorLike):
    """Keeps the mean square of each entry, as Adam does."""

    def mean_squares(self, squares: Tensor, memory: dict[str, Any], o: Any, eps1: float) -> Tensor:
        memory["entries"] = torch.zeros(())
        return super().mean_squares(squares, memory, o, eps1)


class DividesByTheSum(AdafactorLike):
    """Divides the product of row and column by the sum of the means of the rows."""

    def total(self, rows: Tensor, eps1: float) -> Tensor:
        return rows.sum(-2, keepdim=True).clamp(min=eps1)


@spec("OPT-20", violated_by=[RemembersEveryEntry, DividesByTheSum])
def test_the_mean_square_of_an_entry_is_estimated_from_its_row_and_its_column(
    Adafactor: MakeOptimizer,
) -> None:
    """The mean of the row times the mean of the column, over the mean of all.

    The squares 1, 4 / 9, 16 have means of 2.5 and 12.5 in the rows, of 5 and 10 in the columns,
    and of 7.5. A matrix of 30 x 20 leaves 30 + 20 numbers to remember, and the count of steps.
    """
    p = torch.ones(2, 2, dtype=torch.float64, requires_grad=True)
    p.grad = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    Adafactor([p], lr=0.01).step()

    expected = [
        [1 / sqrt(2.5 * 5 / 7.5), 2 / sqrt(2.5 * 10 / 7.5)],
        [3 / sqrt(12.5 * 5 / 7.5), 4 / sqrt(12.5 * 10 / 7.5)],
    ]
    # RMS(u) is 0.98: less than d, which is 1.
    assert agree((1 - p.detach()) / 0.01, expected, ulps=100 * 16)

    p = torch.ones(30, 20, requires_grad=True)
    p.grad = torch.ones(30, 20)
    optimizer = Adafactor([p])
    optimizer.step()
    kept = [one.numel() for one in optimizer.state[p].values() if isinstance(one, Tensor)]
    assert sum(kept) <= 30 + 20 + 1


class DoesNotClip(AdafactorLike):
    """Lets u be as long as it is."""

    def excess(self, u: Tensor, d: float) -> float:  # noqa: ARG002
        return 0.0


class ClipsToOne(AdafactorLike):
    """Limits RMS(u) by 1, whatever d is."""

    def excess(self, u: Tensor, d: float) -> float:  # noqa: ARG002
        return rms(u).item()


class NeverSlowsDown(AdafactorLike):
    """Moves by the share lr to the end."""

    def rate(self, o: Any, t: int) -> float:  # noqa: ARG002
        return o.lr


@spec("OPT-20", violated_by=[DoesNotClip, ClipsToOne, NeverSlowsDown])
def test_d_and_the_root_of_the_number_of_steps_limit_a_step(Adafactor: MakeOptimizer) -> None:
    """A gradient a million times as long as the one before has u = 1 / sqrt(2 ** -0.8) = 1.32."""
    longest = 1 / sqrt(2**-0.8)
    for d, u in ((1.0, 1.0), (1.2, 1.2), (2.0, longest)):
        first, second = steps_of(Adafactor, [1e-3, 1e3], lr=0.01, d=d)
        assert first == pytest.approx(0.01)
        assert second == pytest.approx(0.01 * (1 - first) * u, rel=1e-9)

    # With lr = 1 the shares are 1 / sqrt(t): of 1, and then of the eps[1] that is left.
    steps = steps_of(Adafactor, [1.0, 1.0], lr=1.0, eps=(None, 0.5))
    assert steps == pytest.approx([1.0, 0.5 / sqrt(2)])


class SquaresEps(AdafactorLike):
    """Adds eps[0] to the mean square, as the paper does."""

    def normalised(self, g: Tensor, s: Tensor, eps1: float) -> Tensor:
        return g / (s + eps1).sqrt()


class AddsEpsToTheRoot(AdafactorLike):
    """Adds eps[0] to the root, as Adam does."""

    def normalised(self, g: Tensor, s: Tensor, eps1: float) -> Tensor:
        return g / (s.sqrt() + eps1)


@spec("OPT-20", violated_by=[SquaresEps, AddsEpsToTheRoot])
def test_the_first_eps_is_the_least_that_it_divides_by(Adafactor: MakeOptimizer) -> None:
    """None stands for the eps of the dtype. It departs from the paper, which adds it to g ** 2."""
    assert steps_of(Adafactor, [0.1], eps=(0.4, 1e-3)) == pytest.approx([0.01 * 0.1 / 0.4])
    assert steps_of(Adafactor, [0.5], eps=(0.4, 1e-3)) == pytest.approx([0.01])
    assert steps_of(Adafactor, [2.0**-55]) == pytest.approx([0.01 * 2.0**-55 / 2.0**-52])


class DividesByAnyTotal(AdafactorLike):
    """Divides by the mean of the rows, also where it is less than eps[0]."""

    def total(self, rows: Tensor, eps1: float) -> Tensor:  # noqa: ARG002
        return rows.mean(-2, keepdim=True)


@spec("OPT-20", violated_by=[DividesByAnyTotal])
def test_it_is_also_the_least_mean_of_all_squares(Adafactor: MakeOptimizer) -> None:
    """One entry of 1 and three of 0: the means are 1/2 in its row and column, and 1/4 of all.

    Its mean square is 1/2 * 1/2 over eps[0] = 1/2. And zeros move nothing, where 0 / 0 is not
    a number.
    """
    for foreach in (False, True):
        p = torch.ones(2, 2, dtype=torch.float64, requires_grad=True)
        p.grad = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
        Adafactor([p], lr=0.01, eps=(0.5, 1e-3), foreach=foreach).step()
        assert agree(p, [[1 - 0.01 / sqrt(0.5), 1.0], [1.0, 1.0]])

        before = p.detach().clone()
        p.grad = torch.zeros(2, 2, dtype=torch.float64)
        Adafactor([p], foreach=foreach).step()
        assert agree(p, before, ulps=0)


class ForgetsAtAFixedRate(AdafactorLike):
    """Keeps 0.999 of each mean square, as Adam does, and corrects it for its start at 0."""

    def share(self, o: Any, t: int) -> float:  # noqa: ARG002
        return 0.001 / (1 - 0.999**t)


class DecaysByTheStep(AdafactorLike):
    """Multiplies weight_decay by the rate of the step in place of lr."""

    def decayed(self, p: Tensor, o: Any) -> Tensor:
        return p * (1 - o.lr * self.size(p, o.eps[1]) * o.weight_decay)


class ForeachForgetsD(torch.optim.Adafactor):
    """Limits RMS(u) by 1 where all parameters are stepped by one kernel."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["d"] = 1.0 if group["foreach"] else group["d"]
        return super().step(closure)


@spec(
    "OPT-20",
    violated_by=[
        StepsByTheRate,
        RemembersEveryEntry,
        DividesByTheSum,
        DoesNotClip,
        NeverSlowsDown,
        AddsEpsToTheRoot,
        ForgetsAtAFixedRate,
        DecaysByTheStep,
        ForeachForgetsD,
    ],
)
def test_every_step_of_adafactor_equals_the_reference_for_every_option_group_and_kernel(
    Adafactor: MakeOptimizer, device: torch.device
) -> None:
    """A vector, a number, a matrix and a pile of matrices; 12 random gradients."""
    for first, second in OPTIONS:
        expected = expected_positions(optimizers.Adafactor, first, second, device)
        for foreach in (False, True):
            gone = positions(Adafactor, {**first, "foreach": foreach}, second, device)
            assert agree(gone, expected, **ROUNDINGS)
