"""Bringing measurements to one scale, without looking at the test part."""

from __future__ import annotations

import torch
from torch import Tensor


def standardised(train_inputs: Tensor, test_inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Both parts as (x - mean) / std, with the mean and the std of the training part only.

    Shapes: (samples, features) each, any number of test samples. Every feature of the training
    part comes out with mean 0 and standard deviation 1, the one that divides by n - 1; a feature
    that is constant there is only centred. What the scaled numbers count are standard deviations.

    Raises ValueError for fewer than two training samples, which have no standard deviation.

    Source: https://scikit-learn.org/stable/common_pitfalls.html#data-leakage
    """
    if len(train_inputs) < 2:
        raise ValueError(f"a standard deviation takes two samples, got {len(train_inputs)}")
    mean = train_inputs.mean(dim=0)
    variance = (train_inputs - mean).pow(2).sum(dim=0) / (len(train_inputs) - 1)
    std = torch.where(variance > 0, variance.sqrt(), torch.ones_like(variance))
    return (train_inputs - mean) / std, (test_inputs - mean) / std
