"""Mixed precision: the loss scale, the order of a training step with it, and master weights.

float16 has no positive number below 2^-24, so small gradients vanish. The loss is therefore
multiplied by a scale before the backward pass, and the gradients are divided by it before they are
used. The scale is looked for during training: as large as it can be without gradients becoming
infinite.

bfloat16 needs no scale, but has 8 bits of precision: a weight that is kept in it does not notice
an update of less than about a 512th of its size. Hence the float32 copies called master weights.

Source: https://arxiv.org/abs/1710.03740 and
https://docs.pytorch.org/docs/stable/notes/amp_examples.html
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from reference.training import clip_grad_norm_

#: The largest number of float32, in which the scale is kept.
FLOAT32_MAX = (2 - 2**-23) * 2.0**127


@dataclass
class LossScale:
    """The factor that the loss is multiplied by, and the rule by which it changes.

    After a step with an infinite or NaN gradient: scale * backoff_factor, and the count of good
    steps starts again. After `growth_interval` good steps in a row: scale * growth_factor, and the
    count starts again. A scale that float32 could not hold is not taken.

    Source: https://docs.pytorch.org/docs/stable/amp.html#gradient-scaling
    """

    scale: float = 2.0**16
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 2000
    good_steps: int = 0

    def update(self, gradients_are_finite: bool) -> None:
        """Move on after one step. Its result counts for the next step."""
        if not gradients_are_finite:
            self.scale *= self.backoff_factor
            self.good_steps = 0
            return
        self.good_steps += 1
        if self.good_steps == self.growth_interval:
            grown = self.scale * self.growth_factor
            if grown <= FLOAT32_MAX:
                self.scale = grown
            self.good_steps = 0


def train_step_with_scaler(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    loss_function: Callable[[Tensor, Tensor], Tensor],
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    scheduler: LRScheduler | None = None,
    *,
    max_norm: float | None = None,
    dtype: torch.dtype = torch.float16,
) -> float:
    """One training step in mixed precision; returns the loss (not scaled).

    Forward pass and loss under autocast, the backward pass outside. The gradients are divided by
    the scale before anything looks at them, such as clipping to `max_norm`. A skipped step is no
    step for the schedule either; that it was skipped shows in a scale that fell.

    Source: https://docs.pytorch.org/docs/stable/notes/amp_examples.html#gradient-clipping
    """
    optimizer.zero_grad()
    with torch.autocast(inputs.device.type, dtype=dtype):
        loss = loss_function(model(inputs), targets)
    scaler.scale(loss).backward()
    if max_norm is not None:
        scaler.unscale_(optimizer)
        clip_grad_norm_(model.parameters(), max_norm)
    scaler.step(optimizer)
    scale = scaler.get_scale()
    scaler.update()
    if scheduler is not None and scaler.get_scale() >= scale:
        scheduler.step()
    return loss.item()


def step_with_master_weights(
    model: nn.Module, master_weights: Sequence[Tensor], optimizer: Optimizer
) -> None:
    """Update float32 copies of the weights, then round them into the model.

    The model's parameters are of a small dtype and hold the gradients; `optimizer` updates
    `master_weights`, which are float32 and in the order of `model.parameters()`. What the rounding
    takes away is not lost: the next update starts from the copies.

    Raises ValueError if there are not as many copies as parameters.

    Source: https://arxiv.org/abs/1710.03740, section 3.1
    """
    pairs = list(zip(model.parameters(), master_weights, strict=True))
    for parameter, master in pairs:
        master.grad = None if parameter.grad is None else parameter.grad.to(master.dtype)
    optimizer.step()
    with torch.no_grad():
        for parameter, master in pairs:
            parameter.copy_(master)
