"""The focal loss: cross entropy that turns easy samples down, and what it does to probabilities.

At the end you know its formula, that gamma = 0 makes it binary cross entropy, and that a larger
gamma no longer rewards the true probability: predictions move toward 1/2.

PyTorch has no focal loss of its own; the one judged here is the reference, or yours.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from reference.losses import binary
from reference.losses.imbalance import focal_loss
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe
from specs.harness.strategies import dtypes, tensors
from specs.losses.eights import STEPS, eights, logits_after_training, predicted_share
from specs.losses.gradients import Loss, on, value_and_gradient

FOCAL_PAPER = "https://arxiv.org/abs/1708.02002"


def gamma_off_by_one(input: Tensor, target: Tensor, gamma: float = 2.0, **options: Any) -> Tensor:
    """Focuses by gamma + 1."""
    return focal_loss(input, target, gamma=gamma + 1, **options)


def balanced_by_default(
    input: Tensor, target: Tensor, gamma: float = 2.0, alpha: float = 0.25, **options: Any
) -> Tensor:
    """Weighs positives by 0.25 and negatives by 0.75 unless told otherwise."""
    return focal_loss(input, target, gamma=gamma, alpha=alpha, **options)


@rule(
    "CLAIM-15",
    "The focal loss with gamma = 0 is binary cross entropy, and the focal loss keeps calibration.",
    kind="claim",
    source=FOCAL_PAPER,
    subject=focal_loss,
    violated_by=[gamma_off_by_one, balanced_by_default],
    consequence="where 10 % are eights, a model trained with gamma = 2 announces over 18 %",
    verdict="holds if gamma = 0 and no alpha is set; with gamma > 0 probabilities move toward 1/2",
)
@given(
    logits=tensors(
        dtype=dtypes(), shape=st.tuples(st.integers(0, 6)), special=(0.0, 200.0, -200.0)
    ),
    labels=st.lists(st.booleans(), min_size=6, max_size=6),
    reduction=st.sampled_from(["none", "sum", "mean"]),
)
def test_with_gamma_zero_it_is_binary_cross_entropy(
    focal_loss: Loss, device: torch.device, logits: Tensor, labels: list[bool], reduction: str
) -> None:
    """In value and gradient, also for extreme logits and for an empty batch."""
    targets = torch.tensor(labels[: len(logits)], dtype=logits.dtype)
    here = on(device, logits), on(device, targets)

    loss, gradient = value_and_gradient(focal_loss, *here, gamma=0.0, reduction=reduction)

    expected = value_and_gradient(
        F.binary_cross_entropy_with_logits, logits.double(), targets.double(), reduction=reduction
    )
    assert agree(loss, expected[0])
    assert agree(gradient, expected[1])


def focuses_on_the_easy(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Turns a sample down by p_t ** gamma, so that the hard ones lose their weight."""
    hard = focal_loss(-input, target, **options | {"reduction": "none"})
    p_true = binary.sigmoid(torch.where(target == 1, input, -input))
    return hard * torch.log(p_true) / torch.log1p(-p_true)


def alpha_for_both_classes(
    input: Tensor, target: Tensor, gamma: float = 2.0, alpha: float | None = None, **options: Any
) -> Tensor:
    """Gives negatives the weight alpha too, in place of 1 - alpha."""
    losses = focal_loss(input, target, gamma=gamma, **options)
    return losses if alpha is None else alpha * losses


@spec("CLAIM-15", violated_by=[focuses_on_the_easy, alpha_for_both_classes, balanced_by_default])
def test_gamma_turns_a_sample_down_by_what_the_wrong_class_was_given(focal_loss: Loss) -> None:
    """-(1 - p) ** gamma * log(p), for a sample whose true class was given the probability p."""
    for p in (0.1, 0.5, 0.9, 0.99):
        for gamma in (0.5, 2.0, 5.0):
            logit = math.log(p / (1 - p))
            logits = torch.tensor([logit, -logit], dtype=torch.float64)
            targets = torch.tensor([1.0, 0.0], dtype=torch.float64)
            cost = -((1 - p) ** gamma) * math.log(p)
            slope = (1 - p) ** gamma * (gamma * p * math.log(p) - (1 - p))

            losses, gradient = value_and_gradient(
                focal_loss, logits, targets, gamma=gamma, reduction="none"
            )
            assert agree(losses, [cost, cost])
            assert agree(gradient, [slope, -slope])

            weighted = focal_loss(logits, targets, gamma=gamma, alpha=0.25, reduction="none")
            assert agree(weighted, [0.25 * cost, 0.75 * cost])

            if gamma == 2.0:  # which is the default
                assert agree(focal_loss(logits, targets), cost)


def gamma_ignored(
    input: Tensor,
    target: Tensor,
    gamma: float = 2.0,  # noqa: ARG001
    **options: Any,
) -> Tensor:
    """Takes gamma, and is binary cross entropy."""
    return F.binary_cross_entropy_with_logits(input, target, **options)


def power_of_zero(
    input: Tensor, target: Tensor, gamma: float = 2.0, reduction: str = "none"
) -> Tensor:
    """Raises 1 - p_t to the power gamma as it stands: at 0, a root has an infinite slope."""
    losses = F.binary_cross_entropy_with_logits(input, target, reduction=reduction)
    return (1 - torch.exp(-losses)) ** gamma * losses


@spec("CLAIM-15", violated_by=[power_of_zero])
def test_extreme_logits_give_neither_nan_nor_infinity(focal_loss: Loss) -> None:
    """A hopeless sample costs its logit, as in cross entropy. A perfect one costs nothing."""
    hopeless_then_perfect = torch.tensor([-200.0, 200.0, 200.0, -200.0])
    targets = torch.tensor([1.0, 0.0, 1.0, 0.0])

    for gamma in (0.5, 2.0):
        losses, gradient = value_and_gradient(
            focal_loss, hopeless_then_perfect, targets, gamma=gamma, reduction="none"
        )
        assert agree(losses, [200.0, 200.0, 0.0, 0.0])
        assert agree(gradient, [-1.0, 1.0, 0.0, 0.0])


@spec("CLAIM-15", violated_by=[gamma_ignored, gamma_off_by_one])
def test_the_best_prediction_under_gamma_two_is_not_the_true_share(
    focal_loss: Loss, observe: Observe
) -> None:
    """Where 10 % are positive and the inputs say nothing more, the best answer should be 10 %."""
    share = 0.1
    probabilities = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    logits = torch.logit(probabilities)

    def best_prediction(gamma: float) -> float:
        of_a_positive, of_a_negative = (
            focal_loss(logits, torch.full_like(logits, target), gamma=gamma, reduction="none")
            for target in (1.0, 0.0)
        )
        expected_loss = share * of_a_positive + (1 - share) * of_a_negative
        return probabilities[expected_loss.argmin()].item()

    observe("best prediction for gamma = 2", best_prediction(gamma=2.0))
    assert best_prediction(gamma=0.0) == pytest.approx(share, abs=0.0005)
    assert best_prediction(gamma=2.0) > 0.3


@spec("CLAIM-15", violated_by=[gamma_ignored])
def test_a_detector_trained_with_gamma_two_announces_too_many_eights(
    focal_loss: Loss, observe: Observe
) -> None:
    """No weight favours the eights here: the focal loss only doubts whatever is likely."""
    images, targets, _, test_targets = eights()
    whole_set = [(images, targets)] * STEPS
    true_share = test_targets.mean().item()

    without_focus = predicted_share(
        logits_after_training(whole_set, partial(focal_loss, gamma=0.0))
    )
    with_focus = predicted_share(logits_after_training(whole_set, partial(focal_loss, gamma=2.0)))

    observe("shares", {"gamma = 0": without_focus, "gamma = 2": with_focus})
    assert without_focus == pytest.approx(true_share, abs=0.02)
    assert with_focus > 0.18
