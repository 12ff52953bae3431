"""Binary cross entropy on logits: the loss of a classifier with two classes.

At the end you know its formula, its gradient, and what weight and pos_weight do. A logit z is any
real number; the probability of class 1 is p = sigmoid(z) = 1 / (1 + exp(-z)). The target y is 1
for class 1, 0 for class 0, or a probability between them ("soft").
"""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from reference.losses import binary
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.strategies import dtypes
from specs.losses.gradients import Loss, on, value_and_gradient

LOGITS_PAGE = "https://docs.pytorch.org/docs/stable/generated/torch.nn.BCEWithLogitsLoss.html"

ON_LOGITS = [F.binary_cross_entropy_with_logits, binary.binary_cross_entropy_with_logits]

REDUCTIONS = ["none", "mean", "sum"]
SHAPES = [(0,), (1,), (5,), (0, 3), (1, 1), (4, 3), (2, 3, 2)]  # empty and size-one among them


@st.composite
def logits_and_targets(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Logits from -10 to 10 and targets from 0 to 1: hard ones (0 or 1) or soft ones."""
    shape, dtype = draw(st.sampled_from(SHAPES)), draw(dtypes())
    random = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    logits = torch.empty(shape, dtype=dtype).uniform_(-10, 10, generator=random)
    targets = torch.rand(shape, dtype=dtype, generator=random)
    return logits, targets.round() if draw(st.booleans()) else targets


# ---------------------------------------------------------------------------------------------
# One formula, two losses


def sigmoid_twice(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Applies a sigmoid to the logits, and then the loss that applies its own."""
    return F.binary_cross_entropy_with_logits(torch.sigmoid(input), target, **options)


def positives_only(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Forgets the half of the formula that is about class 0."""
    losses = target * F.softplus(-input)
    return {"none": losses, "mean": losses.mean(), "sum": losses.sum()}[reduction]


@rule(
    "LOSS-01",
    "Binary cross entropy with logits is the binary cross entropy of sigmoid(logits), computed in"
    " one step: for moderate logits the two are equal up to rounding.",
    kind="contract",
    source=LOGITS_PAGE,
    subject=ON_LOGITS,
    violated_by=[sigmoid_twice, positives_only],
)
@given(problem=logits_and_targets(), reduction=st.sampled_from(REDUCTIONS))
def test_on_moderate_logits_both_losses_are_equal(
    binary_cross_entropy_with_logits: Loss, problem: tuple[Tensor, Tensor], reduction: str
) -> None:
    """The sigmoid belongs to the loss, so that it need not belong to the model."""
    logits, targets = (tensor.double() for tensor in problem)

    in_one_step = binary_cross_entropy_with_logits(logits, targets, reduction=reduction)

    in_two_steps = F.binary_cross_entropy(torch.sigmoid(logits), targets, reduction=reduction)
    # p is rounded by eps. Near p = 1 that is a share of eps / (1 - p) = eps * (1 + exp(z)) of
    # 1 - p, and its logarithm is off by as much: eps * exp(10) for each of at most 12 elements.
    assert agree(in_one_step, in_two_steps, ulps=12, scale=math.exp(10))


def overflows(input: Tensor) -> Tensor:
    """exp(z) / (1 + exp(z)): infinity over infinity for large z."""
    return input.exp() / (1 + input.exp())


def of_doubled_logits(input: Tensor) -> Tensor:
    """(1 + tanh(z)) / 2, which is the sigmoid of 2z."""
    return (1 + torch.tanh(input)) / 2


@spec(
    "LOSS-01",
    subject=[torch.sigmoid, binary.sigmoid],
    violated_by=[overflows, of_doubled_logits],
)
def test_the_sigmoid_turns_any_logit_into_a_probability(sigmoid: Loss) -> None:
    """1 / (1 + exp(-z)), with derivative p * (1 - p); a logit of log(3) means odds of 3 to 1."""
    logits = torch.tensor([-1000.0, -math.log(3), 0.0, math.log(3), 1000.0], dtype=torch.float64)

    p, gradient = value_and_gradient(sigmoid, logits)

    assert agree(p, [0.0, 0.25, 0.5, 0.75, 1.0])
    assert agree(gradient, [0.0, 0.25 * 0.75, 0.5 * 0.5, 0.75 * 0.25, 0.0])


def gradient_of_squared_error(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Has the right value, and the gradient of (p - y) ** 2."""
    loss = F.binary_cross_entropy_with_logits(input, target, **options)
    surrogate = F.mse_loss(torch.sigmoid(input), target, reduction=options["reduction"])
    return surrogate + (loss - surrogate).detach()


@spec("LOSS-01", violated_by=[gradient_of_squared_error, sigmoid_twice])
def test_the_gradient_is_the_predicted_probability_minus_the_target(
    binary_cross_entropy_with_logits: Loss,
) -> None:
    """A mistake pulls with up to 1, whatever the logit; no factor can vanish."""
    logits = torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0])
    targets = torch.tensor([1.0, 0.0, 1.0, 0.25, 0.0])

    _, gradient = value_and_gradient(
        binary_cross_entropy_with_logits, logits, targets, reduction="sum"
    )

    probabilities = [1 / (1 + math.exp(-z)) for z in logits.tolist()]
    assert agree(gradient, [p - y for p, y in zip(probabilities, targets.tolist(), strict=True)])


def drops_weight(
    input: Tensor, target: Tensor, weight: Tensor | None = None, **options: Any
) -> Tensor:
    """Takes weights, and does nothing with them."""
    del weight
    return F.binary_cross_entropy_with_logits(input, target, **options)


def pos_weight_on_all(
    input: Tensor, target: Tensor, pos_weight: Tensor | None = None, **options: Any
) -> Tensor:
    """Applies the weight of class 1 to class 0 too."""
    factor = 1.0 if pos_weight is None else pos_weight
    reduction = options.pop("reduction")
    losses = F.binary_cross_entropy_with_logits(input, target, reduction="none", **options) * factor
    return {"none": losses, "mean": losses.mean(), "sum": losses.sum()}[reduction]


@spec(
    "LOSS-01",
    subject=F.binary_cross_entropy_with_logits,
    violated_by=[drops_weight, pos_weight_on_all, gradient_of_squared_error],
)
@given(problem=logits_and_targets(), reduction=st.sampled_from(REDUCTIONS), weighted=st.booleans())
def test_value_and_gradient_follow_the_formula_with_and_without_weights(
    binary_cross_entropy_with_logits: Loss,
    device: torch.device,
    problem: tuple[Tensor, Tensor],
    reduction: str,
    weighted: bool,
) -> None:
    """weight is a factor for each element, pos_weight for the part of class 1 in each column."""
    logits, targets = (on(device, tensor) for tensor in problem)
    options: dict[str, Any] = {"reduction": reduction}
    if weighted:
        options["weight"] = torch.linspace(0.5, 2, logits.numel()).view(logits.shape).to(logits)
        options["pos_weight"] = torch.linspace(1, 4, logits.shape[-1]).to(logits)

    loss, gradient = value_and_gradient(
        binary_cross_entropy_with_logits, logits, targets, **options
    )

    expected = value_and_gradient(
        binary.binary_cross_entropy_with_logits, logits, targets, **options
    )
    # One element is at most 10 (its logit) * 4 * 2 (its weights); a sum has up to 12 of them.
    assert agree(loss, expected[0], ulps=16, scale=10 * 4 * 2)
    assert agree(gradient, expected[1], ulps=16, scale=4 * 2)


def mean_over_weights(
    input: Tensor, target: Tensor, pos_weight: Tensor | None = None, **options: Any
) -> Tensor:
    """Divides by the sum of the weights instead of the number of samples."""
    loss = F.binary_cross_entropy_with_logits(input, target, pos_weight=pos_weight, **options)
    if pos_weight is None or options["reduction"] != "mean":
        return loss
    return loss / torch.where(target == 1, pos_weight, 1.0).mean()


@spec("LOSS-01", violated_by=[pos_weight_on_all, mean_over_weights])
def test_pos_weight_counts_every_sample_of_class_1_that_many_times(
    binary_cross_entropy_with_logits: Loss,
) -> None:
    """pos_weight = 3 costs what showing each positive three times costs; N stays what it was."""
    logits, targets = torch.tensor([0.5, -2.0, 1.0]), torch.tensor([1.0, 0.0, 0.0])
    logits_repeated = torch.tensor([0.5, 0.5, 0.5, -2.0, 1.0])
    targets_repeated = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0])
    three = torch.tensor(3.0)

    loss = binary_cross_entropy_with_logits
    repeated = loss(logits_repeated, targets_repeated, reduction="sum")

    assert agree(loss(logits, targets, pos_weight=three, reduction="sum"), repeated)
    assert agree(loss(logits, targets, pos_weight=three, reduction="mean"), repeated / 3)


class LossThatForgets(nn.BCEWithLogitsLoss):
    """A module that is given weights, and calls its function without them."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(input, target, reduction=self.reduction)


@spec("LOSS-01", subject=nn.BCEWithLogitsLoss, violated_by=[LossThatForgets])
def test_the_module_is_the_function_with_its_arguments_kept(
    BCEWithLogitsLoss: type[nn.Module],
) -> None:
    logits, targets = torch.tensor([[0.5, -2.0]]), torch.tensor([[1.0, 0.0]])
    weight, pos_weight = torch.tensor([[2.0, 3.0]]), torch.tensor([5.0, 7.0])
    of = F.binary_cross_entropy_with_logits

    plain = BCEWithLogitsLoss()
    weighted = BCEWithLogitsLoss(weight=weight, reduction="none", pos_weight=pos_weight)

    assert plain(logits, targets) == of(logits, targets)
    expected = of(logits, targets, weight=weight, reduction="none", pos_weight=pos_weight)
    assert agree(weighted(logits, targets), expected, ulps=0)
