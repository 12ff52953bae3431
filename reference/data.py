"""The real data sets that the specs train on: they come with scikit-learn, nothing is downloaded.

scikit-learn takes a second to import, so it is imported only when a data set is asked for.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

#: Share of the samples that is held out, and the seed of the split.
TEST_SHARE = 0.2
SPLIT_SEED = 0


class Split(NamedTuple):
    """A data set cut into a training part and a test part; samples lie along dimension 0."""

    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor


def digits() -> Split:
    """Handwritten digits: 1,797 images of 8 x 8 pixels, 1,437 of them for training.

    Inputs are float32 of shape (n, 64) with grey levels from 0 to 1, targets int64 of shape (n,)
    with the digit from 0 to 9. The split keeps the share of each digit.

    Source: https://scikit-learn.org/stable/modules/generated/sklearn.datasets.load_digits.html
    """
    return Split(*(part.clone() for part in _digits()))


def breast_cancer() -> Split:
    """Breast cancer (Wisconsin, diagnostic): 569 tumours with 30 measurements, 455 for training.

    Inputs are float32 of shape (n, 30), standardised with the mean and the standard deviation of
    the training part only. Targets are float32 of shape (n,): 1 for malignant, 0 for benign. The
    split keeps the share of both classes.

    Source:
    https://scikit-learn.org/stable/modules/generated/sklearn.datasets.load_breast_cancer.html
    """
    return Split(*(part.clone() for part in _breast_cancer()))


def wine() -> Split:
    """Wine: 178 Italian wines with 13 measurements of three cultivars, 142 for training.

    Inputs are float32 of shape (n, 13), standardised with the mean and the standard deviation of
    the training part only. Targets are int64 of shape (n,): the cultivar from 0 to 2. The split
    keeps the share of each cultivar.

    Source: https://scikit-learn.org/stable/modules/generated/sklearn.datasets.load_wine.html
    """
    return Split(*(part.clone() for part in _wine()))


def batches(
    inputs: Tensor, targets: Tensor, batch_size: int, generator: torch.Generator | None = None
) -> list[tuple[Tensor, Tensor]]:
    """Cut a data set into batches; the last one is smaller when the sizes do not divide.

    With a generator the samples are shuffled by it, without one they keep their order.

    Raises ValueError if the batch size is below 1 or the lengths differ.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if len(inputs) != len(targets):
        raise ValueError(f"{len(inputs)} inputs but {len(targets)} targets")
    count = len(inputs)
    order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
    return [(inputs[chosen], targets[chosen]) for chosen in order.split(batch_size)]


@lru_cache(maxsize=1)
def _digits() -> Split:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return _split(
        torch.as_tensor(images / 16.0, dtype=torch.float32),
        torch.as_tensor(labels, dtype=torch.int64),
    )


@lru_cache(maxsize=1)
def _breast_cancer() -> Split:
    from sklearn.datasets import load_breast_cancer

    measurements, benign = load_breast_cancer(return_X_y=True)
    targets = torch.as_tensor(1.0 - benign, dtype=torch.float32)
    return _standardised(_split(torch.as_tensor(measurements), targets))


@lru_cache(maxsize=1)
def _wine() -> Split:
    from sklearn.datasets import load_wine

    measurements, cultivars = load_wine(return_X_y=True)
    targets = torch.as_tensor(cultivars, dtype=torch.int64)
    return _standardised(_split(torch.as_tensor(measurements), targets))


def _standardised(split: Split) -> Split:
    """Every measurement with mean 0 and standard deviation 1 on the training part, as float32."""
    mean, std = split.train_inputs.mean(dim=0), split.train_inputs.std(dim=0)
    return split._replace(
        train_inputs=((split.train_inputs - mean) / std).float(),
        test_inputs=((split.test_inputs - mean) / std).float(),
    )


def _split(inputs: Tensor, targets: Tensor) -> Split:
    from sklearn.model_selection import train_test_split

    train, test = train_test_split(
        range(len(inputs)), test_size=TEST_SHARE, random_state=SPLIT_SEED, stratify=targets
    )
    return Split(inputs[train], targets[train], inputs[test], targets[test])
