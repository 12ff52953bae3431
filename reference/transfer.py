"""Transfer learning: take a trained network, give it a new head, and train all or some of it.

The models here are modules whose head is a linear layer with the name `fc`, such as the ResNets
of reference/models/resnet.py and of torchvision. What is not the head is the backbone.

Source: https://docs.pytorch.org/tutorials/beginner/transfer_learning_tutorial.html
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Adam

from reference.modes import evaluating

#: How the names of the head's parameters begin.
HEAD = "fc."

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def load_backbone(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy the weights of all layers but the head, which stays as it is.

    weights: the state_dict of a trained model, whose head may have another number of classes.

    Raises ValueError, and copies nothing, unless the weights have exactly the backbone's names.
    """
    of_backbone = {name: value for name, value in weights.items() if not name.startswith(HEAD)}
    wanted = {name for name in model.state_dict() if not name.startswith(HEAD)}
    wrong = sorted(wanted ^ of_backbone.keys())
    if wrong:
        raise ValueError(f"{len(wrong)} names differ from the backbone's: {wrong[0]}, ...")
    model.load_state_dict(of_backbone, strict=False)  # what is missing now is the head


def freeze(module: nn.Module) -> None:
    """Exclude all parameters of the module from training; gradients still flow through it."""
    module.requires_grad_(False)


def unfreeze(module: nn.Module) -> None:
    """Include all parameters of the module in training."""
    module.requires_grad_(True)


def freeze_batch_norm(module: nn.Module) -> None:
    """Keep the statistics of every BatchNorm in the module for good, whatever train() says later.

    Each goes into eval mode right before every batch. Scales and shifts are parameters: they are
    left to `freeze`.
    """
    for one in module.modules():
        if isinstance(one, BATCH_NORMS):
            one.register_forward_pre_hook(_in_eval_mode)


def _in_eval_mode(module: nn.Module, _inputs: tuple[Any, ...]) -> None:
    module.eval()


def replace_head(model: nn.Module, num_classes: int) -> None:
    """Give the model a new, random head with `num_classes` logits, on the old one's device.

    Raises TypeError if the model has no linear layer `fc`.
    """
    old = getattr(model, "fc", None)
    if not isinstance(old, nn.Linear):
        raise TypeError(f"expected a model with a linear layer fc, got {type(model).__name__}")
    model.fc = nn.Linear(
        old.in_features, num_classes, device=old.weight.device, dtype=old.weight.dtype
    )


def train_only_a_new_head(model: nn.Module, num_classes: int) -> None:
    """Freeze all there is, then give the model a new head, which is not frozen."""
    freeze(model)
    freeze_batch_norm(model)
    replace_head(model, num_classes)


def freeze_before(model: nn.Module, name: str) -> None:
    """Freeze the children of the model, BatchNorm's statistics too, up to the one called `name`.

    Children are taken in the order of their definition; `name` and what follows is left alone.

    Raises ValueError, and freezes nothing, if no child has that name.
    """
    names = [child for child, _ in model.named_children()]
    if name not in names:
        raise ValueError(f"no child is called {name!r}: there are {', '.join(names)}")
    for child in names[: names.index(name)]:
        freeze(model.get_submodule(child))
        freeze_batch_norm(model.get_submodule(child))


def param_groups(
    model: nn.Module, *, backbone_rate: float, head_rate: float
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer: the backbone's with one learning rate, the head's with
    another. Frozen parameters are in none; a group without parameters is left out.
    """
    groups: list[dict[str, Any]] = [
        {"params": [], "lr": backbone_rate},
        {"params": [], "lr": head_rate},
    ]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[name.startswith(HEAD)]["params"].append(parameter)
    return [group for group in groups if group["params"]]


def fine_tuning(
    model: nn.Module, num_classes: int, *, backbone_rate: float, head_rate: float
) -> Adam:
    """Give the model a new head, and only then make the optimizer that trains both."""
    replace_head(model, num_classes)
    return Adam(param_groups(model, backbone_rate=backbone_rate, head_rate=head_rate))


def features(model: nn.Module, images: Tensor) -> Tensor:
    """What the head gets, (n, features): taken in eval mode and without a graph.

    The head is replaced by the identity meanwhile. The model comes back as it was, head and modes.
    """
    head = model.fc
    with evaluating(model):
        model.fc = nn.Identity()
        try:
            output: Tensor = model(images)
        finally:
            model.fc = head
    return output
