"""SparseAdam: Adam for embeddings of which a batch looks up a few rows.

At the end you know which rows a step of SparseAdam moves, what a row that was not looked up
remembers, and where its steps differ from Adam's.

Below, p is a parameter, g its gradient, and t = 1, 2, ... counts the steps; m and s are the moving
means of g and of g squared.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from reference import optimizers
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe
from specs.optimizers.two_groups import LookAlike, MakeOptimizer, Options

SPARSE_ADAM_PAGE = "https://docs.pytorch.org/docs/stable/generated/torch.optim.SparseAdam.html"

# Options of the first parameter group, and what the second group has instead.
OPTIONS: list[tuple[Options, Options]] = [
    ({}, {"lr": 0.1}),
    ({"lr": 0.1, "betas": (0.5, 0.9)}, {"betas": (0.9, 0.5)}),
    ({"lr": 0.1, "eps": 0.5}, {"eps": 1e-3}),
    ({"lr": 0.1, "maximize": True}, {"maximize": False}),
]

# The rows that each step looks up: some twice, some seldom, once none.
LOOK_UPS = [[0], [1, 1], [0, 2, 0], [], [3], [1, 3], [2, 2, 2], [0], [4], [0, 4]]


def after_look_ups(
    make_optimizer: MakeOptimizer, look_ups: Sequence[Sequence[int]], **options: Any
) -> Tensor:
    """The first column of an embedding of zeros, after steps along the sum of what was looked up:
    a row for each step."""
    embedding = nn.Embedding.from_pretrained(
        torch.zeros(5, 2, dtype=torch.float64), freeze=False, sparse=True
    )
    optimizer = make_optimizer(embedding.parameters(), **options)
    path = []
    for rows in look_ups:
        optimizer.zero_grad()
        embedding(torch.tensor(rows, dtype=torch.int64)).sum().backward()
        optimizer.step()
        path.append(embedding.weight.detach()[:, 0].clone())
    return torch.stack(path)


class SparseAdamLike(LookAlike):
    """SparseAdam's step with its parts as methods, for the violations to get wrong."""

    usual: ClassVar[Options] = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}

    def moved(self, p: Tensor, g: Tensor, memory: dict[str, Any], o: Any) -> Tensor:
        beta1, beta2 = o.betas
        held = self.held(g.coalesce())
        m, s = memory.get("m", torch.zeros_like(p)), memory.get("s", torch.zeros_like(p))
        memory["m"] = torch.where(held, beta1 * m + (1 - beta1) * g.to_dense(), m)
        memory["s"] = torch.where(held, beta2 * s + (1 - beta2) * self.squares(g), s)
        t = self.count(held, memory)
        root = self.root(memory["s"], 1 - beta2**t, o.eps)
        return torch.where(held, p - o.lr * memory["m"] / (1 - beta1**t) / root, p)

    def held(self, g: Tensor) -> Tensor:
        held = torch.zeros(g.shape, dtype=torch.bool)
        held[g.indices()[0]] = True
        return held

    def squares(self, g: Tensor) -> Tensor:
        return g.to_dense() ** 2

    def count(self, held: Tensor, memory: dict[str, Any]) -> Any:  # noqa: ARG002
        return memory["t"]

    def root(self, s: Tensor, correction: Any, eps: float) -> Tensor:
        return (s.sqrt() + eps) / correction**0.5


class MovesEveryRow(SparseAdamLike):
    """Takes 0 for the gradient of a row that is not there, as Adam does."""

    def held(self, g: Tensor) -> Tensor:
        return torch.ones(g.shape, dtype=torch.bool)


class ForgetsInEveryRow(SparseAdamLike):
    """Moves no row that is not there, and lets what it remembers fade."""

    def moved(self, p: Tensor, g: Tensor, memory: dict[str, Any], o: Any) -> Tensor:
        for name, beta in zip("ms", o.betas, strict=True):
            if name in memory:
                memory[name] = torch.where(self.held(g.coalesce()), 1.0, beta) * memory[name]
        return super().moved(p, g, memory, o)


class CountsForEachRow(SparseAdamLike):
    """Corrects each row by the number of its own steps."""

    def count(self, held: Tensor, memory: dict[str, Any]) -> Any:
        memory["of rows"] = memory.get("of rows", torch.zeros(held.shape)) + held
        return memory["of rows"].clamp(min=1).double()


@rule(
    "OPT-22",
    "SparseAdam updates the moments and the values of the rows that the gradient holds, and no"
    " others; the count t that corrects the moments is that of all steps.",
    kind="contract",
    source=SPARSE_ADAM_PAGE,
    subject=torch.optim.SparseAdam,
    violated_by=[MovesEveryRow, CountsForEachRow],
    consequence="a row that is first looked up in step 2 moves by 0.74 * lr, in step 12 by 0.48"
    " * lr, and late by 0.1 / sqrt(0.001) = 3.2 * lr",
)
def test_a_row_that_is_not_looked_up_rests(SparseAdam: MakeOptimizer) -> None:
    """For the first gradient of a row m is (1 - beta1) * g and the root of s is
    sqrt(1 - beta2) * abs(g). The correction expects t of them."""
    path = after_look_ups(SparseAdam, [[0], [1]] + [[0]] * 9 + [[2]], lr=0.1, eps=1e-16)

    def first_move(t: int) -> float:
        return 0.1 * (0.1 / (1 - 0.9**t)) / sqrt(0.001 / (1 - 0.999**t))

    # 1 - 0.999 is a thousandth of 1, and has the rounding error of 1.
    assert agree(path[0], [-0.1, 0, 0, 0, 0], ulps=1000)
    assert agree(path[1], [-0.1, -first_move(2), 0, 0, 0], ulps=1000)
    assert agree(path[-1][1:], [-first_move(2), -first_move(12), 0, 0], ulps=1000)
    moves = [first_move(t) for t in (2, 12, 100_000)]
    assert moves == pytest.approx([0.74 * 0.1, 0.48 * 0.1, 3.16 * 0.1], rel=0.01)


class SquaresBeforeItSums(SparseAdamLike):
    """Adds up the squares of what a row got, in place of squaring their sum."""

    def squares(self, g: Tensor) -> Tensor:
        parts = torch.sparse_coo_tensor(
            g._indices(), g._values() ** 2, g.shape, check_invariants=True
        )
        return parts.to_dense()


class AddsEpsToTheCorrectedRoot(SparseAdamLike):
    """Corrects s first and adds eps then, as Adam does."""

    def root(self, s: Tensor, correction: Any, eps: float) -> Tensor:
        return (s / correction).sqrt() + eps


@spec("OPT-22", violated_by=[SquaresBeforeItSums, AddsEpsToTheCorrectedRoot])
def test_look_ups_of_a_row_add_up_and_eps_is_added_to_the_uncorrected_root(
    SparseAdam: MakeOptimizer,
) -> None:
    """Three look-ups have a gradient of 3, and the root of s is sqrt(0.001) * 3.

    As much eps halves the step. In Adam an eps of that size would be lost in a root of 3.
    """
    path = after_look_ups(SparseAdam, [[2, 2, 2]], lr=0.1, eps=sqrt(0.001) * 3)

    assert agree(path[0], [0, 0, -0.1 / 2, 0, 0], ulps=1000)


class MinimizesAllTheSame(torch.optim.SparseAdam):
    """Goes down, maximize or not."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["maximize"] = False
        return super().step(closure)


@spec(
    "OPT-22",
    violated_by=[
        MovesEveryRow,
        ForgetsInEveryRow,
        CountsForEachRow,
        SquaresBeforeItSums,
        AddsEpsToTheCorrectedRoot,
        MinimizesAllTheSame,
    ],
)
def test_every_step_of_sparse_adam_equals_the_reference_for_every_option_and_group(
    SparseAdam: MakeOptimizer,
) -> None:
    """Two groups, random gradients of the rows that were looked up, the rates halved on the way."""
    for first, second in OPTIONS:
        random = torch.Generator().manual_seed(0)
        p, q = (torch.randn(5, 2, generator=random).double().requires_grad_() for _ in range(2))
        optimizer = SparseAdam([{"params": [p]}, {"params": [q], **second}], **first)
        references = [
            optimizers.SparseAdam([p], **first),
            optimizers.SparseAdam([q], **{**first, **second}),
        ]
        for step, rows in enumerate(LOOK_UPS):
            for one, reference, group in zip(
                (p, q), references, optimizer.param_groups, strict=True
            ):
                entries = torch.randn(len(rows), 2, generator=random).double()
                one.grad = torch.sparse_coo_tensor(
                    torch.tensor([rows]).long(), entries, (5, 2), check_invariants=True
                )
                if step == 5:
                    group["lr"] /= 2
                    reference.lr /= 2
                reference.step([one.grad])
            optimizer.step()

            # A step rounds about 15 times, and there are 10. No value goes beyond 5.
            assert agree(p, references[0].parameters[0], ulps=15 * 10, scale=5.0)
            assert agree(q, references[1].parameters[0], ulps=15 * 10, scale=5.0)


class TakesDenseGradients(torch.optim.Adam):
    """Is Adam."""


@spec("OPT-22", violated_by=[TakesDenseGradients])
def test_a_dense_gradient_is_refused(SparseAdam: MakeOptimizer, observe: Observe) -> None:
    """The zeros of a dense gradient are values; which rows it holds cannot be told."""
    p = torch.zeros(5, 2, requires_grad=True)
    p.grad = torch.ones(5, 2)
    with pytest.raises(RuntimeError, match="dense gradients") as refusal:
        SparseAdam([p]).step()
    observe("refusal", refusal.value)
