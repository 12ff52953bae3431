"""Gradients where a function has a kink, and where it has no value.

Source:
https://docs.pytorch.org/docs/stable/notes/autograd.html#gradients-for-non-differentiable-functions
"""

from __future__ import annotations

import torch
from torch import Tensor


def least_slope(left: float, right: float) -> float:
    """The slope nearest to 0 of all those between the slopes on both sides of a kink.

    For a function of one number: the subgradient of least norm where it is convex (left <= right),
    the supergradient of least norm where it is concave.
    """
    low, high = min(left, right), max(left, right)
    return min(max(0.0, low), high)


def log_where_positive(x: Tensor) -> Tensor:
    """log(x) where x > 0, and 0 elsewhere; the gradient is 1/x and 0. Any shape.

    The logarithm only sees a harmless 1 in the places where its result is not used: for
    where(x > 0, log(x), 0) the chain rule would multiply 0 by 1/0 there, which is nan.
    """
    valid = x > 0
    harmless = torch.where(valid, x, 1.0)
    return torch.where(valid, harmless.log(), 0.0)
