"""Warm-up: a short linear rise of the learning rate, then a long fall.

At the end you know how to build it from LinearLR, CosineAnnealingLR and SequentialLR, which
numbers have to agree, what training pays if they do not, and why SequentialLR is needed.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    SequentialLR,
)

from reference.data import batches, digits
from reference.training import train_one_epoch
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe
from specs.schedulers.traces import Scheduler, rates_of_steps

#: Pairs of W, the steps of the warm-up, and T, the steps of the whole run.
RUNS = [(5, 20), (1, 10), (30, 40), (23, 69), (10, 100)]

#: The warm-up starts at a hundredth of the base rate; the fall ends at the floor.
START_FACTOR = 0.01
FLOOR = 0.001


# ---------------------------------------------------------------- LR-16: the recipe


def warm_up_then_cosine(optimizer: Optimizer, W: int, T: int) -> LRScheduler:
    """The recipe: W steps of warm-up, and the rest of the T steps for the cosine."""
    rise = LinearLR(optimizer, start_factor=START_FACTOR, total_iters=W)
    fall = CosineAnnealingLR(optimizer, T_max=T - W, eta_min=FLOOR)
    return SequentialLR(optimizer, [rise, fall], milestones=[W])


def no_warm_up(optimizer: Optimizer, W: int, T: int) -> LRScheduler:
    """Starts at the base rate and takes all steps for the cosine."""
    del W
    return CosineAnnealingLR(optimizer, T_max=T, eta_min=FLOOR)


def warm_up_beyond_the_milestone(optimizer: Optimizer, W: int, T: int) -> LRScheduler:
    """Has come a tenth of the way up when the cosine takes over."""
    rise = LinearLR(optimizer, start_factor=START_FACTOR, total_iters=10 * W)
    fall = CosineAnnealingLR(optimizer, T_max=T - W, eta_min=FLOOR)
    return SequentialLR(optimizer, [rise, fall], milestones=[W])


def cosine_as_long_as_the_run(optimizer: Optimizer, W: int, T: int) -> LRScheduler:
    """Does not take the warm-up off the length of the cosine."""
    rise = LinearLR(optimizer, start_factor=START_FACTOR, total_iters=W)
    fall = CosineAnnealingLR(optimizer, T_max=T, eta_min=FLOOR)
    return SequentialLR(optimizer, [rise, fall], milestones=[W])


def cosine_in_epochs(optimizer: Optimizer, W: int, T: int) -> LRScheduler:
    """Steps after every batch but gives T_max in epochs: 3 of them."""
    del T
    rise = LinearLR(optimizer, start_factor=START_FACTOR, total_iters=W)
    fall = CosineAnnealingLR(optimizer, T_max=3, eta_min=FLOOR)
    return SequentialLR(optimizer, [rise, fall], milestones=[W])


@rule(
    "LR-16",
    "Warm up with SequentialLR([LinearLR(total_iters=W), CosineAnnealingLR(T_max=T - W)],"
    " milestones=[W]) for W of T steps.",
    kind="practice",
    source="https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.SequentialLR.html",
    subject=warm_up_then_cosine,
    violated_by=[
        no_warm_up,
        warm_up_beyond_the_milestone,
        cosine_as_long_as_the_run,
        cosine_in_epochs,
    ],
    consequence="Adam at a rate of 0.15 on digits: without warm-up the loss jumps above 3 and ends"
    " three times as high; with total_iters=10 * W it jumps above 4 at the milestone; with T_max in"
    " epochs it ends 1.5 times as high. (T_max=T ends above the floor; no loss is claimed for it.)",
)
def test_the_rate_rises_to_the_base_rate_and_falls_to_the_floor(
    warm_up_then_cosine: Scheduler,
) -> None:
    """The cosine begins at the milestone with ITS step 0, and so with the base rate of the group.

    rise: base * (0.01 + 0.99 * t / W)
    fall: floor + (base - floor) * (1 + cos(pi * (t - W) / (T - W))) / 2
    """
    for W, T in RUNS:
        groups = [{"params": [torch.zeros(1)], "lr": base} for base in (0.1, 0.02)]
        optimizer = SGD(groups)
        scheduler = warm_up_then_cosine(optimizer, W, T)
        for t in range(T + 1):
            for group, base in zip(optimizer.param_groups, (0.1, 0.02), strict=True):
                if t < W:
                    expected = base * (START_FACTOR + (1 - START_FACTOR) * t / W)
                else:
                    down = (1 + math.cos(math.pi * (t - W) / (T - W))) / 2
                    expected = FLOOR + (base - FLOOR) * down
                # Every step multiplies the rate before it: about three roundings a step.
                assert agree(group["lr"], expected, ulps=3 * T, scale=base)
            optimizer.step()
            scheduler.step()


@spec("LR-16", violated_by=[no_warm_up, warm_up_beyond_the_milestone])
def test_the_warm_up_ends_one_even_step_below_the_base_rate(
    warm_up_then_cosine: Scheduler, observe: Observe
) -> None:
    """W equal steps lead up, and the last one of them is the milestone: nothing jumps."""
    optimizer = SGD([torch.zeros(1)], lr=0.1)
    rates = rates_of_steps(optimizer, warm_up_then_cosine(optimizer, W=5, T=20), steps=20)
    observe("rates", rates)

    even_step = 0.1 * 0.99 / 5
    assert agree(rates[:6], [0.001 + t * even_step for t in range(6)], scale=0.1)
    assert max(rates) == rates[5]


# ---------------------------------------------------------------- LR-16: what a mistake costs


@cache  # the same run serves several specs
def training_losses(recipe: Scheduler, seed: int) -> list[float]:
    """Losses of three epochs of digits in 23 batches each, the first epoch for the warm-up."""
    data = digits()
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)
    )
    optimizer = Adam(model.parameters(), lr=0.15)
    scheduler = recipe(optimizer, W=23, T=3 * 23)
    shuffle = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(3):
        epoch = batches(data.train_inputs, data.train_targets, batch_size=64, generator=shuffle)
        losses += train_one_epoch(model, epoch, nn.functional.cross_entropy, optimizer, scheduler)
    return losses


#: The loss of a model that gives each of ten digits the same probability: log(10) = 2.3.
GUESSING = math.log(10)


def final_loss(losses: list[float]) -> float:
    """The mean loss of the last ten batches."""
    return sum(losses[-10:]) / 10


@spec("LR-16", violated_by=[no_warm_up])
def test_without_warm_up_the_loss_jumps_and_ends_higher(
    warm_up_then_cosine: Scheduler, observe: Observe
) -> None:
    """Large first steps drive the network to where guessing would be better."""
    for seed in range(3):
        warmed_up = training_losses(warm_up_then_cosine, seed)
        cold = training_losses(no_warm_up, seed)
        observe(f"seed {seed}: final losses", [final_loss(warmed_up), final_loss(cold)])

        assert max(warmed_up) < 1.1 * GUESSING
        assert max(cold) > 3
        assert final_loss(cold) > 3 * final_loss(warmed_up)


@spec("LR-16", violated_by=[warm_up_beyond_the_milestone])
def test_a_jump_at_the_milestone_throws_the_loss_up(
    warm_up_then_cosine: Scheduler, observe: Observe
) -> None:
    """From a tenth of the base rate to all of it in one step: as if there were no warm-up."""
    for seed in range(3):
        highest = max(training_losses(warm_up_then_cosine, seed))
        highest_after_jump = max(training_losses(warm_up_beyond_the_milestone, seed))
        observe(f"seed {seed}: highest losses", [highest, highest_after_jump])

        assert highest < 1.1 * GUESSING
        assert highest_after_jump > 4


@spec("LR-16", violated_by=[cosine_in_epochs])
def test_a_cosine_that_is_counted_in_epochs_does_not_settle(
    warm_up_then_cosine: Scheduler, observe: Observe
) -> None:
    """With T_max=3 the rate swings between the base rate and the floor every three batches."""
    for seed in range(3):
        settled = final_loss(training_losses(warm_up_then_cosine, seed))
        swinging = final_loss(training_losses(cosine_in_epochs, seed))
        observe(f"seed {seed}: final losses", [settled, swinging])

        assert swinging > 1.5 * settled


# ---------------------------------------------------------------- LR-17: not side by side


def runs_all_at_once(
    optimizer: Optimizer, schedulers: list[LRScheduler], milestones: list[int]
) -> LRScheduler:
    """A SequentialLR that steps all of its schedulers in every step."""
    del milestones
    return ChainedScheduler(schedulers, optimizer)


def runs_one_after_the_other(schedulers: list[LRScheduler], optimizer: Optimizer) -> LRScheduler:
    """A ChainedScheduler that waits for the end of the warm-up."""
    return SequentialLR(optimizer, schedulers, milestones=[5])


@rule(
    "LR-17",
    "A warm-up and a cosine that are stepped side by side multiply their factors; SequentialLR is"
    " what runs one after the other.",
    kind="contract",
    source="https://docs.pytorch.org/docs/stable/optim.html#how-to-adjust-learning-rate",
    subject=SequentialLR,
    violated_by=[runs_all_at_once],
    consequence="A warm-up of 5 steps beside a cosine of 15 peaks at 75 % of the base rate and is"
    " at zero five steps before the end of the run.",
)
def test_one_after_the_other_they_reach_the_full_rate(SequentialLR: Scheduler) -> None:
    """The highest rate is the base rate, at the milestone; the lowest one is the last of 20."""
    optimizer = SGD([torch.zeros(1)], lr=0.1)
    rise = LinearLR(optimizer, start_factor=0.1, total_iters=5)
    fall = CosineAnnealingLR(optimizer, T_max=15)
    scheduler = SequentialLR(optimizer, [rise, fall], milestones=[5])
    rates = rates_of_steps(optimizer, scheduler, steps=20)

    assert agree(rates[5], 0.1, scale=0.1)
    assert max(rates) == rates[5]
    assert min(rates) == rates[19]
    assert rates[19] > 0


@spec("LR-17", subject=ChainedScheduler, violated_by=[runs_one_after_the_other])
def test_side_by_side_their_factors_multiply(ChainedScheduler: Scheduler, observe: Observe) -> None:
    """ChainedScheduler does what two step() calls in a row do: both schedules start at once."""
    optimizer = SGD([torch.zeros(1)], lr=0.1)
    rise = LinearLR(optimizer, start_factor=0.1, total_iters=5)
    fall = CosineAnnealingLR(optimizer, T_max=15)
    chain = ChainedScheduler([rise, fall], optimizer)
    rates = rates_of_steps(optimizer, chain, steps=20)
    observe("rates", rates)

    optimizer = SGD([torch.zeros(1)], lr=0.1)
    rise = LinearLR(optimizer, start_factor=0.1, total_iters=5)
    fall = CosineAnnealingLR(optimizer, T_max=15)
    rates_by_hand = []
    for _ in range(20):
        rates_by_hand.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        rise.step()
        fall.step()
    assert rates == rates_by_hand

    for t in range(20):
        risen = 0.1 + 0.9 * min(t, 5) / 5
        fallen = (1 + math.cos(math.pi * t / 15)) / 2
        assert agree(rates[t], 0.1 * risen * fallen, ulps=64, scale=0.1)
    assert agree(max(rates), 0.075, ulps=64, scale=0.1)  # step 5: (1 + cos(pi / 3)) / 2 = 3 / 4
    assert agree(rates[15], 0.0, ulps=64, scale=0.1)
    assert rates[19] > rates[15]
