"""ReduceLROnPlateau as a state machine in plain Python, and the same with a repaired threshold.

Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.ReduceLROnPlateau.html
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any, Protocol, SupportsFloat


class HasParamGroups(Protocol):
    """An optimizer, or anything else with a list of groups that each hold a rate under "lr"."""

    param_groups: list[dict[str, Any]]


class ReduceLROnPlateau:
    """Multiply every group's rate by `factor` once the metric has not improved for too long.

    After each epoch, `step(metric)` does this:

        1. The epoch is good if the metric is strictly beyond `target()`, else it is bad; so a
           metric that stays equal, or is NaN, is bad. A good epoch's metric becomes the best and
           ends the row of bad epochs.
        2. An epoch within the `cooldown` epochs after a reduction never counts as bad.
        3. As soon as more than `patience` epochs in a row were bad, each group's rate becomes
           max(factor * rate, min_lr), unless that lowers it by `eps` or less. A new row and the
           cooldown begin.

    `min_lr` is one number, or one per parameter group. Rates and metrics are plain numbers, in
    whatever unit the optimizer and the metric have.

    Raises ValueError if the factor is not below 1, if a mode is unknown, or if the number of
    `min_lr` is not the number of groups.
    """

    def __init__(
        self,
        optimizer: HasParamGroups,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | Sequence[float] = 0.0,
        eps: float = 1e-8,
    ) -> None:
        if factor >= 1.0:
            raise ValueError(f"factor must be below 1, got {factor}")
        if mode not in ("min", "max"):
            raise ValueError(f"mode {mode} is unknown: expected min or max")
        if threshold_mode not in ("rel", "abs"):
            raise ValueError(f"threshold mode {threshold_mode} is unknown: expected rel or abs")
        groups = len(optimizer.param_groups)
        floors = [min_lr] * groups if isinstance(min_lr, (int, float)) else list(min_lr)
        if len(floors) != groups:
            raise ValueError(f"expected {groups} min_lr, got {len(floors)}")
        self.optimizer = optimizer
        self.mode, self.factor, self.patience = mode, factor, patience
        self.threshold, self.threshold_mode = threshold, threshold_mode
        self.cooldown, self.min_lrs, self.eps = cooldown, floors, eps
        self.best = inf if mode == "min" else -inf
        self.bad_epochs = 0
        self.cooldown_left = 0

    def step(self, metrics: SupportsFloat) -> None:
        """Judge one epoch by its metric."""
        value = float(metrics)
        if self.is_better(value):
            self.best = value
            self.bad_epochs = 0
        else:
            self.bad_epochs += 1
        if self.cooldown_left > 0:
            self.cooldown_left -= 1
            self.bad_epochs = 0
        if self.bad_epochs > self.patience:
            self.reduce()
            self.bad_epochs = 0
            self.cooldown_left = self.cooldown

    def is_better(self, value: float) -> bool:
        """Whether a metric is an improvement on the best one so far."""
        return value < self.target() if self.mode == "min" else value > self.target()

    def target(self) -> float:
        """What a metric must pass: best -+ threshold, or best * (1 -+ threshold)."""
        change = -self.threshold if self.mode == "min" else self.threshold
        return self.best + change if self.threshold_mode == "abs" else self.best * (1.0 + change)

    def reduce(self) -> None:
        """Lower the rate of every group, down to its floor."""
        for group, floor in zip(self.optimizer.param_groups, self.min_lrs, strict=True):
            rate = max(group["lr"] * self.factor, floor)
            if group["lr"] - rate > self.eps:
                group["lr"] = rate

    def get_last_lr(self) -> list[float]:
        """The rate of every group, as the last step left it."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Settings and counters; the rates themselves are saved with the optimizer."""
        return {name: value for name, value in vars(self).items() if name != "optimizer"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state: its settings replace those given at construction."""
        vars(self).update(state)


class SignSafeReduceLROnPlateau(ReduceLROnPlateau):
    """The same, with a relative threshold that asks for an improvement whatever the sign.

    The threshold is measured by the best metric's size: best -+ threshold * |best|. For a
    positive best that is the documented formula. For a negative one the documented formula lands
    on the wrong side of the best: -1 * (1 - 0.1) = -0.9 is worse than -1.

    Source: https://github.com/pytorch/pytorch/issues/47513
    """

    def target(self) -> float:
        """What a metric must pass: best -+ threshold, or best -+ threshold * |best|."""
        change = -self.threshold if self.mode == "min" else self.threshold
        if self.threshold_mode == "abs":
            return self.best + change
        return self.best * (1.0 + change if self.best >= 0.0 else 1.0 - change)
