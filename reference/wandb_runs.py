"""Reads W&B runs back from the files that they leave: what was logged, without a server.

Each run writes one file, run-ID.wandb: a log of records, the same ones that are sent to the server
online, and that `wandb sync` sends later. The file is framed like LevelDB's logs. After a header of
7 bytes it consists of blocks of 32 KiB, and each piece in a block is

    checksum (4 bytes) | length (2 bytes) | type (1 byte) | data (length bytes)

all little-endian. A record that crosses the end of a block is cut in pieces: type 1 is a whole
record, 2 its first piece, 3 one in the middle, 4 its last. A piece's head of 7 bytes is never cut:
a shorter rest of a block is filled with zeros. The data is a protobuf message, wandb's `Record`.

Sources: https://docs.wandb.ai/models/ref/cli/wandb-sync and
https://github.com/google/leveldb/blob/main/doc/log_format.md
"""

from __future__ import annotations

import gzip
import json
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

#: ":W&B", the number 0xBEE1, and version 0 of the format.
HEADER = b":W&B\xe1\xbe\x00"
BLOCK = 32 * 1024
PIECE_HEAD = struct.Struct("<IHB")
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4

#: What wandb adds to the user's values: its own notes, and when something was logged.
NOTES = ("_wandb", "_timestamp", "_runtime")


@dataclass(frozen=True)
class Artifact:
    """A logged artifact: its name, its type, and the paths of the files in its manifest."""

    name: str
    type: str
    files: list[str]


@dataclass
class Run:
    """What one run logged.

    config, summary: as they were in the end. history: one dict for each step, in the order of
    logging, with the step itself as "_step". Nested dicts stay nested. wandb's own "_wandb",
    "_timestamp" and "_runtime" are left out. x_axes: for a metric (or a pattern such as "*") that
    was defined with a step metric, the name of that metric. exit_code: 0 after success; None if
    the run never finished. mode: "offline" or "online". started: seconds since 1970.
    """

    id: str
    mode: str
    started: float
    project: str = ""
    name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    x_axes: dict[str, str] = field(default_factory=dict)
    artifacts: list[Artifact] = field(default_factory=list)
    exit_code: int | None = None


def runs_in(directory: Path | str) -> list[Run]:
    """All runs whose files lie in `directory` or below it, in the order in which they started.

    `directory` is what WANDB_DIR named, or the working directory. Raises what `run_in` raises.

    Source: https://docs.wandb.ai/models/track/environment-variables
    """
    runs = [run_in(path) for path in Path(directory).rglob("run-*.wandb")]
    return sorted(runs, key=lambda run: run.started)


def finished_runs(directory: Path | str, seconds: float = 2.0) -> list[Run]:
    """`runs_in(directory)`, as soon as each run is finished on disk, and after `seconds` as it is.

    W&B's service may write for some milliseconds after `finish()` has returned (seen with 0.22).

    Source: https://docs.wandb.ai/models/ref/python/functions/finish
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(ValueError):  # a record is half written
            runs = runs_in(directory)
            if runs and all(run.exit_code is not None for run in runs):
                return runs
        time.sleep(0.002)
    return runs_in(directory)


def run_in(path: Path | str) -> Run:
    """The run that the file `path` (.../offline-run-TIME-ID/run-ID.wandb) holds.

    A run that was killed before anything reached the disk has an empty file: then nothing but its
    id, from the file's name, is known. Raises ValueError, with the path, if the file is not one of
    W&B's, is damaged, or ends within a record.

    Source: https://docs.wandb.ai/models/ref/python/functions/init
    """
    path = Path(path)
    mode = "offline" if path.parent.name.startswith("offline-run-") else "online"
    run = Run(path.stem.removeprefix("run-"), mode, started=path.stat().st_mtime)
    try:
        for data in records_in(path.read_bytes()):
            _apply(Record.FromString(data), run)
    except (ValueError, DecodeError, OSError) as error:
        raise ValueError(f"{path} does not hold a whole W&B run: {error}") from None
    for values in (run.config, run.summary, *run.history):
        for name in NOTES:
            values.pop(name, None)
    return run


def records_in(content: bytes) -> Iterator[bytes]:
    """The records of a file, put together from their pieces and with their checksums compared.

    Raises ValueError if the header is another, a checksum differs, or a record is not complete.

    Source: https://github.com/google/leveldb/blob/main/doc/log_format.md
    """
    if not content:
        return
    if content[: len(HEADER)] != HEADER:
        raise ValueError("it does not begin with W&B's header")
    place, record = len(HEADER), None
    while place < len(content):
        rest_of_block = BLOCK - place % BLOCK
        if rest_of_block < PIECE_HEAD.size:
            place += rest_of_block
            continue
        start = place + PIECE_HEAD.size
        if start > len(content):
            raise ValueError(f"it ends within the piece at byte {place}")
        checksum, length, type_ = PIECE_HEAD.unpack_from(content, place)
        data = content[start : start + length]
        if len(data) < length:
            raise ValueError(f"it ends within the piece at byte {place}")
        if zlib.crc32(bytes([type_]) + data) != checksum:
            raise ValueError(f"the checksum of the piece at byte {place} differs")
        if (record is None) != (type_ in (WHOLE, FIRST)) or type_ not in (1, 2, 3, 4):
            raise ValueError(f"the piece at byte {place} does not follow the one before it")
        record = (record or b"") + data
        if type_ in (WHOLE, LAST):
            yield record
            record = None
        place = start + length
    if record is not None:
        raise ValueError("it ends within a record")


def _apply(record: Any, run: Run) -> None:
    """Let one record change what is known of the run; of most kinds nothing is kept."""
    kind = record.WhichOneof("record_type")
    if kind == "run":
        run.project, run.name = record.run.project, record.run.display_name
        run.started = record.run.start_time.ToNanoseconds() / 1e9
        _update(run.config, record.run.config)
    elif kind == "config":
        _update(run.config, record.config)
    elif kind == "summary":
        _update(run.summary, record.summary)
    elif kind == "history":
        row: dict[str, Any] = {}
        for item in record.history.item:
            _put(row, item, _value_of(item))
        run.history.append({"_step": row.pop("_step"), **row})
    elif kind == "metric":
        metric = record.metric
        # Up to 0.26 or so a pattern is followed by a record for each metric that it fits.
        if metric.step_metric and not metric.expanded_from_glob:
            run.x_axes[metric.name or metric.glob_name] = metric.step_metric
    elif kind == "artifact":
        artifact = record.artifact
        files = _files_in(artifact.manifest)
        run.artifacts.append(Artifact(artifact.name, artifact.type, files))
    elif kind == "exit":
        run.exit_code = record.exit.exit_code


def _update(values: dict[str, Any], change: Any) -> None:
    """Apply a record of config or summary: items that are set, and items that are removed."""
    for item in change.update:
        _put(values, item, json.loads(item.value_json))
    for item in change.remove:
        *outer, last = list(item.nested_key) or [item.key]
        inner: Any = values
        for key in outer:
            inner = inner.get(key, {})
        inner.pop(last, None)


def _put(values: dict[str, Any], item: Any, value: Any) -> None:
    """Set an item where it belongs: under its key, or below several nested ones."""
    *outer, last = list(item.nested_key) or [item.key]
    for key in outer:
        inner = values.get(key)
        if not isinstance(inner, dict):
            inner = values[key] = {}
        values = inner
    values[last] = value


def _value_of(item: Any) -> Any:
    """The value of a history item; wandb 0.31 has fields for typed values beside the JSON text."""
    kind = item.WhichOneof("value") if "value" in item.DESCRIPTOR.oneofs_by_name else None
    if kind is None:
        return json.loads(item.value_json)
    if kind == "none":
        return None
    value = getattr(item, kind)
    return json.loads(value) if kind == "json" else value


def _files_in(manifest: Any) -> list[str]:
    """The paths in a manifest; one of more than 100,000 files lies in a file of its own."""
    if not manifest.manifest_file_path:
        return [entry.path for entry in manifest.contents]
    with gzip.open(manifest.manifest_file_path, "rt", encoding="utf-8") as lines:
        return sorted(json.loads(line)["path"] for line in lines)
