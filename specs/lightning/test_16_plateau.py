"""ReduceLROnPlateau under a Trainer: it needs a monitor, and a metric of that name.

At the end you know where the monitor has to stand, what each mistake brings and when, and what has
to change with check_val_every_n_epoch. Which value the scheduler sees is told in
test_17_what_the_plateau_sees.py, what it does with it in specs/schedulers/test_07_plateau.py.

In every example the rate starts at 1.0 and is halved by the first bad epoch (factor=0.5,
patience=0), so all rates are exact numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from reference import plateau
from specs.harness import raising, rule, spec
from specs.harness.observations import Observe
from specs.harness.optional import optional

pl: Any = optional("pytorch_lightning")
exceptions: Any = optional("pytorch_lightning.utilities.exceptions")
quiet = optional("reference.lightning_modules").quiet

PAGE = (
    "https://lightning.ai/docs/pytorch/stable/api/lightning.pytorch.core.LightningModule.html"
    "#lightning.pytorch.core.LightningModule.configure_optimizers"
)

Answer = Callable[[Optimizer, ReduceLROnPlateau], Any]

#: A validation loss for each epoch: falling, then rising, falling once more, and staying.
LOSSES = [8.0, 4.0, 5.0, 6.0, 3.0, 3.0, 3.0, 2.0]
ALWAYS_BETTER = [8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]


class KnownLosses(pl.LightningModule):
    """Its validation loss is written down beforehand; `answer` is made of optimizer and plateau."""

    def __init__(self, answer: Answer, losses: list[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.answer = answer
        self.losses = losses
        self.rates: list[float] = []

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(torch.ones(1, 1))

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(torch.ones(1, 1))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.rates.append(self.optimizers().param_groups[0]["lr"])  # one batch an epoch
        return (self.weight * batch).mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.losses[self.current_epoch])

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=1.0)
        return self.answer(optimizer, ReduceLROnPlateau(optimizer, factor=0.5, patience=0))


def rates_of_the_plain_loop(losses: list[float]) -> list[float]:
    """The rate of each epoch, in a loop that gives each epoch's loss to the plateau."""
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = plateau.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    rates = []
    for loss in losses:
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step(loss)
    return rates


# --- Where the monitor stands ---------------------------------------------------------------------

PLACES: list[tuple[str, Answer]] = [
    (
        "beside a bare scheduler",
        lambda opt, plateau: {"optimizer": opt, "lr_scheduler": plateau, "monitor": "val_loss"},
    ),
    (
        "in the dictionary of the scheduler",
        lambda opt, plateau: {
            "optimizer": opt,
            "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"},
        },
    ),
    (
        "in that dictionary, in the second of two lists",
        lambda opt, plateau: ([opt], [{"scheduler": plateau, "monitor": "val_loss"}]),
    ),
    (
        "in that dictionary, in a list of dictionaries",
        lambda opt, plateau: [
            {"optimizer": opt, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}
        ],
    ),
]

MISPLACED: list[tuple[str, Answer]] = [
    ("two lists have no room for one", lambda opt, plateau: ([opt], [plateau])),
    ("forgotten", lambda opt, plateau: {"optimizer": opt, "lr_scheduler": plateau}),
    (
        "forgotten in the dictionary",
        lambda opt, plateau: {"optimizer": opt, "lr_scheduler": {"scheduler": plateau}},
    ),
    (
        "above the dictionary of the scheduler",
        lambda opt, plateau: {
            "optimizer": opt,
            "lr_scheduler": {"scheduler": plateau},
            "monitor": "val_loss",
        },
    ),
    (
        "beside a bare scheduler, in a list of dictionaries",
        lambda opt, plateau: [{"optimizer": opt, "lr_scheduler": plateau, "monitor": "val_loss"}],
    ),
]


class LeavesSchedulersToYou(pl.Trainer):
    """Steps optimizers only."""

    @property
    def lr_scheduler_configs(self) -> list[Any]:
        return []


class SeesTheValueOfTheEpochBefore(pl.Trainer):
    """Steps the plateau before the new value has arrived."""

    older, newer = 100.0, 100.0

    @property
    def callback_metrics(self) -> dict[str, Any]:
        metrics = super().callback_metrics
        self.older, self.newer = self.newer, metrics.get("val_loss", 100.0)
        return {"val_loss": self.older}


class GuessesTheMonitor(pl.Trainer):
    """Watches val_loss where nothing is named."""

    def fit(self, model: Any) -> None:
        def with_a_monitor() -> Any:
            optimizer = SGD(model.parameters(), lr=1.0)
            scheduler = {"scheduler": ReduceLROnPlateau(optimizer), "monitor": "val_loss"}
            return [optimizer], [scheduler]

        model.configure_optimizers = with_a_monitor
        super().fit(model)


@rule(
    "PL-09",
    "ReduceLROnPlateau needs a monitor: in the dictionary around it, or, where it stands bare under"
    ' "lr_scheduler", beside that key.',
    kind="contract",
    source=PAGE,
    subject=pl.Trainer,
    violated_by=[LeavesSchedulersToYou, SeesTheValueOfTheEpochBefore],
)
def test_from_each_place_it_follows_the_plain_loop(Trainer: Any, observe: Observe) -> None:
    """Two lists carry a monitor, too, if their scheduler is a dictionary."""
    for place, answer in PLACES:
        module = KnownLosses(answer, LOSSES)

        Trainer(**quiet(max_epochs=len(LOSSES))).fit(module)

        observe(place, module.rates)
        assert module.rates == rates_of_the_plain_loop(LOSSES), place
        assert module.rates == [1.0, 1.0, 1.0, 0.5, 0.25, 0.25, 0.125, 0.0625]


@spec("PL-09", violated_by=[GuessesTheMonitor])
def test_elsewhere_it_is_not_seen_and_fit_refuses_to_start(Trainer: Any) -> None:
    """A top-level monitor does not reach into a dictionary."""
    for place, answer in MISPLACED:
        module = KnownLosses(answer, LOSSES)

        with pytest.raises(exceptions.MisconfigurationException, match="must include a monitor"):
            Trainer(**quiet(max_epochs=1)).fit(module)

        assert module.rates == [], place  # not one batch


# --- A metric that nobody logs --------------------------------------------------------------------


def watching(monitor: str, **keys: Any) -> Answer:
    """The answer that names this monitor, with these keys beside it."""
    return lambda opt, plateau: {
        "optimizer": opt,
        "lr_scheduler": {"scheduler": plateau, "monitor": monitor, **keys},
    }


class IsNeverStrict(pl.Trainer):
    """Skips a metric that is missing, whatever strict says."""

    @property
    def lr_scheduler_configs(self) -> list[Any]:
        return [replace(config, strict=False) for config in super().lr_scheduler_configs]


class IsAlwaysStrict(pl.Trainer):
    """Ends the training for a metric that is missing, whatever strict says."""

    @property
    def lr_scheduler_configs(self) -> list[Any]:
        return [replace(config, strict=True) for config in super().lr_scheduler_configs]


class TakesWhatIsMissingForZero(pl.Trainer):
    """Gives the plateau a 0 where there is no metric."""

    @property
    def callback_metrics(self) -> dict[str, Any]:
        return {"valid_loss": torch.tensor(0.0), **super().callback_metrics}


class SkipsInSilence(pl.Trainer):
    """Does not step where the metric is missing, and does not say so."""

    @property
    def lr_scheduler_configs(self) -> list[Any]:
        configs = super().lr_scheduler_configs
        return [config for config in configs if config.monitor in self.callback_metrics]


@spec("PL-09", violated_by=[IsNeverStrict, TakesWhatIsMissingForZero])
@pytest.mark.filterwarnings("ignore:ReduceLROnPlateau conditioned on")
def test_a_name_that_nobody_logs_ends_the_first_epoch(Trainer: Any, observe: Observe) -> None:
    """Only then can the Trainer know. The message lists the names that there are."""
    module = KnownLosses(watching("valid_loss"), LOSSES)

    with pytest.raises(exceptions.MisconfigurationException) as caught:
        Trainer(**quiet(max_epochs=3)).fit(module)

    observe("refusal", caught.value)
    said = str(caught.value)
    assert said.startswith("ReduceLROnPlateau conditioned on metric valid_loss which is not avail")
    assert "['val_loss']" in said
    assert module.rates == [1.0]  # one epoch was trained


@spec(
    "PL-09",
    violated_by=[
        raising(exceptions.MisconfigurationException, IsAlwaysStrict),
        TakesWhatIsMissingForZero,
        SkipsInSilence,
    ],
)
def test_with_strict_false_the_scheduler_never_steps(Trainer: Any) -> None:
    """strict=False turns a misspelt name into a constant rate and a warning in each epoch."""
    module = KnownLosses(watching("valid_loss", strict=False), LOSSES)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Trainer(**quiet(max_epochs=3)).fit(module)

    assert module.rates == [1.0] * 3
    warned = [w for w in caught if "Skipping learning rate update" in str(w.message)]
    assert [w.category for w in warned] == [RuntimeWarning] * 3


# --- Validation in every nth epoch ----------------------------------------------------------------


class AfterEachValidation(KnownLosses):
    """Steps its plateau in the epochs that have a validation: every `n`th."""

    def __init__(self, n: int, losses: list[float]) -> None:
        super().__init__(watching("val_loss", frequency=n), losses)


class AfterEachEpoch(KnownLosses):
    """Steps its plateau in every epoch."""

    def __init__(self, n: int, losses: list[float]) -> None:
        super().__init__(watching("val_loss"), losses)


class AfterEachEpochIfItCan(KnownLosses):
    """Does the same, and answers the exception that this brings with strict=False."""

    def __init__(self, n: int, losses: list[float]) -> None:
        super().__init__(watching("val_loss", strict=False), losses)


class OutOfTime(KnownLosses):
    """Waits one epoch longer than the validation does."""

    def __init__(self, n: int, losses: list[float]) -> None:
        super().__init__(watching("val_loss", frequency=n + 1), losses)


@rule(
    "PL-10",
    "With check_val_every_n_epoch=n give ReduceLROnPlateau frequency=n: a metric from validation"
    " must exist, and be new, whenever the scheduler steps.",
    kind="practice",
    source="https://github.com/Lightning-AI/pytorch-lightning/issues/9815",
    subject=AfterEachValidation,
    violated_by=[
        raising(exceptions.MisconfigurationException, AfterEachEpoch),
        AfterEachEpochIfItCan,
        OutOfTime,
    ],
    consequence="n=2 without frequency: the first epoch ends in an exception; with strict=False,"
    " too, the old value is judged a second time, as a bad epoch, and the rate is halved three"
    " times in eight epochs while every validation is better than the one before",
)
@pytest.mark.filterwarnings("ignore:ReduceLROnPlateau conditioned on")
def test_only_new_values_are_judged(PlateauModule: Any) -> None:
    """The rate falls after bad validations, and after no other epoch."""
    for n, losses in ((2, ALWAYS_BETTER), (2, LOSSES), (3, LOSSES)):
        module = PlateauModule(n, losses)

        pl.Trainer(**quiet(max_epochs=8, check_val_every_n_epoch=n)).fit(module)

        # Epochs n, 2n, ... end with a validation; the next n epochs use what it decided.
        validated = losses[n - 1 :: n]
        decided = rates_of_the_plain_loop([*validated, 0.0])
        assert module.rates == [decided[epoch // n] for epoch in range(8)]


@spec("PL-10", subject=AfterEachEpochIfItCan, violated_by=[AfterEachValidation])
@pytest.mark.filterwarnings("ignore:ReduceLROnPlateau conditioned on")
def test_an_old_value_counts_as_a_bad_epoch(StaleModule: Any) -> None:
    """A metric stays available until a new one replaces it, and it never beats itself."""
    module = StaleModule(2, ALWAYS_BETTER)

    pl.Trainer(**quiet(max_epochs=8, check_val_every_n_epoch=2)).fit(module)

    # Epoch 1 is skipped, 2 is the first value, 3 sees it again, 4 a better one, 5 sees that again.
    assert module.rates == [1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.125]
