"""The loop around the scheduler: what happens in each batch, and what after each epoch.

At the end you know the canonical order of a training step, and where in the loop each kind of
scheduler has its place. A loop is judged by what it does, recorded through PyTorch's hooks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau, StepLR

from reference.early_stopping import EarlyStopping
from reference.training import Batches, History, Loss, fit, train_one_epoch
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.trace import Backward, Forward, OptimizerStep, SchedulerStep, recorded

LOOP_PAGE = "https://docs.pytorch.org/tutorials/beginner/basics/optimization_tutorial.html"
SCHEDULER_PAGE = "https://docs.pytorch.org/docs/stable/optim.html#how-to-adjust-learning-rate"

Loop = Callable[..., Any]


# In each batch


def adds_gradients_up(
    model: nn.Module,
    batches: Batches,
    loss_function: Loss,
    optimizer: Optimizer,
    scheduler: LRScheduler | None = None,
) -> None:
    """Never forgets the gradients of earlier batches."""
    model.train()
    for inputs, targets in batches:
        loss_function(model(inputs), targets).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def forgets_gradients_too_late(
    model: nn.Module,
    batches: Batches,
    loss_function: Loss,
    optimizer: Optimizer,
    scheduler: LRScheduler | None = None,
) -> None:
    """Calls zero_grad between backward and step: there is nothing left to step with."""
    model.train()
    for inputs, targets in batches:
        loss_function(model(inputs), targets).backward()
        optimizer.zero_grad()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def stays_in_eval_mode(
    model: nn.Module,
    batches: Batches,
    loss_function: Loss,
    optimizer: Optimizer,
    scheduler: LRScheduler | None = None,
) -> None:
    """Trains in the mode that the last evaluation left behind."""
    for inputs, targets in batches:
        optimizer.zero_grad()
        loss_function(model(inputs), targets).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def updates_once_an_epoch(
    model: nn.Module,
    batches: Batches,
    loss_function: Loss,
    optimizer: Optimizer,
    scheduler: LRScheduler | None = None,
) -> None:
    """Sums the gradients of all batches and steps once."""
    model.train()
    optimizer.zero_grad()
    for inputs, targets in batches:
        loss_function(model(inputs), targets).backward()
    optimizer.step()
    if scheduler is not None:
        scheduler.step()


@rule(
    "LOOP-01",
    "In each batch: forget the old gradients, predict in training mode, differentiate the loss,"
    " step the optimizer, then step a scheduler that counts batches.",
    kind="practice",
    source=LOOP_PAGE,
    subject=train_one_epoch,
    violated_by=[
        adds_gradients_up,
        forgets_gradients_too_late,
        stays_in_eval_mode,
        updates_once_an_epoch,
    ],
    consequence="Without zero_grad, three batches with a gradient of 1 each move a weight at"
    " lr=0.1 by 0.1 + 0.2 + 0.3 = 0.6 in place of 0.3.",
)
def test_every_batch_goes_through_the_same_five_steps(train_one_epoch: Loop) -> None:
    """Each step needs what the one before it left: the order is not a matter of taste."""
    model = nn.Linear(1, 1, bias=False)
    model.eval()  # as an evaluation would leave it
    model.weight.grad = torch.ones(1, 1)  # as an earlier epoch would leave it
    optimizer = SGD(model.parameters(), lr=0.1)
    scheduler = StepLR(optimizer, step_size=10)
    three_batches = [(torch.ones(1, 1), torch.zeros(1, 1))] * 3

    with recorded(model=model, optimizer=optimizer, scheduler=scheduler) as events:
        train_one_epoch(model, three_batches, nn.MSELoss(), optimizer, scheduler)

    assert (
        events
        == [
            Forward(training=True, records_gradients=True),
            Backward(onto_old_gradient=False),
            OptimizerStep(learning_rates=(0.1,)),
            SchedulerStep(),
        ]
        * 3
    )


@spec("LOOP-01", violated_by=[adds_gradients_up, forgets_gradients_too_late])
def test_three_gradients_of_one_move_the_weight_three_times_as_far(train_one_epoch: Loop) -> None:
    """The loss is the prediction itself, so the gradient of the weight is the input: 1."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = SGD(model.parameters(), lr=0.1)
    three_batches = [(torch.ones(1, 1), torch.zeros(1, 1))] * 3

    train_one_epoch(model, three_batches, lambda prediction, _: prediction.sum(), optimizer)

    assert agree(model.weight, [[-0.3]])


def reports_the_loss_after_the_update(
    model: nn.Module, batches: Batches, loss_function: Loss, optimizer: Optimizer
) -> list[float]:
    """Looks at each batch again, with weights that have already learned from it."""
    losses = []
    for inputs, targets in batches:
        train_one_epoch(model, [(inputs, targets)], loss_function, optimizer)
        losses.append(float(loss_function(model(inputs), targets).detach()))
    return losses


def keeps_the_graphs(
    model: nn.Module, batches: Batches, loss_function: Loss, optimizer: Optimizer
) -> list[Any]:
    """Returns loss tensors, which keep every batch's graph in memory."""
    losses = []
    for inputs, targets in batches:
        optimizer.zero_grad()
        loss = loss_function(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss)
    return losses


@spec("LOOP-01", violated_by=[reports_the_loss_after_the_update, keeps_the_graphs])
def test_it_reports_the_losses_that_it_learned_from_as_numbers(train_one_epoch: Loop) -> None:
    """One float a batch, taken before the update: a tensor would hold on to its graph."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = SGD(model.parameters(), lr=0.1)
    two_batches = [(torch.ones(1, 1), torch.zeros(1, 1))] * 2

    losses = train_one_epoch(model, two_batches, lambda prediction, _: prediction.sum(), optimizer)

    assert [type(loss) for loss in losses] == [float, float]
    assert losses == [0.0, torch.tensor(-0.1).item()]  # -0.1 as float32 has it


# After each epoch


class Loops:
    """A model that cannot learn (the rate is tiny), so that every validation is bad."""

    def __init__(self) -> None:
        self.model = nn.Linear(1, 1)
        self.optimizer = SGD(self.model.parameters(), lr=1e-6)
        self.batches = [(torch.ones(1, 1), torch.zeros(1, 1))] * 2

    def run(self, fit: Loop, **options: Any) -> History:
        """What a loop records, given these options."""
        history: History = fit(self.model, self.batches, nn.MSELoss(), self.optimizer, **options)
        return history


def steps_the_scheduler_in_every_batch(
    model: nn.Module,
    batches: Any,
    loss_function: Loss,
    optimizer: Optimizer,
    *,
    epochs: int,
    scheduler: Any = None,
    **_options: Any,
) -> History:
    """Steps a scheduler that counts epochs once for each batch."""
    history = History()
    for _ in range(epochs):
        history.learning_rates.append(optimizer.param_groups[0]["lr"])
        train_one_epoch(model, batches, loss_function, optimizer, scheduler)
    return history


def steps_before_the_epoch(
    model: nn.Module,
    batches: Any,
    loss_function: Loss,
    optimizer: Optimizer,
    *,
    epochs: int,
    scheduler: Any = None,
    **options: Any,
) -> History:
    """Steps the scheduler first, so that no epoch has the first rate."""
    optimizer.step()  # which also silences the warning about the order
    scheduler.step()
    return fit(
        model, batches, loss_function, optimizer, epochs=epochs, scheduler=scheduler, **options
    )


@rule(
    "LR-28",
    "Step a scheduler that counts epochs once after each epoch, after validation;"
    " ReduceLROnPlateau is given the validation's value.",
    kind="practice",
    source=SCHEDULER_PAGE,
    subject=fit,
    violated_by=[steps_the_scheduler_in_every_batch, steps_before_the_epoch],
    consequence="Stepped in every batch, a schedule runs as many times too fast as an epoch has"
    " batches: of the rates 1, 1/2, 1/4, 1/8 the epochs get 1, 1/4, 1/16, 1/64 with two of them.",
)
def test_each_epoch_has_the_next_value_of_the_schedule(fit: Loop) -> None:
    """The first epoch is trained with the first value, and each step is one epoch."""
    loops = Loops()
    halved = StepLR(loops.optimizer, step_size=1, gamma=0.5)

    history = loops.run(fit, epochs=4, scheduler=halved)

    assert history.learning_rates == [1e-6, 1e-6 / 2, 1e-6 / 4, 1e-6 / 8]


def gives_the_training_loss(*loop: Any, validate: Any, scheduler: Any, **options: Any) -> History:
    """Steps ReduceLROnPlateau with another number than the validation's."""
    del validate
    return fit(*loop, validate=lambda: 0.0, scheduler=scheduler, **options)


@spec("LR-28", violated_by=[gives_the_training_loss])
def test_the_plateau_sees_every_validation_once_and_in_order(fit: Loop) -> None:
    """Validation comes before the step: the scheduler judges the epoch that has just ended."""
    loops = Loops()
    values = iter([5.0, 3.0, 4.0, 4.0])
    scheduler = ReduceLROnPlateau(loops.optimizer, patience=0, factor=0.5)

    history = loops.run(fit, epochs=4, scheduler=scheduler, validate=lambda: next(values))

    assert history.validation_losses == [5.0, 3.0, 4.0, 4.0]
    # The third epoch is the first bad one, so the fourth is trained with half the rate.
    assert history.learning_rates == [1e-6, 1e-6, 1e-6, 1e-6 / 2]
    assert loops.optimizer.param_groups[0]["lr"] == 1e-6 / 4


def trains_on_to_the_end(*loop: Any, early_stopping: Any, **options: Any) -> History:
    """Does not ask whether to stop."""
    del early_stopping
    return fit(*loop, **options)


@spec("LR-28", violated_by=[trains_on_to_the_end])
def test_early_stopping_ends_it_after_the_epoch_that_it_judged(fit: Loop) -> None:
    """Patience 2 and no improvement: the best epoch, two bad ones, and no more."""
    loops = Loops()

    history = loops.run(fit, epochs=9, validate=lambda: 1.0, early_stopping=EarlyStopping(2))

    assert len(history.losses) == len(history.learning_rates) == 3
    assert history.validation_losses == [1.0, 1.0, 1.0]


def invents_a_value(*loop: Any, **options: Any) -> History:
    """Goes on without a validation, with a number of its own."""
    return fit(*loop, **{"validate": lambda: 0.0, **options})


@spec("LR-28", violated_by=[invents_a_value])
def test_watching_a_value_without_a_validation_is_an_error(fit: Loop) -> None:
    """It is said before the first epoch, not after it."""
    loops = Loops()
    before = loops.model.weight.detach().clone()
    for watcher in (
        {"scheduler": ReduceLROnPlateau(loops.optimizer)},
        {"early_stopping": EarlyStopping(2)},
    ):
        with pytest.raises(ValueError, match="validate"):
            loops.run(fit, epochs=1, **watcher)
    assert torch.equal(loops.model.weight, before)
