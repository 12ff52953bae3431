"""Categories as input: what an embedding looks up, what it refuses, and which of its rows learn.

At the end you know that an embedding is a matrix product in disguise, what happens to a category
that it has no row for, and what becomes of the rows whose category does not occur. This is what
stands at the entrance of a model for tables.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from specs.harness import rule, spec
from specs.harness.agreement import agree

EMBEDDING_PAGE = "https://docs.pytorch.org/docs/stable/generated/torch.nn.Embedding.html"
LOOKUP_PAGE = "https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.embedding.html"

#: Categories (...) and a weight (categories, numbers) -> (..., numbers).
Lookup = Callable[[Tensor, Tensor], Tensor]
MakesEmbedding = Callable[[int, int], nn.Embedding]


# ---------------------------------------------------------------------------------------------
# Looking up


def starts_at_1(input: Tensor, weight: Tensor) -> Tensor:
    """Takes the row before: the first category gets the last row."""
    return F.embedding(input, weight.roll(1, dims=0))


def scaled_rows(input: Tensor, weight: Tensor) -> Tensor:
    """Multiplies by the square root of the width, as the first layer of a transformer does."""
    return F.embedding(input, weight) * weight.shape[1] ** 0.5


def shares_the_gradient(input: Tensor, weight: Tensor) -> Tensor:
    """Divides a row's gradient by the number of its occurrences."""
    return F.embedding(input, weight, scale_grad_by_freq=True)


def first_row_is_padding(input: Tensor, weight: Tensor) -> Tensor:
    """Gives no gradient to category 0."""
    return F.embedding(input, weight, padding_idx=0)


@rule(
    "TAB-01",
    "An embedding looks up row k for category k, which is the one-hot vector of the category times"
    " the weight; each occurrence adds its gradient to the row.",
    kind="contract",
    source=LOOKUP_PAGE,
    subject=F.embedding,
    violated_by=[starts_at_1, scaled_rows, shares_the_gradient, first_row_is_padding],
)
@given(
    categories=st.lists(st.integers(0, 3), max_size=6),
    width=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_a_lookup_is_a_product_with_a_one_hot_vector(
    embedding: Lookup, categories: list[int], width: int, seed: int
) -> None:
    """So it is a linear layer without bias whose input is one-hot, without all the zeros."""
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, width, generator=random, requires_grad=True)
    upstream = torch.randn(len(categories), width, generator=random)
    column = torch.tensor(categories, dtype=torch.int64)

    rows = embedding(column, weight)
    (gradient,) = torch.autograd.grad(rows, weight, upstream)

    one_hot = torch.zeros(len(categories), 4, dtype=torch.float64)
    for place, category in enumerate(categories):
        one_hot[place, category] = 1.0
    assert torch.equal(rows, (one_hot @ weight.double()).float())
    # Up to six occurrences are added in float32.
    assert agree(gradient, one_hot.T @ upstream.double(), scale=10)


def flattened(input: Tensor, weight: Tensor) -> Tensor:
    """Forgets how the categories were laid out."""
    return F.embedding(input, weight).reshape(-1, weight.shape[1])


@spec("TAB-01", violated_by=[flattened])
def test_categories_of_any_shape_gain_one_dimension(embedding: Lookup) -> None:
    """The numbers of a category lie along a new last dimension; no category gives no number."""
    weight = torch.randn(4, 3)
    for shape in [(), (5,), (2, 5), (0,), (2, 0)]:
        assert embedding(torch.zeros(shape, dtype=torch.int64), weight).shape == (*shape, 3)


# ---------------------------------------------------------------------------------------------
# What has no row


def as_python_counts(input: Tensor, weight: Tensor) -> Tensor:
    """Indexes the weight, where -1 is the last row."""
    return weight[input]


def clamped(input: Tensor, weight: Tensor) -> Tensor:
    """Takes the nearest row that there is."""
    return F.embedding(input.clamp(0, len(weight) - 1), weight)


def wrapped_around(input: Tensor, weight: Tensor) -> Tensor:
    """Begins again at row 0, as hashing does."""
    return F.embedding(input % len(weight), weight)


@rule(
    "TAB-02",
    "A category without a row is an IndexError: an embedding of n rows knows 0 to n - 1, and a"
    " negative number does not count from the end.",
    kind="contract",
    source=EMBEDDING_PAGE,
    subject=F.embedding,
    violated_by=[as_python_counts, clamped, wrapped_around],
)
def test_one_category_too_many_is_an_error(embedding: Lookup) -> None:
    """On the CPU. On CUDA the kernel stops at an assertion, and the process has to be restarted.

    -1 is what many tools write for a missing value: give it a row of its own instead.
    """
    weight = torch.randn(3, 2)

    known = embedding(torch.tensor([0, 2]), weight)

    assert torch.equal(known, torch.stack([weight[0], weight[2]]))
    for unknown in (3, -1, -100):
        with pytest.raises(IndexError):
            embedding(torch.tensor([0, unknown]), weight)


def rounds_down(input: Tensor, weight: Tensor) -> Tensor:
    """Makes an integer of what it gets."""
    return F.embedding(input.long(), weight)


@spec("TAB-02", violated_by=[rounds_down])
def test_a_category_is_an_integer(embedding: Lookup) -> None:
    """A column that was read with missing values is often floating point: convert it yourself."""
    for category in (torch.tensor([1.0]), torch.tensor([1.5]), torch.tensor([True])):
        with pytest.raises(RuntimeError, match="Expected tensor for argument #1 'indices'"):
            embedding(category, torch.randn(3, 2))


# ---------------------------------------------------------------------------------------------
# What is learnt

# After steps in which category 0 occurs, category 1 occurs only once, at first, and category 2
# never: does the row still move? Gradients that are zero do not mean steps that are zero.
OPTIMIZERS = [
    # optimizer, its options, row 1 after its category is gone, row 2
    (torch.optim.SGD, {}, False, False),
    (torch.optim.SGD, {"momentum": 0.9}, True, False),
    (torch.optim.Adam, {}, True, False),
    (torch.optim.AdamW, {"weight_decay": 0.1}, True, True),
]


class CentresItsRows(nn.Embedding):
    """Subtracts the mean of all rows: each of them takes part in every lookup."""

    def forward(self, input: Tensor) -> Tensor:
        return F.embedding(input, self.weight - self.weight.mean(dim=0))


class OneRowForAll(nn.Embedding):
    """Gives all categories the same numbers."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(0 * input)


class NeverLearns(nn.Embedding):
    """Keeps the numbers that it was initialised with."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).detach() + 0 * self.weight.sum()


def rows_after_each_step(
    embedding: nn.Embedding,
    optimizer: Callable[..., torch.optim.Optimizer],
    options: dict[str, Any],
) -> list[Tensor]:
    """The weight before training and after each of four steps; categories as in OPTIMIZERS."""
    weights = [embedding.weight.detach().clone()]
    update = optimizer(embedding.parameters(), lr=0.1, **options)
    for batch in ([0, 1], [0, 0], [0], [0]):
        update.zero_grad()
        (embedding(torch.tensor(batch)) ** 2).sum().backward()
        update.step()
        weights.append(embedding.weight.detach().clone())
    return weights


@rule(
    "TAB-03",
    "A row of an embedding learns only from batches in which its category occurs: a category that"
    " never occurs keeps its random row.",
    kind="contract",
    source=EMBEDDING_PAGE,
    subject=nn.Embedding,
    violated_by=[CentresItsRows, OneRowForAll, NeverLearns],
)
def test_the_gradient_of_an_absent_category_is_zero(Embedding: MakesEmbedding) -> None:
    """Make sure that each category is in the training part, or map rare ones to one row."""
    embedding = Embedding(4, 2)

    (embedding(torch.tensor([0, 2, 2])) ** 2).sum().backward()

    # d/dw of w**2 is 2w, once for category 0 and twice for category 2.
    assert embedding.weight.grad is not None
    occurrences = torch.tensor([[1.0], [0.0], [2.0], [0.0]])
    assert agree(embedding.weight.grad, occurrences * 2 * embedding.weight.detach().double())


@spec("TAB-03", violated_by=[CentresItsRows, NeverLearns])
def test_momentum_and_decay_move_rows_whose_category_is_absent(Embedding: MakesEmbedding) -> None:
    """Only the gradient is zero. AdamW shrinks even the row of a category that never occurs."""
    for optimizer, options, moves_after_it_is_gone, moves_unseen in OPTIMIZERS:
        weights = rows_after_each_step(Embedding(3, 2), optimizer, options)

        start, after_the_first, end = weights[0], weights[1], weights[-1]
        assert bool((end[0] != after_the_first[0]).all())
        assert bool((after_the_first[1] != start[1]).all())
        assert bool((end[1] != after_the_first[1]).any()) is moves_after_it_is_gone
        assert bool((end[2] != start[2]).any()) is moves_unseen
