"""ResNet-18 and ResNet-50: how they are put together from blocks, to the last parameter.

At the end you can follow an image through the stages, count the parameters by hand, and say from
what weights training starts. Read before: test_03_resnet.py, the blocks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reference.models import resnet
from reference.models.resnet import ResNet
from specs.harness import rule, spec
from specs.harness.optional import optional

torchvision = optional("torchvision.models.resnet")

PAPER = "https://arxiv.org/abs/1512.03385"
DOCUMENTATION = "https://docs.pytorch.org/vision/stable/models/resnet.html"

Network = Callable[..., Any]


def without_numbers(network: Network) -> Any:
    """The network on PyTorch's "meta" device: every shape is there, but no number is computed."""
    with torch.device("meta"):
        return network()


def sizes_of_stages(model: nn.Module) -> list[tuple[int, ...]]:
    """A list that fills while the model runs: channels, height, width after each stage."""
    sizes: list[tuple[int, ...]] = []
    for name, stage in model.named_children():
        if name.startswith("layer"):
            stage.register_forward_hook(lambda _stage, _in, out: sizes.append(tuple(out.shape[1:])))
    return sizes


# ---------------------------------------------------------------------------------------------
# Shapes and sizes


class NoPooling(ResNet):
    """Leaves out the max pooling of the stem."""

    def features(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return x.mean(dim=(2, 3))


def resnet18_without_pooling() -> ResNet:
    """Leaves out the max pooling of the stem: four times the work in every stage."""
    return NoPooling(resnet.BasicBlock, [2, 2, 2, 2])


def resnet18_of_one_size() -> ResNet:
    """Never halves the image after the stem."""
    model = resnet.resnet18()
    for number in (2, 3, 4):
        first: Any = model.get_submodule(f"layer{number}.0")
        first.conv1.stride = first.downsample[0].stride = (1, 1)
    return model


def resnet18_of_one_width() -> ResNet:
    """Halves the image, but never doubles the channels."""
    model = resnet.resnet18()
    for number in (2, 3, 4):
        stage = nn.Sequential(resnet.BasicBlock(64, 64, 2), resnet.BasicBlock(64, 64))
        model.add_module(f"layer{number}", stage)
    model.fc = nn.Linear(64, 1000)
    return model


@rule(
    "RES-04",
    "The stem quarters the image's side; every stage after the first halves it and doubles the"
    " channels. An odd side is rounded up.",
    kind="contract",
    source=PAPER,
    subject=[torchvision.resnet18, resnet.resnet18],
    violated_by=[resnet18_of_one_size, resnet18_without_pooling, resnet18_of_one_width],
)
def test_a_quarter_of_the_pixels_gets_twice_the_channels(resnet18: Network) -> None:
    """A quarter of the pixels times four times the weights: the stages cost about the same.

    Images of any size will do: the mean over the image leaves 512 features for the head.
    """
    model = without_numbers(resnet18)
    sizes = sizes_of_stages(model)
    for height, width in ((224, 224), (33, 7)):
        sizes.clear()

        logits = model(torch.empty(2, 3, height, width, device="meta"))

        stages = [(64, 4), (128, 8), (256, 16), (512, 32)]
        assert sizes == [(c, math.ceil(height / by), math.ceil(width / by)) for c, by in stages]
        assert logits.shape == (2, 1000)


def digits_resnet_with_the_large_stem() -> ResNet:
    """Starts as for photographs: of 8 x 8 pixels the first block sees 2 x 2."""
    return ResNet(resnet.BasicBlock, [1, 1, 1], 10, channels=1, width=8)


@spec(
    "RES-04",
    subject=resnet.digits_resnet,
    violated_by=[digits_resnet_with_the_large_stem],
)
def test_a_network_for_small_images_has_a_stem_that_keeps_their_size(
    digits_resnet: Network,
) -> None:
    """With 8 x 8 pixels there are none to throw away before the first block."""
    model = without_numbers(digits_resnet)
    sizes = sizes_of_stages(model)

    logits = model(torch.empty(2, 1, 8, 8, device="meta"))

    assert sizes == [(8, 8, 8), (16, 4, 4), (32, 2, 2)]
    assert logits.shape == (2, 10)


# The convolutions of each network: how many, side of the kernel, channels in, channels out.
# The first line is the stem, then a line for each stage.
OF_RESNET18 = [
    *[(1, 7, 3, 64)],
    *[(4, 3, 64, 64)],
    *[(1, 3, 64, 128), (3, 3, 128, 128), (1, 1, 64, 128)],
    *[(1, 3, 128, 256), (3, 3, 256, 256), (1, 1, 128, 256)],
    *[(1, 3, 256, 512), (3, 3, 512, 512), (1, 1, 256, 512)],
]
OF_RESNET50 = [
    *[(1, 7, 3, 64)],
    *[(1, 1, 64, 64), (2, 1, 256, 64), (3, 3, 64, 64), (4, 1, 64, 256)],
    *[(1, 1, 256, 128), (3, 1, 512, 128), (4, 3, 128, 128), (4, 1, 128, 512), (1, 1, 256, 512)],
    *[(1, 1, 512, 256), (5, 1, 1024, 256), (6, 3, 256, 256), (6, 1, 256, 1024), (1, 1, 512, 1024)],
    *[(1, 1, 1024, 512), (2, 1, 2048, 512), (3, 3, 512, 512), (3, 1, 512, 2048)],
    *[(1, 1, 1024, 2048)],
]


def convolutions_of(model: nn.Module) -> Counter[tuple[int, int, int]]:
    """How often each kind of convolution occurs: side of the kernel, channels in and out."""
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    return Counter((c.kernel_size[0], c.in_channels, c.out_channels) for c in convolutions)


def number_of_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


class BasicWithBias(resnet.BasicBlock):
    """Gives its convolutions a bias, which the BatchNorm behind them takes away again."""

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__(channels, width, stride)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)


def resnet18_with_bias() -> ResNet:
    """Has 4,800 parameters more than it needs."""
    return ResNet(BasicWithBias, [2, 2, 2, 2])


def resnet34() -> ResNet:
    """Is the next larger network."""
    return ResNet(resnet.BasicBlock, [3, 4, 6, 3])


@rule(
    "RES-05",
    "ResNet-18 has 11,689,512 parameters, ResNet-50 has 25,557,032; no convolution has a bias,"
    " since a BatchNorm follows each.",
    kind="contract",
    source=DOCUMENTATION,
    subject=[torchvision.resnet18, resnet.resnet18],
    violated_by=[resnet18_with_bias, resnet18_of_one_width, resnet34],
)
def test_every_parameter_of_resnet18_can_be_counted_by_hand(resnet18: Network) -> None:
    """A kernel of each convolution, a scale and a shift for each of its outputs, and the head."""
    model = without_numbers(resnet18)

    expected = {(side, i, o): times for times, side, i, o in OF_RESNET18}
    assert convolutions_of(model) == expected
    by_hand = sum(times * (side * side * i * o + 2 * o) for times, side, i, o in OF_RESNET18)
    assert number_of_parameters(model) == by_hand + (512 + 1) * 1000 == 11_689_512


def resnet50_of_basic_blocks() -> ResNet:
    """Has as many blocks, but of the simple kind: this is ResNet-34."""
    return resnet34()


@spec(
    "RES-05",
    subject=[torchvision.resnet50, resnet.resnet50],
    violated_by=[resnet50_of_basic_blocks],
)
def test_every_parameter_of_resnet50_can_be_counted_by_hand(resnet50: Network) -> None:
    """Its stages have 3, 4, 6 and 3 bottlenecks; the head gets 2,048 features."""
    model = without_numbers(resnet50)

    expected = {(side, i, o): times for times, side, i, o in OF_RESNET50}
    assert convolutions_of(model) == expected
    by_hand = sum(times * (side * side * i * o + 2 * o) for times, side, i, o in OF_RESNET50)
    assert number_of_parameters(model) == by_hand + (2048 + 1) * 1000 == 25_557_032


# ---------------------------------------------------------------------------------------------
# The start


def small_resnet(zero_init_residual: bool = False) -> ResNet:
    """Two stages of one block: for the violations below this is enough."""
    return ResNet(resnet.BasicBlock, [1, 1], zero_init_residual=zero_init_residual)


def drawn_by_fan_in(zero_init_residual: bool = False) -> ResNet:
    """Counts the inputs of an output, not the outputs of an input."""
    model = small_resnet(zero_init_residual)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
    return model


def drawn_by_default(zero_init_residual: bool = False) -> ResNet:
    """Keeps what nn.Conv2d draws: uniform, and 2.4 times smaller."""
    model = small_resnet(zero_init_residual)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
    return model


def drawn_uniformly(zero_init_residual: bool = False) -> ResNet:
    """Has the right spread, but another form."""
    model = small_resnet(zero_init_residual)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def starts_at_zero(zero_init_residual: bool = True) -> ResNet:
    """Zeroes the last BatchNorm of each block without being asked."""
    return small_resnet(zero_init_residual)


@rule(
    "RES-06",
    "ResNet draws its convolutions from N(0, 2 / fan_out); each BatchNorm starts with scale 1, and"
    " with scale 0 at a block's end if zero_init_residual=True is asked for.",
    kind="contract",
    source=DOCUMENTATION,
    subject=[torchvision.resnet18, resnet.resnet18],
    violated_by=[drawn_by_fan_in, drawn_by_default, drawn_uniformly, starts_at_zero],
)
def test_convolutions_start_gaussian_with_the_spread_of_fan_out(resnet18: Network) -> None:
    """fan_out = filters * side * side: on the way back the gradient keeps its size."""
    torch.manual_seed(0)
    for module in resnet18().modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight.detach()
            std = math.sqrt(2 / (module.out_channels * module.kernel_size[0] ** 2))
            # The spread of n samples has a relative standard error of 1 / sqrt(2n): 1% at most.
            assert weight.std().item() == pytest.approx(std, rel=0.05)
            # Of a Gaussian, 4.55% lie beyond two standard deviations. Of a uniform, nothing.
            assert (weight.abs() > 2 * std).double().mean().item() == pytest.approx(
                0.0455, abs=0.01
            )
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight))
            assert torch.equal(module.bias, torch.zeros_like(module.bias))


def ignores_the_request(zero_init_residual: bool = False) -> ResNet:
    """Starts with scale 1 everywhere."""
    del zero_init_residual
    return small_resnet()


def zeroes_the_first(zero_init_residual: bool = False) -> ResNet:
    """Zeroes the scale of each block's first BatchNorm, whose gradient is then zero for good."""
    model = small_resnet(zero_init_residual)
    for block in model.modules():
        if isinstance(block, resnet.BasicBlock) and zero_init_residual:
            nn.init.zeros_(block.bn1.weight)
            nn.init.ones_(block.bn2.weight)
    return model


@spec("RES-06", violated_by=[ignores_the_request, zeroes_the_first])
def test_zero_init_residual_starts_every_basic_block_as_its_shortcut(resnet18: Network) -> None:
    """On the first day a network of identities: as easy to train as a shallow one."""
    model = resnet18(zero_init_residual=True)
    blocks: list[Any] = [block for block in model.modules() if hasattr(block, "downsample")]
    assert blocks
    for block in blocks:
        assert block.bn1.weight.eq(1).all()
        assert block.bn2.weight.eq(0).all()


def zeroes_the_second(zero_init_residual: bool = False) -> ResNet:
    """Takes a bottleneck's BatchNorm for its last that is the last of a basic block."""
    model = ResNet(resnet.Bottleneck, [1, 1], zero_init_residual=zero_init_residual)
    for block in model.modules():
        if isinstance(block, resnet.Bottleneck) and zero_init_residual:
            nn.init.zeros_(block.bn2.weight)
            nn.init.ones_(block.bn3.weight)
    return model


@spec("RES-06", subject=resnet.resnet50, violated_by=[zeroes_the_second])
def test_zero_init_residual_starts_every_bottleneck_as_its_shortcut(resnet50: Network) -> None:
    """A bottleneck ends with its third BatchNorm."""
    model = resnet50(zero_init_residual=True)
    blocks: list[Any] = [block for block in model.modules() if hasattr(block, "downsample")]
    assert blocks
    for block in blocks:
        assert block.bn1.weight.eq(1).all()
        assert block.bn2.weight.eq(1).all()
        assert block.bn3.weight.eq(0).all()
