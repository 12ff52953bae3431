"""`--device`: where device-agnostic specs run."""

from __future__ import annotations

import pytest

CHOICES = ("auto", "cpu", "cuda", "mps", "xpu", "all")


def present_devices() -> list[str]:
    """The device types that work on this machine, the CPU first."""
    import torch

    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "xpu": torch.xpu.is_available(),
    }
    return ["cpu", *(name for name, is_available in available.items() if is_available)]


def chosen_devices(choice: str) -> list[str]:
    """The device types that `--device` stands for.

    Raises pytest.UsageError, naming the devices present, if the chosen one is absent.
    """
    if choice == "cpu":
        return ["cpu"]  # without importing torch
    present = present_devices()
    if choice == "all":
        return present
    if choice == "auto":
        return present[1:2] or present
    if choice not in present:
        raise pytest.UsageError(
            f"--device {choice}: not present on this machine; present: {', '.join(present)}"
        )
    return [choice]
