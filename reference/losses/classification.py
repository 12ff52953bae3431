"""Softmax and the losses of one class among several, from their formulas, in float64.

Everywhere: scores ("logits") are real numbers without unit, shape (N, C) or (N, C, d1, ...), with
the C classes along dimension 1; a single sample may come as (C). Losses are in nats. Results are
float64 on the CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reference.losses.reduction import in_float64, reduced


def log_sum_exp(scores: Tensor, dim: int) -> Tensor:
    """log(sum(exp(x))) along `dim`, which is removed: m + log(sum(exp(x - m))) with m = max(x).

    Taking the largest score out first keeps exp from overflowing and the sum from vanishing. It
    is a constant to the derivative, which is softmax(x).

    Source: https://docs.pytorch.org/docs/stable/generated/torch.logsumexp.html
    """
    scores = in_float64(scores)
    largest = scores.amax(dim, keepdim=True).detach()
    # Infinity minus infinity is nan; without a shift the sum is infinite or empty, as it should.
    largest = largest.where(largest.isfinite(), torch.zeros_like(largest))
    return (largest + (scores - largest).exp().sum(dim, keepdim=True).log()).squeeze(dim)


def log_softmax(input: Tensor, dim: int) -> Tensor:
    """Logarithms of the class probabilities: x_i - log(sum_j exp(x_j)); same shape as `input`.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.LogSoftmax.html
    """
    return in_float64(input) - log_sum_exp(input, dim).unsqueeze(dim)


def softmax(input: Tensor, dim: int) -> Tensor:
    """Probabilities exp(x_i) / sum_j exp(x_j), which sum to 1 along `dim`; same shape as `input`.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.Softmax.html
    """
    return log_softmax(input, dim).exp()


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Negative log-likelihood: -w[y] * input[y] for each position with class index y.

    `input` holds log-probabilities, `target` class indices of shape (N) or (N, d1, ...), `weight`
    one factor for each class, shape (C). A target equal to `ignore_index` costs nothing and does
    not count. "mean" divides by the sum of w[y] over the targets that count.

    Raises RuntimeError (from `gather`) for an index outside the classes, ValueError for an
    unknown reduction.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.NLLLoss.html
    """
    log_p = in_float64(input)
    class_dim = _class_dim(log_p)
    index, position_weight = _index_and_weight(log_p, target, weight, ignore_index)
    picked = log_p.gather(class_dim, index.unsqueeze(class_dim)).squeeze(class_dim)
    losses = _where_it_counts(-position_weight * picked, target, ignore_index)
    return reduced(losses, reduction, position_weight.sum())


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross entropy between target classes and softmax(input), from raw logits.

    Class indices (integers, shape (N) or (N, d1, ...)): nll_loss of log_softmax(input), with its
    weights, its `ignore_index` and its mean.
    Class probabilities q (floating point, same shape as `input`): -sum_c w_c q_c log p_c for each
    position; the mean divides by the number of positions, whatever the weights.
    Label smoothing s replaces the target by (1 - s) * target + s / C in every class.

    Raises ValueError for a smoothing outside 0..1, for probabilities of another shape than the
    logits, and for an unknown reduction.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html
    """
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must lie in 0..1: {label_smoothing}")
    log_p = log_softmax(input, _class_dim(input))
    if target.is_floating_point():
        if target.shape != input.shape:
            raise ValueError(f"logits {tuple(input.shape)}, probabilities {tuple(target.shape)}")
        smoothed = (1 - label_smoothing) * in_float64(target) + label_smoothing / _classes(input)
        return reduced(_weighted_sum(smoothed, log_p, weight), reduction)

    losses = nll_loss(log_p, target, weight, ignore_index=ignore_index, reduction="none")
    if label_smoothing > 0:
        uniform = torch.full_like(log_p, 1 / _classes(input))
        to_uniform = _weighted_sum(uniform, log_p, weight)
        to_uniform = _where_it_counts(to_uniform, target, ignore_index)
        losses = (1 - label_smoothing) * losses + label_smoothing * to_uniform
    _, position_weight = _index_and_weight(log_p, target, weight, ignore_index)
    return reduced(losses, reduction, position_weight.sum())


def _class_dim(input: Tensor) -> int:
    return 0 if input.dim() == 1 else 1


def _classes(input: Tensor) -> int:
    return input.shape[_class_dim(input)]


def _class_weight(weight: Tensor | None, input: Tensor) -> Tensor:
    if weight is None:
        return torch.ones(_classes(input), dtype=torch.float64)
    return in_float64(weight)


def _index_and_weight(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """For each position a class to look up, and w[y]: 0 where the target is ignored."""
    target = target.cpu().long()
    counts = target != ignore_index
    index = target.where(counts, torch.zeros_like(target))
    return index, _class_weight(weight, input)[index] * counts


def _where_it_counts(losses: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    return losses.where(target.cpu() != ignore_index, torch.zeros_like(losses))


def _weighted_sum(target: Tensor, log_p: Tensor, weight: Tensor | None) -> Tensor:
    """-sum_c w_c q_c log p_c for each position with target probabilities q."""
    class_dim = _class_dim(log_p)
    shape = [1] * log_p.dim()
    shape[class_dim] = -1
    return -(_class_weight(weight, log_p).reshape(shape) * target * log_p).sum(class_dim)
