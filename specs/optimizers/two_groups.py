"""Steps of an optimizer with two parameter groups, and the same steps of its reference."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from reference.optimizers.stepping import Stepping

MakeOptimizer = Callable[..., torch.optim.Optimizer]
Options = Mapping[str, Any]
Shapes = tuple[tuple[tuple[int, ...], ...], ...]

STEPS = 12
#: Before this step every group's learning rate is halved, as a scheduler would.
HALVED_BEFORE = 7
#: The shapes of the parameters in the first and in the second group.
SHAPES: Shapes = (((3,), ()), ((2, 3), (2, 1, 2)))


def positions(
    make_optimizer: MakeOptimizer,
    first: Options,
    second: Options,
    device: torch.device,
    *,
    shapes: Shapes = SHAPES,
    halved: bool = True,
    resumed_before: int | None = None,
) -> Tensor:
    """All numbers of both groups after each of 12 random gradients: a row for each step.

    first: options of the optimizer; second: what the second group has instead.
    halved: whether the learning rates are halved on the way.
    resumed_before: before this step a new optimizer, built with default options, takes over the
        parameters and the state_dict of the old one.
    """
    groups = _groups(shapes, device)
    optimizer = make_optimizer([{"params": groups[0]}, {"params": groups[1], **second}], **first)
    rows = []
    for step, gradients in enumerate(_gradients(shapes, device), start=1):
        if step == HALVED_BEFORE and halved:
            for options in optimizer.param_groups:
                options["lr"] /= 2
        if step == resumed_before:
            groups = [[p.detach().clone().requires_grad_() for p in group] for group in groups]
            # The copy stands for writing to a file: a state_dict holds the live tensors.
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = make_optimizer([{"params": group} for group in groups])
            optimizer.load_state_dict(saved)
        for group, of_group in zip(groups, gradients, strict=True):
            for p, gradient in zip(group, of_group, strict=True):
                p.grad = gradient.clone()
        optimizer.step()
        rows.append(_flat(groups))
    return torch.stack(rows)


def expected_positions(
    make_reference: Callable[..., Stepping],
    first: Options,
    second: Options,
    device: torch.device,
    *,
    shapes: Shapes = SHAPES,
    halved: bool = True,
) -> Tensor:
    """The same by a reference of `reference.optimizers`: one for each group."""
    groups = _groups(shapes, device)
    references = [
        make_reference(groups[0], **first),
        make_reference(groups[1], **{**first, **second}),
    ]
    rows = []
    for step, gradients in enumerate(_gradients(shapes, device), start=1):
        for reference, of_group in zip(references, gradients, strict=True):
            if step == HALVED_BEFORE and halved:
                reference.lr /= 2  # type: ignore[attr-defined]
            reference.step(of_group)
        rows.append(_flat([reference.parameters for reference in references]))
    return torch.stack(rows)


def steps_of(
    make_optimizer: MakeOptimizer, gradients: Sequence[float], **options: Any
) -> list[float]:
    """How far down each of these gradients moves a number that starts at 1, in float64."""
    p = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    optimizer = make_optimizer([p], **options)
    moved = []
    for gradient in gradients:
        before = p.item()
        p.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        moved.append(before - p.item())
    return moved


class LookAlike(torch.optim.Optimizer):
    """An optimizer made of one formula, `moved`, for the violations to get wrong.

    `usual` holds the options and their defaults. `moved` gets a parameter p, its gradient g (its
    opposite to maximize), what is remembered of p with the number `memory["t"]` of this step, and
    the options o of its group.
    """

    usual: ClassVar[Options] = {}

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, {"maximize": False, **self.usual, **options})

    def moved(self, p: Tensor, g: Tensor, memory: dict[str, Any], o: Any) -> Tensor:
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # noqa: ARG002
        for group in self.param_groups:
            for p in group["params"]:
                memory = self.state[p]
                memory["t"] = memory.get("t", 0) + 1
                g = -p.grad if group["maximize"] else p.grad
                p.copy_(self.moved(p, g, memory, SimpleNamespace(**group)))


class Decouples(torch.optim.Optimizer):
    """Beside the real optimizer: shrinks p by lr * weight_decay * p, in place of adding to g."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = p.grad - (-1) ** group["maximize"] * group["weight_decay"] * p.detach()
                p.data *= 1 - group["lr"] * group["weight_decay"]
        return super().step(closure)


def _groups(shapes: Shapes, device: torch.device) -> list[list[Tensor]]:
    """Parameters of these shapes."""
    random = torch.Generator().manual_seed(1)
    return [
        [_on(device, torch.randn(one, generator=random)).requires_grad_() for one in group]
        for group in shapes
    ]


@lru_cache
def _gradients(shapes: Shapes, device: torch.device) -> list[list[list[Tensor]]]:
    """For each step, a gradient for each parameter of each group. From step to step their size
    changes by up to 10 to either side, and one entry in ten is 0."""
    random = torch.Generator().manual_seed(0)

    def gradient(shape: tuple[int, ...], size: float) -> Tensor:
        entries = size * torch.randn(shape, generator=random)
        return _on(device, entries * (torch.rand(shape, generator=random) > 0.1))

    sizes = [10.0 ** float(torch.rand((), generator=random) * 2 - 1) for _ in range(STEPS)]
    return [[[gradient(one, size) for one in group] for group in shapes] for size in sizes]


def _on(device: torch.device, numbers: Tensor) -> Tensor:
    """In float64, or in float32 on MPS, which has no float64."""
    return numbers.to(device, torch.float32 if device.type == "mps" else torch.float64)


def _flat(groups: Sequence[Sequence[Tensor]]) -> Tensor:
    return torch.cat([p.detach().flatten() for group in groups for p in group])
