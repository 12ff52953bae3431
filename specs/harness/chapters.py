"""The order of the chapters: the specs are a book, and directories know only the alphabet."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

#: The table of contents is specs/README.md. A chapter that is not listed comes after these.
READING_ORDER = (
    "foundations",
    "losses",
    "optimizers",
    "schedulers",
    "data",
    "models",
    "checkpoints",
    "reproducibility",
    "devices",
    "lightning",
    "wandb",
)


def place_of(path: Path) -> tuple[int, str]:
    """Where a chapter's directory, or a file in it, stands in the book: a key to sort by."""
    names = [name for name in path.parts if name in READING_ORDER]
    place = READING_ORDER.index(names[-1]) if names else len(READING_ORDER)
    return place, str(path)


class Book(pytest.Package):
    """The directory of the chapters: pytest collects them in reading order."""

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        return sorted(super().collect(), key=lambda collected: place_of(collected.path))


@pytest.hookimpl(tryfirst=True)
def pytest_collect_directory(path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Take the directory of the chapters for the book that it is."""
    if (path / READING_ORDER[0]).is_dir() and (path / "__init__.py").is_file():
        book: pytest.Collector = Book.from_parent(parent, path=path)
        return book
    return None
