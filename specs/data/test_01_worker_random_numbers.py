"""Random numbers in worker processes: which are fresh, which are copies, and what they depend on.

At the end you know which generators a DataLoader seeds in its workers, why a generator that your
data set holds gives every worker the same numbers, in each epoch again, and how to avoid it.
Read before: lesson 7, data sets and loaders, in specs/foundations.
"""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator
from torch.utils.data import DataLoader, Dataset

from specs.harness import rule, spec
from specs.harness.observations import Observe

RANDOMNESS = (
    "https://docs.pytorch.org/docs/stable/data.html#randomness-in-multi-process-data-loading"
)

MakeLoader = Callable[..., Any]
Sample = dict[str, Any]

#: Linux forks a worker in a few milliseconds. Elsewhere it is spawned, and imports torch anew.
FORK = "fork" if sys.platform == "linux" else None

#: Python 3.12 warns of any fork where threads run. The workers of this file take no locks.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")

#: The generators that belong to the process, as opposed to one that a data set holds.
GLOBAL = ("torch", "random", "numpy")

#: The first 16 numbers of the generator that the data set holds, so that each can be recognised.
HELD = np.random.default_rng(7).random(16).tolist()


class Noise(Dataset[Sample]):
    """Eight samples. Each is one new number from every kind of generator there is."""

    def __init__(self) -> None:
        self.held = np.random.default_rng(7)  # made here, in the main process
        self.made_in_worker: np.random.Generator | None = None

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Sample:
        if self.made_in_worker is None:
            self.made_in_worker = np.random.default_rng(torch.initial_seed())
        return {
            "torch": torch.rand((), dtype=torch.float64).item(),
            "random": random.random(),
            "numpy": np.random.random(),
            "held": self.held.random(),
            "made in worker": self.made_in_worker.random(),
            "made for sample": np.random.default_rng((7, index)).random(),
            "seed": torch.initial_seed(),
        }


@lru_cache
def epochs_of(DataLoader: MakeLoader, workers: int, persistent: bool, epochs: int) -> list[Any]:
    """The samples of each epoch, from a loader in a program that seeds everything with 1.

    Batches of two: with two workers, samples 0, 1, 4, 5 are read by one, 2, 3, 6, 7 by the other.
    It is kept, so that the specs of this file start workers four times in all.
    """
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    options: dict[str, Any] = {"persistent_workers": persistent, "multiprocessing_context": FORK}
    loader = DataLoader(
        Noise(), batch_size=2, num_workers=workers, collate_fn=list, **options if workers else {}
    )
    return [[sample for batch in loader for sample in batch] for _ in range(epochs)]


def column(samples: list[Sample], name: str) -> list[Any]:
    """What one generator gave, sample by sample."""
    return [sample[name] for sample in samples]


class Imitation:
    """Does in one process what workers do: each has a copy of everything, and seeds of its own."""

    def __init__(self, dataset: Any, batch_size: int, num_workers: int = 0, **_: Any) -> None:
        self.dataset, self.batch_size, self.workers = dataset, batch_size, max(1, num_workers)

    def seed(self, base_seed: int, worker: int) -> None:
        torch.manual_seed(base_seed + worker)
        random.seed(base_seed + worker)
        np.random.seed((base_seed + worker) % 2**32)

    def dataset_of(self, worker: int) -> Any:  # noqa: ARG002
        return copy.deepcopy(self.dataset)

    def base_seed(self) -> int:
        return int(torch.empty((), dtype=torch.int64).random_())

    def __iter__(self) -> Iterator[Any]:
        base_seed = self.base_seed()
        order = torch.arange(len(self.dataset)).split(self.batch_size)
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()
        read: list[list[Any]] = []
        for worker in range(self.workers):
            self.seed(base_seed, worker)
            dataset = self.dataset_of(worker)
            of_worker = order[worker :: self.workers]
            read.append([[dataset[i] for i in batch.tolist()] for batch in of_worker])
            torch.set_rng_state(before[0])
            random.setstate(before[1])
            np.random.set_state(before[2])
        for batch in range(len(order)):
            yield read[batch % self.workers][batch // self.workers]


class ForgetsNumPy(Imitation):
    """Leaves NumPy as it was in the main process, as torch did before 1.9."""

    def seed(self, base_seed: int, worker: int) -> None:
        torch.manual_seed(base_seed + worker)
        random.seed(base_seed + worker)


class ForgetsRandom(Imitation):
    """Leaves Python's random as it was in the main process."""

    def seed(self, base_seed: int, worker: int) -> None:
        torch.manual_seed(base_seed + worker)
        np.random.seed((base_seed + worker) % 2**32)


class SeedsWorkersAlike(Imitation):
    """Gives all workers the seed of the first."""

    def seed(self, base_seed: int, worker: int) -> None:  # noqa: ARG002
        super().seed(base_seed, 0)


class SeedsEpochsAlike(Imitation):
    """Seeds the workers of every epoch as those of the first."""

    def base_seed(self) -> int:
        return 1


@rule(
    "DATA-04",
    "In each worker and epoch the loader seeds the global generators of torch, random and NumPy"
    " anew. A generator that the data set holds is copied into each worker, and replayed in each"
    " epoch unless persistent_workers=True.",
    kind="contract",
    source=RANDOMNESS,
    subject=DataLoader,
    violated_by=[ForgetsNumPy, ForgetsRandom, SeedsWorkersAlike, SeedsEpochsAlike],
    consequence="two workers, two epochs of 8 samples, noise from a generator that the data set"
    " holds: 4 different numbers in place of 16",
)
def test_the_global_generators_never_repeat_themselves(
    DataLoader: MakeLoader, observe: Observe
) -> None:
    """The popular advice to seed NumPy in a worker_init_fn has been outdated since torch 1.9."""
    first, second = epochs_of(DataLoader, workers=2, persistent=False, epochs=2)

    for generator in GLOBAL:
        observe(generator, column(first, generator))
        assert len({*column(first, generator), *column(second, generator)}) == 16


class SeedsWorkersFarApart(Imitation):
    """Seeds worker k with base_seed + 1000 * k."""

    def seed(self, base_seed: int, worker: int) -> None:
        super().seed(base_seed, 1000 * worker)


@spec("DATA-04", violated_by=[SeedsWorkersFarApart, SeedsWorkersAlike, SeedsEpochsAlike])
def test_worker_k_has_the_seed_base_plus_k_with_a_new_base_each_epoch(
    DataLoader: MakeLoader,
) -> None:
    """So its numbers can be had without it: torch's are those of a generator with that seed."""
    first, second = epochs_of(DataLoader, workers=2, persistent=False, epochs=2)
    bases = []
    for epoch in (first, second):
        base = epoch[0]["seed"]
        assert column(epoch, "seed") == [base + worker for worker in (0, 0, 1, 1, 0, 0, 1, 1)]
        of_workers = [Generator().manual_seed(base + worker) for worker in (0, 1)]
        assert column(epoch, "torch") == [
            torch.rand((), dtype=torch.float64, generator=of_workers[worker]).item()
            for worker in (0, 0, 1, 1, 0, 0, 1, 1)
        ]
        bases.append(base)
    assert bases[0] != bases[1]


class SharesTheDataSet(Imitation):
    """Lets the workers draw from one and the same data set, as threads would."""

    def dataset_of(self, worker: int) -> Any:  # noqa: ARG002
        return self.dataset


class SeedsWhatTheDataSetHolds(Imitation):
    """Finds the generator in the data set, and gives each worker one of its own."""

    def dataset_of(self, worker: int) -> Any:
        dataset = super().dataset_of(worker)
        dataset.held = np.random.default_rng(self.base_seed() + worker)
        return dataset


@spec("DATA-04", violated_by=[SharesTheDataSet, SeedsWhatTheDataSetHolds])
def test_a_generator_in_the_data_set_gives_both_workers_the_same_numbers(
    DataLoader: MakeLoader,
) -> None:
    """Each worker has a copy of the data set, made before the first number was drawn. The original,
    in the main process, never draws one, and is copied again for the next epoch."""
    first, second = epochs_of(DataLoader, workers=2, persistent=False, epochs=2)

    # Batch by batch: worker 0 draws its first two numbers, worker 1 too, then both their next two.
    same_for_both = [HELD[i] for i in (0, 1, 0, 1, 2, 3, 2, 3)]
    assert column(first, "held") == same_for_both
    assert column(second, "held") == same_for_both


class AlwaysNewWorkers(Imitation):
    """Starts workers for each epoch, persistent or not."""


@spec("DATA-04", violated_by=[AlwaysNewWorkers, SharesTheDataSet])
def test_persistent_workers_go_on_where_they_stopped(DataLoader: MakeLoader) -> None:
    """That ends the repetition of the epochs. The workers are still copies of each other."""
    first, second = epochs_of(DataLoader, workers=2, persistent=True, epochs=2)

    assert column(first, "held") == [HELD[i] for i in (0, 1, 0, 1, 2, 3, 2, 3)]
    assert column(second, "held") == [HELD[i] for i in (4, 5, 4, 5, 6, 7, 6, 7)]
    # The global generators go on, too: their seeds are those of the first epoch.
    assert column(second, "seed") == column(first, "seed")
    for generator in GLOBAL:
        assert len({*column(first, generator), *column(second, generator)}) == 16


@spec("DATA-04", violated_by=[SeedsWorkersAlike, SeedsEpochsAlike])
def test_a_generator_made_in_the_worker_from_its_seed_does_not_repeat_itself(
    DataLoader: MakeLoader,
) -> None:
    """The cure: make it when the first sample is asked for. There torch.initial_seed() is the seed
    of this worker in this epoch."""
    first, second = epochs_of(DataLoader, workers=2, persistent=False, epochs=2)

    assert len({*column(first, "made in worker"), *column(second, "made in worker")}) == 16


class DrawsInTheMainProcess(Imitation):
    """Leaves all drawing to the main process, whatever the number of workers."""

    def __init__(self, dataset: Any, batch_size: int, **_: Any) -> None:
        super().__init__(dataset, batch_size, num_workers=0)


class AsTheyCome(Imitation):
    """Yields all batches of worker 0, then all those of worker 1."""

    def __iter__(self) -> Iterator[Any]:
        batches = list(super().__iter__())
        return (
            batch for worker in range(self.workers) for batch in batches[worker :: self.workers]
        )


@rule(
    "DATA-05",
    "Random numbers drawn by workers depend on how many there are, so one seed gives one run only"
    " for one num_workers; numbers that follow from the sample's index do not.",
    kind="contract",
    source="https://docs.pytorch.org/docs/stable/notes/randomness.html#dataloader",
    subject=DataLoader,
    violated_by=[DrawsInTheMainProcess, AsTheyCome],
    consequence="seeded alike, a run with one worker and one with two share two of the first eight"
    " numbers of each generator",
)
def test_none_one_and_two_workers_draw_three_different_epochs(DataLoader: MakeLoader) -> None:
    """Without workers the main process draws. With one, that worker's seed counts; with two, its
    stream of numbers is cut after every batch, and a second one comes between."""
    none, one, two = (
        epochs_of(DataLoader, workers=0, persistent=False, epochs=1)[0],
        epochs_of(DataLoader, workers=1, persistent=False, epochs=1)[0],
        epochs_of(DataLoader, workers=2, persistent=False, epochs=2)[0],
    )
    for generator in (*GLOBAL, "made in worker"):
        for some, others in combinations((none, one, two), 2):
            assert column(some, generator) != column(others, generator)

    # The first worker's seed is the same in both runs: the first batch is, and nothing after it.
    for generator in GLOBAL:
        same = [a == b for a, b in zip(column(one, generator), column(two, generator), strict=True)]
        assert same == [True, True, False, False, False, False, False, False]

    # default_rng((seed, index)) needs no process. Let the epoch enter, too, or each is the same.
    assert column(none, "made for sample") == column(one, "made for sample")
    assert column(none, "made for sample") == column(two, "made for sample")
