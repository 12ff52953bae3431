"""Gradient descent on a linear model, written four times: each time PyTorch does more of the work.

All four fit y = x @ weights + bias to minimise the mean squared error, from weights and a bias of
0, with all samples in every step. They take the same steps.

Source: https://docs.pytorch.org/tutorials/beginner/pytorch_with_examples.html and
https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn


class Descent(NamedTuple):
    """Where a descent ended, and how it got there.

    weights: (d,), bias: a tensor with one element, both in the dtype of the inputs; losses: the
    mean squared error before each step.

    Source: https://docs.pytorch.org/tutorials/beginner/pytorch_with_examples.html
    """

    weights: Tensor
    bias: Tensor
    losses: list[float]


def by_hand(inputs: Tensor, targets: Tensor, *, lr: float, steps: int) -> Descent:
    """NumPy, and the gradient worked out on paper.

    loss = mean(error**2) where error = x @ weights + bias - y, and so
    d loss / d weights = 2 / n * x.T @ error and d loss / d bias = 2 / n * sum(error).

    inputs: (n, d), targets: (n,). Raises ValueError if these shapes do not fit.
    Source: https://docs.pytorch.org/tutorials/beginner/pytorch_with_examples.html
    """
    _check(inputs, targets)
    x, y = inputs.numpy(), targets.numpy()
    n, d = x.shape
    weights, bias = np.zeros(d, x.dtype), np.zeros(1, x.dtype)
    losses = []
    for _ in range(steps):
        error = x @ weights + bias - y
        losses.append(float((error**2).mean()))
        weights = weights - lr * 2 / n * (x.T @ error)
        bias = bias - lr * 2 / n * error.sum()
    return Descent(torch.as_tensor(weights), torch.as_tensor(bias[0]), losses)


def with_autograd(inputs: Tensor, targets: Tensor, *, lr: float, steps: int) -> Descent:
    """Tensors: `backward` gives the gradient, so that only the loss is a formula of ours.

    Shapes and errors as in `by_hand`.
    Source: https://docs.pytorch.org/tutorials/beginner/pytorch_with_examples.html
    """
    _check(inputs, targets)
    weights = torch.zeros(inputs.shape[1], dtype=inputs.dtype, requires_grad=True)
    bias = torch.zeros((), dtype=inputs.dtype, requires_grad=True)
    losses = []
    for _ in range(steps):
        error = inputs @ weights + bias - targets
        loss = (error**2).mean()
        losses.append(loss.item())
        loss.backward()
        with torch.no_grad():  # a step is no part of what is differentiated
            for parameter in (weights, bias):
                assert parameter.grad is not None
                parameter -= lr * parameter.grad
                parameter.grad = None  # or the next backward would add to it
    return Descent(weights.detach(), bias.detach(), losses)


def with_loss(inputs: Tensor, targets: Tensor, *, lr: float, steps: int) -> Descent:
    """The loss comes from torch.nn as well; model and update are still ours.

    Shapes and errors as in `by_hand`.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.MSELoss.html
    """
    _check(inputs, targets)
    weights = torch.zeros(inputs.shape[1], dtype=inputs.dtype, requires_grad=True)
    bias = torch.zeros((), dtype=inputs.dtype, requires_grad=True)
    loss_function = nn.MSELoss()
    losses = []
    for _ in range(steps):
        loss = loss_function(inputs @ weights + bias, targets)
        losses.append(loss.item())
        by_weights, by_bias = torch.autograd.grad(loss, [weights, bias])
        with torch.no_grad():
            weights -= lr * by_weights
            bias -= lr * by_bias
    return Descent(weights.detach(), bias.detach(), losses)


def with_torch(inputs: Tensor, targets: Tensor, *, lr: float, steps: int) -> Descent:
    """Model, loss, gradient and update are PyTorch's: the loop that all later lessons use.

    Shapes and errors as in `by_hand`.
    Source: https://docs.pytorch.org/docs/stable/optim.html
    """
    _check(inputs, targets)
    model = nn.Linear(inputs.shape[1], 1, dtype=inputs.dtype)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    loss_function = nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_function(model(inputs).squeeze(1), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return Descent(model.weight.detach().squeeze(0), model.bias.detach().squeeze(0), losses)


def _check(inputs: Tensor, targets: Tensor) -> None:
    if inputs.dim() != 2 or targets.shape != inputs.shape[:1]:
        shapes = f"{tuple(inputs.shape)} and {tuple(targets.shape)}"
        raise ValueError(f"expected inputs (n, d) and targets (n,), got {shapes}")
