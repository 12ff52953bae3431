"""Smooth L1, Huber and MSE: the same shape near the target, different prices for an outlier.

At the end you know that smooth_l1_loss and huber_loss are the same loss up to a factor, what that
factor does to a training, and when the Huber loss protects a reconstruction from outliers.

A residual d is input - target, for one element. A gradient here is the derivative of the loss by
the input: how hard the element pulls.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from reference import data
from reference.losses import regression
from reference.training import train_one_epoch
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe
from specs.harness.strategies import tensors
from specs.losses.gradients import Loss, value_and_gradient

DOCS = "https://docs.pytorch.org/docs/stable/generated/"

SMOOTH_L1 = [F.smooth_l1_loss, regression.smooth_l1_loss]
HUBER = [F.huber_loss, regression.huber_loss]

# Residuals of 1 to 8 elements, with 0 and the ends of some parabolas among them.
RESIDUALS = tensors(
    shape=st.tuples(st.integers(1, 8)), low=-20.0, high=20.0, special=(0.0, 0.5, -1.0, 2.0)
)
BETAS = st.sampled_from([0.1, 0.5, 1.0, 2.0, 7.5])


def losses_and_gradients(
    loss_function: Loss, residuals: Tensor | list[float], **options: float
) -> tuple[Tensor, Tensor]:
    """The loss of each residual, and its derivative by that residual."""
    inputs = torch.as_tensor(residuals)
    targets = torch.zeros_like(inputs)
    return value_and_gradient(loss_function, inputs, targets, reduction="none", **options)


# ---------------------------------------------------------------------------------------------
# One shape, two scales


def smooth_l1_is_huber(
    input: Tensor, target: Tensor, reduction: str = "mean", beta: float = 1.0
) -> Tensor:
    """Does not divide by beta: it is the Huber loss."""
    return F.huber_loss(input, target, reduction=reduction, delta=max(beta, 1e-6))


def smooth_l1_over_beta_twice(
    input: Tensor, target: Tensor, reduction: str = "mean", beta: float = 1.0
) -> Tensor:
    """Divides by beta once more."""
    return F.smooth_l1_loss(input, target, reduction=reduction, beta=beta) / (beta or 1.0)


@rule(
    "LOSS-13",
    "smooth_l1_loss with beta is huber_loss with delta = beta, divided by beta.",
    kind="contract",
    source=f"{DOCS}torch.nn.SmoothL1Loss.html",
    subject=F.smooth_l1_loss,
    violated_by=[smooth_l1_is_huber, smooth_l1_over_beta_twice],
    consequence="changing beta from 1 to 0.1 leaves the pull of an outlier at 1 under smooth L1;"
    " the same change of delta lowers it to 0.1 under Huber",
)
@given(residuals=RESIDUALS, beta=BETAS)
def test_smooth_l1_is_huber_divided_by_beta(
    smooth_l1_loss: Loss, residuals: Tensor, beta: float
) -> None:
    """Both are a parabola up to beta and a line beyond; only the scale differs."""
    losses, gradients = losses_and_gradients(smooth_l1_loss, residuals, beta=beta)

    huber, huber_gradients = losses_and_gradients(regression.huber_loss, residuals, delta=beta)
    assert agree(losses, huber / beta)
    assert agree(gradients, huber_gradients / beta)


def huber_is_smooth_l1(
    input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0
) -> Tensor:
    """Does not multiply by delta: it is smooth L1."""
    return F.smooth_l1_loss(input, target, reduction=reduction, beta=delta)


@spec("LOSS-13", subject=F.huber_loss, violated_by=[huber_is_smooth_l1])
@given(residuals=RESIDUALS, delta=BETAS)
def test_huber_is_smooth_l1_times_delta(huber_loss: Loss, residuals: Tensor, delta: float) -> None:
    losses, gradients = losses_and_gradients(huber_loss, residuals, delta=delta)

    smooth, smooth_gradients = losses_and_gradients(
        regression.smooth_l1_loss, residuals, beta=delta
    )
    assert agree(losses, smooth * delta)
    assert agree(gradients, smooth_gradients * delta)


# The limits, on residuals of -3, 0 and 2.
LIMIT_RESIDUALS = [-3.0, 0.0, 2.0]
L1 = [3.0, 0.0, 2.0]
HALF_MSE = [4.5, 0.0, 2.0]
NOTHING = [0.0, 0.0, 0.0]


@spec("LOSS-13", subject=SMOOTH_L1, violated_by=[smooth_l1_is_huber])
def test_smooth_l1_lies_between_l1_and_nothing(smooth_l1_loss: Loss) -> None:
    """A small beta gives L1, and beta = 0 is allowed. A large beta makes the loss vanish."""
    at_zero, slopes = losses_and_gradients(smooth_l1_loss, LIMIT_RESIDUALS, beta=0.0)
    assert agree(at_zero, L1, ulps=0)
    assert slopes.tolist() == [-1.0, 0.0, 1.0]

    assert agree(losses_and_gradients(smooth_l1_loss, LIMIT_RESIDUALS, beta=1e-30)[0], L1)
    assert agree(losses_and_gradients(smooth_l1_loss, LIMIT_RESIDUALS, beta=1e30)[0], NOTHING)


@spec("LOSS-13", subject=HUBER, violated_by=[huber_is_smooth_l1])
def test_huber_lies_between_nothing_and_half_of_mse(huber_loss: Loss) -> None:
    """A small delta makes the loss vanish. A large delta gives half of the squared residual."""
    assert agree(losses_and_gradients(huber_loss, LIMIT_RESIDUALS, delta=1e-30)[0], NOTHING)
    assert agree(losses_and_gradients(huber_loss, LIMIT_RESIDUALS, delta=1e30)[0], HALF_MSE)


def takes_any_beta(
    input: Tensor, target: Tensor, reduction: str = "mean", beta: float = 1.0
) -> Tensor:
    """Uses the size of a negative beta."""
    return F.smooth_l1_loss(input, target, reduction=reduction, beta=abs(beta))


@spec("LOSS-13", subject=SMOOTH_L1, violated_by=[takes_any_beta])
def test_smooth_l1_refuses_a_negative_beta(smooth_l1_loss: Loss, observe: Observe) -> None:
    with pytest.raises((RuntimeError, ValueError)) as refusal:
        smooth_l1_loss(torch.zeros(3), torch.ones(3), beta=-1.0)
    observe("negative beta", refusal.value)


def takes_delta_zero(
    input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0
) -> Tensor:
    """Gives 0 for delta = 0, which is the limit of the formula."""
    if delta == 0:
        return torch.zeros(())
    return F.huber_loss(input, target, reduction=reduction, delta=delta)


@spec("LOSS-13", subject=HUBER, violated_by=[takes_delta_zero])
def test_huber_refuses_a_delta_of_zero(huber_loss: Loss, observe: Observe) -> None:
    """With delta = 0 there would be nothing to learn from: every loss and gradient is 0."""
    for delta in (-1.0, 0.0):
        with pytest.raises((RuntimeError, ValueError)) as refusal:
            huber_loss(torch.zeros(3), torch.ones(3), delta=delta)
    observe("delta of zero", refusal.value)


@rule(
    "CLAIM-11",
    "smooth_l1_loss is the Huber loss.",
    kind="claim",
    source=f"{DOCS}torch.nn.HuberLoss.html",
    subject=F.smooth_l1_loss,
    violated_by=[smooth_l1_is_huber],
    verdict="holds if beta = delta = 1; otherwise they differ by the factor beta",
)
def test_only_at_beta_one_is_smooth_l1_the_huber_loss(smooth_l1_loss: Loss) -> None:
    """One loss fixes the slope of its lines, the other the curvature of its parabola."""
    near_and_far = [0.05, 10.0]

    # The two losses agree at beta = delta = 1: the gradient is d near the target and 1 far out.
    at_one = losses_and_gradients(smooth_l1_loss, near_and_far, beta=1.0)
    huber_at_one = losses_and_gradients(regression.huber_loss, near_and_far, delta=1.0)
    assert agree(at_one[0], huber_at_one[0])
    assert agree(at_one[1], [0.05, 1.0])

    # At 0.1, smooth L1 still pulls by 1 far out, and 1 / 0.1 times as hard near the target.
    # Huber still pulls by d near the target, and by 0.1 far out.
    smooth_gradients = losses_and_gradients(smooth_l1_loss, near_and_far, beta=0.1)[1]
    huber_gradients = losses_and_gradients(regression.huber_loss, near_and_far, delta=0.1)[1]
    assert agree(smooth_gradients, [0.05 / 0.1, 1.0])
    assert agree(huber_gradients, [0.05, 0.1])


# ---------------------------------------------------------------------------------------------
# What an outlier costs


def huber_squares_outliers(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    delta: float = 1.0,  # noqa: ARG001
) -> Tensor:
    """Takes half of the square of every residual, however far it is beyond delta."""
    return F.mse_loss(input, target, reduction=reduction) / 2


def huber_masked_by_multiplying(
    input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0
) -> Tensor:
    """Chooses by multiplying with 0 or 1: where the square is infinite, inf * 0 is nan."""
    distances = (input - target).abs()
    parabola, line = distances**2 / 2, delta * (distances - delta / 2)
    far = (distances > delta).to(input.dtype)
    losses = far * line + (1 - far) * parabola
    return losses if reduction == "none" else losses.mean()


@rule(
    "CLAIM-12",
    "MSE is more sensitive to outliers than Huber in reconstruction.",
    kind="claim",
    source=f"{DOCS}torch.nn.HuberLoss.html",
    subject=HUBER,
    violated_by=[huber_squares_outliers, huber_masked_by_multiplying],
    consequence="with 5 % of the pixels broken, an autoencoder of digits trained by MSE misses the"
    " clean images by at least 1.3 times as much as one trained by Huber",
    verdict="holds if the residuals of the outliers are larger than delta",
)
def test_the_pull_of_a_residual_ends_at_delta(huber_loss: Loss) -> None:
    """Up to delta Huber pulls half as hard as MSE. Beyond, its pull grows no more.

    In float32 the square of 2 ** 100 is infinite. Huber never takes it, and stays finite.
    """
    residuals = [-(2.0**100), -10.0, -0.5, 0.0, 0.5, 2.0, 10.0, 100.0, 2.0**100]

    for delta in (0.5, 1.0, 4.0):
        losses, gradients = losses_and_gradients(huber_loss, residuals, delta=delta)
        assert agree(gradients, [max(-delta, min(d, delta)) for d in residuals])
        assert agree(losses[-1], delta * 2.0**100)


def mse_with_clipped_slope(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Lets no residual pull harder than by 2."""
    residuals = input - target
    return F.mse_loss(residuals.clamp(-1, 1), torch.zeros_like(target), reduction=reduction)


@spec("CLAIM-12", subject=F.mse_loss, violated_by=[mse_with_clipped_slope])
def test_the_pull_of_a_residual_on_mse_has_no_end(mse_loss: Loss) -> None:
    """A residual of 100 pulls 200 times as hard as one of 0.5."""
    residuals = [-10.0, -0.5, 0.0, 0.5, 2.0, 10.0, 100.0, 2.0**100]

    losses, gradients = losses_and_gradients(mse_loss, residuals)

    assert agree(gradients, [2 * d for d in residuals])
    assert losses[-1] == math.inf  # float32 ends at 2 ** 128


def huber_at_a_tenth(
    input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 0.1
) -> Tensor:
    """Has another default: delta = 0.1."""
    return F.huber_loss(input, target, reduction=reduction, delta=delta)


@spec("CLAIM-12", violated_by=[huber_at_a_tenth])
def test_on_pixels_between_zero_and_one_the_default_huber_is_half_of_mse(
    huber_loss: Loss,
) -> None:
    """No residual is larger than the default delta of 1, so no pixel is treated as an outlier."""
    images = data.digits().train_inputs[:100]
    inverted = 1 - images  # as wrong as a reconstruction can be

    residuals = (images - inverted).double()

    losses, gradients = losses_and_gradients(huber_loss, residuals)
    assert residuals.abs().max() == 1.0
    assert agree(losses, residuals**2 / 2)
    assert agree(gradients, residuals)


@lru_cache
def error_on_clean_images(loss_function: Loss, **options: float) -> float:
    """Trains a small autoencoder on images with broken pixels; its error on clean test images.

    A pixel lies between 0 and 1. One in twenty is broken and gives 10. The error is the root of
    the mean square.
    """
    split = data.digits()
    images = split.train_inputs[:400]
    broken = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    images[broken < 0.05] = 10.0
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 64))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)

    loss = partial(loss_function, **options)
    train_one_epoch(model, [(images, images)] * 100, loss, optimizer)

    with torch.no_grad():
        residuals = model(split.test_inputs) - split.test_inputs
    return (residuals**2).mean().sqrt().item()


@spec("CLAIM-12", subject=F.huber_loss, violated_by=[huber_squares_outliers])
def test_an_autoencoder_survives_broken_pixels_under_huber_and_not_under_mse(
    huber_loss: Loss, observe: Observe
) -> None:
    """Seen over five seeds: 0.34 to 0.45 under MSE, 0.23 to 0.24 under Huber with delta 1."""
    by_mse = error_on_clean_images(F.mse_loss)
    by_huber = error_on_clean_images(huber_loss)
    assert by_mse > 1.3 * by_huber

    # A delta as large as the outliers' residuals takes the protection away again.
    by_wide_huber = error_on_clean_images(huber_loss, delta=10.0)
    assert by_wide_huber > 1.3 * by_huber

    observe("errors", {"mse": by_mse, "huber": by_huber, "huber with delta 10": by_wide_huber})
