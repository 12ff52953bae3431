"""Which samples come, in which order: across processes, and where some classes are rare.

A sampler yields the indices of one epoch. These fit `torch.utils.data.DataLoader`.

Source: https://docs.pytorch.org/docs/stable/data.html
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sized

import torch
from torch import Generator, Tensor
from torch.utils.data import Sampler


class DistributedSampler(Sampler[int]):
    """The share of rank r among R processes: every R-th index, starting with the r-th.

    All ranks deal from one order: that of the data set, or, shuffled, randperm(n) of a generator
    seeded with seed + epoch. So that all ranks get ceil(n / R) indices, the order is continued
    with its own beginning; with `drop_last` they get floor(n / R), and what is left over is
    nobody's.

    Raises ValueError for a rank outside [0, R).

    Source:
    https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.distributed.DistributedSampler
    """

    def __init__(
        self,
        dataset: Sized,
        num_replicas: int,
        rank: int,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        if not 0 <= rank < num_replicas:
            raise ValueError(f"rank {rank} is not one of {num_replicas} ranks")
        self.count, self.num_replicas, self.rank = len(dataset), num_replicas, rank
        self.shuffle, self.seed, self.drop_last = shuffle, seed, drop_last
        self.epoch = 0

    def __len__(self) -> int:
        share = self.count / self.num_replicas
        return math.floor(share) if self.drop_last else math.ceil(share)

    def __iter__(self) -> Iterator[int]:
        order = list(range(self.count))
        if self.shuffle:
            shared = Generator().manual_seed(self.seed + self.epoch)
            order = torch.randperm(self.count, generator=shared).tolist()
        for turn in range(len(self)):
            yield order[(turn * self.num_replicas + self.rank) % self.count]

    def set_epoch(self, epoch: int) -> None:
        """Tell the number of the epoch, which the order follows from."""
        self.epoch = epoch


class EveryIndexOnce(Sampler[int]):
    """The share of rank r among R processes for an evaluation: r, r + R, r + 2R, ..., and no more.

    Shares differ in length by up to one. So a metric over all ranks is a sum over samples, divided
    by their number n, and not a mean of the ranks' means.

    Raises ValueError for a rank outside [0, R).

    Source: the warning about duplicates in
    https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.distributed.DistributedSampler
    """

    def __init__(self, dataset: Sized, num_replicas: int, rank: int) -> None:
        if not 0 <= rank < num_replicas:
            raise ValueError(f"rank {rank} is not one of {num_replicas} ranks")
        self.indices = range(rank, len(dataset), num_replicas)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)


def balancing_weights(targets: Tensor) -> Tensor:
    """A weight for each sample, 1 / (size of its class): drawn by it, classes come equally often.

    targets: int64 of shape (n,), classes from 0. Returns float64 of shape (n,).

    Source: https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.WeightedRandomSampler
    """
    return 1 / torch.bincount(targets)[targets].double()


def corrected_for_prior(logits: Tensor, seen: Tensor, true: Tensor) -> Tensor:
    """Logits of a model trained on other shares of the classes, set right by Bayes' rule.

    softmax(logits) is p(class | x) where class c has the share seen[c]. Where it has true[c], the
    probability is proportional to p(class | x) * true[c] / seen[c], so that log(true[c] / seen[c])
    is added to the logit.

    logits: (n, classes); seen, true: (classes,), positive, each summing to 1. Returns (n, classes).

    Source: Menon et al., Long-tail learning via logit adjustment, https://arxiv.org/abs/2007.07314
    """
    return logits + torch.log(true / seen)
