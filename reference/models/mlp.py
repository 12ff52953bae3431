"""A feed-forward network of linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU between them, and dropout after each ReLU: a multi-layer perceptron.

    sizes: numbers of features, from the inputs to the outputs; (64, 32, 10) has one hidden layer
        of 32. dropout: probability that a hidden value is dropped in training mode.
    Inputs (..., sizes[0]), outputs (..., sizes[-1]): logits, with no activation after them.

    Source: https://docs.pytorch.org/tutorials/beginner/basics/buildmodel_tutorial.html
    """

    def __init__(self, sizes: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(sizes))
        self.dropout = nn.Dropout(dropout)

    def forward(self, inputs: Tensor) -> Tensor:
        *hidden, last = self.layers
        values = inputs
        for layer in hidden:
            values = self.dropout(torch.relu(layer(values)))
        logits: Tensor = last(values)
        return logits
