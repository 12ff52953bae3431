"""Data parallel training by hand: what is broadcast, what is averaged, and over what.

These functions run on every rank of a group that torch.distributed has initialised. A rank is one
process of the group, numbered from 0; the world size is their number.

Sources: https://docs.pytorch.org/docs/stable/generated/torch.nn.parallel.DistributedDataParallel.html
and https://docs.pytorch.org/docs/stable/notes/ddp.html
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn


class DataParallel(nn.Module):
    """A replica on each rank: equal at the start, and kept equal by equal gradients.

    At construction every parameter and buffer is taken from rank 0. A backward pass replaces each
    parameter's gradient by the mean of the ranks' gradients. In training mode each forward pass
    first takes the buffers of rank 0.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._synchronises = True
        self.start_equal()
        for parameter in module.parameters():
            parameter.register_post_accumulate_grad_hook(self._after_backward)

    def start_equal(self) -> None:
        """Take parameters and buffers from rank 0."""
        for value in self.module.state_dict().values():
            distributed.broadcast(value, src=0)

    def combine(self, gradient: Tensor) -> None:
        """Replace a gradient by the mean over the ranks."""
        distributed.all_reduce(gradient)
        gradient /= distributed.get_world_size()

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Inside, gradients stay on their rank; the next backward outside averages their sums."""
        self._synchronises = False
        try:
            yield
        finally:
            self._synchronises = True

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            for buffer in self.module.buffers():
                distributed.broadcast(buffer, src=0)
        outputs: Tensor = self.module(inputs)
        return outputs

    def _after_backward(self, parameter: Tensor) -> None:
        if self._synchronises and parameter.grad is not None:
            self.combine(parameter.grad)


class SumOverRanks(torch.autograd.Function):
    """The sum of the ranks' tensors on every rank, with its gradient.

    Each rank's result depends on each rank's tensor with a slope of 1, so that the gradient of a
    tensor is the sum of the gradients that the ranks have for their results.

    Source: https://docs.pytorch.org/docs/stable/notes/extending.html
    """

    @staticmethod
    def forward(_: Any, own: Tensor) -> Tensor:
        total = own.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        distributed.all_reduce(total)
        return total


def sum_over_ranks(own: Tensor) -> Tensor:
    """The sum of tensors of one shape, one from each rank; differentiable."""
    total: Tensor = SumOverRanks.apply(own)
    return total


class SyncBatchNorm(nn.Module):
    """BatchNorm over the batches of all ranks together, for inputs of shape (samples, features).

    mean = sum of x / N and variance = sum of (x - mean)^2 / N, where N counts the samples of all
    ranks; output (x - mean) / sqrt(variance + eps). Without weight, bias and running statistics.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.SyncBatchNorm.html
    """

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, inputs: Tensor) -> Tensor:
        count = sum_over_ranks(inputs.new_tensor(float(len(inputs))))
        mean = sum_over_ranks(inputs.sum(dim=0)) / count
        variance = sum_over_ranks(((inputs - mean) ** 2).sum(dim=0)) / count
        normalised: Tensor = (inputs - mean) / torch.sqrt(variance + self.eps)
        return normalised


def mean_over_all_samples(values: Tensor) -> Tensor:
    """The mean of a metric over the samples of all ranks, however many each of them has.

    values: one for each of this rank's samples, shape (n,); n may differ, and be 0. The result,
    a scalar, is the same on every rank.
    """
    total_and_count = torch.stack([values.sum(), values.new_tensor(float(len(values)))])
    distributed.all_reduce(total_and_count)
    return total_and_count[0] / total_and_count[1]


def loss_for_averaged_gradients(losses: Tensor) -> Tensor:
    """The loss whose gradients, averaged over the ranks, are those of the mean over all samples.

    losses: one for each of this rank's samples, shape (n,). With R ranks and N samples in all, the
    local sum times R / N: the averaging divides by R, and this puts N in its place.
    """
    count = losses.new_tensor(float(len(losses)))
    distributed.all_reduce(count)
    return losses.sum() * distributed.get_world_size() / count
