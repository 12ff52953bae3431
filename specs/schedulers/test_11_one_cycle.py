"""OneCycleLR, the steps: when to take one, and how many there are.

At the end you know that the schedule steps with the optimizer, batch by batch, what it costs to
step it once per epoch, and what its very last step does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from reference.data import batches, digits
from reference.schedulers import one_cycle
from reference.training import train_one_epoch
from specs.harness import raising, rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe
from specs.schedulers.traces import Scheduler, rates_of_steps

PAGE = "https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.OneCycleLR.html"

Batches = Iterable[tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]
Train = Callable[..., list[float]]


def learning_rates_recorded(optimizer: Optimizer) -> list[float]:
    """A list that receives, at every optimizer step, the learning rate that the step uses."""
    rates: list[float] = []
    optimizer.register_step_pre_hook(
        lambda optimizer, _args, _kwargs: rates.append(optimizer.param_groups[0]["lr"])
    )
    return rates


def equal_batches(count: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of one sample, where only the number of batches matters."""
    return [(torch.ones(1, 1), torch.ones(1, 1))] * count


# ---------------------------------------------------------------- LR-12: once per optimizer step


def steps_once_per_epoch(
    model: nn.Module,
    batches: Batches,
    loss_function: Loss,
    optimizer: Optimizer,
    scheduler: LRScheduler,
) -> list[float]:
    """Steps the scheduler when the epoch is over."""
    losses = train_one_epoch(model, batches, loss_function, optimizer)
    scheduler.step()
    return losses


def forgets_the_last_batch(
    model: nn.Module,
    batches: Batches,
    loss_function: Loss,
    optimizer: Optimizer,
    scheduler: LRScheduler,
) -> list[float]:
    """Steps the scheduler between the batches of an epoch, but not between the epochs."""
    *most, last = batches
    losses = train_one_epoch(model, most, loss_function, optimizer, scheduler)
    return losses + train_one_epoch(model, [last], loss_function, optimizer)


@rule(
    "LR-12",
    "Step OneCycleLR after every optimizer step: once per batch, not once per epoch.",
    kind="practice",
    source=PAGE,
    subject=train_one_epoch,
    violated_by=[steps_once_per_epoch, forgets_the_last_batch],
    consequence="Stepped once per epoch, three epochs on digits end with more than five times the"
    " loss, because the rate never reaches a tenth of its peak.",
)
def test_every_batch_uses_the_next_rate_of_the_cycle(train_one_epoch: Train) -> None:
    """The cycle spans the whole run, so it has as many steps as the run has batches."""
    model = nn.Linear(1, 1)
    optimizer = SGD(model.parameters(), lr=0.1)
    scheduler = OneCycleLR(optimizer, max_lr=0.1, epochs=4, steps_per_epoch=10)
    used = learning_rates_recorded(optimizer)

    for _ in range(4):
        train_one_epoch(model, equal_batches(10), nn.functional.mse_loss, optimizer, scheduler)

    assert agree(used, [one_cycle(t, max_lr=0.1, total_steps=40) for t in range(40)], scale=0.1)


def train_on_digits(train_one_epoch: Train, seed: int) -> tuple[float, float]:
    """Three epochs of 23 batches with a peak rate of 0.2: the final loss and the highest rate."""
    data = digits()
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = SGD(model.parameters(), lr=0.2, momentum=0.9)
    scheduler = OneCycleLR(
        optimizer, max_lr=0.2, epochs=3, steps_per_epoch=23, cycle_momentum=False
    )
    used = learning_rates_recorded(optimizer)
    shuffle = torch.Generator().manual_seed(seed)
    for _ in range(3):
        epoch = batches(data.train_inputs, data.train_targets, batch_size=64, generator=shuffle)
        train_one_epoch(model, epoch, nn.functional.cross_entropy, optimizer, scheduler)
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(data.train_inputs), data.train_targets)
    return loss.item(), max(used)


@spec("LR-12", violated_by=[steps_once_per_epoch])
def test_stepping_once_per_epoch_costs_five_times_the_loss(
    train_one_epoch: Train, observe: Observe
) -> None:
    """Per batch the loss ends below 0.2, per epoch near 1.9. Guessing has log(10) = 2.3."""
    for seed in range(3):
        loss, highest_rate = train_on_digits(train_one_epoch, seed)
        loss_per_epoch, highest_rate_per_epoch = train_on_digits(steps_once_per_epoch, seed)
        observe(f"losses with seed {seed}", [loss, loss_per_epoch])

        assert loss_per_epoch > 5 * loss
        assert highest_rate_per_epoch < highest_rate / 10


def train_accumulating(
    model: nn.Module,
    batches: Batches,
    loss_function: Loss,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    accumulate: int,
) -> None:
    """One optimizer step for every `accumulate` batches, and a scheduler step after each."""
    for number, (inputs, targets) in enumerate(batches, start=1):
        (loss_function(model(inputs), targets) / accumulate).backward()
        if number % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()


def steps_after_every_batch(
    model: nn.Module,
    batches: Batches,
    loss_function: Loss,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    accumulate: int,
) -> None:
    """Accumulates gradients, but steps the scheduler for every batch."""
    for number, (inputs, targets) in enumerate(batches, start=1):
        (loss_function(model(inputs), targets) / accumulate).backward()
        if number % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
        scheduler.step()


@pytest.mark.filterwarnings("ignore:Detected call of")  # the violation is early, too: see LR-01
@spec(
    "LR-12",
    subject=train_accumulating,
    violated_by=[raising(ValueError, steps_after_every_batch)],
)
def test_accumulated_batches_share_one_step(train_accumulating: Callable[..., None]) -> None:
    """40 batches, four to an optimizer step, make 10 optimizer steps: total_steps is 10.

    Stepped for every batch, this schedule is over after a quarter of the run, and then raises.
    """
    model = nn.Linear(1, 1)
    optimizer = SGD(model.parameters(), lr=0.1)
    scheduler = OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
    used = learning_rates_recorded(optimizer)

    train_accumulating(
        model, equal_batches(40), nn.functional.mse_loss, optimizer, scheduler, accumulate=4
    )

    assert agree(used, [one_cycle(t, max_lr=0.1, total_steps=10) for t in range(10)], scale=0.1)


# ---------------------------------------------------------------- CLAIM-03: and once per epoch?


def counts_epochs(optimizer: Optimizer, epochs: int, **options: Any) -> LRScheduler:
    """A cycle of one step per epoch whose peak is its last step."""
    return OneCycleLR(
        optimizer, options["max_lr"], total_steps=epochs + 1, pct_start=epochs / (epochs + 1)
    )


@rule(
    "CLAIM-03",
    "OneCycleLR stepped once per epoch reaches its peak on the last epoch.",
    kind="claim",
    source=PAGE,
    subject=OneCycleLR,
    violated_by=[counts_epochs],
    consequence="10 epochs of 50 batches end at 4.9 % of max_lr, at the foot of the rise.",
    verdict="holds if an epoch has exactly 1 / pct_start batches",
)
def test_stepped_once_per_epoch_the_rate_stays_at_the_foot_of_the_rise(
    OneCycleLR: Scheduler, observe: Observe
) -> None:
    """With 10 epochs of 50 batches the peak is in step 0.3 * 500 - 1 = 149.

    Ten steps reach step 9. There the rate has hardly left its start, max_lr / 25 = 0.004.
    """
    optimizer = SGD([torch.zeros(1)], lr=0.1)
    scheduler = OneCycleLR(optimizer, max_lr=0.1, epochs=10, steps_per_epoch=50, pct_start=0.3)
    rate_of_epoch = rates_of_steps(optimizer, scheduler, steps=10)
    observe("rate of each epoch", rate_of_epoch)

    assert rate_of_epoch == sorted(rate_of_epoch)
    assert agree(rate_of_epoch[0], 0.004, scale=0.1)
    assert 0.004 < rate_of_epoch[9] < 0.005


@spec("CLAIM-03", violated_by=[counts_epochs])
def test_the_number_of_batches_decides_where_the_peak_is(OneCycleLR: Scheduler) -> None:
    """The peak is in step pct_start * epochs * batches - 1: the last epoch for 1 / 0.25 batches.

    Fewer batches move it forward, more batches move it beyond the end of the training.
    """
    for batches_per_epoch, peak in [(2, 4), (4, 9)]:  # 0.25 * 10 * 2 - 1 and 0.25 * 10 * 4 - 1
        optimizer = SGD([torch.zeros(1)], lr=0.1)
        scheduler = OneCycleLR(
            optimizer, max_lr=0.1, epochs=10, steps_per_epoch=batches_per_epoch, pct_start=0.25
        )
        rate_of_epoch = rates_of_steps(optimizer, scheduler, steps=10)
        assert rate_of_epoch.index(max(rate_of_epoch)) == peak
        assert agree(rate_of_epoch[peak], 0.1, scale=0.1)


# ---------------------------------------------------------------- LR-14: the step after the end


class StaysAtTheEnd(OneCycleLR):
    """Keeps the final rate after the last optimizer step."""

    def get_lr(self) -> Any:
        if self.last_epoch >= self.total_steps:
            return [group["min_lr"] for group in self.optimizer.param_groups]
        return super().get_lr()


class NeverEnds(OneCycleLR):
    """Starts the cycle again when it is over."""

    def get_lr(self) -> Any:
        self.last_epoch %= self.total_steps
        return super().get_lr()


class EndsOneStepEarly(OneCycleLR):
    """Refuses the last of its total_steps steps."""

    def get_lr(self) -> Any:
        if self.last_epoch >= self.total_steps:
            raise ValueError("the cycle is over")
        return super().get_lr()


@rule(
    "LR-14",
    "OneCycleLR takes total_steps scheduler steps and refuses one more; the last of them leads"
    " past the end of the cycle, to a rate that is not meant to be used.",
    kind="contract",
    source="https://github.com/pytorch/pytorch/issues/91765",
    subject=OneCycleLR,
    violated_by=[NeverEnds, raising(ValueError, EndsOneStepEarly)],
)
def test_one_step_more_than_total_steps_is_refused(OneCycleLR: Scheduler) -> None:
    """A run that goes on after its cycle needs another scheduler."""
    optimizer = SGD([torch.zeros(1)], lr=0.1)
    scheduler = OneCycleLR(optimizer, max_lr=0.1, total_steps=20)
    for _ in range(20):
        optimizer.step()
        scheduler.step()
    with pytest.raises(ValueError):  # noqa: PT011 (the message has a test of its own)
        scheduler.step()


@spec("LR-14", violated_by=[NeverEnds])
def test_the_refusal_names_both_numbers(OneCycleLR: Scheduler, observe: Observe) -> None:
    """Both the step that was tried and the number of steps that there are."""
    optimizer = SGD([torch.zeros(1)], lr=0.1)
    scheduler = OneCycleLR(optimizer, max_lr=0.1, total_steps=3)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    with pytest.raises(ValueError, match=r"^Tried to step 4 times.* total steps is 3") as refusal:
        scheduler.step()
    observe("refusal", refusal.value)


@spec("LR-14", violated_by=[StaysAtTheEnd])
def test_the_rate_after_the_last_step_has_risen_again(
    OneCycleLR: Scheduler, observe: Observe
) -> None:
    """20 optimizer steps use the rates 0 to 19. Rate 20 continues the cosine past its minimum.

    A cosine is symmetric about its minimum: rate 20 equals rate 18, about 3,000 times rate 19.
    It is what get_last_lr() reports after the run, and what a 21st optimizer step would use.
    """
    optimizer = SGD([torch.zeros(1)], lr=0.1)
    scheduler = OneCycleLR(optimizer, max_lr=0.1, total_steps=20)
    rates = rates_of_steps(optimizer, scheduler, steps=20)
    [rate_after] = scheduler.get_last_lr()
    observe("rate after the last step", rate_after)

    assert agree(rates[19], 0.1 / 25 / 1e4, scale=0.1)
    assert agree(rate_after, rates[18], scale=0.1)
    assert rate_after > 3000 * rates[19]
    assert agree(rate_after, one_cycle(20, max_lr=0.1, total_steps=20), scale=0.1)


@spec("LR-14", violated_by=[StaysAtTheEnd])
def test_with_linear_annealing_that_rate_is_negative(OneCycleLR: Scheduler) -> None:
    """The line is continued below zero: one optimizer step more climbs the loss."""
    weight = torch.ones(1, requires_grad=True)
    optimizer = SGD([weight], lr=0.1)
    scheduler = OneCycleLR(
        optimizer, max_lr=0.1, total_steps=20, anneal_strategy="linear", cycle_momentum=False
    )
    rates_of_steps(optimizer, scheduler, steps=20)  # no gradient yet: the weight stays at 1

    final = 0.1 / 25 / 1e4
    slope = (final - 0.1) / 14  # the fall takes the 14 steps from the peak in step 5 to step 19
    assert agree(optimizer.param_groups[0]["lr"], final + slope, scale=0.1)

    (weight**2).sum().backward()
    optimizer.step()
    assert weight.item() > 1
