"""Which releases are installed: for specs that say from which one a behaviour holds."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

#: The packages whose releases decide what is observed.
RECORDED = (
    "torch",
    "torchvision",
    "pytorch-lightning",
    "wandb",
    "numpy",
    "scikit-learn",
    "hypothesis",
    "pytest",
)


def as_release(text: str) -> tuple[int, ...]:
    """Major and minor number of a version: "2.10.0a0+git1" gives (2, 10).

    Raises ValueError if the text does not begin with two numbers.
    """
    found = re.match(r"(\d+)\.(\d+)", text)
    if found is None:
        raise ValueError(f"{text!r} is not a version")
    return int(found[1]), int(found[2])


def installed(package: str) -> str | None:
    """The installed version of a distribution, or None where it is absent."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def torch_release() -> tuple[int, ...]:
    """Major and minor number of the torch that is judged."""
    import torch

    return as_release(torch.__version__)


def release_of(package: str) -> tuple[int, ...]:
    """The numbers of an installed distribution's version: (2, 6, 1); empty where it is absent.

    Compares with less: (2, 6, 1) >= (2, 6). Nothing is imported.
    """
    text = installed(package)
    found = re.match(r"\d+(\.\d+)*", text) if text else None
    return tuple(int(number) for number in found[0].split(".")) if found else ()
