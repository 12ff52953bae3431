"""What configure_optimizers may return, and when the Trainer then steps the scheduler.

At the end you know every form of the answer, which plain loop each form stands for, and what a
wrong form brings. Schedules that count steps are told in test_15_schedules_in_steps.py,
ReduceLROnPlateau in test_16_plateau.py, several optimizers in test_18_manual_optimization.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ExponentialLR, LRScheduler
from torch.utils.data import DataLoader

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

#: Makes what configure_optimizers returns out of an optimizer and a scheduler.
Answer = Callable[[Optimizer, LRScheduler], Any]


class OneWeight(pl.LightningModule):
    """A weight, and an optimizer that notes the learning rate of each of its steps."""

    def __init__(self, answer: Answer, *, batches: int = 4) -> None:
        super().__init__()
        self.weight: Any = nn.Parameter(torch.zeros(1))
        self.answer = answer
        self.batches = batches
        self.rates: list[float] = []

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(torch.ones(self.batches, 1))  # batches of one sample

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.weight * batch).mean()

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=0.1)
        optimizer.register_step_pre_hook(
            lambda optimizer, *_: self.rates.append(optimizer.param_groups[0]["lr"])
        )
        return self.answer(optimizer, halving(optimizer))


def with_keys(keys: dict[str, Any]) -> Answer:
    """The answer that has these keys beside its scheduler."""
    return lambda opt, sched: {"optimizer": opt, "lr_scheduler": {"scheduler": sched, **keys}}


def halving(optimizer: Optimizer) -> LRScheduler:
    """A scheduler that halves the rate whenever it steps: the rates tell how often it did."""
    return ExponentialLR(optimizer, gamma=0.5)


# --- The legal forms ------------------------------------------------------------------------------

#: What configure_optimizers returns, after what the plain loop steps the scheduler, and each how
#: many-th time.
FORMS: list[tuple[str, Answer, str, int]] = [
    ("an optimizer", lambda opt, _: opt, "never", 1),
    ("a list", lambda opt, _: [opt], "never", 1),
    ("a list, and no scheduler", lambda opt, _: ([opt], []), "never", 1),
    ("a dictionary", lambda opt, _: {"optimizer": opt}, "never", 1),
    ("two lists", lambda opt, sched: ([opt], [sched]), "epoch", 1),
    ("a list and a scheduler", lambda opt, sched: ([opt], sched), "epoch", 1),
    (
        "two lists with a dictionary",
        lambda opt, sched: ([opt], [{"scheduler": sched, "interval": "step"}]),
        "step",
        1,
    ),
    (
        "a dictionary with a scheduler",
        lambda opt, sched: {"optimizer": opt, "lr_scheduler": sched},
        "epoch",
        1,
    ),
    (
        "a list of one dictionary",
        lambda opt, sched: [{"optimizer": opt, "lr_scheduler": sched}],
        "epoch",
        1,
    ),
    # This scheduler watches no metric: a monitor changes nothing.
    (
        "a dictionary with a monitor",
        lambda opt, sched: {"optimizer": opt, "lr_scheduler": sched, "monitor": "nothing"},
        "epoch",
        1,
    ),
]

#: The same for the keys that may stand beside "scheduler" in the dictionary under "lr_scheduler".
KEYS: list[tuple[dict[str, Any], str, int]] = [
    ({}, "epoch", 1),
    ({"interval": "epoch"}, "epoch", 1),
    ({"interval": "step"}, "step", 1),
    ({"frequency": 2}, "epoch", 2),
    ({"interval": "step", "frequency": 2}, "step", 2),
    # For schedulers that watch a metric, and for the curve that LearningRateMonitor draws.
    ({"monitor": "nothing", "strict": True, "name": "my curve"}, "epoch", 1),
]


def rates_of_the_plain_loop(stepped_after: str, each: int) -> list[float]:
    """The rates of three epochs of four batches, in a loop that steps the scheduler itself."""
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = halving(optimizer)
    rates = []
    for epoch in range(3):
        for batch in range(4):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if stepped_after == "step" and (batch + 1) % each == 0:
                scheduler.step()
        if stepped_after == "epoch" and (epoch + 1) % each == 0:
            scheduler.step()
    return rates


class CountsEpochsOnly(pl.Trainer):
    """Steps every scheduler after an epoch, whatever its interval is."""

    @property
    def lr_scheduler_configs(self) -> list[Any]:
        return [replace(config, interval="epoch") for config in super().lr_scheduler_configs]


class CountsStepsOnly(pl.Trainer):
    """Steps every scheduler after a batch, also where no interval is given."""

    @property
    def lr_scheduler_configs(self) -> list[Any]:
        return [replace(config, interval="step") for config in super().lr_scheduler_configs]


class IgnoresFrequency(pl.Trainer):
    """Steps every scheduler each time."""

    @property
    def lr_scheduler_configs(self) -> list[Any]:
        return [replace(config, frequency=1) for config in super().lr_scheduler_configs]


class LeavesSchedulersToYou(pl.Trainer):
    """Steps optimizers only."""

    @property
    def lr_scheduler_configs(self) -> list[Any]:
        return []


@rule(
    "PL-61",
    "An optimizer, a list of one, ([optimizers], [schedulers]) and {optimizer, lr_scheduler} are"
    " the forms; a scheduler steps after each epoch unless a dictionary around it says"
    ' interval="step", and each time unless it says frequency=n.',
    kind="contract",
    source=PAGE,
    subject=pl.Trainer,
    violated_by=[CountsEpochsOnly, CountsStepsOnly, LeavesSchedulersToYou],
)
def test_each_form_uses_the_rates_of_a_plain_loop(Trainer: Any, observe: Observe) -> None:
    """The form decides nothing but when the scheduler steps."""
    for form, answer, stepped_after, each in FORMS:
        module = OneWeight(answer)

        Trainer(**quiet(max_epochs=3)).fit(module)

        plain = rates_of_the_plain_loop(stepped_after, each)
        observe(form, module.rates)
        assert module.rates == plain, form


@spec("PL-61", violated_by=[CountsEpochsOnly, CountsStepsOnly, IgnoresFrequency])
def test_each_key_beside_the_scheduler_has_a_default(Trainer: Any) -> None:
    """interval is "epoch" and frequency 1; the other keys move no rate."""
    for keys, stepped_after, each in KEYS:
        module = OneWeight(with_keys(keys))

        Trainer(**quiet(max_epochs=3)).fit(module)

        plain = rates_of_the_plain_loop(stepped_after, each)
        assert module.rates == plain, keys


class StepsTheFirstScheduler(pl.Trainer):
    """Takes one scheduler for each optimizer and drops the others."""

    @property
    def lr_scheduler_configs(self) -> list[Any]:
        return super().lr_scheduler_configs[:1]


@spec("PL-61", violated_by=[StepsTheFirstScheduler, CountsEpochsOnly])
def test_one_optimizer_may_have_several_schedulers(Trainer: Any) -> None:
    """Each keeps its own interval; their factors multiply."""

    def falling_per_step_and_per_epoch(opt: Optimizer, sched: LRScheduler) -> Any:
        return [opt], [{"scheduler": sched, "interval": "step"}, ExponentialLR(opt, gamma=0.25)]

    module = OneWeight(falling_per_step_and_per_epoch, batches=2)
    Trainer(**quiet(max_epochs=2)).fit(module)

    # Two steps in the first epoch, its end, and two steps in the second epoch. All exact numbers.
    assert module.rates == [0.1, 0.1 / 2, 0.1 / 4 / 4, 0.1 / 4 / 4 / 2]


# --- None -----------------------------------------------------------------------------------------


class TrainsAnyway(pl.Trainer):
    """Trains with an optimizer of its own, whatever it is given."""

    def fit(self, model: Any) -> None:
        model.configure_optimizers = lambda: SGD(model.parameters(), lr=0.1)
        super().fit(model)


class Refuses(pl.Trainer):
    """Takes None for an oversight."""

    def fit(self, model: Any) -> None:
        raise exceptions.MisconfigurationException("no optimizer")


@rule(
    "PL-62",
    "None means no optimizer: every batch goes through training_step and backward, nothing is"
    " updated, and nothing zeroes the gradients.",
    kind="contract",
    source=PAGE,
    subject=pl.Trainer,
    violated_by=[TrainsAnyway, raising(exceptions.MisconfigurationException, Refuses)],
)
@pytest.mark.filterwarnings("ignore:.*returned `None`")
def test_without_an_optimizer_gradients_add_up_and_weights_stay(Trainer: Any) -> None:
    """A forgotten `return` is answered with one warning and a run that learns nothing."""
    module = OneWeight(lambda *_: None, batches=4)
    trainer = Trainer(**quiet(max_epochs=3))

    trainer.fit(module)

    assert module.weight.item() == 0.0
    assert module.weight.grad.item() == 3 * 4 * 1.0  # 12 batches with a gradient of 1


@spec("PL-62", violated_by=[TrainsAnyway])
def test_none_is_announced_by_a_warning(Trainer: Any) -> None:
    """The warning is the only sign."""
    module = OneWeight(lambda *_: None)
    trainer = Trainer(**quiet(max_epochs=1))

    with pytest.warns(UserWarning, match="`LightningModule.configure_optimizers` returned `None`"):
        trainer.fit(module)


# --- Illegal forms --------------------------------------------------------------------------------


UNKNOWN = "Unknown configuration for model optimizers"

#: Refused in words: what is returned, and how the message begins.
REFUSED: list[tuple[str, Answer, str]] = [
    ("a pair", lambda opt, sched: (opt, sched), UNKNOWN),
    ("a pair with one list", lambda opt, sched: (opt, [sched]), UNKNOWN),
    ("a monitor as third", lambda opt, sched: ([opt], [sched], "val_loss"), UNKNOWN),
    ("a scheduler", lambda _, sched: sched, UNKNOWN),
    ("a list of None", lambda *_: [None], UNKNOWN),
    (
        "keys without a scheduler",
        lambda opt, _: {"optimizer": opt, "lr_scheduler": {"interval": "step"}},
        'The lr scheduler dict must have the key "scheduler"',
    ),
    (
        "an unknown interval",
        with_keys({"interval": "batch"}),
        'The "interval" key in lr scheduler dict must be "step" or "epoch"',
    ),
    (
        "the scheduler of another optimizer",
        lambda opt, sched: ([SGD(opt.param_groups[0]["params"], lr=0.1)], [sched]),
        "Some schedulers are attached with an optimizer that wasn't returned",
    ),
]

#: Refused, too, but by the exception that Python happens to raise.
STUMBLED_OVER: list[tuple[str, Answer, type[Exception]]] = [
    ("an empty list", lambda *_: [], IndexError),
    ("no optimizer", lambda _, sched: {"lr_scheduler": sched}, KeyError),
    ("no scheduler", lambda opt, _: {"optimizer": opt, "lr_scheduler": None}, AttributeError),
    (
        "a list of schedulers",
        lambda opt, sched: {"optimizer": opt, "lr_scheduler": [sched]},
        AttributeError,
    ),
]


@rule(
    "PL-63",
    "Every other form is refused when fit starts, before the first batch; but a key that is"
    " unknown, or stands one level too high, is only warned about and ignored.",
    kind="contract",
    source=PAGE,
    subject=pl.Trainer,
    violated_by=[TrainsAnyway],
    consequence='{"optimizer", "scheduler"} trains to its end at the first learning rate',
)
def test_an_illegal_form_is_refused_before_the_first_batch(Trainer: Any, observe: Observe) -> None:
    """The first rows are what people write: a pair without lists, and a monitor as third item."""
    refused = [(form, answer, exceptions.MisconfigurationException) for form, answer, _ in REFUSED]
    for form, answer, expected in [*refused, *STUMBLED_OVER]:
        module = OneWeight(answer)

        with pytest.raises(expected) as caught:
            Trainer(**quiet(max_epochs=1)).fit(module)

        observe(form, caught.value)
        assert module.rates == [], form


@spec("PL-63", violated_by=[TrainsAnyway])
def test_the_message_says_which_part_is_wrong(Trainer: Any) -> None:
    """All of these are MisconfigurationExceptions."""
    for _, answer, beginning in REFUSED:
        with pytest.raises(exceptions.MisconfigurationException, match=beginning):
            Trainer(**quiet(max_epochs=1)).fit(OneWeight(answer))


#: A key that nobody reads, how the warning begins, and what the scheduler then does.
MISPLACED: list[tuple[Answer, str, str]] = [
    (
        lambda opt, sched: {"optimizer": opt, "scheduler": sched},
        "Found unsupported keys in the optimizer configuration",
        "never",
    ),
    (
        lambda opt, sched: {"optimizer": opt, "lr_scheduler": sched, "interval": "step"},
        "Found unsupported keys in the optimizer configuration",
        "epoch",
    ),
    (with_keys({"intervall": "step"}), "Found unsupported keys in the lr scheduler dict", "epoch"),
]


@spec("PL-63", violated_by=[TrainsAnyway, CountsStepsOnly])
def test_a_key_that_nobody_reads_changes_the_schedule_silently(Trainer: Any) -> None:
    """The training runs to its end, with a RuntimeWarning at its start."""
    for answer, warning, stepped_after in MISPLACED:
        module = OneWeight(answer)

        with pytest.warns(RuntimeWarning, match=warning):
            Trainer(**quiet(max_epochs=3)).fit(module)

        assert module.rates == rates_of_the_plain_loop(stepped_after, each=1)
