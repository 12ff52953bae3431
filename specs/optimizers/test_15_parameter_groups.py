"""Who is trained, and with which options: parameter groups, and what an optimizer holds on to.

At the end you know how groups get their options, which parameters an optimizer refuses, and why it
must be built after the last parameter was replaced.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import Parameter
from torch.nn.functional import cross_entropy

from reference import optimizers
from reference.data import batches, digits
from reference.training import fit
from specs.harness import known_bug, rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe

OPTIM = "https://docs.pytorch.org/docs/stable/optim.html"
DUPLICATES = "https://github.com/pytorch/pytorch/issues/40967"

MakeOptimizer = Callable[..., optim.Optimizer]


def parameter(*values: float, dtype: torch.dtype = torch.float64) -> Parameter:
    """A parameter with a gradient of ones."""
    p = Parameter(torch.tensor(values, dtype=dtype))
    p.grad = torch.ones_like(p)
    return p


# --- Groups and their options ---------------------------------------------------------------------

# What is said for all groups, and for each of three groups.
GROUPS: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [
    ({"lr": 0.1}, [{}, {"lr": 0.001}, {"lr": 0.0}]),
    ({"lr": 0.1, "momentum": 0.9}, [{}, {"momentum": 0.0}, {"lr": 0.5, "momentum": 0.5}]),
    ({"lr": 0.1, "weight_decay": 0.2}, [{"weight_decay": 0.0}, {}, {"weight_decay": 0.4}]),
    (
        {"lr": 0.1, "momentum": 0.9, "nesterov": True},
        [{"nesterov": False}, {"maximize": True}, {"nesterov": False, "dampening": 0.5}],
    ),
]


class FirstGroupForAll(optim.SGD):
    """Steps every group with the options of the first."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups[1:]:
            group.update({k: v for k, v in self.param_groups[0].items() if k != "params"})
        return super().step(closure)


class ConstructorWins(optim.SGD):
    """Lets what is said for all groups override what is said for one."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__([{**group, **options} for group in params], **options)


class OnlyRatesOfTheirOwn(optim.SGD):
    """Knows a group's own lr, and takes every other option from the constructor."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        known = {key: param_group[key] for key in ("params", "lr") if key in param_group}
        super().add_param_group(known)


@rule(
    "OPT-04",
    "Each parameter group has options of its own; what it leaves open comes from the constructor,"
    " also for a group that is added later. A parameter may be in one group only.",
    kind="contract",
    source=f"{OPTIM}#per-parameter-options",
    subject=optim.SGD,
    violated_by=[FirstGroupForAll, ConstructorWins, OnlyRatesOfTheirOwn],
)
def test_each_group_is_stepped_as_by_an_optimizer_of_its_own(SGD: MakeOptimizer) -> None:
    """Three parameters in three groups, three steps, for several options."""
    for for_all, of_groups in GROUPS:
        parameters = [parameter(1.0), parameter(-2.0), parameter(3.0)]
        alone = [
            optimizers.SGD([p], **for_all | own)
            for p, own in zip(parameters, of_groups, strict=True)
        ]
        groups = [{"params": [p], **own} for p, own in zip(parameters, of_groups, strict=True)]
        optimizer = SGD(groups, **for_all)
        for _ in range(3):
            optimizer.step()
            for p, reference in zip(parameters, alone, strict=True):
                reference.step([torch.ones(1)])
                assert agree(p, reference.parameters[0])


class AddsWithThePresentRate(optim.SGD):
    """Gives a late group the rate that the first group has by now."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if self.param_groups:
            param_group.setdefault("lr", self.param_groups[0]["lr"])
        super().add_param_group(param_group)


class AddsAndForgets(optim.SGD):
    """Takes a late group, and does not step it."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if not self.param_groups:
            super().add_param_group(param_group)


@spec("OPT-04", violated_by=[AddsWithThePresentRate, AddsAndForgets])
def test_a_late_group_starts_with_the_rate_of_the_constructor(SGD: MakeOptimizer) -> None:
    """Unfreeze a layer late in a schedule, and it jumps: give its group a rate of its own."""
    early, late, slow = parameter(1.0), parameter(1.0), parameter(1.0)
    optimizer = SGD([early], lr=0.1)
    optimizer.param_groups[0]["lr"] = 0.001  # as a scheduler does

    optimizer.add_param_group({"params": [late]})
    optimizer.add_param_group({"params": [slow], "lr": 0.001})
    optimizer.step()

    assert agree([p.item() for p in (early, late, slow)], [1 - 0.001, 1 - 0.1, 1 - 0.001])


class MergesGroups(optim.SGD):
    """Leaves a parameter out of a group if an earlier one has it."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        taken = {p for group in self.param_groups for p in group["params"]}
        params = [p for p in param_group["params"] if p not in taken]
        super().add_param_group({**param_group, "params": params})


@spec("OPT-04", violated_by=[MergesGroups])
def test_a_parameter_in_two_groups_is_refused(SGD: MakeOptimizer, observe: Observe) -> None:
    """Two groups would say two things about it."""
    shared, other = parameter(1.0), parameter(1.0)
    groups = [{"params": [shared]}, {"params": [other, shared], "lr": 0.5}]
    with pytest.raises(ValueError, match="more than one parameter group") as refusal:
        SGD(groups, lr=0.1)
    observe("in two groups", refusal.value)
    with pytest.raises(ValueError, match="more than one parameter group"):
        SGD([shared], lr=0.1).add_param_group({"params": [shared]})


class RefusesDuplicates(optim.SGD):
    """As it is announced: a parameter that comes twice is an error inside a group, too."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        params = list(param_group["params"])
        if len(params) != len(set(params)):
            raise ValueError("a parameter comes twice")
        super().add_param_group({**param_group, "params": params})


class DropsTheSecond(optim.SGD):
    """Takes each parameter once, and says nothing."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(
            {**param_group, "params": list(dict.fromkeys(param_group["params"]))}
        )


@rule(
    "OPT-30",
    "A parameter that comes twice inside one group should be refused; PyTorch only warns.",
    kind="contract",
    source=f"{OPTIM}#torch.optim.Optimizer.add_param_group",
    subject=[known_bug(optim.SGD, DUPLICATES), RefusesDuplicates],
    violated_by=[DropsTheSecond],
    consequence="tied weights, collected from encoder and decoder, are stepped twice as far",
)
@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_a_parameter_twice_in_one_group_should_be_refused(SGD: MakeOptimizer) -> None:
    """model.parameters() yields tied weights once; lists that are put together do not."""
    tied = parameter(1.0)
    with pytest.raises(ValueError, match=r"twice|duplicate"):
        SGD([tied, parameter(1.0), tied], lr=0.1)


@spec("OPT-30", subject=optim.SGD, violated_by=[DropsTheSecond])
def test_until_then_it_is_stepped_twice_with_a_warning(
    SGD: MakeOptimizer, observe: Observe
) -> None:
    """The encoder's weight is used again by the decoder, transposed. Its step is 0.2, not 0.1."""
    tied = parameter(1.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer = SGD([tied, tied], lr=0.1)
    optimizer.step()

    assert agree(tied, [1 - 2 * 0.1])
    duplicates = [w for w in caught if "parameter group with duplicate" in str(w.message)]
    assert len(duplicates) == 1
    observe("duplicate", duplicates[0])


# --- What an optimizer takes ----------------------------------------------------------------------


def nothing() -> Iterable[Tensor]:
    """The parameters of a model that were walked through once already."""
    walked = nn.Linear(1, 1).parameters()
    list(walked)
    return walked


# What is given in place of parameters, and how the refusal reads.
REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (list, ValueError, "empty parameter list"),
    (nothing, ValueError, "empty parameter list"),
    (lambda: [parameter(1.0) * 2], ValueError, "non-leaf"),
    (lambda: [{"params": [parameter(1.0) * 2]}], ValueError, "non-leaf"),
    (lambda: parameter(1.0), TypeError, "iterable"),
    (lambda: [1.0], TypeError, "can only optimize Tensors"),
    (lambda: nn.Linear(1, 1).state_dict(), TypeError, "can only optimize Tensors"),
    (lambda: [{"params": {parameter(1.0)}}], TypeError, "ordered"),
]


class TakesAnything(optim.SGD):
    """Makes the best of what it is given."""

    def __init__(self, params: Any, **options: Any) -> None:
        several = [params] if isinstance(params, Tensor) else list(params)
        leaves = [p for p in several if isinstance(p, Parameter)]
        super().__init__(leaves or [Parameter(torch.zeros(1))], **options)


@rule(
    "OPT-06",
    "An optimizer takes a non-empty, ordered iterable of leaf tensors, or of groups of them.",
    kind="contract",
    source=f"{OPTIM}#constructing-it",
    subject=optim.SGD,
    violated_by=[TakesAnything],
)
def test_what_cannot_be_trained_is_refused(SGD: MakeOptimizer) -> None:
    """A leaf was not computed from anything: only leaves get a .grad that a step could follow."""
    for make, error, message in REFUSED:
        with pytest.raises(error, match=message):
            SGD(make(), lr=0.1)


class LeavesFrozenOut(optim.SGD):
    """Takes only what has requires_grad at the moment."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__([p for p in params if p.requires_grad], **options)


@spec("OPT-06", violated_by=[LeavesFrozenOut])
def test_a_frozen_parameter_is_taken_and_trained_once_it_is_unfrozen(SGD: MakeOptimizer) -> None:
    """It needs no group of its own for that. While it is frozen it has no gradient: see OPT-07."""
    layer = nn.Linear(1, 1)
    layer.weight.requires_grad_(False)
    optimizer = SGD(layer.parameters(), lr=0.1)
    before = layer.weight.item()

    layer.weight.requires_grad_(True)
    layer(torch.ones(1, 1)).sum().backward()
    optimizer.step()

    assert agree(layer.weight, [[before - 0.1 * 1]])


# --- The parameters themselves --------------------------------------------------------------------


class HoldsCopies(optim.SGD):
    """Steps copies of what it was given."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__([copy.deepcopy(p) for p in params], **options)


@rule(
    "OPT-05",
    "An optimizer steps the very Parameter objects that it was given: build it after the last one"
    " is replaced. Moving a model keeps its parameters; a new layer and assign=True do not.",
    kind="contract",
    source=f"{OPTIM}#constructing-it",
    subject=optim.SGD,
    violated_by=[HoldsCopies],
    consequence="digits, a head that is replaced after the optimizer was built: it is as random"
    " after the training as before, and nothing warns",
)
def test_a_layer_that_is_replaced_later_is_not_trained(SGD: MakeOptimizer) -> None:
    """The optimizer holds on to the old head, which no batch passes through any more."""
    data = digits()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    optimizer = SGD(model.parameters(), lr=0.1)
    body, old_head = model[0], model[2]
    before = copy.deepcopy(model)

    model[2] = new_head = nn.Linear(16, 10)
    at_first = new_head.weight.detach().clone()
    fit(
        model,
        batches(data.train_inputs, data.train_targets, 256),
        cross_entropy,
        optimizer,
        epochs=1,
    )

    assert torch.equal(new_head.weight, at_first)
    assert new_head.weight.grad is not None  # zero_grad() does not reach it either: it adds up
    assert torch.equal(old_head.weight, before[2].weight)
    assert not torch.equal(body.weight, before[0].weight)


class NewParametersWhenMoved(nn.Linear):
    """Makes new parameters of another dtype, as a module does under
    torch.__future__.set_overwrite_module_params_on_conversion(True)."""

    def _apply(self, fn: Any, recurse: bool = True) -> Any:  # noqa: ARG002
        for name, p in list(self.named_parameters()):
            setattr(self, name, Parameter(fn(p.detach())))
        return self


class AlwaysAssigns(nn.Linear):
    """Takes the tensors of a checkpoint for its own, asked or not."""

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict(state_dict, strict, assign=assign or True)


class NeverAssigns(nn.Linear):
    """Copies the values, also with assign=True."""

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict(state_dict, strict, assign=assign and False)


@spec(
    "OPT-05", subject=nn.Linear, violated_by=[NewParametersWhenMoved, AlwaysAssigns, NeverAssigns]
)
def test_moving_and_loading_keep_the_parameters_and_assigning_does_not(
    Linear: type[nn.Linear],
) -> None:
    """So an optimizer survives .to(), .double() and load_state_dict(), if not with assign=True."""
    layer = Linear(2, 1)
    weight, bias = layer.weight, layer.bias
    other = nn.Linear(2, 1).double()

    layer.double()
    layer.to("cpu", torch.float32).requires_grad_(False).requires_grad_(True)
    layer.load_state_dict(other.state_dict())
    assert (layer.weight is weight, layer.bias is bias) == (True, True)
    assert (weight.dtype, weight.tolist()) == (torch.float32, other.float().weight.tolist())

    layer.load_state_dict(nn.Linear(2, 1).state_dict(), assign=True)
    assert (layer.weight is weight, layer.bias is bias) == (False, False)
