"""Where a falling learning rate ends, and when it needs a floor.

At the end you will know that a cosine climbs back after T_max steps, what a learning rate of zero
does to a training that goes on, and when a floor (eta_min, end_factor) is needed and when not.

A list of rates is always: the learning rate before the first scheduler step, after it, and so on.
So the first N of them are those that N epochs are trained with.
"""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    PolynomialLR,
)

from reference.data import batches, digits
from reference.training import fit
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe

PAGE = "https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler"

# A scheduler class, or a function that builds a scheduler from the same arguments.
Scheduler = Callable[..., Any]


def optimizer_with(*rates: float) -> SGD:
    """An optimizer with one parameter group for each rate."""
    return SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in rates])


def rates_of(scheduler: LRScheduler, steps: int) -> list[float]:
    """The first group's rate before each of `steps` scheduler steps, and after the last."""
    rates = [scheduler.optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        scheduler.optimizer.step()
        scheduler.step()
        rates.append(scheduler.optimizer.param_groups[0]["lr"])
    return rates


class DigitsTraining:
    """A linear classifier of the digits, trained by SGD in six batches an epoch."""

    def __init__(self, rate: float) -> None:
        torch.manual_seed(0)
        self.inputs, self.targets = digits()[:2]
        self.model = nn.Linear(64, 10)
        self.optimizer = SGD(self.model.parameters(), lr=rate)

    def train(self, epochs: int, scheduler: LRScheduler | None = None) -> None:
        """Train, with one scheduler step after each epoch."""
        data = batches(self.inputs, self.targets, 240)
        fit(self.model, data, cross_entropy, self.optimizer, epochs=epochs, scheduler=scheduler)

    def loss(self) -> float:
        """The loss over all training images."""
        with torch.no_grad():
            return float(cross_entropy(self.model(self.inputs), self.targets))

    def weights(self) -> Tensor:
        """A copy of the 640 weights."""
        return self.model.weight.detach().clone()


# --- Cosine: down to eta_min, and up again --------------------------------------------------------


def cosine(t: int, T_max: int, base: float, eta_min: float) -> float:
    """Half a wave of length 2 * T_max: `base` at t = 0, `eta_min` at t = T_max."""
    return eta_min + (base - eta_min) * (1 + cos(pi * t / T_max)) / 2


def cosine_that_stays_down(optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> LRScheduler:
    """Stays at eta_min after T_max steps."""
    base = optimizer.param_groups[0]["lr"]
    return LambdaLR(optimizer, lambda t: cosine(min(t, T_max), T_max, base, eta_min) / base)


def cosine_that_restarts(optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> LRScheduler:
    """Jumps back to the base rate after T_max steps."""
    base = optimizer.param_groups[0]["lr"]
    return LambdaLR(optimizer, lambda t: cosine(t % T_max, T_max, base, eta_min) / base)


def cosine_one_step_ahead(optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> LRScheduler:
    """Is at eta_min after T_max - 1 steps."""
    base = optimizer.param_groups[0]["lr"]
    return LambdaLR(optimizer, lambda t: cosine(t + 1, T_max, base, eta_min) / base)


@rule(
    "LR-05",
    "CosineAnnealingLR reaches eta_min after T_max scheduler steps and then climbs back, so T_max"
    " is the number of steps of the whole training.",
    kind="contract",
    source=f"{PAGE}.CosineAnnealingLR.html",
    subject=CosineAnnealingLR,
    violated_by=[cosine_that_stays_down, cosine_that_restarts, cosine_one_step_ahead],
    consequence="a training twice as long as T_max ends at the full base rate",
)
def test_the_rate_falls_for_t_max_steps_and_rises_for_t_max_steps(
    CosineAnnealingLR: Scheduler,
) -> None:
    """It is a wave, not a ramp: nothing ends at T_max."""
    for T_max, eta_min in [(1, 0.0), (2, 0.01), (5, 0.0), (10, 0.001), (50, 0.02)]:
        rates = rates_of(CosineAnnealingLR(optimizer_with(0.1), T_max, eta_min), steps=4 * T_max)
        wave = [cosine(t, T_max, 0.1, eta_min) for t in range(4 * T_max + 1)]
        assert agree(rates, wave)
        assert agree(rates[T_max], eta_min, ulps=1)
        assert agree(rates[2 * T_max], 0.1)


@spec("LR-05", violated_by=[cosine_one_step_ahead])
def test_no_epoch_is_trained_at_eta_min_if_t_max_is_the_number_of_epochs(
    CosineAnnealingLR: Scheduler, observe: Observe
) -> None:
    """eta_min=0 is no danger to a training that ends with its cosine: zero comes only after the
    last epoch, which still has 2.4 % of the rate if there are 10 of them."""
    for epochs in (5, 10, 100):
        rates = rates_of(CosineAnnealingLR(optimizer_with(0.1), T_max=epochs), steps=epochs)
        observe(f"last rate of {epochs} epochs", rates[epochs - 1])
        assert min(rates[:epochs]) > 0.0
        assert agree(rates[epochs - 1], 0.1 * (1 - cos(pi / epochs)) / 2)
        assert rates[epochs] == 0.0


@spec("LR-05", violated_by=[cosine_that_stays_down, cosine_that_restarts])
def test_one_epoch_stands_still_and_the_next_ones_move_again(CosineAnnealingLR: Scheduler) -> None:
    """Training that goes on past T_max=5: the sixth epoch has rate 0 and changes no weight, the
    later ones change more and more."""
    training = DigitsTraining(rate=0.5)
    scheduler = CosineAnnealingLR(training.optimizer, T_max=5)
    moved = []
    for _ in range(10):
        before = training.weights()
        training.train(epochs=1, scheduler=scheduler)
        moved.append(float((training.weights() - before).norm()))
    falling, standstill, rising = moved[:5], moved[5], moved[6:]
    assert falling == sorted(falling, reverse=True)
    assert standstill == 0.0
    assert rising[0] > 0.0
    assert rising == sorted(rising)


class ClampsTMax(CosineAnnealingLR):
    """Takes at least 20 and at most 30 steps down, whatever T_max says."""

    def __init__(self, optimizer: Optimizer, T_max: int) -> None:
        super().__init__(optimizer, min(max(T_max, 20), 30))


# T_max for 20 epochs, the share of the base rate that is left after them, and why.
ENDS = [
    (10, 1.0, "half of them: down and all the way up again"),
    (20, 0.0, "all of them: at the bottom"),
    (40, 0.5, "twice as many: half-way down"),
    (20 * 6, (1 + cos(pi / 6)) / 2, "counted in 6 batches an epoch: hardly down, 93 % are left"),
]


@spec("LR-05", violated_by=[ClampsTMax, cosine_one_step_ahead])
def test_any_other_t_max_ends_elsewhere(CosineAnnealingLR: Scheduler) -> None:
    """T_max counts calls of scheduler.step(), whatever one call stands for."""
    for T_max, share, why in ENDS:
        rates = rates_of(CosineAnnealingLR(optimizer_with(0.1), T_max), steps=20)
        assert agree(rates[20], 0.1 * share), why


# --- A floor for training that may go on ----------------------------------------------------------


def linear_to_a_tenth(optimizer: Optimizer, steps: int) -> LRScheduler:
    """A straight line to a tenth of the rate, which it keeps."""
    return LinearLR(optimizer, start_factor=1.0, end_factor=0.1, total_iters=steps)


def polynomial_to_a_tenth(optimizer: Optimizer, steps: int) -> LRScheduler:
    """PolynomialLR has no argument for a floor: its formula as a lambda, with one."""
    return LambdaLR(optimizer, lambda t: max(0.1, (1 - min(t, steps) / steps) ** 2))


def linear_to_zero(optimizer: Optimizer, steps: int) -> LRScheduler:
    """Ends at zero."""
    return LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=steps)


def polynomial_to_zero(optimizer: Optimizer, steps: int) -> LRScheduler:
    """Ends at zero: PolynomialLR always does."""
    return PolynomialLR(optimizer, total_iters=steps, power=2)


@rule(
    "LR-06",
    "Let a schedule end above zero if training may go on after it.",
    kind="practice",
    source=f"{PAGE}.PolynomialLR.html",
    subject=[linear_to_a_tenth, polynomial_to_a_tenth],
    violated_by=[linear_to_zero, polynomial_to_zero],
    consequence="five more epochs on the digits after PolynomialLR or LinearLR(end_factor=0) has"
    " ended change none of the 640 weights; at a tenth of the rate they lower the loss by 8 %",
)
def test_epochs_after_the_end_of_the_schedule_still_learn(
    schedule_with_a_floor: Callable[[Optimizer, int], LRScheduler],
) -> None:
    """A floor of a tenth of the rate is enough to go on learning. The popular form, "always set a
    floor", asks for too much: where training ends together with its schedule, none is needed."""
    training = DigitsTraining(rate=0.5)
    scheduler = schedule_with_a_floor(training.optimizer, 5)
    training.train(epochs=5, scheduler=scheduler)
    loss_at_the_end_of_the_schedule = training.loss()
    training.train(epochs=5, scheduler=scheduler)
    assert training.loss() < 0.95 * loss_at_the_end_of_the_schedule


@spec(
    "LR-06",
    subject=[linear_to_zero, polynomial_to_zero],
    violated_by=[linear_to_a_tenth, polynomial_to_a_tenth],
)
def test_epochs_after_a_schedule_that_ended_at_zero_change_no_weight(
    schedule_down_to_zero: Callable[[Optimizer, int], LRScheduler],
) -> None:
    """They cost as much time as any others."""
    training = DigitsTraining(rate=0.5)
    scheduler = schedule_down_to_zero(training.optimizer, 5)
    training.train(epochs=5, scheduler=scheduler)
    weights_at_the_end_of_the_schedule = training.weights()
    training.train(epochs=5, scheduler=scheduler)
    assert torch.equal(training.weights(), weights_at_the_end_of_the_schedule)


def cosine_down_after_half_the_steps(
    optimizer: Optimizer, T_max: int, eta_min: float = 0.0
) -> LRScheduler:
    """Is down after half of T_max and stays there."""
    return cosine_that_stays_down(optimizer, T_max // 2, eta_min)


@spec("LR-06", subject=CosineAnnealingLR, violated_by=[cosine_down_after_half_the_steps])
def test_zero_right_at_the_end_of_training_needs_no_floor(CosineAnnealingLR: Scheduler) -> None:
    """Six epochs of training and a cosine of six: with eta_min=0 the loss is within 1 % of the
    loss with a floor of a hundredth of the rate."""
    without_floor, with_floor = DigitsTraining(rate=0.5), DigitsTraining(rate=0.5)
    without_floor.train(6, CosineAnnealingLR(without_floor.optimizer, T_max=6))
    with_floor.train(6, LambdaLR(with_floor.optimizer, lambda t: cosine(t, 6, 1.0, 0.01)))
    assert without_floor.loss() < 1.01 * with_floor.loss()


class DecaysByTheDecayAlone(AdamW):
    """Shrinks weights by weight_decay, whatever the learning rate."""

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.mul_(1 - group["weight_decay"])
        return result


@spec("LR-06", subject=AdamW, violated_by=[DecaysByTheDecayAlone])
def test_at_rate_zero_weight_decay_stops_too(AdamW: Callable[..., Optimizer]) -> None:
    """AdamW multiplies weights by 1 - lr * weight_decay, which is 1 at rate zero: nothing at all
    happens to the model."""
    weight = torch.tensor([3.0, -2.0], requires_grad=True)
    optimizer = AdamW([weight], lr=0.0, weight_decay=0.1)
    for _ in range(5):
        weight.grad = torch.tensor([1.0, 1.0])
        optimizer.step()
    assert weight.tolist() == [3.0, -2.0]
