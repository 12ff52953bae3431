"""Adam, whose steps have about the size of the learning rate, and AdamW."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reference.losses.reduction import in_float64
from reference.optimizers.stepping import direction


class Adam:
    """Steps of about lr, whatever the size of the gradients: mean over root mean square.

    g = gradient (or -gradient to maximize) + weight_decay * p
    m = beta1 * m + (1 - beta1) * g             a moving mean of the gradients, starting at 0
    s = beta2 * s + (1 - beta2) * g ** 2        a moving mean of their squares, starting at 0
    p = p - lr * m_hat / (sqrt(s_hat) + eps)
    where m_hat = m / (1 - beta1 ** t) and s_hat = s / (1 - beta2 ** t) undo, at step t = 1, 2, ...,
    the start at 0. With amsgrad the largest s seen so far takes the place of s in s_hat.

    Weight decay enters g, and with it both moments: it is an L2 penalty on the loss.
    Shapes: any, gradients as their parameters. Raises ValueError for betas outside [0, 1).
    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.Adam.html
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        maximize: bool = False,
    ) -> None:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must lie in [0, 1), got {betas}")
        self.parameters = [in_float64(parameter.detach()).clone() for parameter in parameters]
        self.steps = [0 for _ in self.parameters]
        self.means = [torch.zeros_like(p) for p in self.parameters]
        self.squares = [torch.zeros_like(p) for p in self.parameters]
        self.largest_squares = [torch.zeros_like(p) for p in self.parameters]
        self.lr, self.betas, self.eps = lr, betas, eps
        self.weight_decay, self.amsgrad, self.maximize = weight_decay, amsgrad, maximize

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Moves every parameter by one update."""
        for i, gradient in enumerate(gradients):
            p = self.parameters[i]
            g = direction(gradient, self.maximize) + self.weight_decay * p
            self.parameters[i] = p - self.lr * self._normalised(i, g)

    def _normalised(self, i: int, g: Tensor) -> Tensor:
        beta1, beta2 = self.betas
        self.steps[i] += 1
        self.means[i] = beta1 * self.means[i] + (1 - beta1) * g
        self.squares[i] = beta2 * self.squares[i] + (1 - beta2) * g**2
        self.largest_squares[i] = torch.maximum(self.largest_squares[i], self.squares[i])
        squares = self.largest_squares[i] if self.amsgrad else self.squares[i]
        mean_hat = self.means[i] / (1 - beta1 ** self.steps[i])
        square_hat = squares / (1 - beta2 ** self.steps[i])
        return mean_hat / (square_hat.sqrt() + self.eps)


class AdamW(Adam):
    """Adam whose weight decay stays out of the moments: p shrinks by lr * weight_decay * p.

    p = p - lr * weight_decay * p, then Adam's step with g = gradient (or -gradient to maximize)

    Arguments, shapes and errors as Adam's; weight_decay is 0.01 unless given.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.AdamW.html
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        maximize: bool = False,
    ) -> None:
        super().__init__(parameters, lr, betas, eps, weight_decay, amsgrad, maximize)

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Shrinks and moves every parameter by one update."""
        for i, gradient in enumerate(gradients):
            p = self.parameters[i] * (1 - self.lr * self.weight_decay)
            g = direction(gradient, self.maximize)
            self.parameters[i] = p - self.lr * self._normalised(i, g)
