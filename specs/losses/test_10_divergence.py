"""The Kullback-Leibler divergence: how far the predictions q are from the targets p.

At the end you know what kl_div takes (log q first, then p or log p), which direction of the
divergence it gives, which reduction is the one of the textbooks, and what the other one costs.

KL(p || q) is the sum over the classes of p * (log p - log q), in nats. It is 0 only for p = q.
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

from reference import data
from reference.losses import divergence
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe
from specs.harness.strategies import dtypes, tensors
from specs.losses.gradients import Loss, on, value_and_gradient

KL_DIV_PAGE = "https://docs.pytorch.org/docs/stable/generated/torch.nn.KLDivLoss.html"

KL_DIV = [F.kl_div, divergence.kl_div]

# Two distributions over two classes: a fair coin q, and a coin p that shows heads 3 times in 4.
FAIR = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
BIASED = torch.tensor([[0.75, 0.25]], dtype=torch.float64)
KL_BIASED_FROM_FAIR = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
KL_FAIR_FROM_BIASED = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)


def arguments_swapped(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Gives KL(q || p)."""
    return F.kl_div(target.log(), input.exp(), **options)


def logarithm_forgotten(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Subtracts q where log q is meant."""
    return F.kl_div(input.exp(), target, **options)


def cross_entropy_alone(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Forgets the entropy of the target; its gradient by the input is right."""
    entropy = -(target * target.clamp(min=1e-30).log())
    losses = F.kl_div(input, target, reduction="none") + entropy
    return losses.sum() / len(losses) if options["reduction"] == "batchmean" else losses.sum()


@rule(
    "LOSS-14",
    "kl_div(log q, p) is KL(p || q), the divergence of the predictions q from the targets p;"
    ' reduction="batchmean" is its mean over a batch.',
    kind="contract",
    source=KL_DIV_PAGE,
    subject=KL_DIV,
    violated_by=[arguments_swapped, logarithm_forgotten, cross_entropy_alone],
    consequence="probabilities in place of log q give a negative divergence; the default reduction"
    " gives gradients that are too small by the number of classes",
)
def test_the_first_argument_is_log_q_and_the_second_is_p(kl_div: Loss) -> None:
    """The prediction comes first, as for every loss, although KL(p || q) is read with p first."""
    assert agree(kl_div(FAIR.log(), BIASED, reduction="batchmean"), KL_BIASED_FROM_FAIR)
    assert agree(kl_div(BIASED.log(), FAIR, reduction="batchmean"), KL_FAIR_FROM_BIASED)
    assert kl_div(FAIR.log(), FAIR, reduction="batchmean") == 0.0


def guesses_what_it_was_given(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Sees that its input is above 0, so no logarithm of a probability, and takes the log."""
    return F.kl_div(input.log() if (input > 0).any() else input, target, **options)


@spec("LOSS-14", violated_by=[guesses_what_it_was_given])
def test_probabilities_in_place_of_log_q_give_a_negative_divergence_and_no_error(
    kl_div: Loss,
) -> None:
    """A divergence is never negative. A loss below 0 here means that the log_softmax is missing."""
    confused = kl_div(FAIR, BIASED, reduction="batchmean")

    # p * (log p - q), with the probability q = 0.5 where its logarithm belongs.
    assert agree(confused, 0.75 * (math.log(0.75) - 0.5) + 0.25 * (math.log(0.25) - 0.5))
    assert confused < 0


# ---------------------------------------------------------------------------------------------
# The whole function, against the reference


@st.composite
def distributions(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """log q and log p, of shape (samples, classes), with 0 to 4 samples and 1 to 4 classes.

    They are log-softmax scores of logits up to 20 in size, so that the rarest classes have a
    probability of exp(-40).
    """
    samples, classes = draw(st.integers(0, 4)), draw(st.integers(1, 4))
    dtype = draw(dtypes())
    logits = draw(tensors(shape=(2, samples, classes), low=-20.0, high=20.0))
    log_q, log_p = (logits - logits.exp().sum(dim=2, keepdim=True).log()).to(dtype)
    return log_q, log_p


def target_is_always_p(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    log_target: bool = False,  # noqa: ARG001
) -> Tensor:
    """Takes log_target, and reads the target as p."""
    return F.kl_div(input, target, reduction=reduction)


def batchmean_over_elements(
    input: Tensor, target: Tensor, reduction: str = "mean", log_target: bool = False
) -> Tensor:
    """Divides by samples times classes for "batchmean" too."""
    reduction = reduction.replace("batchmean", "mean")
    return F.kl_div(input, target, reduction=reduction, log_target=log_target)


def gradient_by_half(
    input: Tensor, target: Tensor, reduction: str = "mean", log_target: bool = False
) -> Tensor:
    """Has the right value, and half of the gradient."""
    loss = F.kl_div(input, target, reduction=reduction, log_target=log_target)
    return loss / 2 + loss.detach() / 2


# The mean warns, which has a test of its own below.
@spec(
    "LOSS-14",
    subject=F.kl_div,
    violated_by=[target_is_always_p, batchmean_over_elements, gradient_by_half],
)
@pytest.mark.filterwarnings("ignore:reduction:UserWarning")
@given(
    problem=distributions(),
    reduction=st.sampled_from(["none", "sum", "mean", "batchmean"]),
    log_target=st.booleans(),
)
def test_every_class_costs_p_times_the_difference_of_the_logarithms(
    kl_div: Loss,
    device: torch.device,
    problem: tuple[Tensor, Tensor],
    reduction: str,
    log_target: bool,
) -> None:
    """Equal to the reference, also for the gradient by log q, which is -p."""
    log_q, log_p = problem
    target = log_p if log_target else log_p.exp()
    options = {"reduction": reduction, "log_target": log_target}

    loss, gradient = value_and_gradient(kl_div, on(device, log_q), on(device, target), **options)

    expected = value_and_gradient(divergence.kl_div, log_q, target, **options)
    # The logarithms are as large as 40, and a sum over 4 samples can be 4 * 40.
    assert agree(loss, expected[0], scale=4 * 40)
    assert agree(gradient, expected[1])


def nan_where_p_is_zero(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Multiplies p = 0 by log 0, which is nan."""
    losses = target * (target.log() - input)
    return losses.sum() / len(losses) if reduction == "batchmean" else losses.mean()


@spec("LOSS-14", subject=KL_DIV, violated_by=[nan_where_p_is_zero])
def test_a_class_with_probability_zero_adds_nothing(kl_div: Loss) -> None:
    """For a one-hot target p the divergence is -log q of the true class: the cross entropy."""
    log_q = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).log()
    one_hot = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)

    loss, gradient = value_and_gradient(kl_div, log_q, one_hot, reduction="batchmean")

    assert agree(loss, -math.log(0.2))
    assert agree(gradient, -one_hot)


def log_of_zero_is_allowed(
    input: Tensor, target: Tensor, reduction: str = "mean", log_target: bool = False
) -> Tensor:
    """Counts a class of probability 0 as 0, even where its logarithm comes in as -inf."""
    losses = F.kl_div(input, target, reduction="none", log_target=log_target).nan_to_num(0.0)
    return losses.sum() / len(losses) if reduction == "batchmean" else losses.mean()


@spec("LOSS-14", subject=KL_DIV, violated_by=[log_of_zero_is_allowed])
def test_a_logarithm_of_zero_on_either_side_gives_nan(kl_div: Loss, observe: Observe) -> None:
    """0 * (-inf) is nan. Give one-hot targets as p, and mask logits with a large finite number."""
    one_hot = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    log_q = torch.tensor([[0.7, 0.3]], dtype=torch.float64).log()
    masked_log_q = torch.tensor([[0.0, -math.inf]], dtype=torch.float64)

    as_log_p = kl_div(log_q, one_hot.log(), reduction="batchmean", log_target=True)
    as_masked_q = kl_div(masked_log_q, one_hot, reduction="batchmean")

    observe("log p of -inf", as_log_p)
    observe("log q of -inf, where p is 0", as_masked_q)
    assert math.isnan(as_log_p)
    assert math.isnan(as_masked_q)


# ---------------------------------------------------------------------------------------------
# Which mean?


def batchmean_by_default(
    input: Tensor, target: Tensor, reduction: str = "batchmean", log_target: bool = False
) -> Tensor:
    """Has the mathematical mean as its default."""
    return F.kl_div(input, target, reduction=reduction, log_target=log_target)


@spec("LOSS-14", subject=KL_DIV, violated_by=[batchmean_by_default, batchmean_over_elements])
@pytest.mark.filterwarnings("ignore:reduction:UserWarning")
def test_the_default_mean_is_the_divergence_over_the_number_of_classes(kl_div: Loss) -> None:
    """A student learns the ten digits from a teacher: by default with a tenth of the gradient."""
    images = data.digits().train_inputs[:32]
    torch.manual_seed(0)
    teacher, student = nn.Linear(64, 10), nn.Linear(64, 10)
    teacher_p = F.softmax(teacher(images), dim=1).detach()
    log_q = F.log_softmax(student(images), dim=1)

    by_default = value_and_gradient(kl_div, log_q, teacher_p)
    by_batchmean = value_and_gradient(kl_div, log_q, teacher_p, reduction="batchmean")

    assert agree(by_batchmean[0], 10 * by_default[0])
    assert agree(by_batchmean[1], 10 * by_default[1])


def silent_mean(
    input: Tensor, target: Tensor, reduction: str = "mean", log_target: bool = False
) -> Tensor:
    """Divides by samples times classes, and says nothing."""
    losses = F.kl_div(input, target, reduction="none", log_target=log_target)
    return losses.mean() if reduction == "mean" else losses.sum() / len(losses)


@spec("LOSS-14", subject=F.kl_div, violated_by=[silent_mean])
def test_the_mean_warns_that_it_is_not_the_batchmean(kl_div: Loss, observe: Observe) -> None:
    with pytest.warns(UserWarning, match="^reduction: 'mean' divides the total loss by") as caught:
        kl_div(FAIR.log(), BIASED)
    observe("warning of the mean", caught[0])


def batchmean_of_one_sample(
    input: Tensor, target: Tensor, reduction: str = "mean", log_target: bool = False
) -> Tensor:
    """Takes a single distribution for a batch of one."""
    if input.dim() == 1:
        input, target = input.unsqueeze(0), target.unsqueeze(0)
    return F.kl_div(input, target, reduction=reduction, log_target=log_target)


@spec("LOSS-14", subject=KL_DIV, violated_by=[batchmean_of_one_sample])
def test_batchmean_divides_a_single_distribution_by_its_classes(kl_div: Loss) -> None:
    """It divides by the length of the first dimension. Without a batch, that is the classes."""
    without_batch = kl_div(FAIR[0].log(), BIASED[0], reduction="batchmean")

    assert agree(without_batch, KL_BIASED_FROM_FAIR / 2)
    assert agree(kl_div(FAIR[0].log(), BIASED[0], reduction="sum"), KL_BIASED_FROM_FAIR)
