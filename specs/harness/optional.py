"""Packages that a machine may lack: what needs them is skipped with a reason, the rest runs."""

from __future__ import annotations

import importlib
from typing import Any, NoReturn

import pytest

#: The project's own package that is bound like this: it lacks what its references are built on.
REFERENCES = "reference"


def optional(name: str) -> Any:
    """The module `name`; where it does not import, a stand-in that skips the tests that use it.

    A spec file binds it where an import would stand:

        transforms = optional("torchvision.transforms.v2")

    so that its rules are declared, and counted as skipped, also on a machine without torchvision.
    The reason names the package and what is wrong with it.
    """
    top = name.partition(".")[0]
    package = name if top == REFERENCES else top
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == package or top == REFERENCES:
            return Missing(name, f"needs {error.name}, which is not installed")
        return Missing(name, _broken(package, error))
    # Compiled parts that were built for another torch raise anything: RuntimeError, OSError.
    except Exception as error:
        return Missing(name, _broken(package, error))


class Missing:
    """Stands for a module that does not import, and for everything in it.

    While a file is collected, attributes may be named and classes derived. The test that calls it,
    makes an object of it or of a derived class, loops over it, or asks whether something is an
    instance of it, is skipped.
    """

    def __init__(self, name: str, reason: str) -> None:
        self.reason = reason
        # By these the harness labels a subject, and the label is the same where it does import.
        self.__module__, _, self.__name__ = name.rpartition(".")

    def __getattr__(self, name: str) -> Missing:
        if name.startswith("__"):  # a stand-in does not pretend to be wrapped or an array
            raise AttributeError(name)
        return Missing(f"{self.__module__}.{self.__name__}.{name}", self.reason)

    def __mro_entries__(self, bases: tuple[object, ...]) -> tuple[type, ...]:
        return (type(self.__name__, (), {"__new__": self.__call__}),)

    def __call__(self, *_: object, **__: object) -> NoReturn:
        pytest.skip(self.reason)

    __iter__ = __len__ = __getitem__ = __enter__ = __instancecheck__ = __call__


def _broken(package: str, error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"needs {package}, which does not import: {lines[0] if lines else type(error).__name__}"
