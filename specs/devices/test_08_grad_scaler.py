"""GradScaler and master weights: training with numbers of 16 bits.

At the end you know which gradients float16 loses, how a scaled loss saves them, in which order a
training step with a scaler goes and what each mistake costs, what a skipped step means for the
schedule, and why weights are kept in float32. A scaler works on a CPU as it does on a GPU.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.amp import GradScaler
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import ExponentialLR

from reference import data
from reference.precision import LossScale, step_with_master_weights, train_step_with_scaler
from reference.training import clip_grad_norm_
from specs.harness import raising, rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe

SOURCE = "https://docs.pytorch.org/docs/stable/amp.html#gradient-scaling"

Scaler = Callable[..., GradScaler]
TrainStep = Callable[..., float]


def weights(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values))


def train(scaler: GradScaler, weight: nn.Parameter, optimizer: Optimizer, *gradient: float) -> None:
    """One step in the documented order, with a loss that has this gradient."""
    optimizer.zero_grad()
    scaler.scale((weight * torch.tensor(gradient)).sum()).backward()
    scaler.step(optimizer)
    scaler.update()


# Why there is a scale


class ScalesNothing(GradScaler):
    """Leaves the loss as it is."""

    def __init__(self, device: str = "cuda", **_: Any) -> None:
        super().__init__(device, enabled=False)


@rule(
    "AMP-09",
    "float16 makes gradients of 2**-25 and less 0; with a loss that is scaled by S, all above"
    " 2**-25 / S survive.",
    kind="contract",
    source=SOURCE,
    subject=GradScaler,
    violated_by=[ScalesNothing],
)
def test_a_scale_of_1024_saves_ten_more_powers_of_two(GradScaler: Scaler) -> None:
    """The gradient of an output has its dtype; the smallest number of float16 is 2**-24."""
    for scale in (1.0, 2.0**10, 2.0**16):
        scaler, weight = GradScaler("cpu", init_scale=scale), weights(1.0)
        optimizer = SGD([weight], lr=1.0)
        for power in range(20, 45):
            weight.grad = None
            with torch.autocast("cpu", dtype=torch.float16):
                output = F.linear(torch.ones(1, 1), weight[None])
            scaler.scale(output.float().sum() * 2.0**-power).backward()
            scaler.unscale_(optimizer)
            scaler.update()
            assert weight.grad == (2.0**-power if scale * 2.0**-power > 2.0**-25 else 0)


# How the scale is found


class GrowsOneStepLater(GradScaler):
    """Takes one good step more than its growth_interval."""

    def __init__(self, device: str = "cuda", growth_interval: int = 2000, **options: Any) -> None:
        super().__init__(device, growth_interval=growth_interval + 1, **options)


@rule(
    "AMP-10",
    "The scale falls after each bad step, and grows after growth_interval good steps in a row.",
    kind="contract",
    source=SOURCE,
    subject=GradScaler,
    violated_by=[GrowsOneStepLater],
)
def test_the_scale_falls_at_once_and_grows_slowly(GradScaler: Scaler) -> None:
    """It grows by 4 after two good steps; a step with an infinity or NaN takes half of it."""
    scaler = GradScaler("cpu", init_scale=8.0, growth_factor=4.0, growth_interval=2)
    weight, scales = weights(1.0), []
    for gradient in (1.0, 1.0, math.inf, 1.0, math.nan, 1.0, 1.0, 1.0, 1.0):
        train(scaler, weight, SGD([weight], lr=0.1), gradient)
        scales.append(scaler.get_scale())
    assert scales == [8, 32, 16, 16, 8, 8, 32, 32, 128]


@spec("AMP-10", violated_by=[GrowsOneStepLater])
@given(
    gradients=st.lists(st.sampled_from([1.0, 1.0, 1.0, math.inf, -math.inf, math.nan]), max_size=6),
    init_scale=st.sampled_from([1.0, 2.0**126]),
    options=st.builds(
        dict,
        growth_factor=st.sampled_from([1.5, 8.0]),
        backoff_factor=st.sampled_from([0.5, 0.1]),
        growth_interval=st.integers(1, 3),
    ),
)
def test_any_sequence_of_steps_gives_the_scale_of_the_definition(
    GradScaler: Scaler, gradients: list[float], init_scale: float, options: dict[str, Any]
) -> None:
    """Good steps change the weight, bad ones do not. The scale stays finite: it ends at 2**128."""
    scaler = GradScaler("cpu", init_scale=init_scale, **options)
    expected = LossScale(init_scale, **options)
    weight, good_steps = weights(1.0), 0
    optimizer = SGD([weight], lr=0.125)
    for gradient in gradients:
        train(scaler, weight, optimizer, gradient)
        expected.update(math.isfinite(gradient))
        good_steps += math.isfinite(gradient)
        assert agree(torch.tensor(scaler.get_scale()), expected.scale, scale=0.0)  # of float32
        assert agree(weight.detach(), [1 - 0.125 * good_steps])


# What a bad step does


class StepsAnyway(GradScaler):
    """Divides the gradients and gives them to the optimizer, whatever they are."""

    def step(self, optimizer: Optimizer) -> None:
        self.unscale_(optimizer)
        optimizer.step()


@rule(
    "AMP-03",
    "A step with an infinity or NaN is skipped, and the scale falls; the scheduler has to wait.",
    kind="contract",
    source=SOURCE,
    subject=GradScaler,
    violated_by=[StepsAnyway],
    consequence="A scale that starts too high costs a few steps. A schedule that moves on in them"
    " trains with lower rates: after three skipped steps, 0.0125 in place of 0.1.",
)
def test_one_bad_number_skips_the_step_of_its_optimizer(GradScaler: Scaler) -> None:
    """No weight changes, no momentum. Another optimizer takes its step; they share the scale."""
    for bad in (math.inf, -math.inf, math.nan):
        scaler, weight, other = GradScaler("cpu"), weights(1.0, 2.0), weights(3.0)
        optimizer, other_optimizer = Adam([weight], lr=0.5), SGD([other], lr=0.5)
        loss = (weight * torch.tensor([1.0, bad])).sum() + other.sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.step(other_optimizer)
        scaler.update()

        assert weight.tolist() == [1, 2]
        assert not optimizer.state
        assert other.tolist() == [3 - 0.5]
        assert scaler.get_scale() == 2.0**16 / 2


def steps_the_schedule_always(*arguments: Any, **options: Any) -> float:
    """Steps the scheduler last, but also when the optimizer's step was skipped."""
    *others, scheduler = arguments
    loss = train_step_with_scaler(*others, **options)
    scheduler.step()
    return loss


@spec("AMP-03", subject=train_step_with_scaler, violated_by=[steps_the_schedule_always])
def test_the_schedule_waits_for_the_first_real_step(train_step_with_scaler: TrainStep) -> None:
    """A gradient of 4 times 65536 is too large for float16, which ends at 65504."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)  # the gradient of (w * 1 - 0)**2 is 2 * w = 4
    optimizer, scaler = SGD(model.parameters(), lr=0.1), GradScaler("cpu")
    scheduler = ExponentialLR(optimizer, gamma=0.5)
    steps = []
    warnings.simplefilter("ignore")  # that is for the next spec
    for _ in range(5):
        one, zero = torch.ones(1, 1), torch.zeros(1, 1)
        train_step_with_scaler(model, one, zero, F.mse_loss, optimizer, scaler, scheduler)
        steps.append((scaler.get_scale(), optimizer.param_groups[0]["lr"]))

    tried = [(2.0**15, 0.1), (2.0**14, 0.1), (2.0**13, 0.1)]
    assert steps == [*tried, (2.0**13, 0.1 * 0.5), (2.0**13, 0.1 * 0.25)]


@spec("AMP-03", subject=GradScaler, violated_by=[StepsAnyway])
def test_a_scheduler_that_does_not_wait_warns_of_an_order_that_is_right(GradScaler: Scaler) -> None:
    """Known upstream as issues 44511 and 55585: the first step was skipped, so it is not seen."""
    scaler, weight = GradScaler("cpu"), weights(1.0)
    optimizer = SGD([weight], lr=0.1)
    scheduler = ExponentialLR(optimizer, gamma=0.5)
    train(scaler, weight, optimizer, math.inf)
    with pytest.warns(UserWarning, match=r"Detected call of `lr_scheduler.step\(\)` before"):
        scheduler.step()


# The order of a step


def clips_before_dividing(*step: Any, max_norm: float = math.inf) -> float:
    """Clips gradients that still have the scale in them."""
    model, inputs, targets, loss_function, optimizer, scaler = step
    optimizer.zero_grad()
    loss = loss_function(model(inputs), targets)
    scaler.scale(loss).backward()
    clip_grad_norm_(model.parameters(), max_norm)
    scaler.step(optimizer)
    scaler.update()
    return loss.item()


def never_divides(*step: Any, **_: Any) -> float:
    """Calls optimizer.step(), which knows nothing of the scale."""
    model, inputs, targets, loss_function, optimizer, scaler = step
    optimizer.zero_grad()
    loss = loss_function(model(inputs), targets)
    scaler.scale(loss).backward()
    optimizer.step()
    return loss.item()


@rule(
    "AMP-02",
    "Scale the loss, backward, unscale_, clip, scaler.step, scaler.update: in this order.",
    kind="practice",
    source="https://docs.pytorch.org/docs/stable/notes/amp_examples.html#gradient-clipping",
    subject=train_step_with_scaler,
    violated_by=[clips_before_dividing, never_divides],
    consequence="Gradients that are clipped to 1 before they are divided by 65536 have a norm of"
    " 1/65536: on digits an epoch ends at a test loss of 2.3, where it started, and not at 1.1.",
)
def test_the_scale_is_not_seen_in_the_updates(train_step_with_scaler: TrainStep) -> None:
    """The loss is 4 * w, so its gradient is 4: lr * 4 a step, or lr * 1 if clipped to 1."""
    for options, a_step in (({}, 0.1 * 4), ({"max_norm": 1.0}, 0.1)):
        model = nn.Linear(1, 1, bias=False)
        nn.init.constant_(model.weight, 1.0)
        optimizer, scaler = SGD(model.parameters(), lr=0.1), GradScaler("cpu", init_scale=2.0)
        step = (model, torch.tensor([[4.0]]), torch.zeros(1, 1), torch.sub, optimizer, scaler)
        losses = [train_step_with_scaler(*step, **options) for _ in range(3)]

        assert agree(model.weight.detach(), [[1 - 3 * a_step]], ulps=64)
        # In float16, which has 11 bits
        assert agree(torch.tensor(losses).half(), [4, 4 - 4 * a_step, 4 - 8 * a_step])


@spec("AMP-02", violated_by=[clips_before_dividing, never_divides])
def test_an_epoch_on_digits_ends_where_float32_ends(
    train_step_with_scaler: TrainStep, observe: Observe
) -> None:
    """At 1.08 to 1.10 over five seeds, in float32 and in float16."""
    digits = data.digits()
    torch.manual_seed(0)
    model = nn.Linear(64, 10)
    optimizer, scaler = SGD(model.parameters(), lr=0.5), GradScaler("cpu")
    for batch in data.batches(digits.train_inputs, digits.train_targets, 64):
        step = (model, *batch, F.cross_entropy, optimizer, scaler)
        train_step_with_scaler(*step, max_norm=1.0)
    test_loss = F.cross_entropy(model(digits.test_inputs), digits.test_targets).item()

    observe("test loss", test_loss)
    assert 1.05 < test_loss < 1.15


@spec("AMP-02", subject=GradScaler, violated_by=[ScalesNothing])
def test_calls_in_another_order_raise(GradScaler: Scaler) -> None:
    """With gradient accumulation: unscale_ once, after the last of the micro-batches."""
    scaler, weight = GradScaler("cpu"), weights(1.0)
    optimizer = SGD([weight], lr=0.1)
    with pytest.raises(AssertionError, match="Attempted step but _scale is None"):
        scaler.step(optimizer)
    scaler.scale(weight.sum()).backward()
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match=r"unscale_\(\) has already been called"):
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    with pytest.raises(RuntimeError, match=r"step\(\) has already been called"):
        scaler.step(optimizer)


# Going on later, and the names


class ForgetsItsCount(GradScaler):
    """Starts to count good steps from 0 when a state is loaded."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state | {"_growth_tracker": 0})


@rule(
    "AMP-11",
    "A checkpoint needs the scaler's state: scale, factors, interval and count of good steps.",
    kind="contract",
    source="https://docs.pytorch.org/tutorials/recipes/recipes/amp_recipe.html#saving-resuming",
    subject=GradScaler,
    violated_by=[ForgetsItsCount],
)
def test_a_scaler_goes_on_from_its_state(GradScaler: Scaler) -> None:
    """Two of three good steps are done; the third one comes after loading, and doubles."""
    # Scale, growth factor, backoff factor, growth interval, good steps
    new = [*GradScaler("cpu").state_dict().values()]
    assert new == [*vars(LossScale()).values()] == [2.0**16, 2, 0.5, 2000, 0]
    scaler, weight = GradScaler("cpu", init_scale=8.0, growth_interval=3), weights(1.0)
    optimizer = SGD([weight], lr=0.1)
    for _ in range(2):
        train(scaler, weight, optimizer, 1.0)
    resumed = GradScaler("cpu")
    resumed.load_state_dict(scaler.state_dict())
    train(resumed, weight, optimizer, 1.0)
    assert resumed.get_scale() == 16


@rule(
    "AMP-05",
    "Write torch.amp.GradScaler and torch.autocast: the names in torch.cuda.amp are deprecated.",
    kind="contract",
    source="https://docs.pytorch.org/docs/stable/amp.html",
    subject=[GradScaler, torch.autocast],
    violated_by=[
        raising(FutureWarning, torch.cuda.amp.GradScaler),
        raising(FutureWarning, torch.cuda.amp.autocast),
    ],
)
def test_the_new_names_bring_no_warning(new_name: Callable[..., Any]) -> None:
    """The old ones bring a FutureWarning, as those in torch.cpu.amp do."""
    warnings.simplefilter("error", FutureWarning)
    new_name("cpu")


# Weights in float32


def step_without_copies(model: nn.Module, masters: Any, optimizer: Optimizer) -> None:  # noqa: ARG001
    """Rounds each new weight to the dtype of the model."""
    SGD(model.parameters(), lr=optimizer.param_groups[0]["lr"]).step()


def rounds_the_copies(model: nn.Module, masters: Any, optimizer: Optimizer) -> None:
    """Takes the rounded weights back into the float32 copies."""
    step_with_master_weights(model, masters, optimizer)
    for master, parameter in zip(masters, model.parameters(), strict=True):
        master.copy_(parameter.detach())


@rule(
    "AMP-12",
    "Keep the weights in float32 and compute with 16-bit copies of them.",
    kind="practice",
    source="https://arxiv.org/abs/1710.03740",
    subject=step_with_master_weights,
    violated_by=[step_without_copies, rounds_the_copies],
    consequence="On digits, 50 steps at lr=0.001 with weights in bfloat16 lower the loss by less"
    " than a fifth of what they do with weights in float32.",
)
def test_small_updates_add_up_on_digits(
    step_with_master_weights: Callable[..., None], observe: Observe
) -> None:
    """Over five seeds: 99 to 101 % of what float32 gains, and 10 to 20 % without the copies."""
    digits = data.digits()
    inputs, targets = digits.train_inputs[:256], digits.train_targets[:256]

    def gain(step: Callable[..., None], dtype: torch.dtype) -> float:
        torch.manual_seed(0)
        model = nn.Linear(64, 10)
        masters = [parameter.detach().clone() for parameter in model.parameters()]
        optimizer, losses = SGD(masters, lr=0.001), []
        model.to(dtype)
        for _ in range(51):
            loss = F.cross_entropy(model(inputs.to(dtype)).float(), targets)
            losses.append(loss.item())
            model.zero_grad()
            loss.backward()
            step(model, masters, optimizer)
        return losses[0] - losses[-1]

    in_float32 = gain(step_without_copies, torch.float32)
    in_bfloat16 = gain(step_with_master_weights, torch.bfloat16)

    observe("gain in bfloat16, in float32", [in_bfloat16, in_float32])
    assert 0.95 < in_bfloat16 / in_float32 < 1.05
