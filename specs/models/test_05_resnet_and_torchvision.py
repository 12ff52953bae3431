"""A ResNet of one's own against torchvision's: the same weights, and number by number the same.

At the end you know which ResNet torchvision has, and how to show that two models are one: their
logits, their gradients, and the statistics that a batch leaves behind.
Read before: test_04_resnet_18_and_50.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from reference.models import resnet
from reference.models.resnet import ResNet
from specs.harness import raising, rule, spec
from specs.harness.agreement import agree
from specs.harness.optional import optional

torchvision = optional("torchvision.models.resnet")

DOCUMENTATION = "https://docs.pytorch.org/vision/stable/models/resnet.html"

Network = Callable[..., Any]


# ---------------------------------------------------------------------------------------------
# Where the stride is


class StrideInTheFirst(resnet.Bottleneck):
    """ResNet v1: the 1x1 convolution at the start has the stride and skips pixels."""

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__(channels, width, stride)
        self.conv1.stride, self.conv2.stride = (stride, stride), (1, 1)


def resnet50_v1() -> ResNet:
    """ResNet-50 as the paper had it."""
    return ResNet(StrideInTheFirst, [3, 4, 6, 3])


@rule(
    "CNN-05",
    "torchvision's ResNet-50 is v1.5: a bottleneck that halves the image has its stride in the 3x3"
    " convolution, so that every pixel of its input counts.",
    kind="contract",
    source=DOCUMENTATION,
    subject=[torchvision.resnet50, resnet.resnet50],
    violated_by=[resnet50_v1],
)
def test_no_pixel_is_skipped_where_the_image_is_halved(resnet50: Network) -> None:
    """A 1x1 convolution with stride 2 reads one pixel of four, here and on the way around."""
    torch.manual_seed(0)
    with torch.device("meta"):  # the shapes only: of 50 layers, the numbers of one block will do
        model = resnet50()
    block = model.get_submodule("layer2.0").to_empty(device="cpu")
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    image = torch.randn(1, 256, 8, 8, requires_grad=True)

    block.train()(image).square().sum().backward()

    assert image.grad is not None
    pixels_that_count = image.grad.abs().sum(dim=1).count_nonzero()
    assert pixels_that_count == 8 * 8  # v1: 4 * 4


# ---------------------------------------------------------------------------------------------
# torchvision's network, number by number


IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([3, 7])


def numbers_of(model: nn.Module) -> dict[str, Tensor]:
    """What one batch makes of the model: in train mode, and afterwards in eval mode."""
    logits = model.train()(IMAGES)
    nn.functional.cross_entropy(logits, LABELS).backward()
    numbers = {"logits in train mode": logits}
    # It has come through all the layers: a mistake in any of them would show in it.
    numbers["gradient of the first layer"] = model.get_parameter("conv1.weight").grad
    numbers |= {name: b.clone() for name, b in model.named_buffers()}
    numbers["logits in eval mode"] = model.eval()(IMAGES)
    return {name: number.detach() for name, number in numbers.items()}


@lru_cache
def weights_and_numbers_of_torchvision(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """torchvision's network with random weights, as a state_dict, and what one batch makes of it.

    A new BatchNorm has scale 1, shift 0, mean 0 and variance 1, which would hide a mistake. So
    these are drawn at random too, as if it had been trained.
    """
    torch.manual_seed(0)
    model = getattr(torchvision, name)()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    return weights, numbers_of(model)


def with_weights(network: Network, weights: dict[str, Tensor]) -> Any:
    """The network with a copy of the weights; on "meta" it draws none of its own, which takes long.

    load_state_dict is strict: it wants the same names and the same shapes.
    """
    with torch.device("meta"):
        model = network()
    model.load_state_dict({name: value.clone() for name, value in weights.items()}, assign=True)
    return model


class AveragesInTheStem(ResNet):
    """Takes the mean of 3 x 3 pixels in the stem, where the maximum belongs."""

    def features(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = nn.functional.avg_pool2d(x, 3, stride=2, padding=1)
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return x.mean(dim=(2, 3))


def resnet18_with_another_stem() -> ResNet:
    """Takes the mean of 3 x 3 pixels in the stem, where the maximum belongs."""
    return AveragesInTheStem(resnet.BasicBlock, [2, 2, 2, 2])


def resnet18_with_bias() -> ResNet:
    """Has a bias in its first convolution."""
    model = resnet.resnet18()
    model.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3)
    return model


def resnet18_with_slow_statistics() -> ResNet:
    """Follows the batches with 1% of each, not with 10%: visible in the statistics alone."""
    model = resnet.resnet18()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.01
    return model


@rule(
    "RES-07",
    "With torchvision's weights a ResNet of one's own gives torchvision's logits, gradients and"
    " BatchNorm statistics.",
    kind="contract",
    source=DOCUMENTATION,
    subject=resnet.resnet18,
    violated_by=[
        raising(RuntimeError, resnet18_with_bias),  # load_state_dict misses the bias
        resnet18_with_another_stem,
        resnet18_with_slow_statistics,
    ],
)
def test_resnet18_takes_torchvisions_weights(resnet18: Network) -> None:
    """Same names, same shapes, and in both modes the same numbers."""
    weights, expected = weights_and_numbers_of_torchvision("resnet18")

    numbers = numbers_of(with_weights(resnet18, weights))

    assert list(numbers) == list(expected)
    for name, value in expected.items():
        # The same operations in the same order. Another kernel for one of them may round
        # otherwise, and 18 layers with a batch of two multiply that.
        assert agree(numbers[name], value, ulps=1000, scale=value.abs().max().item()), name


@spec("RES-07", subject=resnet.resnet50, violated_by=[resnet50_v1])
def test_resnet50_takes_torchvisions_weights(resnet50: Network) -> None:
    """The names and the shapes do not tell where the stride is: v1 loads v1.5's weights too."""
    weights, expected = weights_and_numbers_of_torchvision("resnet50")

    numbers = numbers_of(with_weights(resnet50, weights))

    assert list(numbers) == list(expected)
    for name, value in expected.items():
        assert agree(numbers[name], value, ulps=1000, scale=value.abs().max().item()), name
