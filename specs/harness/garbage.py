"""Python's search for reference cycles, which costs a run seconds and finds next to nothing."""

from __future__ import annotations

import gc
from collections.abc import Generator

import pytest

#: Objects more than were freed, until the youngest ones are searched; then how often the older ones
#: are, relative to that. Python's own numbers are 700 (or 2000), 10 and 10.
THRESHOLDS = (3000, 20, 30)


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop() -> Generator[None, object, object]:
    """Search less often, and not among what the imports have made: that stays."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    try:
        return (yield)
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
