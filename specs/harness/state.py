"""Global state: every test starts alike and leaves the process as it found it.

Each entry of the tables knows how to read one piece of state and how to put it back. The state of
NumPy and torch is looked at only once a spec has imported them: the harness itself imports neither.
"""

from __future__ import annotations

import os
import random
import sys
import warnings
from collections.abc import Callable, Generator
from functools import lru_cache
from typing import Any, NamedTuple

import pytest

#: Every test starts from this seed, whatever ran before it.
SEED = 0

#: Every test starts with this many threads inside torch. Sums then do not depend on the machine's
#: number of cores, and workers of xdist do not wait for each other's threads.
THREADS = 1


#: Whether a test drew from torch's global generator, or seeded it anew: then what it saw may move
#: with a random stream.
DREW = pytest.StashKey[bool]()


class State(NamedTuple):
    """One piece of global state: what it is called, how to read it, how to put it back."""

    name: str
    read: Callable[[], Any]
    restore: Callable[[Any], object]
    #: Random states are put back without being compared: nearly every test moves them.
    always: bool = False


class GlobalState:
    """A pytest plugin around every test: one thread and a fixed seed, then everything put back."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self) -> Generator[None, object, object]:
        before = [(state, state.read()) for state in known_states()]
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(THREADS)
        try:
            return (yield)
        finally:
            for state, value in before:
                if state.always or state.read() != value:
                    state.restore(value)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> Generator[None, object, object]:
        """Seed last of all, so that neither a fixture nor another plugin has drawn since."""
        random.seed(SEED)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(SEED)
        if "torch" not in sys.modules:
            return (yield)
        torch = sys.modules["torch"]
        _seed_torch()
        before = torch.get_rng_state()
        try:
            return (yield)
        finally:
            pyfuncitem.stash[DREW] = not torch.equal(before, torch.get_rng_state())


def known_states() -> list[State]:
    """All pieces of state of the modules that are imported by now."""
    states = _python_states()
    if "numpy" in sys.modules:
        states = states + _numpy_states()
    if "torch" in sys.modules:
        states = states + _torch_states()
        if sys.modules["torch"].cuda.is_initialized():
            states = states + _cuda_states()
    return states


@lru_cache(maxsize=1)
def _python_states() -> list[State]:
    return [
        State("environment", lambda: dict(os.environ), _restore_environment),
        State("working directory", os.getcwd, os.chdir),
        State("import path", lambda: list(sys.path), _restore_import_path),
        State("warning filters", lambda: list(warnings.filters), _restore_warning_filters),
        State("random", random.getstate, random.setstate, always=True),
    ]


@lru_cache(maxsize=1)
def _numpy_states() -> list[State]:
    import numpy as np

    return [
        State("numpy.random", np.random.get_state, np.random.set_state, always=True),
        State("numpy.errstate", np.geterr, lambda before: np.seterr(**before)),
    ]


@lru_cache(maxsize=1)
def _torch_states() -> list[State]:
    import torch

    def deterministic_algorithms() -> tuple[bool, bool]:
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        return torch.are_deterministic_algorithms_enabled(), warn_only

    def restore_deterministic_algorithms(before: tuple[bool, bool]) -> None:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])

    def anomaly_detection() -> tuple[bool, bool]:
        return torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()

    def restore_anomaly_detection(before: tuple[bool, bool]) -> None:
        torch.autograd.set_detect_anomaly(before[0], check_nan=before[1])

    def autocast() -> tuple[bool, torch.dtype, bool]:
        enabled, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
        return enabled, dtype, torch.is_autocast_cache_enabled()

    def restore_autocast(before: tuple[bool, torch.dtype, bool]) -> None:
        torch.set_autocast_enabled("cpu", before[0])
        torch.set_autocast_dtype("cpu", before[1])
        torch.set_autocast_cache_enabled(before[2])

    def default_device() -> torch.device:
        # torch.get_default_device fails up to 2.9 once the default device was taken away again.
        return torch.empty(0).device

    def restore_default_device(before: torch.device) -> None:
        # None takes the device mode away; naming the CPU would leave one in place.
        torch.set_default_device(None if before.type == "cpu" else before)

    def restore_safe_globals(before: list[Any]) -> None:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)

    return [
        State("torch random", torch.get_rng_state, torch.set_rng_state, always=True),
        State("default dtype", torch.get_default_dtype, torch.set_default_dtype),
        State("default device", default_device, restore_default_device),
        State("threads", torch.get_num_threads, torch.set_num_threads),
        State("grad mode", torch.is_grad_enabled, torch.set_grad_enabled),
        State("anomaly detection", anomaly_detection, restore_anomaly_detection),
        State(
            "deterministic algorithms", deterministic_algorithms, restore_deterministic_algorithms
        ),
        _flag("fill_uninitialized_memory", torch.utils.deterministic),
        State("autocast", autocast, restore_autocast),
        State(
            "matmul precision",
            torch.get_float32_matmul_precision,
            torch.set_float32_matmul_precision,
        ),
        State("warn always", torch.is_warn_always_enabled, torch.set_warn_always),
        State("safe globals", torch.serialization.get_safe_globals, restore_safe_globals),
        *(_flag(name, torch.backends.cudnn) for name in ("benchmark", "deterministic", "enabled")),
    ]


@lru_cache(maxsize=1)
def _cuda_states() -> list[State]:
    import torch

    return [
        State(
            "cuda random", torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all, always=True
        )
    ]


def _flag(name: str, module: Any) -> State:
    """State that is a plain attribute of a module."""
    return State(name, lambda: getattr(module, name), lambda before: setattr(module, name, before))


def _seed_torch() -> None:
    """Seed torch's generators, those of accelerators only where they are in use.

    torch.manual_seed would do, but it also notes down, with a stack trace, to seed a CUDA that was
    never started: a millisecond that every test would pay.
    """
    import torch

    torch.default_generator.manual_seed(SEED)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(SEED)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(SEED)


def _restore_environment(before: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(before)


def _restore_import_path(before: list[str]) -> None:
    sys.path[:] = before


def _restore_warning_filters(before: list[Any]) -> None:
    warnings.resetwarnings()  # also tells the warnings module that its filters changed
    warnings.filters[:] = before  # type: ignore[index]
