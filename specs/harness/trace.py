"""What a training loop did, as a list of events; and what can be read off that list.

A rule about training judges what happened, not how it was written. The same trace is taken of the
reference loop, of its violations, and of any user's loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


@dataclass(frozen=True)
class Forward:
    """The model was called."""

    training: bool
    records_gradients: bool


@dataclass(frozen=True)
class LossTaken:
    """The loss module was called; `lowest` and `highest` are the bounds of its first argument."""

    lowest: float
    highest: float


@dataclass(frozen=True)
class Backward:
    """A gradient reached the model's first parameter, which did or did not hold an older one."""

    onto_old_gradient: bool


@dataclass(frozen=True)
class OptimizerStep:
    """The optimizer updated the parameters with these learning rates, one for each group."""

    learning_rates: tuple[float, ...]


@dataclass(frozen=True)
class SchedulerStep:
    """The scheduler moved on."""


Event = Forward | LossTaken | Backward | OptimizerStep | SchedulerStep


@contextmanager
def recorded(
    *,
    model: nn.Module | None = None,
    loss_function: nn.Module | None = None,
    optimizer: Optimizer | None = None,
    scheduler: Any = None,
) -> Iterator[list[Event]]:
    """Record what happens to these objects inside the `with` block.

    Everything but the scheduler is watched through PyTorch's public hooks. Schedulers have none:
    their `step` is wrapped on the instance.
    """
    events: list[Event] = []
    handles: list[Any] = []
    if model is not None:
        handles.append(model.register_forward_pre_hook(_note_forward(events)))
        watched = next((p for p in model.parameters() if p.requires_grad), None)
        if watched is not None:
            handles.append(watched.register_hook(_note_backward(events, watched)))
    if loss_function is not None:
        handles.append(loss_function.register_forward_pre_hook(_note_loss(events)))
    if optimizer is not None:
        # After the step, since a step that is given a closure begins with forward and backward.
        handles.append(optimizer.register_step_post_hook(_note_step(events)))
    if scheduler is not None:
        original = scheduler.step

        def step(*args: Any, **kwargs: Any) -> Any:
            events.append(SchedulerStep())
            return original(*args, **kwargs)

        scheduler.step = step
    try:
        yield events
    finally:
        for handle in handles:
            handle.remove()
        if scheduler is not None:
            del scheduler.step


def learning_rates_used(events: list[Event]) -> list[float]:
    """The first group's learning rate at each optimizer step."""
    return [event.learning_rates[0] for event in events if isinstance(event, OptimizerStep)]


def steps_in_order(events: list[Event]) -> list[str]:
    """Which of the two stepped when: "optimizer" and "scheduler"."""
    names = {OptimizerStep: "optimizer", SchedulerStep: "scheduler"}
    return [names[type(event)] for event in events if type(event) in names]


def _note_forward(events: list[Event]) -> Any:
    def hook(module: nn.Module, _arguments: Any) -> None:
        events.append(Forward(module.training, torch.is_grad_enabled()))

    return hook


def _note_backward(events: list[Event], parameter: Tensor) -> Any:
    def hook(_gradient: Tensor) -> None:
        old = parameter.grad
        events.append(Backward(old is not None and bool(old.any())))

    return hook


def _note_loss(events: list[Event]) -> Any:
    def hook(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        events.append(LossTaken(arguments[0].min().item(), arguments[0].max().item()))

    return hook


def _note_step(events: list[Event]) -> Any:
    def hook(optimizer: Optimizer, _arguments: Any, _options: Any) -> None:
        rates = tuple(float(group["lr"]) for group in optimizer.param_groups)
        events.append(OptimizerStep(rates))

    return hook
