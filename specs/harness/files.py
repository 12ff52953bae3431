"""Files that a run writes: checked before it starts, and written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest


def check_destination(option: str, given: str, start: Path) -> Path:
    """The absolute path of a file to write.

    Raises pytest.UsageError if nothing can be written there.
    """
    if not given.strip():
        raise pytest.UsageError(f"{option}: expected a file")
    path = (start / given).absolute()
    if path.is_dir():
        raise pytest.UsageError(f"{option} {given}: is a directory, expected a file")
    if not path.parent.is_dir():
        raise pytest.UsageError(f"{option} {given}: no directory {path.parent}")
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise pytest.UsageError(f"{option} {given}: not writable")
    return path


def write(text: str, path: Path) -> None:
    """Write the text beside `path`, then move it there in one step.

    Whoever reads `path` finds the old file or the new one, never half of one. Raises OSError if
    the disk refuses; the old file is then still there.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
