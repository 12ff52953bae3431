"""Everything that an operation works on has to be on one device.

At the end you know what moves a tensor and what moves a module, what an operation does with
operands on two devices, and why two names of one device are not equal.

Every machine has a second device: "meta", whose tensors have a shape and a dtype but no data. Most
operations, but not all (not the matrix product), check for it as they do for a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from reference.devices import same_device
from specs.harness import raising, rule, spec
from specs.harness.observations import Observe

Operation = Callable[[Tensor, Tensor], Tensor]
Move = Callable[..., Any]

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def add_that_moves(left: Tensor, right: Tensor) -> Tensor:
    """Moves the second operand to the first one's device."""
    return left + right.to(left.device)


def add_that_drops(left: Tensor, right: Tensor) -> Tensor:
    """Leaves out an operand that is elsewhere."""
    return left + right if left.device == right.device else left


@rule(
    "DEV-02",
    "Operands and parameters have to be on one device: nothing is moved for you.",
    kind="contract",
    source="https://docs.pytorch.org/docs/stable/notes/cuda.html",
    subject=torch.add,
    violated_by=[add_that_moves, add_that_drops],
)
def test_operands_on_two_devices_are_refused(add: Operation) -> None:
    """In either order: no operand's device decides for the other one."""
    here, elsewhere = torch.ones(3), torch.ones(3, device="meta")
    assert add(here, here).device == here.device
    assert add(elsewhere, elsewhere).device == elsewhere.device
    with pytest.raises(RuntimeError):
        add(here, elsewhere)
    with pytest.raises(RuntimeError):
        add(elsewhere, here)


def add_with_another_message(left: Tensor, right: Tensor) -> Tensor:
    """Refuses without saying which devices met."""
    if left.device != right.device:
        raise RuntimeError("wrong device")
    return left + right


@spec("DEV-02", violated_by=[add_with_another_message])
def test_the_error_names_the_device_that_was_not_expected(add: Operation, observe: Observe) -> None:
    """Between the CPU and a GPU the message is another one."""
    with pytest.raises(RuntimeError, match="is not on the expected device meta") as error:
        add(torch.ones(3, device="meta"), torch.ones(3))
    observe("error", error.value)


@spec("DEV-02", violated_by=[add_that_moves, add_that_drops])
@needs_cuda
def test_a_cpu_tensor_and_a_cuda_tensor_do_not_mix(add: Operation) -> None:
    """The same rule, on a real second device."""
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        add(torch.ones(3), torch.ones(3, device="cuda"))


class MovesItsInput(nn.Linear):
    """Moves what it is given to where its parameters are."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(self.weight.device))


@spec("DEV-02", subject=nn.Linear, violated_by=[MovesItsInput])
def test_a_batch_has_to_be_moved_to_the_device_of_the_model(Linear: type[nn.Module]) -> None:
    """A model that is on the device does not take its input along."""
    model = Linear(4, 2, device="meta")
    assert model(torch.ones(1, 4, device="meta")).shape == (1, 2)
    with pytest.raises(RuntimeError):
        model(torch.ones(1, 4))


def mse_loss_that_moves(input: Tensor, target: Tensor) -> Tensor:
    """Moves the targets to where the predictions are."""
    return mse_loss(input, target.to(input.device))


@spec("DEV-02", subject=mse_loss, violated_by=[mse_loss_that_moves])
def test_the_targets_have_to_be_moved_too(mse_loss: Operation) -> None:
    """The other half of the batch, which is forgotten more often."""
    with pytest.raises(RuntimeError):
        mse_loss(torch.ones(3, device="meta"), torch.ones(3))


def add_that_refuses_numbers(left: Tensor, right: Tensor) -> Tensor:
    """Makes no exception for tensors without dimensions."""
    if left.device != right.device:
        raise RuntimeError("operands on two devices")
    return left + right


def add_that_stays(left: Tensor, right: Tensor) -> Tensor:
    """Makes the exception, and leaves the result where the number was."""
    return torch.ones(left.shape) if left.device != right.device else left + right


@spec("DEV-02", violated_by=[raising(RuntimeError, add_that_refuses_numbers), add_that_stays])
def test_a_cpu_tensor_without_dimensions_counts_as_a_number(add: Operation) -> None:
    """The one exception: torch.tensor(1.0) goes with any device, as the number 1.0 does."""
    elsewhere = torch.ones(3, device="meta")
    assert add(elsewhere, torch.tensor(1.0)).device == elsewhere.device
    assert add(torch.tensor(1.0), elsewhere).device == elsewhere.device


# Moving


def to_in_place(tensor: Tensor, target: Any) -> Tensor:
    """Changes the tensor itself, as Module.to does."""
    tensor.data = torch.empty_like(tensor, dtype=torch.float64)
    return tensor.to(target)


def to_that_always_copies(tensor: Tensor, target: Any) -> Tensor:
    """Makes a new tensor also where there is nothing to do."""
    return tensor.to(target, copy=True)


def to_that_does_nothing(tensor: Tensor, target: Any) -> Tensor:  # noqa: ARG001
    """Gives the tensor back as it is."""
    return tensor


@spec(
    "DEV-02",
    subject=torch.Tensor.to,
    violated_by=[to_in_place, to_that_always_copies, to_that_does_nothing],
)
def test_tensor_to_gives_another_tensor_or_the_same_one(tensor_to: Move) -> None:
    """Write x = x.to(device): the tensor that it is called on never changes."""
    tensor = torch.ones(3)
    for target in (torch.device("meta"), torch.float64):
        moved = tensor_to(tensor, target)
        assert moved is not tensor
        assert target in (moved.device, moved.dtype)
        assert (tensor.device, tensor.dtype) == (torch.device("cpu"), torch.float32)
    # Where there is nothing to do, there is nothing to copy either.
    assert tensor_to(tensor, torch.device("cpu")) is tensor
    assert tensor_to(tensor, torch.float32) is tensor


def module_to_that_copies(module: nn.Module, target: Any) -> nn.Module:
    """Leaves the module as it is and moves a copy, as Tensor.to does."""
    return deepcopy(module).to(target)


def module_to_without_buffers(module: nn.Module, target: Any) -> nn.Module:
    """Moves the parameters only."""
    buffers = dict(module.named_buffers())
    module.to(target)
    for name, buffer in buffers.items():
        setattr(module, name, buffer)
    return module


@spec(
    "DEV-02", subject=nn.Module.to, violated_by=[module_to_that_copies, module_to_without_buffers]
)
def test_module_to_moves_the_module_itself(module_to: Move) -> None:
    """model.to(device) needs no assignment. Parameters and buffers move together."""
    model = nn.BatchNorm1d(3)
    assert module_to(model, torch.device("meta")) is model
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert {buffer.device.type for buffer in model.buffers()} == {"meta"}


# Names


def equal(left: torch.device | str, right: torch.device | str) -> bool:
    """Compares what is written: "cuda" and "cuda:0" differ."""
    return torch.device(left) == torch.device(right)


def of_one_type(left: torch.device | str, right: torch.device | str) -> bool:
    """Looks at the type only: all CUDA devices are one."""
    return torch.device(left).type == torch.device(right).type


def index_zero(left: torch.device | str, right: torch.device | str) -> bool:
    """Takes a missing index for 0, whatever the current device is."""
    left, right = torch.device(left), torch.device(right)
    return (left.type, left.index or 0) == (right.type, right.index or 0)


@spec("DEV-02", subject=same_device, violated_by=[equal, of_one_type, index_zero])
def test_a_device_without_an_index_is_the_current_one(
    same_device: Callable[[torch.device | str, torch.device | str], bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch.device("cuda") == torch.device("cuda:0") is False; compare types, or fill the index."""
    # PyTorch compares what is written, also for the device that every machine has.
    assert torch.device("cpu") != torch.device("cpu:0")
    assert torch.device("cuda") != torch.device("cuda:0")
    # On a machine where the second of two GPUs is the current one:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert same_device("cpu", "cpu:0")
    assert same_device("cuda", torch.device("cuda:1"))
    assert not same_device("cuda", "cuda:0")
    assert not same_device("cuda:0", "cuda:1")
    assert not same_device("cpu", "cuda")
