"""A VAE for tables: columns of categories and columns of numbers, together.

At the end you know how the two kinds of columns enter and leave the model, which of its parts
learn, and what the loss is made of.
Read before: test_15_categorical_columns.py (embeddings), test_11_vae_loss.py, test_13_kld_beta.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reference.models.tabular_vae import TabularLoss, TabularOutput, TabularVAE, tabular_vae_loss
from reference.tables import Rows
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.models.table_runs import OF_ONE_ROW

PAPER = "https://arxiv.org/abs/1312.6114"
EMBEDDING_PAGE = "https://docs.pytorch.org/docs/stable/generated/torch.nn.Embedding.html"

MakesModel = Callable[..., TabularVAE]
Loss = Callable[..., TabularLoss]

# ---------------------------------------------------------------------------------------------
# The model


class ForgetsTheCategories(TabularVAE):
    """Encodes the numbers only."""

    def encode(self, rows: Rows) -> tuple[Tensor, Tensor]:
        return super().encode(Rows(torch.zeros_like(rows.categories), rows.values))


class OneColumnOfCategories(TabularVAE):
    """Encodes the first categorical column, and the others as if they were all 0."""

    def encode(self, rows: Rows) -> tuple[Tensor, Tensor]:
        first = torch.zeros_like(rows.categories)
        first[:, 0] = rows.categories[:, 0]
        return super().encode(Rows(first, rows.values))


class MixesRows(TabularVAE):
    """Subtracts the mean of the batch: a row's encoding depends on the others."""

    def encode(self, rows: Rows) -> tuple[Tensor, Tensor]:
        return super().encode(Rows(rows.categories, rows.values - rows.values.mean(dim=0)))


class SamplesInEval(TabularVAE):
    """Draws a sample whatever its mode is."""

    def latent(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        return mean + (log_variance / 2).exp() * torch.randn_like(mean)


class OneLogit(TabularVAE):
    """Gives every column one number: which category, counted from 0."""

    def __init__(self, cardinalities: Any, *sizes: Any, **options: Any) -> None:
        super().__init__(cardinalities, *sizes, **options)
        self.logits = nn.ModuleList(nn.Linear(self.values.in_features, 1) for _ in cardinalities)


@rule(
    "TAB-04",
    "A VAE for a table looks each categorical column up in its own embedding, sends the continuous"
    " columns through a linear layer, and decodes logits for the ones and numbers for the others.",
    kind="contract",
    source=EMBEDDING_PAGE,
    subject=TabularVAE,
    violated_by=[ForgetsTheCategories, OneColumnOfCategories, MixesRows, SamplesInEval, OneLogit],
)
def test_every_column_goes_in_and_comes_out(TabularVAE: MakesModel) -> None:
    """Change one cell, and the encoding of its row changes, and that of no other row."""
    torch.manual_seed(0)
    model = TabularVAE([3, 5], continuous=2, hidden=16, latents=4).eval()
    rows = Rows(torch.tensor([[0, 4], [2, 0], [1, 1]]), torch.randn(3, 2))

    output = model(rows)

    assert [tuple(logits.shape) for logits in output.logits] == [(3, 3), (3, 5)]
    assert output.values.shape == (3, 2)
    assert output.mean.shape == output.log_variance.shape == (3, 4)
    assert torch.equal(output.values, model.decode(output.mean)[1])
    for column in range(2):
        other_category = Rows(rows.categories.clone(), rows.values)
        other_category.categories[1, column] = 1
        other_value = Rows(rows.categories, rows.values.clone())
        other_value.values[1, column] += 1
        for changed in (other_category, other_value):
            differs = (model(changed).mean - output.mean).abs().amax(dim=1) > 1e-6
            assert differs.tolist() == [False, True, False]


class NeverSamples(TabularVAE):
    """Decodes the mean in training too."""

    def latent(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        return mean + 0 * log_variance


class StdIsTheVariance(TabularVAE):
    """Takes exp(log_variance) for the standard deviation."""

    def latent(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        return mean + log_variance.exp() * torch.randn_like(mean) if self.training else mean


@spec("TAB-04", violated_by=[SamplesInEval, NeverSamples, StdIsTheVariance])
def test_training_decodes_a_sample_and_evaluation_the_mean(TabularVAE: MakesModel) -> None:
    """As a VAE of images does: VAE-03 says why. Here std = exp(-2 / 2), around a mean of 3."""
    torch.manual_seed(0)
    model, draws = TabularVAE([3], continuous=1, hidden=4, latents=1), 10_000
    mean, log_variance = torch.full((draws, 1), 3.0), torch.full((draws, 1), -2.0)

    latent = model.train().latent(mean, log_variance)

    # Within five standard errors.
    std = math.exp(-1)
    assert latent.mean().item() == pytest.approx(3, abs=5 * std / math.sqrt(draws))
    assert latent.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * draws))
    assert torch.equal(model.eval().latent(mean, log_variance), mean)


class FrozenEmbeddings(TabularVAE):
    """Keeps the embeddings that it was initialised with."""

    def __init__(self, *sizes: Any, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.embeddings.requires_grad_(False)


@spec("TAB-04", violated_by=[FrozenEmbeddings, NeverSamples])
def test_every_part_of_the_model_learns(TabularVAE: MakesModel) -> None:
    """The reconstruction reaches all of it, also without the KL."""
    model = TabularVAE([3, 5], continuous=2, hidden=16, latents=4)
    rows = Rows(torch.tensor([[0, 4], [2, 0], [1, 1]]), torch.randn(3, 2))

    tabular_vae_loss(model(rows), rows, kld_beta=0.0, **OF_ONE_ROW).total.backward()

    learning = [p for p in model.parameters() if p.grad is not None and p.grad.any()]
    assert len(learning) == len(list(model.parameters()))


class TakesWhatThereIs(TabularVAE):
    """Makes up a column where a kind is missing."""

    def __init__(self, cardinalities: Any, continuous: int, *sizes: Any, **options: Any) -> None:
        super().__init__(cardinalities or [1], max(continuous, 1), *sizes, **options)


@spec("TAB-04", violated_by=[TakesWhatThereIs])
def test_both_kinds_of_columns_are_needed(TabularVAE: MakesModel) -> None:
    """For numbers alone there is the ordinary VAE."""
    for cardinalities, continuous in [([], 2), ([3], 0)]:
        with pytest.raises(ValueError, match="column"):
            TabularVAE(cardinalities, continuous, hidden=4, latents=2)


# ---------------------------------------------------------------------------------------------
# The loss


@st.composite
def batches(draw: st.DrawFn) -> tuple[TabularOutput, Rows]:
    """What a model says about one to three rows with one or two columns of each kind."""
    count, columns = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    cardinalities = draw(st.sampled_from([[3], [2, 4]]))
    random = torch.Generator().manual_seed(draw(st.integers(0, 99)))

    def numbers(width: int) -> Tensor:
        return 2 * torch.randn(count, width, generator=random)

    categories = [torch.randint(one, (count,), generator=random) for one in cardinalities]
    logits = tuple(numbers(one) for one in cardinalities)
    output = TabularOutput(logits, numbers(columns), numbers(3), numbers(3))
    return output, Rows(torch.stack(categories, dim=1), numbers(columns))


@st.composite
def any_options(draw: st.DrawFn) -> dict[str, Any]:
    """Any weight of the KL, any loss of the values or the one by default, any reductions."""
    reductions = {name: draw(st.sampled_from(["sum", "batchmean", "mean"])) for name in OF_ONE_ROW}
    kinds = [{}, {"continuous_loss": "smooth_l1"}, {"continuous_loss": "mse"}]
    kld_beta = draw(st.sampled_from([0.0, 0.1, 4.0]))
    return {"kld_beta": kld_beta, **draw(st.sampled_from(kinds)), **reductions}


def forgets_the_categories(output: TabularOutput, rows: Rows, **options: Any) -> TabularLoss:
    """Adds up the numbers' loss and the KL."""
    loss = tabular_vae_loss(output, rows, **options)
    return loss._replace(total=loss.total - loss.categorical)


def weighs_the_categories_too(
    output: TabularOutput, rows: Rows, *, kld_beta: float, **options: Any
) -> TabularLoss:
    """Multiplies the cross entropy by kld_beta as well."""
    loss = tabular_vae_loss(output, rows, kld_beta=kld_beta, **options)
    return loss._replace(total=loss.total + (kld_beta - 1) * loss.categorical)


def always_smooth_l1(output: TabularOutput, rows: Rows, **options: Any) -> TabularLoss:
    """Does nothing with continuous_loss."""
    return tabular_vae_loss(output, rows, **options | {"continuous_loss": "smooth_l1"})


def one_reduction_for_all(output: TabularOutput, rows: Rows, **options: Any) -> TabularLoss:
    """Reduces the categories as it was told to reduce the numbers."""
    chosen = {"categorical_reduction": options["continuous_reduction"]}
    return tabular_vae_loss(output, rows, **options | chosen)


def last_column_only(output: TabularOutput, rows: Rows, **options: Any) -> TabularLoss:
    """Compares the last categorical column, as many times as there are columns."""
    columns = rows.categories.shape[1]
    last = rows._replace(categories=rows.categories[:, -1:].expand(-1, columns))
    return tabular_vae_loss(output._replace(logits=output.logits[-1:] * columns), last, **options)


@rule(
    "TAB-05",
    "The loss of a tabular VAE is the numbers' smooth L1 or squared error, plus the categories'"
    " cross entropy, plus kld_beta * KL, each term reduced as its own argument states.",
    kind="contract",
    source=PAPER,
    subject=tabular_vae_loss,
    violated_by=[
        forgets_the_categories,
        weighs_the_categories_too,
        always_smooth_l1,
        one_reduction_for_all,
        last_column_only,
    ],
)
@given(batch=batches(), options=any_options())
def test_the_loss_is_the_sum_of_its_three_reduced_terms(
    tabular_vae_loss: Loss, batch: tuple[TabularOutput, Rows], options: dict[str, Any]
) -> None:
    """Worked out number by number.

    Below 1 the squared error is twice smooth L1: with it, the same kld_beta weighs half as much.
    """
    output, rows = batch
    count = len(rows.values)

    loss = tabular_vae_loss(output, rows, **options)

    def reduced(terms: list[float], name: str) -> float:
        return sum(terms) / {"sum": 1, "batchmean": count, "mean": len(terms)}[options[name]]

    distances = (output.values.double() - rows.values).abs().flatten().tolist()
    if options.get("continuous_loss") == "mse":
        errors = [d**2 for d in distances]
    else:
        errors = [d**2 / 2 if d < 1 else d - 1 / 2 for d in distances]
    entropies = [
        math.log(sum(math.exp(score) for score in scores)) - scores[category]
        for logits, column in zip(output.logits, rows.categories.T.tolist(), strict=True)
        for scores, category in zip(logits.tolist(), column, strict=True)
    ]
    latents = zip(
        output.mean.flatten().tolist(), output.log_variance.flatten().tolist(), strict=True
    )
    divergences = [(m**2 + math.exp(v) - 1 - v) / 2 for m, v in latents]
    error = reduced(errors, "continuous_reduction")
    entropy = reduced(entropies, "categorical_reduction")
    kld = reduced(divergences, "kld_reduction")
    total = error + entropy + options["kld_beta"] * kld
    # The largest intermediate is a variance, exp(2 * 3.5) with noise of up to 3.5.
    assert agree(torch.stack(list(loss)), [total, error, entropy, kld], ulps=64, scale=math.exp(7))


def reports_but_does_not_train_the_kl(
    output: TabularOutput, rows: Rows, **options: Any
) -> TabularLoss:
    """Has the right value, but cuts the KL's gradient off."""
    cut = output._replace(mean=output.mean.detach(), log_variance=output.log_variance.detach())
    return tabular_vae_loss(cut, rows, **options)


def reports_but_does_not_train_the_categories(
    output: TabularOutput, rows: Rows, **options: Any
) -> TabularLoss:
    """Has the right value, but cuts the cross entropy's gradient off."""
    cut = output._replace(logits=tuple(logits.detach() for logits in output.logits))
    return tabular_vae_loss(cut, rows, **options)


@spec(
    "TAB-05",
    violated_by=[
        reports_but_does_not_train_the_kl,
        reports_but_does_not_train_the_categories,
        one_reduction_for_all,
    ],
)
@given(batch=batches(), options=any_options())
def test_each_term_has_its_own_gradient(
    tabular_vae_loss: Loss, batch: tuple[TabularOutput, Rows], options: dict[str, Any]
) -> None:
    """Softmax minus one-hot for the logits, the residual for the numbers, the KL for the rest."""
    output, rows = batch
    count, columns = rows.categories.shape
    leaves = [*output.logits, output.values, output.mean, output.log_variance]
    for leaf in leaves:
        leaf.requires_grad_()

    total = tabular_vae_loss(output, rows, **options).total
    *by_logits, by_values, by_mean, by_log_variance = torch.autograd.grad(
        total, leaves, materialize_grads=True
    )

    def share(name: str, elements: int) -> float:
        return 1 / {"sum": 1, "batchmean": count, "mean": count * elements}[options[name]]

    for logits, column, gradient in zip(output.logits, rows.categories.T, by_logits, strict=True):
        odds = logits.detach().double().exp()
        one_hot = column.unsqueeze(1) == torch.arange(logits.shape[1])
        pull = odds / odds.sum(dim=1, keepdim=True) - one_hot.double()
        assert agree(gradient, share("categorical_reduction", columns) * pull)
    residual = output.values.detach().double() - rows.values
    squared = options.get("continuous_loss") == "mse"
    pull = 2 * residual if squared else residual.clamp(-1, 1)
    assert agree(by_values, share("continuous_reduction", rows.values.shape[1]) * pull, scale=10)
    weight = options["kld_beta"] * share("kld_reduction", output.mean.shape[1])
    assert agree(by_mean, weight * output.mean.detach().double(), scale=10)
    variance = output.log_variance.detach().double().exp()
    assert agree(by_log_variance, weight * (variance - 1) / 2, scale=4 * math.exp(7))


def broadcasts(output: TabularOutput, rows: Rows, **options: Any) -> TabularLoss:
    """Compares every number with every number when the shapes allow it."""
    values = torch.broadcast_tensors(output.values, rows.values)
    return tabular_vae_loss(
        output._replace(values=values[0]), rows._replace(values=values[1]), **options
    )


def stops_at_the_shorter(output: TabularOutput, rows: Rows, **options: Any) -> TabularLoss:
    """Leaves out the categorical columns that have no logits."""
    known = rows.categories[:, : len(output.logits)]
    return tabular_vae_loss(output, rows._replace(categories=known), **options)


def unknown_is_smooth_l1(output: TabularOutput, rows: Rows, **options: Any) -> TabularLoss:
    """Takes what it does not know for smooth L1."""
    known = {name: "smooth_l1" if value == "l2" else value for name, value in options.items()}
    return tabular_vae_loss(output, rows, **known)


@spec("TAB-05", violated_by=[broadcasts, stops_at_the_shorter, unknown_is_smooth_l1])
def test_what_does_not_fit_is_an_error(tabular_vae_loss: Loss) -> None:
    """Neither a shape, nor a column without logits, nor a name is guessed."""
    latent = torch.zeros(2, 3)
    output = TabularOutput((torch.zeros(2, 4),), torch.zeros(2, 5), latent, latent)
    rows = Rows(torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 5))
    options = {"kld_beta": 1.0, **OF_ONE_ROW}

    with pytest.raises(ValueError, match="shape"):
        tabular_vae_loss(output, rows._replace(values=torch.zeros(2, 1)), **options)
    with pytest.raises(ValueError, match="columns"):
        tabular_vae_loss(output, rows._replace(categories=rows.categories.repeat(1, 2)), **options)
    with pytest.raises(ValueError, match="l2"):
        tabular_vae_loss(output, rows, continuous_loss="l2", **options)
    for name in OF_ONE_ROW:
        with pytest.raises(ValueError, match="average"):
            tabular_vae_loss(output, rows, **options | {name: "average"})
    with pytest.raises(RuntimeError):
        tabular_vae_loss(output, rows._replace(categories=rows.categories + 4), **options)


def mean_of_none_is_zero(output: TabularOutput, rows: Rows, **options: Any) -> TabularLoss:
    """Hides that there was nothing to average."""
    return TabularLoss(
        *(term.nan_to_num(0.0) for term in tabular_vae_loss(output, rows, **options))
    )


@spec("TAB-05", violated_by=[mean_of_none_is_zero])
def test_without_a_row_a_sum_is_0_and_a_mean_is_nan(tabular_vae_loss: Loss) -> None:
    """As with every loss of torch."""
    nothing = torch.empty(0, 3)
    output, rows = TabularOutput((nothing,), *[nothing] * 3), Rows(nothing[:, :1].long(), nothing)
    for reduction, value in [("sum", 0.0), ("batchmean", math.nan), ("mean", math.nan)]:
        loss = tabular_vae_loss(output, rows, kld_beta=1.0, **dict.fromkeys(OF_ONE_ROW, reduction))
        assert agree(torch.stack(list(loss)), [value] * 4)
