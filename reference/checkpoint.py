"""Checkpoints from which a training run goes on as if it had never stopped.

Source: https://docs.pytorch.org/tutorials/recipes/recipes/saving_and_loading_a_general_checkpoint.html
and https://docs.pytorch.org/docs/stable/notes/randomness.html
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch

from reference.atomic import save_atomically


class Stateful(Protocol):
    """What has a state: modules, optimizers, schedulers, gradient scalers, data loaders."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


def save_checkpoint(
    path: Path, *, epoch: int, generator: torch.Generator, **parts: Stateful
) -> None:
    """Write everything that the rest of a run depends on to one file, between two epochs.

    `epoch` is the number of epochs done, `generator` the one that shuffles, `parts` are the model,
    the optimizer, the scheduler and whatever else has a state. The global random states of the CPU
    and of CUDA devices are saved too; a program that also draws from `random` or NumPy has two
    more. The file is written beside the old one and then takes its place, so that a crash leaves
    either the old checkpoint or the new one.
    """
    checkpoint: dict[str, Any] = {
        "epoch": epoch,
        "generator": generator.get_state(),
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "parts": {name: part.state_dict() for name, part in parts.items()},
    }
    save_atomically(checkpoint, path)


def load_checkpoint(path: Path, *, generator: torch.Generator, **parts: Stateful) -> int:
    """Put everything back into objects that were built as before; return the epochs done.

    Build the scheduler before loading: building it changes the optimizer's learning rate. Tensors
    are read to the CPU and copied to where the parts have theirs.

    Raises ValueError if the names of the parts are not those that were saved.
    """
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    if parts.keys() != checkpoint["parts"].keys():
        raise ValueError(f"{path} holds {sorted(checkpoint['parts'])}, not {sorted(parts)}")
    for name, part in parts.items():
        part.load_state_dict(checkpoint["parts"][name])
    generator.set_state(checkpoint["generator"])
    torch.set_rng_state(checkpoint["cpu"])
    if checkpoint["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(checkpoint["cuda"])
    epoch: int = checkpoint["epoch"]
    return epoch
