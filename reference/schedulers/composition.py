"""Schedules made of other schedules: one after the other, or all at once.

t is the number of scheduler steps done so far; rates are floats.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence


def sequential(
    t: int, pieces: Sequence[Callable[[int], float]], milestones: Sequence[int]
) -> float:
    """The rate of SequentialLR: pieces[0] up to the first milestone, then pieces[1], and so on.

    A piece maps its own step to a rate, and its own step is 0 at the milestone where it begins:
    for milestones [w], the rate is pieces[0](t) while t < w, then pieces[1](t - w).

    Units: milestones in steps, increasing.
    Errors: ValueError if there is not one milestone between every two pieces.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.SequentialLR.html
    """
    if len(milestones) != len(pieces) - 1:
        raise ValueError(f"{len(pieces)} pieces need {len(pieces) - 1} milestones")
    begins = [0, *milestones]
    current = bisect_right(milestones, t)
    return pieces[current](t - begins[current])


def chained(t: int, base_lr: float, forms: Sequence[Callable[[int, float], float]]) -> float:
    """The rate of ChainedScheduler: base_lr times the factor of every schedule at step t.

    A form maps (t, base_lr) to a rate, as the closed forms of this package do once their other
    arguments are bound; form(t, 1.0) is its factor. It must be proportional to base_lr.

    Units: t in steps. Errors: none of its own.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.ChainedScheduler.html
    """
    return base_lr * math.prod(form(t, 1.0) for form in forms)
