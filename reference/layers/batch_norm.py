"""Batch normalisation by hand, with the statistics that it keeps for eval mode."""

from __future__ import annotations

import torch
from torch import Tensor


class BatchNorm:
    """Normalise each channel, in training by its batch, in eval mode by what it remembers.

    Training: with the mean m and the biased variance v (divisor N) over all N values of a channel,

        y = (x - m) / sqrt(v + eps) * weight + bias
        running_mean = (1 - momentum) * running_mean + momentum * m
        running_var  = (1 - momentum) * running_var  + momentum * v * N / (N - 1)

    The variance that is remembered is the unbiased one. With momentum None the k-th batch counts
    1 / k, which makes both running values plain means over all batches. In eval mode m and v are
    the running values, and nothing is updated.

    Inputs are (n, channels, ...), of float64. Running values start at 0 and 1, weight (channels,)
    at 1, bias (channels,) at 0.

    Raises ValueError in training for a batch with a single value per channel.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html and
    https://arxiv.org/abs/1502.03167
    """

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float | None = 0.1) -> None:
        self.eps = eps
        self.momentum = momentum
        self.training = True
        self.weight = torch.ones(channels, dtype=torch.float64)
        self.bias = torch.zeros(channels, dtype=torch.float64)
        self.running_mean = torch.zeros(channels, dtype=torch.float64)
        self.running_var = torch.ones(channels, dtype=torch.float64)
        self.batches = 0

    def __call__(self, inputs: Tensor) -> Tensor:
        mean, variance = self.running_mean, self.running_var
        if self.training:
            values = inputs.transpose(0, 1).flatten(start_dim=1)  # one row for each channel
            count = values.shape[1]
            if count == 1:
                raise ValueError("the variance of a single value per channel says nothing")
            mean = values.mean(dim=1)
            variance = ((values - mean.unsqueeze(1)) ** 2).sum(dim=1) / count
            self._remember(mean.detach(), variance.detach() * count / (count - 1))
        along_channels = (1, -1, *[1] * (inputs.dim() - 2))
        mean, variance, weight, bias = (
            one.reshape(along_channels) for one in (mean, variance, self.weight, self.bias)
        )
        return (inputs - mean) / torch.sqrt(variance + self.eps) * weight + bias

    def _remember(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        self.batches += 1
        share = 1 / self.batches if self.momentum is None else self.momentum
        self.running_mean = (1 - share) * self.running_mean + share * mean
        self.running_var = (1 - share) * self.running_var + share * unbiased_variance
