"""Choosing a device.

At the end you know which question chooses a device (available, not built), what PyTorch answers on
a machine without a GPU, and which errors an absent device gives.

Most machines here are simulated: PyTorch's questions are answered from the table MACHINES.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from reference.devices import (
    accelerator_or_cpu,
    cuda_or_cpu,
    mps_or_cpu,
    require_device,
    select_device,
)
from specs.harness import raising, rule, spec
from specs.harness.observations import Observe
from specs.harness.versions import torch_release

Select = Callable[[], torch.device]

needs_no_cuda = pytest.mark.skipif(
    torch.cuda.is_available(), reason="needs a machine without a CUDA device"
)


class Machine(NamedTuple):
    """What PyTorch says about itself and about the machine."""

    name: str
    #: The accelerator that the wheel was built for.
    built: str | None
    #: How many devices of which kind can be used now.
    cuda: int
    mps: int
    xpu: int
    #: What select_device() has to answer.
    best: str


MACHINES = [
    Machine("a wheel for CPUs", built=None, cuda=0, mps=0, xpu=0, best="cpu"),
    Machine("a CUDA wheel without a GPU", built="cuda", cuda=0, mps=0, xpu=0, best="cpu"),
    Machine("one NVIDIA GPU", built="cuda", cuda=1, mps=0, xpu=0, best="cuda"),
    Machine("two NVIDIA GPUs", built="cuda", cuda=2, mps=0, xpu=0, best="cuda"),
    Machine("a Mac with Apple silicon", built="mps", cuda=0, mps=1, xpu=0, best="mps"),
    Machine("a Mac whose macOS is too old", built="mps", cuda=0, mps=0, xpu=0, best="cpu"),
    Machine("an Intel GPU", built="xpu", cuda=0, mps=0, xpu=1, best="cpu"),
    # No machine has both today: this one says which comes first.
    Machine("CUDA and MPS", built="cuda", cuda=1, mps=1, xpu=0, best="cuda"),
]


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[[Machine], None]:
    """Make PyTorch answer as it does on a machine of the table, until the test ends."""

    def pretend_to_be(machine: Machine) -> None:
        available = machine.cuda + machine.mps + machine.xpu > 0
        accelerator = None if machine.built is None else torch.device(machine.built)

        def current_accelerator(check_available: bool = False) -> torch.device | None:
            return None if check_available and not available else accelerator

        answers = [
            (torch.cuda, "is_available", lambda: machine.cuda > 0),
            (torch.cuda, "device_count", lambda: machine.cuda),
            (torch.cuda, "current_device", lambda: 0),
            (torch.backends.cuda, "is_built", lambda: machine.built == "cuda"),
            (torch.backends.mps, "is_available", lambda: machine.mps > 0),
            (torch.backends.mps, "is_built", lambda: machine.built == "mps"),
            (torch.mps, "device_count", lambda: machine.mps),
            (torch.xpu, "is_available", lambda: machine.xpu > 0),
            (torch.xpu, "device_count", lambda: machine.xpu),
            (torch.accelerator, "is_available", lambda: available),
            (torch.accelerator, "device_count", lambda: machine.cuda + machine.mps + machine.xpu),
            (torch.accelerator, "current_accelerator", current_accelerator),
        ]
        for module, question, answer in answers:
            monkeypatch.setattr(module, question, answer)

    return pretend_to_be


# Choosing


def takes_what_is_built() -> torch.device:
    """Asks the wheel, not the machine."""
    if torch.backends.cuda.is_built():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_built() else "cpu")


def ignores_mps() -> torch.device:
    """Leaves a Mac on its CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def ignores_cuda() -> torch.device:
    """The usual line on a Mac, on a machine that is none."""
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def prefers_mps() -> torch.device:
    """Asks in the other order."""
    return torch.device("mps") if torch.backends.mps.is_available() else ignores_mps()


def takes_the_current_accelerator() -> torch.device:
    """Does not ask whether the accelerator of the wheel is there."""
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def stays_on_the_cpu() -> torch.device:
    """Takes the device that is always there."""
    return torch.device("cpu")


@cache
def asks_once() -> torch.device:
    """Remembers the first answer, as a constant computed at import does."""
    return select_device()


def gives_a_name() -> str:
    """Gives a string, which has no `.type`."""
    return select_device().type


@rule(
    "DEV-01",
    "Take cuda if it is available, else mps if it is, else cpu; built is not available.",
    kind="practice",
    source="https://docs.pytorch.org/docs/stable/notes/mps.html",
    subject=select_device,
    violated_by=[
        takes_what_is_built,
        ignores_mps,
        ignores_cuda,
        prefers_mps,
        takes_the_current_accelerator,
        stays_on_the_cpu,
        asks_once,
        gives_a_name,
    ],
    consequence="A choice by is_built() gives 'cuda' on 1 of these 8 machines, and 'mps' on another"
    " one, where the first tensor then raises.",
)
def test_select_device_takes_the_best_that_is_available(
    select_device: Select, pretend: Callable[[Machine], None]
) -> None:
    """Your own select_device() is judged by the same table: no arguments, gives a torch.device."""
    for machine in MACHINES:
        pretend(machine)
        chosen = select_device()
        assert isinstance(chosen, torch.device)
        assert chosen.type == machine.best, machine.name


@spec("DEV-01", subject=mps_or_cpu, violated_by=[takes_what_is_built, select_device])
def test_the_line_for_a_mac_gives_mps_or_cpu(
    mps_or_cpu: Select, pretend: Callable[[Machine], None]
) -> None:
    """torch.device("mps" if torch.backends.mps.is_available() else "cpu") never gives cuda."""
    for machine in MACHINES:
        pretend(machine)
        assert mps_or_cpu() == torch.device("mps" if machine.mps else "cpu"), machine.name


@spec("DEV-01", subject=cuda_or_cpu, violated_by=[takes_what_is_built, select_device])
def test_the_line_for_cuda_gives_cuda_or_cpu(
    cuda_or_cpu: Select, pretend: Callable[[Machine], None]
) -> None:
    """torch.device("cuda" if torch.cuda.is_available() else "cpu") leaves a Mac on its CPU."""
    for machine in MACHINES:
        pretend(machine)
        assert cuda_or_cpu() == torch.device("cuda" if machine.cuda else "cpu"), machine.name


@spec(
    "DEV-01",
    subject=accelerator_or_cpu,
    violated_by=[takes_the_current_accelerator, select_device, stays_on_the_cpu],
)
def test_the_line_for_any_accelerator_gives_the_one_of_the_wheel(
    accelerator_or_cpu: Select, pretend: Callable[[Machine], None]
) -> None:
    """It finds an Intel GPU too, and falls back to the CPU where the accelerator is missing."""
    for machine in MACHINES:
        pretend(machine)
        present = machine.cuda + machine.mps + machine.xpu
        expected = machine.built if present and machine.built else "cpu"
        assert accelerator_or_cpu() == torch.device(expected), machine.name


def always_names_the_cpu(check_available: bool = False) -> torch.device:  # noqa: ARG001
    """Counts the CPU among the accelerators."""
    return torch.device("cpu")


@spec("DEV-01", subject=torch.accelerator.current_accelerator, violated_by=[always_names_the_cpu])
def test_current_accelerator_names_the_one_of_the_wheel_unless_told_to_check(
    current_accelerator: Callable[..., torch.device | None], observe: Observe
) -> None:
    """Not simulated. A CUDA wheel says "cuda" on a machine without a GPU.

    Up to torch 2.6 there was no check_available, and without an accelerator it raised.
    """
    available = torch.accelerator.is_available()
    if torch_release() >= (2, 7):
        named, present = current_accelerator(), current_accelerator(check_available=True)
        observe("current accelerator", str(named), depends_on="torch_build")
        observe("accelerator that is present", str(present))
        assert present == (named if available else None)
        assert torch.backends.cuda.is_built() == (named == torch.device("cuda"))
    elif available:
        assert current_accelerator() is not None
    else:
        with pytest.raises(RuntimeError, match="Cannot access accelerator device"):
            current_accelerator()


def says_the_opposite() -> bool:
    """Wrong on every machine."""
    return not torch.cuda.is_available()


def can_make_a_tensor_on(name: str) -> bool:
    """Whether this machine can, here and now."""
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError):
        return False
    return True


@spec("DEV-01", subject=torch.cuda.is_available, violated_by=[says_the_opposite])
def test_available_means_that_a_tensor_can_be_made_there(
    cuda_is_available: Callable[[], bool],
) -> None:
    """Not simulated. It is a promise about this machine; is_built() is one about the wheel."""
    assert cuda_is_available() == can_make_a_tensor_on("cuda")


# Asking for a device that is not there


def zeros_on_the_cpu_instead(size: int, *, device: str) -> Tensor:  # noqa: ARG001
    """Falls back in silence."""
    return torch.zeros(size)


def zeros_nowhere(size: int, *, device: str) -> Tensor:  # noqa: ARG001
    """Gives a tensor without data."""
    return torch.zeros(size, device="meta")


@rule(
    "DEV-04",
    "An absent device is an error, never a fallback; its type depends on the wheel.",
    kind="contract",
    source="https://docs.pytorch.org/docs/stable/cuda.html",
    subject=torch.zeros,
    violated_by=[zeros_on_the_cpu_instead, zeros_nowhere],
)
def test_a_tensor_on_an_absent_device_raises(zeros: Callable[..., Tensor]) -> None:
    """Not simulated. Catch both, or better: ask is_available() first.

    A CUDA wheel raises RuntimeError (no driver, or no GPU), a wheel without CUDA AssertionError.
    MPS raises RuntimeError or its subclass NotImplementedError.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "xpu": torch.xpu.is_available(),
    }
    for name, is_available in available.items():
        if not is_available:
            with pytest.raises((RuntimeError, AssertionError)):
                zeros(1, device=name)


@spec("DEV-04", violated_by=[zeros_on_the_cpu_instead, zeros_nowhere])
@needs_no_cuda
def test_the_type_of_the_error_tells_how_the_wheel_was_built(
    zeros: Callable[..., Tensor], observe: Observe
) -> None:
    """The two wheels of one release differ, so a handler for one of them misses the other."""
    expected = RuntimeError if torch.backends.cuda.is_built() else AssertionError
    with pytest.raises(expected) as error:
        zeros(1, device="cuda")
    observe("error", error.value, depends_on="torch_build")


def falls_back(name: str) -> torch.device:
    """Gives the best device that there is."""
    return torch.device(name) if select_device().type == name else select_device()


def trusts_the_name(name: str) -> torch.device:
    """Leaves it to the first tensor to find out."""
    return torch.device(name)


def ignores_the_index(name: str) -> torch.device:
    """Looks at the kind of device only."""
    require_device(name.partition(":")[0])
    return torch.device(name)


def raises_as_a_wheel_without_cuda(name: str) -> torch.device:
    """Raises the error that another wheel would not."""
    try:
        return require_device(name)
    except RuntimeError as error:
        raise AssertionError(str(error)) from None


@spec(
    "DEV-04",
    subject=require_device,
    violated_by=[
        falls_back,
        trusts_the_name,
        ignores_the_index,
        raising(AssertionError, raises_as_a_wheel_without_cuda),
    ],
)
def test_require_device_gives_what_is_there_and_raises_one_error_for_the_rest(
    require_device: Callable[[str], torch.device], pretend: Callable[[Machine], None]
) -> None:
    """For a run that must not train on the CPU by accident: RuntimeError on every wheel."""
    for machine in MACHINES:
        pretend(machine)
        present = {
            "cpu": True,
            "cuda": machine.cuda >= 1,
            "cuda:0": machine.cuda >= 1,
            "cuda:1": machine.cuda >= 2,
            "mps": machine.mps >= 1,
        }
        for name, is_present in present.items():
            if is_present:
                assert require_device(name) == torch.device(name), machine.name
            else:
                with pytest.raises(RuntimeError, match=f"{name!r} is not present"):
                    require_device(name)
