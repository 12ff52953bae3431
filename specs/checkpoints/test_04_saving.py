"""Saving a checkpoint so that a crash does not cost the run.

At the end you know how a crash while saving destroys the only checkpoint, how to save so that it
does not, and which damage torch.load notices in a file.

Read before: lesson 12 (CKPT-05: what belongs into a checkpoint).
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pytest
import torch

from reference.atomic import is_intact, save_atomically
from reference.checkpoint import load_checkpoint, save_checkpoint
from specs.harness import raising, rule, spec

SAVE = "https://docs.pytorch.org/docs/stable/generated/torch.save.html"

Function = Callable[..., Any]


class Interruption:
    """A value at which saving is interrupted: `when_written` runs in the middle of the file."""

    def __init__(self, when_written: Callable[[], Any]) -> None:
        self.when_written = when_written

    def __reduce__(self) -> Any:
        self.when_written()
        return OrderedDict, ()  # if the program is still alive, an empty dictionary is saved


def crash() -> None:
    """The process is killed, the disk is full, a value cannot be saved."""
    raise KeyboardInterrupt


def in_place(value: Any, path: Path) -> None:
    """Writes over the old file."""
    torch.save(value, path)


def removes_the_old_first(value: Any, path: Path) -> None:
    """Makes room for the new file, before there is one."""
    path.unlink(missing_ok=True)
    save_atomically(value, path)


def leaves_its_draft(value: Any, path: Path) -> None:
    """Lets unfinished files pile up, as large as a checkpoint each."""
    draft = Path(tempfile.mkdtemp(dir=path.parent)) / path.name
    torch.save(value, draft)
    os.replace(draft, path)


@rule(
    "CKPT-11",
    "Write a checkpoint beside the old one and let os.replace put it in its place: then a crash"
    " leaves a whole file.",
    kind="practice",
    source=SAVE,
    subject=save_atomically,
    violated_by=[in_place, removes_the_old_first, leaves_its_draft],
    consequence="a run that is interrupted while it saves its 8th epoch in place has 0 epochs left:"
    " neither the 8th nor the 7th can be read",
)
def test_a_crash_leaves_the_old_checkpoint(save_atomically: Function, tmp_path: Path) -> None:
    """And no half-written one beside it. A crash says KeyboardInterrupt here, as Ctrl-C does."""
    path = tmp_path / "run.pt"
    torch.save({"epoch": 7}, path)
    next_one = {"epoch": 8, "weights": torch.zeros(1000), "late": Interruption(crash)}

    with pytest.raises(KeyboardInterrupt):
        save_atomically(next_one, path)

    assert is_intact(path)
    assert torch.load(path) == {"epoch": 7}
    assert os.listdir(tmp_path) == ["run.pt"]


@spec("CKPT-11", violated_by=[in_place, removes_the_old_first])
def test_the_old_checkpoint_is_whole_until_the_new_one_is(
    save_atomically: Function, tmp_path: Path
) -> None:
    """A power cut runs no `except`. So look at the file while the new one is being written."""
    path, meanwhile = tmp_path / "run.pt", []

    def look() -> None:
        meanwhile.append(torch.load(path) if is_intact(path) else "no checkpoint")

    save_atomically({"epoch": 7}, path)
    save_atomically({"epoch": 8, "late": Interruption(look)}, path)

    assert meanwhile == [{"epoch": 7}]
    assert torch.load(path) == {"epoch": 8, "late": {}}


def trusts_the_cache(value: Any, path: Path) -> None:
    """Renames a file whose bytes may not have reached the disk yet."""
    draft = path.with_name("draft")
    torch.save(value, draft)
    os.replace(draft, path)


def made_in_memory(value: Any, path: Path) -> None:
    """Has all bytes ready before it opens the file, which still takes its time to be written."""
    file = io.BytesIO()
    torch.save(value, file)
    path.write_bytes(file.getvalue())


def from_another_folder(value: Any, path: Path) -> None:
    """Writes the new file where temporary files lie, perhaps on another disk, and copies it."""
    with tempfile.NamedTemporaryFile() as draft:
        torch.save(value, draft)
        os.fsync(draft.fileno())
        shutil.copy(draft.name, path)


@spec("CKPT-11", violated_by=[in_place, trusts_the_cache, made_in_memory, from_another_folder])
def test_bytes_reach_the_disk_before_they_get_the_name(
    save_atomically: Function, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """os.replace is one step within a folder. Between two disks there is no such step."""
    events: list[tuple[str, int]] = []  # what happened, and how long the file was
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(file: int) -> None:
        events.append(("to the disk", os.fstat(file).st_size))
        fsync(file)

    def recorded_replace(source: Path, target: Path) -> None:
        same_folder = Path(source).parent == Path(target).parent
        events.append(("renamed" if same_folder else "moved", os.stat(source).st_size))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    path = tmp_path / "run.pt"
    save_atomically(torch.zeros(1000), path)

    length = path.stat().st_size
    assert events == [("to the disk", length), ("renamed", length)]
    assert is_intact(path)


def checkpoint_in_place(path: Path, **everything: Any) -> None:
    """Saves the same things over the old file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: None)
        save = torch.save
        patch.setattr(torch, "save", lambda value, _: save(value, path))
        save_checkpoint(path, **everything)


class Part:
    """A part of a run, with the state that it is given."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.state = state_dict["state"]


@spec("CKPT-11", subject=save_checkpoint, violated_by=[checkpoint_in_place])
def test_an_interrupted_run_resumes_from_the_epoch_before(
    save_checkpoint: Function, tmp_path: Path
) -> None:
    """The function of lesson 12 keeps the last whole checkpoint too."""
    path, order = tmp_path / "run.pt", torch.Generator()
    save_checkpoint(path, epoch=7, generator=order, part=Part("as of epoch 7"))

    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, epoch=8, generator=order, part=Part(Interruption(crash)))

    assert is_intact(path)
    part = Part("fresh")
    assert load_checkpoint(path, generator=order, part=part) == 7
    assert part.state == "as of epoch 7"


# --- Damaged files --------------------------------------------------------------------------------


#: What torch.load raises for a damaged file: it depends on where the damage is.
DAMAGED = (RuntimeError, EOFError, OSError, UnpicklingError)


def the_weights_in(file: Any) -> Any:
    """Gives what can be read, and nothing where that is not possible."""
    try:
        return torch.load(file)
    except DAMAGED:
        return {}


def notices_every_change(file: Any) -> Any:
    """Checks the sums of the archive before it reads."""
    with zipfile.ZipFile(file) as archive:
        if archive.testzip():
            raise RuntimeError("the archive is damaged")
    return torch.load(file)


ONES = torch.ones(1000)


def bytes_of_a_checkpoint() -> bytes:
    """The file of a thousand ones."""
    file = io.BytesIO()
    torch.save({"weight": ONES, "epoch": 7}, file)
    return file.getvalue()


@rule(
    "CKPT-12",
    "torch.load refuses a file that was cut short; a byte that changed in a tensor it loads as"
    " another weight, though the file has a checksum to tell.",
    kind="contract",
    source=SAVE,
    consequence="one bit of one byte turns a weight of 1 into 0.25, without a warning",
    subject=torch.load,
    violated_by=[the_weights_in],
)
def test_a_file_that_was_cut_short_raises(load: Function, tmp_path: Path) -> None:
    """The table of contents stands at the end of the file, so any cut loses it."""
    whole = bytes_of_a_checkpoint()
    for length in (0, 1, 3, 100, len(whole) // 2, len(whole) - 100, len(whole) - 1):
        (tmp_path / "cut.pt").write_bytes(whole[:length])
        with pytest.raises(DAMAGED):
            load(tmp_path / "cut.pt")


def with_a_bit_changed(whole: bytes) -> bytes:
    """The first weight is 1.0, the bytes 00 00 80 3f; bit 0 of 3f belongs to the exponent."""
    damaged = bytearray(whole)
    damaged[whole.index(ONES.numpy().tobytes()) + 3] ^= 1
    return bytes(damaged)


@spec("CKPT-12", violated_by=[raising(RuntimeError, notices_every_change)])
def test_a_changed_bit_loads_as_another_weight(load: Function, tmp_path: Path) -> None:
    """0x3f800000 is 2 ** 0, 0x3e800000 is 2 ** -2."""
    path = tmp_path / "damaged.pt"
    path.write_bytes(with_a_bit_changed(bytes_of_a_checkpoint()))

    weight = load(path)["weight"]

    assert weight[0] == 0.25
    assert weight[1:].eq(1.0).all()


def looks_at_the_name(path: Path) -> bool:
    """Is content with any file that is there."""
    return path.exists()


def can_be_loaded(path: Path) -> bool:
    """Takes what torch.load reads for whole."""
    try:
        torch.load(path)
    except DAMAGED:
        return False
    return True


@spec("CKPT-12", subject=is_intact, violated_by=[looks_at_the_name, can_be_loaded])
def test_the_checksums_in_the_file_tell(is_intact: Function, tmp_path: Path) -> None:
    """A checkpoint is a zip archive: Python's zipfile can check it without torch."""
    path, whole = tmp_path / "run.pt", bytes_of_a_checkpoint()
    assert not is_intact(path)

    path.write_bytes(whole)
    assert is_intact(path)
    for damaged in (with_a_bit_changed(whole), whole[:-1], b""):
        path.write_bytes(damaged)
        assert not is_intact(path)


def checks_the_sums_only(path: Path) -> bool:
    """Does not ask whether all members of the archive are there."""
    with zipfile.ZipFile(path) as archive:
        return archive.testzip() is None


@spec("CKPT-12", subject=is_intact, violated_by=[checks_the_sums_only])
def test_an_interrupted_save_leaves_a_well_formed_archive_of_nothing(
    is_intact: Function, tmp_path: Path
) -> None:
    """torch.save ends the archive properly, also when there is nothing in it yet."""
    with pytest.raises(KeyboardInterrupt):
        torch.save({"weights": torch.ones(1000), "late": Interruption(crash)}, tmp_path / "run.pt")
    assert not is_intact(tmp_path / "run.pt")
    with pytest.raises(DAMAGED):
        torch.load(tmp_path / "run.pt")
