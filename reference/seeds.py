"""Making a run repeat itself: every global generator seeded, every algorithm deterministic.

Source: https://docs.pytorch.org/docs/stable/notes/randomness.html
"""

from __future__ import annotations

import os
import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, of NumPy and of torch (CPU and accelerators).

    Generator objects that a program made itself are not reached: seed each where it is made.

    Raises ValueError, before anything is seeded, unless 0 <= seed < 2**32: NumPy takes no other.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"a seed is from 0 to 2**32 - 1, got {seed}")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def be_deterministic() -> None:
    """Have every operation give the same bits for the same input, or raise RuntimeError.

    Also stops cuDNN from choosing its algorithm by a race, and gives cuBLAS the workspace that it
    needs to be deterministic, unless the environment has one; call it before CUDA is used. It
    seeds nothing.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)
