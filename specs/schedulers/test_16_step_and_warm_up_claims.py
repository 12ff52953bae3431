"""Two popular statements: schedulers step per epoch, and embeddings are why we warm up.

At the end you know that a scheduler counts calls, so that its arguments are in the unit that you
call it in, and that warm-up tames the first updates of Adam, in an embedding or elsewhere.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    StepLR,
)

from reference.schedulers import cosine_annealing, cyclic, one_cycle
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe
from specs.schedulers.traces import Scheduler

# ---------------------------------------------------------------- CLAIM-19: who counts epochs?

#: A run of 4 epochs of 6 batches.
EPOCHS, BATCHES = 4, 6


def rate_in_each_epoch(optimizer: Optimizer, scheduler: LRScheduler) -> list[float]:
    """The learning rates of the run if the scheduler steps once per epoch."""
    rates = []
    for _ in range(EPOCHS):
        rates.append(optimizer.param_groups[0]["lr"])
        for _ in range(BATCHES):
            optimizer.step()
        scheduler.step()
    return rates


def rate_in_each_batch(optimizer: Optimizer, scheduler: LRScheduler) -> list[float]:
    """The learning rates of the run if the scheduler steps once per batch."""
    rates = []
    for _ in range(EPOCHS * BATCHES):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


class CountsBatches(CosineAnnealingLR):
    """Moves on with every sixth call, as if it knew the epochs."""

    calls = -1  # building a scheduler is its first call

    def step(self, epoch: int | None = None) -> None:
        self.calls += 1
        if self.calls % BATCHES == 0:
            super().step(epoch)


@rule(
    "CLAIM-19",
    "Every scheduler except OneCycleLR steps once per epoch.",
    kind="claim",
    source="https://docs.pytorch.org/docs/stable/optim.html#how-to-adjust-learning-rate",
    subject=CosineAnnealingLR,
    violated_by=[CountsBatches],
    consequence="StepLR(step_size=2), meant for every second epoch and called per batch, divides"
    " the rate by 10 eleven times in 4 epochs of 6 batches.",
    verdict="false",
)
def test_a_cosine_is_the_same_in_epochs_and_in_batches(CosineAnnealingLR: Scheduler) -> None:
    """T_max is a number of calls: 4 if you call per epoch, 24 if you call per batch."""
    optimizer = SGD([torch.zeros(1)], lr=0.1)
    per_epoch = rate_in_each_epoch(optimizer, CosineAnnealingLR(optimizer, T_max=EPOCHS))
    expected = [cosine_annealing(t, 0.1, T_max=EPOCHS) for t in range(EPOCHS)]
    assert agree(per_epoch, expected, scale=0.1)

    steps = EPOCHS * BATCHES
    optimizer = SGD([torch.zeros(1)], lr=0.1)
    per_batch = rate_in_each_batch(optimizer, CosineAnnealingLR(optimizer, T_max=steps))
    expected = [cosine_annealing(t, 0.1, T_max=steps) for t in range(steps)]
    assert agree(per_batch, expected, ulps=64, scale=0.1)

    first_batch_of_each_epoch = per_batch[::BATCHES]
    assert agree(first_batch_of_each_epoch, per_epoch, ulps=64, scale=0.1)


@spec("CLAIM-19", violated_by=[CountsBatches])
def test_the_wrong_unit_makes_a_cosine_swing(CosineAnnealingLR: Scheduler) -> None:
    """T_max=4, meant in epochs and called per batch: zero in batch 4, the full rate in batch 8."""
    optimizer = SGD([torch.zeros(1)], lr=0.1)
    rates = rate_in_each_batch(optimizer, CosineAnnealingLR(optimizer, T_max=EPOCHS))
    assert agree(rates[0::8], [0.1, 0.1, 0.1], ulps=64, scale=0.1)
    assert agree(rates[4::8], [0.0, 0.0, 0.0], ulps=64, scale=0.1)


def decays_at_every_call(optimizer: Optimizer, step_size: int) -> LRScheduler:
    """Ignores step_size."""
    del step_size
    return ExponentialLR(optimizer, gamma=0.1)


@spec("CLAIM-19", subject=StepLR, violated_by=[decays_at_every_call])
def test_the_wrong_unit_lets_the_rate_vanish(StepLR: Scheduler, observe: Observe) -> None:
    """step_size=2 is every second epoch or every second batch, as you call it."""
    optimizer = SGD([torch.zeros(1)], lr=0.1)
    per_epoch = rate_in_each_epoch(optimizer, StepLR(optimizer, step_size=2))
    assert agree(per_epoch, [0.1, 0.1, 0.01, 0.01])

    optimizer = SGD([torch.zeros(1)], lr=0.1)
    per_batch = rate_in_each_batch(optimizer, StepLR(optimizer, step_size=2))
    observe("last rate", per_batch[-1])
    assert agree(per_batch[-1], 0.1 * 0.1**11, scale=1e-12)


def turns_one_call_late(optimizer: Optimizer, step_size_up: int, **options: Any) -> LRScheduler:
    """Rises for one call more."""
    return CyclicLR(optimizer, step_size_up=step_size_up + 1, **options)


@spec("CLAIM-19", subject=CyclicLR, violated_by=[turns_one_call_late])
def test_cyclic_lr_is_made_for_batches_too(CyclicLR: Scheduler) -> None:
    """Its page, too, calls step() after every batch. Here each epoch of 6 batches is a cycle."""
    optimizer = SGD([torch.zeros(1)], lr=0.1)
    scheduler = CyclicLR(optimizer, base_lr=0.01, max_lr=0.1, step_size_up=BATCHES // 2)
    rates = rate_in_each_batch(optimizer, scheduler)

    steps = range(EPOCHS * BATCHES)
    expected = [cyclic(t, base_lr=0.01, max_lr=0.1, step_size_up=BATCHES // 2) for t in steps]
    assert agree(rates, expected)
    assert agree(rates[:BATCHES], [0.01, 0.04, 0.07, 0.1, 0.07, 0.04])


class WholeEpochsOnly(CosineAnnealingWarmRestarts):
    """Rounds the epoch that it is given."""

    def step(self, epoch: float | None = None) -> None:
        super().step(epoch if epoch is None else math.floor(epoch))


@spec("CLAIM-19", subject=CosineAnnealingWarmRestarts, violated_by=[WholeEpochsOnly])
def test_warm_restarts_can_be_told_a_fraction_of_an_epoch(
    CosineAnnealingWarmRestarts: Scheduler,
) -> None:
    """Called after each batch with epoch + share of the epoch, T_0 stays in epochs: here 2."""
    optimizer = SGD([torch.zeros(1)], lr=0.1)
    scheduler = CosineAnnealingWarmRestarts(optimizer, T_0=2)
    for epoch in range(EPOCHS):
        for batch in range(BATCHES):
            since_restart = (epoch + batch / BATCHES) % 2
            expected = 0.1 * (1 + math.cos(math.pi * since_restart / 2)) / 2
            # The share of the epoch is rounded, too, so a restart may come out as almost 2.
            assert agree(optimizer.param_groups[0]["lr"], expected, ulps=64, scale=0.1)
            optimizer.step()
            scheduler.step(epoch + (batch + 1) / BATCHES)


def counts_six_batches(optimizer: Optimizer, max_lr: float, total_steps: int) -> LRScheduler:
    """A OneCycleLR that takes total_steps for epochs."""
    return OneCycleLR(optimizer, max_lr, epochs=total_steps, steps_per_epoch=BATCHES)


@spec("CLAIM-19", subject=OneCycleLR, violated_by=[counts_six_batches])
def test_even_one_cycle_only_counts_calls(OneCycleLR: Scheduler) -> None:
    """With total_steps in epochs and one call per epoch, it runs through its whole cycle."""
    optimizer = SGD([torch.zeros(1)], lr=0.1)
    rates = rate_in_each_epoch(optimizer, OneCycleLR(optimizer, max_lr=0.1, total_steps=EPOCHS))
    expected = [one_cycle(t, max_lr=0.1, total_steps=EPOCHS) for t in range(EPOCHS)]
    assert agree(rates, expected, scale=0.1)


# ---------------------------------------------------------------- CLAIM-20: why warm up?


def embedding_near_zero(count: int, size: int) -> nn.Embedding:
    """Starts with a standard deviation of 0.02."""
    return nn.Embedding.from_pretrained(0.02 * torch.randn(count, size), freeze=False)


def embedding_from_a_uniform(count: int, size: int) -> nn.Embedding:
    """Has the mean 0 and the standard deviation 1 of the normal distribution, but not its shape."""
    bound = math.sqrt(3)
    return nn.Embedding.from_pretrained(
        torch.empty(count, size).uniform_(-bound, bound), freeze=False
    )


@rule(
    "CLAIM-20",
    "Warm-up is needed because embeddings start near zero.",
    kind="claim",
    source="https://docs.pytorch.org/docs/stable/generated/torch.nn.Embedding.html",
    subject=nn.Embedding,
    violated_by=[embedding_near_zero, embedding_from_a_uniform],
    consequence="nn.Embedding starts from N(0, 1). What warm-up changes is the first updates of"
    " Adam: with start_factor=0.01 the first one is 100 times smaller.",
    verdict="false",
)
def test_embeddings_start_from_the_standard_normal_distribution(
    Embedding: type[nn.Embedding],
) -> None:
    """64,000 entries: mean 0, deviation 1, and as many within 1 of zero as N(0, 1) has: 68 %.

    The bounds are five standard errors: 1 / sqrt(64,000) = 0.004 for the mean, less for the rest.
    """
    for seed in range(3):
        torch.manual_seed(seed)
        weight = Embedding(1000, 64).weight.detach()
        assert abs(weight.mean().item()) < 0.02
        assert abs(weight.std().item() - 1) < 0.02
        within_one = (weight.abs() < 1).double().mean().item()
        assert abs(within_one - math.erf(1 / math.sqrt(2))) < 0.02


@spec("CLAIM-20", violated_by=[embedding_near_zero])
def test_a_first_adam_update_changes_an_embedding_less_than_a_linear_layer(
    Embedding: type[nn.Embedding], observe: Observe
) -> None:
    """The update has the same size in both; relative to the weights it is ten times smaller.

    nn.Linear(64, 64) starts from a uniform distribution up to 1 / sqrt(64) = 0.125.
    """
    torch.manual_seed(0)
    embedding, linear = Embedding(100, 64), nn.Linear(64, 64, bias=False)
    optimizer = Adam([embedding.weight, linear.weight], lr=0.01)
    before = [embedding.weight.detach().clone(), linear.weight.detach().clone()]

    linear(embedding(torch.arange(100))).square().mean().backward()
    optimizer.step()

    relative_changes = [
        ((weight.detach() - start).abs().mean() / start.abs().mean()).item()
        for weight, start in zip([embedding.weight, linear.weight], before, strict=True)
    ]
    observe("relative changes of embedding and linear", relative_changes)
    assert relative_changes[1] > 10 * relative_changes[0]


def as_far_as_the_gradient(parameters: Any, lr: float) -> Optimizer:
    """Moves by lr * gradient."""
    return SGD(parameters, lr=lr)


class WithoutBiasCorrection(Adam):
    """Takes the averages as they are after one step, a tenth and a thousandth of their size."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        del closure
        for group in self.param_groups:
            for parameter in group["params"]:
                average, squares = 0.1 * parameter.grad, 0.001 * parameter.grad**2
                parameter -= group["lr"] * average / (squares.sqrt() + group["eps"])


@spec("CLAIM-20", subject=Adam, violated_by=[as_far_as_the_gradient, WithoutBiasCorrection])
def test_adams_first_update_is_the_learning_rate_itself(Adam: Any) -> None:
    """Ratio of two averages of one gradient: lr * g / (|g| + 1e-8), so +-lr for any g.

    Nothing is known about the gradients yet, and still each parameter moves by the full rate.
    """
    gradient = torch.tensor([1e-4, -0.1, 3.0, -1e3], dtype=torch.float64)
    parameter = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = Adam([parameter], lr=0.1)
    parameter.grad = gradient.clone()
    optimizer.step()

    assert agree(parameter, -0.1 * gradient / (gradient.abs() + 1e-8))
    assert ((parameter.detach().abs() - 0.1).abs() < 0.0001).all()


def starts_at_the_base_rate(
    optimizer: Optimizer, start_factor: float, total_iters: int
) -> LRScheduler:
    """A warm-up that does not warm up."""
    del start_factor
    return ConstantLR(optimizer, factor=1.0, total_iters=total_iters)


@spec("CLAIM-20", subject=LinearLR, violated_by=[starts_at_the_base_rate])
def test_warm_up_scales_those_first_updates(LinearLR: Scheduler) -> None:
    """With the same gradient in every step, Adam moves by the rate in every step.

    A warm-up from 0.01 over ten steps makes the first update 100 times smaller, and all ten
    together go 4.555 times the base rate instead of 10 times.
    """
    parameter = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = Adam([parameter], lr=0.1)
    scheduler = LinearLR(optimizer, start_factor=0.01, total_iters=10)
    updates = []
    for _ in range(10):
        before = parameter.item()
        parameter.grad = torch.ones(1, dtype=torch.float64)
        optimizer.step()
        scheduler.step()
        updates.append(before - parameter.item())

    # Adam's eps of 1e-8 beside a gradient of 1 makes each update smaller by 1e-8 of itself.
    factors = [0.01 + 0.99 * t / 10 for t in range(10)]
    assert agree([u * (1 + 1e-8) for u in updates], [0.1 * f for f in factors], ulps=64)
    assert agree(sum(factors), 4.555)
