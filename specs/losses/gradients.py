"""What the specs of this chapter look at: the value of a loss, and its gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Loss = Callable[..., Tensor]


def value_and_gradient(
    function: Loss, inputs: Tensor, *others: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """The result, and the derivative of its sum by each element of `inputs`."""
    inputs = inputs.detach().clone().requires_grad_()
    result = function(inputs, *others, **options)
    (gradient,) = torch.autograd.grad(result.sum(), inputs)
    return result.detach(), gradient


def on(device: torch.device, tensor: Tensor) -> Tensor:
    """The tensor there; float64 becomes float32 on MPS, which has no float64."""
    if device.type == "mps" and tensor.dtype == torch.float64:
        tensor = tensor.float()
    return tensor.to(device)
