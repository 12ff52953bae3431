"""OneCycleLR, the shape: which learning rates it gives.

At the end you know where the cycle starts, peaks and ends, what its phases look like, and that the
learning rate that the optimizer was built with plays no part.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from reference.schedulers import one_cycle
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe
from specs.schedulers.traces import Scheduler, rates_of_steps

PAGE = "https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.OneCycleLR.html"

#: Two phases and three, both ways of annealing, and peaks that fall between two steps.
CYCLES: list[dict[str, Any]] = [
    {"total_steps": 20},
    {"total_steps": 20, "anneal_strategy": "linear"},
    {"total_steps": 20, "three_phase": True},
    {"total_steps": 30, "three_phase": True, "anneal_strategy": "linear", "pct_start": 0.4},
    {"total_steps": 25, "div_factor": 10.0, "final_div_factor": 100.0},  # 0.3 * 25 - 1 = 6.5
    {"total_steps": 18, "div_factor": 1.0, "pct_start": 0.75},  # 0.75 * 18 - 1 = 12.5
    {"total_steps": 9, "pct_start": 0.0},
]


# ---------------------------------------------------------------- LR-13: start, peak and end


def peaks_one_step_late(optimizer: Optimizer, max_lr: Any, **options: Any) -> LRScheduler:
    """Spends one more step on the rise."""
    later = options.get("pct_start", 0.3) + 1 / options["total_steps"]
    return OneCycleLR(optimizer, max_lr, **{**options, "pct_start": later})


def ends_at_max_lr_over_final_div_factor(
    optimizer: Optimizer, max_lr: Any, final_div_factor: float = 1e4, **options: Any
) -> LRScheduler:
    """Divides the peak, not the start, by final_div_factor."""
    of_the_start = final_div_factor / options.get("div_factor", 25.0)
    return OneCycleLR(optimizer, max_lr, final_div_factor=of_the_start, **options)


def ignores_div_factor(optimizer: Optimizer, max_lr: Any, **options: Any) -> LRScheduler:
    """Divides by 25, whatever div_factor says."""
    return OneCycleLR(optimizer, max_lr, **{**options, "div_factor": 25.0})


def ignores_the_strategy(optimizer: Optimizer, max_lr: Any, **options: Any) -> LRScheduler:
    """Anneals by cosine, whatever anneal_strategy says."""
    return OneCycleLR(optimizer, max_lr, **{**options, "anneal_strategy": "cos"})


def ignores_three_phase(optimizer: Optimizer, max_lr: Any, **options: Any) -> LRScheduler:
    """Has two phases, whatever three_phase says."""
    return OneCycleLR(optimizer, max_lr, **{**options, "three_phase": False})


@rule(
    "LR-13",
    "OneCycleLR starts at max_lr / div_factor, peaks at max_lr and ends at"
    " max_lr / (div_factor * final_div_factor), whatever rate the optimizer was built with.",
    kind="contract",
    source=PAGE,
    subject=OneCycleLR,
    violated_by=[peaks_one_step_late, ends_at_max_lr_over_final_div_factor],
)
def test_it_starts_peaks_and_ends_where_its_arguments_say(
    OneCycleLR: Scheduler, observe: Observe
) -> None:
    """Steps count from 0: a cycle of 20 steps peaks in step 0.3 * 20 - 1 = 5, ends in step 19."""
    optimizer = SGD([torch.zeros(1)], lr=0.1)
    scheduler = OneCycleLR(optimizer, max_lr=0.1, total_steps=20)
    rates = rates_of_steps(optimizer, scheduler, steps=20)
    observe("rates", rates)

    assert agree(rates[0], 0.1 / 25, scale=0.1)
    assert agree(rates[5], 0.1, scale=0.1)
    assert agree(rates[19], 0.1 / (25 * 10_000), scale=0.1)
    assert rates[:6] == sorted(rates[:6])
    assert rates[5:] == sorted(rates[5:], reverse=True)


@spec(
    "LR-13",
    violated_by=[
        peaks_one_step_late,
        ends_at_max_lr_over_final_div_factor,
        ignores_div_factor,
        ignores_the_strategy,
        ignores_three_phase,
    ],
)
def test_every_rate_between_follows_the_closed_form(OneCycleLR: Scheduler) -> None:
    """A peak that falls between two steps is used by neither, but both lie on its flanks."""
    for options in CYCLES:
        optimizer = SGD([torch.zeros(1)], lr=0.1)
        steps = options["total_steps"]
        scheduler = OneCycleLR(optimizer, max_lr=0.5, **options)
        expected = [one_cycle(t, max_lr=0.5, **options) for t in range(steps)]
        assert agree(rates_of_steps(optimizer, scheduler, steps), expected, scale=0.5)


@spec("LR-13", violated_by=[peaks_one_step_late, ends_at_max_lr_over_final_div_factor])
@given(
    total_steps=st.integers(4, 16),
    pct_start=st.floats(0.05, 0.45),
    anneal_strategy=st.sampled_from(["cos", "linear"]),
    three_phase=st.booleans(),
    div_factor=st.floats(1.0, 100.0),
    final_div_factor=st.floats(1.0, 1e5),
)
def test_so_it_does_with_any_arguments(OneCycleLR: Scheduler, **arguments: Any) -> None:
    """Only a rise of exactly one step is left out here; it has a test of its own below."""
    steps = arguments["total_steps"]
    assume(abs(arguments["pct_start"] * steps - 1) > 1e-6)
    optimizer = SGD([torch.zeros(1)], lr=0.1)
    rates = rates_of_steps(optimizer, OneCycleLR(optimizer, max_lr=0.5, **arguments), steps)
    assert agree(rates, [one_cycle(t, max_lr=0.5, **arguments) for t in range(steps)], ulps=64)


def takes_the_optimizers_rate(optimizer: Optimizer, **options: Any) -> LRScheduler:
    """Peaks at the learning rate that the optimizer was built with."""
    options["max_lr"] = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(optimizer, **options)


@spec("LR-13", violated_by=[takes_the_optimizers_rate])
def test_the_optimizers_own_rate_is_overwritten(OneCycleLR: Scheduler) -> None:
    """An optimizer that is built with lr=5.0 has the first rate of the cycle at once."""
    optimizer = SGD([torch.zeros(1)], lr=5.0)
    OneCycleLR(optimizer, max_lr=0.1, total_steps=20)
    assert agree(optimizer.param_groups[0]["lr"], 0.1 / 25, scale=0.1)


def gives_all_groups_the_first_peak(
    optimizer: Optimizer, max_lr: list[float], **options: Any
) -> LRScheduler:
    """Ignores all of a list of peaks but the first."""
    return OneCycleLR(optimizer, max_lr[0], **options)


@spec("LR-13", violated_by=[takes_the_optimizers_rate, gives_all_groups_the_first_peak])
def test_each_parameter_group_can_have_a_peak_of_its_own(OneCycleLR: Scheduler) -> None:
    """max_lr may be a list with one peak for each group. They are reached in the same step."""
    optimizer = SGD([{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)]}], lr=0.1)
    scheduler = OneCycleLR(optimizer, max_lr=[0.5, 0.02], total_steps=20)
    for t in range(20):
        rates = [group["lr"] for group in optimizer.param_groups]
        expected = [one_cycle(t, max_lr=peak, total_steps=20) for peak in (0.5, 0.02)]
        assert agree(rates, expected, scale=0.5)
        optimizer.step()
        scheduler.step()


def counts_one_epoch_more(
    optimizer: Optimizer, max_lr: float, epochs: int, steps_per_epoch: int
) -> LRScheduler:
    """Makes the cycle one epoch too long."""
    return OneCycleLR(optimizer, max_lr, total_steps=(epochs + 1) * steps_per_epoch)


def prefers_epochs(
    optimizer: Optimizer, max_lr: float, total_steps: int, epochs: int, steps_per_epoch: int
) -> LRScheduler:
    """Ignores total_steps where the length is also given in epochs."""
    del total_steps
    return OneCycleLR(optimizer, max_lr, epochs=epochs, steps_per_epoch=steps_per_epoch)


@spec("LR-13", violated_by=[counts_one_epoch_more])
def test_epochs_times_steps_per_epoch_is_the_length(OneCycleLR: Scheduler) -> None:
    """The length may be given as a product."""
    optimizer = SGD([torch.zeros(1)], lr=0.1)
    scheduler = OneCycleLR(optimizer, max_lr=0.1, epochs=3, steps_per_epoch=7)
    expected = [one_cycle(t, max_lr=0.1, total_steps=21) for t in range(21)]
    assert agree(rates_of_steps(optimizer, scheduler, 21), expected, scale=0.1)


@spec("LR-13", violated_by=[prefers_epochs])
def test_total_steps_wins_where_both_are_given(OneCycleLR: Scheduler) -> None:
    """epochs and steps_per_epoch are then ignored, not compared."""
    optimizer = SGD([torch.zeros(1)], lr=0.1)
    scheduler = OneCycleLR(optimizer, max_lr=0.1, total_steps=12, epochs=3, steps_per_epoch=7)
    expected = [one_cycle(t, max_lr=0.1, total_steps=12) for t in range(12)]
    assert agree(rates_of_steps(optimizer, scheduler, 12), expected, scale=0.1)


def makes_the_rise_longer(
    optimizer: Optimizer, max_lr: float, total_steps: int, pct_start: float
) -> LRScheduler:
    """Spends at least two steps on the rise."""
    return OneCycleLR(optimizer, max_lr, total_steps, pct_start=max(pct_start, 2 / total_steps))


@spec("LR-13", violated_by=[makes_the_rise_longer])
def test_a_rise_of_one_single_step_divides_by_zero(OneCycleLR: Scheduler, observe: Observe) -> None:
    """If pct_start * total_steps is 1, the peak is in step 0 and the rise has no length.

    A short run meets this with round numbers, and the message says nothing of schedules.
    """
    for total_steps, pct_start in [(10, 0.1), (5, 0.2), (4, 0.25)]:
        optimizer = SGD([torch.zeros(1)], lr=0.1)
        with pytest.raises(ZeroDivisionError) as error:
            OneCycleLR(optimizer, max_lr=0.1, total_steps=total_steps, pct_start=pct_start)
    observe("error", error.value)


@rule(
    "CLAIM-02",
    "OneCycleLR's last learning rate is max_lr / final_div_factor.",
    kind="claim",
    source=PAGE,
    subject=OneCycleLR,
    violated_by=[ends_at_max_lr_over_final_div_factor],
    consequence="With the defaults the last rate is 25 times smaller than that.",
    verdict="holds if div_factor is 1",
)
def test_final_div_factor_divides_the_first_rate_not_the_peak(OneCycleLR: Scheduler) -> None:
    """The last rate is the first rate / final_div_factor; the first rate is max_lr / div_factor."""
    for div_factor, final_div_factor in [(25.0, 1e4), (10.0, 100.0), (1.0, 1e4)]:
        optimizer = SGD([torch.zeros(1)], lr=0.1)
        scheduler = OneCycleLR(
            optimizer,
            max_lr=0.1,
            total_steps=20,
            div_factor=div_factor,
            final_div_factor=final_div_factor,
        )
        last_rate = rates_of_steps(optimizer, scheduler, steps=20)[-1]

        assert agree(last_rate, 0.1 / div_factor / final_div_factor, scale=0.1)
        claimed = agree(last_rate, 0.1 / final_div_factor, scale=0.1)
        assert bool(claimed) == (div_factor == 1)


# ---------------------------------------------------------------- CLAIM-04: two cosines


def linear_by_default(
    optimizer: Optimizer, max_lr: float, anneal_strategy: str = "linear", **options: Any
) -> LRScheduler:
    """Anneals along straight lines unless told otherwise."""
    return OneCycleLR(optimizer, max_lr, anneal_strategy=anneal_strategy, **options)  # type: ignore[arg-type]


def three_phases_by_default(
    optimizer: Optimizer, max_lr: float, three_phase: bool = True, **options: Any
) -> LRScheduler:
    """Has the three phases of the paper unless told otherwise."""
    return OneCycleLR(optimizer, max_lr, three_phase=three_phase, **options)


#: A rise of 4 steps and a fall of 16: the peak is in step 5 / 21 * 21 - 1 = 4.
RISE, FALL = 4, 16
SHORT_RISE = {"max_lr": 0.1, "total_steps": 21, "pct_start": 5 / 21}
START, PEAK, END = 0.1 / 25, 0.1, 0.1 / 25 / 1e4


@rule(
    "CLAIM-04",
    "OneCycleLR has two phases by default, and both follow a cosine.",
    kind="claim",
    source=PAGE,
    subject=OneCycleLR,
    violated_by=[linear_by_default, three_phases_by_default],
    verdict="holds",
)
def test_by_default_one_cosine_rises_and_another_one_falls(OneCycleLR: Scheduler) -> None:
    """Half a cosine from the start to the peak, half a cosine from the peak to the end."""
    optimizer = SGD([torch.zeros(1)], lr=0.1)
    rates = rates_of_steps(optimizer, OneCycleLR(optimizer, **SHORT_RISE), steps=21)

    for t in range(RISE):
        done = (1 - math.cos(math.pi * t / RISE)) / 2
        assert agree(rates[t], START + (PEAK - START) * done, scale=0.1)
    for t in range(FALL + 1):
        done = (1 - math.cos(math.pi * t / FALL)) / 2
        assert agree(rates[RISE + t], PEAK + (END - PEAK) * done, scale=0.1)


@spec("CLAIM-04", violated_by=[ignores_the_strategy])
def test_anneal_strategy_linear_straightens_both_phases(OneCycleLR: Scheduler) -> None:
    """Every step of a phase changes the rate by the same amount."""
    optimizer = SGD([torch.zeros(1)], lr=0.1)
    scheduler = OneCycleLR(optimizer, anneal_strategy="linear", **SHORT_RISE)
    rates = rates_of_steps(optimizer, scheduler, steps=21)
    changes = [after - before for before, after in pairwise(rates)]
    assert agree(changes, [(PEAK - START) / RISE] * RISE + [(END - PEAK) / FALL] * FALL, scale=0.1)


@spec("CLAIM-04", violated_by=[ignores_three_phase])
def test_three_phase_falls_as_it_rose_and_then_to_the_end(OneCycleLR: Scheduler) -> None:
    """The second phase mirrors the first, the third one goes from the start value to the end."""
    optimizer = SGD([torch.zeros(1)], lr=0.1)
    scheduler = OneCycleLR(optimizer, three_phase=True, **SHORT_RISE)
    rates = rates_of_steps(optimizer, scheduler, steps=21)

    rise, fall, tail = rates[:5], rates[4:9], rates[8:]
    assert agree(fall, rise[::-1], scale=0.1)
    assert agree([tail[0], tail[-1]], [START, END], scale=0.1)
    assert tail == sorted(tail, reverse=True)
