"""Two patiences: ReduceLROnPlateau's, after which the rate falls, and early stopping's, after which
training ends.

At the end you will know how they count, and so how patient early stopping must be to leave the
lower rate a chance. P is the patience of ReduceLROnPlateau, E that of early stopping.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, nan
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau

from reference import plateau
from reference.data import batches, digits
from reference.early_stopping import EarlyStopping
from reference.training import History, fit
from specs.harness import rule, spec
from specs.harness.observations import Observe

PLATEAU_PAGE = (
    "https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.ReduceLROnPlateau.html"
)
STOPPING_PAGE = (
    "https://lightning.ai/docs/pytorch/stable/api/lightning.pytorch.callbacks.EarlyStopping.html"
)
BOTH = [ReduceLROnPlateau, plateau.ReduceLROnPlateau]

# A class, or whatever builds a scheduler or a stopper from the same arguments.
Scheduler = Callable[..., Any]
Stopper = Callable[..., Any]


def rates_until_the_stop(
    scheduler_class: Scheduler, P: int, stopper: EarlyStopping, cooldown: int = 0
) -> list[float]:
    """The rate of each epoch of a training that never improves, until early stopping ends it.

    The rate starts at 1.0 and is halved. The metric is 1.0 in every epoch: the first epoch sets
    the best, all later ones are bad.
    """
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = scheduler_class(optimizer, factor=0.5, patience=P, cooldown=cooldown)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])  # the epoch is trained with this rate,
        scheduler.step(1.0)  # then judged by the scheduler
        if stopper.should_stop(1.0):  # and by early stopping
            break
    return rates


def reductions_used(rates: Sequence[float]) -> int:
    """How many of the reductions were used by at least one epoch."""
    return len(set(rates)) - 1


# --- How much room a reduction needs --------------------------------------------------------------


class ReducesOnBadEpochP(plateau.ReduceLROnPlateau):
    """Lowers the rate when `patience` epochs were bad, one too early."""

    def __init__(self, optimizer: Any, patience: int, **settings: Any) -> None:
        super().__init__(optimizer, patience=patience - 1, **settings)


class ToleratesOneMore(plateau.ReduceLROnPlateau):
    """Lowers the rate on bad epoch P+2, one too late."""

    def __init__(self, optimizer: Any, patience: int, **settings: Any) -> None:
        super().__init__(optimizer, patience=patience + 1, **settings)


@rule(
    "LR-11",
    "Give early stopping a patience of at least P + 2, where P is ReduceLROnPlateau's, or no epoch"
    " is ever judged at the reduced rate; k reductions need k * (P + 1) + 1.",
    kind="practice",
    source=PLATEAU_PAGE,
    subject=BOTH,
    violated_by=[ReducesOnBadEpochP, ToleratesOneMore],
    consequence="on the digits with P=1, the popular E=2P=2 stops without one epoch at the reduced"
    " rate; E=P+2=3 reaches two thirds of its validation loss",
)
def test_one_epoch_at_the_reduced_rate_needs_patience_p_plus_2(
    ReduceLROnPlateau: Scheduler,
) -> None:
    """Bad epoch P+1 lowers the rate, bad epoch P+2 is the first one trained with it, and early
    stopping ends training on bad epoch E."""
    for P in range(6):
        for E in range(10):
            rates = rates_until_the_stop(ReduceLROnPlateau, P, EarlyStopping(patience=E))
            epochs_at_the_reduced_rate = sum(rate < 1.0 for rate in rates)
            assert epochs_at_the_reduced_rate == max(0, E - (P + 1)), f"P={P}, E={E}"
            assert (epochs_at_the_reduced_rate > 0) == (E >= P + 2), f"P={P}, E={E}"


@spec("LR-11", violated_by=[ReducesOnBadEpochP, ToleratesOneMore])
def test_k_reductions_need_patience_k_times_p_plus_1_plus_1(ReduceLROnPlateau: Scheduler) -> None:
    """Each reduction takes P + 1 bad epochs, and the last one needs an epoch that uses it."""
    for P in range(5):
        for k in (1, 2, 3):
            enough = k * (P + 1) + 1
            rates = rates_until_the_stop(ReduceLROnPlateau, P, EarlyStopping(patience=enough))
            assert reductions_used(rates) == k, f"P={P}"
            rates = rates_until_the_stop(ReduceLROnPlateau, P, EarlyStopping(patience=enough - 1))
            assert reductions_used(rates) == k - 1, f"P={P}"


class IgnoresTheCooldown(plateau.ReduceLROnPlateau):
    """Counts bad epochs right after a reduction."""

    def __init__(self, optimizer: Any, **settings: Any) -> None:
        super().__init__(optimizer, **{**settings, "cooldown": 0})


@spec("LR-11", violated_by=[IgnoresTheCooldown, ToleratesOneMore])
def test_a_cooldown_asks_for_as_many_epochs_more(ReduceLROnPlateau: Scheduler) -> None:
    """Early stopping knows no cooldown: its count goes on. So every reduction after the first
    needs P + 1 + cooldown epochs."""
    for P, cooldown in [(0, 1), (1, 2), (3, 5)]:
        enough = (P + 1) + (P + 1 + cooldown) + 1  # for two reductions
        for E, reductions in [(enough - 1, 1), (enough, 2)]:
            rates = rates_until_the_stop(ReduceLROnPlateau, P, EarlyStopping(E), cooldown)
            assert reductions_used(rates) == reductions, f"P={P}, cooldown={cooldown}, E={E}"


def train_on_digits(stopper: EarlyStopping) -> History:
    """Train a linear classifier at a rate that is too high, with P=1, until the stopper ends it."""
    train_inputs, train_targets, test_inputs, test_targets = digits()
    torch.manual_seed(0)
    model = nn.Linear(64, 10)
    optimizer = SGD(model.parameters(), lr=3.0, momentum=0.9)
    return fit(
        model,
        batches(train_inputs, train_targets, 32, torch.Generator().manual_seed(0)),
        cross_entropy,
        optimizer,
        epochs=16,
        scheduler=ReduceLROnPlateau(optimizer, patience=1),
        validate=lambda: cross_entropy(model(test_inputs), test_targets).item(),
        early_stopping=stopper,
    )


class StopsOneEpochSooner(EarlyStopping):
    """Ends training on bad epoch E - 1."""

    def __init__(self, patience: int = 3, min_delta: float = 0.0, mode: str = "min") -> None:
        super().__init__(patience - 1, min_delta, mode)


@spec("LR-11", subject=EarlyStopping, violated_by=[StopsOneEpochSooner])
def test_on_the_digits_twice_the_patience_never_uses_the_reduced_rate(
    EarlyStopping: Stopper, observe: Observe
) -> None:
    """With P=1, E=2P stops the training when the rate has just been lowered. E=P+2 leaves it one
    epoch, which improves, so training goes on: its validation loss is 0.48, not 0.73."""
    popular = train_on_digits(EarlyStopping(patience=2))
    corrected = train_on_digits(EarlyStopping(patience=3))
    observe("validation loss with E=2", popular.validation_losses[-1])
    observe("validation loss with E=3", corrected.validation_losses[-1])
    assert set(popular.learning_rates) == {3.0}
    assert min(corrected.learning_rates) < 3.0
    assert corrected.validation_losses[-1] < 0.9 * popular.validation_losses[-1]


# --- How early stopping counts --------------------------------------------------------------------


def epoch_of_the_stop(stopper: EarlyStopping, values: Sequence[float]) -> int | None:
    """The number of the first epoch after which training ends, counted from 1."""
    for epoch, value in enumerate(values, start=1):
        if stopper.should_stop(value):
            return epoch
    return None


class StopsOneEpochLater(EarlyStopping):
    """Ends training on bad epoch E + 1, as ReduceLROnPlateau counts."""

    def __init__(self, patience: int = 3, min_delta: float = 0.0, mode: str = "min") -> None:
        super().__init__(patience + 1, min_delta, mode)


class StopsAfterSoManyBadEpochsInTotal(EarlyStopping):
    """Never starts the count again."""

    def should_stop(self, value: float) -> bool:
        before = self.checks_without_improvement
        stops = super().should_stop(value)
        self.checks_without_improvement = max(before, self.checks_without_improvement)
        return stops


@spec(
    "LR-11",
    subject=EarlyStopping,
    violated_by=[StopsOneEpochSooner, StopsOneEpochLater, StopsAfterSoManyBadEpochsInTotal],
)
def test_early_stopping_ends_training_on_bad_epoch_e(EarlyStopping: Stopper) -> None:
    """The first epoch sets the best, so E bad epochs end it after epoch E + 1. A patience of 0 is a
    patience of 1, and the default is 3."""
    for E in range(1, 6):
        assert epoch_of_the_stop(EarlyStopping(patience=E), [5.0] * 10) == E + 1
    assert epoch_of_the_stop(EarlyStopping(patience=0), [5.0] * 10) == 2
    assert epoch_of_the_stop(EarlyStopping(), [5.0] * 10) == 4

    two_bad_then_a_new_best = [5.0, 6.0, 6.0, 4.0, 6.0, 5.0, 3.0, 3.0, 3.0, 3.0]
    assert epoch_of_the_stop(EarlyStopping(patience=3), two_bad_then_a_new_best) == 10


# mode, min_delta, best, a value exactly min_delta better, a value beyond
IMPROVEMENTS = [
    ("min", 0.0, 8.0, 8.0, 7.99),
    ("max", 0.0, 8.0, 8.0, 8.01),
    ("min", 0.25, 8.0, 7.75, 7.74),
    ("max", 0.25, 8.0, 8.25, 8.26),
    ("min", 0.25, -8.0, -8.25, -8.26),
    ("max", 0.25, -8.0, -7.75, -7.74),
]


class AcceptsAnEqualValue(EarlyStopping):
    """Compares with <= and >=."""

    def is_better(self, value: float) -> bool:
        change = -self.min_delta if self.mode == "min" else self.min_delta
        return super().is_better(value) or value == self.best + change


class IgnoresMinDelta(EarlyStopping):
    """Takes every improvement, however small."""

    def __init__(self, patience: int = 3, min_delta: float = 0.0, mode: str = "min") -> None:
        super().__init__(patience, 0.0 * min_delta, mode)


class TakesMinDeltaAsAShare(EarlyStopping):
    """Demands best * (1 - min_delta), as ReduceLROnPlateau would."""

    def is_better(self, value: float) -> bool:
        if self.mode == "min":
            return value < self.best * (1 - self.min_delta)
        return value > self.best * (1 + self.min_delta)


@spec(
    "LR-11",
    subject=EarlyStopping,
    violated_by=[AcceptsAnEqualValue, IgnoresMinDelta, TakesMinDeltaAsAShare],
)
def test_an_improvement_is_larger_than_min_delta(EarlyStopping: Stopper) -> None:
    """min_delta is a difference, also for negative values. Exactly min_delta is not enough."""
    for mode, min_delta, best, there, beyond in IMPROVEMENTS:
        stopper = EarlyStopping(patience=1, min_delta=min_delta, mode=mode)
        assert epoch_of_the_stop(stopper, [best, there]) == 2, f"{mode}, {best} and {there}"
        stopper = EarlyStopping(patience=1, min_delta=min_delta, mode=mode)
        assert epoch_of_the_stop(stopper, [best, beyond]) is None, f"{mode}, {best} and {beyond}"


class HasPatienceWithNaN(EarlyStopping):
    """Takes a value that is not finite for one bad epoch of several."""

    def should_stop(self, value: float) -> bool:
        return super().should_stop(value if abs(value) < inf else 1e300)


@spec("LR-11", subject=EarlyStopping, violated_by=[HasPatienceWithNaN])
def test_nan_and_infinity_stop_at_once(EarlyStopping: Stopper) -> None:
    """ReduceLROnPlateau merely counts a NaN as bad: together they end a diverged run on its first
    NaN, and the rate is not lowered."""
    for value in (nan, inf, -inf):
        assert epoch_of_the_stop(EarlyStopping(patience=5), [5.0, 4.0, value]) == 3


class AcceptsAnyMode(EarlyStopping):
    """Takes an unknown mode for "min"."""

    def __init__(self, patience: int = 3, min_delta: float = 0.0, mode: str = "min") -> None:
        super().__init__(patience, min_delta, "max" if mode == "max" else "min")


@spec("LR-11", subject=EarlyStopping, violated_by=[AcceptsAnyMode])
def test_an_unknown_mode_is_a_value_error(EarlyStopping: Stopper) -> None:
    """A typing error must not turn into the wrong direction."""
    with pytest.raises(ValueError, match="mode"):
        EarlyStopping(mode="maximum")


@spec("LR-11", subject=EarlyStopping, violated_by=[IgnoresMinDelta])
def test_both_must_agree_on_what_an_improvement_is(EarlyStopping: Stopper) -> None:
    """A loss that falls by 0.001 an epoch is always good for ReduceLROnPlateau, whose default
    threshold is 0.0001 of the best. Early stopping with min_delta=0.1 calls the same epochs bad:
    no patience of a few epochs leaves it room for a reduction that does not come."""
    slowly_falling = [1.0 - 0.001 * epoch for epoch in range(30)]
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = ReduceLROnPlateau(optimizer, patience=1)
    for value in slowly_falling:
        scheduler.step(value)
    assert optimizer.param_groups[0]["lr"] == 1.0
    assert epoch_of_the_stop(EarlyStopping(patience=3), slowly_falling) is None
    assert epoch_of_the_stop(EarlyStopping(patience=3, min_delta=0.1), slowly_falling) == 4


# --- Three popular statements ---------------------------------------------------------------------


@rule(
    "CLAIM-05",
    "ReduceLROnPlateau and EarlyStopping with equal patience fire in the same epoch.",
    kind="claim",
    source=STOPPING_PAGE,
    subject=BOTH,
    violated_by=[ReducesOnBadEpochP, ToleratesOneMore],
    verdict="holds if the patience is 0; with any other, training ends one epoch before the rate"
    " would have been lowered",
)
def test_equal_patience_stops_one_epoch_before_the_reduction(ReduceLROnPlateau: Scheduler) -> None:
    """One waits until the count is above its patience, the other until it reaches it."""
    for patience in range(6):
        never = EarlyStopping(patience=50)
        rates = rates_until_the_stop(ReduceLROnPlateau, patience, never)
        reduction = rates.index(0.5)  # as many epochs have the rate 1.0; the last one lowers it
        stop = epoch_of_the_stop(EarlyStopping(patience), [1.0] * 50)
        assert reduction == patience + 2
        assert stop == (reduction if patience == 0 else reduction - 1)


@rule(
    "CLAIM-06",
    "Early-stopping patience of twice the plateau patience gives room for two reductions.",
    kind="claim",
    source=STOPPING_PAGE,
    subject=BOTH,
    violated_by=[ReducesOnBadEpochP, ToleratesOneMore],
    verdict="false",
)
def test_twice_the_patience_has_room_for_one_reduction_at_most(
    ReduceLROnPlateau: Scheduler,
) -> None:
    """Two take 2 * (P + 1) bad epochs and one more to be judged: 2 * P + 3, always above 2 * P."""
    for P in range(7):
        rates = rates_until_the_stop(ReduceLROnPlateau, P, EarlyStopping(patience=2 * P))
        assert reductions_used(rates) == (1 if P >= 2 else 0), f"P={P}"
        rates = rates_until_the_stop(ReduceLROnPlateau, P, EarlyStopping(patience=2 * P + 3))
        assert reductions_used(rates) >= 2, f"P={P}"


@rule(
    "CLAIM-27",
    "Early-stopping patience should be at least twice the plateau patience.",
    kind="claim",
    source=STOPPING_PAGE,
    subject=BOTH,
    violated_by=[ReducesOnBadEpochP, ToleratesOneMore],
    verdict="holds if the plateau patience is 2 or more and one reduction is enough",
)
def test_twice_the_patience_judges_p_minus_1_epochs_at_the_reduced_rate(
    ReduceLROnPlateau: Scheduler,
) -> None:
    """2 * P >= P + 2 from P = 2 on. With P = 1 the popular minimum of E = 2 stops too early, and
    3 = P + 2 would be needed; with a large P it is more than one reduction needs."""
    for P, epochs_at_the_reduced_rate in [(0, 0), (1, 0), (2, 1), (3, 2), (5, 4), (10, 9)]:
        rates = rates_until_the_stop(ReduceLROnPlateau, P, EarlyStopping(patience=2 * P))
        assert sum(rate < 1.0 for rate in rates) == epochs_at_the_reduced_rate, f"P={P}"
