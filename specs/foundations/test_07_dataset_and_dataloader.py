"""Data sets and loaders: how samples become batches.

At the end you can write a data set, cut it into batches, shuffle, split and balance it, and have
worker processes read it, without losing a sample. A *loader* goes through a data set batch by
batch; one pass is an *epoch*. The samples are 178 wines: 13 measurements, one of three cultivars.
Read before: lesson 1, tensors, and lesson 6, logistic regression.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from itertools import chain, product
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn, tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
    random_split,
)

from reference import data, loading
from reference.training import accuracy, fit
from specs.harness import rule, spec
from specs.harness.observations import Observe
from specs.harness.versions import torch_release

DATA = "https://docs.pytorch.org/docs/stable/data.html"
Make = Callable[..., Any]


def seeded(seed: int) -> Generator:
    """A source of random numbers of its own."""
    return Generator().manual_seed(seed)


def paired_with_the_neighbour(inputs: Tensor, targets: Tensor) -> Any:
    """Gives each input the target of another."""
    return TensorDataset(inputs, targets.roll(1))


@rule(
    "DATA-11",
    "A map-style data set is len(dataset), the number of samples, and dataset[i], one of them.",
    kind="contract",
    source=f"{DATA}#map-style-datasets",
    subject=[TensorDataset, loading.TableDataset],
    violated_by=[paired_with_the_neighbour],
)
def test_a_sample_is_a_row_with_its_target(TensorDataset: Make) -> None:
    """Batches and their order are the loader's business."""
    wine = data.wine()
    dataset = TensorDataset(wine.train_inputs, wine.train_targets)
    measurements, cultivars = zip(*(dataset[i] for i in range(len(dataset))), strict=True)
    assert torch.equal(torch.stack(measurements), wine.train_inputs)
    assert torch.equal(torch.stack(cultivars), wine.train_targets)
    with pytest.raises(IndexError):  # by which Python's `for` knows that the samples are over
        dataset[142]
    if torch_release() != (2, 10):  # the check is missing in this release, and only there
        with pytest.raises((ValueError, AssertionError)):  # three inputs, two targets
            TensorDataset(torch.zeros(3), torch.zeros(2))


def never_dropped(dataset: Any, batch_size: int, drop_last: bool) -> Any:
    """Keeps the smaller last batch in any case."""
    return DataLoader(dataset, batch_size, drop_last=drop_last and False)


@rule(
    "DATA-01",
    "N samples make ceil(N / B) batches of B, the last one smaller, or floor(N / B) with drop_last;"
    " so a mean over all samples weights the mean of each batch by its size.",
    kind="contract",
    source=f"{DATA}#torch.utils.data.DataLoader",
    subject=[DataLoader, loading.Loader],
    violated_by=[never_dropped],
    consequence="With batches of 3 the mean of 0 to 9, taken as the mean of batch means, is 5.25.",
)
def test_batches_are_slices(DataLoader: Make) -> None:
    """A range has a length and an element i, so it is a data set, too."""
    for count, size, drop_last in product(range(9), range(1, 5), (False, True)):
        loader = DataLoader(range(count), batch_size=size, drop_last=drop_last)
        batches = [batch.tolist() for batch in loader]
        slices = [list(range(count))[start : start + size] for start in range(0, count, size)]
        assert batches == [one for one in slices if len(one) == size or not drop_last]
        assert len(loader) == len(batches)


def mean_of_batch_means(batch_means: list[float], batch_sizes: list[int]) -> float:
    """Gives every batch the same weight."""
    return sum(batch_means) / len(batch_sizes)


@spec("DATA-01", subject=loading.mean_over_samples, violated_by=[mean_of_batch_means])
def test_a_small_last_batch_counts_less(mean_over_samples: Make) -> None:
    """Or else the lone 9 at the end weighs as much as three others: (1 + 4 + 7 + 9) / 4 = 5.25."""
    # 0 to 9 in batches of 3: [0, 1, 2], [3, 4, 5], [6, 7, 8], [9].
    assert mean_over_samples([1.0, 4.0, 7.0, 9.0], [3, 3, 3, 1]) == sum(range(10)) / 10


def shuffled_once(dataset: Any, batch_size: int, shuffle: bool = False) -> Any:
    """Repeats the first shuffled epoch."""
    return list(loading.Loader(dataset, batch_size, shuffle))


def never_shuffled(dataset: Any, batch_size: int, shuffle: bool = False) -> Any:
    """Keeps the order of the data set, whatever it is told."""
    return DataLoader(dataset, batch_size, shuffle=shuffle and False)


@rule(
    "DATA-02",
    "A loader keeps the order of the data set; with shuffle=True each epoch has one of its own.",
    kind="contract",
    source=f"{DATA}#data-loading-order-and-sampler",
    subject=[DataLoader, loading.Loader],
    violated_by=[never_shuffled, shuffled_once],
    consequence="Digits in the order of their classes: after one epoch 10% of the answers are"
    " right. Shuffled, 78 to 88% are (eight seeds).",
)
def test_shuffling_is_asked_for_and_new_in_each_epoch(DataLoader: Make) -> None:
    """In each epoch every sample comes once."""
    samples = list(range(21))

    def epoch(loader: Any) -> list[int]:
        return torch.cat(list(loader)).tolist()

    assert epoch(DataLoader(samples, batch_size=5)) == samples
    shuffled = DataLoader(samples, batch_size=5, shuffle=True)
    first, second = epoch(shuffled), epoch(shuffled)
    assert sorted(first) == sorted(second) == samples
    assert first != second
    assert max(first[:5]) - min(first[:5]) > 4  # the first batch is not five neighbours


@spec("DATA-02", violated_by=[never_shuffled])
def test_sorted_digits_are_learned_only_if_shuffled(DataLoader: Make, observe: Observe) -> None:
    """The last batches hold nothing but nines: the model unlearns the rest. 50% is asked for."""
    digits = data.digits()
    by_class = digits.train_targets.argsort()
    dataset = TensorDataset(digits.train_inputs[by_class], digits.train_targets[by_class])
    model = nn.Linear(64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    fit(model, DataLoader(dataset, 64, shuffle=True), nn.CrossEntropyLoss(), optimizer, epochs=1)
    share_right = accuracy(model, digits.test_inputs, digits.test_targets)
    observe("accuracy", share_right)
    assert share_right > 0.5


def with_a_seeded_sampler_only(dataset: Any, *, shuffle: bool, seed: int, **options: Any) -> Any:
    """Seeds the order, and leaves the loader itself to the global generator."""
    order = RandomSampler(dataset, generator=seeded(seed))
    return DataLoader(dataset, sampler=order if shuffle else None, **options)


@rule(
    "DATA-03",
    "Seed a generator for each loader: else each epoch draws from the global one, even unshuffled.",
    kind="practice",
    source="https://docs.pytorch.org/docs/stable/notes/randomness.html#dataloader",
    subject=loading.seeded_loader,
    violated_by=[with_a_seeded_sampler_only],
    consequence="Wine: a look at the test set after each epoch moves the weights by 0.004 or more.",
)
def test_a_seed_of_its_own_gives_a_loader_its_orders(seeded_loader: Make) -> None:
    """And what else is random does not notice that the loader was there."""
    global_state = torch.get_rng_state()

    def two_epochs(seed: int) -> list[list[int]]:
        loader = seeded_loader(range(20), batch_size=5, shuffle=True, seed=seed)
        return [torch.cat(list(loader)).tolist() for _ in range(2)]

    first, second = two_epochs(seed=2)
    assert first != second
    assert two_epochs(seed=2) == [first, second]
    assert two_epochs(seed=3) != [first, second]
    assert list(seeded_loader([6, 7, 8, 9], batch_size=1, shuffle=False, seed=2)) == [6, 7, 8, 9]
    assert torch.equal(torch.get_rng_state(), global_state)


@spec("DATA-03", violated_by=[with_a_seeded_sampler_only])
def test_then_a_look_at_the_test_set_does_not_change_the_training(seeded_loader: Make) -> None:
    """Here the training shuffles by the global generator."""
    wine = data.wine()
    dataset = TensorDataset(wine.train_inputs, wine.train_targets)
    train_set = DataLoader(dataset, batch_size=16, shuffle=True)
    test_set = seeded_loader(wine.test_inputs, batch_size=16, shuffle=False, seed=1)

    def trained_weights(after_each_epoch: Callable[[], Any]) -> Tensor:
        torch.manual_seed(0)
        model = nn.Linear(13, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            fit(model, train_set, nn.CrossEntropyLoss(), optimizer, epochs=1)
            after_each_epoch()
        return model.weight.detach()

    assert torch.equal(trained_weights(lambda: list(test_set)), trained_weights(lambda: None))


#: Two samples, and the batch that is made of them.
BATCHES: list[tuple[list[Any], Any]] = [
    ([tensor([1.0, 2.0]), tensor([3.0, 4.0])], tensor([[1.0, 2.0], [3.0, 4.0]])),
    ([1, 2], tensor([1, 2])),
    ([1.0, 2.0], tensor([1.0, 2.0], dtype=torch.float64)),  # not float32
    (["red", "white"], ["red", "white"]),
    ([(tensor([1.0]), 7), (tensor([2.0]), 8)], [tensor([[1.0], [2.0]]), tensor([7, 8])]),
    ([{"age": 7}, {"age": 8}], {"age": tensor([7, 8])}),
    ([[1, 2], [3, 4]], [tensor([1, 3]), tensor([2, 4])]),  # a list is no row of a table
]


def as_float32(samples: list[Any]) -> Any:
    """Makes Python's floats float32, as torch.tensor does."""
    return tensor(samples) if isinstance(samples[0], float) else default_collate(samples)


@rule(
    "DATA-07",
    "collate_fn makes a batch of samples; the default one stacks tensors of one shape, makes"
    " Python floats float64, and refuses None and different shapes.",
    kind="contract",
    source=f"{DATA}#working-with-collate-fn",
    subject=[default_collate, loading.collate],
    violated_by=[as_float32],
)
def test_samples_become_one_batch(default_collate: Make) -> None:
    """Compared as printed, since a printed tensor names its dtype."""
    for samples, batch in BATCHES:
        assert str(default_collate(samples)) == str(batch)


@spec("DATA-07", violated_by=[pad_sequence])
def test_missing_and_ragged_samples_need_a_collate_fn_of_your_own(default_collate: Make) -> None:
    """For example torch's pad_sequence: zeros fill the shorter up, and time is the first axis."""
    with pytest.raises(TypeError):
        default_collate([None, None])
    ragged = [tensor([1.0, 1.0]), tensor([2.0, 2.0, 2.0])]
    with pytest.raises(RuntimeError, match="stack expects each tensor to be equal size"):
        default_collate(ragged)
    (batch,) = DataLoader(ragged, batch_size=2, collate_fn=pad_sequence)
    assert batch.tolist() == [[1, 2], [1, 2], [0, 2]]


#: How many samples, which lengths or fractions are asked for, and what comes.
SPLITS: list[tuple[int, list[float], list[int]]] = [
    (10, [7, 3], [7, 3]),
    (11, [0.25, 0.25, 0.25, 0.25], [3, 3, 3, 2]),  # 2 each, and three left over
    (100, [0.71, 0.29], [72, 28]),  # since 0.29 * 100 is 28.999999999999996
]


def each_part_from_a_draw_of_its_own(dataset: Any, lengths: Any, generator: Any = None) -> Any:
    """Draws anew for each part: some samples are in two parts, others in none."""
    return [loading.random_split(dataset, lengths, generator)[i] for i in range(len(lengths))]


@rule(
    "DATA-08",
    "random_split deals each sample to one part, at random; of fractions the floors are taken, and"
    " what is left over goes to the parts in turn, one each.",
    kind="contract",
    source=f"{DATA}#torch.utils.data.random_split",
    subject=[random_split, loading.random_split],
    violated_by=[each_part_from_a_draw_of_its_own],
)
def test_parts_are_disjoint_and_complete(random_split: Make) -> None:
    """A seed makes the split the same tomorrow."""
    for count, lengths, sizes in SPLITS:
        first, again, other = (
            [list(part) for part in random_split(range(count), lengths, seeded(seed))]
            for seed in (1, 1, 2)
        )
        assert [len(part) for part in first] == sizes
        assert sorted(chain(*first)) == list(range(count))
        assert first == again != other
    with pytest.raises(ValueError, match="lengths"):
        random_split(range(10), [7, 2])


def without_weights(weights: Tensor, num_samples: int, **options: Any) -> Any:
    """Draws each sample alike."""
    return WeightedRandomSampler(torch.ones_like(weights), num_samples, **options)


@rule(
    "DATA-12",
    "A sampler yields the indices of an epoch; WeightedRandomSampler draws index i with probability"
    " w[i] / sum(w), so it takes one weight for each sample, not for each class.",
    kind="contract",
    source=f"{DATA}#torch.utils.data.WeightedRandomSampler",
    subject=[WeightedRandomSampler, loading.WeightedRandomSampler],
    violated_by=[without_weights],
)
def test_weights_of_one_over_the_class_size_balance(WeightedRandomSampler: Make) -> None:
    """38 wines are of the third cultivar, 104 are not; of those drawn about half are."""
    third = (data.wine().train_targets == 2).long()
    weights = (1 / third.bincount())[third]
    drawn = list(WeightedRandomSampler(weights, 3000, generator=seeded(1)))
    # The count has the standard deviation sqrt(3000 * 1/2 * 1/2) = 27; five of them are allowed.
    assert abs(third[drawn].sum() - 1500) < 5 * 27
    assert drawn == list(WeightedRandomSampler(weights, 3000, generator=seeded(1)))
    assert sorted(WeightedRandomSampler(weights, 142, replacement=False)) == list(range(142))


#: Worker processes read for the loader. Linux forks them in 0.1 s. Where they are spawned (macOS,
#: Windows) each imports torch anew, and needs a data set that is defined at a module's top level.
FORK = "fork" if sys.platform == "linux" else None
TWO_WORKERS: dict[str, Any] = {"num_workers": 2, "multiprocessing_context": FORK}


class Stream(IterableDataset[int]):
    """An iterable-style data set: no sample i, only a next one. It need not tell a length."""

    def __init__(self, samples: range) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[int]:
        return iter(self.samples)


@rule(
    "DATA-06",
    "In worker k of n, as get_worker_info() tells, a stream yields only its share, its shard.",
    kind="practice",
    source=f"{DATA}#torch.utils.data.IterableDataset",
    subject=loading.ShardedStream,
    violated_by=[Stream],
    consequence="With two workers, an epoch on a stream that does not ask has every sample twice.",
)
def test_two_workers_share_a_stream(ShardedStream: Make) -> None:
    """Each worker makes batches of its own share, so each has a smaller last one."""
    batches = [batch.tolist() for batch in DataLoader(ShardedStream(range(11)), 4, **TWO_WORKERS)]
    assert batches == [[0, 2, 4, 6], [1, 3, 5, 7], [8, 10], [9]]
    assert list(ShardedStream(range(11))) == list(range(11))  # without workers


def lenient(dataset: Any, batch_size: int = 1, **_: Any) -> Any:
    """Drops whatever else it is told: starts no workers, and refuses nothing."""
    return DataLoader(dataset, batch_size)


@rule(
    "CLAIM-17",
    "An IterableDataset with n workers yields every sample n times, without any warning.",
    kind="claim",
    verdict="holds if it does not shard itself, and batches hold n samples or more",
    source=f"{DATA}#torch.utils.data.IterableDataset",
    subject=DataLoader,
    violated_by=[lenient],
)
def test_two_workers_read_everything_twice_and_seldom_with_a_warning(DataLoader: Make) -> None:
    """The loader then warns only of more batches than there are samples: it mixes the two up."""
    for batch_size, warns in ((2, False), (1, True)):
        loader = DataLoader(Stream(range(4)), batch_size, **TWO_WORKERS)
        assert len(loader) == 4 / batch_size  # a progress bar asks for it
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            samples = torch.cat(list(loader)).tolist()
        assert sorted(samples) == [0, 0, 1, 1, 2, 2, 3, 3]
        assert any("Length of IterableDataset" in str(one.message) for one in caught) == warns


#: Options that do not go together, and how the error begins.
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"shuffle": True, "sampler": [1, 0]}, "sampler option is mutually exclusive with shuffle"),
    ({"shuffle": True, "batch_sampler": [[1, 0]]}, "batch_sampler option is mutually exclusive"),
    ({"persistent_workers": True}, "persistent_workers option needs num_workers > 0"),
    ({"prefetch_factor": 2}, "prefetch_factor option could only be specified in multiprocessing"),
]


@rule(
    "DATA-09",
    "Options that contradict each other are refused when the loader is made: shuffle beside a"
    " sampler, what is for workers without workers (pin_memory is not: CLAIM-18).",
    kind="contract",
    source=f"{DATA}#torch.utils.data.DataLoader",
    subject=DataLoader,
    violated_by=[lenient],
)
def test_contradictions_are_refused(DataLoader: Make) -> None:
    """So they are found before the training starts."""
    for options, message in REFUSED:
        with pytest.raises(ValueError, match=message):
            DataLoader([7, 8], **options)
    with pytest.raises(ValueError, match="expected unspecified shuffle option"):
        DataLoader(Stream(range(4)), shuffle=True)
