"""A task with rare positives, shared by the specs of this chapter: is this digit an 8?"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference import data
from reference.losses import binary
from reference.training import train_one_epoch
from specs.losses.gradients import Loss

#: Steps of a training.
STEPS = 80


def eights() -> data.Split:
    """Images of 4 x 4 pixels, flattened; the target is 1 for an 8 and 0 for every other digit.

    139 of 1,437 training images and 35 of 360 test images are eights.
    """

    def shrunk(images: Tensor) -> Tensor:
        return F.avg_pool2d(images.view(-1, 1, 8, 8), kernel_size=2).flatten(start_dim=1)

    split = data.digits()
    return data.Split(
        shrunk(split.train_inputs),
        (split.train_targets == 8).float(),
        shrunk(split.test_inputs),
        (split.test_targets == 8).float(),
    )


def logits_after_training(batches: list[tuple[Tensor, Tensor]], loss_function: Loss) -> Tensor:
    """What a logistic regression, trained on these batches, says about the test images."""
    linear = nn.Linear(16, 1)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    model = nn.Sequential(linear, nn.Flatten(start_dim=0))
    train_one_epoch(model, batches, loss_function, torch.optim.Adam(model.parameters(), lr=0.1))
    with torch.no_grad():
        logits: Tensor = model(eights().test_inputs)
    return logits


def predicted_share(logits: Tensor) -> float:
    """The share of eights that the probabilities announce: their mean."""
    return binary.sigmoid(logits).mean().item()
