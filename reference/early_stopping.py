"""Early stopping on a validation value.

Source: https://lightning.ai/docs/pytorch/stable/api/lightning.pytorch.callbacks.EarlyStopping.html
"""

from __future__ import annotations

from math import inf, isfinite


class EarlyStopping:
    """End training once `patience` checks in a row brought no improvement.

    A check improves if its value is strictly below best - min_delta (mode "min") or strictly
    above best + min_delta (mode "max"); `min_delta` is in the value's own unit. The check that
    makes the row `patience` long is the one that stops, so a patience of 0 stops as early as a
    patience of 1. A value that is NaN or infinite stops at once.

    Raises ValueError if the mode is unknown.
    """

    def __init__(self, patience: int = 3, min_delta: float = 0.0, mode: str = "min") -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"mode {mode} is unknown: expected min or max")
        self.patience = patience
        self.min_delta = min_delta
        self.mode = mode
        self.best = inf if mode == "min" else -inf
        self.checks_without_improvement = 0

    def should_stop(self, value: float) -> bool:
        """Whether training ends after this check."""
        if not isfinite(value):
            return True
        if self.is_better(value):
            self.best = value
            self.checks_without_improvement = 0
            return False
        self.checks_without_improvement += 1
        return self.checks_without_improvement >= self.patience

    def is_better(self, value: float) -> bool:
        """Whether a value is an improvement on the best one so far."""
        if self.mode == "min":
            return value < self.best - self.min_delta
        return value > self.best + self.min_delta
