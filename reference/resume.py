"""What a run has to save beside model, optimizer and scheduler to go on in the middle of an epoch.

The two classes have `state_dict` and `load_state_dict`, so that `checkpoint.save_checkpoint` takes
them as parts. Their states are plain values, which `torch.load` reads by default.

Source: https://docs.pytorch.org/docs/stable/data.html#data-loading-order-and-sampler and
https://docs.pytorch.org/docs/stable/notes/randomness.html
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler


class ResumableBatches(Sampler[list[int]]):
    """The indices of shuffled batches, and how many of them have been trained on.

    The order of epoch e is the permutation drawn with the seed `seed + e`, so that it can be drawn
    again. Iterating gives the batches of this epoch that are still to come. Call `step()` after
    each batch that was trained on: a loader with workers asks for batches long before. The last
    batch of an epoch has what is left over.
    """

    def __init__(self, samples: int, batch_size: int, seed: int) -> None:
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.epoch = self.trained = 0

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size) - self.trained

    def __iter__(self) -> Iterator[list[int]]:
        drawn = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(self.samples, generator=drawn).split(self.batch_size)
        for batch in order[self.trained :]:
            yield batch.tolist()

    def step(self) -> None:
        """Note that one more batch has been trained on."""
        self.trained += 1
        if len(self) == 0:
            self.epoch, self.trained = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """The seed, the epochs done, and the batches of this epoch that are done."""
        return {"seed": self.seed, "epoch": self.epoch, "trained": self.trained}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the saved ones were. Samples and batch size are not saved."""
        self.seed, self.epoch = state_dict["seed"], state_dict["epoch"]
        self.trained = state_dict["trained"]


def resumable_loader(dataset: Any, batches: ResumableBatches) -> DataLoader[Any]:
    """A loader of these batches, with a generator of its own.

    A loader draws one number whenever it is iterated, and a resumed run iterates it once more. The
    global stream must not notice.
    """
    return DataLoader(dataset, batch_sampler=batches, generator=torch.Generator())


class RandomStates:
    """The global random states of Python's `random` and of NumPy.

    NumPy's state holds an array, which `torch.load` refuses by default; it is saved as a list.
    """

    def state_dict(self) -> dict[str, Any]:
        """Both states, as they are now."""
        kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
        numbers = [int(key) for key in keys]
        numpy = (str(kind), numbers, int(position), int(has_gauss), float(gauss))
        return {"python": random.getstate(), "numpy": numpy}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put both states back."""
        random.setstate(state_dict["python"])
        np.random.set_state(state_dict["numpy"])
