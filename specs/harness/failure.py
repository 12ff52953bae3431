"""What a failing rule prints below the traceback: the rule, its source, and how to see it again."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Generator
from traceback import walk_tb
from types import FrameType, TracebackType
from typing import Any

import pytest

from specs.harness.collection import JUDGED, Judged
from specs.harness.observations import LISTED_ELEMENTS, Observe
from specs.harness.subjects import FILE_MODULE


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add a section about the rule to the report of a test that failed."""
    report = yield
    judged = item.stash.get(JUDGED, None)
    if judged is not None and report.failed and isinstance(item, pytest.Function):
        report.sections.append((f"Rule {judged.rule.id}", _explanation(item, judged, call)))
    return report


def _explanation(item: pytest.Function, judged: Judged, call: pytest.CallInfo[None]) -> str:
    rule = judged.rule
    judged_name = getattr(judged.target, "__qualname__", repr(judged.target))
    lines = [
        rule.statement,
        f"judged:    {judged_name} ({judged.label})",
        f"source:    {rule.source}",
    ]
    prompt = None
    if judged.violation is None and call.excinfo is not None:
        prompt = python_line(item, judged, call.excinfo.tb)
    if prompt is not None:
        lines.append(f"reproduce: {prompt}")
    options = [
        f"--{name} {given}" for name in ("subject", "device") if (given := _given(item, name))
    ]
    lines.append(" ".join([f"run again: pytest '{item.nodeid}'", *options]))
    return "\n".join(lines)


def _given(item: pytest.Item, option: str) -> str | None:
    """An option's value, if it is not the default."""
    value = item.config.getoption(option)
    return None if value in (None, "cpu") else str(value)


def python_line(
    item: pytest.Function, judged: Judged, traceback: TracebackType | None
) -> str | None:
    """One line that shows the failure again in a Python prompt at the project's root.

    It calls the spec with the arguments that it failed with: those that hypothesis found smallest,
    if it drew them. None if an argument cannot be written as Python.
    """
    handle = getattr(item.obj, "hypothesis", None)
    function = item.function if handle is None else handle.inner_test
    frame = _frame_of(function, traceback)
    home = _home_of(judged.target)
    if frame is None or home is None or item.cls is not None:
        return None
    arguments = []
    for name in inspect.signature(function).parameters:
        text = home[1] if name == judged.parameter else _literal(frame.f_locals.get(name))
        if text is None:
            return None
        arguments.append(f"{name}={text}")
    test = item.function.__name__ + ("" if handle is None else ".hypothesis.inner_test")
    module = item.function.__module__
    return (
        f"import torch; from {module} import {item.function.__name__};"
        f" from {home[0]} import {home[1]}; {test}({', '.join(arguments)})"
    )


def _frame_of(function: Any, trace: TracebackType | None) -> FrameType | None:
    """The last frame in which the function ran: hypothesis calls a test many times."""
    frames = [frame for frame, _ in walk_tb(trace) if frame.f_code is function.__code__]
    return frames[-1] if frames else None


def _home_of(target: Any) -> tuple[str, str] | None:
    """The module that a subject can be imported from, and its name there."""
    name = getattr(target, "__name__", None)
    if name is None:
        return None
    for module in (getattr(target, "__module__", None), "torch", "torch.nn.functional"):
        if module in (None, FILE_MODULE):  # no other process can import it by that name
            continue
        if getattr(sys.modules.get(module), name, None) is target:
            return module, name
    return None


def _literal(value: Any) -> str | None:
    """A value as Python source, or None."""
    torch = sys.modules.get("torch")
    if isinstance(value, float) and not math.isfinite(value):
        return f"float('{value}')"
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, Observe):
        return "print"
    if torch is not None and isinstance(value, torch.dtype):
        return str(value)
    if torch is not None and isinstance(value, torch.device):
        return f"torch.{value!r}"
    if torch is not None and isinstance(value, torch.Tensor):
        if value.numel() > LISTED_ELEMENTS:
            return None
        numbers = _literal(value.tolist())
        shape = "" if value.numel() else f".reshape({tuple(value.shape)})"
        return f"torch.tensor({numbers}, dtype={value.dtype}){shape}"
    if isinstance(value, list | tuple):
        inner = [_literal(one) for one in value]
        if None in inner:
            return None
        text = ", ".join(str(one) for one in inner)
        if isinstance(value, list):
            return f"[{text}]"
        return f"({text},)" if len(inner) == 1 else f"({text})"
    if isinstance(value, dict):
        pairs = [(_literal(key), _literal(one)) for key, one in value.items()]
        if any(None in pair for pair in pairs):
            return None
        return "{" + ", ".join(f"{key}: {one}" for key, one in pairs) + "}"
    return None
