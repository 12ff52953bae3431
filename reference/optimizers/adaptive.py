"""Adagrad, RMSprop and Adadelta: each number has its own rate, from the size of its gradients."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from reference.optimizers.stepping import Memory, Stepping


@dataclass(kw_only=True)
class Adagrad(Stepping):
    """Divides by the root of the sum of all squared gradients so far.

    g = gradient (or -gradient to maximize) + weight_decay * p
    s = s + g ** 2, starting at initial_accumulator_value
    p = p - lr / (1 + (t - 1) * lr_decay) * g / (sqrt(s) + eps), at step t = 1, 2, ...

    Shapes: any, gradients as their parameters.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.Adagrad.html
    """

    lr: float = 1e-2
    lr_decay: float = 0.0
    weight_decay: float = 0.0
    initial_accumulator_value: float = 0.0
    eps: float = 1e-10

    def moved(self, p: Tensor, g: Tensor, memory: Memory, t: int) -> Tensor:
        """One step, with all squares of gradients since the first."""
        g = g + self.weight_decay * p
        memory["sum"] = memory["sum"] + g**2
        s = self.initial_accumulator_value + memory["sum"]
        return p - self.lr / (1 + (t - 1) * self.lr_decay) * g / (s.sqrt() + self.eps)


@dataclass(kw_only=True)
class RMSprop(Stepping):
    """Divides by the root of a moving mean of the squared gradients.

    g = gradient (or -gradient to maximize) + weight_decay * p
    s = alpha * s + (1 - alpha) * g ** 2, starting at 0 (not corrected for that)
    m = alpha * m + (1 - alpha) * g, starting at 0
    u = g / (sqrt(s) + eps), or when centered g / (sqrt(s - m ** 2) + eps)
    v = momentum * v + u, starting at 0
    p = p - lr * v

    Shapes: any, gradients as their parameters.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.RMSprop.html
    """

    lr: float = 1e-2
    alpha: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    centered: bool = False

    def moved(self, p: Tensor, g: Tensor, memory: Memory, t: int) -> Tensor:  # noqa: ARG002
        """One step with normalised gradients, summed up by momentum."""
        g = g + self.weight_decay * p
        memory["s"] = self.alpha * memory["s"] + (1 - self.alpha) * g**2
        memory["m"] = self.alpha * memory["m"] + (1 - self.alpha) * g
        variance = memory["s"] - memory["m"] ** 2 if self.centered else memory["s"]
        memory["v"] = self.momentum * memory["v"] + g / (variance.sqrt() + self.eps)
        return p - self.lr * memory["v"]


@dataclass(kw_only=True)
class Adadelta(Stepping):
    """Scales the gradient by the size of past updates over the size of past gradients.

    g = gradient (or -gradient to maximize) + weight_decay * p
    s = rho * s + (1 - rho) * g ** 2, starting at 0
    d = sqrt(u + eps) / sqrt(s + eps) * g, with the u of the step before
    u = rho * u + (1 - rho) * d ** 2, starting at 0
    p = p - lr * d

    The update d has the unit of p, as Newton's has; lr, which the paper does not have, is 1.
    Shapes: any, gradients as their parameters.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.Adadelta.html
    """

    lr: float = 1.0
    rho: float = 0.9
    eps: float = 1e-6
    weight_decay: float = 0.0

    def moved(self, p: Tensor, g: Tensor, memory: Memory, t: int) -> Tensor:  # noqa: ARG002
        """One step of the size that past updates had."""
        g = g + self.weight_decay * p
        memory["s"] = self.rho * memory["s"] + (1 - self.rho) * g**2
        d = (memory["u"] + self.eps).sqrt() / (memory["s"] + self.eps).sqrt() * g
        memory["u"] = self.rho * memory["u"] + (1 - self.rho) * d**2
        return p - self.lr * d
