"""Class weights and label smoothing in cross entropy.

At the end you know what a weighted mean divides by, what label smoothing adds, and that all the
arguments of cross entropy follow one formula. Logits have shape (N, C) or (N, C, d1, ...): N
samples, C classes. A target is either a class index for each sample, shape (N) or (N, d1, ...), or
a probability q for each class, of the logits' shape.
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

CROSS_ENTROPY_PAGE = "https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html"

CROSS_ENTROPIES = [F.cross_entropy, classification.cross_entropy]

REDUCTIONS = ["none", "mean", "sum"]
SHAPES = [(0, 3), (1, 1), (1, 4), (5, 3), (2, 3, 4), (2, 3, 0), (2, 3, 2, 2)]
SMOOTHINGS = [0.0, 0.1, 0.5, 1.0]

# Probabilities of three classes for two samples, and the logits that give them.
P = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]], dtype=torch.float64)
LOGITS = P.log()


@st.composite
def logits_and_classes(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Logits from -10 to 10, or up to 10,000; and a class index for each sample and place."""
    shape, size, dtype = (
        draw(st.sampled_from(SHAPES)),
        draw(st.sampled_from([10.0, 1e4])),
        draw(dtypes()),
    )
    random = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    logits = torch.empty(shape, dtype=dtype).uniform_(-size, size, generator=random)
    classes = torch.randint(shape[1], shape[:1] + shape[2:], generator=random)
    return logits, classes


def largest(logits: Tensor) -> float:
    """The largest absolute score: a difference of scores is rounded in this size."""
    return max([1.0, *logits.abs().flatten().tolist()])


# ---------------------------------------------------------------------------------------------
# Class weights


def divides_by_n(input: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Divides by the number of samples for both kinds of targets."""
    return F.cross_entropy(input, target, weight, reduction="sum") / len(input)


def divides_by_weights(input: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Divides by the sum of the targets' weights for both kinds of targets."""
    q = target if target.is_floating_point() else F.one_hot(target, len(weight)).double()
    return F.cross_entropy(input, target, weight, reduction="sum") / (q * weight).sum()


@rule(
    "LOSS-10",
    "With class weights, the mean divides by the sum of the targets' weights for class indices, but"
    " by the number of samples for class probabilities.",
    kind="contract",
    source=CROSS_ENTROPY_PAGE,
    subject=CROSS_ENTROPIES,
    violated_by=[divides_by_n, divides_by_weights],
    consequence="the same targets written as one-hot probabilities change the loss, and with it the"
    " size of every step, by the mean weight of the targets",
)
def test_the_weighted_mean_divides_by_weights_for_indices_and_by_n_for_probabilities(
    cross_entropy: Loss,
) -> None:
    """The samples are of class 0 (weight 1) and class 2 (weight 4): 5/2 times the loss."""
    weight = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    index = torch.tensor([0, 2])
    weighted_sum = -1 * math.log(0.5) - 4 * math.log(0.3)

    assert agree(cross_entropy(LOGITS, index, weight), weighted_sum / (1 + 4))
    assert agree(cross_entropy(LOGITS, F.one_hot(index, 3).double(), weight), weighted_sum / 2)


# ---------------------------------------------------------------------------------------------
# Label smoothing


def spreads_over_the_others(
    input: Tensor, target: Tensor, label_smoothing: float = 0.0, **options: Any
) -> Tensor:
    """Gives the smoothing to the other classes only."""
    is_target = F.one_hot(target, input.shape[1]).double()
    share = label_smoothing / (input.shape[1] - 1)
    q = (1 - label_smoothing) * is_target + share * (1 - is_target)
    return F.cross_entropy(input, q, **options)


def no_smoothing(
    input: Tensor, target: Tensor, label_smoothing: float = 0.0, **options: Any
) -> Tensor:
    """Takes label_smoothing, and does nothing with it."""
    del label_smoothing
    return F.cross_entropy(input, target, **options)


@rule(
    "LOSS-11",
    "Label smoothing s mixes the target with the uniform one: the loss is (1 - s) times the cross"
    " entropy plus s times the mean of -log(p) over all classes.",
    kind="contract",
    source=CROSS_ENTROPY_PAGE,
    subject=CROSS_ENTROPIES,
    violated_by=[spreads_over_the_others, no_smoothing],
    consequence="a smoothed loss does not go to 0: with s = 0.1 and 10 classes 0.500 is the best",
)
def test_smoothing_mixes_the_target_with_the_uniform_one(cross_entropy: Loss) -> None:
    """The true class keeps its share of the uniform part: it is left with 1 - s + s / C."""
    target = torch.tensor([0, 1])
    true_class = -(math.log(0.5) + math.log(0.6)) / 2
    all_classes = -LOGITS.mean().item()  # LOGITS are the logarithms of P

    for s in SMOOTHINGS:
        loss = cross_entropy(LOGITS, target, label_smoothing=s)

        assert agree(loss, (1 - s) * true_class + s * all_classes)


@spec("LOSS-11", violated_by=[spreads_over_the_others, no_smoothing])
def test_the_best_smoothed_loss_is_the_entropy_of_the_smoothed_target(
    cross_entropy: Loss, observe: Observe
) -> None:
    """With s = 0.1 and 10 classes: 0.91 for the true class, 0.01 for each of 9 others."""
    q = torch.tensor([[0.91, *[0.01] * 9]], dtype=torch.float64)
    entropy = -0.91 * math.log(0.91) - 9 * 0.01 * math.log(0.01)

    loss, gradient = value_and_gradient(
        cross_entropy, q.log(), torch.tensor([0]), label_smoothing=0.1
    )
    observe("best loss", loss)

    assert agree(loss, entropy)
    assert agree(gradient, torch.zeros(1, 10))


def any_smoothing(
    input: Tensor, target: Tensor, label_smoothing: float = 0.0, **options: Any
) -> Tensor:
    """Takes the nearest smoothing that makes sense."""
    return F.cross_entropy(input, target, label_smoothing=min(label_smoothing, 1.0), **options)


@spec("LOSS-11", subject=F.cross_entropy, violated_by=[any_smoothing])
def test_a_smoothing_above_1_is_refused(cross_entropy: Loss) -> None:
    with pytest.raises(RuntimeError):
        cross_entropy(LOGITS, torch.tensor([0, 1]), label_smoothing=1.5)


# ---------------------------------------------------------------------------------------------
# All arguments together


def ignored_targets_are_smoothed(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Gives ignored samples their uniform part."""
    s, reduction = options.pop("label_smoothing"), options["reduction"]
    loss = F.cross_entropy(input, target, label_smoothing=s, **options)
    if target.is_floating_point() or reduction != "sum":
        return loss
    ignored = target == options["ignore_index"]
    return loss - s * (F.log_softmax(input, dim=1).mean(dim=1) * ignored).sum()


def weight_without_smoothing(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Does not weigh the uniform part."""
    s = options.pop("label_smoothing")
    plain = F.cross_entropy(input, target, **options)
    options["weight"] = None
    return (1 - s) * plain + s * F.cross_entropy(input, target, label_smoothing=1.0, **options)


def smooths_indices_only(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Takes probabilities as they are."""
    if target.is_floating_point():
        options.pop("label_smoothing")
    return F.cross_entropy(input, target, **options)


@spec(
    "LOSS-11",
    subject=F.cross_entropy,
    violated_by=[ignored_targets_are_smoothed, weight_without_smoothing, smooths_indices_only],
)
@given(
    problem=logits_and_classes(),
    probabilities=st.booleans(),
    ignore_index=st.sampled_from([-100, 0]),
    weighted=st.booleans(),
    smoothing=st.sampled_from(SMOOTHINGS),
)
def test_value_and_gradient_follow_the_formula_for_all_arguments_together(
    cross_entropy: Loss,
    device: torch.device,
    problem: tuple[Tensor, Tensor],
    probabilities: bool,
    ignore_index: int,
    weighted: bool,
    smoothing: float,
) -> None:
    """Weights apply to the smoothed target, and an ignored sample is left out of every part."""
    logits, target = (on(device, tensor) for tensor in problem)
    options: dict[str, Any] = {"label_smoothing": smoothing}
    if weighted:
        options["weight"] = torch.linspace(0.5, 2, logits.shape[1]).to(logits)
    if probabilities:
        target = torch.linspace(0, 1, logits.numel()).view(logits.shape).to(logits)
    else:
        options["ignore_index"] = ignore_index

    for reduction in REDUCTIONS:
        loss, gradient = value_and_gradient(
            cross_entropy, logits, target, reduction=reduction, **options
        )

        expected = value_and_gradient(
            classification.cross_entropy, logits, target, reduction=reduction, **options
        )
        # A weight is at most 2, and each of at most 8 samples has up to 4 terms.
        assert agree(loss, expected[0], ulps=64, scale=2 * largest(logits))
        assert agree(gradient, expected[1], ulps=64)


class ModuleThatForgets(nn.CrossEntropyLoss):
    """A module that is given arguments, and calls its function without them."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(input, target, reduction=self.reduction)


@spec("LOSS-11", subject=nn.CrossEntropyLoss, violated_by=[ModuleThatForgets])
def test_the_module_is_the_function_with_its_arguments_kept(
    CrossEntropyLoss: type[nn.Module],
) -> None:
    target = torch.tensor([0, 2])
    arguments = {
        "weight": torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64),
        "ignore_index": 2,
        "reduction": "sum",
        "label_smoothing": 0.1,
    }

    assert CrossEntropyLoss()(LOGITS, target) == F.cross_entropy(LOGITS, target)
    given = CrossEntropyLoss(**arguments)(LOGITS, target)
    assert given == F.cross_entropy(LOGITS, target, **arguments)  # type: ignore[arg-type]
