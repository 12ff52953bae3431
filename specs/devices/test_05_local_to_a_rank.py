"""What data parallel training leaves on each rank: batch statistics, metrics, numbers of samples.

At the end you know what DistributedDataParallel does not reduce, and how to reduce it yourself.

Each spec runs in two real processes that exchange tensors through gloo, the backend for CPUs. A
rank is one of these processes. `ranks.run(function, ...)` calls `function(rank, ...)` in both and
returns what they return, rank 0 first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel

from reference.distributed import (
    DataParallel,
    SyncBatchNorm,
    loss_for_averaged_gradients,
    mean_over_all_samples,
)
from specs.harness import rule
from specs.harness.agreement import agree
from specs.harness.ranks import Ranks

Wrapper = Callable[..., Any]
Reduction = Callable[[Tensor], Tensor]
Shard = tuple[Tensor, Tensor]

INPUTS = torch.linspace(-1, 2, 16, dtype=torch.float64).reshape(8, 2) ** 2
TARGETS = torch.linspace(0, 1, 8, dtype=torch.float64)[:, None]
#: Samples 0 to 3 on rank 0, 4 to 7 on rank 1.
EQUAL_SHARDS = [(INPUTS[:4], TARGETS[:4]), (INPUTS[4:], TARGETS[4:])]
#: Five samples on rank 0, three on rank 1.
UNEQUAL_SHARDS = [(INPUTS[:5], TARGETS[:5]), (INPUTS[5:], TARGETS[5:])]


class NeverBroadcastsBuffers(DataParallel):
    """Lets each rank keep its own running statistics."""

    def forward(self, inputs: Tensor) -> Tensor:
        return self.module(inputs)


def running_means(rank: int, DistributedDataParallel: Wrapper) -> list[float]:
    """BatchNorm's running mean after each of two steps; rank r sees nothing but the value r."""
    model = DistributedDataParallel(nn.BatchNorm1d(1, momentum=0.5))
    means = []
    for _ in range(2):
        model(torch.full((4, 1), float(rank)))
        means.append(model.module.running_mean.item())
    return means


@rule(
    "DDP-05",
    "BatchNorm's statistics stay local: each rank normalises with its own batch, and before every"
    " forward takes over the running statistics of rank 0.",
    kind="contract",
    source="https://docs.pytorch.org/docs/stable/notes/ddp.html",
    subject=[DistributedDataParallel, DataParallel],
    violated_by=[NeverBroadcastsBuffers],
)
def test_running_statistics_are_those_of_rank_0(
    DistributedDataParallel: Wrapper, ranks: Ranks
) -> None:
    """What rank 1 sees never reaches the statistics that a checkpoint of rank 0 saves."""
    of_rank_0, of_rank_1 = ranks.run(running_means, DistributedDataParallel)

    assert of_rank_0 == [0.0, 0.0]
    # Half of its own mean of 1, and half of what rank 0 had before: both times 0.
    assert of_rank_1 == [0.5, 0.5]


class AveragesVariances(SyncBatchNorm):
    """Normalises by the mean of the ranks' variances, forgetting that their means differ."""

    def forward(self, inputs: Tensor) -> Tensor:
        mean = inputs.mean(dim=0)
        variance = inputs.var(dim=0, correction=0)
        for statistic in (mean, variance):
            distributed.all_reduce(statistic)
            statistic /= distributed.get_world_size()
        return (inputs - mean) / torch.sqrt(variance + self.eps)


class NormalisesLocally(SyncBatchNorm):
    """BatchNorm on the rank's own samples."""

    def forward(self, inputs: Tensor) -> Tensor:
        variance, mean = torch.var_mean(inputs, dim=0, correction=0)
        return (inputs - mean) / torch.sqrt(variance + self.eps)


def normalised_shard(
    rank: int, SyncBatchNorm: type[nn.Module], shards: list[Shard]
) -> tuple[Tensor, Any]:
    inputs = shards[rank][0].clone().requires_grad_()
    outputs = SyncBatchNorm()(inputs)
    (outputs**3).sum().backward()
    return outputs.detach(), inputs.grad


@rule(
    "DDP-08",
    "SyncBatchNorm normalises with the mean and variance of all ranks' samples, and passes"
    " gradients back to all of them.",
    kind="contract",
    source="https://docs.pytorch.org/docs/stable/generated/torch.nn.SyncBatchNorm.html",
    subject=SyncBatchNorm,
    violated_by=[AveragesVariances, NormalisesLocally],
)
def test_synchronised_statistics_are_those_of_the_whole_batch(
    SyncBatchNorm: type[nn.Module], ranks: Ranks
) -> None:
    """PyTorch's own runs on accelerators only, hence the reference is judged here."""
    whole = INPUTS.clone().requires_grad_()
    expected = nn.functional.batch_norm(whole, None, None, training=True)
    (expected**3).sum().backward()

    for shards in (EQUAL_SHARDS, UNEQUAL_SHARDS):
        results = ranks.run(normalised_shard, SyncBatchNorm, shards)
        outputs, gradients = (torch.cat(parts) for parts in zip(*results, strict=True))
        # Variances of a few tenths are divided by: rounding grows a hundredfold.
        assert agree(outputs, expected.detach(), ulps=256)
        assert agree(gradients, whole.grad, ulps=4096)


def mean_of_rank_means(values: Tensor) -> Tensor:
    """Averages the ranks' means, whatever the number of samples behind them."""
    mean = values.mean()
    distributed.all_reduce(mean)
    return mean / distributed.get_world_size()


def mean_on_this_rank(values: Tensor) -> Tensor:
    """Reports what one rank has seen."""
    return values.mean()


def metric(rank: int, mean_over_all_samples: Reduction) -> Tensor:
    return mean_over_all_samples(torch.arange(8.0).split([5, 3])[rank])


@rule(
    "DDP-06",
    "Metrics are reduced by hand: all_reduce their sums and counts, then divide.",
    kind="practice",
    source="https://docs.pytorch.org/docs/stable/distributed.html#torch.distributed.all_reduce",
    subject=mean_over_all_samples,
    violated_by=[mean_of_rank_means, mean_on_this_rank],
    consequence="Of the values 0 to 4 on one rank and 5 to 7 on the other, the mean is 3.5; the"
    " ranks alone say 2 and 6, and the mean of these means is 4.",
)
def test_a_metric_counts_every_sample_once(mean_over_all_samples: Reduction, ranks: Ranks) -> None:
    """DistributedDataParallel averages gradients and nothing else."""
    assert ranks.run(metric, mean_over_all_samples) == [3.5, 3.5]


def mean_of_this_rank(losses: Tensor) -> Tensor:
    """The mean over the local samples, right only for equal shards."""
    return losses.mean()


def share_without_world_size(losses: Tensor) -> Tensor:
    """The local sum over the number of all samples; averaging then divides once more."""
    count = losses.new_tensor(float(len(losses)))
    distributed.all_reduce(count)
    return losses.sum() / count


def gradient_with_loss(rank: int, loss_for_averaged_gradients: Reduction) -> tuple[Tensor, Tensor]:
    model = DistributedDataParallel(nn.Linear(2, 1, bias=False).double())
    inputs, targets = UNEQUAL_SHARDS[rank]
    losses = mse_loss(model(inputs), targets, reduction="none").flatten()
    loss_for_averaged_gradients(losses).backward()
    return model.module.weight.grad, model.module.weight.detach()


@rule(
    "DDP-07",
    "With unequal shards, scale the summed loss by world size / number of all samples.",
    kind="practice",
    source="https://docs.pytorch.org/docs/stable/notes/ddp.html",
    subject=loss_for_averaged_gradients,
    violated_by=[mean_of_this_rank, share_without_world_size],
    consequence="With 5 samples on one rank and 3 on the other, a sample of the second weighs 5/3"
    " of one of the first.",
)
def test_scaled_sums_give_the_gradient_of_all_samples(
    loss_for_averaged_gradients: Reduction, ranks: Ranks
) -> None:
    """Batches of unequal length are normal: the last ones, or sentences counted in tokens."""
    for gradient, weight in ranks.run(gradient_with_loss, loss_for_averaged_gradients):
        # d/dw of the mean of (w x - y)^2 over all 8 samples.
        whole_batch = (2 * (INPUTS @ weight.T - TARGETS) * INPUTS).mean(dim=0, keepdim=True)
        assert agree(gradient, whole_batch)
