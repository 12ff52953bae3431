"""MPS, the GPU of a Mac: what it does not have, and what happens then.

At the end you know when PYTORCH_ENABLE_MPS_FALLBACK has to be set and what it never covers, what a
machine without MPS says, and for which devices pinned memory means anything.

What only a Mac can show is skipped elsewhere.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from reference.devices import MPS_FALLBACK, enable_mps_fallback
from specs.harness import raising, rule, spec
from specs.harness.observations import Observe
from specs.harness.versions import torch_release

needs_mps = pytest.mark.skipif(not torch.backends.mps.is_available(), reason="needs an MPS device")
needs_no_mps = pytest.mark.skipif(
    torch.backends.mps.is_available(), reason="needs a machine without an MPS device"
)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
needs_no_accelerator = pytest.mark.skipif(
    torch.accelerator.is_available(), reason="needs a machine without an accelerator"
)


def pretend(accelerator: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make PyTorch say, until the test ends, that this is the machine's accelerator."""
    device = None if accelerator is None else torch.device(accelerator)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: accelerator == "cuda")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: device)


# The fallback variable


def sets_it_when_it_is_too_late() -> None:
    """Sets the variable whether or not torch has already read it, and says nothing."""
    os.environ[MPS_FALLBACK] = "1"


def sets_it_and_complains() -> None:
    """Raises, but leaves a variable behind that looks as if it were in force."""
    os.environ[MPS_FALLBACK] = "1"
    if "torch" in sys.modules:
        raise RuntimeError("too late")


def does_nothing() -> None:
    """Relies on the variable being set by whoever starts the program."""


def sets_it_to_zero() -> None:
    """Sets the variable, and switches the fallback off with it."""
    if "torch" in sys.modules:
        raise RuntimeError("too late")
    os.environ[MPS_FALLBACK] = "0"


@rule(
    "DEV-03",
    "Set PYTORCH_ENABLE_MPS_FALLBACK=1 before torch is imported; float64 is never covered by it.",
    kind="practice",
    source="https://docs.pytorch.org/docs/stable/mps_environment_variables.html",
    subject=enable_mps_fallback,
    violated_by=[sets_it_when_it_is_too_late, sets_it_and_complains, does_nothing],
    consequence="Set one line after `import torch`, the variable changes nothing in that process:"
    " it is read once, while the library is loaded.",
)
def test_after_torch_is_imported_it_is_too_late(
    enable_mps_fallback: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Better an error than a variable that has no effect."""
    monkeypatch.delenv(MPS_FALLBACK, raising=False)
    assert "torch" in sys.modules
    with pytest.raises(RuntimeError, match="too late"):
        enable_mps_fallback()
    assert MPS_FALLBACK not in os.environ


@spec("DEV-03", violated_by=[does_nothing, sets_it_to_zero])
def test_before_torch_is_imported_it_sets_the_variable(
    enable_mps_fallback: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Call it in the first lines of the program, above every import that imports torch."""
    monkeypatch.delenv(MPS_FALLBACK, raising=False)
    with monkeypatch.context() as before_the_import:
        before_the_import.delitem(sys.modules, "torch")
        enable_mps_fallback()
    assert os.environ.get(MPS_FALLBACK) == "1"


#: Eigenvalues have no MPS kernel, and are not among the few operations that run on the CPU anyway.
WITHOUT_A_KERNEL = "torch.linalg.eigvals(torch.eye(2, device='mps'))"
SET = f"import os; os.environ['{MPS_FALLBACK}'] = '1'"


def error_of(*lines: str) -> str:
    """Runs a program in a Python of its own, without the variable; gives its error or ""."""
    environment = {key: value for key, value in os.environ.items() if key != MPS_FALLBACK}
    command = [sys.executable, "-c", "\n".join(lines)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return run.stderr.strip().rpartition("\n")[2] if run.returncode else ""


def set_before_the_import(operation: str) -> str:
    """Sets the variable, then imports torch."""
    return error_of(SET, "import torch", operation)


def set_after_the_import(operation: str) -> str:
    """Imports torch, then sets the variable."""
    return error_of("import torch", SET, operation)


def never_set(operation: str) -> str:
    """Imports torch without the variable."""
    return error_of("import torch", operation)


@needs_mps
@spec("DEV-03", subject=set_before_the_import, violated_by=[set_after_the_import, never_set])
def test_on_mps_an_operation_without_a_kernel_then_runs(
    set_before_the_import: Callable[[str], str],
) -> None:
    """The same two lines in the other order end in NotImplementedError."""
    if not never_set(WITHOUT_A_KERNEL):
        pytest.skip("in this release MPS has a kernel for the operation chosen here")
    assert set_before_the_import(WITHOUT_A_KERNEL) == ""


def float64_made_float32(operation: str) -> str:
    """Takes the next best dtype."""
    return set_before_the_import(operation.replace("float64", "float32"))


@needs_mps
@spec("DEV-03", subject=set_before_the_import, violated_by=[float64_made_float32])
def test_on_mps_float64_raises_also_with_the_variable(
    set_before_the_import: Callable[[str], str],
) -> None:
    """No operation is missing here: the dtype is. Convert to float32 before you move a tensor."""
    for operation in (
        "torch.zeros(2, dtype=torch.float64, device='mps')",
        "torch.zeros(2, dtype=torch.float64).to('mps')",
    ):
        assert set_before_the_import(operation).startswith("TypeError: Cannot convert a MPS Tensor")


def to_that_stays_on_the_cpu(tensor: Tensor, device: str) -> Tensor:  # noqa: ARG001
    """Falls back to the CPU, as if the variable were about devices."""
    return tensor


@needs_no_mps
@spec("DEV-03", subject=torch.Tensor.to, violated_by=[to_that_stays_on_the_cpu])
def test_without_mps_there_is_nothing_to_fall_back_from(
    tensor_to: Callable[[Tensor, str], Tensor], monkeypatch: pytest.MonkeyPatch, observe: Observe
) -> None:
    """The variable is about operations that MPS lacks, not about machines that lack MPS."""
    monkeypatch.setenv(MPS_FALLBACK, "1")
    with pytest.raises(RuntimeError) as error:
        tensor_to(torch.ones(1), "mps")
    observe("error", error.value)


# Pinned memory

Loader = Callable[..., Iterable[Tensor]]


class Pinned(Tensor):
    """A tensor that says of itself that it is pinned."""

    def is_pinned(self, device: object = None) -> bool:  # noqa: ARG002
        return True


class PinsEverywhere(DataLoader[Tensor]):
    """Pins its batches on every machine, as the claim has it."""

    def __iter__(self) -> Any:
        return (batch.as_subclass(Pinned) for batch in super().__iter__())


class RefusesToPin(DataLoader[Tensor]):
    """Raises where there is nothing to pin for."""

    def __iter__(self) -> Any:
        raise RuntimeError("no accelerator")


@rule(
    "CLAIM-18",
    "pin_memory speeds up every device.",
    kind="claim",
    verdict="false",
    source="https://docs.pytorch.org/docs/stable/data.html#memory-pinning",
    subject=DataLoader,
    violated_by=[PinsEverywhere, raising(RuntimeError, RefusesToPin)],
)
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")
@pytest.mark.parametrize("accelerator", [None, "mps"])
def test_for_the_cpu_and_for_mps_nothing_is_pinned(
    DataLoader: Loader, accelerator: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated. The argument is ignored: the batches are as they are without it."""
    pretend(accelerator, monkeypatch)
    data = torch.arange(8.0)
    batches = list(DataLoader(data, batch_size=4, pin_memory=True))
    assert [batch.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert not any(batch.is_pinned() for batch in batches)


class IgnoresItInSilence(DataLoader[Tensor]):
    """Does not say that the argument has no effect."""

    def __iter__(self) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return super().__iter__()


@spec("CLAIM-18", violated_by=[IgnoresItInSilence])
@pytest.mark.skipif(torch_release() < (2, 9), reason="torch 2.6 does not warn, torch 2.9 does")
@pytest.mark.parametrize(
    ("accelerator", "reason"),
    [(None, "but no accelerator is found"), ("mps", "but not supported on MPS")],
)
def test_the_loader_warns_that_it_does_not_pin(
    DataLoader: Loader,
    accelerator: str | None,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    observe: Observe,
) -> None:
    """Simulated. Once for each pass over the data."""
    pretend(accelerator, monkeypatch)
    with pytest.warns(
        UserWarning, match=f"'pin_memory' argument is set as true {reason}"
    ) as caught:
        iter(DataLoader(torch.arange(8.0), batch_size=4, pin_memory=True))
    observe("warning", caught[0])


def pin_memory_where_possible(tensor: Tensor) -> Tensor:
    """Gives the tensor back as it is, as the loader does."""
    return tensor


@needs_no_accelerator
@spec("CLAIM-18", subject=torch.Tensor.pin_memory, violated_by=[pin_memory_where_possible])
def test_asking_a_tensor_for_pinned_memory_raises_without_an_accelerator(
    pin_memory: Callable[[Tensor], Tensor], observe: Observe
) -> None:
    """Pages are pinned for a device that copies from them; the loader is only more lenient."""
    with pytest.raises(RuntimeError) as error:
        pin_memory(torch.ones(4))
    observe("error", error.value, depends_on="torch_build")


class NeverPins(DataLoader[Tensor]):
    """Forgets the argument."""

    def __init__(self, dataset: Any, *, batch_size: int, pin_memory: bool) -> None:  # noqa: ARG002
        super().__init__(dataset, batch_size=batch_size)


@needs_cuda
@spec("CLAIM-18", violated_by=[NeverPins])
def test_for_cuda_the_batches_are_pinned(DataLoader: Loader) -> None:
    """Only from pinned memory is .to("cuda", non_blocking=True) a copy beside the computation."""
    batches = DataLoader(torch.arange(8.0), batch_size=4, pin_memory=True)
    assert all(batch.is_pinned() for batch in batches)
