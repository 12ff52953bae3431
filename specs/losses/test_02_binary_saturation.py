"""Binary cross entropy on probabilities, and where it parts from the loss on logits.

At the end you know what the loss on probabilities does to a confident mistake, from which logit
on, and why no NaN tells you. A logit z is any real number; the probability of class 1 is
p = sigmoid(z) = 1 / (1 + exp(-z)). The target y is 1 for class 1, 0 for class 0, or between them.
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

from reference.losses import binary
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe
from specs.harness.strategies import dtypes
from specs.losses.gradients import Loss, on, value_and_gradient

PROBABILITIES_PAGE = "https://docs.pytorch.org/docs/stable/generated/torch.nn.BCELoss.html"

ON_LOGITS = [F.binary_cross_entropy_with_logits, binary.binary_cross_entropy_with_logits]
ON_PROBABILITIES = [F.binary_cross_entropy, binary.binary_cross_entropy]

REDUCTIONS = ["none", "mean", "sum"]
SHAPES = [(0,), (1,), (5,), (0, 3), (1, 1), (4, 3), (2, 3, 2)]  # empty and size-one among them


@st.composite
def probabilities_and_targets(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Probabilities from 0.0001 to 0.9999; targets from 0 to 1, hard ones (0 or 1) or soft ones."""
    shape, dtype = draw(st.sampled_from(SHAPES)), draw(dtypes())
    random = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    probabilities = torch.empty(shape, dtype=dtype).uniform_(0.0001, 0.9999, generator=random)
    targets = torch.rand(shape, dtype=dtype, generator=random)
    return probabilities, targets.round() if draw(st.booleans()) else targets


def infinite_at_the_ends(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Takes the logarithms as they are, minus infinity included."""
    losses = -(torch.xlogy(target, input) + torch.xlogy(1 - target, 1 - input))
    return losses if options.get("reduction") == "none" else losses.mean()


def probabilities_moved_inwards(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Keeps p between 1e-7 and 1 - 1e-7, as other libraries do."""
    return F.binary_cross_entropy(input.clamp(1e-7, 1 - 1e-7), target, **options)


@rule(
    "LOSS-02",
    "Binary cross entropy on probabilities counts no logarithm below -100, and so a confident"
    " mistake loses its gradient; the form on logits keeps loss and gradient exact.",
    kind="contract",
    source=PROBABILITIES_PAGE,
    subject=ON_PROBABILITIES,
    violated_by=[infinite_at_the_ends, probabilities_moved_inwards],
    consequence="a logit of 20 for a sample of class 0 costs 100 instead of 20 in float32, and its"
    " gradient is 0 instead of 1",
)
def test_no_element_costs_more_than_100(binary_cross_entropy: Loss) -> None:
    """The logarithm of a probability that is 0 would be minus infinity."""
    p = torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0, 1e-30, 1e-44], dtype=torch.float64)
    y = torch.tensor([1.0, 0.0, 0.5, 0.0, 1.0, 1.0, 1.0], dtype=torch.float64)

    losses = binary_cross_entropy(p, y, reduction="none")

    # log(1e-30) = -69 is above -100, log(1e-44) = -101.3 is below.
    assert agree(losses, [100, 100, 50, 0, 0, 30 * math.log(10), 100])


def drops_weight(
    input: Tensor, target: Tensor, weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """Takes weights, and does nothing with them."""
    del weight
    return F.binary_cross_entropy(input, target, reduction=reduction)


def gradient_by_the_logit(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Has the right value, and p - y for a gradient: that is the derivative by the logit."""
    loss = F.binary_cross_entropy(input, target, **options)
    surrogate = F.mse_loss(input, target, reduction=options["reduction"]) / 2
    return surrogate + (loss - surrogate).detach()


def rounds_its_targets(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Makes hard targets of soft ones."""
    return F.binary_cross_entropy(input, target.round(), **options)


@spec(
    "LOSS-02",
    subject=F.binary_cross_entropy,
    violated_by=[drops_weight, rounds_its_targets, gradient_by_the_logit],
)
@given(
    problem=probabilities_and_targets(),
    reduction=st.sampled_from(REDUCTIONS),
    weighted=st.booleans(),
)
def test_between_the_ends_value_and_gradient_follow_the_formula(
    binary_cross_entropy: Loss,
    device: torch.device,
    problem: tuple[Tensor, Tensor],
    reduction: str,
    weighted: bool,
) -> None:
    """-(y * log(p) + (1 - y) * log(1 - p)); the derivative by p is (p - y) / (p * (1 - p))."""
    p, targets = (on(device, tensor) for tensor in problem)
    options: dict[str, Any] = {"reduction": reduction}
    if weighted:
        options["weight"] = torch.linspace(0.5, 2, p.numel()).view(p.shape).to(p)

    loss, gradient = value_and_gradient(binary_cross_entropy, p, targets, **options)

    expected = value_and_gradient(binary.binary_cross_entropy, p, targets, **options)
    # A logarithm is at most 10 and a weight 2. The derivative is compared in its own size.
    assert agree(loss, expected[0], ulps=16, scale=10 * 2)
    assert agree(gradient, expected[1], ulps=16)


class ModuleThatForgets(nn.BCELoss):
    """A module that is given weights, and calls its function without them."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy(input, target, reduction=self.reduction)


@spec("LOSS-02", subject=nn.BCELoss, violated_by=[ModuleThatForgets])
def test_the_module_is_the_function_with_its_arguments_kept(BCELoss: type[nn.Module]) -> None:
    p, y, weight = torch.tensor([0.3, 0.6]), torch.tensor([1.0, 0.0]), torch.tensor([2.0, 5.0])

    weighted_sum = BCELoss(weight=weight, reduction="sum")

    assert BCELoss()(p, y) == F.binary_cross_entropy(p, y)
    assert weighted_sum(p, y) == F.binary_cross_entropy(p, y, weight=weight, reduction="sum")


# ---------------------------------------------------------------------------------------------
# Confident mistakes

# For a sample of class 0: a logit up to which the loss on probabilities still learns, and one from
# which p is exactly 1, since 1 + exp(-z) is kept to 24 or 53 binary digits (24 * log(2) = 16.6,
# 53 * log(2) = 36.7).
LEARNS_AT = {torch.float32: 16.0, torch.float64: 27.0}
SATURATED_AT = {torch.float32: 17.0, torch.float64: 37.0}


def undoes_the_sigmoid(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Finds the logits behind the probabilities, and works with them."""
    logits = torch.logit(input.double(), eps=1e-12)
    return F.binary_cross_entropy_with_logits(logits, target.double(), **options)


@spec("LOSS-02", violated_by=[infinite_at_the_ends, undoes_the_sigmoid])
@given(dtype=dtypes())
def test_on_probabilities_a_confident_mistake_costs_100_and_teaches_nothing(
    binary_cross_entropy: Loss, dtype: torch.dtype
) -> None:
    """Where p rounds to 1 the loss jumps to 100, and its derivative by the logit falls to 0."""

    def at_logit(z: float) -> tuple[Tensor, Tensor]:
        return value_and_gradient(
            lambda logit, target: binary_cross_entropy(torch.sigmoid(logit), target),
            torch.tensor([z], dtype=dtype),
            torch.tensor([0.0], dtype=dtype),
        )

    loss_before, gradient_before = at_logit(LEARNS_AT[dtype])
    loss_after, gradient_after = at_logit(SATURATED_AT[dtype])

    assert abs(loss_before - LEARNS_AT[dtype]) < 1
    assert abs(gradient_before - 1) < 0.01
    assert loss_after == 100
    assert gradient_after == 0


def by_the_book(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """y * log(1 + exp(-z)) + (1 - y) * log(1 + exp(z)), where exp overflows."""
    losses = target * (1 + (-input).exp()).log() + (1 - target) * (1 + input.exp()).log()
    return {"none": losses, "mean": losses.mean(), "sum": losses.sum()}[reduction]


def in_two_steps(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """A sigmoid, then the loss on probabilities."""
    return F.binary_cross_entropy(torch.sigmoid(input), target, reduction=reduction)


@spec("LOSS-02", subject=ON_LOGITS, violated_by=[by_the_book, in_two_steps])
@given(size=st.sampled_from([20.0, 40.0, 89.0, 710.0, 1e4, 2.0**100]), dtype=dtypes())
def test_on_logits_a_mistake_costs_its_logit_and_teaches_in_full(
    binary_cross_entropy_with_logits: Loss, device: torch.device, size: float, dtype: torch.dtype
) -> None:
    """Also where exp(z) overflows: at 88.7 in float32, at 709.8 in float64."""
    logits = on(device, torch.tensor([size, -size, size, -size], dtype=dtype))
    targets = on(device, torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=dtype))

    losses, gradient = value_and_gradient(
        binary_cross_entropy_with_logits, logits, targets, reduction="none"
    )

    # Two mistakes, then two right answers. exp(-size), which is at most 2e-9, is the rest.
    rest = math.exp(-size)
    assert agree(losses, [size + rest, size + rest, rest, rest], ulps=4, scale=size)
    assert agree(gradient, [1 - rest, rest - 1, -rest, rest], ulps=4)


def symmetric(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Treats a target of 1 as a target of 0 with the opposite probability, and loses its digits."""
    one = torch.ones_like(input)
    p = torch.where(target == 1, one - input, input)
    return F.binary_cross_entropy(p, torch.zeros_like(target), **options)


@spec("LOSS-02", subject=F.binary_cross_entropy, violated_by=[symmetric])
def test_on_probabilities_class_1_and_class_0_fail_at_different_logits(
    binary_cross_entropy: Loss, observe: Observe
) -> None:
    """Near 0 floating point has digits to spare, near 1 it has not.

    For class 1 the loss stays right until exp(-z) overflows at -88.7; yet its gradient has faded
    long before, because the backward pass divides by p * (1 - p) or 1e-12, whichever is larger.
    """
    loss, gradient = value_and_gradient(
        lambda logits, y: binary_cross_entropy(torch.sigmoid(logits), y, reduction="none"),
        torch.tensor([20.0, -20.0, -60.0, -90.0]),
        torch.tensor([0.0, 1.0, 1.0, 1.0]),
    )
    observe("gradients", gradient)

    assert agree(loss, [100, 20, 60, 100])
    assert agree(gradient[:2], [0, -1])
    assert gradient[2].abs() < 1e-9
    assert gradient[3] == 0


def any_number(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Takes logits for probabilities, cut to 0..1."""
    return F.binary_cross_entropy(input.clamp(0, 1), target, **options)


@spec("LOSS-02", subject=F.binary_cross_entropy, violated_by=[any_number])
def test_logits_are_refused_where_probabilities_are_expected(binary_cross_entropy: Loss) -> None:
    """At least this mistake is loud, unless every logit happens to lie between 0 and 1."""
    for logit in (1.5, -0.1, math.nan):
        with pytest.raises(RuntimeError):
            binary_cross_entropy(torch.tensor([logit]), torch.tensor([1.0]))


# ---------------------------------------------------------------------------------------------
# A claim on trial


@rule(
    "CLAIM-01",
    "Binary cross entropy on sigmoid outputs gives NaN gradients for large logits.",
    kind="claim",
    verdict="false",
    source=PROBABILITIES_PAGE,
    subject=F.binary_cross_entropy,
    violated_by=[infinite_at_the_ends],
    consequence="there is no NaN to notice: the gradient is 0 and the sample is never learned",
)
@given(size=st.sampled_from([100.0, 800.0, 1e4]), dtype=dtypes())
def test_the_gradient_of_a_large_logit_is_a_silent_zero(
    binary_cross_entropy: Loss, size: float, dtype: torch.dtype
) -> None:
    """Right and wrong samples alike. NaN is what logarithms without the floor at -100 give."""
    loss, gradient = value_and_gradient(
        lambda logits, targets: binary_cross_entropy(torch.sigmoid(logits), targets),
        torch.tensor([size, -size, size, -size], dtype=dtype),
        torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=dtype),
    )

    assert loss == (100 + 100 + 0 + 0) / 4
    assert agree(gradient, [0.0, 0.0, 0.0, 0.0])
