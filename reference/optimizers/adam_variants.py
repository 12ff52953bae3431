"""Variants of Adam: NAdam, RAdam and Adamax, and SparseAdam for gradients of few rows.

In all of them m and s are the moving means of the gradients and of their squares:
    m = beta1 * m + (1 - beta1) * g and s = beta2 * s + (1 - beta2) * g ** 2, both starting at 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod, sqrt

import torch
from torch import Tensor

from reference.optimizers.stepping import Memory, Stepping


@dataclass(kw_only=True)
class NAdam(Stepping):
    """Adam with Nesterov's look ahead, and a momentum that grows from beta1 / 2 to beta1.

    g = gradient (or -gradient to maximize) + weight_decay * p; decoupled, p shrinks instead by
        lr * weight_decay * p
    mu(t) = beta1 * (1 - 0.96 ** (t * momentum_decay) / 2) is the momentum of step t = 1, 2, ...
    m_hat = mu(t + 1) * m / (1 - mu(1) * ... * mu(t + 1)) + (1 - mu(t)) * g / (1 - mu(1) ... mu(t))
    p = p - lr * m_hat / (sqrt(s / (1 - beta2 ** t)) + eps)

    Shapes: any, gradients as their parameters.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.NAdam.html
    """

    lr: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum_decay: float = 4e-3
    decoupled_weight_decay: bool = False

    def moved(self, p: Tensor, g: Tensor, memory: Memory, t: int) -> Tensor:
        """One step, with the momentum of this step and of the next one."""
        p, g = _decayed(p, g, self.lr, self.weight_decay, self.decoupled_weight_decay)
        m, s = _moments(g, memory, self.betas)
        faded = [0.96 ** (i * self.momentum_decay) for i in range(1, t + 2)]
        mu: list[float] = [self.betas[0] * (1 - one / 2) for one in faded]
        ahead = mu[-1] * m / (1 - prod(mu)) + (1 - mu[-2]) * g / (1 - prod(mu[:-1]))
        return p - self.lr * ahead / ((s / (1 - self.betas[1] ** t)).sqrt() + self.eps)


@dataclass(kw_only=True)
class RAdam(Stepping):
    """Adam that does not divide by sqrt(s) before s is a mean of enough squares.

    g = gradient (or -gradient to maximize) + weight_decay * p; decoupled, p shrinks instead by
        lr * weight_decay * p
    rho_inf = 2 / (1 - beta2) - 1 and rho = rho_inf - 2 * t * beta2 ** t / (1 - beta2 ** t) say how
        many squares s averages, in the end and at step t = 1, 2, ...
    p = p - lr * m / (1 - beta1 ** t) where rho <= 5, and where rho > 5 that update times
        sqrt((rho - 4) (rho - 2) rho_inf / ((rho_inf - 4) (rho_inf - 2) rho))
        * sqrt(1 - beta2 ** t) / (sqrt(s) + eps)

    Shapes: any, gradients as their parameters.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.RAdam.html
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled_weight_decay: bool = False

    def moved(self, p: Tensor, g: Tensor, memory: Memory, t: int) -> Tensor:
        """One step, normalised as far as s can be trusted."""
        p, g = _decayed(p, g, self.lr, self.weight_decay, self.decoupled_weight_decay)
        m, s = _moments(g, memory, self.betas)
        beta1, beta2 = self.betas
        update = m / (1 - beta1**t)
        rho_inf = 2 / (1 - beta2) - 1
        rho = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
        if rho > 5:
            trust = (rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)
            update = update * sqrt(trust) * sqrt(1 - beta2**t) / (s.sqrt() + self.eps)
        return p - self.lr * update


@dataclass(kw_only=True)
class Adamax(Stepping):
    """Adam that divides by a fading maximum of the gradients in place of their root mean square.

    g = gradient (or -gradient to maximize) + weight_decay * p
    u = max(beta2 * u, abs(g) + eps), starting at 0
    p = p - lr * m / ((1 - beta1 ** t) * u), at step t = 1, 2, ...

    Shapes: any, gradients as their parameters.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.Adamax.html
    """

    lr: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def moved(self, p: Tensor, g: Tensor, memory: Memory, t: int) -> Tensor:
        """One step of at most about lr."""
        g = g + self.weight_decay * p
        m, _ = _moments(g, memory, self.betas)
        memory["u"] = torch.maximum(self.betas[1] * memory["u"], g.abs() + self.eps)
        return p - self.lr * m / ((1 - self.betas[0] ** t) * memory["u"])


@dataclass(kw_only=True)
class SparseAdam(Stepping):
    """Adam that leaves alone, moments and all, the rows that a sparse gradient does not hold.

    For the rows that it holds, entries of the same row being added up, with g = the gradient (or
    -gradient to maximize):
    p = p - lr * sqrt(1 - beta2 ** t) / (1 - beta1 ** t) * m / (sqrt(s) + eps)
    where t = 1, 2, ... counts the steps of the whole parameter, not those of the row.

    Shapes: any, gradients as their parameters, in the COO layout.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.SparseAdam.html
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Moves the rows that the gradients hold."""
        for memory, gradient in zip(self.memories, gradients, strict=True):
            memory["held"] = _rows_held_by(gradient)
        super().step([gradient.to_dense() for gradient in gradients])

    def moved(self, p: Tensor, g: Tensor, memory: Memory, t: int) -> Tensor:
        """One step of the rows that are held."""
        held = memory["held"].bool()
        old_m, old_s = memory["m"], memory["s"]
        m, s = _moments(g, memory, self.betas)
        memory["m"], memory["s"] = torch.where(held, m, old_m), torch.where(held, s, old_s)
        rate = self.lr * sqrt(1 - self.betas[1] ** t) / (1 - self.betas[0] ** t)
        return torch.where(held, p - rate * m / (s.sqrt() + self.eps), p)


def _moments(g: Tensor, memory: Memory, betas: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """The moving means m of the gradients and s of their squares, g included."""
    memory["m"] = betas[0] * memory["m"] + (1 - betas[0]) * g
    memory["s"] = betas[1] * memory["s"] + (1 - betas[1]) * g**2
    return memory["m"], memory["s"]


def _decayed(
    p: Tensor, g: Tensor, lr: float, weight_decay: float, decoupled: bool
) -> tuple[Tensor, Tensor]:
    """p and g after weight decay: decoupled it shrinks p, otherwise it is added to g."""
    return (p - lr * weight_decay * p, g) if decoupled else (p, g + weight_decay * p)


def _rows_held_by(gradient: Tensor) -> Tensor:
    """1 for every entry of the rows that a sparse gradient lists, 0 for the others."""
    held = torch.zeros(gradient.shape)
    held[tuple(gradient.cpu().coalesce().indices())] = 1.0
    return held
