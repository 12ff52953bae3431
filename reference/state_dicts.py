"""Files of weights that outlive the program that wrote them, and names without wrappers' prefixes.

Source: https://docs.pytorch.org/tutorials/beginner/saving_loading_models.html
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

Value = TypeVar("Value")

#: What DataParallel, DistributedDataParallel and AveragedModel put before every name, and what
#: torch.compile does.
PREFIXES = ("module.", "_orig_mod.")

#: The wrappers that keep the model as their attribute `module`.
WRAPPERS = (
    nn.DataParallel,
    nn.parallel.DistributedDataParallel,
    torch.optim.swa_utils.AveragedModel,
)


def save_model(model: nn.Module, path: Path) -> None:
    """Write the weights, not the model: a dictionary from names to tensors, and no class.

    The names are those of the model inside its wrappers (see `unwrapped`).
    """
    torch.save(unwrapped(model).state_dict(), path)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside its wrappers for several devices, for averaging and for compilation.

    A model that is not wrapped is returned as it is, whatever its own attributes are called.
    """
    while True:
        if isinstance(model, WRAPPERS):
            model = model.module
        elif "_orig_mod" in model._modules:  # the class of torch.compile's wrapper is not public
            model = model.get_submodule("_orig_mod")
        else:
            return model


def without_prefixes(state_dict: Mapping[str, Value]) -> dict[str, Value]:
    """The entries of a file that was saved from a wrapped model, under the model's own names.

    A prefix is taken away when every name begins with it, and again for a wrapper in a wrapper.
    Inside a name nothing is changed. A model whose only attribute is called `module` cannot be
    told from a wrapped one: save such a model unwrapped.
    """
    names = list(state_dict)
    found = True
    while names and found:
        found = False
        for prefix in PREFIXES:
            if all(name.startswith(prefix) for name in names):
                names, found = [name[len(prefix) :] for name in names], True
    return dict(zip(names, state_dict.values(), strict=True))
