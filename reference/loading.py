"""Feeding a model: a data set, a loader, samplers and collate functions as a learner writes them.

A data set is anything with `len(dataset)` and `dataset[i]`, one sample. A sampler yields indices,
a batch sampler lists of them, a collate function makes one batch of a list of samples. What is
written here fits `torch.utils.data.DataLoader`, and `Loader` is that class without its processes.

Source: https://docs.pytorch.org/docs/stable/data.html
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    Subset,
    get_worker_info,
)


class TableDataset(Dataset[Any]):
    """Sample i is row i of `inputs` and entry i of `targets`; a transform is applied to the input.

    Raises ValueError if the lengths differ, IndexError for a row that does not exist.

    Source: https://docs.pytorch.org/docs/stable/data.html#map-style-datasets
    """

    def __init__(
        self, inputs: Tensor, targets: Tensor, transform: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        if len(inputs) != len(targets):
            raise ValueError(f"{len(inputs)} inputs but {len(targets)} targets")
        self.inputs, self.targets, self.transform = inputs, targets, transform

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        sample = self.inputs[index]
        return sample if self.transform is None else self.transform(sample), self.targets[index]


class ShardedStream(IterableDataset[Any]):
    """A stream of samples of which worker k of n yields those at k, k + n, k + 2n, ...

    Without workers it yields all of them.

    Source: https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.IterableDataset
    """

    def __init__(self, samples: Sequence[Any]) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for index in range(first, len(self.samples), step):
            yield self.samples[index]


def collate(samples: Sequence[Any]) -> Any:
    """One batch of a list of samples: tensors are stacked, numbers become a tensor.

    Python floats become float64, integers int64. Strings stay as they are. Dictionaries, tuples
    and lists are collated entry by entry; tuples and lists give a list.

    Raises TypeError for samples of another type, RuntimeError for tensors of different shapes.

    Source: https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.default_collate
    """
    first = samples[0]
    if isinstance(first, Tensor):
        return torch.stack(list(samples))
    if isinstance(first, float):
        return torch.tensor(samples, dtype=torch.float64)
    if isinstance(first, int):
        return torch.tensor(samples)
    if isinstance(first, str):
        return samples
    if isinstance(first, Mapping):
        return {key: collate([sample[key] for sample in samples]) for key in first}
    if isinstance(first, tuple | list):
        return [collate(entries) for entries in zip(*samples, strict=True)]
    raise TypeError(f"no batch can be made of {type(first).__name__}")


class Loader:
    """Batches of a data set, in its order or shuffled anew for each pass.

    The last batch has what is left over; with `drop_last` a smaller one is left out.

    Source: https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.DataLoader
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        shuffle: bool = False,
        drop_last: bool = False,
    ) -> None:
        self.dataset, self.batch_size, self.shuffle = dataset, batch_size, shuffle
        self.drop_last = drop_last

    def __len__(self) -> int:
        full, left_over = divmod(len(self.dataset), self.batch_size)
        return full + (1 if left_over and not self.drop_last else 0)

    def __iter__(self) -> Iterator[Any]:
        order = list(range(len(self.dataset)))
        if self.shuffle:
            order = torch.randperm(len(self.dataset)).tolist()
        for batch in range(len(self)):
            chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield collate([self.dataset[index] for index in chosen])


def mean_over_samples(batch_means: Sequence[float], batch_sizes: Sequence[int]) -> float:
    """The mean over all samples, from each batch's mean: sum(size * mean) / sum(size).

    Source: https://docs.pytorch.org/docs/stable/data.html#loading-batched-and-non-batched-data
    """
    total = sum(mean * size for mean, size in zip(batch_means, batch_sizes, strict=True))
    return total / sum(batch_sizes)


def seeded_loader(dataset: Any, batch_size: int, *, shuffle: bool, seed: int) -> DataLoader[Any]:
    """A DataLoader whose orders follow from the seed, and which leaves the global generator alone.

    Source: https://docs.pytorch.org/docs/stable/notes/randomness.html#dataloader
    """
    own = Generator().manual_seed(seed)
    return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle, generator=own)


def random_split(
    dataset: Any, lengths: Sequence[float], generator: Generator | None = None
) -> list[Subset[Any]]:
    """Disjoint random parts of a data set, of the given lengths or fractions.

    Lengths sum to n. Fractions sum to 1: a part has floor(n * fraction) samples, and what is left
    over goes to the parts in turn, one each, from the first.

    Raises ValueError if the lengths sum to neither n nor 1.

    Source: https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.random_split
    """
    count = len(dataset)
    if abs(sum(lengths) - 1) < 1e-6:
        sizes = [math.floor(count * fraction) for fraction in lengths]
        for part in range(count - sum(sizes)):
            sizes[part % len(sizes)] += 1
    else:
        sizes = [int(length) for length in lengths]
    if sum(sizes) != count:
        raise ValueError(f"lengths {list(lengths)} sum to neither 1 nor {count}")
    order = torch.randperm(count, generator=generator).tolist()
    starts = [sum(sizes[:part]) for part in range(len(sizes))]
    return [
        Subset(dataset, order[start : start + size])
        for start, size in zip(starts, sizes, strict=True)
    ]


class WeightedRandomSampler(Sampler[int]):
    """Draws index i with probability weights[i] / sum(weights), `num_samples` times.

    Without replacement an index that was drawn has weight 0 from then on.

    Source: https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.WeightedRandomSampler
    """

    def __init__(
        self,
        weights: Sequence[float],
        num_samples: int,
        replacement: bool = True,
        generator: Generator | None = None,
    ) -> None:
        self.weights = torch.as_tensor(weights, dtype=torch.float64)
        self.num_samples, self.replacement, self.generator = num_samples, replacement, generator

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        weights = self.weights.clone()
        for _ in range(self.num_samples):
            # Lay the weights end to end on a line and throw a dart at it.
            ends = weights.cumsum(dim=0)
            dart = torch.rand((), dtype=torch.float64, generator=self.generator) * ends[-1]
            index = int((ends <= dart).sum())
            yield index
            if not self.replacement:
                weights[index] = 0
