"""The two layers of a feed-forward network that are not activations: linear and dropout."""

from __future__ import annotations

import torch
from torch import Tensor


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y[..., o] = sum over i of weight[o, i] * x[..., i], plus bias[o].

    inputs: (..., in), any number of leading dimensions, also none.
    weight: (out, in). bias: (out,), or None for none.
    Returns (..., out).

    Raises ValueError if the last dimension of the inputs is not that of the weight.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.Linear.html
    """
    if inputs.shape[-1] != weight.shape[1]:
        raise ValueError(f"{inputs.shape[-1]} features for a weight of {tuple(weight.shape)}")
    outputs = (inputs.unsqueeze(-2) * weight).sum(dim=-1)
    return outputs if bias is None else outputs + bias


def dropout(inputs: Tensor, kept: Tensor, p: float) -> Tensor:
    """y = x / (1 - p) where the value is kept, and 0 where it is dropped.

    Each value is dropped with probability p, so that the expectation of y is
    (1 - p) * x / (1 - p) + p * 0 = x.

    kept: bool, the shape of the inputs; which ones are kept is up to the caller.

    Raises ValueError if p is not from 0 to 1.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.Dropout.html and
    https://arxiv.org/abs/1207.0580
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p must be from 0 to 1, got {p}")
    if p == 1:
        return inputs * 0
    return torch.where(kept, inputs / (1 - p), 0.0)
