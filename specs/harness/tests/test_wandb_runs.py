"""reference/wandb_runs.py reads W&B's files: records across blocks, and files that are damaged."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest

pytest.importorskip("wandb")

from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

from reference.wandb_runs import records_in, run_in, runs_in

HEADER = b":W&B\xe1\xbe\x00"


def piece(type_: int, data: bytes) -> bytes:
    """A piece of a record with its head: checksum, length, type."""
    checksum = zlib.crc32(bytes([type_]) + data)
    return struct.pack("<IHB", checksum, len(data), type_) + data


def file_of_a_run(directory: Path, content: bytes) -> Path:
    path = directory / "wandb" / "offline-run-20260131_120000-abc" / "run-abc.wandb"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def whole_run() -> bytes:
    """A run with one config key, one row of history, and its exit."""
    start, row, end = Record(), Record(), Record()
    start.run.project = "digits"
    start.run.config.update.add(key="lr", value_json="0.1")
    row.history.item.add(nested_key=["_step"], value_json="0")
    row.history.item.add(nested_key=["val", "loss"], value_json="2.5")
    end.exit.exit_code = 3
    records = [record.SerializeToString() for record in (start, row, end)]
    return HEADER + b"".join(piece(1, record) for record in records)


def test_a_run_is_read_back(tmp_path: Path) -> None:
    file_of_a_run(tmp_path, whole_run())

    [run] = runs_in(tmp_path)

    assert (run.id, run.project, run.mode, run.exit_code) == ("abc", "digits", "offline", 3)
    assert run.config == {"lr": 0.1}
    assert run.history == [{"_step": 0, "val": {"loss": 2.5}}]


def test_a_record_may_cross_the_ends_of_blocks() -> None:
    """Three pieces; the header takes 7 bytes of the first block, and each head of a piece 7."""
    record = bytes(range(256)) * 300  # 76,800 bytes
    first, second = 32768 - 7 - 7, 32768 - 7
    pieces = [record[:first], record[first : first + second], record[first + second :]]

    content = HEADER + b"".join(
        piece(type_, part) for type_, part in zip((2, 3, 4), pieces, strict=True)
    )

    assert list(records_in(content)) == [record]


def test_the_rest_of_a_block_is_skipped_if_no_head_fits() -> None:
    fills_all_but_six = bytes(32768 - 7 - 7 - 6)

    content = HEADER + piece(1, fills_all_but_six) + bytes(6) + piece(1, b"next")

    assert list(records_in(content)) == [fills_all_but_six, b"next"]


@pytest.mark.parametrize("content", [b"", HEADER])
def test_a_run_of_which_nothing_was_written_has_its_id_only(tmp_path: Path, content: bytes) -> None:
    run = run_in(file_of_a_run(tmp_path, content))

    assert (run.id, run.config, run.history, run.exit_code) == ("abc", {}, [], None)


DAMAGED = {
    "foreign": (b"PK\x03\x04 an archive", "does not begin with W&B's header"),
    "half a header": (HEADER[:4], "does not begin with W&B's header"),
    "half a head": (whole_run()[:10], "ends within the piece at byte 7"),
    "half a piece": (whole_run()[:-1], "ends within the piece"),
    "half a record": (HEADER + piece(2, b"first"), "ends within a record"),
    "changed": (whole_run().replace(b"digits", b"digitz"), "checksum of the piece at byte 7"),
    "out of order": (HEADER + piece(3, b"middle"), "does not follow the one before it"),
    "no record": (HEADER + piece(1, b"\xff\xff"), "does not hold a whole W&B run"),
}


@pytest.mark.parametrize(("content", "reason"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_one_error_with_its_path(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = file_of_a_run(tmp_path, content)

    with pytest.raises(ValueError, match=reason) as caught:
        run_in(path)
    assert str(path) in str(caught.value)
