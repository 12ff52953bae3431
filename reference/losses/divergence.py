"""The Kullback-Leibler divergence between distributions over classes, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from reference.losses.reduction import in_float64, reduced


def kl_div(
    input: Tensor, target: Tensor, reduction: str = "mean", log_target: bool = False
) -> Tensor:
    """p * (log p - log q) for each element, where `input` is log q and `target` is p or log p.

    Summed over the classes of one sample it is KL(p || q), in nats: how much longer messages from p
    get if they are coded for q. A class with p = 0 adds nothing, as p * log p tends to 0 there; but
    a logarithm of minus infinity, on either side, makes it 0 * inf, which is nan.

    reduction: "none", "sum", "mean" (the sum over the number of elements: samples times classes)
        or "batchmean" (the sum over the length of the first dimension).
    log_target: whether `target` holds log p, the natural logarithm.

    `input` and `target` have one shape; (samples, classes) for "batchmean". Returns float64.
    Raises ValueError for shapes that differ and for an unknown reduction.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.KLDivLoss.html
    """
    if input.shape != target.shape:
        raise ValueError(f"input has shape {tuple(input.shape)}, target {tuple(target.shape)}")
    log_q, given = in_float64(input), in_float64(target)
    p = given.exp() if log_target else given
    log_p = given if log_target else torch.where(p == 0, 1.0, p).log()
    losses = p * (log_p - log_q)
    if reduction == "batchmean":
        return losses.sum() / losses.shape[0]
    return reduced(losses, reduction)
