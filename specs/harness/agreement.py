"""Comparing what a subject gave with what the reference gave, to a tolerance that is explained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class Agreement:
    """The outcome of a comparison: true or false, and in a failed assertion it says why."""

    def __init__(self, agrees: bool, explain: Callable[[], str]) -> None:
        self._agrees = agrees
        self._explain = explain

    def __bool__(self) -> bool:
        return self._agrees

    def __repr__(self) -> str:
        return f"<{self._explain()}>"


def agree(got: Any, expected: Any, *, ulps: float = 16, scale: float = 1.0) -> Agreement:
    """Does every number that the subject gave agree with the reference's, up to rounding?

    got: a tensor, a number, or a (nested) sequence of numbers; expected: the same shape of numbers,
        normally float64.
    ulps: how many units in the last place of `got`'s dtype may be lost, about one for each rounding
        on the way; 0 asks for equality.
    scale: size of the largest intermediate result. The allowed error is
        ulps * eps(dtype of got) * max(|expected|, scale).

    Infinities agree with the same infinity, nan agrees with nan. The shapes must be the same.
    """
    dtype = got.dtype if isinstance(got, Tensor) and got.is_floating_point() else torch.float64
    subject, reference = _float64(got), _float64(expected)
    if subject.shape != reference.shape:
        shapes = f"shapes {tuple(subject.shape)} and {tuple(reference.shape)} differ"
        return Agreement(False, lambda: f"{_both(subject, reference)}: {shapes}")
    allowed = ulps * torch.finfo(dtype).eps * reference.abs().clamp(min=scale)
    error = (subject - reference).abs()
    same = (subject == reference) | (subject.isnan() & reference.isnan())
    # Where the reference is infinite so is `allowed`: there only equality counts.
    wrong = ~same & ~((error <= allowed) & reference.isfinite())
    if not wrong.any():
        return Agreement(True, lambda: _both(subject, reference))

    def explain() -> str:
        excess = torch.where(wrong, (error / allowed).nan_to_num(nan=torch.inf), -1.0)
        worst = tuple((excess == excess.max()).nonzero()[0].tolist())
        return (
            f"{_both(subject, reference)}; worst at {list(worst)}: {subject[worst].item()!r} for"
            f" {reference[worst].item()!r}, off by {error[worst].item():.3g} where"
            f" {allowed[worst].item():.3g} is allowed, {int(wrong.sum())} of {wrong.numel()} wrong"
        )

    return Agreement(False, explain)


def _both(subject: Tensor, reference: Tensor) -> str:
    return f"the subject gave {_shown(subject)}, the reference gave {_shown(reference)}"


def _float64(numbers: Any) -> Tensor:
    if isinstance(numbers, Tensor):
        return numbers.detach().cpu().double()
    if isinstance(numbers, Sequence) and any(isinstance(one, Tensor | Sequence) for one in numbers):
        return torch.stack([_float64(one) for one in numbers])
    return torch.as_tensor(numbers, dtype=torch.float64)


def _shown(numbers: Tensor) -> str:
    """All of a few numbers, the first ones of many."""
    if numbers.dim() == 0:
        return repr(numbers.item())
    flat = numbers.flatten().tolist()
    first = ", ".join(f"{number:.9g}" for number in flat[:8])
    return f"[{first}{', ...' if len(flat) > 8 else ''}]"
