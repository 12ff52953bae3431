"""ReduceLROnPlateau's metric: it must be given, must beat a threshold, and should not be negative.

At the end you will know why this scheduler does not fit into SequentialLR or ChainedScheduler,
which metric makes an epoch good or bad, and why a loss below zero (a log-likelihood, an ELBO, a
negated score) needs `threshold_mode="abs"`.

In every example the rate starts at 1.0 and is halved (factor=0.5), so all rates are exact numbers.
A list of rates is always: the learning rate after each epoch's `step(metric)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import nan
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD
from torch.optim.lr_scheduler import ChainedScheduler, LinearLR, ReduceLROnPlateau, SequentialLR

from reference import plateau
from specs.harness import known_bug, rule, spec

PLATEAU_PAGE = (
    "https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.ReduceLROnPlateau.html"
)


# A scheduler class, or whatever builds a scheduler from the same arguments.
Scheduler = Callable[..., Any]


def optimizer_with_rate_1() -> SGD:
    """An optimizer with one parameter and the learning rate 1.0."""
    return SGD([torch.zeros(1, requires_grad=True)], lr=1.0)


def rates_after_each_epoch(
    scheduler_class: Scheduler, metrics: Sequence[float], **settings: Any
) -> list[float]:
    """The learning rate after each epoch's `step(metric)`, from 1.0 on and halved each time."""
    optimizer = optimizer_with_rate_1()
    scheduler = scheduler_class(optimizer, factor=0.5, **settings)
    rates = []
    for metric in metrics:
        scheduler.step(metric)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


# --- The metric must be given ---------------------------------------------------------------------


class StepsWithoutAMetric(plateau.ReduceLROnPlateau):
    """Takes a forgotten metric for a bad epoch."""

    def step(self, metrics: Any = nan) -> None:
        super().step(metrics)


@rule(
    "LR-09",
    "ReduceLROnPlateau.step needs the metric; schedulers that step others without one refuse it.",
    kind="contract",
    source=PLATEAU_PAGE,
    subject=[ReduceLROnPlateau, plateau.ReduceLROnPlateau],
    violated_by=[StepsWithoutAMetric],
)
def test_step_without_a_metric_is_a_type_error(ReduceLROnPlateau: Scheduler) -> None:
    """A loop that calls `scheduler.step()` for every scheduler fails at once, not silently."""
    scheduler = ReduceLROnPlateau(optimizer_with_rate_1())
    with pytest.raises(TypeError, match="metrics"):
        scheduler.step()


class StepsPiecesUnseen:
    """Takes any schedulers, whatever their `step` needs."""

    def __init__(self, optimizer: SGD, schedulers: list[Any], milestones: list[int]) -> None:
        self.optimizer, self.schedulers, self.milestones = optimizer, schedulers, milestones


class ChainsUnseen:
    """Takes any schedulers, whatever their `step` needs."""

    def __init__(self, schedulers: list[Any], optimizer: SGD | None = None) -> None:
        self.schedulers, self.optimizer = schedulers, optimizer


@spec("LR-09", subject=SequentialLR, violated_by=[StepsPiecesUnseen])
def test_sequential_lr_refuses_it_as_a_piece(SequentialLR: Scheduler) -> None:
    """So "warm-up, then plateau" is written by hand: step the warm-up while it lasts, and
    afterwards the plateau scheduler, which goes on from the rate that it finds."""
    optimizer = optimizer_with_rate_1()
    warm_up, plateau_scheduler = LinearLR(optimizer), ReduceLROnPlateau(optimizer)
    with pytest.raises(ValueError, match="does not support `ReduceLROnPlateau`"):
        SequentialLR(optimizer, [warm_up, plateau_scheduler], milestones=[5])


@spec("LR-09", subject=ChainedScheduler, violated_by=[ChainsUnseen])
def test_chained_scheduler_refuses_it_as_a_link(ChainedScheduler: Scheduler) -> None:
    """ChainedScheduler.step() has no metric to pass on."""
    optimizer = optimizer_with_rate_1()
    warm_up, plateau_scheduler = LinearLR(optimizer), ReduceLROnPlateau(optimizer)
    with pytest.raises(ValueError, match="does not support `ReduceLROnPlateau`"):
        ChainedScheduler([warm_up, plateau_scheduler], optimizer=optimizer)


# Settings that are refused, and the argument that the message names.
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"factor": 1.0}, "(?i)factor"),
    ({"factor": 2.0}, "(?i)factor"),
    ({"mode": "minimum"}, "mode minimum"),
    ({"threshold_mode": "relative"}, "threshold mode relative"),
    ({"min_lr": [0.1, 0.2]}, "expected 1 min_lr"),
]


class RefusesNothing(plateau.ReduceLROnPlateau):
    """Accepts every setting."""

    def __init__(self, optimizer: Any, **settings: Any) -> None:
        super().__init__(optimizer)
        vars(self).update(settings)


@spec("LR-09", violated_by=[RefusesNothing])
def test_settings_without_a_meaning_are_value_errors(ReduceLROnPlateau: Scheduler) -> None:
    """A factor of 1 or more would never lower the rate; each group needs one floor."""
    for settings, message in REFUSED:
        with pytest.raises(ValueError, match=message):
            ReduceLROnPlateau(optimizer_with_rate_1(), **settings)


# --- What makes an epoch bad ----------------------------------------------------------------------

# mode, threshold_mode, what the threshold of 0.25 demands after a best of 8.0,
# a metric exactly there, a metric just beyond
THRESHOLDS = [
    ("min", "rel", "8 * (1 - 0.25)", 6.0, 5.9),
    ("max", "rel", "8 * (1 + 0.25)", 10.0, 10.1),
    ("min", "abs", "8 - 0.25", 7.75, 7.7),
    ("max", "abs", "8 + 0.25", 8.25, 8.3),
]


class IgnoresTheThreshold(plateau.ReduceLROnPlateau):
    """Calls any improvement good, however small."""

    def target(self) -> float:
        return self.best


class TakesRelForAbs(plateau.ReduceLROnPlateau):
    """Exchanges the two threshold modes."""

    def __init__(self, optimizer: Any, threshold_mode: str = "rel", **settings: Any) -> None:
        other = "abs" if threshold_mode == "rel" else "rel"
        super().__init__(optimizer, threshold_mode=other, **settings)


class AcceptsTheThresholdItself(plateau.ReduceLROnPlateau):
    """Compares with <= and >=, where it should be < and >."""

    def is_better(self, value: float) -> bool:
        return super().is_better(value) or value == self.target()


@rule(
    "LR-10",
    "An epoch is good only if its metric beats the best one by more than the threshold; below zero"
    ' only threshold_mode="abs" keeps to that.',
    kind="contract",
    source=PLATEAU_PAGE,
    subject=[ReduceLROnPlateau, plateau.ReduceLROnPlateau],
    violated_by=[IgnoresTheThreshold, TakesRelForAbs, AcceptsTheThresholdItself],
)
def test_a_good_epoch_is_strictly_beyond_the_threshold(ReduceLROnPlateau: Scheduler) -> None:
    """A metric that only reaches the threshold is still bad."""
    for mode, threshold_mode, target, there, beyond in THRESHOLDS:
        settings = {"mode": mode, "threshold_mode": threshold_mode, "threshold": 0.25}
        bad = rates_after_each_epoch(ReduceLROnPlateau, [8.0, there], patience=0, **settings)
        assert bad == [1.0, 0.5], target
        good = rates_after_each_epoch(ReduceLROnPlateau, [8.0, beyond], patience=0, **settings)
        assert good == [1.0, 1.0], target


class ComparesWithTheLastEpoch(plateau.ReduceLROnPlateau):
    """Asks for a better metric than in the epoch before, not than the best one."""

    def step(self, metrics: Any) -> None:
        super().step(metrics)
        self.best = metrics


@spec("LR-10", violated_by=[ComparesWithTheLastEpoch, IgnoresTheThreshold])
def test_small_gains_add_up_because_the_best_stays_where_it_was(
    ReduceLROnPlateau: Scheduler,
) -> None:
    """Gains of 0.2 under a threshold of 0.5: each third epoch is more than 0.5 below the best."""
    creeping_down = [8.0, 7.8, 7.6, 7.4, 7.2, 7.0, 6.8]
    settings = {"threshold": 0.5, "threshold_mode": "abs"}
    patient = rates_after_each_epoch(ReduceLROnPlateau, creeping_down, patience=2, **settings)
    assert patient == [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    hasty = rates_after_each_epoch(ReduceLROnPlateau, creeping_down, patience=1, **settings)
    assert hasty == [1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25]


class AlwaysMinimises(plateau.ReduceLROnPlateau):
    """Ignores mode="max"."""

    def __init__(self, optimizer: Any, **settings: Any) -> None:
        super().__init__(optimizer, **{**settings, "mode": "min"})


@spec("LR-10", violated_by=[AlwaysMinimises])
def test_accuracy_needs_mode_max(ReduceLROnPlateau: Scheduler) -> None:
    """With the default mode "min" a rising accuracy looks like a row of bad epochs, and the rate
    falls while the model gets better and better."""
    rising_accuracy = [0.5, 0.6, 0.7, 0.8, 0.9]
    rates = rates_after_each_epoch(ReduceLROnPlateau, rising_accuracy, mode="max", patience=1)
    assert rates == [1.0, 1.0, 1.0, 1.0, 1.0]
    rates = rates_after_each_epoch(ReduceLROnPlateau, rising_accuracy, patience=1)
    assert rates == [1.0, 1.0, 0.5, 0.5, 0.25]


class TakesNaNForAnImprovement(plateau.ReduceLROnPlateau):
    """Calls an epoch good unless its metric is at or above the target: NaN is neither."""

    def is_better(self, value: float) -> bool:
        return not (value >= self.target() if self.mode == "min" else value <= self.target())


class SkipsNaN(plateau.ReduceLROnPlateau):
    """Leaves epochs out whose metric is NaN."""

    def step(self, metrics: Any) -> None:
        if metrics == metrics:
            super().step(metrics)


@spec("LR-10", violated_by=[TakesNaNForAnImprovement, SkipsNaN])
def test_nan_is_a_bad_epoch(ReduceLROnPlateau: Scheduler) -> None:
    """A diverged run lowers its rate every P+1 epochs and says nothing; a NaN never becomes the
    best, so a run that recovers is judged by its real metrics."""
    for mode in ("min", "max"):
        diverged = [5.0, nan, nan, nan, nan]
        rates = rates_after_each_epoch(ReduceLROnPlateau, diverged, mode=mode, patience=1)
        assert rates == [1.0, 1.0, 0.5, 0.5, 0.25]
        recovered = [nan, 5.0, nan, 5.0]
        rates = rates_after_each_epoch(ReduceLROnPlateau, recovered, mode=mode, patience=1)
        assert rates == [1.0, 1.0, 1.0, 0.5]


# --- The metric should not be negative ------------------------------------------------------------

# mode, negative metrics that get worse in every epoch
GETTING_WORSE = [
    ("min", [-1.0, -0.95, -0.92, -0.91]),
    ("max", [-1.0, -1.05, -1.1, -1.15]),
]


class ScalesTheSignedBest(plateau.ReduceLROnPlateau):
    """Demands best * (1 - threshold): for a best of -1 that is -0.9, which is worse than -1."""


class ReducesOnlyOnce(plateau.SignSafeReduceLROnPlateau):
    """Never lowers the rate a second time."""

    def reduce(self) -> None:
        super().reduce()
        self.factor = 0.99


# PyTorch's relative threshold is wrong below zero: an open bug, which its specs expect.
BUG_AND_REPAIR = [
    known_bug(ReduceLROnPlateau, "https://github.com/pytorch/pytorch/issues/47513"),
    plateau.SignSafeReduceLROnPlateau,
]


@spec("LR-10", subject=BUG_AND_REPAIR, violated_by=[ScalesTheSignedBest, ReducesOnlyOnce])
def test_a_negative_metric_that_gets_worse_is_bad(ReduceLROnPlateau: Scheduler) -> None:
    """With patience=0 every epoch after the first must halve the rate. PyTorch's never does: it
    takes each worse metric for an improvement and moves its best after it."""
    for mode, metrics in GETTING_WORSE:
        settings = {"mode": mode, "patience": 0, "threshold": 0.1}
        rates = rates_after_each_epoch(ReduceLROnPlateau, metrics, **settings)
        assert rates == [1.0, 0.5, 0.25, 0.125], f"{mode} of {metrics}"


@spec("LR-10", subject=BUG_AND_REPAIR, violated_by=[ScalesTheSignedBest, ReducesOnlyOnce])
def test_a_negative_metric_that_is_stuck_is_bad(ReduceLROnPlateau: Scheduler) -> None:
    """The default threshold of 0.0001 is enough to break it: stuck at -1, the target is -0.9999,
    which -1 beats in every epoch. The rate is never lowered, however long the plateau."""
    for mode in ("min", "max"):
        rates = rates_after_each_epoch(ReduceLROnPlateau, [-1.0] * 5, mode=mode, patience=1)
        assert rates == [1.0, 1.0, 0.5, 0.5, 0.25], mode


class IgnoresTheThresholdMode(plateau.ReduceLROnPlateau):
    """Uses the relative threshold, whatever is asked for."""

    def __init__(self, optimizer: Any, **settings: Any) -> None:
        super().__init__(optimizer, **{**settings, "threshold_mode": "rel"})


@spec("LR-10", violated_by=[IgnoresTheThresholdMode])
def test_an_absolute_threshold_judges_negative_metrics_rightly(
    ReduceLROnPlateau: Scheduler,
) -> None:
    """The way out today: best - threshold is below the best on either side of zero."""
    for mode, metrics in GETTING_WORSE:
        settings = {"mode": mode, "patience": 0, "threshold": 0.1, "threshold_mode": "abs"}
        rates = rates_after_each_epoch(ReduceLROnPlateau, metrics, **settings)
        assert rates == [1.0, 0.5, 0.25, 0.125], f"{mode} of {metrics}"
    falling_below_zero = [0.5, 0.25, -0.25, -0.75, -1.25]
    settings = {"patience": 0, "threshold": 0.1, "threshold_mode": "abs"}
    rates = rates_after_each_epoch(ReduceLROnPlateau, falling_below_zero, **settings)
    assert rates == [1.0, 1.0, 1.0, 1.0, 1.0]


# mode, what a relative threshold of 0.25 should demand after a best of -8.0,
# a metric exactly there, a metric just beyond
NEGATIVE_THRESHOLDS = [
    ("min", "-8 - 0.25 * |-8|", -10.0, -10.1),
    ("max", "-8 + 0.25 * |-8|", -6.0, -5.9),
]


class HasNoThreshold(plateau.SignSafeReduceLROnPlateau):
    """Calls any improvement good, however small."""

    def target(self) -> float:
        return self.best


@spec("LR-10", subject=BUG_AND_REPAIR, violated_by=[ScalesTheSignedBest, HasNoThreshold])
def test_a_share_of_a_negative_best_is_a_share_of_its_size(ReduceLROnPlateau: Scheduler) -> None:
    """What "25 % better than -8" should mean."""
    for mode, target, there, beyond in NEGATIVE_THRESHOLDS:
        settings = {"mode": mode, "patience": 0, "threshold": 0.25}
        bad = rates_after_each_epoch(ReduceLROnPlateau, [-8.0, there], **settings)
        assert bad == [1.0, 0.5], target
        good = rates_after_each_epoch(ReduceLROnPlateau, [-8.0, beyond], **settings)
        assert good == [1.0, 1.0], target


METRICS = st.lists(st.sampled_from([-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0]), max_size=8)


@spec("LR-10", subject=BUG_AND_REPAIR, violated_by=[ScalesTheSignedBest])
@given(metrics=METRICS, threshold=st.sampled_from([0.0, 0.25]))
def test_minimising_a_metric_is_maximising_its_negative(
    ReduceLROnPlateau: Scheduler, metrics: list[float], threshold: float
) -> None:
    """A loss and its negated score are the same goal, so they must give the same rates."""
    negated = [-metric for metric in metrics]
    settings = {"patience": 1, "threshold": threshold}
    of_loss = rates_after_each_epoch(ReduceLROnPlateau, metrics, mode="min", **settings)
    of_score = rates_after_each_epoch(ReduceLROnPlateau, negated, mode="max", **settings)
    assert of_loss == of_score
