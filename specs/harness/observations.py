"""Observations: what a spec saw, written down so that two runs can be compared bit for bit."""

from __future__ import annotations

import hashlib
import inspect
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from specs.harness.collection import JUDGED
from specs.harness.signatures import without_annotations

OBSERVED = pytest.StashKey[dict[str, Any]]()

#: Tensors with more elements than this are recorded by digest and summary.
LISTED_ELEMENTS = 64

#: Messages are recorded up to this length: their endings change most often.
MESSAGE_LENGTH = 120


class Observe:
    """The `observe` fixture: `observe("floor", loss)` records a value under a name.

    Numbers, strings, tensors, sequences and mappings of them, exceptions, caught warnings and
    signatures can be recorded; each name once per test. What a violation shows is not recorded.
    `depends_on="torch_build"` names a fact of the ledger's "machine": two ledgers that differ in it
    are not compared in this value.

    Raises TypeError for a value that has no record, ValueError for a name that is taken.
    """

    def __init__(self, recorded: dict[str, Any], *, keep: bool) -> None:
        self._recorded = recorded
        self._keep = keep

    def __call__(self, name: str, value: Any, *, depends_on: str | None = None) -> None:
        if name in self._recorded:
            raise ValueError(f"{name!r} is observed twice in one test")
        record = as_record(value)
        if depends_on is not None:
            record = {"type": "depending", "depends_on": depends_on, "value": record}
        if self._keep:
            self._recorded[name] = record


@pytest.fixture
def observe(request: pytest.FixtureRequest) -> Observe:
    """Record a value that an upgrade could move: `observe(name, value)`."""
    judged = request.node.stash.get(JUDGED, None)
    recorded = request.node.stash.setdefault(OBSERVED, {})
    return Observe(recorded, keep=judged is None or judged.violation is None)


def as_record(value: Any) -> Any:
    """The JSON form of an observed value, exact and with its type.

    Floats are written in hexadecimal beside their decimal form, since JSON has neither infinities
    nor a promise to keep the last bit.

    Raises TypeError for a value of any other type.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return {"type": "float", "value": repr(value), "hex": value.hex()}
    if isinstance(value, warnings.WarningMessage):
        return {
            "type": "warning",
            "category": value.category.__name__,
            "message": _opening(value.message),
            "file": value.filename.rpartition("/")[2],
        }
    if isinstance(value, BaseException):
        return {"type": "exception", "class": type(value).__name__, "message": _opening(value)}
    if isinstance(value, inspect.Signature):
        return {"type": "signature", "text": without_annotations(value)}
    if isinstance(value, Mapping):
        return {
            "type": "mapping",
            "items": {str(key): as_record(one) for key, one in value.items()},
        }
    torch = sys.modules.get("torch")
    if torch is not None:
        if isinstance(value, torch.Tensor):
            return _tensor_record(value)
        if isinstance(value, torch.dtype | torch.device | torch.Size):
            return {"type": type(value).__name__, "value": str(value)}
    if isinstance(value, Sequence):
        return [as_record(one) for one in value]
    raise TypeError(f"no record for an observation of type {type(value).__name__}")


def _tensor_record(tensor: Any) -> dict[str, Any]:
    record: dict[str, Any] = {
        "type": "tensor",
        "dtype": str(tensor.dtype),
        "shape": list(tensor.shape),
    }
    flat = tensor.detach().cpu().contiguous().flatten()
    if flat.numel() <= LISTED_ELEMENTS:
        return record | {"values": as_record(flat.tolist())}
    wide = flat.double()
    # Tells two orders of the same values apart, as the others do not.
    places = sys.modules["torch"].linspace(0, 1, len(wide), dtype=wide.dtype)
    statistics = {"min": wide.min(), "max": wide.max(), "mean": wide.mean(), "std": wide.std()}
    statistics["weighted by place"] = (wide * places).mean()
    raw = flat.view(sys.modules["torch"].uint8).numpy().tobytes()
    return record | {
        "sha256": hashlib.sha256(raw).hexdigest(),
        "summary": {name: as_record(one.item()) for name, one in statistics.items()},
    }


def _opening(message: object) -> str:
    lines = str(message).strip().splitlines()
    return lines[0][:MESSAGE_LENGTH] if lines else ""
