"""A way to pollute each piece of global state, and a reading of all of it as text."""

from __future__ import annotations

import os
import random
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from specs.harness.state import known_states


def _pollute_environment() -> None:
    os.environ["RULEBOOK_LITTER"] = "1"
    os.environ["PATH"] = "/nowhere"
    os.environ.pop("HOME", None)


def _pollute_autocast() -> None:
    torch.set_autocast_enabled("cpu", True)
    torch.set_autocast_dtype("cpu", torch.float16)
    torch.set_autocast_cache_enabled(False)


#: How each known piece of state is polluted. A new piece needs an entry here.
POLLUTIONS: dict[str, Callable[[], Any]] = {
    "environment": _pollute_environment,
    "working directory": lambda: os.chdir("/"),
    "import path": lambda: sys.path.insert(0, "/nowhere"),
    "warning filters": lambda: warnings.simplefilter("error"),
    "random": lambda: random.seed(7),
    "numpy.random": lambda: np.random.seed(7),
    "numpy.errstate": lambda: np.seterr(all="raise"),
    "torch random": lambda: torch.manual_seed(7),
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "default device": lambda: torch.set_default_device("meta"),
    "threads": lambda: torch.set_num_threads(3),
    "grad mode": lambda: torch.set_grad_enabled(False),
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
    "deterministic algorithms": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "fill_uninitialized_memory": lambda: setattr(
        torch.utils.deterministic, "fill_uninitialized_memory", False
    ),
    "autocast": _pollute_autocast,
    "matmul precision": lambda: torch.set_float32_matmul_precision("medium"),
    "warn always": lambda: torch.set_warn_always(True),
    "safe globals": lambda: torch.serialization.add_safe_globals([Path]),
    "benchmark": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "deterministic": lambda: setattr(torch.backends.cudnn, "deterministic", True),
    "enabled": lambda: setattr(torch.backends.cudnn, "enabled", False),
}


def readings() -> dict[str, str]:
    """Every known piece of state as text, in an order that does not depend on its history."""
    read = {state.name: state.read() for state in known_states()}
    read["environment"] = sorted(
        (name, value)
        for name, value in read["environment"].items()
        if name != "PYTEST_CURRENT_TEST"  # pytest's own, different in each test
    )
    read["torch random"] = read["torch random"].tolist()
    with np.printoptions(threshold=sys.maxsize):
        return {name: repr(value) for name, value in read.items()}
