"""L-BFGS without a line search: steps along an estimate of Newton's direction."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def lbfgs_path(
    gradient: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    steps: int,
    lr: float = 1.0,
    history_size: int = 100,
) -> list[Tensor]:
    """Where L-BFGS is after each step, with the inverse Hessian H written out as a matrix.

    first step: x = x - lr * min(1, 1 / sum of abs(g)) * g
    later: x = x - lr * H g, where H starts as (s.y / y.y) times the identity, of the newest pair,
        and then takes in each of the last `history_size` pairs, oldest first, by
        H = (I - r s y^T) H (I - r y s^T) + r s s^T with r = 1 / s.y
    where s = change of x and y = change of the gradient g in a step. The function is to be convex:
    then s.y > 0, and no pair has to be left out.

    start: float64 of shape (n,); gradient: from a point to the gradient there.
    Source: https://doi.org/10.1007/BF01589116
    """
    x, g = start, gradient(start)
    identity = torch.eye(len(x), dtype=x.dtype)
    pairs: list[tuple[Tensor, Tensor]] = []
    path = []
    for _ in range(steps):
        if pairs:
            s, y = pairs[-1]
            h = (s @ y) / (y @ y) * identity
            for s, y in pairs[-history_size:]:
                r = 1 / (s @ y)
                left = identity - r * torch.outer(s, y)
                h = left @ h @ left.T + r * torch.outer(s, s)
            move = -lr * h @ g
        else:
            move = -lr * min(1.0, 1 / g.abs().sum().item()) * g
        before, x = g, x + move
        g = gradient(x)
        pairs.append((move, g - before))
        path.append(x)
    return path
