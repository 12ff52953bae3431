"""What a step leaves alone, and what an optimizer remembers.

At the end you know why a gradient of None and one of zero are two things, how to freeze a layer in
mid-training, and what load_state_dict overrides.
Read before: lesson 2, autograd, in specs/foundations, and test_02_adam.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.nn import Parameter
from torch.nn.functional import cross_entropy

from reference import optimizers
from reference.data import batches, digits
from reference.training import fit
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe

DOCS = "https://docs.pytorch.org/docs/stable/generated/"

MakeOptimizer = Callable[..., optim.Optimizer]


def parameter(value: float, dtype: torch.dtype = torch.float64) -> Parameter:
    """One number, without a gradient."""
    return Parameter(torch.tensor([value], dtype=dtype))


# --- None and zero --------------------------------------------------------------------------------


class TakesNoneForZero(optim.Adam):
    """Steps a parameter without a gradient as if it had one of zeros."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        return super().step(closure)


class TakesZeroForNone(optim.Adam):
    """Leaves out a parameter whose gradient is zero, as SparseAdam does row by row."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and not p.grad.any():
                    p.grad = None
        return super().step(closure)


class CountsForAll(optim.Adam):
    """Counts steps also for those that are left out, so that their next correction is smaller."""

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        for p, state in self.state.items():
            if p.grad is None:
                state["step"] += 1
        return result


@rule(
    "OPT-07",
    "A parameter whose gradient is None is left out of the step: no decay, no momentum, no count."
    " One whose gradient is zero goes through all of it.",
    kind="contract",
    source=f"{DOCS}torch.optim.Optimizer.zero_grad.html",
    subject=optim.Adam,
    violated_by=[TakesNoneForZero, TakesZeroForNone, CountsForAll],
    consequence="digits, a layer frozen after 10 steps of Adam: with gradients of zero in place of"
    " None its weights drift on by more than half of what they have learned so far",
)
def test_none_stops_the_clock_and_zero_lets_it_run(Adam: MakeOptimizer) -> None:
    """Two steps with a gradient of 1, three with none or with zeros, and one more with 1."""
    for weight_decay in (0.0, 0.1):
        options = {"lr": 0.1, "weight_decay": weight_decay}
        left_out, zero = parameter(1.0), parameter(1.0)
        skips, steps = optimizers.Adam([left_out], **options), optimizers.Adam([zero], **options)
        optimizer = Adam([left_out, zero], **options)
        for gradient in (1.0, 1.0, 0.0, 0.0, 0.0, 1.0):
            g = torch.tensor([gradient], dtype=torch.float64)
            left_out.grad, zero.grad = (g if gradient else None), g

            optimizer.step()
            if gradient:
                skips.step([g])
            steps.step([g])

            assert agree(left_out, skips.parameters[0], ulps=100)
            assert agree(zero, steps.parameters[0], ulps=100)
        assert optimizer.state[left_out]["step"] == 3
        assert optimizer.state[zero]["step"] == 6


class RemembersAllAtOnce(optim.Adam):
    """Makes the moments of every parameter in the first step."""

    def step(self, closure: Any = None) -> Any:
        for p in self.param_groups[0]["params"]:
            if not self.state[p]:
                zeros = torch.zeros_like(p)
                self.state[p] = {"step": torch.zeros(()), "exp_avg": zeros}
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
        return super().step(closure)


@spec("OPT-07", violated_by=[TakesNoneForZero, RemembersAllAtOnce])
def test_what_never_had_a_gradient_has_no_memory(Adam: MakeOptimizer) -> None:
    """The weights of a branch that no batch took. A gradient of zeros gives it one at once."""
    used, unused = parameter(1.0), parameter(1.0)
    used.grad = torch.zeros(1, dtype=torch.float64)
    optimizer = Adam([used, unused], lr=0.1, weight_decay=0.1)

    optimizer.step()

    assert sorted(optimizer.state[used]) == ["exp_avg", "exp_avg_sq", "step"]
    assert list(optimizer.state_dict()["state"]) == [0]
    assert unused.item() == 1.0


class DecaysEverything(optim.AdamW):
    """Shrinks a parameter without a gradient, too."""

    def step(self, closure: Any = None) -> Any:
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is None:
                        p *= 1 - group["lr"] * group["weight_decay"]
        return super().step(closure)


class DecaysNothingAtRest(optim.AdamW):
    """Spares a parameter whose gradient is zero."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["weight_decay"] = 0.0
        return super().step(closure)


@spec("OPT-07", subject=optim.AdamW, violated_by=[DecaysEverything, DecaysNothingAtRest])
def test_decay_passes_a_parameter_without_a_gradient_by(AdamW: MakeOptimizer) -> None:
    """With a gradient of zero, AdamW's whole step is p - lr * weight_decay * p."""
    left_out, zero = parameter(1.0), parameter(1.0)
    optimizer = AdamW([left_out, zero], lr=0.1, weight_decay=0.1)
    for step in (1, 2, 3):
        zero.grad = torch.zeros(1, dtype=torch.float64)
        optimizer.step()
        assert agree(zero, [(1 - 0.1 * 0.1) ** step])
        assert left_out.item() == 1.0


class ZeroesByDefault(optim.Adam):
    """Writes zeros in place of None, as torch 1 did."""

    def zero_grad(self, set_to_none: bool = False) -> None:
        super().zero_grad(set_to_none)


@spec("OPT-07", violated_by=[ZeroesByDefault, TakesNoneForZero])
def test_a_layer_that_is_frozen_in_mid_training_stands_still(
    Adam: MakeOptimizer, observe: Observe
) -> None:
    """requires_grad_(False), and the next zero_grad() makes its gradients None. Ten steps of Adam,
    then ten more. With zeros the last ten move it by 0.54 to 0.60 of the first ten (six seeds)."""
    data = digits()
    ten_batches = batches(data.train_inputs, data.train_targets, 64)[:10]
    torch.manual_seed(0)
    first = nn.Linear(64, 16)
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(16, 10))
    optimizer = Adam(model.parameters(), lr=0.01)
    at_first = first.weight.detach().clone()

    fit(model, ten_batches, cross_entropy, optimizer, epochs=1)
    at_half_time = first.weight.detach().clone()
    first.requires_grad_(False)
    fit(model, ten_batches, cross_entropy, optimizer, epochs=1)

    observe("learned", (at_half_time - at_first).norm().item())
    assert torch.equal(first.weight, at_half_time)


class LooksAtRequiresGrad(optim.Adam):
    """Skips what is frozen, whatever its gradient."""

    def step(self, closure: Any = None) -> Any:
        for p in self.param_groups[0]["params"]:
            p.grad = p.grad if p.requires_grad else None
        return super().step(closure)


@spec("OPT-07", violated_by=[LooksAtRequiresGrad])
def test_a_step_looks_at_the_gradient_and_not_at_requires_grad(Adam: MakeOptimizer) -> None:
    """Frozen between backward() and step(), it takes that step still, and every later one if
    nobody calls zero_grad()."""
    p = parameter(1.0)
    optimizer = Adam([p], lr=0.1)
    p.sum().backward()
    p.requires_grad_(False)

    optimizer.step()
    assert agree(p, [1 - 0.1], ulps=1e8)  # up to eps = 1e-8
    optimizer.zero_grad()
    optimizer.step()
    assert agree(p, [1 - 0.1], ulps=1e8)


# --- What is saved and loaded ---------------------------------------------------------------------


class KeepsItsOptions(optim.Adam):
    """Loads the moments, and keeps the options that it was built with."""

    def load_state_dict(self, state_dict: Any) -> None:
        own = [{k: v for k, v in g.items() if k != "params"} for g in self.param_groups]
        super().load_state_dict(state_dict)
        for group, options in zip(self.param_groups, own, strict=True):
            group.update(options)


class KeepsItsRate(optim.Adam):
    """Loads all options but lr."""

    def load_state_dict(self, state_dict: Any) -> None:
        own = [group["lr"] for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, lr in zip(self.param_groups, own, strict=True):
            group["lr"] = lr


@rule(
    "OPT-08",
    "load_state_dict replaces lr and all other options of every group, gives the state the dtype of"
    " its parameter, and matches parameters by their position alone.",
    kind="contract",
    source=f"{DOCS}torch.optim.Optimizer.load_state_dict.html",
    subject=optim.Adam,
    violated_by=[KeepsItsOptions, KeepsItsRate],
    consequence="the lr that you write into the constructor to resume with is not used: set it in"
    " param_groups after loading",
)
def test_the_options_of_the_checkpoint_win(Adam: MakeOptimizer) -> None:
    """Also options of a group that the new program left to the constructor."""
    saved = Adam(
        [{"params": [parameter(1.0)]}, {"params": [parameter(1.0)], "lr": 0.05, "eps": 1e-3}],
        lr=0.5,
        betas=(0.8, 0.9),
        weight_decay=0.2,
        amsgrad=True,
    ).state_dict()
    resumed = Adam([{"params": [parameter(1.0)], "lr": 0.3}, {"params": [parameter(1.0)]}], lr=0.1)

    resumed.load_state_dict(saved)

    named = ("lr", "betas", "eps", "weight_decay", "amsgrad")
    assert [tuple(group[name] for name in named) for group in resumed.param_groups] == [
        (0.5, (0.8, 0.9), 1e-8, 0.2, True),
        (0.05, (0.8, 0.9), 1e-3, 0.2, True),
    ]
    # What is made from the defaults from now on is made from the new program's.
    resumed.add_param_group({"params": [parameter(1.0)]})
    assert resumed.param_groups[2]["lr"] == 0.1


def stepped(make: MakeOptimizer, values: list[float], dtype: torch.dtype) -> optim.Optimizer:
    """An optimizer after one step in which each gradient was its parameter's own value."""
    parameters = [parameter(value, dtype) for value in values]
    optimizer = make(parameters, lr=0.1)
    for p in parameters:
        p.grad = p.detach().clone()
    optimizer.step()
    return optimizer


class KeepsDtypes(optim.Adam):
    """Takes the state as it was saved."""

    def load_state_dict(self, state_dict: Any) -> None:
        super().load_state_dict(state_dict)
        for p, saved in zip(self.state, state_dict["state"].values(), strict=True):
            self.state[p] = dict(saved)


class CastsTheCount(optim.Adam):
    """Casts the number of steps, too: in bfloat16, 256 + 1 is 256."""

    def load_state_dict(self, state_dict: Any) -> None:
        super().load_state_dict(state_dict)
        for p, state in self.state.items():
            state["step"] = state["step"].to(p.dtype)


@spec("OPT-08", violated_by=[KeepsDtypes, CastsTheCount])
def test_moments_get_the_dtype_of_their_parameter_and_the_count_stays_float32(
    Adam: MakeOptimizer,
) -> None:
    """So a float32 checkpoint resumes in bfloat16, and the other way round."""
    saved = stepped(Adam, [3.0], torch.float32).state_dict()
    for dtype in (torch.bfloat16, torch.float64):
        p = parameter(3.0, dtype)
        resumed = Adam([p])
        resumed.load_state_dict(saved)
        state = resumed.state[p]
        assert {name: value.dtype for name, value in state.items()} == {
            "step": torch.float32,
            "exp_avg": dtype,
            "exp_avg_sq": dtype,
        }
        # (1 - 0.9) * 3 and (1 - 0.999) * 3 ** 2, as precisely as both dtypes can say it.
        precision = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
        assert state["exp_avg"].item() == pytest.approx(0.3, rel=4 * precision)
        assert state["exp_avg_sq"].item() == pytest.approx(0.009, rel=4 * precision)


class MatchesBySize(optim.Adam):
    """Gives each parameter the moments of its size, wherever they stand, and else none."""

    def load_state_dict(self, state_dict: Any) -> None:
        super().load_state_dict(state_dict)
        states = list(self.state.values())
        for p in self.param_groups[0]["params"]:
            fitting = [s for s in states if s["exp_avg"].shape == p.shape]
            self.state[p] = fitting[0] if fitting else {"exp_avg": torch.zeros_like(p)}


@spec("OPT-08", violated_by=[MatchesBySize])
def test_parameters_are_matched_by_position_and_shapes_are_not_compared(
    Adam: MakeOptimizer,
) -> None:
    """Swap two layers in the definition of a model, and each gets the other's moments. Nothing is
    said when sizes differ: the first step fails, or worse, they broadcast."""
    saved = stepped(Adam, [1.0, 2.0], torch.float64).state_dict()
    second, first = Parameter(torch.zeros(5)), parameter(0.0)
    swapped = Adam([second, first])

    swapped.load_state_dict(saved)

    assert swapped.state[second]["exp_avg"].shape == (1,)
    assert agree(swapped.state[second]["exp_avg"], [0.1 * 1.0])
    assert agree(swapped.state[first]["exp_avg"], [0.1 * 2.0])


class LoadsWhatFits(optim.Adam):
    """Loads nothing where the groups differ, and goes on."""

    def load_state_dict(self, state_dict: Any) -> None:
        sizes = [len(group["params"]) for group in state_dict["param_groups"]]
        if sizes == [len(group["params"]) for group in self.param_groups]:
            super().load_state_dict(state_dict)


@spec("OPT-08", violated_by=[LoadsWhatFits])
def test_another_number_of_groups_or_parameters_is_refused(
    Adam: MakeOptimizer, observe: Observe
) -> None:
    """For example after a layer was unfrozen, or given a group of its own."""
    saved = stepped(Adam, [1.0, 2.0], torch.float64).state_dict()
    p, q = parameter(1.0), parameter(2.0)
    with pytest.raises(ValueError, match="doesn't match the size of optimizer's group") as size:
        Adam([p]).load_state_dict(saved)
    with pytest.raises(ValueError, match="different number of parameter groups") as number:
        Adam([{"params": [p]}, {"params": [q]}]).load_state_dict(saved)
    observe("refusals", [size.value, number.value])
