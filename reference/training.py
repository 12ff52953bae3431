"""The training loop in its canonical order, per batch and per epoch.

Source: https://docs.pytorch.org/tutorials/beginner/basics/optimization_tutorial.html and
https://docs.pytorch.org/docs/stable/optim.html#how-to-adjust-learning-rate
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from reference.modes import evaluating

Batches = Iterable[tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]


class Stopper(Protocol):
    """Decides after each epoch, from its validation value, whether training ends."""

    def should_stop(self, value: float) -> bool: ...


@dataclass
class History:
    """What happened in each epoch: one entry an epoch in every list."""

    #: The plain mean of the epoch's batch losses, each taken before the update that it caused.
    losses: list[float] = field(default_factory=list)
    validation_losses: list[float] = field(default_factory=list)
    #: The learning rate of the first parameter group that the epoch was trained with.
    learning_rates: list[float] = field(default_factory=list)


def train_one_epoch(
    model: nn.Module,
    batches: Batches,
    loss_function: Loss,
    optimizer: Optimizer,
    scheduler: LRScheduler | None = None,
    *,
    max_norm: float | None = None,
) -> list[float]:
    """Train on every batch once and return each batch's loss.

    Forget the old gradients, predict, compare, differentiate, update, and only then let the
    schedule move on. A scheduler given here is one that steps per batch (OneCycleLR, CyclicLR,
    warm-up in steps). With `max_norm` no update follows a gradient that is longer than that.
    """
    model.train()
    losses = []
    for inputs, targets in batches:
        optimizer.zero_grad()
        loss = loss_function(model(inputs), targets)
        loss.backward()
        if max_norm is not None:
            clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        losses.append(loss.item())
    return losses


def fit(
    model: nn.Module,
    batches: Batches,
    loss_function: Loss,
    optimizer: Optimizer,
    *,
    epochs: int,
    scheduler: LRScheduler | ReduceLROnPlateau | None = None,
    validate: Callable[[], float] | None = None,
    early_stopping: Stopper | None = None,
) -> History:
    """Train for some epochs, with a scheduler that steps once per epoch.

    `validate` is called after each epoch and gives the value that ReduceLROnPlateau and early
    stopping watch. The epoch order is: train, validate, step the scheduler, ask for the stop.

    Raises ValueError if something that watches a value is given without `validate`.
    """
    watches = early_stopping is not None or isinstance(scheduler, ReduceLROnPlateau)
    if watches and validate is None:
        raise ValueError("ReduceLROnPlateau and early stopping need `validate`")
    history = History()
    for _ in range(epochs):
        history.learning_rates.append(float(optimizer.param_groups[0]["lr"]))
        losses = train_one_epoch(model, batches, loss_function, optimizer)
        history.losses.append(sum(losses) / len(losses))
        if validate is not None:
            history.validation_losses.append(validate())
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(history.validation_losses[-1])
        elif scheduler is not None:
            scheduler.step()
        if early_stopping is not None and early_stopping.should_stop(history.validation_losses[-1]):
            break
    return history


def accumulate_gradients(
    model: nn.Module, micro_batches: Sequence[tuple[Tensor, Tensor]], loss_function: Loss
) -> float:
    """Add to the gradients what one batch of all the samples would add, and return its loss.

    For a batch that does not fit into memory. `loss_function` averages over the samples that it is
    given, so the mean over all N samples is the sum of (n_i / N) * loss_i over the micro-batches
    of n_i samples. Each graph is freed before the next one is built. Zeroing the gradients before
    and stepping the optimizer afterwards is left to the caller.

    Source: https://docs.pytorch.org/docs/stable/notes/amp_examples.html#gradient-accumulation
    """
    samples = sum(len(inputs) for inputs, _ in micro_batches)
    total = 0.0
    for inputs, targets in micro_batches:
        loss = loss_function(model(inputs), targets) * (len(inputs) / samples)
        loss.backward()
        total += loss.item()
    return total


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """Scale all gradients in place by min(1, max_norm / (norm + 1e-6)) and return the norm.

    The norm is that of all gradients taken as one vector, before scaling: (sum |g|^p)^(1/p) with
    p = `norm_type`, or the largest |g| if p is inf. It is computed in float64 and returned in the
    gradients' dtype. Parameters without a gradient play no part; without any the norm is 0.

    Raises RuntimeError if `error_if_nonfinite` is set and the norm is NaN or infinite.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.utils.clip_grad_norm_.html
    """
    several = [parameters] if isinstance(parameters, Tensor) else parameters
    gradients = [p.grad.detach() for p in several if p.grad is not None]
    if not gradients:
        return torch.tensor(0.0)
    entries = torch.cat([gradient.flatten() for gradient in gradients])
    sizes = entries.double().abs()
    norm = sizes.max() if norm_type == inf else (sizes**norm_type).sum() ** (1 / norm_type)
    if error_if_nonfinite and not norm.isfinite():
        raise RuntimeError(f"the gradients have norm {norm.item()}, which is not finite")
    for gradient in gradients:
        gradient.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0).to(gradient.dtype))
    return norm.to(entries.dtype)


def accuracy(model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    """Share of samples whose largest logit is at the target's class, in eval mode.

    `inputs` has samples along dimension 0, `targets` is int64 of shape (n,). The model's mode is
    put back afterwards.
    """
    with evaluating(model):
        predicted = model(inputs).argmax(dim=1)
    return float((predicted == targets).double().mean())
