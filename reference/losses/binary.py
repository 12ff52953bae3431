"""Binary cross entropy on probabilities and on logits, from the formulas, in float64.

Everywhere: `input` and `target` have one shape, any; targets are probabilities of the positive
class (1 positive, 0 negative, anything between for soft labels). Losses are in nats. Results are
float64 on the CPU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from reference.losses.classification import log_sum_exp
from reference.losses.reduction import in_float64, reduced

#: Binary cross entropy on probabilities counts no logarithm below this.
LOG_FLOOR = -100.0


def softplus(logits: Tensor) -> Tensor:
    """log(1 + exp(z)), as the log-sum-exp of the two scores 0 and z; its derivative is sigmoid."""
    logits = in_float64(logits)
    return log_sum_exp(torch.stack((torch.zeros_like(logits), logits)), dim=0)


def sigmoid(input: Tensor) -> Tensor:
    """The probability 1 / (1 + exp(-z)) of the positive class, for the logit z.

    Written as exp(-log(1 + exp(-z))), which cannot overflow.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.Sigmoid.html
    """
    return (-softplus(-input)).exp()


def binary_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, *, reduction: str = "mean"
) -> Tensor:
    """-w * (y log p + (1 - y) log(1 - p)) for probabilities p, with both logarithms >= -100.

    `weight` is a factor for each element, broadcast to the shape of `input`. "mean" divides by
    the number of elements.

    Raises ValueError for a p or y outside 0..1, for shapes that differ, and for an unknown
    reduction.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.BCELoss.html
    """
    p, y = in_float64(input), in_float64(target)
    if p.shape != y.shape:
        raise ValueError(f"input has shape {tuple(p.shape)}, target {tuple(y.shape)}")
    if not bool(((p >= 0) & (p <= 1)).all() and ((y >= 0) & (y <= 1)).all()):
        raise ValueError("probabilities and targets lie between 0 and 1")
    losses = -(y * _floored_log(p) + (1 - y) * _floored_log(1 - p))
    return reduced(_times(weight, losses), reduction)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """w * (c * y * log(1 + exp(-z)) + (1 - y) * log(1 + exp(z))) for logits z.

    It is the binary cross entropy of p = sigmoid(z), as log(1 + exp(-z)) = -log p and
    log(1 + exp(z)) = -log(1 - p), but no p is ever formed. `pos_weight` is the factor c of the
    positive part, `weight` the factor w of the whole; both are broadcast. "mean" divides by the
    number of elements.

    Raises ValueError for shapes that differ and for an unknown reduction.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.BCEWithLogitsLoss.html
    """
    z, y = in_float64(input), in_float64(target)
    if z.shape != y.shape:
        raise ValueError(f"input has shape {tuple(z.shape)}, target {tuple(y.shape)}")
    positive_part = _times(pos_weight, y * softplus(-z))
    return reduced(_times(weight, positive_part + (1 - y) * softplus(z)), reduction)


def _floored_log(p: Tensor) -> Tensor:
    """max(log p, -100), whose derivative is 1/p above the floor and 0 on it."""
    above = p > math.exp(LOG_FLOOR)
    one, floor = torch.ones_like(p), torch.full_like(p, LOG_FLOOR)
    return p.where(above, one).log().where(above, floor)


def _times(factor: Tensor | None, losses: Tensor) -> Tensor:
    return losses if factor is None else in_float64(factor) * losses
