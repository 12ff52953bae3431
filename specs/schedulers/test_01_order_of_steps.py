"""First the optimizer, then the scheduler.

At the end you know what the other order costs, when PyTorch warns about it, and when it does not.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ExponentialLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)

from reference import data
from reference.training import Batches, Loss, train_one_epoch
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.trace import learning_rates_used, recorded, steps_in_order

DOCUMENTATION = "https://docs.pytorch.org/docs/stable/optim.html#how-to-adjust-learning-rate"
ORDER_WARNING = "Detected call of `lr_scheduler.step()` before `optimizer.step()`"


def scheduler_before_optimizer(
    model: nn.Module,
    batches: Batches,
    loss_function: Loss,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler | None = None,
) -> list[float]:
    """Moves the schedule on before the update that should have used its value."""
    losses = []
    for inputs, targets in batches:
        optimizer.zero_grad()
        loss = loss_function(model(inputs), targets)
        loss.backward()
        if scheduler is not None:
            scheduler.step()
        optimizer.step()
        losses.append(loss.item())
    return losses


@rule(
    "LR-01",
    "Call optimizer.step() before scheduler.step().",
    kind="practice",
    source=DOCUMENTATION,
    subject=train_one_epoch,
    violated_by=[scheduler_before_optimizer],
    consequence="The first value of the schedule is never used: a schedule of 0.1, 0.05, 0.025"
    " trains with 0.05, 0.025, 0.0125. On digits, one epoch then ends at a test loss that is"
    " higher by more than 0.05.",
)
def test_the_first_update_uses_the_first_value_of_the_schedule(
    train_one_epoch: Callable[..., Any], observe: Callable[[str, Any], None]
) -> None:
    """The scheduler sets the rate for the next update, so the update at hand has to come first."""
    model = nn.Linear(1, 1)
    optimizer = SGD(model.parameters(), lr=0.1)
    halved_each_step = StepLR(optimizer, step_size=1, gamma=0.5)
    three_batches = [(torch.ones(1, 1), torch.zeros(1, 1))] * 3

    with warnings.catch_warnings(), recorded(optimizer=optimizer) as events:
        warnings.simplefilter("ignore")  # what PyTorch says to the wrong order is LR-02
        train_one_epoch(model, three_batches, nn.MSELoss(), optimizer, halved_each_step)

    used = learning_rates_used(events)
    observe("learning rates used", used)
    assert used == [0.1, 0.1 * 0.5, 0.1 * 0.25]


@spec("LR-01", violated_by=[scheduler_before_optimizer])
def test_each_scheduler_step_follows_an_optimizer_step(
    train_one_epoch: Callable[..., Any],
) -> None:
    """The order is kept in every batch, not only in the first."""
    model = nn.Linear(1, 1)
    optimizer = SGD(model.parameters(), lr=0.1)
    scheduler = ExponentialLR(optimizer, gamma=0.9)
    four_batches = [(torch.ones(1, 1), torch.zeros(1, 1))] * 4

    with (
        warnings.catch_warnings(),
        recorded(optimizer=optimizer, scheduler=scheduler) as events,
    ):
        warnings.simplefilter("ignore")
        train_one_epoch(model, four_batches, nn.MSELoss(), optimizer, scheduler)

    assert steps_in_order(events) == ["optimizer", "scheduler"] * 4


@spec("LR-01", violated_by=[scheduler_before_optimizer])
def test_skipping_the_first_value_costs_loss_on_digits(
    train_one_epoch: Callable[..., Any], observe: Callable[[str, Any], None]
) -> None:
    """Over five seeds the difference was 0.075 to 0.078; 0.05 is asked for."""
    digits = data.digits()
    cross_entropy = nn.CrossEntropyLoss()
    planned = [0.5 * 0.8**t for t in range(24)]  # 23 batches, and one value past them

    def start(seed: int) -> tuple[nn.Module, SGD, Batches]:
        torch.manual_seed(seed)
        model = nn.Linear(64, 10)
        shuffled = torch.Generator().manual_seed(seed)
        batches = data.batches(digits.train_inputs, digits.train_targets, 64, shuffled)
        return model, SGD(model.parameters(), lr=0.5), batches

    def test_loss_with(rates: list[float], seed: int) -> float:
        model, optimizer, batches = start(seed)
        for rate, (inputs, targets) in zip(rates, batches, strict=True):
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        return float(cross_entropy(model(digits.test_inputs), digits.test_targets).detach())

    for seed in range(5):
        model, optimizer, batches = start(seed)
        scheduler = ExponentialLR(optimizer, gamma=0.8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            train_one_epoch(model, batches, cross_entropy, optimizer, scheduler)
        loss = float(cross_entropy(model(digits.test_inputs), digits.test_targets).detach())

        loss_as_planned = test_loss_with(planned[:-1], seed)
        loss_without_the_first_value = test_loss_with(planned[1:], seed)
        assert loss_without_the_first_value - loss_as_planned > 0.05
        assert abs(loss - loss_as_planned) < 0.001
    observe("test loss as planned", loss_as_planned)
    observe("test loss without the first value", loss_without_the_first_value)


# What PyTorch says about it


def warnings_about_order(scheduler: Any, optimizer: SGD, *, epochs: int, metric: Any = None) -> int:
    """How often PyTorch warned while the scheduler stepped before the optimizer in every epoch."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(epochs):
            scheduler.step() if metric is None else scheduler.step(metric)
            optimizer.step()
    return sum(str(warning.message).startswith(ORDER_WARNING) for warning in caught)


def optimizer_of_one_parameter() -> SGD:
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.ones(1)
    return SGD([parameter], lr=0.1)


class WarnsAtEveryStep(StepLR):
    """Warns about the order each time, whatever the optimizer did before."""

    def step(self, epoch: int | None = None) -> None:
        if self.last_epoch >= 0:  # the constructor takes a step of its own
            warnings.warn(ORDER_WARNING, UserWarning, stacklevel=2)
        super().step(epoch)


class NeverWarns(StepLR):
    """Says nothing at all about the order."""

    def step(self, epoch: int | None = None) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            super().step(epoch)


@rule(
    "LR-02",
    "The warning about the order is weak: it comes at the scheduler's first step only, and only if"
    " the optimizer has never stepped.",
    kind="contract",
    source=DOCUMENTATION,
    subject=StepLR,
    violated_by=[NeverWarns, WarnsAtEveryStep],
    consequence="A loop in the wrong order that follows one warm-up update trains without any"
    " warning.",
)
def test_five_epochs_in_the_wrong_order_bring_one_warning(StepLR: Callable[..., Any]) -> None:
    """The scheduler looks once whether the optimizer's step was ever called, and never again."""
    optimizer = optimizer_of_one_parameter()
    scheduler = StepLR(optimizer, step_size=1)

    assert warnings_about_order(scheduler, optimizer, epochs=5) == 1


@spec("LR-02", violated_by=[WarnsAtEveryStep])
def test_one_earlier_update_hides_the_wrong_order_for_good(StepLR: Callable[..., Any]) -> None:
    """One optimizer.step() before the loop is enough, for example to test the loop."""
    optimizer = optimizer_of_one_parameter()
    scheduler = StepLR(optimizer, step_size=1)
    optimizer.step()

    assert warnings_about_order(scheduler, optimizer, epochs=5) == 0


class PlateauThatWarns(ReduceLROnPlateau):
    """Warns about the order as the other schedulers do."""

    def step(self, metrics: Any, epoch: int | None = None) -> None:
        warnings.warn(ORDER_WARNING, UserWarning, stacklevel=2)
        super().step(metrics, epoch)


@spec("LR-02", subject=ReduceLROnPlateau, violated_by=[PlateauThatWarns])
def test_reduce_on_plateau_never_warns(ReduceLROnPlateau: Callable[..., Any]) -> None:
    """It does not count the optimizer's steps at all."""
    optimizer = optimizer_of_one_parameter()
    scheduler = ReduceLROnPlateau(optimizer)

    assert warnings_about_order(scheduler, optimizer, epochs=5, metric=1.0) == 0


class ChainThatWarnsOnce(ChainedScheduler):
    """Lets only the first of its schedulers warn."""

    def step(self) -> None:
        first, *others = self._schedulers
        first.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for scheduler in others:
                scheduler.step()


@spec("LR-02", subject=ChainedScheduler, violated_by=[ChainThatWarnsOnce])
def test_a_chain_warns_once_for_each_scheduler_in_it(ChainedScheduler: Callable[..., Any]) -> None:
    """Two identical warnings are one mistake, not two."""
    optimizer = optimizer_of_one_parameter()
    children = [StepLR(optimizer, step_size=1), ExponentialLR(optimizer, gamma=0.9)]
    scheduler = ChainedScheduler(children)

    assert warnings_about_order(scheduler, optimizer, epochs=5) == 2


# The popular form


def rates(scheduler: Any, optimizer: SGD, *, steps: int, scheduler_first: bool) -> list[float]:
    """The learning rate that each of `steps` updates uses, in the right or in the wrong order."""
    used = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(steps):
            if scheduler_first:
                scheduler.step()
            used.append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step()
            if not scheduler_first:
                scheduler.step()
    return used


class StepsTwiceAtFirst(StepLR):
    """Loses two values of the schedule in the wrong order, not one."""

    def step(self, epoch: int | None = None) -> None:
        super().step(epoch)
        if self.last_epoch == 1:
            super().step(epoch)


@rule(
    "CLAIM-08",
    "A scheduler called before the optimizer only shifts the schedule by one step.",
    kind="claim",
    verdict="holds if the schedule goes on past the last step of the training",
    source=DOCUMENTATION,
    subject=StepLR,
    violated_by=[StepsTwiceAtFirst],
)
def test_a_schedule_without_an_end_is_shifted_by_one(StepLR: Callable[..., Any]) -> None:
    """Every update gets the value that was meant for the next one; the first value is lost."""
    in_order = optimizer_of_one_parameter()
    planned = rates(StepLR(in_order, step_size=2), in_order, steps=11, scheduler_first=False)
    out_of_order = optimizer_of_one_parameter()
    used = rates(StepLR(out_of_order, step_size=2), out_of_order, steps=10, scheduler_first=True)

    assert agree(planned, [0.1 * 0.1 ** (t // 2) for t in range(11)])
    assert used == planned[1:]


class FlatPastTheEnd(OneCycleLR):
    """Keeps the last value of the plan at the step that lies past its end."""

    def get_lr(self) -> Any:
        if self.last_epoch >= self.total_steps:
            return [float(group["lr"]) for group in self.optimizer.param_groups]
        return super().get_lr()


@spec("CLAIM-08", subject=OneCycleLR, violated_by=[FlatPastTheEnd])
def test_a_schedule_with_an_end_is_overrun(
    OneCycleLR: Callable[..., Any], observe: Callable[[str, Any], None]
) -> None:
    """OneCycleLR plans 20 values; in the wrong order the last update uses a 21st one.

    That one lies past the end, where the rate is rising again: more than 1000 times as large as
    the value which the plan ends with.
    """
    plan = {"max_lr": 0.1, "total_steps": 20}
    in_order = optimizer_of_one_parameter()
    planned = rates(OneCycleLR(in_order, **plan), in_order, steps=20, scheduler_first=False)
    out_of_order = optimizer_of_one_parameter()
    used = rates(OneCycleLR(out_of_order, **plan), out_of_order, steps=20, scheduler_first=True)

    observe("last rate in order", planned[-1])
    observe("last rate out of order", used[-1])
    assert used[:-1] == planned[1:]
    assert used[-1] > 1000 * planned[-1]
