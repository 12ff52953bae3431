"""Parameters and gradients that the specs of this chapter step with."""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 12


def two_parameters(device: torch.device) -> tuple[Tensor, Tensor]:
    """Three numbers and a 2 x 2 matrix, with gradients switched on: one for each parameter group.

    They are float64, or float32 on MPS, which has no float64.
    """
    dtype = torch.float32 if device.type == "mps" else torch.float64
    p = torch.tensor([1.0, -2.0, 0.5], dtype=dtype, device=device)
    q = torch.tensor([[0.25, 3.0], [-1.5, 0.0]], dtype=dtype, device=device)
    return p.requires_grad_(), q.requires_grad_()


def random_gradients(p: Tensor, q: Tensor) -> list[tuple[Tensor, Tensor]]:
    """A gradient for each of the two parameters, for each of 12 steps.

    From step to step their size changes by up to 10 to either side, and their signs change.
    """
    random = torch.Generator().manual_seed(0)
    steps = []
    for _ in range(STEPS):
        size = 10.0 ** float(torch.rand((), generator=random) * 2 - 1)
        of_p = size * torch.randn(p.shape, generator=random)
        of_q = size * torch.randn(q.shape, generator=random)
        steps.append((of_p.to(p), of_q.to(q)))
    return steps
