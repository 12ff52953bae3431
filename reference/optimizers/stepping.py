"""What the optimizers of this package share: float64 copies, a memory, and the sign of the step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from reference.losses.reduction import in_float64

#: What an optimizer remembers of one parameter. A tensor that was never set is all zeros.
Memory = defaultdict[str, Tensor]


def direction(gradient: Tensor, maximize: bool) -> Tensor:
    """The gradient in float64, or its opposite to maximize.

    Source: https://docs.pytorch.org/docs/stable/optim.html
    """
    return -in_float64(gradient) if maximize else in_float64(gradient)


@dataclass
class Stepping:
    """An optimizer whose update of one parameter is `moved`, all that a subclass has to say.

    parameters: tensors of any shape. They are copied, and after a step the copies are replaced.
    maximize: go up the gradients instead of down.

    Source: https://docs.pytorch.org/docs/stable/optim.html
    """

    parameters: Sequence[Tensor]
    maximize: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        self.parameters = [in_float64(p.detach()).clone() for p in self.parameters]
        self.memories = [_memory_of(p) for p in self.parameters]
        self.steps = 0

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Moves every parameter by one update; the gradients have the shapes of the parameters."""
        self.steps += 1
        self.parameters = [
            self.moved(p, direction(gradient, self.maximize), memory, self.steps)
            for p, gradient, memory in zip(self.parameters, gradients, self.memories, strict=True)
        ]

    def moved(self, p: Tensor, g: Tensor, memory: Memory, t: int) -> Tensor:
        """Where p is after step t = 1, 2, ..., whose gradient is g."""
        raise NotImplementedError


def _memory_of(p: Tensor) -> Memory:
    return defaultdict(lambda: torch.zeros_like(p))
