"""Stochastic gradient descent: with a velocity (SGD), and with an average of its path (ASGD)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from reference.losses.reduction import in_float64
from reference.optimizers.stepping import Memory, Stepping, direction


class SGD:
    """Gradient descent with a velocity v for each parameter p.

    g = gradient (or -gradient to maximize) + weight_decay * p
    v = g on the first step, momentum * v + (1 - dampening) * g afterwards
    p = p - lr * v, with nesterov p - lr * (g + momentum * v), without momentum p - lr * g

    Shapes: any, gradients as their parameters. Raises ValueError for nesterov without momentum or
    with dampening.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
    ) -> None:
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("nesterov needs a momentum and no dampening")
        self.parameters = [in_float64(parameter.detach()).clone() for parameter in parameters]
        self.velocities: list[Tensor | None] = [None] * len(self.parameters)
        self.lr, self.momentum, self.dampening = lr, momentum, dampening
        self.weight_decay, self.nesterov, self.maximize = weight_decay, nesterov, maximize

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Moves every parameter by one update."""
        for i, gradient in enumerate(gradients):
            p, v = self.parameters[i], self.velocities[i]
            g = direction(gradient, self.maximize) + self.weight_decay * p
            update = g
            if self.momentum != 0:
                v = g if v is None else self.momentum * v + (1 - self.dampening) * g
                self.velocities[i] = v
                update = g + self.momentum * v if self.nesterov else v
            self.parameters[i] = p - self.lr * update


@dataclass(kw_only=True)
class ASGD(Stepping):
    """Gradient descent with a falling rate, and beside it the average of where it has been.

    g = gradient (or -gradient to maximize) + weight_decay * p
    p = p * (1 - lambd * eta) - eta * g
    average = average + (p - average) / max(1, t - 1 - t0)
    where eta, the rate of step t = 1, 2, ..., is lr / (1 + lambd * lr * (t - 1)) ** alpha.

    Until step t0 + 2 the average is p itself; from there on it is the mean of all p since. It is
    kept beside the parameters, in `averages`: no step depends on it.

    Shapes: any, gradients as their parameters. The page names the arguments and gives no formula:
    this is the averaging of the paper, with the rate of Bottou's SGD.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.ASGD.html and
    https://doi.org/10.1137/0330046
    """

    lr: float = 1e-2
    lambd: float = 1e-4
    alpha: float = 0.75
    t0: float = 1e6
    weight_decay: float = 0.0

    def moved(self, p: Tensor, g: Tensor, memory: Memory, t: int) -> Tensor:
        """One step with the rate of step t."""
        g = g + self.weight_decay * p
        eta = self.lr / (1 + self.lambd * self.lr * (t - 1)) ** self.alpha
        p = p * (1 - self.lambd * eta) - eta * g
        memory["average"] = memory["average"] + (p - memory["average"]) / max(1, t - 1 - self.t0)
        return p

    @property
    def averages(self) -> list[Tensor]:
        """The average of each parameter."""
        return [memory["average"] for memory in self.memories]
