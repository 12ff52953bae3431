"""What is done about rare positives: the focal loss."""

from __future__ import annotations

import torch
from torch import Tensor

from reference.losses.binary import softplus
from reference.losses.reduction import in_float64, reduced


def focal_loss(
    input: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    alpha: float | None = None,
    reduction: str = "mean",
) -> Tensor:
    """-alpha_t * (1 - p_t) ** gamma * log(p_t): cross entropy with the easy samples turned down.

    p_t is the probability that the logit gives to the true class: sigmoid(z) for a positive,
    1 - sigmoid(z) for a negative. alpha_t is alpha for a positive, 1 - alpha for a negative, and 1
    for both if alpha is None.

    `input` holds logits, `target` 0 or 1, in one shape, any. gamma and alpha have no unit. Returns
    float64, in nats.
    Raises ValueError for shapes that differ and for an unknown reduction.

    Source: Lin et al., Focal Loss for Dense Object Detection, https://arxiv.org/abs/1708.02002
    """
    if input.shape != target.shape:
        raise ValueError(f"input has shape {tuple(input.shape)}, target {tuple(target.shape)}")
    positive = in_float64(target) == 1
    toward_truth = torch.where(positive, 1.0, -1.0) * in_float64(input)
    # log(p_t) is -softplus(-z) and log(1 - p_t) is -softplus(z), z counted toward the true class:
    # no probability is formed that could round to 0.
    losses = torch.exp(-gamma * softplus(toward_truth)) * softplus(-toward_truth)
    if alpha is not None:
        losses = torch.where(positive, alpha, 1 - alpha) * losses
    return reduced(losses, reduction)
