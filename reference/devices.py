"""Which device to train on: asked of PyTorch when the function is called, never at import.

Two words are easily confused. *Built* means that the installed wheel contains the backend's code;
*available* means that this machine can run it now. Only the second one chooses a device.

torch is imported inside the functions, because `enable_mps_fallback` has to run before it.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: Read once by PyTorch, while it is being loaded.
MPS_FALLBACK = "PYTORCH_ENABLE_MPS_FALLBACK"


def select_device() -> torch.device:
    """The device to train on: cuda if it is available, else mps if it is, else cpu.

    The result has no index: "cuda" stands for the current CUDA device.

    Errors: none; a machine without any accelerator gets the CPU.
    Source: https://docs.pytorch.org/docs/stable/notes/mps.html and
    https://docs.pytorch.org/docs/stable/generated/torch.cuda.is_available.html
    """
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def mps_or_cpu() -> torch.device:
    """The usual line on a Mac: mps if it is available, else cpu. It never gives cuda.

    Errors: none.
    Source: https://docs.pytorch.org/docs/stable/notes/mps.html
    """
    import torch

    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def cuda_or_cpu() -> torch.device:
    """The usual line on an NVIDIA (or ROCm) machine: cuda if it is available, else cpu.

    Errors: none.
    Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#device-agnostic-code
    """
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def accelerator_or_cpu() -> torch.device:
    """Whatever accelerator the wheel was built for, if it is available here, else cpu.

    It also finds accelerators that have no branch in `select_device`, such as Intel's xpu.
    `is_available()` is asked first: without a GPU, `current_accelerator()` names the accelerator
    of the wheel (torch 2.7 and newer), gives None (a wheel for CPUs) or raises (torch 2.6).

    Errors: none.
    Source: https://docs.pytorch.org/docs/stable/accelerator.html
    """
    import torch

    accelerator = None
    if torch.accelerator.is_available():
        accelerator = torch.accelerator.current_accelerator()
    return torch.device("cpu") if accelerator is None else accelerator


def require_device(name: str) -> torch.device:
    """The device of that name ("cpu", "cuda", "cuda:1", "mps"), which has to be present.

    For a run that must not fall back to the CPU in silence.

    Errors: RuntimeError if the device is absent, with the same words for every wheel; PyTorch's
    own error has another type in each. ValueError for any other kind of device.
    Source: https://docs.pytorch.org/docs/stable/tensor_attributes.html#torch.device
    """
    import torch

    device = torch.device(name)
    if device.type == "cpu":
        count = 1
    elif device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    elif device.type == "mps":
        count = 1 if torch.backends.mps.is_available() else 0
    else:
        raise ValueError(f"require_device knows cpu, cuda and mps, not {name!r}")
    if (device.index or 0) >= count:
        raise RuntimeError(f"device {name!r} is not present: this machine has {count} of its kind")
    return device


def same_device(left: torch.device | str, right: torch.device | str) -> bool:
    """Whether two descriptions mean one device: a missing index stands for the current device.

    `torch.device("cuda") == torch.device("cuda:0")` is False, although a tensor that is sent to
    the first arrives on the second.

    Errors: RuntimeError for a name that is no device.
    Source: https://docs.pytorch.org/docs/stable/tensor_attributes.html#torch.device
    """
    import torch

    def with_index(device: torch.device) -> tuple[str, int]:
        current = 0
        if device.type == "cuda" and torch.cuda.is_available():
            current = torch.cuda.current_device()
        return device.type, current if device.index is None else device.index

    return with_index(torch.device(left)) == with_index(torch.device(right))


def enable_mps_fallback() -> None:
    """Let operations that MPS lacks run on the CPU. Has to be called before torch is imported.

    It sets PYTORCH_ENABLE_MPS_FALLBACK=1. PyTorch reads the variable when its library is loaded
    and never again. float64 is not covered: MPS has no such dtype, so the tensor cannot even be
    made there.

    Errors: RuntimeError if torch is already imported, since the variable would have no effect.
    Source: https://docs.pytorch.org/docs/stable/mps_environment_variables.html and
    https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/mps/MPSFallback.mm
    """
    if "torch" in sys.modules:
        raise RuntimeError(f"too late for {MPS_FALLBACK}: torch is already imported")
    os.environ[MPS_FALLBACK] = "1"
