"""When two recorded numbers differ, and whether rounding explains it."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

#: Relative difference that rounding may cause: other machines and releases add in another order,
#: and a training of a hundred steps carries that on. A change of a formula moves numbers by more.
ROUNDING = 1e-5

#: Difference between numbers around 0 that is taken for rounding whatever their size.
NOTHING = 1e-12

#: Distance from 1 to the next number: what one ulp is, relative to the number.
EPSILON = {
    "torch.float64": 2.0**-52,
    "torch.float32": 2.0**-23,
    "torch.float16": 2.0**-10,
    "torch.bfloat16": 2.0**-7,
}


class Moved(NamedTuple):
    """Where some numbers differ most, and by how much."""

    place: int
    old: float
    new: float
    ulps: float
    beyond_rounding: bool


def number(record: Any) -> float | None:
    """The number of a recorded float; None for any other record."""
    if isinstance(record, dict) and record.get("type") == "float":
        return float.fromhex(record["hex"])
    return None


def moved(old: Sequence[float], new: Sequence[float], dtype: str | None = None) -> Moved | None:
    """The largest difference between numbers that belong together; None if there is none.

    Rounding is measured against the largest of all of them: a gradient of 1e-9 beside others of 1
    is rounding itself. Numbers without a dtype are taken for float32 where both can be.
    """
    finite = [abs(one) for one in (*old, *new) if math.isfinite(one)]
    scale = max(finite, default=0.0)
    worst: Moved | None = None
    for place, (before, after) in enumerate(zip(old, new, strict=True)):
        if before == after or (math.isnan(before) and math.isnan(after)):
            continue
        epsilon = EPSILON.get(dtype or "", 0.0) or _epsilon_of(before, after)
        distance = abs(before - after)
        if not math.isfinite(distance):
            return Moved(place, before, after, math.inf, True)
        beyond = distance > max(ROUNDING, 2 * epsilon) * scale and distance > NOTHING
        ulps = distance / (epsilon * max(abs(before), abs(after)))
        if worst is None or (beyond, distance) > (
            worst.beyond_rounding,
            abs(worst.old - worst.new),
        ):
            worst = Moved(place, before, after, ulps, beyond)
    return worst


def _epsilon_of(*values: float) -> float:
    """That of float32 if all values are ones, else that of float64."""
    return EPSILON["torch.float32" if all(map(_is_float32, values)) else "torch.float64"]


def _is_float32(value: float) -> bool:
    try:
        (narrow,) = struct.unpack("f", struct.pack("f", value))
    except OverflowError:
        return False
    return bool(narrow == value)
