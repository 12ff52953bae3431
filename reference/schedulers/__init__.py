"""Closed forms of the schedulers of `torch.optim.lr_scheduler`, in plain Python floats.

Each function answers one question: which learning rate does the schedule give at step t? The
step t counts calls of `scheduler.step()`, from 0, so the value at t is the rate that the
(t+1)-th optimizer step uses. Rates go in and come out as floats, one parameter group at a time.
Arguments have the names and the defaults of the PyTorch class.
"""

from __future__ import annotations

from reference.schedulers.closed_forms import (
    constant,
    cosine_annealing,
    cosine_annealing_warm_restarts,
    exponential,
    lambda_,
    linear,
    multi_step,
    multiplicative,
    polynomial,
    step,
)
from reference.schedulers.composition import chained, sequential
from reference.schedulers.cycles import cyclic, cyclic_momentum, one_cycle, one_cycle_momentum

__all__ = [
    "chained",
    "constant",
    "cosine_annealing",
    "cosine_annealing_warm_restarts",
    "cyclic",
    "cyclic_momentum",
    "exponential",
    "lambda_",
    "linear",
    "multi_step",
    "multiplicative",
    "one_cycle",
    "one_cycle_momentum",
    "polynomial",
    "sequential",
    "step",
]
