"""Packages that a machine may lack: what needs them is skipped with a reason, the rest runs."""

from __future__ import annotations

import importlib
from typing import Any, NoReturn

import pytest


def optional(name: str) -> Any:
    """The module `name`; where it does not import, a stand-in that skips the tests that use it.

    A spec file binds it where an import would stand:

        torchvision = optional("torchvision")

    so that its rules are declared, and counted as skipped, also on a machine without it. The
    reason names the package and says what is wrong with it.
    """
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == package:
            return Missing(f"needs {package}, which is not installed")
        return Missing(_broken(package, error))
    # Compiled parts that were built for another torch raise anything: RuntimeError, OSError.
    except Exception as error:
        return Missing(_broken(package, error))


class Missing:
    """Stands for a module that does not import, and for everything in it.

    Attributes may be named and classes derived while a file is collected. Calling it, looping over
    it or comparing it skips the test that does so.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __getattr__(self, name: str) -> Missing:
        if name.startswith("__"):  # no stand-in claims to be wrapped, decorated or iterable
            raise AttributeError(name)
        return Missing(self.reason)

    def __mro_entries__(self, bases: tuple[object, ...]) -> tuple[type, ...]:
        return ()

    def __call__(self, *_: object, **__: object) -> NoReturn:
        pytest.skip(self.reason)

    __iter__ = __len__ = __getitem__ = __enter__ = __call__


def _broken(package: str, error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"needs {package}, which does not import: {lines[0] if lines else type(error).__name__}"
