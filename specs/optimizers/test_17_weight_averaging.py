"""Averages of the weights over a training: the moving average (EMA), and the equal one (SWA).

At the end you know what AveragedModel computes, how long an average remembers, and which learning
rate SWALR gives. What an average does to a training, and to BatchNorm, is shown in
test_18_averages_and_batch_norm.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ExponentialLR
from torch.optim.swa_utils import (
    SWALR,
    AveragedModel,
    get_ema_avg_fn,
    get_ema_multi_avg_fn,
)

from reference import averaging
from reference.averaging import equal_average, exponential_average, swa_learning_rate
from specs.harness import rule, spec
from specs.harness.agreement import agree

DOCS = "https://docs.pytorch.org/docs/stable/"
AVERAGING = f"{DOCS}optim.html#weight-averaging-swa-and-ema"
SWA_UTILS = f"{DOCS}generated/torch.optim.swa_utils."

MakeAverage = Callable[..., Any]

#: The weight of a model at each update. Before the first one it was 100.
WEIGHTS = [1.0, 2.0, -4.0, 8.0, 0.5]


def one_weight(value: float) -> nn.Module:
    """A model with a single weight, of float64."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, value)
    return model


def averages(AveragedModel: MakeAverage, **options: Any) -> list[float]:
    """The averaged weight after each update."""
    model = one_weight(100.0)
    averaged = AveragedModel(model, **options)
    seen = []
    for weight in WEIGHTS:
        nn.init.constant_(model.weight, weight)
        averaged.update_parameters(model)
        seen.append(averaged.module.weight.item())
    return seen


class CountsItsStart(averaging.AveragedModel):
    """Takes the model that it was built with for the first one to average."""

    def __init__(self, model: nn.Module, *args: Any, **options: Any) -> None:
        super().__init__(model, *args, **options)
        self.n_averaged = 1


class NotACopy(averaging.AveragedModel):
    """Refers to the model, and so has no weights of its own."""

    def __init__(self, model: nn.Module, *args: Any, **options: Any) -> None:
        super().__init__(model, *args, **options)
        self.module = model


class CountsFromZero(averaging.AveragedModel):
    """Tells the averaging function one model too few."""

    def __init__(self, model: nn.Module, avg_fn: Any = None, **options: Any) -> None:
        function = avg_fn or get_swa_avg()
        super().__init__(model, lambda old, new, n: function(old, new, n - 1), **options)


class AlwaysEqual(averaging.AveragedModel):
    """Takes an averaging function, and averages equally."""

    def __init__(self, model: nn.Module, avg_fn: Any = None, **options: Any) -> None:  # noqa: ARG002
        super().__init__(model, **options)


class SwapsTheWeights(averaging.AveragedModel):
    """Hands the averaging function the new value as the average, and the other way round."""

    def __init__(self, model: nn.Module, avg_fn: Any = None, **options: Any) -> None:
        swapped = avg_fn and (lambda old, new, n: avg_fn(new, old, n))
        super().__init__(model, swapped, **options)


def get_swa_avg() -> averaging.Update:
    """The equal average, as an averaging function."""
    return lambda old, new, number: old + (new - old) / (number + 1)


@rule(
    "OPT-10",
    "AveragedModel copies the model at the first update; each later one sets every parameter to"
    " avg_fn(average, parameter, number averaged): by default the mean of all, with an EMA"
    " d * average + (1 - d) * parameter.",
    kind="contract",
    source=AVERAGING,
    subject=[AveragedModel, averaging.AveragedModel],
    violated_by=[CountsItsStart, NotACopy, CountsFromZero],
    consequence="an EMA with the default decay of 0.999 is, after 69 steps, 93 % the first model",
)
def test_by_default_it_is_the_mean_of_the_models_that_it_was_given(
    AveragedModel: MakeAverage,
) -> None:
    """What the model was when the average was built does not count: it is 100 here."""
    assert agree(averages(AveragedModel), equal_average(WEIGHTS))


@spec("OPT-10", violated_by=[CountsItsStart, NotACopy, AlwaysEqual, SwapsTheWeights])
def test_with_an_ema_every_step_back_weighs_d_times_less(AveragedModel: MakeAverage) -> None:
    """The first value has no 1 - d before it: there is no bias to correct, but a long memory."""
    for decay in (0.0, 0.5, 0.9, 1.0):
        got = averages(AveragedModel, avg_fn=get_ema_avg_fn(decay))
        assert agree(got, exponential_average(WEIGHTS, decay))
    # Of 69 steps the first weighs 0.999 ** 68 = 0.93: 1 / (1 - d) steps are remembered, here 1000.
    assert exponential_average([1.0] + 68 * [0.0], 0.999)[-1] == pytest.approx(0.93, abs=0.005)


def always_0_99(decay: float = 0.99) -> averaging.Update:
    """Has another default than 0.999."""
    return get_ema_avg_fn(decay)


def decay_for_the_new(decay: float = 0.999) -> averaging.Update:
    """Weights the new value by the decay."""
    return lambda old, new, number: (1 - decay) * old + decay * new  # noqa: ARG005


def warms_up(decay: float = 0.999) -> averaging.Update:
    """Begins with a smaller decay, as some libraries do."""
    return lambda old, new, n: get_ema_avg_fn(min(decay, (1 + n) / (10 + n)))(old, new, n)


def takes_any_decay(decay: float = 0.999) -> averaging.Update:
    """Limits the decay to what works, and says nothing."""
    return get_ema_avg_fn(min(max(decay, 0.0), 1.0))


@rule(
    "OPT-33",
    "get_ema_avg_fn(decay) and get_ema_multi_avg_fn(decay) give decay * average +"
    " (1 - decay) * new, whatever the number of models; the decay is 0.999 unless given, and"
    " lies in [0, 1].",
    kind="contract",
    source=AVERAGING,
    subject=get_ema_avg_fn,
    violated_by=[always_0_99, decay_for_the_new, warms_up, takes_any_decay],
)
def test_an_ema_moves_by_one_minus_decay_toward_the_new_value(get_ema_avg_fn: MakeAverage) -> None:
    """From 3 toward 5, for several decays."""
    old, new = torch.tensor([3.0, -1.0]).double(), torch.tensor([5.0, 1.0]).double()
    for number in (1, 7):
        for decay in (0.0, 0.25, 0.9, 1.0):
            moved = 2 * (1 - decay)
            got = get_ema_avg_fn(decay)(old, new, torch.tensor(number))
            assert agree(got, [3 + moved, -1 + moved])
        assert agree(get_ema_avg_fn()(old, new, torch.tensor(number)), [3.002, -0.998])
    for decay in (-0.1, 1.1):
        with pytest.raises(ValueError, match="decay"):
            get_ema_avg_fn(decay)


def first_tensor_only(decay: float = 0.999) -> Callable[..., None]:
    """Averages the first parameter of a model."""
    inner = get_ema_multi_avg_fn(decay)
    return lambda old, new, number: inner(old[:1], new[:1], number)


def multi_decay_for_the_new(decay: float = 0.999) -> Callable[..., None]:
    """Weights the new values by the decay."""
    inner = get_ema_multi_avg_fn(1 - decay)
    return lambda old, new, number: inner(old, new, number)


def not_in_place(decay: float = 0.999) -> Callable[..., Any]:
    """Returns the averages, and leaves the tensors as they are."""
    return lambda old, new, n: [get_ema_avg_fn(decay)(*p, n) for p in zip(old, new, strict=True)]


@spec(
    "OPT-33",
    subject=get_ema_multi_avg_fn,
    violated_by=[first_tensor_only, multi_decay_for_the_new, not_in_place],
)
def test_the_multi_form_does_it_in_place_for_all_parameters_at_once(
    get_ema_multi_avg_fn: MakeAverage,
) -> None:
    """It is the faster of the two: pass it as multi_avg_fn."""
    for decay in (0.0, 0.25, 0.9, 0.999):
        old = [torch.tensor([3.0]).double(), torch.tensor([[-1.0, 0.0]]).double()]
        new = [torch.tensor([5.0]).double(), torch.tensor([[1.0, 2.0]]).double()]
        function = get_ema_multi_avg_fn() if decay == 0.999 else get_ema_multi_avg_fn(decay)

        function(old, new, torch.tensor(1))

        moved = 2 * (1 - decay)
        assert agree(old[0], [3 + moved])
        assert agree(old[1], [[-1 + moved, moved]])
    with pytest.raises(ValueError, match="decay"):
        get_ema_multi_avg_fn(1.1)


# --- Buffers --------------------------------------------------------------------------------------


class AlwaysAveragesBuffers(averaging.AveragedModel):
    """Averages the statistics in any case."""

    def __init__(self, model: nn.Module, avg_fn: Any = None, use_buffers: bool = False) -> None:
        super().__init__(model, avg_fn, use_buffers or True)


class KeepsFirstBuffers(averaging.AveragedModel):
    """Leaves the statistics as they were when it was built."""

    def update_parameters(self, model: nn.Module) -> None:
        kept = [buffer.clone() for buffer in self.module.buffers()]
        super().update_parameters(model)
        for buffer, value in zip(self.module.buffers(), kept, strict=True):
            buffer.copy_(value)


@spec("OPT-10", violated_by=[AlwaysAveragesBuffers, KeepsFirstBuffers])
def test_buffers_are_those_of_the_model_unless_they_are_to_be_averaged(
    AveragedModel: MakeAverage,
) -> None:
    """Statistics of the model's activations, beside weights whose activations are others."""
    for use_buffers in (False, True):
        model = nn.BatchNorm1d(1).double()
        averaged = AveragedModel(model, avg_fn=get_ema_avg_fn(0.75), use_buffers=use_buffers)
        for mean in (1.0, 2.0, 4.0):
            nn.init.constant_(model.running_mean, mean)
            averaged.update_parameters(model)
        expected = exponential_average([1.0, 2.0, 4.0], 0.75)[-1] if use_buffers else 4.0
        assert agree(averaged.module.running_mean, [expected])


# --- The learning rate of SWA ---------------------------------------------------------------------

# What SWALR is told, for a first group that trains with 0.1 and a second one with 0.3.
SCHEDULES: list[tuple[dict[str, Any], tuple[float, float]]] = [
    ({"swa_lr": 0.02}, (0.02, 0.02)),
    ({"swa_lr": 0.02, "anneal_epochs": 4}, (0.02, 0.02)),
    ({"swa_lr": [0.5, 0.01], "anneal_epochs": 5}, (0.5, 0.01)),
    ({"swa_lr": 0.02, "anneal_epochs": 4, "anneal_strategy": "linear"}, (0.02, 0.02)),
    ({"swa_lr": 0.0, "anneal_epochs": 1, "anneal_strategy": "linear"}, (0.0, 0.0)),
    ({"swa_lr": 0.02, "anneal_epochs": 0}, (0.02, 0.02)),
]


def two_rates() -> SGD:
    """An optimizer with the rates 0.1 and 0.3."""
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.1, 0.3)]
    return SGD(groups)


def rates(optimizer: SGD, *schedulers: Any) -> list[list[float]]:
    """The rates of all groups at first, and after each of these schedulers took a step."""
    seen = [[group["lr"] for group in optimizer.param_groups]]
    for scheduler in schedulers:
        optimizer.step()
        scheduler.step()
        seen.append([group["lr"] for group in optimizer.param_groups])
    return seen


class AlwaysLinear(SWALR):
    """Anneals along a straight line."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "anneal_strategy": "linear"})


class NineEpochs(SWALR):
    """Is there one step early."""

    def __init__(self, *args: Any, anneal_epochs: int = 10, **options: Any) -> None:
        super().__init__(*args, anneal_epochs=max(0, anneal_epochs - 1), **options)


class OneRateForAll(SWALR):
    """Takes the first rate for all groups."""

    def __init__(self, optimizer: Any, swa_lr: Any, *args: Any, **options: Any) -> None:
        first = swa_lr[0] if isinstance(swa_lr, list) else swa_lr
        super().__init__(optimizer, first, *args, **options)


@rule(
    "OPT-36",
    "SWALR leads each group from its present rate to swa_lr in anneal_epochs steps, along half a"
    " cosine or a line, and stays there.",
    kind="contract",
    source=f"{SWA_UTILS}SWALR.html",
    subject=SWALR,
    violated_by=[AlwaysLinear, NineEpochs, OneRateForAll],
)
def test_the_rate_reaches_swa_lr_after_anneal_epochs_and_stays(SWALR: MakeAverage) -> None:
    """It may lie above the rate before: SWA wants steps that are large enough to look around."""
    for options, ends in SCHEDULES:
        optimizer = two_rates()
        scheduler = SWALR(optimizer, **options)
        how = {key: value for key, value in options.items() if key != "swa_lr"}

        got = rates(optimizer, *[scheduler] * 13)

        # The rates are computed from each other: rounding adds up, most of all close to the end.
        assert agree(
            got,
            [
                [
                    swa_learning_rate(t, 0.1, ends[0], **how),
                    swa_learning_rate(t, 0.3, ends[1], **how),
                ]
                for t in range(14)
            ],
            ulps=200,
        )


class FromTheInitialRate(SWALR):
    """Begins at the rate that the optimizer was built with."""

    def get_lr(self) -> Any:
        t = self._step_count - 1
        return [
            swa_learning_rate(t, g["initial_lr"], g["swa_lr"], self.anneal_epochs)
            for g in self.optimizer.param_groups
        ]


@spec("OPT-36", violated_by=[FromTheInitialRate])
def test_it_begins_where_the_schedule_before_it_ended(SWALR: MakeAverage) -> None:
    """Both are built at the start; first the one is stepped, then the other."""
    optimizer = two_rates()
    decay = ExponentialLR(optimizer, gamma=0.5)
    swa = SWALR(optimizer, swa_lr=0.05, anneal_epochs=4)

    got = rates(optimizer, decay, decay, *[swa] * 6)

    assert agree(got[:3], [[0.1, 0.3], [0.05, 0.15], [0.025, 0.075]])
    assert agree(
        got[2:],
        [[swa_learning_rate(t, lr, 0.05, 4) for lr in (0.025, 0.075)] for t in range(7)],
        ulps=200,
    )


class TakesAnyStrategy(SWALR):
    """Falls back to the cosine."""

    def __init__(self, *args: Any, anneal_strategy: str = "cos", **options: Any) -> None:
        known = anneal_strategy if anneal_strategy in ("cos", "linear") else "cos"
        options["anneal_epochs"] = max(0, options.get("anneal_epochs", 10))
        super().__init__(*args, anneal_strategy=known, **options)


@spec("OPT-36", violated_by=[TakesAnyStrategy])
def test_another_strategy_and_negative_epochs_are_refused(SWALR: MakeAverage) -> None:
    """OneCycleLR and SWALR spell the same two strategies."""
    for wrong in ({"anneal_strategy": "cosine"}, {"anneal_epochs": -1}):
        with pytest.raises(ValueError, match="anneal"):
            SWALR(two_rates(), swa_lr=0.05, **wrong)
