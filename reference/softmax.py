"""Softmax and cross entropy by hand: plain Python, one sample, a list of scores.

Scores ("logits") are real numbers without unit, one for each class. Losses are in nats. For
batches, weights and every shape see reference/losses/classification.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def log_sum_exp(scores: Sequence[float]) -> float:
    """log(exp(x_1) + ... + exp(x_K)), with the largest score m taken out: m + log(sum exp(x - m)).

    No exp overflows, since no x - m is above 0, and the sum is at least 1, since one of them is 0.
    If all scores are minus infinity, so is the result. Raises ValueError for no scores.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.logsumexp.html
    """
    if not scores:
        raise ValueError("the sum of no exponentials is 0, and has no logarithm")
    largest = max(scores)
    if math.isinf(largest):
        return largest
    return largest + math.log(sum(math.exp(x - largest) for x in scores))


def softmax(scores: Sequence[float]) -> list[float]:
    """Probabilities p_i = exp(x_i) / (exp(x_1) + ... + exp(x_K)): at least 0, and their sum is 1.

    The largest score is taken out first, as in log_sum_exp. If all scores are minus infinity, every
    probability is nan. Raises ValueError for no scores.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.Softmax.html
    """
    largest = max(scores)
    exponentials = [math.exp(x - largest) for x in scores]
    return [one / sum(exponentials) for one in exponentials]


def softmax_jacobian(scores: Sequence[float]) -> list[list[float]]:
    """d p_i / d x_j = p_i * (1 if i == j else 0) - p_i * p_j, row i and column j: diag(p) - p p'.

    Source: https://en.wikipedia.org/wiki/Softmax_function (derivative)
    """
    p = softmax(scores)
    return [[p_i * ((i == j) - p_j) for j, p_j in enumerate(p)] for i, p_i in enumerate(p)]


def cross_entropy(scores: Sequence[float], target: int) -> float:
    """-log p of the target's class: log_sum_exp(x) - x_target. Raises IndexError for no class.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html
    """
    return log_sum_exp(scores) - scores[target]


def cross_entropy_gradient(scores: Sequence[float], target: int) -> list[float]:
    """By each score: its probability, less 1 for the target's class.

    Source: http://neuralnetworksanddeeplearning.com/chap3.html#softmax
    """
    return [p - (i == target) for i, p in enumerate(softmax(scores))]


def softmax_at_temperature(logits: Tensor, temperature: float) -> Tensor:
    """softmax(logits / temperature) along the last dimension, in float64; same shape as the logits.

    Raises ValueError unless the temperature is above 0.

    Source: https://arxiv.org/abs/1503.02531 (section 2)
    """
    if temperature <= 0:
        raise ValueError(f"a temperature is above 0, got {temperature}")
    scaled = logits.double() / temperature
    exponentials = (scaled - scaled.amax(dim=-1, keepdim=True)).exp()
    return exponentials / exponentials.sum(dim=-1, keepdim=True)


def perplexity(logits: Tensor, targets: Tensor) -> float:
    """exp(mean cross entropy): among how many equally likely classes the model would be as unsure.

    Shapes: logits (samples, classes), targets int64 (samples,). Between 1 and infinity; nan for no
    sample.

    Source: https://en.wikipedia.org/wiki/Perplexity
    """
    scores = logits.double()
    largest = scores.amax(dim=1)
    log_sums = largest + (scores - largest.unsqueeze(1)).exp().sum(dim=1).log()
    losses = log_sums - scores[torch.arange(len(scores)), targets]
    return math.exp(float(losses.mean()))
