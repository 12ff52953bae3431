"""Inputs for properties: what hypothesis draws shapes, dtypes and tensors from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor


def dtypes() -> st.SearchStrategy[torch.dtype]:
    """float32 or float64."""
    return st.sampled_from([torch.float32, torch.float64])


def shapes(
    *, min_dims: int = 1, max_dims: int = 2, min_side: int = 0, max_side: int = 4
) -> st.SearchStrategy[tuple[int, ...]]:
    """Small shapes, with empty and size-one sides among them."""
    return st.lists(st.integers(min_side, max_side), min_size=min_dims, max_size=max_dims).map(
        tuple
    )


@st.composite
def tensors(
    draw: st.DrawFn,
    *,
    dtype: Any = torch.float64,
    shape: Any = (),
    low: float = -10.0,
    high: float = 10.0,
    special: Sequence[float] = (),
) -> Tensor:
    """Tensors of numbers from `low` to `high`, with the `special` ones mixed in.

    dtype and shape may be given as values or as strategies. `low` and `high` should be exact in
    float32, since the numbers are.
    """
    chosen_dtype = draw(dtype) if isinstance(dtype, st.SearchStrategy) else dtype
    chosen_shape = draw(shape) if isinstance(shape, st.SearchStrategy) else shape
    numbers: st.SearchStrategy[float] = st.floats(low, high, width=32)
    if special:
        numbers = numbers | st.sampled_from(list(special))
    count = math.prod(chosen_shape)
    values = draw(st.lists(numbers, min_size=count, max_size=count))
    return torch.tensor(values, dtype=chosen_dtype).reshape(chosen_shape)
