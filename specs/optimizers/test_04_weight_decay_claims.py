"""Weight decay under Adam and AdamW: two popular statements on trial.

At the end you know how much a weight decays in a whole training: under AdamW by the sum of the
learning rates, under Adam by that sum divided by the size of the gradients.

The trainings are real: a linear classifier of the digits. The first pixel is black in every image,
so the weights of that pixel never get a gradient, and all that moves them is their decay.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler

from reference import data
from reference.training import train_one_epoch
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe

DECOUPLED_PAPER = "https://arxiv.org/abs/1711.05101"

MakeOptimizer = Callable[..., torch.optim.Optimizer]
MakeScheduler = Callable[[torch.optim.Optimizer], LRScheduler]

#: Steps of a training: 5 epochs of 12 batches.
STEPS = 60


def constant(optimizer: torch.optim.Optimizer) -> LRScheduler:
    """Keeps the learning rate."""
    return LambdaLR(optimizer, lambda _: 1.0)


def cosine(optimizer: torch.optim.Optimizer) -> LRScheduler:
    """Takes the learning rate to 0 along half a cosine. On average it is half of what it was."""
    return CosineAnnealingLR(optimizer, T_max=STEPS)


def trained_weights(
    make_optimizer: MakeOptimizer,
    make_scheduler: MakeScheduler = constant,
    loss_factor: float = 1.0,
    **options: float,
) -> tuple[Tensor, Tensor]:
    """The weights of a classifier of the digits, before and after training; 10 rows, 64 columns."""
    split = data.digits()
    torch.manual_seed(0)
    model = nn.Linear(64, 10)
    before = model.weight.detach().clone()
    random = torch.Generator().manual_seed(0)
    batches = data.batches(split.train_inputs, split.train_targets, 128, random)
    optimizer = make_optimizer(model.parameters(), **options)
    scheduler = make_scheduler(optimizer)

    def loss_function(logits: Tensor, targets: Tensor) -> Tensor:
        return loss_factor * F.cross_entropy(logits, targets)

    for _ in range(STEPS // len(batches)):
        train_one_epoch(model, batches, loss_function, optimizer, scheduler)
    return before, model.weight.detach()


# ---------------------------------------------------------------------------------------------
# AdamW and the schedule


class DecaysWithoutTheRate(torch.optim.AdamW):
    """Shrinks by weight_decay * p / 100 in every step, whatever the learning rate is by then."""

    def step(self, closure: Any = None) -> Any:
        decays = [group["weight_decay"] for group in self.param_groups]
        for group, decay in zip(self.param_groups, decays, strict=True):
            group["weight_decay"] = 0.0
            for p in group["params"]:
                p.data *= 1 - decay / 100
        result = super().step(closure)
        for group, decay in zip(self.param_groups, decays, strict=True):
            group["weight_decay"] = decay
        return result


@rule(
    "CLAIM-09",
    "AdamW makes weight decay independent of the learning-rate schedule.",
    kind="claim",
    source=DECOUPLED_PAPER,
    subject=torch.optim.AdamW,
    violated_by=[DecaysWithoutTheRate],
    consequence="a cosine schedule to 0 halves the decay of the whole training; a learning rate ten"
    " times smaller makes it ten times weaker",
    verdict="false",
)
def test_each_step_shrinks_a_weight_by_its_own_learning_rate(AdamW: MakeOptimizer) -> None:
    """With a gradient of 0, step t multiplies the weight by 1 - lr_t * weight_decay."""
    learning_rates = [0.01, 0.1, 0.05, 0.002, 0.0, 0.1]
    p = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    p.grad = torch.zeros_like(p)
    optimizer = AdamW([p], weight_decay=0.5)
    expected = 1.0

    for learning_rate in learning_rates:
        optimizer.param_groups[0]["lr"] = learning_rate
        optimizer.step()
        expected *= 1 - learning_rate * 0.5
        assert agree(p, expected)


@spec("CLAIM-09", violated_by=[DecaysWithoutTheRate])
def test_a_cosine_schedule_halves_the_decay_of_a_training(
    AdamW: MakeOptimizer, observe: Observe
) -> None:
    """The decay of a training is weight_decay * sum(lr_t): the schedule is in it."""

    def decay_of_black_pixel(make_scheduler: MakeScheduler, lr: float) -> float:
        before, after = trained_weights(AdamW, make_scheduler, lr=lr, weight_decay=1.0)
        return -math.log((after[:, 0] / before[:, 0]).mean().item())

    with_constant = decay_of_black_pixel(constant, lr=0.01)
    with_cosine = decay_of_black_pixel(cosine, lr=0.01)
    with_a_tenth = decay_of_black_pixel(constant, lr=0.001)

    observe("decay", {"constant": with_constant, "cosine": with_cosine, "a tenth": with_a_tenth})
    # In float32, each step rounds the weight once.
    assert with_constant == pytest.approx(-STEPS * math.log(1 - 0.01), rel=1e-4)
    assert with_cosine == pytest.approx(with_constant / 2, rel=0.02)
    assert with_a_tenth == pytest.approx(with_constant / 10, rel=0.01)


# ---------------------------------------------------------------------------------------------
# Adam and the size of the gradient


class DecouplesTheDecay(torch.optim.AdamW):
    """Decays as AdamW does."""


class CouplesTheDecay(torch.optim.Adam):
    """Decays as Adam does."""


def effect_of_decay(make_optimizer: MakeOptimizer, size: float) -> float:
    """How much lower 200 steps end with weight_decay = 0.1 than without, from a start at 1.

    The gradients are noise of one size, +size and -size in turn: they lead nowhere themselves.
    """

    def end(weight_decay: float) -> float:
        p = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
        optimizer = make_optimizer([p], lr=1e-4, weight_decay=weight_decay)
        for step in range(200):
            p.grad = torch.full_like(p, size if step % 2 == 0 else -size)
            optimizer.step()
        return p.item()

    return end(weight_decay=0.0) - end(weight_decay=0.1)


@rule(
    "CLAIM-10",
    "Adam's weight decay is weaker for parameters with large gradients.",
    kind="claim",
    source=DECOUPLED_PAPER,
    subject=torch.optim.Adam,
    violated_by=[DecouplesTheDecay],
    consequence="a loss multiplied by 100 gives Adam weights three times as large on the digits,"
    " since their decay is 100 times weaker; AdamW's weights stay the same",
    verdict="holds",
)
def test_adam_divides_the_decay_by_the_size_of_the_gradients(Adam: MakeOptimizer) -> None:
    """The decay joins the gradient and is divided by the root of the mean square, like all of it.

    With gradients of one size, far larger than weight_decay * p, that root is the size. A step then
    shrinks p by lr * weight_decay * p / size.
    """
    for size in (1.0, 10.0, 100.0):
        expected = 200 * 1e-4 * 0.1 / size
        # The mean needs some steps to forget its start, and the decay adds to the root itself.
        assert effect_of_decay(Adam, size) == pytest.approx(expected, rel=0.02)


@spec("CLAIM-10", subject=torch.optim.AdamW, violated_by=[CouplesTheDecay])
def test_adamw_decays_alike_for_every_size_of_the_gradients(AdamW: MakeOptimizer) -> None:
    for size in (1.0, 10.0, 100.0):
        assert effect_of_decay(AdamW, size) == pytest.approx(200 * 1e-4 * 0.1, rel=0.02)


@spec("CLAIM-10", violated_by=[DecouplesTheDecay])
def test_under_a_steady_gradient_adam_does_not_decay_at_all(Adam: MakeOptimizer) -> None:
    """g + weight_decay * p is as steady as g, and Adam's step is lr for every steady gradient."""
    ends = []
    for weight_decay in (0.0, 0.1):
        p = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
        optimizer = Adam([p], lr=1e-4, weight_decay=weight_decay)
        for _ in range(400):
            p.grad = torch.ones_like(p)
            optimizer.step()
        ends.append(p.item())

    without, with_decay = ends
    assert without == pytest.approx(1 - 400 * 1e-4)
    assert with_decay == pytest.approx(without, abs=1e-4)  # a decoupled decay takes 40 times that


@spec("CLAIM-10", violated_by=[DecouplesTheDecay])
def test_a_loss_multiplied_by_100_nearly_switches_the_decay_of_adam_off(
    Adam: MakeOptimizer, observe: Observe
) -> None:
    """A sum in place of a mean is such a factor. Without decay Adam would not notice it.

    Seen over five seeds: the weights have a length of 2.9, and 10 or more with the factor.
    """

    def length(loss_factor: float) -> float:
        _, weights = trained_weights(Adam, loss_factor=loss_factor, lr=0.02, weight_decay=0.1)
        return weights.norm().item()

    observe("length of the weights", {"loss": length(1.0), "100 times the loss": length(100.0)})
    assert length(100.0) > 3 * length(1.0)


@spec("CLAIM-10", subject=torch.optim.AdamW, violated_by=[CouplesTheDecay])
def test_a_loss_multiplied_by_100_changes_nothing_for_adamw(AdamW: MakeOptimizer) -> None:
    _, weights = trained_weights(AdamW, lr=0.02, weight_decay=0.1)
    _, of_large_loss = trained_weights(AdamW, loss_factor=100.0, lr=0.02, weight_decay=0.1)

    assert of_large_loss.norm().item() == pytest.approx(weights.norm().item(), rel=0.01)
