"""Regression losses: what a residual costs, and how many costs become one number.

At the end you know what each reduction divides by, what goes wrong when a learning rate meets the
other reduction, and the formulas of mse_loss, l1_loss, smooth_l1_loss and huber_loss, with their
gradients. A residual d is input - target, for one element.
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
from reference.losses import regression
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe
from specs.harness.strategies import dtypes, shapes, tensors
from specs.losses.gradients import Loss, on, value_and_gradient

DOCS = "https://docs.pytorch.org/docs/stable/generated/"
MSE_PAGE = f"{DOCS}torch.nn.MSELoss.html"

MSE = [F.mse_loss, regression.mse_loss]
L1 = [F.l1_loss, regression.l1_loss]
HUBER = [F.huber_loss, regression.huber_loss]

REDUCTIONS = ["none", "sum", "mean"]

# Inputs and targets for the properties: two tensors of one shape, stacked. There are 0 to 4 rows
# and 0 to 4 columns, so empty and size-one batches are among them. The special numbers make
# residuals of exactly 0 and exactly 1, where the formulas change.
PAIRS = tensors(
    dtype=dtypes(),
    shape=shapes().map(lambda shape: (2, *shape)),
    special=(0.0, 1.0, -1.0),
)

# Where the parabola ends and the line begins. Left out, it is 1.
BETAS: list[dict[str, float]] = [{}] + [{"beta": beta} for beta in (0.0, 0.1, 0.5, 1.0, 7.5)]
DELTAS: list[dict[str, float]] = [{}] + [{"delta": delta} for delta in (0.1, 0.5, 1.0, 7.5)]


# ---------------------------------------------------------------------------------------------
# Reductions: from one loss for each element to one number


def mean_over_samples(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Divides by the number of rows, where the mean is over all elements."""
    losses = F.mse_loss(input, target, reduction="none")
    return {"none": losses, "sum": losses.sum(), "mean": losses.sum() / len(losses)}[reduction]


def sum_unless_told(input: Tensor, target: Tensor, reduction: str = "sum") -> Tensor:
    """Sums by default."""
    return F.mse_loss(input, target, reduction=reduction)


def none_keeps_rows(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Gives one loss for each row instead of one for each element."""
    losses = F.mse_loss(input, target, reduction=reduction)
    return losses.sum(dim=1) if reduction == "none" else losses


@rule(
    "LOSS-15",
    'reduction="mean", the default, divides the summed losses by the number of elements;'
    ' "sum" divides by nothing; "none" keeps one loss for each element.',
    kind="contract",
    source=MSE_PAGE,
    subject=MSE,
    violated_by=[mean_over_samples, sum_unless_told, none_keeps_rows],
    consequence="on 455 samples a sum at the learning rate of the mean takes steps 455 times as"
    " long, and diverges",
)
def test_the_mean_counts_elements_and_not_samples(mse_loss: Loss) -> None:
    """The mean of 2 samples with 3 outputs each divides by 6."""
    inputs = torch.zeros(2, 3)
    targets = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])

    assert agree(mse_loss(inputs, targets, reduction="none"), [[1, 4, 9], [16, 25, 36]], ulps=0)
    assert mse_loss(inputs, targets, reduction="sum") == 1 + 4 + 9 + 16 + 25 + 36
    assert agree(mse_loss(inputs, targets, reduction="mean"), 91 / 6)
    assert agree(mse_loss(inputs, targets), 91 / 6)


def empty_mean_of_zero(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Calls the mean of nothing 0."""
    return F.mse_loss(input, target, reduction=reduction).nan_to_num(0.0)


@spec("LOSS-15", violated_by=[empty_mean_of_zero])
def test_the_mean_of_an_empty_batch_is_nan_and_its_sum_is_zero(mse_loss: Loss) -> None:
    nothing = torch.empty(0, 3)

    assert math.isnan(mse_loss(nothing, nothing))  # 0 / 0
    assert mse_loss(nothing, nothing, reduction="sum") == 0.0


def anything_else_is_a_mean(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Takes a reduction that it does not know for the mean."""
    known = reduction if reduction in REDUCTIONS else "mean"
    return F.mse_loss(input, target, reduction=known)


@spec("LOSS-15", violated_by=[anything_else_is_a_mean])
def test_an_unknown_reduction_is_refused(mse_loss: Loss, observe: Observe) -> None:
    with pytest.raises(ValueError, match="batchmean") as refusal:
        mse_loss(torch.zeros(3), torch.ones(3), reduction="batchmean")
    observe("unknown reduction", refusal.value)


def sum_that_divides(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Divides the sum by the number of samples, as a mean does."""
    loss = F.mse_loss(input, target, reduction=reduction)
    return loss / len(input) if reduction == "sum" else loss


def weights_after_20_steps(loss_function: Loss, reduction: str, lr: float) -> Tensor:
    """Weights of a linear regression on the 455 tumours of breast cancer, from 0, by plain SGD."""
    split = data.breast_cancer()
    model = nn.Linear(30, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(20):
        optimizer.zero_grad()
        predicted = model(split.train_inputs).squeeze(1)
        loss_function(predicted, split.train_targets, reduction=reduction).backward()
        optimizer.step()
    return model.weight.detach()


@spec("LOSS-15", violated_by=[sum_that_divides])
def test_a_sum_trains_like_the_mean_only_at_a_rate_divided_by_the_number_of_elements(
    mse_loss: Loss,
) -> None:
    """At a learning rate that suits the mean, the sum takes steps 455 times as long."""
    by_mean = weights_after_20_steps(mse_loss, "mean", lr=0.05)
    by_sum = weights_after_20_steps(mse_loss, "sum", lr=0.05 / 455)
    by_sum_too_fast = weights_after_20_steps(mse_loss, "sum", lr=0.05)

    assert by_mean.abs().max() < 1.0
    # The same 20 steps, up to float32 rounding in sums over 455 samples.
    assert agree(by_sum, by_mean, ulps=200)
    assert not by_sum_too_fast.abs().max() < 1e6  # it diverged


def size_average_is_ignored(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,  # noqa: ARG001
    reduce: bool | None = None,  # noqa: ARG001
    reduction: str = "mean",
) -> Tensor:
    """Takes the two old flags, and does nothing with them."""
    return F.mse_loss(input, target, reduction=reduction)


@spec("LOSS-15", subject=F.mse_loss, violated_by=[size_average_is_ignored])
@pytest.mark.filterwarnings("ignore:size_average and reduce args:UserWarning")
def test_the_old_flags_are_names_for_the_reductions(mse_loss: Loss) -> None:
    """Where both are given, the old flags win over `reduction`."""
    inputs, targets = torch.zeros(3), torch.tensor([1.0, 2.0, 3.0])

    assert mse_loss(inputs, targets, size_average=False) == 1 + 4 + 9
    assert mse_loss(inputs, targets, reduce=False).tolist() == [1, 4, 9]
    assert mse_loss(inputs, targets, size_average=False, reduction="mean") == 1 + 4 + 9


@spec("LOSS-15", subject=F.mse_loss, violated_by=[size_average_is_ignored])
def test_the_old_flags_warn_that_they_are_deprecated(mse_loss: Loss, observe: Observe) -> None:
    with pytest.warns(UserWarning, match="^size_average and reduce args will be dep") as caught:
        mse_loss(torch.zeros(3), torch.ones(3), size_average=False)
    observe("deprecation", caught[0])


# Which number a weighted mean divides by. The weights of the test sum to 8, over 4 elements.
WEIGHTS = torch.tensor([1.0, 1.0, 2.0, 4.0])


def mse_over_elements(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Divides the weighted squares by the number of elements."""
    return F.mse_loss(input, target, **options) * WEIGHTS.mean()


@spec("LOSS-15", violated_by=[mse_over_elements])
def test_a_weighted_mse_divides_by_the_sum_of_the_weights(mse_loss: Loss) -> None:
    """Only the ratios of the weights count."""
    weighted = mse_loss(torch.zeros(4), torch.tensor([1.0, 0.0, 3.0, 2.0]), weight=WEIGHTS)

    assert agree(weighted, (1 * 1 + 1 * 0 + 2 * 9 + 4 * 4) / (1 + 1 + 2 + 4))


def l1_over_elements(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Divides the weighted distances by the number of elements."""
    return F.l1_loss(input, target, **options) * WEIGHTS.mean()


@spec("LOSS-15", subject=L1, violated_by=[l1_over_elements])
def test_a_weighted_l1_divides_by_the_sum_of_the_weights(l1_loss: Loss) -> None:
    weighted = l1_loss(torch.zeros(4), torch.tensor([1.0, 0.0, 3.0, 2.0]), weight=WEIGHTS)

    assert agree(weighted, (1 * 1 + 1 * 0 + 2 * 3 + 4 * 2) / (1 + 1 + 2 + 4))


def huber_over_weights(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Divides the weighted losses by the sum of the weights."""
    return F.huber_loss(input, target, **options) / WEIGHTS.mean()


@spec("LOSS-15", subject=HUBER, violated_by=[huber_over_weights])
def test_a_weighted_huber_divides_by_the_number_of_elements(huber_loss: Loss) -> None:
    """Not as mse_loss and l1_loss do: doubling all weights doubles this loss, but not theirs."""
    weighted = huber_loss(torch.zeros(4), torch.tensor([1.0, 0.0, 3.0, 2.0]), weight=WEIGHTS)

    # Residuals of 1, 0, 3 and 2 cost 0.5, 0, 2.5 and 1.5 (delta is 1).
    assert agree(weighted, (1 * 0.5 + 1 * 0.0 + 2 * 2.5 + 4 * 1.5) / 4)


# ---------------------------------------------------------------------------------------------
# The four formulas, in value and gradient. A sum over at most 16 elements rounds 16 times.


def half_of_the_square(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Leaves the factor 1/2 of least squares in."""
    return F.mse_loss(input, target, reduction=reduction) / 2


def square_with_half_its_slope(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Has the right value and the gradient of half the square."""
    loss = F.mse_loss(input, target, reduction=reduction)
    return loss / 2 + loss.detach() / 2


@rule(
    "REG-01",
    "mse_loss is d ** 2 for a residual d, without a factor 1/2: its gradient is 2 * d.",
    kind="contract",
    source=MSE_PAGE,
    subject=F.mse_loss,
    violated_by=[half_of_the_square, square_with_half_its_slope, mean_over_samples],
)
@given(pair=PAIRS, reduction=st.sampled_from(REDUCTIONS))
def test_mse_is_the_square_of_the_residual(
    mse_loss: Loss, device: torch.device, pair: Tensor, reduction: str
) -> None:
    """Equal to the reference for float32 and float64, also for empty and size-one batches."""
    loss, gradient = value_and_gradient(mse_loss, *on(device, pair), reduction=reduction)

    expected = value_and_gradient(regression.mse_loss, *pair, reduction=reduction)
    assert agree(loss, expected[0])
    assert agree(gradient, expected[1])


def slope_one_at_zero(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Counts a residual of 0 as positive: its slope is 1."""
    losses = torch.where(input >= target, input - target, target - input)
    return {"none": losses, "sum": losses.sum(), "mean": losses.mean()}[reduction]


@rule(
    "REG-02",
    "l1_loss is abs(d): its gradient is the sign of the residual, and 0 at a residual of 0.",
    kind="contract",
    source=f"{DOCS}torch.nn.L1Loss.html",
    subject=F.l1_loss,
    violated_by=[slope_one_at_zero],
)
@given(pair=PAIRS, reduction=st.sampled_from(REDUCTIONS))
def test_l1_is_the_distance(
    l1_loss: Loss, device: torch.device, pair: Tensor, reduction: str
) -> None:
    """Far from the target and close to it, every residual pulls equally hard."""
    loss, gradient = value_and_gradient(l1_loss, *on(device, pair), reduction=reduction)

    expected = value_and_gradient(regression.l1_loss, *pair, reduction=reduction)
    assert agree(loss, expected[0])
    assert agree(gradient, expected[1])


def smooth_l1_forgets_beta(
    input: Tensor, target: Tensor, reduction: str = "mean", beta: float = 1.0
) -> Tensor:
    """Does not divide the parabola by beta."""
    return F.smooth_l1_loss(input, target, reduction=reduction, beta=beta) * (beta or 1.0)


def smooth_l1_at_beta_one(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    beta: float = 1.0,  # noqa: ARG001
) -> Tensor:
    """Takes beta, and works with 1."""
    return F.smooth_l1_loss(input, target, reduction=reduction)


@rule(
    "REG-03",
    "smooth_l1_loss is d ** 2 / (2 * beta) for abs(d) < beta and abs(d) - beta / 2 beyond: its"
    " slope is 1 far out, for every beta; beta = 0 is the L1 loss.",
    kind="contract",
    source=f"{DOCS}torch.nn.SmoothL1Loss.html",
    subject=F.smooth_l1_loss,
    violated_by=[smooth_l1_forgets_beta, smooth_l1_at_beta_one],
)
@given(pair=PAIRS, reduction=st.sampled_from(REDUCTIONS), option=st.sampled_from(BETAS))
def test_smooth_l1_is_a_parabola_of_width_beta_between_two_lines_of_slope_one(
    smooth_l1_loss: Loss,
    device: torch.device,
    pair: Tensor,
    reduction: str,
    option: dict[str, float],
) -> None:
    """beta sets where the parabola ends; the lines beyond stay as steep as those of L1."""
    loss, gradient = value_and_gradient(
        smooth_l1_loss, *on(device, pair), reduction=reduction, **option
    )

    expected = value_and_gradient(regression.smooth_l1_loss, *pair, reduction=reduction, **option)
    assert agree(loss, expected[0])
    assert agree(gradient, expected[1])


def huber_with_a_jump(
    input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0
) -> Tensor:
    """Forgets the constant that joins the line to the parabola; its gradient is right."""
    distances = (input - target).abs()
    losses = torch.where(distances < delta, distances**2 / 2, delta * distances)
    return {"none": losses, "sum": losses.sum(), "mean": losses.mean()}[reduction]


def huber_at_delta_one(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    delta: float = 1.0,  # noqa: ARG001
) -> Tensor:
    """Takes delta, and works with 1."""
    return F.huber_loss(input, target, reduction=reduction)


@rule(
    "REG-04",
    "huber_loss is d ** 2 / 2 for abs(d) < delta and delta * (abs(d) - delta / 2) beyond: its"
    " curvature is 1 near the target, for every delta; its slope is delta far out.",
    kind="contract",
    source=f"{DOCS}torch.nn.HuberLoss.html",
    subject=F.huber_loss,
    violated_by=[huber_with_a_jump, huber_at_delta_one],
)
@given(pair=PAIRS, reduction=st.sampled_from(REDUCTIONS), option=st.sampled_from(DELTAS))
def test_huber_is_half_the_square_between_two_lines_of_slope_delta(
    huber_loss: Loss,
    device: torch.device,
    pair: Tensor,
    reduction: str,
    option: dict[str, float],
) -> None:
    """delta sets where the parabola ends, and with it how steep the lines beyond are."""
    loss, gradient = value_and_gradient(
        huber_loss, *on(device, pair), reduction=reduction, **option
    )

    expected = value_and_gradient(regression.huber_loss, *pair, reduction=reduction, **option)
    assert agree(loss, expected[0])
    assert agree(gradient, expected[1])
