"""EarlyStopping: the callback that ends a fit when validation stops improving.

At the end you know how it counts, what else ends a training at once, when it refuses to work, and
how patient it must be beside ReduceLROnPlateau.

Every example is a real fit, with one update an epoch and a validation whose values are given. The
module's weight is of no importance.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, nan
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from reference import early_stopping
from specs.harness import raising, rule, spec
from specs.harness.observations import Observe
from specs.harness.optional import optional

pl = optional("pytorch_lightning")
callbacks = optional("pytorch_lightning.callbacks")
exceptions = optional("pytorch_lightning.utilities.exceptions")
quiet = optional("reference.lightning_modules").quiet

STOPPING_PAGE = (
    "https://lightning.ai/docs/pytorch/stable/api/lightning.pytorch.callbacks.EarlyStopping.html"
)


class Scripted(pl.LightningModule):
    """Logs the given values, one for each validation, and nothing where the value is None.

    P is the patience of a ReduceLROnPlateau that halves the rate of 1.0; None is no scheduler.
    """

    def __init__(self, values: Sequence[float | None], P: int | None = None) -> None:
        super().__init__()
        self.values = values
        self.P = P
        self.weight = nn.Parameter(torch.tensor(0.0))
        self.validations = 0
        self.rates_used: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.weight * 0.0

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        value = self.values[self.validations]
        self.validations += 1
        if value is not None:
            self.log("val_loss", value)

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=1.0)
        if self.P is None:
            return optimizer
        scheduler = ReduceLROnPlateau(optimizer, factor=0.5, patience=self.P)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"},
        }

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.rates_used.append(optimizer.param_groups[0]["lr"])


def epochs_trained(module: Any, stopping: Any, **options: Any) -> int:
    """How many epochs a fit with this callback takes; at most one for each value."""
    settings = {"max_epochs": len(module.values), "callbacks": [stopping]} | options
    trainer = pl.Trainer(**quiet(**settings))
    trainer.fit(module, DataLoader([0.0]), DataLoader([0.0]))
    return int(trainer.current_epoch)


# --- How it counts --------------------------------------------------------------------------------

# options, the values of the validations, the epoch after which training ends; where it is the
# number of values, nothing ended it
STOPS: list[tuple[dict[str, Any], list[float], int]] = [
    # The first check sets the best. Three without improvement end it, or as many as patience says.
    ({}, [5.0] * 8, 4),
    ({"patience": 1}, [5.0] * 8, 2),
    ({"patience": 6}, [5.0] * 8, 7),
    # A patience of 0 is one of 1: there is no earlier check that could end it.
    ({"patience": 0}, [5.0] * 8, 2),
    # NaN and infinity, of either sign, end it at once.
    ({"patience": 5}, [5.0, 4.0, nan, 3.0], 3),
    ({"patience": 5}, [5.0, 4.0, inf, 3.0], 3),
    ({"patience": 5}, [5.0, 4.0, -inf, 3.0], 3),
    # An improvement starts the count again. What was worse than the best is none.
    ({"patience": 2}, [5.0, 6.0, 4.0, 6.0, 5.0, 3.0], 5),
    # The default mode is "min": an accuracy that rises and rises is stopped.
    ({}, [0.5, 0.6, 0.7, 0.8, 0.9, 1.0], 4),
    ({"mode": "max"}, [0.5, 0.6, 0.7, 0.8, 0.9, 1.0], 6),
    ({"mode": "max", "patience": 2}, [5.0, 4.0, 6.0, 5.0, 6.0, 7.0], 5),
    # An improvement is larger than min_delta. Exactly min_delta is not enough.
    ({"min_delta": 0.25, "patience": 1}, [8.0, 7.75, 7.0], 2),
    ({"min_delta": 0.25, "patience": 1}, [8.0, 7.5, 7.0], 3),
    ({"min_delta": 0.25, "patience": 1, "mode": "max"}, [8.0, 8.25, 9.0], 2),
    ({"min_delta": 0.25, "patience": 1, "mode": "max"}, [8.0, 8.5, 9.0], 3),
    # It is a difference, not a share, and is measured from the best, not from the last value.
    ({"min_delta": 0.25, "patience": 1}, [-8.0, -8.5, -9.0], 3),
    ({"min_delta": 0.25, "patience": 2}, [8.0, 7.875, 7.625, 7.5], 4),
]


class StopsOneCheckSooner(callbacks.EarlyStopping):
    """Ends training on the check before."""

    def __init__(self, monitor: str, patience: int = 3, **options: Any) -> None:
        super().__init__(monitor, patience=patience - 1, **options)


class StopsOneCheckLater(callbacks.EarlyStopping):
    """Counts as ReduceLROnPlateau does: one check more than the patience ends training."""

    def __init__(self, monitor: str, patience: int = 3, **options: Any) -> None:
        super().__init__(monitor, patience=patience + 1, **options)


class IgnoresMinDelta(callbacks.EarlyStopping):
    """Takes every improvement, however small."""

    def __init__(self, monitor: str, min_delta: float = 0.0, **options: Any) -> None:
        super().__init__(monitor, **options)


class HasPatienceWithNaN(callbacks.EarlyStopping):
    """Takes a value that is not finite for one bad check."""

    def __init__(self, monitor: str, **options: Any) -> None:
        super().__init__(monitor, check_finite=False, **options)


class WantsMore(callbacks.EarlyStopping):
    """Takes a rising value for a better one unless it is told otherwise."""

    def __init__(self, monitor: str, mode: str = "max", **options: Any) -> None:
        super().__init__(monitor, mode=mode, **options)


class NeverStartsAgain(callbacks.EarlyStopping):
    """Counts the checks without improvement of the whole training."""

    counted = 0

    def on_train_epoch_end(self, *arguments: Any) -> None:
        self.wait_count = self.counted
        super().on_train_epoch_end(*arguments)
        self.counted = max(self.counted, self.wait_count)


@rule(
    "PL-14",
    "EarlyStopping ends training on the check that makes `patience` checks in a row without an"
    " improvement of more than min_delta, and at once on a value that is NaN or infinite.",
    kind="contract",
    source=STOPPING_PAGE,
    subject=callbacks.EarlyStopping,
    violated_by=[
        StopsOneCheckSooner,
        StopsOneCheckLater,
        IgnoresMinDelta,
        HasPatienceWithNaN,
        WantsMore,
        NeverStartsAgain,
    ],
)
def test_training_ends_when_patience_does(EarlyStopping: Any) -> None:
    """The reference of this project, which is judged in specs/schedulers, says the same."""
    for options, values, expected in STOPS:
        got = epochs_trained(Scripted(values), EarlyStopping("val_loss", **options))
        reference = early_stopping.EarlyStopping(**options)
        stops = [epoch for epoch, v in enumerate(values, 1) if reference.should_stop(v)]
        assert got == expected, f"{options}, {values}"
        assert (stops or [len(values)])[0] == expected, f"{options}, {values}"


class AcceptsAnyMode(callbacks.EarlyStopping):
    """Takes an unknown mode for "min"."""

    def __init__(self, monitor: str, mode: str = "min") -> None:
        super().__init__(monitor, mode="max" if mode == "max" else "min")


@spec("PL-14", violated_by=[AcceptsAnyMode])
def test_an_unknown_mode_is_refused(EarlyStopping: Any) -> None:
    """Before anything is trained. It is no ValueError here, as it is in the reference."""
    with pytest.raises(exceptions.MisconfigurationException, match="`mode` can be"):
        EarlyStopping("val_loss", mode="maximum")


class CountsEpochs(callbacks.EarlyStopping):
    """Checks after every epoch, with the value of the last validation, if there was one."""

    def __init__(self, monitor: str, **options: Any) -> None:
        super().__init__(monitor, strict=False, check_on_train_epoch_end=True, **options)


@spec("PL-14", violated_by=[CountsEpochs])
def test_patience_counts_checks_not_epochs(EarlyStopping: Any) -> None:
    """There is a check after each validation. With one after every second epoch, the third check
    is that of epoch 6. With four an epoch it comes in the middle of the first."""
    seldom = Scripted([5.0] * 9)
    stopping = EarlyStopping("val_loss", patience=2)
    assert epochs_trained(seldom, stopping, check_val_every_n_epoch=2) == 6
    assert seldom.validations == 3

    often = Scripted([5.0] * 9)
    stopping = EarlyStopping("val_loss", patience=2)
    options = {"max_epochs": 2, "val_check_interval": 0.25, "callbacks": [stopping]}
    trainer = pl.Trainer(**quiet(**options))
    trainer.fit(often, DataLoader([0.0] * 8), DataLoader([0.0]))
    assert often.validations == 3
    assert trainer.global_step == 6  # of 8 updates in an epoch


# --- What else ends it, and what delays it --------------------------------------------------------

# options, values, the epoch after which training ends; all with the default patience of 3
THRESHOLDS: list[tuple[dict[str, Any], list[float], int]] = [
    # Good enough: below 3.0. The value 3.0 is not below it.
    ({"stopping_threshold": 3.0}, [5.0, 4.0, 3.0, 2.0, 1.0], 4),
    ({"stopping_threshold": 3.0, "mode": "max"}, [1.0, 2.0, 3.0, 4.0, 5.0], 4),
    # Too bad: above 7.0. A patience of 3 would have gone on for one epoch more.
    ({"divergence_threshold": 7.0}, [5.0, 7.0, 8.0, 1.0], 3),
    ({"divergence_threshold": 4.0, "mode": "max"}, [5.0, 4.0, 3.0, 9.0], 3),
    # A value that is better than the best may still be too bad.
    ({"divergence_threshold": 7.0}, [9.0, 8.0, 6.0], 1),
]


class KnowsNoThresholds(callbacks.EarlyStopping):
    """Goes by patience alone."""

    def __init__(
        self,
        monitor: str,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(monitor, **options)


class StopsAtTheThreshold(callbacks.EarlyStopping):
    """Takes a value that equals the threshold for one beyond it."""

    def __init__(self, monitor: str, **options: Any) -> None:
        change = 1e-3 if options.get("mode", "min") == "min" else -1e-3
        if "stopping_threshold" in options:
            options["stopping_threshold"] += change
        if "divergence_threshold" in options:
            options["divergence_threshold"] -= change
        super().__init__(monitor, **options)


@spec("PL-14", violated_by=[KnowsNoThresholds, StopsAtTheThreshold])
def test_a_threshold_ends_training_once_a_value_is_beyond_it(EarlyStopping: Any) -> None:
    """The documentation says that training stops when the value reaches stopping_threshold. It has
    to pass it. Patience does not matter to either threshold."""
    for options, values, expected in THRESHOLDS:
        stopping = EarlyStopping("val_loss", **options)
        got = epochs_trained(Scripted(values), stopping)
        assert got == expected, f"{options}, {values}"
        assert stopping.stopped_epoch == expected - 1  # counted from 0


class TakesItsWordBack(callbacks.EarlyStopping):
    """Forgets that it wanted to stop when a value improves."""

    def on_train_epoch_end(self, trainer: Any, *arguments: Any) -> None:
        super().on_train_epoch_end(trainer, *arguments)
        trainer.should_stop = self.wait_count >= self.patience


class SetsMinEpochsAside(callbacks.EarlyStopping):
    """Ends training whatever the Trainer was told."""

    def on_train_epoch_end(self, trainer: Any, *arguments: Any) -> None:
        trainer.fit_loop.min_epochs = 0
        super().on_train_epoch_end(trainer, *arguments)


@spec("PL-14", violated_by=[TakesItsWordBack, SetsMinEpochsAside])
def test_min_epochs_delays_the_stop_and_does_not_cancel_it(EarlyStopping: Any) -> None:
    """The stop is asked for in epoch 3. Epochs 4 and 5 set new bests, but the Trainer remembers,
    and ends training as soon as min_epochs are done."""
    module = Scripted([5.0, 5.0, 5.0, 1.0, 0.5, 0.4, 0.3, 0.2])
    stopping = EarlyStopping("val_loss", patience=2)
    assert epochs_trained(module, stopping, min_epochs=5) == 5
    assert stopping.stopped_epoch == 3 - 1
    assert stopping.best_score == 0.5


class NeverStrict(callbacks.EarlyStopping):
    """Leaves out every check whose value is missing."""

    def __init__(self, monitor: str, strict: bool = True, **options: Any) -> None:
        super().__init__(monitor, strict=False, **options)


class AlwaysStrict(callbacks.EarlyStopping):
    """Refuses to leave out a check."""

    def __init__(self, monitor: str, strict: bool = True, **options: Any) -> None:
        super().__init__(monitor, strict=True, **options)


@spec("PL-14", violated_by=[NeverStrict])
def test_a_value_that_was_never_logged_is_an_error(EarlyStopping: Any) -> None:
    """At the first check, which is after an epoch: a misspelt name costs that epoch."""
    with pytest.raises(RuntimeError, match="Early stopping conditioned on metric `val_los` which"):
        epochs_trained(Scripted([5.0] * 9), EarlyStopping("val_los"))


@spec("PL-14", violated_by=[raising(RuntimeError, AlwaysStrict)])
def test_with_strict_false_a_check_without_a_value_does_not_count(EarlyStopping: Any) -> None:
    """The first two validations log nothing; of the others the third ends training. A misspelt
    name is then never noticed: training goes on to max_epochs."""
    late = Scripted([None, None, 5.0, 5.0, 5.0, 5.0, 5.0])
    assert epochs_trained(late, EarlyStopping("val_loss", patience=2, strict=False)) == 5
    misspelt = EarlyStopping("val_los", patience=2, strict=False)
    assert epochs_trained(Scripted([5.0] * 7), misspelt) == 7


# --- Beside ReduceLROnPlateau ---------------------------------------------------------------------


def rates_until_the_stop(stopping: Any, P: int) -> list[float]:
    """The rate of each epoch of a fit that never improves: the first epoch sets the best."""
    module = Scripted([5.0] * 12, P)
    epochs_trained(module, stopping)
    return module.rates_used


@rule(
    "PL-76",
    "Give EarlyStopping a patience of at least P + 2 beside a ReduceLROnPlateau of patience P: the"
    " first reduction comes after P + 1 bad epochs, and from E = P + 2 on an epoch is trained with"
    " it and judged.",
    kind="practice",
    source=STOPPING_PAGE,
    subject=callbacks.EarlyStopping,
    violated_by=[StopsOneCheckSooner, StopsOneCheckLater],
    consequence="with P = 2, E = 3 ends training in the very epoch whose end lowers the rate: no"
    " update uses it. E = 4 leaves it one epoch, E = 5 two of them.",
)
def test_one_epoch_at_the_reduced_rate_needs_patience_p_plus_2(
    EarlyStopping: Any, observe: Observe
) -> None:
    """In each epoch both look at the same value: the callback first, then the Trainer steps the
    scheduler. A reduction in the last epoch is carried out, and used by nobody. The same was shown
    for PyTorch's scheduler beside a plain loop in specs/schedulers/test_10_patience.py."""
    for P in (0, 1, 2):
        for E in range(1, P + 4):
            rates = rates_until_the_stop(EarlyStopping("val_loss", patience=E), P)
            observe(f"rates with P={P}, E={E}", rates)
            # The first epoch sets the best. Then the rate falls after each P + 1 bad epochs.
            assert rates == [1.0] + [0.5 ** (bad // (P + 1)) for bad in range(E)]
            assert (rates[-1] < 1.0) == (E >= P + 2), f"P={P}, E={E}"


class AsksForAShare(callbacks.EarlyStopping):
    """Has the threshold of ReduceLROnPlateau: an improvement is one of a ten-thousandth."""

    def __init__(self, monitor: str, min_delta: float = 1e-4, **options: Any) -> None:
        super().__init__(monitor, min_delta=min_delta, **options)


@spec("PL-76", violated_by=[AsksForAShare])
def test_the_two_disagree_on_what_an_improvement_is(EarlyStopping: Any) -> None:
    """The loss falls by 0.00001 an epoch. EarlyStopping, whose min_delta is 0.0, calls every epoch
    good and never ends training. ReduceLROnPlateau, whose threshold is 0.0001 of the best, calls
    them bad and halves the rate again and again. Give both the same threshold: the scheduler's is
    then threshold=min_delta with threshold_mode="abs"."""
    hardly_falling = [1.0 - 0.00001 * epoch for epoch in range(9)]
    module = Scripted(hardly_falling, P=1)
    assert epochs_trained(module, EarlyStopping("val_loss", patience=3)) == 9
    assert module.rates_used == [1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]

    module = Scripted(hardly_falling, P=1)
    assert epochs_trained(module, EarlyStopping("val_loss", patience=3, min_delta=0.0001)) == 4
    assert module.rates_used == [1.0, 1.0, 1.0, 0.5]
