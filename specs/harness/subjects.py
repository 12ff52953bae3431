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
    if module is None:  # built-in functions and methods of torch name only the class they hang on
        owner = getattr(target, "__objclass__", None) or getattr(target, "__self__", None)
        module = getattr(owner, "__module__", None) or "subject"
    top, *inner = module.split(".")
    return str(inner[-1] if top == "specs" and inner else top)


def label_of_module(module: ModuleType) -> str:
    """The short name of the module that `--subject` gave: a file's own name, without ".py"."""
    if module.__name__ == FILE_MODULE and module.__file__ is not None:
        return Path(module.__file__).stem
    return module.__name__.rpartition(".")[2]


def load_subject(given: str, start: Path) -> ModuleType:
    """Import the file or module that `--subject` names; paths are relative to `start`.

    Raises pytest.UsageError with one line that says what is wrong with it.
    """
    if not given.strip():
        raise pytest.UsageError("--subject: expected a file or a module")
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
        message, place = str(error), traceback.extract_tb(error.__traceback__)[-1]
        file, line = place.filename, place.lineno
        if isinstance(error, SyntaxError):  # it names a place that never ran
            message, file, line = error.msg, error.filename or given, error.lineno
        reason = message.splitlines()[0] if message else "no message"
        raise pytest.UsageError(
            f"--subject {given} does not import: {type(error).__name__}: {reason}"
            f" ({Path(file).name}, line {line})"
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
