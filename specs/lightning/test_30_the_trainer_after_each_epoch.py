"""What the earlier chapters ask of a loop, asked of a Trainer: after each epoch.

At the end you know when a Trainer steps schedulers of epochs, what a validation finds and leaves
behind, and in which order the end of an epoch goes. Each rule judges two loops by one trace: that
of reference/lightning_loop.py, which a Trainer runs, and the plain one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from reference import training
from reference.data import batches, digits
from reference.early_stopping import EarlyStopping
from reference.evaluation import evaluate
from specs.harness import rule, spec
from specs.harness.observations import Observe
from specs.harness.optional import optional
from specs.harness.trace import Forward, recorded

pl = optional("pytorch_lightning")
modules = optional("reference.lightning_modules")
loop = optional("reference.lightning_loop")

MODULE_PAGE = "https://lightning.ai/docs/pytorch/stable/common/lightning_module.html"

Loop = Callable[..., Any]


def fit_with(Module: Any, *loop_of: Any, epochs: int, interval: str = "epoch", **also: Any) -> Any:
    """What the Trainer's loop does, with another module or interval: for the violations."""
    scheduler = also.pop("scheduler", None)
    module = Module(*loop_of[:1], *loop_of[2:], scheduler, interval=interval, **also)
    trainer = pl.Trainer(**modules.quiet(max_epochs=epochs))
    trainer.fit(module, loop.Loader(loop_of[1]), loop.Loader([0]))
    return module.history


def cannot_learn() -> tuple[Any, ...]:
    """Model, two batches, loss and an optimizer with a rate that changes next to nothing."""
    model, two_batches = nn.Linear(1, 1), [(torch.ones(1, 1), torch.zeros(1, 1))] * 2
    return model, two_batches, nn.MSELoss(), SGD(model.parameters(), lr=1e-6)


# --- Schedulers and early stopping ----------------------------------------------------------------


class LogsTheTrainingLoss(loop.LoopModule):
    """Logs another value under the name that the scheduler monitors."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.history.validation_losses.append(self.validate())
        self.log("validation", self.losses[-1], batch_size=1)


class NeverAsks(loop.LoopModule):
    """Does not ask whether to stop."""

    def on_train_epoch_end(self) -> None:
        self.early_stopping = None
        super().on_train_epoch_end()


def steps_in_every_batch(*loop_of: Any, **options: Any) -> Any:
    """Returns a scheduler of epochs with "interval": "step"."""
    return fit_with(loop.LoopModule, *loop_of, interval="step", **options)


def gives_the_training_loss(*loop_of: Any, **options: Any) -> Any:
    """Has ReduceLROnPlateau judge another number than the validation's."""
    return fit_with(LogsTheTrainingLoss, *loop_of, **options)


def trains_on_to_the_end(*loop_of: Any, **options: Any) -> Any:
    """Ignores early stopping."""
    return fit_with(NeverAsks, *loop_of, **options)


@rule(
    "PL-30",
    "A Trainer steps a scheduler of epochs once after each epoch; ReduceLROnPlateau and early"
    " stopping come after the validation, and are given its value.",
    kind="practice",
    source=MODULE_PAGE,
    subject=[loop.fit, training.fit],
    violated_by=[steps_in_every_batch],
    consequence="Stepped in every batch, a schedule runs as many times too fast as an epoch has"
    " batches: of the rates 1, 1/2, 1/4, 1/8 the epochs get 1, 1/4, 1/16, 1/64 with two of them.",
)
def test_each_epoch_has_the_next_value_of_the_schedule(fit: Loop) -> None:
    """LR-28 again. For a Trainer "interval": "epoch" is the default."""
    loop_of = cannot_learn()
    halved = StepLR(loop_of[-1], step_size=1, gamma=0.5)

    history = fit(*loop_of, epochs=4, scheduler=halved)

    assert history.learning_rates == [1e-6, 1e-6 / 2, 1e-6 / 4, 1e-6 / 8]


@spec("PL-30", violated_by=[gives_the_training_loss])
def test_the_plateau_sees_every_validation_once_and_in_order(fit: Loop) -> None:
    """LR-28 again: the third value is the first bad one, so the fourth epoch has half the rate."""
    loop_of = cannot_learn()
    values = iter([5.0, 3.0, 4.0, 4.0])
    scheduler = ReduceLROnPlateau(loop_of[-1], patience=0, factor=0.5)

    history = fit(*loop_of, epochs=4, scheduler=scheduler, validate=lambda: next(values))

    assert history.validation_losses == [5.0, 3.0, 4.0, 4.0]
    assert history.learning_rates == [1e-6, 1e-6, 1e-6, 1e-6 / 2]
    assert loop_of[-1].param_groups[0]["lr"] == 1e-6 / 4


@spec("PL-30", violated_by=[trains_on_to_the_end])
def test_early_stopping_ends_it_after_the_epoch_that_it_judged(fit: Loop) -> None:
    """LR-28 again: the best epoch, and two without improvement."""
    history = fit(*cannot_learn(), epochs=6, validate=lambda: 1.0, early_stopping=EarlyStopping(2))

    assert history.validation_losses == [1.0, 1.0, 1.0]
    assert len(history.losses) == len(history.learning_rates) == 3


def validates_first(*loop_of: Any, **options: Any) -> Any:
    """The plain loop: the scheduler steps when the validation is over."""
    return training.fit(*loop_of, **options)


@spec("PL-30", subject=loop.fit, violated_by=[validates_first])
def test_in_a_validation_the_rate_is_already_that_of_the_next_epoch(fit: Loop) -> None:
    """Here a Trainer differs from the plain loop. The weights do not notice; who logs the rate in
    validation_step does. A plateau, which needs the value, is stepped afterwards."""
    loop_of = cannot_learn()
    halved = StepLR(loop_of[-1], step_size=1, gamma=0.5)
    seen: list[float] = []

    def validate() -> float:
        seen.append(loop_of[-1].param_groups[0]["lr"])
        return 1.0

    fit(*loop_of, epochs=3, scheduler=halved, validate=validate)

    assert seen == [1e-6 / 2, 1e-6 / 4, 1e-6 / 8]


# --- Training mode and eval mode ------------------------------------------------------------------


class StaysInTrainingMode(loop.LoopModule):
    """Has taken the hook over that precedes the validation, and left it empty."""

    def on_validation_model_eval(self) -> None:
        pass


class StaysInEvalMode(loop.LoopModule):
    """Has taken the hook over that follows the validation, and left it empty."""

    def on_validation_model_train(self) -> None:
        pass


def stays_in_eval_mode_after_validation(*loop_of: Any, **options: Any) -> Any:
    """Trains its second epoch without dropout."""
    return fit_with(StaysInEvalMode, *loop_of, **options)


def with_dropout_and_batch_norm() -> nn.Module:
    """A network that is another one in training mode."""
    layers = [nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10)]
    return nn.Sequential(*layers)


@rule(
    "PL-31",
    "A Trainer validates in eval mode and without gradients, and goes back to training mode; leave"
    " on_validation_model_eval and on_validation_model_train alone.",
    kind="practice",
    source=MODULE_PAGE,
    subject=[loop.fit, training.fit],
    violated_by=[stays_in_eval_mode_after_validation],
    consequence="100 digits, Dropout and BatchNorm: in eval mode from the second of 20 epochs on,"
    " the test loss is 0.72 to 0.77 instead of 0.46 to 0.54 (five seeds)",
)
def test_a_validation_does_not_end_training_mode(fit: Loop, observe: Observe) -> None:
    """LOOP-03 again, with a validation that leaves eval mode on."""
    data, model = digits(), with_dropout_and_batch_norm()
    few = batches(data.train_inputs[:100], data.train_targets[:100], 20)
    optimizer = SGD(model.parameters(), lr=0.1)

    def validate() -> float:
        model.eval()
        return evaluate(model, [(data.test_inputs, data.test_targets)], cross_entropy)

    with recorded(model=model) as events:
        history = fit(model, few, cross_entropy, optimizer, epochs=20, validate=validate)

    in_training = Forward(training=True, records_gradients=True)
    in_validation = Forward(training=False, records_gradients=False)
    observe("validation loss", history.validation_losses[-1])
    assert history.validation_losses[-1] < 0.63
    assert [event for event in events if isinstance(event, Forward)] == (
        [in_training] * 5 + [in_validation]
    ) * 20


def validates_in_training_mode(*loop_of: Any, **options: Any) -> Any:
    """Drops units and moves the statistics of BatchNorm while it validates."""
    return fit_with(StaysInTrainingMode, *loop_of, **options)


def leaves_it_to_validate(*loop_of: Any, **options: Any) -> Any:
    """The plain loop: validate() has to see to modes and gradients by itself."""
    return training.fit(*loop_of, **options)


@spec("PL-31", subject=loop.fit, violated_by=[validates_in_training_mode, leaves_it_to_validate])
def test_a_validation_finds_eval_mode_on_and_gradients_off(fit: Loop) -> None:
    """LOOP-04 again: here a Trainer does for validation_step what evaluate() does by itself."""
    model, *others = cannot_learn()
    found: list[tuple[bool, bool]] = []

    def validate() -> float:
        found.append((model.training, torch.is_grad_enabled()))
        return 1.0

    fit(model, *others, epochs=2, validate=validate)

    assert found == [(False, False)] * 2
