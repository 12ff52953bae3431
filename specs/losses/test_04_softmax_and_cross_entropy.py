"""Softmax, log-softmax, negative log-likelihood and cross entropy: one chain, four functions.

At the end you know what each link takes and gives, that cross entropy is the last two in one, and
why the chain is never built from softmax and log. Scores ("logits") have shape (N, C): N samples,
C classes; further dimensions follow the classes, as in (N, C, height, width). softmax turns the
scores x of one sample into probabilities p_i = exp(x_i) / sum_j exp(x_j).
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from reference.losses import classification
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe
from specs.harness.strategies import dtypes
from specs.losses.gradients import Loss, on, value_and_gradient

DOCS = "https://docs.pytorch.org/docs/stable/generated/"

CROSS_ENTROPIES = [F.cross_entropy, classification.cross_entropy]
NLL_LOSSES = [F.nll_loss, classification.nll_loss]
LOG_SOFTMAXES = [F.log_softmax, classification.log_softmax]

REDUCTIONS = ["none", "mean", "sum"]
# (N, C) and (N, C, d1, ...); no sample, one sample and one class are among them.
SHAPES = [(0, 3), (1, 1), (1, 4), (5, 3), (2, 3, 4), (2, 3, 0), (2, 3, 2, 2)]
# Largest logit: everyday ones, and ones whose exp overflows in float32 (88.7) and float64 (709.8).
SIZES = [5.0, 100.0, 1e4]


@st.composite
def logits_and_classes(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Logits up to one of SIZES, and a class index for each sample and place."""
    shape, size, dtype = draw(st.sampled_from(SHAPES)), draw(st.sampled_from(SIZES)), draw(dtypes())
    random = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    logits = torch.empty(shape, dtype=dtype).uniform_(-size, size, generator=random)
    classes = torch.randint(shape[1], shape[:1] + shape[2:], generator=random)
    return logits, classes


def largest(logits: Tensor) -> float:
    """The largest absolute score: a difference of scores is rounded in this size."""
    return max([1.0, *logits.abs().flatten().tolist()])


# ---------------------------------------------------------------------------------------------
# Softmax, along one dimension


def over_the_last_dim(input: Tensor, dim: int) -> Tensor:
    """Takes dim, and works along the last one."""
    del dim
    return F.softmax(input, dim=-1)


def exp_as_it_is(input: Tensor, dim: int) -> Tensor:
    """Does not take the largest score out first, and overflows."""
    return input.exp() / input.exp().sum(dim, keepdim=True)


def each_class_for_itself(input: Tensor, dim: int) -> Tensor:
    """Has the right value; its gradient forgets that the denominator moves too."""
    denominator = input.exp().sum(dim, keepdim=True).detach()
    through_exp = input.exp() / denominator
    return through_exp + (F.softmax(input, dim=dim) - through_exp).detach()


@rule(
    "LOSS-16",
    "Always give softmax its dim: along it, and only along it, the probabilities sum to 1.",
    kind="practice",
    source=f"{DOCS}torch.nn.functional.softmax.html",
    subject=F.softmax,
    violated_by=[over_the_last_dim, exp_as_it_is, each_class_for_itself],
    consequence="without it, scores of shape (batch, time, classes) are normalised over the batch:"
    " a batch of one gives probability 1 to every class",
)
@given(problem=logits_and_classes(), last=st.booleans())
def test_softmax_follows_the_formula_along_the_dimension_that_is_asked_for(
    softmax: Loss, device: torch.device, problem: tuple[Tensor, Tensor], last: bool
) -> None:
    """Only the caller knows where the classes lie. Value and gradient, along dim 1 and the last."""
    logits = on(device, problem[0])
    dim = -1 if last and logits.shape[-1] > 0 else 1
    # The sum of all probabilities is constant: its gradient is 0. So each gets a factor.
    factors = torch.linspace(1, 2, logits.numel()).view(logits.shape)

    probabilities, gradient = value_and_gradient(
        lambda x: softmax(x, dim=dim) * factors.to(x), logits
    )

    expected = value_and_gradient(
        lambda x: classification.softmax(x, dim=dim) * factors.double(), logits
    )
    assert agree(probabilities, expected[0], ulps=64)
    assert agree(gradient, expected[1], ulps=64)


def sigmoid_of_each(input: Tensor, dim: int) -> Tensor:
    """Gives every class a probability of its own."""
    del dim
    return torch.sigmoid(input)


@spec("LOSS-16", subject=[F.softmax, classification.softmax], violated_by=[sigmoid_of_each])
def test_only_differences_between_scores_count(softmax: Loss) -> None:
    """A constant added to all scores cancels; log(3) more is three times the odds."""
    scores = torch.tensor([[0.0, math.log(3)], [7.0, 7.0 + math.log(3)]], dtype=torch.float64)

    assert agree(softmax(scores, dim=1), [[0.25, 0.75], [0.25, 0.75]])


def last_dim_by_default(input: Tensor, dim: int = -1) -> Tensor:
    """Has a fixed default for dim."""
    return F.softmax(input, dim=dim)


@spec("LOSS-16", violated_by=[last_dim_by_default])
@pytest.mark.filterwarnings("ignore:Implicit dimension choice for softmax:UserWarning")
def test_without_dim_softmax_normalises_matrices_over_classes_but_batches_of_them_over_samples(
    softmax: Loss,
) -> None:
    """The guess is dim 1 for 2 and 4 dimensions, and dim 0 for 1 and 3 dimensions."""
    for shape, guessed in [((4,), 0), ((2, 3), 1), ((2, 3, 4), 0), ((2, 3, 4, 5), 1)]:
        scores = torch.arange(math.prod(shape), dtype=torch.float64).view(shape).sin()
        assert agree(softmax(scores), classification.softmax(scores, dim=guessed))

    one_sample = torch.tensor([[[1.0, 2.0, 3.0]]])  # (batch 1, time 1, 3 classes)
    assert softmax(one_sample).tolist() == [[[1.0, 1.0, 1.0]]]


@spec("LOSS-16", violated_by=[last_dim_by_default])
def test_softmax_without_dim_warns_that_it_had_to_guess(softmax: Loss, observe: Observe) -> None:
    with pytest.warns(UserWarning, match="^Implicit dimension choice for softmax") as caught:
        softmax(torch.zeros(2, 3))
    observe("warning", caught[0])


# ---------------------------------------------------------------------------------------------
# Log-softmax


def log_of_softmax(input: Tensor, dim: int) -> Tensor:
    """Takes the logarithm after the probabilities have been rounded to 0."""
    return F.softmax(input, dim=dim).log()


def log_with_epsilon(input: Tensor, dim: int) -> Tensor:
    """Adds a small number, so that the logarithm stays finite."""
    return (F.softmax(input, dim=dim) + 1e-9).log()


@rule(
    "LOSS-07",
    "log(softmax(x)) underflows to minus infinity where log_softmax(x) is exact.",
    kind="contract",
    source=f"{DOCS}torch.nn.functional.log_softmax.html",
    subject=LOG_SOFTMAXES,
    violated_by=[log_of_softmax, log_with_epsilon],
    consequence="logits 200 and 0: the second class costs infinity instead of 200, and every"
    " gradient becomes nan",
)
def test_a_class_200_behind_has_log_probability_minus_200(log_softmax: Loss) -> None:
    """exp(-200) is 0 in float32, and log(0) is minus infinity. The gradient is 1 - p for itself."""
    logits = torch.tensor([200.0, 0.0])

    log_p, gradient = value_and_gradient(lambda x: log_softmax(x, dim=0)[1:], logits)

    assert agree(log_p, [-200.0])
    assert agree(gradient, [-1.0, 1.0])


@spec("LOSS-07", subject=F.log_softmax, violated_by=[log_of_softmax, log_with_epsilon])
@given(problem=logits_and_classes())
def test_log_softmax_follows_the_formula(
    log_softmax: Loss, device: torch.device, problem: tuple[Tensor, Tensor]
) -> None:
    """x_i - log(sum_j exp(x_j)), value and gradient, for logits of every size."""
    logits = on(device, problem[0])
    factors = torch.linspace(1, 2, logits.numel()).view(logits.shape)

    log_p, gradient = value_and_gradient(lambda x: log_softmax(x, dim=1) * factors.to(x), logits)

    expected = value_and_gradient(
        lambda x: classification.log_softmax(x, dim=1) * factors.double(), logits
    )
    assert agree(log_p, expected[0], scale=largest(logits))
    assert agree(gradient, expected[1], ulps=64)


# ---------------------------------------------------------------------------------------------
# Negative log-likelihood


def takes_probabilities(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Takes the logarithm itself."""
    return F.nll_loss(input.log(), target, **options)


@rule(
    "LOSS-06",
    "nll_loss expects log-probabilities: it picks -input[target], and checks nothing.",
    kind="contract",
    source=f"{DOCS}torch.nn.NLLLoss.html",
    subject=NLL_LOSSES,
    violated_by=[takes_probabilities],
    consequence="given probabilities it reports a loss between -1 and 0, without an error",
)
def test_nll_loss_takes_no_logarithm(nll_loss: Loss) -> None:
    """Probabilities come out as a negative loss, raw logits as any number."""
    log_p = torch.tensor([[0.25, 0.75], [0.5, 0.5]], dtype=torch.float64).log()
    target = torch.tensor([1, 0])

    assert agree(nll_loss(log_p, target), (-math.log(0.75) - math.log(0.5)) / 2)
    assert agree(nll_loss(log_p.exp(), target), (-0.75 - 0.5) / 2)
    assert agree(nll_loss(torch.tensor([[1.0, 9.0], [2.0, 3.0]]), target), (-9 - 2) / 2)


def mean_over_samples(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Divides a weighted sum by the number of targets."""
    if options["reduction"] != "mean":
        return F.nll_loss(input, target, **options)
    return F.nll_loss(input, target, **{**options, "reduction": "none"}).mean()


def drops_weight(
    input: Tensor, target: Tensor, weight: Tensor | None = None, **options: Any
) -> Tensor:
    """Takes weights, and does nothing with them."""
    del weight
    return F.nll_loss(input, target, **options)


def ignores_nothing(
    input: Tensor, target: Tensor, ignore_index: int = -100, **options: Any
) -> Tensor:
    """Takes an index to ignore, and counts it like any other."""
    del ignore_index
    return F.nll_loss(input, target, **options)


@spec(
    "LOSS-06",
    subject=F.nll_loss,
    violated_by=[mean_over_samples, drops_weight, ignores_nothing],
)
@given(
    problem=logits_and_classes(),
    reduction=st.sampled_from(REDUCTIONS),
    weighted=st.booleans(),
    ignore_index=st.sampled_from([-100, 0]),
)
def test_nll_loss_follows_the_formula_with_class_weights_and_ignored_targets(
    nll_loss: Loss,
    device: torch.device,
    problem: tuple[Tensor, Tensor],
    reduction: str,
    weighted: bool,
    ignore_index: int,
) -> None:
    """-w[y] * input[y]; "mean" divides by the sum of w[y] over the targets that count."""
    inputs, target = (on(device, tensor) for tensor in problem)
    options: dict[str, Any] = {"reduction": reduction, "ignore_index": ignore_index}
    if weighted:
        options["weight"] = torch.linspace(0.5, 2, inputs.shape[1]).to(inputs)

    loss, gradient = value_and_gradient(nll_loss, inputs, target, **options)

    expected = value_and_gradient(classification.nll_loss, inputs, target, **options)
    # A weight is at most 2; a sum has up to 8 terms.
    assert agree(loss, expected[0], scale=2 * largest(inputs))
    assert agree(gradient, expected[1])


class ModuleThatForgets(nn.NLLLoss):
    """A module that is given weights, and calls its function without them."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.nll_loss(input, target, reduction=self.reduction)


@spec("LOSS-06", subject=nn.NLLLoss, violated_by=[ModuleThatForgets])
def test_the_module_is_the_function_with_its_arguments_kept(NLLLoss: type[nn.Module]) -> None:
    log_p, target = torch.tensor([[-1.0, -2.0, -3.0]] * 3), torch.tensor([0, 1, 2])
    weight = torch.tensor([1.0, 2.0, 4.0])

    weighted = NLLLoss(weight=weight, ignore_index=1)

    assert NLLLoss()(log_p, target) == F.nll_loss(log_p, target)
    assert weighted(log_p, target) == F.nll_loss(log_p, target, weight=weight, ignore_index=1)


# ---------------------------------------------------------------------------------------------
# Cross entropy is the last two links in one


def without_a_sum(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Takes the scores for log-probabilities."""
    return F.nll_loss(input, target, **options)


def softmax_first(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Applies softmax to the logits, and then the loss that applies its own."""
    return F.cross_entropy(F.softmax(input, dim=1), target, **options)


@rule(
    "LOSS-04",
    "For class indices, cross entropy of logits is nll_loss of log_softmax of the logits; applying"
    " log_softmax once more changes nothing.",
    kind="contract",
    source=f"{DOCS}torch.nn.CrossEntropyLoss.html",
    subject=CROSS_ENTROPIES,
    violated_by=[without_a_sum, softmax_first],
)
@given(problem=logits_and_classes(), reduction=st.sampled_from(REDUCTIONS))
def test_cross_entropy_is_nll_loss_of_log_softmax(
    cross_entropy: Loss, problem: tuple[Tensor, Tensor], reduction: str
) -> None:
    """log_softmax gives scores whose log-sum-exp is 0: a second one has nothing to subtract."""
    logits, target = problem[0].double(), problem[1]
    log_p = F.log_softmax(logits, dim=1)

    in_one_step = cross_entropy(logits, target, reduction=reduction)
    in_two_steps = F.nll_loss(log_p, target, reduction=reduction)
    once_more = cross_entropy(log_p, target, reduction=reduction)

    assert agree(in_one_step, in_two_steps, scale=largest(logits))
    assert agree(once_more, in_two_steps, scale=largest(logits))


def gradient_of_squared_error(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Has the right value, and the gradient of the squared error of the probabilities."""
    loss = F.cross_entropy(input, target, **options)
    indicator = F.one_hot(target, input.shape[1]).to(input)
    surrogate = (F.softmax(input, dim=1) - indicator).pow(2).sum(dim=1).mean()
    return surrogate + (loss - surrogate).detach()


@spec("LOSS-04", violated_by=[softmax_first, gradient_of_squared_error])
def test_the_gradient_of_cross_entropy_is_probability_minus_indicator(cross_entropy: Loss) -> None:
    """Divided by N for the mean: the true class is pulled up by what it lacks, all others down."""
    p = torch.tensor([[0.2, 0.3, 0.5], [0.7, 0.2, 0.1]], dtype=torch.float64)
    target = torch.tensor([0, 2])

    _, gradient = value_and_gradient(cross_entropy, p.log(), target)

    assert agree(gradient, [[-0.8 / 2, 0.3 / 2, 0.5 / 2], [0.7 / 2, 0.2 / 2, -0.9 / 2]])


def classes_last(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Normalises over the last dimension instead of dimension 1."""
    return F.nll_loss(F.log_softmax(input, dim=-1), target, **options)


def overflows(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Computes the log-sum-exp without taking the largest score out."""
    log_p = input - input.exp().sum(dim=1, keepdim=True).log()
    return F.nll_loss(log_p, target, **options)


@spec("LOSS-04", subject=F.cross_entropy, violated_by=[classes_last, overflows, softmax_first])
@given(problem=logits_and_classes(), reduction=st.sampled_from(REDUCTIONS))
def test_cross_entropy_follows_the_formula_in_value_and_gradient(
    cross_entropy: Loss, device: torch.device, problem: tuple[Tensor, Tensor], reduction: str
) -> None:
    """The classes lie along dimension 1, for images too. No logit is too large."""
    logits, target = (on(device, tensor) for tensor in problem)

    loss, gradient = value_and_gradient(cross_entropy, logits, target, reduction=reduction)

    expected = value_and_gradient(classification.cross_entropy, logits, target, reduction=reduction)
    assert agree(loss, expected[0], scale=largest(logits))
    assert agree(gradient, expected[1], ulps=64)
