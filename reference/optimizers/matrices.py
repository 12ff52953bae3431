"""Adafactor and Muon: optimizers that know rows from columns."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import sqrt

import torch
from torch import Tensor

from reference.optimizers.stepping import Memory, Stepping

#: How Muon scales its rate for a matrix of A rows and B columns.
MUON_SCALES = {
    "original": lambda a, b: sqrt(max(1.0, a / b)),
    "match_rms_adamw": lambda a, b: 0.2 * sqrt(max(a, b)),
    "spectral_unclamped": lambda a, b: sqrt(a / b),
}


@dataclass(kw_only=True)
class Adafactor(Stepping):
    """Of the squared gradients of a matrix it remembers the mean of each row and of each column.

    g = gradient (or -gradient to maximize)
    rate = min(lr, 1 / sqrt(t)) * max(eps[1], RMS(p)), at step t = 1, 2, ...
    p = p - lr * weight_decay * p
    each moving mean is (1 - t ** beta2_decay) * mean + t ** beta2_decay * (mean of g ** 2):
        for a matrix, rows R and columns C, and s = R C / max(mean of R, eps[0])
        for a vector or a number, s is the moving mean of each entry
    u = g / max(sqrt(s), eps[0])
    p = p - rate * u / max(1, RMS(u) / d)

    RMS is the root of the mean square of all entries. eps[0] = None stands for the eps of the dtype
    that is stepped: here that of float64, 2.2e-16.
    Shapes: any, gradients as their parameters; a matrix lies in the last two dimensions.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.Adafactor.html
    """

    lr: float = 1e-2
    beta2_decay: float = -0.8
    eps: tuple[float | None, float] = (None, 1e-3)
    d: float = 1.0
    weight_decay: float = 0.0

    def moved(self, p: Tensor, g: Tensor, memory: Memory, t: int) -> Tensor:
        """One step, relative to the size of p."""
        eps1 = torch.finfo(p.dtype).eps if self.eps[0] is None else self.eps[0]
        rate = min(self.lr, 1 / sqrt(t)) * max(self.eps[1], _rms(p))
        u = g / self._mean_squares(g**2, memory, t**self.beta2_decay, eps1).sqrt().clamp(min=eps1)
        return p - self.lr * self.weight_decay * p - rate * u / max(1.0, _rms(u) / self.d)

    @staticmethod
    def _mean_squares(squares: Tensor, memory: Memory, share: float, eps1: float) -> Tensor:
        if squares.dim() < 2:
            memory["entries"] = (1 - share) * memory["entries"] + share * squares
            return memory["entries"]
        rows, columns = squares.mean(-1, keepdim=True), squares.mean(-2, keepdim=True)
        if "rows" in memory:
            rows = (1 - share) * memory["rows"] + share * rows
            columns = (1 - share) * memory["columns"] + share * columns
        memory["rows"], memory["columns"] = rows, columns
        return rows * columns / rows.mean(-2, keepdim=True).clamp(min=eps1)


@dataclass(kw_only=True)
class Muon(Stepping):
    """Steps whose singular values are all about 1, whatever those of the gradient are.

    v = momentum * v + gradient, starting at 0
    O = orthogonalised(v), with nesterov orthogonalised(gradient + momentum * v)
    p = p - lr * weight_decay * p - scale * lr * O
    where for A rows and B columns the scale is sqrt(max(1, A / B)) (adjust_lr_fn "original", or
    None), 0.2 * sqrt(max(A, B)) ("match_rms_adamw") or sqrt(A / B) ("spectral_unclamped").

    Shapes: matrices only, gradients as their parameters.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.Muon.html
    """

    lr: float = 1e-3
    weight_decay: float = 0.1
    momentum: float = 0.95
    nesterov: bool = True
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315)
    eps: float = 1e-7
    ns_steps: int = 5
    adjust_lr_fn: str | None = None
    maximize: bool = field(default=False, init=False)

    def moved(self, p: Tensor, g: Tensor, memory: Memory, t: int) -> Tensor:  # noqa: ARG002
        """One step along the nearest orthogonal matrix."""
        memory["v"] = self.momentum * memory["v"] + g
        v = g + self.momentum * memory["v"] if self.nesterov else memory["v"]
        update = orthogonalised(v, self.ns_coefficients, self.ns_steps, self.eps)
        scale = MUON_SCALES[self.adjust_lr_fn or "original"](*p.shape)
        return p - self.lr * self.weight_decay * p - scale * self.lr * update


def orthogonalised(
    matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """The matrix with its singular values driven towards 1 by the Newton-Schulz iteration.

    X = matrix / max(norm, eps), then `steps` times X = a X + b (X X^T) X + c (X X^T)^2 X, which
    keeps the singular vectors and turns each singular value x into a x + b x^3 + c x^5.

    matrix: float64 of shape (A, B). eps: the least Frobenius norm that it is divided by.
    Source: https://kellerjordan.github.io/posts/muon/
    """
    a, b, c = coefficients
    x = matrix / (matrix**2).sum().sqrt().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + b * gram @ x + c * gram @ gram @ x
    return x


def _rms(entries: Tensor) -> float:
    return (entries**2).mean().sqrt().item()
