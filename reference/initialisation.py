"""How weights are drawn before training, in closed forms, and a whole network set up by them.

Source: https://docs.pytorch.org/docs/stable/nn.init.html
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod, sqrt

import torch
from torch import Tensor, nn


def fan_in_and_fan_out(shape: Sequence[int]) -> tuple[int, int]:
    """How many inputs each output has, and how many outputs each input has.

    `shape` is that of a weight, (outputs, inputs, *kernel), as Linear and Conv store it. Both fans
    are multiplied by the number of the kernel's cells.

    Raises ValueError for fewer than two dimensions: a bias has no fans.
    """
    if len(shape) < 2:
        raise ValueError(f"a weight of shape {tuple(shape)} has no fans: it needs two dimensions")
    cells = prod(shape[2:])
    return shape[1] * cells, shape[0] * cells


def default_bound(shape: Sequence[int]) -> float:
    """The bound of the uniform distribution in a new Linear or Conv: 1 / sqrt(fan_in).

    It is that of the weight of this shape, and of the bias beside it.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.Linear.html
    """
    return 1 / sqrt(fan_in_and_fan_out(shape)[0])


def calculate_gain(nonlinearity: str, param: float = 0.01) -> float:
    """By what a layer multiplies the standard deviation to make up for its activation function.

    tanh has 5/3, relu sqrt(2), leaky_relu with slope `param` sqrt(2 / (1 + param^2)), selu 3/4, and
    sigmoid and the layers themselves ("linear", "conv2d") have 1.

    Raises ValueError for any other name.
    """
    gains = {
        "linear": 1.0,
        "conv1d": 1.0,
        "conv2d": 1.0,
        "conv3d": 1.0,
        "sigmoid": 1.0,
        "tanh": 5 / 3,
        "relu": sqrt(2),
        "leaky_relu": sqrt(2 / (1 + param**2)),
        "selu": 3 / 4,
    }
    if nonlinearity not in gains:
        raise ValueError(f"nonlinearity {nonlinearity} is unknown: expected one of {list(gains)}")
    return gains[nonlinearity]


def kaiming_deviation(shape: Sequence[int], gain: float, mode: str = "fan_in") -> float:
    """Standard deviation gain / sqrt(fan), with the fan that `mode` names: fan_in or fan_out.

    With fan_in the layer keeps the size of what passes forward, with fan_out that of the gradient.

    Source: https://arxiv.org/abs/1502.01852
    """
    fan_in, fan_out = fan_in_and_fan_out(shape)
    return gain / sqrt({"fan_in": fan_in, "fan_out": fan_out}[mode])


def xavier_deviation(shape: Sequence[int], gain: float = 1.0) -> float:
    """Standard deviation gain * sqrt(2 / (fan_in + fan_out)), between the two of Kaiming.

    Source: https://proceedings.mlr.press/v9/glorot10a.html
    """
    return gain * sqrt(2 / sum(fan_in_and_fan_out(shape)))


def trunc_normal_(
    tensor: Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0
) -> Tensor:
    """Fill with normal values, redrawn until they lie between a and b; return the tensor.

    All four are in the unit of the weights: a and b are not multiples of `std`. The values are
    drawn in float64 and then rounded, so that a coarse dtype does not make the tails fat.

    Raises ValueError unless a < b.
    """
    if a >= b:
        raise ValueError(f"a = {a} must be below b = {b}")
    values = torch.randn(tensor.shape, dtype=torch.float64) * std + mean
    while (outside := (values < a) | (values > b)).any():
        values[outside] = torch.randn(int(outside.sum()), dtype=torch.float64) * std + mean
    with torch.no_grad():
        return tensor.copy_(values)


def initialise(model: nn.Module, head: nn.Linear | None = None) -> None:
    """Set up a ReLU network: weights from N(0, 2 / fan_in), biases 0.

    Applies to all Linear and Conv layers, in place. A `head`, the layer that gives the logits, gets
    weights of 0, so that training starts from equal probabilities for all classes.

    Source: https://arxiv.org/abs/1502.01852
    """
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            deviation = kaiming_deviation(layer.weight.shape, calculate_gain("relu"))
            with torch.no_grad():
                layer.weight.normal_(0.0, 0.0 if layer is head else deviation)
                if layer.bias is not None:
                    layer.bias.zero_()
