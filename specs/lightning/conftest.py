"""What every test with a Trainer gets: a directory of its own, and torch as it was, afterwards."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.utils.data import BatchSampler, DataLoader

from specs.harness.optional import optional


@pytest.fixture(autouse=True, scope="session")
def no_plug_ins() -> Iterator[None]:
    """Every Trainer asks all installed packages for callbacks to add: here none joins.

    What else is installed must not change what a rule sees. It also is an eighth of the time.
    """
    registry = optional("lightning_fabric.utilities.registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "entry_points", lambda **_: (), raising=False)
        yield


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints and logs go below the working directory unless a Trainer is told otherwise."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def no_advice() -> None:
    """Trainings are small here, and violations do what Lightning warns of: it is not repeated.

    A test that is about a warning catches it with `pytest.warns`, which sees all of them.
    """
    warnings.simplefilter("ignore")


@pytest.fixture(autouse=True)
def loaders_as_they_were() -> Iterator[None]:
    """Undo what Lightning leaves behind where a `train_dataloader` raises, as a missing one does.

    It replaces methods of torch's own classes while it asks a module for a loader, in order to see
    the arguments; an exception keeps it from putting them back.
    """
    methods = ("__init__", "__setattr__", "__delattr__")
    classes = (DataLoader, BatchSampler)
    kept = [(owner, name, vars(owner).get(name)) for owner in classes for name in methods]
    yield
    for owner, name, method in kept:
        if f"__old{name}" in vars(owner):
            delattr(owner, f"__old{name}")
            delattr(owner, name)
            if method is not None:
                setattr(owner, name, method)
