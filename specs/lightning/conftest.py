"""What every test with a Trainer gets: a directory of its own, and no advice about speed."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints and logs go below the working directory unless a Trainer is told otherwise."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def no_advice() -> None:
    """The data are small: loaders without workers and few logged steps are meant.

    A test that is about a warning catches it with `pytest.warns`, which sees all of them.
    """
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*number of training batches.*smaller than.*")
