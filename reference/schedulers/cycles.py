"""Schedules that cycle the learning rate and, against it, the momentum: CyclicLR and OneCycleLR.

t is the number of scheduler steps done so far, one per batch. Rates and momenta are floats.
Momentum means `momentum` of SGD and the first of the `betas` of Adam and its relatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable


def cyclic(
    t: int,
    *,
    base_lr: float,
    max_lr: float,
    step_size_up: int = 2000,
    step_size_down: int | None = None,
    mode: str = "triangular",
    gamma: float = 1.0,
    scale_fn: Callable[[float], float] | None = None,
    scale_mode: str = "cycle",
) -> float:
    """The rate of CyclicLR: base_lr + (max_lr - base_lr) * height(t) * scale(t).

    The height is a triangle: it rises from 0 to 1 in step_size_up steps, then falls back to 0 in
    step_size_down steps (None: as many as up), again and again. The scale of its peaks is

        triangular    1
        triangular2   1 / 2 ** (c - 1)   in the c-th cycle, c = 1, 2, ...
        exp_range     gamma ** t         t counts from the first step of all, not of the cycle

    A scale_fn takes the place of the mode; it is given c if scale_mode is "cycle", else t.

    Units: sizes in steps, base_lr and max_lr are rates. Errors: ValueError for another mode.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.CyclicLR.html
    and https://arxiv.org/abs/1506.01186
    """
    amplitude = max_lr - base_lr
    return base_lr + amplitude * _scaled_height(
        t, step_size_up, step_size_down, mode, gamma, scale_fn, scale_mode
    )


def cyclic_momentum(
    t: int,
    *,
    base_momentum: float = 0.8,
    max_momentum: float = 0.9,
    step_size_up: int = 2000,
    step_size_down: int | None = None,
    mode: str = "triangular",
    gamma: float = 1.0,
    scale_fn: Callable[[float], float] | None = None,
    scale_mode: str = "cycle",
) -> float:
    """The momentum that CyclicLR writes: max_momentum - (max_momentum - base_momentum) * height(t)
    * scale(t), height and scale as in `cyclic`. It is lowest where the rate is highest.

    Units: sizes in steps, a momentum has no unit. Errors: ValueError for another mode.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.CyclicLR.html
    """
    amplitude = max_momentum - base_momentum
    return max_momentum - amplitude * _scaled_height(
        t, step_size_up, step_size_down, mode, gamma, scale_fn, scale_mode
    )


def _scaled_height(
    t: int,
    step_size_up: int,
    step_size_down: int | None,
    mode: str,
    gamma: float,
    scale_fn: Callable[[float], float] | None,
    scale_mode: str,
) -> float:
    up = step_size_up
    down = step_size_up if step_size_down is None else step_size_down
    finished_cycles, position = divmod(t, up + down)
    height = position / up if position <= up else (up + down - position) / down
    if scale_fn is not None:
        return height * scale_fn(finished_cycles + 1 if scale_mode == "cycle" else t)
    if mode == "triangular":
        return height
    if mode == "triangular2":
        return height / 2.0**finished_cycles
    if mode == "exp_range":
        return height * gamma**t
    raise ValueError(f"mode must be triangular, triangular2 or exp_range, got {mode!r}")


def one_cycle(
    t: int,
    *,
    max_lr: float,
    total_steps: int,
    pct_start: float = 0.3,
    anneal_strategy: str = "cos",
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    three_phase: bool = False,
) -> float:
    """The rate of OneCycleLR: annealed from corner to corner, two phases between three corners
    or three phases between four.

        step                  two phases   three phases
        0                     initial      initial       initial = max_lr / div_factor
        pct_start * N - 1     max_lr       max_lr        N = total_steps
        2 * pct_start * N - 2              initial
        N - 1                 final        final         final = initial / final_div_factor

    On the way from `start` to `end`, with the share p of the phase done, "linear" gives
    start + (end - start) * p and "cos" gives end + (start - end) * (1 + cos(pi p)) / 2.
    A corner may fall between two steps; then no step has exactly its value.
    At t = N the last phase is continued by one step: PyTorch allows that step, too.

    Units: total_steps in optimizer steps, max_lr a rate.
    Errors: ValueError for t > N and for an unknown anneal_strategy; ZeroDivisionError if t falls
    on a phase without length (pct_start * N == 1).
    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.OneCycleLR.html
    """
    initial = max_lr / div_factor
    final = initial / final_div_factor
    values = [initial, max_lr, initial, final] if three_phase else [initial, max_lr, final]
    return _between_corners(t, values, total_steps, pct_start, anneal_strategy)


def one_cycle_momentum(
    t: int,
    *,
    total_steps: int,
    base_momentum: float = 0.85,
    max_momentum: float = 0.95,
    pct_start: float = 0.3,
    anneal_strategy: str = "cos",
    three_phase: bool = False,
) -> float:
    """The momentum that OneCycleLR writes, annealed between the same corners as the rate:

    from max_momentum down to base_momentum where the rate peaks, and back up to max_momentum;
    in the last of three phases it stays at max_momentum.

    Units: total_steps in optimizer steps, a momentum has no unit. Errors: those of `one_cycle`.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.OneCycleLR.html
    """
    values = [max_momentum, base_momentum, max_momentum]
    if three_phase:
        values.append(max_momentum)
    return _between_corners(t, values, total_steps, pct_start, anneal_strategy)


def _between_corners(
    t: int, values: list[float], total_steps: int, pct_start: float, anneal_strategy: str
) -> float:
    if t > total_steps:
        raise ValueError(f"the schedule has {total_steps} steps, asked for step {t}")
    peak = pct_start * total_steps - 1
    middle = [peak] if len(values) == 3 else [peak, 2 * peak]
    steps = [0, *middle, total_steps - 1]
    # The phase of t is the first one that ends at t or later; past the end, the last one.
    phase = next((i for i in range(len(middle)) if t <= steps[i + 1]), len(middle))
    start, end = values[phase], values[phase + 1]
    done = (t - steps[phase]) / (steps[phase + 1] - steps[phase])
    if anneal_strategy == "linear":
        return start + (end - start) * done
    if anneal_strategy == "cos":
        return end + (start - end) * (1.0 + math.cos(math.pi * done)) / 2.0
    raise ValueError(f"anneal_strategy must be cos or linear, got {anneal_strategy!r}")
