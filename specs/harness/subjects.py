"""`--subject`: the user's own implementations, judged in place of PyTorch's."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

#: The name under which a file given to `--subject` is imported.
FILE_MODULE = "rulebook_subject"


def label_of(target: Any) -> str:
    """The short name of where an implementation comes from: "torch", "reference", "my_module"."""
    module = getattr(target, "__module__", None)
    if module is None:  # built-in functions of torch name only the class that they hang on
        module = getattr(getattr(target, "__self__", None), "__module__", None) or "subject"
    top, *inner = module.split(".")
    return str(inner[-1] if top == "specs" and inner else top)


def load_subject(given: str, start: Path) -> ModuleType:
    """Import the file or module that `--subject` names; paths are relative to `start`.

    Raises pytest.UsageError with one line that says what is wrong with it.
    """
    path = start / given
    if not given.endswith(".py") and not path.is_file():
        return _imported(given, lambda: _import_module(given))
    if not path.is_file():
        raise pytest.UsageError(f"--subject {given}: no such file")
    return _imported(given, lambda: _import_file(path))


def _imported(given: str, load: Any) -> ModuleType:
    try:
        module: ModuleType = load()
    except pytest.UsageError:
        raise
    except (Exception, SystemExit) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        line = where.lineno
        if isinstance(error, SyntaxError) and error.lineno is not None:
            where, line = traceback.FrameSummary(error.filename or given, 0, ""), error.lineno
        reason = str(error).splitlines()[0] if str(error) else "no message"
        raise pytest.UsageError(
            f"--subject {given} does not import: {type(error).__name__}: {reason}"
            f" ({Path(where.filename).name}, line {line})"
        ) from None
    return module


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and name.startswith(error.name):
            raise pytest.UsageError(
                f"--subject {name}: neither a file nor an importable module"
            ) from None
        raise


def _import_file(path: Path) -> ModuleType:
    found = importlib.util.spec_from_file_location(FILE_MODULE, path)
    if found is None or found.loader is None:
        raise pytest.UsageError(f"--subject {path.name}: not a Python file")
    module = importlib.util.module_from_spec(found)
    sys.modules[FILE_MODULE] = module  # dataclasses and pickle look their module up by name
    found.loader.exec_module(module)
    return module
