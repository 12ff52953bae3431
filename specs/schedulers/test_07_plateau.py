"""ReduceLROnPlateau: the scheduler that watches a metric instead of the clock.

At the end you will know after how many bad epochs it lowers the learning rate, what cooldown and
several parameter groups change, and what must be saved to go on after a restart. Which metrics make
an epoch bad is told in test_08_plateau_metric.py, and where the falling rate ends in
test_09_plateau_floor.py.

In every example the rate starts at 1.0 and is halved (factor=0.5), so all rates are exact numbers.
A list of rates is always: the learning rate after each epoch's `step(metric)`.
"""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable, Sequence
from math import inf, nan
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau

from reference import plateau
from specs.harness import rule, spec
from specs.harness.observations import Observe

# A scheduler class, or whatever builds a scheduler from the same arguments.
Scheduler = Callable[..., Any]

BOTH = [ReduceLROnPlateau, plateau.ReduceLROnPlateau]


def optimizer_with(*rates: float) -> SGD:
    """An optimizer with one parameter group for each rate."""
    return SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in rates])


def rates_after_each_epoch(
    scheduler_class: Scheduler, metrics: Sequence[float], **settings: Any
) -> list[float]:
    """The learning rate after each epoch's `step(metric)`, from 1.0 on and halved each time."""
    optimizer = optimizer_with(1.0)
    scheduler = scheduler_class(optimizer, factor=0.5, **settings)
    rates = []
    for metric in metrics:
        scheduler.step(metric)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


# --- Patience: which bad epoch lowers the rate ----------------------------------------------------

# The metric is 5.0 in every epoch: the first epoch sets the best, all later ones are bad.
PATIENCE_AND_RATES = [
    (0, [1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625]),
    (1, [1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.125]),
    (2, [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25]),
    (5, [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5]),
]


class ReducesOnBadEpochP(plateau.ReduceLROnPlateau):
    """Lowers the rate when `patience` epochs were bad, one too early."""

    def step(self, metrics: Any) -> None:
        self.patience -= 1
        super().step(metrics)
        self.patience += 1


class ToleratesOneMore(plateau.ReduceLROnPlateau):
    """Lowers the rate on bad epoch P+2, one too late."""

    def step(self, metrics: Any) -> None:
        self.patience += 1
        super().step(metrics)
        self.patience -= 1


class AcceptsAnEqualMetric(plateau.ReduceLROnPlateau):
    """Calls an epoch good that merely repeats the best metric."""

    def is_better(self, value: float) -> bool:
        return super().is_better(value) or value == self.best


@rule(
    "LR-08",
    "ReduceLROnPlateau with patience=P tolerates P bad epochs in a row; bad epoch P+1 lowers the"
    " learning rate.",
    kind="contract",
    source="https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.ReduceLROnPlateau.html",
    subject=BOTH,
    violated_by=[ReducesOnBadEpochP, ToleratesOneMore, AcceptsAnEqualMetric],
)
def test_bad_epoch_number_patience_plus_one_lowers_the_rate(
    ReduceLROnPlateau: Scheduler, observe: Observe
) -> None:
    """The first epoch is never bad: there is nothing to compare it with. After it every P+1 bad
    epochs cost one reduction. An epoch that equals the best is bad, too, although the documentation
    of `patience` says that the rate stays if the performance "remains the same"."""
    for patience, expected in PATIENCE_AND_RATES:
        rates = rates_after_each_epoch(ReduceLROnPlateau, [5.0] * 7, patience=patience)
        observe(f"rates with patience {patience}", rates)
        assert rates == expected


class CountsBadEpochsInTotal(plateau.ReduceLROnPlateau):
    """Never starts the count of bad epochs again."""

    def step(self, metrics: Any) -> None:
        before = self.bad_epochs
        if self.is_better(metrics):
            super().step(metrics)
            self.bad_epochs = before
        else:
            super().step(metrics)


class ComparesWithTheLastEpoch(plateau.ReduceLROnPlateau):
    """Asks for a better metric than in the epoch before, not than the best one."""

    def step(self, metrics: Any) -> None:
        super().step(metrics)
        self.best = metrics


@spec("LR-08", violated_by=[CountsBadEpochsInTotal, ComparesWithTheLastEpoch])
def test_only_a_new_best_ends_a_row_of_bad_epochs(ReduceLROnPlateau: Scheduler) -> None:
    """Recovering from a worse epoch is not enough: the metric must beat the best one ever."""
    two_bad_then_a_new_best = [5.0, 6.0, 6.0, 4.0, 6.0, 6.0, 3.0]
    rates = rates_after_each_epoch(ReduceLROnPlateau, two_bad_then_a_new_best, patience=2)
    assert rates == [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]

    falling_but_never_below_the_first = [5.0, 9.0, 8.0, 7.0, 6.0]
    rates = rates_after_each_epoch(ReduceLROnPlateau, falling_but_never_below_the_first, patience=2)
    assert rates == [1.0, 1.0, 1.0, 0.5, 0.5]


class OtherDefaults(plateau.ReduceLROnPlateau):
    """Has defaults of its own: patience 5, factor 0.5, an absolute threshold."""

    def __init__(self, optimizer: Any, **settings: Any) -> None:
        defaults = {"patience": 5, "factor": 0.5, "threshold_mode": "abs"}
        super().__init__(optimizer, **{**defaults, **settings})


@spec("LR-08", violated_by=[OtherDefaults])
def test_by_default_the_11th_epoch_without_a_gain_of_a_ten_thousandth_divides_by_ten(
    ReduceLROnPlateau: Scheduler, observe: Observe
) -> None:
    """The defaults are patience=10, factor=0.1 and a relative threshold of 1e-4: from a loss of
    100, an epoch must save more than 0.01 to count."""
    for loss_after_first_epoch, expected in [(99.995, 0.1), (99.98, 1.0)]:
        optimizer = optimizer_with(1.0)
        scheduler = ReduceLROnPlateau(optimizer)
        scheduler.step(100.0)
        scheduler.step(loss_after_first_epoch)
        for _ in range(9):
            scheduler.step(100.0)
        assert optimizer.param_groups[0]["lr"] == 1.0  # ten bad epochs at most: tolerated
        scheduler.step(100.0)
        assert optimizer.param_groups[0]["lr"] == expected
    observe("signature", inspect.signature(ReduceLROnPlateau))


# --- Cooldown, parameter groups, restarts ---------------------------------------------------------


class IgnoresTheCooldown(plateau.ReduceLROnPlateau):
    """Counts bad epochs right after a reduction."""

    def __init__(self, optimizer: Any, **settings: Any) -> None:
        super().__init__(optimizer, **{**settings, "cooldown": 0})


class CoolsDownOneEpochTooLong(plateau.ReduceLROnPlateau):
    """Ignores one bad epoch more than `cooldown`."""

    def __init__(self, optimizer: Any, cooldown: int = 0, **settings: Any) -> None:
        super().__init__(optimizer, cooldown=cooldown + 1, **settings)


class IsBlindDuringCooldown(plateau.ReduceLROnPlateau):
    """Does not look at the metric at all during a cooldown."""

    def step(self, metrics: Any) -> None:
        super().step(nan if self.cooldown_left > 0 else metrics)


@spec("LR-08", violated_by=[IgnoresTheCooldown, CoolsDownOneEpochTooLong])
def test_bad_epochs_in_the_cooldown_do_not_count(ReduceLROnPlateau: Scheduler) -> None:
    """With patience=1 and cooldown=2 reductions are 1 + 1 + 2 = 4 epochs apart, not 2."""
    rates = rates_after_each_epoch(ReduceLROnPlateau, [5.0] * 11, patience=1, cooldown=2)
    assert rates == [1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.125]


@spec("LR-08", violated_by=[IsBlindDuringCooldown])
def test_a_new_best_in_the_cooldown_is_remembered(ReduceLROnPlateau: Scheduler) -> None:
    """Epoch 3 lowers the rate, epoch 4 is in the cooldown and sets the best to 2.0. So 4.0 is bad
    afterwards, although it is below the old best of 5.0."""
    metrics = [5.0, 5.0, 5.0, 2.0, 4.0, 4.0]
    rates = rates_after_each_epoch(ReduceLROnPlateau, metrics, patience=1, cooldown=1)
    assert rates == [1.0, 1.0, 0.5, 0.5, 0.5, 0.25]


class ReducesTheFirstGroupOnly(plateau.ReduceLROnPlateau):
    """Forgets all parameter groups but the first."""

    def reduce(self) -> None:
        self.optimizer.param_groups[0]["lr"] *= self.factor


class GivesAllGroupsTheFirstRate(plateau.ReduceLROnPlateau):
    """Computes one new rate and writes it to every group."""

    def reduce(self) -> None:
        rate = self.optimizer.param_groups[0]["lr"] * self.factor
        for group in self.optimizer.param_groups:
            group["lr"] = rate


@spec("LR-08", violated_by=[ReducesTheFirstGroupOnly, GivesAllGroupsTheFirstRate])
def test_each_parameter_group_keeps_its_share(ReduceLROnPlateau: Scheduler) -> None:
    """The factor is applied to every group's own rate."""
    optimizer = optimizer_with(1.0, 0.5, 8.0)
    scheduler = ReduceLROnPlateau(optimizer, factor=0.25, patience=0)
    scheduler.step(5.0)
    scheduler.step(5.0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.125, 2.0]
    assert scheduler.get_last_lr() == [0.25, 0.125, 2.0]


class ForgetsItsBadEpochs(plateau.ReduceLROnPlateau):
    """Comes back from a checkpoint with a count of zero."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict({**state, "bad_epochs": 0})


class ForgetsTheBest(plateau.ReduceLROnPlateau):
    """Comes back from a checkpoint without the best metric."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict({**state, "best": inf})


class ForgetsTheCooldown(plateau.ReduceLROnPlateau):
    """Comes back from a checkpoint without the cooldown that was running."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict({**state, "cooldown_left": 0})


class KeepsItsOwnSettings(plateau.ReduceLROnPlateau):
    """Prefers the settings of its constructor to those of the checkpoint."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        own = {name: getattr(self, name) for name in ("patience", "cooldown", "factor")}
        super().load_state_dict({**state, **own})


@spec(
    "LR-08",
    violated_by=[ForgetsItsBadEpochs, ForgetsTheBest, ForgetsTheCooldown, KeepsItsOwnSettings],
)
def test_a_restart_from_both_states_changes_nothing(ReduceLROnPlateau: Scheduler) -> None:
    """The rates are in the optimizer's state, the counters and settings in the scheduler's: both
    must be saved. The saved settings win over those of the new constructor."""
    metrics = [5.0, 4.0, 6.0, 6.0, 6.0, 3.0, 6.0, 6.0, 6.0, 6.0, 2.0, 6.0]
    settings = {"patience": 1, "cooldown": 1}
    uninterrupted = rates_after_each_epoch(ReduceLROnPlateau, metrics, **settings)
    for stop in range(1, len(metrics)):
        optimizer = optimizer_with(1.0)
        scheduler = ReduceLROnPlateau(optimizer, factor=0.5, **settings)
        for metric in metrics[:stop]:
            scheduler.step(metric)
        checkpoint = io.BytesIO()
        torch.save([optimizer.state_dict(), scheduler.state_dict()], checkpoint)
        checkpoint.seek(0)
        optimizer_state, scheduler_state = torch.load(checkpoint, weights_only=True)

        optimizer = optimizer_with(1.0)
        scheduler = ReduceLROnPlateau(optimizer, factor=0.9, patience=7)
        optimizer.load_state_dict(optimizer_state)
        scheduler.load_state_dict(scheduler_state)
        rates = []
        for metric in metrics[stop:]:
            scheduler.step(metric)
            rates.append(optimizer.param_groups[0]["lr"])
        assert rates == uninterrupted[stop:], f"restarted after epoch {stop}"


# --- Any metrics, any settings --------------------------------------------------------------------

SETTINGS = st.fixed_dictionaries(
    {
        "mode": st.sampled_from(["min", "max"]),
        "factor": st.sampled_from([0.1, 0.5]),
        "patience": st.integers(0, 2),
        "threshold": st.sampled_from([0.0, 0.25]),
        "threshold_mode": st.sampled_from(["rel", "abs"]),
        "cooldown": st.integers(0, 2),
        "min_lr": st.sampled_from([0.0, 0.3, [0.0, 0.3]]),
        "eps": st.sampled_from([1e-8, 0.125]),
    }
)
# Quarters meet a threshold of 0.25 exactly. Negative metrics are a story of their own (LR-10).
METRICS = st.lists(
    st.sampled_from([0.0, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, nan]), min_size=6, max_size=20
)


class SharesOneFloor(plateau.ReduceLROnPlateau):
    """Uses the largest `min_lr` for every group."""

    def reduce(self) -> None:
        self.min_lrs = [max(self.min_lrs)] * len(self.min_lrs)
        super().reduce()


@spec(
    "LR-08",
    subject=[ReduceLROnPlateau, plateau.SignSafeReduceLROnPlateau],
    violated_by=[
        ReducesOnBadEpochP,
        AcceptsAnEqualMetric,
        CountsBadEpochsInTotal,
        ComparesWithTheLastEpoch,
        CoolsDownOneEpochTooLong,
        SharesOneFloor,
    ],
)
@given(settings=SETTINGS, metrics=METRICS)
def test_every_rate_is_that_of_the_state_machine(
    ReduceLROnPlateau: Scheduler, settings: dict[str, Any], metrics: list[float]
) -> None:
    """Three counters decide everything: the best metric, the bad epochs, the cooldown left. The
    reference keeps them in plain Python; two groups, every epoch, exactly the same rates."""
    judged, expected = optimizer_with(1.0, 0.4), optimizer_with(1.0, 0.4)
    scheduler = ReduceLROnPlateau(judged, **settings)
    reference = plateau.ReduceLROnPlateau(expected, **settings)
    for metric in metrics:
        scheduler.step(metric)
        reference.step(metric)
        assert scheduler.get_last_lr() == reference.get_last_lr()
        assert [group["lr"] for group in judged.param_groups] == reference.get_last_lr()
