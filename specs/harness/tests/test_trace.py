"""The trace: every event in order, and nothing left behind on the objects that were watched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ExponentialLR

from specs.harness.trace import (
    Backward,
    Forward,
    LossTaken,
    OptimizerStep,
    SchedulerStep,
    learning_rates_used,
    recorded,
    steps_in_order,
)


def test_every_event_is_recorded_in_order() -> None:
    model, loss_function = nn.Identity(), nn.MSELoss()
    weight = nn.Parameter(torch.tensor([0.25, 0.5]))
    model.register_parameter("weight", weight)
    other: dict[str, Any] = {"params": [nn.Parameter(torch.ones(1))], "lr": 0.01}
    optimizer = SGD([{"params": [weight]}, other], lr=0.1)
    scheduler = ExponentialLR(optimizer, gamma=0.5)

    with recorded(
        model=model, loss_function=loss_function, optimizer=optimizer, scheduler=scheduler
    ) as events:
        for _ in range(2):
            loss_function(model(torch.ones(2)) * weight, torch.zeros(2)).backward()
            optimizer.step()
            scheduler.step()

    first_step = [
        Forward(training=True, records_gradients=True),
        LossTaken(lowest=0.25, highest=0.5),
        Backward(onto_old_gradient=False),
        OptimizerStep(learning_rates=(0.1, 0.01)),
        SchedulerStep(),
    ]
    assert events[:5] == first_step
    assert events[7:9] == [Backward(onto_old_gradient=True), OptimizerStep((0.05, 0.005))]
    assert learning_rates_used(events) == [0.1, 0.05]
    assert steps_in_order(events) == ["optimizer", "scheduler"] * 2


def test_a_model_in_eval_mode_without_gradients_is_seen_as_such() -> None:
    model = nn.Linear(1, 1).eval()
    with recorded(model=model) as events, torch.no_grad():
        model(torch.ones(1))
    assert events == [Forward(training=False, records_gradients=False)]


def test_nothing_is_watched_after_the_block_even_if_it_fails() -> None:
    model = nn.Linear(1, 1)
    optimizer = SGD(model.parameters(), lr=0.1)
    scheduler = ExponentialLR(optimizer, gamma=0.5)
    with (
        pytest.raises(RuntimeError, match="in the middle"),
        recorded(model=model, optimizer=optimizer, scheduler=scheduler) as events,
    ):
        raise RuntimeError("in the middle")
    model(torch.ones(1)).backward()
    optimizer.step()
    scheduler.step()
    assert events == []
    assert "step" not in vars(scheduler)
