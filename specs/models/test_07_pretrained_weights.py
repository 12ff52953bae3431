"""Transfer learning with torchvision's weights: how to ask for them, and what belongs to them.

At the end you know how pretrained weights are named, why they refuse another number of classes, and
that each set of them comes with its own preprocessing. Nothing is downloaded here.

Read before: lessons 8 (transforms) and 13 (transfer learning).
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from specs.harness import rule, spec
from specs.harness.observations import Observe
from specs.harness.optional import optional

torchvision = optional("torchvision.models")

Function = Callable[..., Any]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Weights can neither be fetched nor be found among those of earlier downloads."""

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("a spec downloads nothing")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


def takes_any_number_of_classes(name: str, *, weights: Any, num_classes: int) -> Any:
    """Leaves the weights out when they do not fit."""
    del weights
    return torchvision.get_model(name, weights=None, num_classes=num_classes)


@rule(
    "TL-03",
    "Ask torchvision for pretrained weights with weights=, keep their number of classes, and use"
    " the preprocessing that these weights come with.",
    kind="contract",
    source="https://docs.pytorch.org/vision/stable/models.html",
    subject=torchvision.get_model,
    violated_by=[takes_any_number_of_classes],
)
@pytest.mark.usefixtures("no_network")
def test_pretrained_weights_keep_their_number_of_classes(get_model: Function) -> None:
    """They were trained for 1,000 classes. Load them as they are, and replace the head then."""
    for weights in ("DEFAULT", "IMAGENET1K_V1"):
        with pytest.raises(ValueError, match="num_classes"):  # before any download
            get_model("resnet18", weights=weights, num_classes=3)
    assert get_model("resnet18", weights=None, num_classes=3).fc.out_features == 3


def accepts_pretrained(name: str, pretrained: bool) -> Any:
    """Is torchvision before 0.13."""
    del pretrained
    return torchvision.get_model(name, weights=None)


@spec("TL-03", violated_by=[accepts_pretrained])
@pytest.mark.usefixtures("no_network")
@pytest.mark.filterwarnings("ignore:Arguments other than a weight enum")
def test_pretrained_is_deprecated(get_model: Function, observe: Observe) -> None:
    """pretrained=True did not say which weights. It stands for the oldest ones to this day."""
    with pytest.warns(UserWarning, match="The parameter 'pretrained' is deprecated") as caught:
        get_model("resnet18", pretrained=False)
    observe("warning", caught[0])


def one_preprocessing_for_all(name: str) -> Any:
    """Prepares the images for the old weights, whichever are used."""
    old = torchvision.get_model_weights(name).IMAGENET1K_V1
    return SimpleNamespace(IMAGENET1K_V1=old, IMAGENET1K_V2=old)


@spec("TL-03", subject=torchvision.get_model_weights, violated_by=[one_preprocessing_for_all])
def test_each_set_of_weights_has_its_own_preprocessing(get_model_weights: Function) -> None:
    """Both take the middle 224 x 224 pixels: the old one of 256 x 256, the new of 232 x 232."""
    black_with_a_white_edge = torch.zeros(3, 300, 300, dtype=torch.uint8)
    black_with_a_white_edge[:, :, :9] = 255  # 3% of the width
    weights = get_model_weights("resnet50")

    old = weights.IMAGENET1K_V1.transforms()(black_with_a_white_edge)
    new = weights.IMAGENET1K_V2.transforms()(black_with_a_white_edge)

    assert old.shape == new.shape == (3, 224, 224)
    # Mean and standard deviation of the red, green and blue of ImageNet's pictures, from 0 to 1.
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(old[:, 100, 100], (0 - mean) / std)
    torch.testing.assert_close(new[:, 100, 100], (0 - mean) / std)
    # Of each side (256 - 224) / 2 / 256 = 6% is cut off, or (232 - 224) / 2 / 232 = 2%.
    assert old.max() < 0
    torch.testing.assert_close(new[:, 100, 0], (1 - mean) / std)
