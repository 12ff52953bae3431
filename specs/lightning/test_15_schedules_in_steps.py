"""Schedules that count optimizer steps: one cycle, a warm-up, and how the Trainer counts.

At the end you know why OneCycleLR has to say interval="step", where its total_steps comes from, and
what frequency=n really counts. Read before: test_14_configure_optimizers.py.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ExponentialLR, LinearLR, OneCycleLR
from torch.utils.data import DataLoader

from reference.schedulers import linear, one_cycle
from specs.harness import known_bug, raising, rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe
from specs.harness.optional import optional

pl: Any = optional("pytorch_lightning")
quiet = optional("reference.lightning_modules").quiet

PAGE = (
    "https://lightning.ai/docs/pytorch/stable/api/lightning.pytorch.core.LightningModule.html"
    "#lightning.pytorch.core.LightningModule.configure_optimizers"
)


class OneWeight(pl.LightningModule):
    """A weight, and an optimizer that notes the learning rate of each of its steps."""

    def __init__(self, *, batches: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.batches = batches
        self.rates: list[float] = []

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(torch.ones(self.batches, 1))  # batches of one sample

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.weight * batch).mean()

    def noting_optimizer(self) -> Optimizer:
        optimizer = SGD(self.parameters(), lr=0.1)
        optimizer.register_step_pre_hook(
            lambda optimizer, *_: self.rates.append(optimizer.param_groups[0]["lr"])
        )
        return optimizer


# --- How many steps a training has ----------------------------------------------------------------

#: Batches an epoch, the Trainer's options, and the number of optimizer steps that they lead to.
RUNS: list[tuple[int, dict[str, Any], int]] = [
    (4, {"max_epochs": 3}, 3 * 4),
    (7, {"max_epochs": 3, "accumulate_grad_batches": 3}, 3 * 3),  # 3 + 3 + 1 batches an epoch
    (7, {"max_epochs": 2, "limit_train_batches": 5, "accumulate_grad_batches": 2}, 2 * 3),
    (4, {"max_epochs": 3, "max_steps": 5}, 5),
    (4, {"max_epochs": 3, "max_steps": 50}, 3 * 4),
    (4, {"max_epochs": -1, "max_steps": 6}, 6),
]


class OneCycle(OneWeight):
    """One cycle over the whole training, whatever the Trainer's options are."""

    def configure_optimizers(self) -> Any:
        optimizer = self.noting_optimizer()
        steps = self.trainer.estimated_stepping_batches
        scheduler = OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class CycleOfEpochs(OneCycle):
    """Returns two lists, with nothing that says after what the scheduler steps."""

    def configure_optimizers(self) -> Any:
        optimizers, [settings] = super().configure_optimizers()
        return optimizers, [settings["scheduler"]]


class PlansAStepPerBatch(OneWeight):
    """Forgets that several batches may make one step, and that max_steps may come first."""

    def planned(self) -> int:
        return self.batches * abs(self.trainer.max_epochs)

    def configure_optimizers(self) -> Any:
        optimizer = self.noting_optimizer()
        scheduler = OneCycleLR(optimizer, max_lr=0.1, total_steps=self.planned())
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class PlansFullWindowsOnly(PlansAStepPerBatch):
    """Plans no step for the batches that are left over at the end of an epoch."""

    def planned(self) -> int:
        windows = self.batches // self.trainer.accumulate_grad_batches
        return windows * self.trainer.max_epochs


@rule(
    "PL-11",
    'Give OneCycleLR and every schedule that counts steps interval="step", and'
    " total_steps=trainer.estimated_stepping_batches: by default a scheduler steps once per epoch.",
    kind="practice",
    source=PAGE,
    subject=OneCycle,
    violated_by=[CycleOfEpochs, PlansAStepPerBatch, raising(ValueError, PlansFullWindowsOnly)],
    consequence="Three epochs of four batches, max_lr=0.1: returned as two lists, the cycle ends"
    " the training at 0.088, near its maximum, and not at 0.0000004",
)
def test_the_cycle_ends_with_the_training(OneCycleModule: Any) -> None:
    """With accumulate_grad_batches there are fewer steps than batches, and the batches that are
    left over at the end of an epoch make one step more."""
    for batches, options, steps in RUNS:
        module = OneCycleModule(batches=batches)

        pl.Trainer(**quiet(**options)).fit(module)

        cycle = [one_cycle(t, max_lr=0.1, total_steps=steps) for t in range(steps)]
        assert agree(module.rates, cycle, scale=0.1), options


@spec("PL-11", subject=CycleOfEpochs, violated_by=[OneCycle])
def test_two_lists_leave_the_cycle_near_its_maximum(TwoListsModule: Any, observe: Observe) -> None:
    """Twelve steps are planned. The first three of them are taken, one after each epoch, and the
    last updates, which should be the smallest, are 200,000 times as large as planned."""
    module = TwoListsModule(batches=4)

    pl.Trainer(**quiet(max_epochs=3)).fit(module)

    planned = [one_cycle(t, max_lr=0.1, total_steps=12) for t in range(12)]
    one_per_epoch = [planned[t] for t in (0, 1, 2) for _ in range(4)]
    observe("last rate", module.rates[-1])
    assert agree(module.rates, one_per_epoch, scale=0.1)
    assert 0.08 < module.rates[-1] < 0.09
    assert module.rates[-1] > 200_000 * planned[-1]


class IgnoresAccumulation(pl.Trainer):
    """Takes every batch for a step."""

    @property
    def estimated_stepping_batches(self) -> Any:
        return super().estimated_stepping_batches * self.accumulate_grad_batches


class DropsWhatIsLeftOver(pl.Trainer):
    """Counts full windows only."""

    @property
    def estimated_stepping_batches(self) -> Any:
        steps = super().estimated_stepping_batches
        partial = self.num_training_batches % self.accumulate_grad_batches > 0
        return steps - self.max_epochs if partial else steps


class ForgetsMaxSteps(pl.Trainer):
    """Multiplies epochs by steps, however soon the training ends."""

    @property
    def estimated_stepping_batches(self) -> Any:
        estimate = super().estimated_stepping_batches
        steps_an_epoch = -(-self.num_training_batches // self.accumulate_grad_batches)
        return max(estimate, steps_an_epoch * self.max_epochs)


@spec(
    "PL-11",
    subject=pl.Trainer,
    violated_by=[IgnoresAccumulation, DropsWhatIsLeftOver, ForgetsMaxSteps],
)
def test_the_estimate_is_the_number_of_optimizer_steps(Trainer: Any) -> None:
    """It is known in configure_optimizers: asking for it loads the training data."""

    class Asks(OneWeight):
        def configure_optimizers(self) -> Any:
            self.estimate = self.trainer.estimated_stepping_batches
            return self.noting_optimizer()

    for batches, options, steps in RUNS:
        module = Asks(batches=batches)
        trainer = Trainer(**quiet(**options))

        trainer.fit(module)

        assert module.estimate == steps, options
        assert len(module.rates) == trainer.global_step == steps, options


# --- What warns, and what does not ----------------------------------------------------------------


def warnings_about_one_cycle(trainer: Any, answer: Any) -> int:
    """How often a training warned that OneCycleLR steps per epoch; `answer` makes the form."""

    class Cycle(OneWeight):
        def configure_optimizers(self) -> Any:
            optimizer = self.noting_optimizer()
            return answer(optimizer, OneCycleLR(optimizer, max_lr=0.1, total_steps=12))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(Cycle(batches=1))
    beginning = "A `OneCycleLR` scheduler is using 'interval': 'epoch'"
    return sum(str(warning.message).startswith(beginning) for warning in caught)


class WarnsAboutEveryForm(pl.Trainer):
    """Looks for OneCycleLR wherever it stands."""

    def fit(self, model: Any) -> None:
        super().fit(model)
        for config in self.lr_scheduler_configs:
            if config.interval == "epoch":
                text = "A `OneCycleLR` scheduler is using 'interval': 'epoch'"
                warnings.warn(text, RuntimeWarning, stacklevel=2)


class NeverWarns(pl.Trainer):
    """Trusts you."""

    def fit(self, model: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            super().fit(model)


@spec("PL-11", subject=pl.Trainer, violated_by=[WarnsAboutEveryForm, NeverWarns])
def test_only_a_dictionary_around_the_cycle_brings_a_warning(Trainer: Any) -> None:
    """Two lists, the form that is written most often, bring none."""

    def warned(answer: Any) -> int:
        return warnings_about_one_cycle(Trainer(**quiet(max_epochs=1)), answer)

    assert warned(lambda opt, sched: ([opt], [sched])) == 0
    assert warned(lambda opt, sched: {"optimizer": opt, "lr_scheduler": sched}) == 0
    assert warned(lambda opt, sched: {"optimizer": opt, "lr_scheduler": {"scheduler": sched}}) == 1
    assert warned(lambda opt, sched: ([opt], [{"scheduler": sched, "interval": "step"}])) == 0


# --- A warm-up ------------------------------------------------------------------------------------


class WarmUp(OneWeight):
    """Reaches its rate after the fifth optimizer step."""

    def configure_optimizers(self) -> Any:
        optimizer = self.noting_optimizer()
        scheduler = LinearLR(optimizer, start_factor=0.1, total_iters=5)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


class WarmsUpForFiveEpochs(WarmUp):
    """Leaves the interval out."""

    def configure_optimizers(self) -> Any:
        answer = super().configure_optimizers()
        del answer["lr_scheduler"]["interval"]
        return answer


@spec("PL-11", subject=WarmUp, violated_by=[WarmsUpForFiveEpochs])
def test_a_warm_up_counts_optimizer_steps_too(WarmUpModule: Any) -> None:
    """Two epochs of eight batches, two batches to a step: four steps an epoch."""
    module = WarmUpModule(batches=8)

    pl.Trainer(**quiet(max_epochs=2, accumulate_grad_batches=2)).fit(module)

    rising = [linear(t, 0.1, start_factor=0.1, total_iters=5) for t in range(8)]
    assert agree(module.rates, rising, scale=0.1)
    assert agree(module.rates[5:], [0.1] * 3)


# --- frequency ------------------------------------------------------------------------------------


class EveryNthStep(OneWeight):
    """Halves the rate with interval="step" and frequency=n."""

    def __init__(self, n: int, *, batches: int) -> None:
        super().__init__(batches=batches)
        self.n = n

    def configure_optimizers(self) -> Any:
        optimizer = self.noting_optimizer()
        halving = ExponentialLR(optimizer, gamma=0.5)
        settings = {"scheduler": halving, "interval": "step", "frequency": self.n}
        return {"optimizer": optimizer, "lr_scheduler": settings}


class CountsOptimizerSteps(pl.Trainer):
    """Counts the optimizer steps of the whole training; one epoch's batches play no part."""

    @property
    def lr_scheduler_configs(self) -> list[Any]:
        due = [c for c in super().lr_scheduler_configs if self.global_step % c.frequency == 0]
        return [replace(config, frequency=1) for config in due]


class IgnoresFrequency(pl.Trainer):
    """Steps the scheduler after every optimizer step."""

    @property
    def lr_scheduler_configs(self) -> list[Any]:
        return [replace(config, frequency=1) for config in super().lr_scheduler_configs]


#: Batches an epoch, accumulate_grad_batches, frequency, and after which of the steps of two epochs
#: the scheduler steps.
FREQUENCIES = [
    (4, 1, 2, [2, 4, 6, 8]),  # as everybody would expect
    (5, 1, 2, [2, 4, 7, 9]),  # after batches 2 and 4 of each epoch
    (3, 1, 4, []),  # no epoch has a fourth batch
    (6, 2, 2, [1, 2, 3, 4, 5, 6]),  # steps end with batches 2, 4 and 6: all are even
    (6, 3, 2, [2, 4]),  # steps end with batches 3 and 6
    (7, 3, 7, [3, 6]),  # the last step of each epoch ends with batch 7
]


def halved_after(steps: list[int], total: int) -> list[float]:
    """The rates of `total` steps, from 0.1 on and halved after those steps."""
    return [0.1 * 0.5 ** sum(step < t for step in steps) for t in range(1, total + 1)]


@rule(
    "PL-64",
    'frequency=n with interval="step" steps a scheduler where a batch that ends an optimizer step'
    " has a number in its epoch that n divides: neither is it every nth step, nor does the count go"
    " on in the next epoch.",
    kind="contract",
    source="https://github.com/Lightning-AI/pytorch-lightning/issues/17544",
    subject=pl.Trainer,
    violated_by=[CountsOptimizerSteps, IgnoresFrequency],
    consequence="frequency=4 never steps the scheduler in epochs of three batches; frequency=2"
    " steps it after every step with accumulate_grad_batches=2",
)
def test_frequency_counts_the_batches_of_an_epoch(Trainer: Any, observe: Observe) -> None:
    """Leave frequency alone, and let the schedule itself count: StepLR(step_size=n)."""
    for batches, window, frequency, steps_after in FREQUENCIES:
        module = EveryNthStep(frequency, batches=batches)

        Trainer(**quiet(max_epochs=2, accumulate_grad_batches=window)).fit(module)

        observe(f"{batches} batches, {window} a step, frequency {frequency}", module.rates)
        assert module.rates == halved_after(steps_after, total=2 * -(-batches // window))


@spec(
    "PL-64",
    subject=[
        known_bug(pl.Trainer, "https://github.com/Lightning-AI/pytorch-lightning/issues/17544"),
        CountsOptimizerSteps,
    ],
    violated_by=[IgnoresFrequency],
)
def test_every_nth_step_should_be_counted_through_the_epochs(Trainer: Any) -> None:
    """What the documentation says: n steps pass between two calls of scheduler.step()."""
    module = EveryNthStep(4, batches=3)

    Trainer(**quiet(max_epochs=4)).fit(module)

    assert module.rates == halved_after([4, 8, 12], total=12)
