"""Resuming: the state_dict is all that an optimizer remembers.

At the end you know what has to be saved beside the parameters, for every optimizer of this chapter
after Adam, and the one whose resumed steps are not the same to the last bit.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from specs.harness import known_bug, rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe
from specs.harness.optional import Missing
from specs.optimizers.two_groups import SHAPES, MakeOptimizer, Options, Shapes, positions

STATE_DICT_PAGE = (
    "https://docs.pytorch.org/docs/stable/generated/torch.optim.Optimizer.load_state_dict.html"
)
LOADING_CASTS_THE_STATE = "https://github.com/pytorch/pytorch/issues/43706"

TorchMuon: Any = getattr(
    torch.optim, "Muon", Missing("torch.optim.Muon", "torch.optim.Muon exists since torch 2.9")
)

# With these options an optimizer remembers all that it can: those of the first parameter group, and
# what the second group has instead.
OPTIONS: dict[str, tuple[Options, Options]] = {
    "Adagrad": ({"lr": 0.5, "lr_decay": 0.3, "initial_accumulator_value": 1.0}, {"lr_decay": 0.1}),
    "RMSprop": ({"momentum": 0.9, "centered": True}, {"momentum": 0.5, "alpha": 0.8}),
    "NAdam": ({"lr": 0.1, "momentum_decay": 1.0}, {"betas": (0.5, 0.9)}),
    "RAdam": ({"lr": 0.1, "betas": (0.8, 0.9)}, {"weight_decay": 0.1}),
    "Adamax": ({"lr": 0.1}, {"betas": (0.5, 0.9)}),
    "Adadelta": ({"eps": 0.1}, {"rho": 0.5}),
    "ASGD": ({"lr": 0.1, "lambd": 0.5}, {"alpha": 0.5}),
    "Rprop": ({"lr": 0.1}, {"etas": (0.3, 1.5)}),
    "Adafactor": ({"lr": 0.1}, {"beta2_decay": -0.3, "d": 2.0}),
    "Muon": ({"lr": 0.1}, {"momentum": 0.5, "nesterov": False}),
}
MATRICES: Shapes = (((2, 3),), ((3, 2),))

CPU = torch.device("cpu")


def setting_of(make_optimizer: MakeOptimizer) -> tuple[Options, Options, Shapes]:
    """Options of both groups, and shapes, for an optimizer or what is derived from it."""
    kinds = [kind.__name__ for kind in getattr(make_optimizer, "__mro__", ())]
    known = [name for name in kinds if name in OPTIONS]
    first, second = OPTIONS[known[0]] if known else ({"lr": 0.1}, {"lr": 0.05})
    return first, second, MATRICES if "Muon" in known else SHAPES


class SavesNothing(torch.optim.RMSprop):
    """Writes a state_dict without what the optimizer remembers."""

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"state": {}}


class RestartsTheCount(torch.optim.RAdam):
    """Loads the moments, and corrects them as if they were new."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state["step"] = torch.zeros_like(state["step"])


class KeepsItsOwnOptions(torch.optim.Adagrad):
    """Loads the sums, and keeps the options that it was built with."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        own = self.state_dict()["param_groups"]
        super().load_state_dict(state_dict | {"param_groups": own})


class SavesHalfPrecision(torch.optim.Adamax):
    """Writes its moments as float16, to save space."""

    def state_dict(self) -> dict[str, Any]:
        saved = copy.deepcopy(super().state_dict())
        for state in saved["state"].values():
            state["exp_avg"] = state["exp_avg"].half()
        return saved


class SavesNoStepSizes(torch.optim.Rprop):
    """Writes the step size of a new optimizer for each of its step sizes."""

    def state_dict(self) -> dict[str, Any]:
        saved = copy.deepcopy(super().state_dict())
        for state in saved["state"].values():
            state["step_size"].fill_(0.01)
        return saved


@rule(
    "OPT-23",
    "A new optimizer that loads the state_dict of another takes the very steps that the other would"
    " have taken, whatever options it was built with.",
    kind="contract",
    source=STATE_DICT_PAGE,
    subject=[
        torch.optim.Adagrad,
        torch.optim.RMSprop,
        known_bug(torch.optim.NAdam, LOADING_CASTS_THE_STATE),
        torch.optim.RAdam,
        torch.optim.Adamax,
        torch.optim.Adadelta,
        torch.optim.ASGD,
        torch.optim.Rprop,
        torch.optim.Adafactor,
        TorchMuon,
    ],
    violated_by=[
        SavesNothing,
        RestartsTheCount,
        KeepsItsOwnOptions,
        SavesHalfPrecision,
        SavesNoStepSizes,
    ],
    consequence="without its state an RMSprop begins again with steps of 10 * lr",
)
def test_a_resumed_training_takes_the_same_steps(make_optimizer: MakeOptimizer) -> None:
    """12 steps, and the same 12 with a new optimizer from step 6 on: built with default options,
    and given the saved parameters and the state_dict."""
    first, second, shapes = setting_of(make_optimizer)

    uninterrupted = positions(make_optimizer, first, second, CPU, shapes=shapes)
    resumed = positions(make_optimizer, first, second, CPU, shapes=shapes, resumed_before=6)

    assert agree(resumed, uninterrupted, ulps=0)


class ForgetsTheProduct(torch.optim.NAdam):
    """Loads the moments, and begins its product of momenta anew."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state["mu_product"] = torch.ones_like(state["mu_product"])


@spec("OPT-23", subject=torch.optim.NAdam, violated_by=[ForgetsTheProduct])
def test_nadam_resumes_to_float32(NAdam: MakeOptimizer, observe: Observe) -> None:
    """Loading casts what is remembered to the dtype of the parameter, all but the count of steps.

    NAdam keeps a product in float32. In a float64 model it goes on in float64; in a bfloat16 model
    it is rounded to 8 bits.
    """
    first, second, shapes = setting_of(NAdam)

    uninterrupted = positions(NAdam, first, second, CPU, shapes=shapes)
    resumed = positions(NAdam, first, second, CPU, shapes=shapes, resumed_before=6)

    assert agree(resumed.float(), uninterrupted, ulps=12)
    p = torch.ones(1, dtype=torch.bfloat16, requires_grad=True)
    p.grad = torch.ones_like(p)
    optimizer, loaded = NAdam([p]), NAdam([p])
    optimizer.step()
    loaded.load_state_dict(optimizer.state_dict())
    observe("product before", str(optimizer.state[p].get("mu_product", p).dtype))
    observe("product after", str(loaded.state[p].get("mu_product", p).dtype))


class SparseAdamRestartsTheCount(torch.optim.SparseAdam):
    """Loads the moments, and corrects them as if they were new."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state["step"] = 0


@spec("OPT-23", subject=torch.optim.SparseAdam, violated_by=[SparseAdamRestartsTheCount])
def test_a_resumed_sparse_adam_takes_the_same_steps(SparseAdam: MakeOptimizer) -> None:
    """The moments of all rows are saved, those of rows that were never looked up too."""
    p = torch.ones(3, dtype=torch.float64, requires_grad=True)
    optimizer = SparseAdam([p], lr=0.1, betas=(0.8, 0.9))

    for step in range(12):
        if step == 6:
            q = p.detach().clone().requires_grad_()
            resumed = SparseAdam([q])
            resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        row = torch.tensor([[step % 2]])
        value = torch.tensor([float(step)], dtype=torch.float64)
        p.grad = torch.sparse_coo_tensor(row, value, (3,), check_invariants=True)
        optimizer.step()
        if step >= 6:
            q.grad = p.grad
            resumed.step()
            assert agree(q, p, ulps=0)


class ForgetsTheCurvature(torch.optim.LBFGS):
    """Begins again with the gradient."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"state": {}})


@spec("OPT-23", subject=torch.optim.LBFGS, violated_by=[ForgetsTheCurvature])
def test_a_resumed_lbfgs_takes_the_same_steps(LBFGS: MakeOptimizer) -> None:
    """Its memory are the last steps and changes of the gradient, kept with the first parameter."""
    curvatures = torch.tensor([1.0, 5.0, 20.0], dtype=torch.float64)

    def step_down(optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
        def closure() -> Any:
            optimizer.zero_grad()
            loss = (curvatures * x**2).sum() + (x**4).sum()
            loss.backward()
            return loss

        optimizer.step(closure)

    p = torch.ones(3, dtype=torch.float64, requires_grad=True)
    optimizer = LBFGS([p], max_iter=2, lr=0.5, history_size=3)
    for _ in range(3):
        step_down(optimizer, p)

    q = p.detach().clone().requires_grad_()
    resumed = LBFGS([q])
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    for _ in range(3):
        step_down(optimizer, p)
        step_down(resumed, q)
        assert agree(q, p, ulps=0)
