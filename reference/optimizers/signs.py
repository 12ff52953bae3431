"""Rprop: steps that look at the sign of the gradient only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reference.optimizers.stepping import Memory, Stepping


@dataclass(kw_only=True)
class Rprop(Stepping):
    """Each number has a step size of its own, which grows while the sign of its gradient stays.

    g = gradient (or -gradient to maximize), and for each number by itself:
    where g has the sign of the gradient before, size = size * etas[1]
    where it has the other sign, size = size * etas[0], and g is taken for 0
    where one of the two is 0, the size stays
    p = p - size * sign(g)

    The size starts at lr and is kept within step_sizes. Since a turned g is taken for 0, also in
    the comparison of the next step, p rests for one step when the sign turns.

    Shapes: any, gradients as their parameters.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.Rprop.html
    """

    lr: float = 1e-2
    etas: tuple[float, float] = (0.5, 1.2)
    step_sizes: tuple[float, float] = (1e-6, 50)

    def moved(self, p: Tensor, g: Tensor, memory: Memory, t: int) -> Tensor:
        """One step, of the size that is left after looking at the signs."""
        size = memory["size"] if t > 1 else torch.full_like(p, self.lr)
        agreement = g.sign() * memory["g"].sign()
        shrink, grow = self.etas
        size = torch.where(agreement > 0, size * grow, size)
        size = torch.where(agreement < 0, size * shrink, size)
        memory["size"] = size.clamp(*self.step_sizes)
        memory["g"] = torch.where(agreement < 0, 0.0, g)
        return p - memory["size"] * memory["g"].sign()
