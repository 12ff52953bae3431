"""What the losses of this package share: float64, and the three reductions."""

from __future__ import annotations

from torch import Tensor

REDUCTIONS = ("none", "mean", "sum")


def in_float64(tensor: Tensor) -> Tensor:
    """The same numbers as float64 on the CPU (Apple's MPS has no float64); gradients flow back."""
    return tensor.cpu().double()


def reduced(losses: Tensor, reduction: str, weight_sum: Tensor | None = None) -> Tensor:
    """The losses themselves ("none"), their sum ("sum"), or their mean ("mean").

    The mean divides by the number of losses, or by `weight_sum` where one is given. The mean of
    no losses is 0/0, which is nan; their sum is 0.

    Raises ValueError for any other reduction.

    Source: the `reduction` argument in https://docs.pytorch.org/docs/stable/nn.html#loss-functions
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is none of {', '.join(REDUCTIONS)}: {reduction!r}")
    if reduction == "none":
        return losses
    total = losses.sum()
    if reduction == "sum":
        return total
    return total / (losses.numel() if weight_sum is None else weight_sum)
