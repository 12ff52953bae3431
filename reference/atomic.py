"""Saving so that a crash leaves a whole file, and noticing a file that is not whole.

Source: https://docs.pytorch.org/docs/stable/generated/torch.save.html and
https://docs.python.org/3/library/os.html#os.replace
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import torch


def save_atomically(value: Any, path: Path) -> None:
    """Write `value` beside `path`, then put the finished file in its place in one step.

    At any moment `path` is the old file or the new one, and never a part of one. The new file
    lies in the same folder until then, since between two disks there is no such step; it is on the
    disk before it gets its name, so that this also holds for a power cut.

    Raises what torch.save raises; the old file then stays, and the unfinished one is removed.
    """
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        with unfinished.open("wb") as file:
            torch.save(value, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def is_intact(path: Path) -> bool:
    """Whether the file is there, complete, and every byte in it is the one that was written.

    torch.save writes a zip archive with a checksum for each member; the member data.pkl says which
    values the others hold. An interrupted save can leave a well-formed archive without it. Checking
    takes as long as reading the file.
    """
    if not path.is_file():
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            has_values = any(name.endswith("/data.pkl") for name in archive.namelist())
            return has_values and archive.testzip() is None
    except zipfile.BadZipFile:
        return False
