"""One data set for several processes: who gets which samples, in which epoch.

At the end you know how DistributedSampler deals a data set out, why some samples come twice, what
set_epoch is for, and how to evaluate on several processes without counting a sample twice.

R processes train together; each is a rank, numbered from 0. No process is started here: a sampler
that is told `num_replicas` and `rank` needs none. What is done with the samples is shown in
specs/devices/test_04_distributed.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sized
from itertools import chain, islice, product
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

from reference import data, samplers
from reference.training import fit
from specs.harness import rule, spec
from specs.harness.observations import Observe

DATA = "https://docs.pytorch.org/docs/stable/data.html"
SAMPLER = f"{DATA}#torch.utils.data.distributed.DistributedSampler"

MakeSampler = Callable[..., Any]

#: Every data set of up to 12 samples, for every number of ranks up to 5.
SIZES = list(product(range(13), range(1, 6)))


def shares(make: MakeSampler, samples: int, ranks: int, epoch: int = 0, **options: Any) -> Any:
    """The indices that each rank gets in an epoch, rank 0 first."""
    dealt = []
    for rank in range(ranks):
        sampler = make(range(samples), num_replicas=ranks, rank=rank, **options)
        sampler.set_epoch(epoch)
        assert len(sampler) == len(list(sampler))
        dealt.append(list(sampler))
    return dealt


class Blocks(samplers.DistributedSampler):
    """Cuts the order into one block for each rank, as array_split does."""

    def __iter__(self) -> Iterator[int]:
        order = [*range(self.count)] * (1 + self.num_replicas)
        return islice(order, self.rank * len(self), (self.rank + 1) * len(self))


class NoPadding(samplers.DistributedSampler):
    """Gives some ranks one sample less than others: those then wait for ever."""

    def __init__(self, dataset: Sized, num_replicas: int, rank: int, **options: Any) -> None:
        super().__init__(dataset, num_replicas, rank, **options)
        self.length = len(range(rank, self.count, num_replicas))

    def __len__(self) -> int:
        return self.length


class PadsWithTheLast(samplers.DistributedSampler):
    """Repeats the last sample where one is missing, not the first ones."""

    def __iter__(self) -> Iterator[int]:
        for turn in range(len(self)):
            yield min(turn * self.num_replicas + self.rank, self.count - 1)


class NeverDrops(samplers.DistributedSampler):
    """Takes drop_last, and pads."""

    def __len__(self) -> int:
        return -(-self.count // self.num_replicas)


@rule(
    "DATA-10",
    "DistributedSampler gives rank r every R-th index of one common order, starting with the r-th;"
    " to make the shares equal it repeats the first samples, or with drop_last leaves the last"
    " ones out. The order is new in an epoch only after set_epoch.",
    kind="contract",
    source=SAMPLER,
    subject=[DistributedSampler, samplers.DistributedSampler],
    violated_by=[Blocks, NoPadding, PadsWithTheLast],
    consequence="10 samples on 3 ranks: 12 are read, 0 and 1 twice; a mean over ranks counts them"
    " twice",
)
def test_ranks_get_equal_shares_and_the_first_samples_come_twice(
    DistributedSampler: MakeSampler,
) -> None:
    """Ranks exchange gradients after each batch: one with a batch more would wait for the rest."""
    assert shares(DistributedSampler, 10, 3, shuffle=False) == [
        [0, 3, 6, 9],
        [1, 4, 7, 0],  # 10 and 11 do not exist: 0 and 1 stand in for them
        [2, 5, 8, 1],
    ]
    # Where there are more ranks than samples, a sample comes more than twice.
    assert shares(DistributedSampler, 2, 5, shuffle=False) == [[0], [1], [0], [1], [0]]
    for samples, ranks in SIZES:
        share = -(-samples // ranks)  # rounded up
        around = list(range(samples)) * ranks
        assert shares(DistributedSampler, samples, ranks, shuffle=False) == [
            around[rank : share * ranks : ranks] for rank in range(ranks)
        ]


@spec("DATA-10", violated_by=[Blocks, NeverDrops])
def test_with_drop_last_nothing_comes_twice_and_the_last_samples_not_at_all(
    DistributedSampler: MakeSampler,
) -> None:
    """Shuffled, other samples are the last ones in each epoch, so all have their turn."""
    options = {"shuffle": False, "drop_last": True}
    assert shares(DistributedSampler, 10, 3, **options) == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    for samples, ranks in SIZES:
        kept = samples // ranks * ranks
        assert shares(DistributedSampler, samples, ranks, **options) == [
            list(range(rank, kept, ranks)) for rank in range(ranks)
        ]


class OrderOfItsOwn(samplers.DistributedSampler):
    """Shuffles on each rank by itself."""

    def __iter__(self) -> Iterator[int]:
        self.seed, kept = self.seed + 100 * self.rank, self.seed
        yield from list(super().__iter__())
        self.seed = kept


class IgnoresTheSeed(samplers.DistributedSampler):
    """Shuffles by the epoch alone."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "seed": 0})


class NeverShuffles(samplers.DistributedSampler):
    """Shuffles only if it is asked to."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"shuffle": False, **options})


@spec("DATA-10", violated_by=[OrderOfItsOwn, IgnoresTheSeed, NeverShuffles])
def test_shuffling_is_the_default_and_the_same_on_every_rank(
    DistributedSampler: MakeSampler, observe: Observe
) -> None:
    """The order is randperm(n) of a generator with the seed `seed + epoch`. All ranks must be given
    the same seed: with another one a rank deals from another order."""
    for samples, ranks in SIZES:
        for seed, epoch in ((0, 0), (0, 3), (5, 2)):
            generator = torch.Generator().manual_seed(seed + epoch)
            order = torch.randperm(samples, generator=generator).tolist() * ranks
            share = -(-samples // ranks)
            dealt = shares(DistributedSampler, samples, ranks, epoch=epoch, seed=seed)
            assert dealt == [order[rank : share * ranks : ranks] for rank in range(ranks)]

    first_epoch = shares(DistributedSampler, 20, 2, seed=1)
    observe("seed 1, epoch 0", first_epoch)
    assert sorted(chain(*first_epoch)) == list(range(20))
    # Seeds that are neighbours give one run shifted by an epoch: choose them far apart.
    assert first_epoch == shares(DistributedSampler, 20, 2, seed=0, epoch=1)


class CountsEpochsItself(samplers.DistributedSampler):
    """Takes each pass for the next epoch, as a shuffling loader does."""

    def __iter__(self) -> Iterator[int]:
        yield from list(super().__iter__())
        self.epoch += 1


class IgnoresTheEpoch(samplers.DistributedSampler):
    """Takes the number of the epoch, and shuffles as before."""

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch * 0)


@spec("DATA-10", violated_by=[CountsEpochsItself, IgnoresTheEpoch])
def test_without_set_epoch_every_epoch_has_the_same_order(DistributedSampler: MakeSampler) -> None:
    """Nothing warns. Call sampler.set_epoch(epoch) before each pass over the loader."""
    samples: Any = range(20)
    sampler = DistributedSampler(samples, num_replicas=2, rank=0)
    loader: DataLoader[int] = DataLoader(samples, batch_size=5, sampler=sampler)

    def epoch() -> list[int]:
        return torch.cat(list(loader)).tolist()

    assert epoch() == epoch() == epoch()
    told = []
    for number in range(3):
        sampler.set_epoch(number)
        told.append(epoch())
    assert told[0] != told[1] != told[2] != told[0]
    # The other half is rank 1's: in ten epochs rank 0 sees all samples, and not only its first ten.
    seen = set()
    for number in range(10):
        sampler.set_epoch(number)
        seen |= set(epoch())
    assert seen == set(range(20))


class WrapsTheRank(samplers.DistributedSampler):
    """Takes rank 3 of 3 for rank 0."""

    def __init__(self, dataset: Sized, num_replicas: int, rank: int, **options: Any) -> None:
        super().__init__(dataset, num_replicas, rank % num_replicas, **options)


@spec("DATA-10", violated_by=[WrapsTheRank])
def test_a_rank_that_does_not_exist_is_refused(DistributedSampler: MakeSampler) -> None:
    """Ranks are counted from 0, so the last of three is 2."""
    for rank in (-1, 3, 4):
        with pytest.raises(ValueError, match="rank"):
            DistributedSampler(range(10), num_replicas=3, rank=rank)


# --- Evaluation -----------------------------------------------------------------------------------


class LeavesOut(DistributedSampler[int]):
    """Equal shares by drop_last: up to R - 1 samples are never looked at."""

    def __init__(self, dataset: Any, num_replicas: int, rank: int) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=False, drop_last=True)


class CountsTwice(DistributedSampler[int]):
    """Equal shares by repetition, as in training."""

    def __init__(self, dataset: Any, num_replicas: int, rank: int) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=False)


@rule(
    "DATA-20",
    "Evaluate on shares that hold every sample once, and divide the sum over all ranks by the"
    " number of samples.",
    kind="practice",
    source=SAMPLER,
    subject=samplers.EveryIndexOnce,
    violated_by=[CountsTwice, LeavesOut],
    consequence="one model on 360 test digits, with repeated samples: 88.33 % right on one rank,"
    " 88.46 % on 7, 88.43 % on 11, 88.75 % on 50",
)
def test_the_shares_of_an_evaluation_hold_every_sample_once(EveryIndexOnce: MakeSampler) -> None:
    """Ranks need not be in step here: nothing is exchanged but the sums, once, at the end."""
    for samples, ranks in SIZES:
        dealt = [EveryIndexOnce(range(samples), num_replicas=ranks, rank=r) for r in range(ranks)]
        times = Counter(chain(*dealt))
        assert times == Counter(range(samples))
        lengths = [len(sampler) for sampler in dealt]
        assert lengths == [len(list(sampler)) for sampler in dealt]
        assert max(lengths) - min(lengths) <= 1


@spec("DATA-20", violated_by=[CountsTwice, LeavesOut])
def test_the_accuracy_does_not_depend_on_the_number_of_ranks(
    EveryIndexOnce: MakeSampler, observe: Observe
) -> None:
    """Sum the right answers, not the ranks' accuracies: shares differ in length."""
    digits = data.digits()
    torch.manual_seed(0)
    model = nn.Linear(64, 10)
    shuffled = data.batches(digits.train_inputs, digits.train_targets, 64, torch.Generator())
    fit(model, shuffled, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), 0.5), epochs=1)
    with torch.no_grad():
        right = model(digits.test_inputs).argmax(dim=1) == digits.test_targets

    def accuracy_on(ranks: int) -> float:
        dealt = [list(EveryIndexOnce(right, num_replicas=ranks, rank=r)) for r in range(ranks)]
        # What each rank finds, as all_reduce would add it up: right answers and samples.
        return sum(int(right[share].sum()) for share in dealt) / sum(map(len, dealt))

    observe("accuracy", accuracy_on(1))
    # 7 * 52 = 364 and 11 * 33 = 363: there four and three samples would be counted twice.
    for ranks in (1, 2, 7, 11):
        assert accuracy_on(ranks) == right.double().mean().item()
