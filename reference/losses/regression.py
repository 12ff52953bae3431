"""Regression losses, from the formulas of their documentation pages, in float64.

In every formula d = input - target is the residual of one element. Everywhere: `input` and
`target` have one shape, any; `weight`, of that shape too, is a factor for each element's loss.
`reduction` is "none", "sum" or "mean". Results are float64 on the CPU.
"""

from __future__ import annotations

from torch import Tensor

from reference.losses.reduction import in_float64, reduced


def mse_loss(
    input: Tensor, target: Tensor, reduction: str = "mean", weight: Tensor | None = None
) -> Tensor:
    """d ** 2, in the squared unit of the target; a weighted mean divides by the sum of weights.

    Raises ValueError for shapes that differ and for an unknown reduction.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.MSELoss.html
    """
    return _weighted_mean(_residuals(input, target) ** 2, reduction, weight)


def l1_loss(
    input: Tensor, target: Tensor, reduction: str = "mean", weight: Tensor | None = None
) -> Tensor:
    """abs(d), in the unit of the target; a weighted mean divides by the sum of weights.

    The derivative at d = 0, where there is none, is taken to be 0.

    Raises ValueError for shapes that differ and for an unknown reduction.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.L1Loss.html
    """
    return _weighted_mean(_residuals(input, target).abs(), reduction, weight)


def smooth_l1_loss(
    input: Tensor, target: Tensor, reduction: str = "mean", beta: float = 1.0
) -> Tensor:
    """d ** 2 / (2 * beta) where abs(d) < beta, else abs(d) - beta / 2. In the unit of the target.

    Far out the slope is 1 for every beta, which is in the unit of the target. beta = 0 leaves no
    room for the parabola: it is the L1 loss.

    Raises ValueError for a negative beta, for shapes that differ and for an unknown reduction.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.SmoothL1Loss.html
    """
    if beta < 0:
        raise ValueError(f"beta must not be negative, got {beta}")
    if beta == 0:
        return l1_loss(input, target, reduction)
    distances = _residuals(input, target).abs()
    near = distances.clamp(max=beta)  # the parabola ends there: nothing huge is ever squared
    return reduced(near**2 / (2 * beta) + (distances - near), reduction)


def huber_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """d ** 2 / 2 where abs(d) < delta, else delta * (abs(d) - delta / 2).

    In the squared unit of the target. Near 0 the curvature is 1 for every delta, which is in the
    unit of the target; far out the slope is delta. A weighted mean divides by the number of
    elements, not by the sum of the weights as the two losses above do.

    Raises ValueError for a delta of 0 or less, for shapes that differ and for an unknown reduction.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.HuberLoss.html
    """
    if delta <= 0:
        raise ValueError(f"delta must be positive, got {delta}")
    distances = _residuals(input, target).abs()
    near = distances.clamp(max=delta)
    losses = near**2 / 2 + delta * (distances - near)
    return reduced(losses if weight is None else losses * in_float64(weight), reduction)


def _residuals(input: Tensor, target: Tensor) -> Tensor:
    if input.shape != target.shape:
        raise ValueError(f"input has shape {tuple(input.shape)}, target {tuple(target.shape)}")
    return in_float64(input) - in_float64(target)


def _weighted_mean(losses: Tensor, reduction: str, weight: Tensor | None) -> Tensor:
    if weight is None:
        return reduced(losses, reduction)
    weight = in_float64(weight)
    return reduced(losses * weight, reduction, weight_sum=weight.sum())
