"""Signatures of the public functions and classes that rules judge: defaults move in upgrades."""

from __future__ import annotations

import inspect
import re
from typing import Any

from specs.harness.subjects import label_of

#: The packages whose signatures are worth a record; a reference's own is not.
PUBLISHERS = ("torch", "torchvision", "pytorch_lightning", "lightning", "wandb")


def published_signature(target: Any) -> str | None:
    """Parameters and defaults of something that PyTorch or its companions publish.

    Compiled functions have no signature that Python could read; for them it is the first line of
    their documentation, which gives it. None for anything else: a reference, a user's own.
    """
    if label_of(target) not in PUBLISHERS:
        return None
    try:
        return without_annotations(inspect.signature(target))
    except (TypeError, ValueError):
        lines = (inspect.getdoc(target) or "").strip().splitlines()
        return lines[0] if lines and "(" in lines[0] else None


def without_annotations(signature: inspect.Signature) -> str:
    """Names, kinds and defaults of the parameters; type hints move too often to be compared."""
    bare = [one.replace(annotation=one.empty) for one in signature.parameters.values()]
    text = str(signature.replace(parameters=bare, return_annotation=signature.empty))
    # Neither the addresses of default objects nor where Python's own modules lie.
    return re.sub(r" at 0x[0-9a-f]+|(?<=') from '[^']*'(?=>)", "", text)
