"""The two classifiers that the rules on logits describe, as procedures: what goes into the loss
while training, and what is applied to the output at inference.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BinaryClassifier(nn.Module):
    """A linear model of one logit: raw logits into the loss, sigmoid only at inference.

    Inputs have shape (N, features); targets are floating point of shape (N), 1 for positive. Its
    only layer is `linear`. Raises RuntimeError for inputs of another shape.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.BCEWithLogitsLoss.html
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of shape (N): any real number, positive where class 1 is the more probable."""
        logits: Tensor = self.linear(inputs)
        return logits.squeeze(1)

    def training_loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The number to minimise, from raw logits."""
        return F.binary_cross_entropy_with_logits(self(inputs), targets)

    @torch.no_grad()
    def probabilities(self, inputs: Tensor) -> Tensor:
        """Probability of class 1 for each sample, shape (N)."""
        return torch.sigmoid(self(inputs))


class MultiClassClassifier(nn.Module):
    """A linear model of one logit per class: raw logits into the loss, softmax only at inference.

    Inputs have shape (N, features); targets are class indices, int64 of shape (N). Its only layer
    is `linear`. Raises RuntimeError for inputs of another shape.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of shape (N, classes); the largest is the most probable class."""
        logits: Tensor = self.linear(inputs)
        return logits

    def training_loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The number to minimise, from raw logits."""
        return F.cross_entropy(self(inputs), targets)

    @torch.no_grad()
    def probabilities(self, inputs: Tensor) -> Tensor:
        """Probability of each class for each sample, shape (N, classes); rows sum to 1."""
        return torch.softmax(self(inputs), dim=1)
