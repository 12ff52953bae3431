"""Residual networks: blocks that add what they have learned to what they were given.

Sources: https://arxiv.org/abs/1512.03385 (the networks; table 1 has their sizes),
https://docs.pytorch.org/vision/stable/models/resnet.html (names of the layers, and the place of
the stride in a bottleneck, which makes it "ResNet v1.5")
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor, nn


def convolution(channels: int, filters: int, side: int, stride: int = 1) -> nn.Conv2d:
    """A side x side convolution that, at stride 1, keeps the image's size (side is odd).

    It has no bias: the BatchNorm that follows subtracts the mean, and adds a bias of its own.
    The image's side n becomes ceil(n / stride). Source: https://arxiv.org/abs/1512.03385
    """
    return nn.Conv2d(channels, filters, side, stride, padding=side // 2, bias=False)


def shortcut(channels: int, filters: int, stride: int) -> nn.Sequential | None:
    """The way around a block: None (the input itself) where its output has the input's shape.

    Elsewhere a 1x1 convolution and a BatchNorm bring the input to that shape (option B of
    https://arxiv.org/abs/1512.03385).
    """
    if stride == 1 and channels == filters:
        return None
    return nn.Sequential(convolution(channels, filters, 1, stride), nn.BatchNorm2d(filters))


class BasicBlock(nn.Module):
    """relu(x + F(x)), where F is two 3x3 convolutions: for networks of 18 and 34 layers.

    Shapes: (n, channels, h, w) -> (n, width, ceil(h / stride), ceil(w / stride)).
    """

    expansion: ClassVar[int] = 1

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = convolution(channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(channels, width, stride)

    def change(self, x: Tensor) -> Tensor:
        """F(x), what the block has learned to add to its input."""
        hidden = self.bn1(self.conv1(x)).relu()
        change: Tensor = self.bn2(self.conv2(hidden))
        return change

    def forward(self, x: Tensor) -> Tensor:
        around = x if self.downsample is None else self.downsample(x)
        output: Tensor = (around + self.change(x)).relu()
        return output


class PlainBlock(BasicBlock):
    """relu(F(x)): a basic block without the way around it, to compare with (same paper, 3.3)."""

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__(channels, width, stride)
        self.downsample = None

    def forward(self, x: Tensor) -> Tensor:
        return self.change(x).relu()


class Bottleneck(nn.Module):
    """relu(x + F(x)), where F is 1x1 to `width` channels, 3x3, and 1x1 to four times as many.

    The 3x3 convolution has the stride, so that every pixel of the input counts.
    Shapes: (n, channels, h, w) -> (n, 4 * width, ceil(h / stride), ceil(w / stride)).
    """

    expansion: ClassVar[int] = 4

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = convolution(channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = convolution(width, 4 * width, 1)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = shortcut(channels, 4 * width, stride)

    def change(self, x: Tensor) -> Tensor:
        """F(x), what the block has learned to add to its input."""
        hidden = self.bn1(self.conv1(x)).relu()
        hidden = self.bn2(self.conv2(hidden)).relu()
        change: Tensor = self.bn3(self.conv3(hidden))
        return change

    def forward(self, x: Tensor) -> Tensor:
        around = x if self.downsample is None else self.downsample(x)
        output: Tensor = (around + self.change(x)).relu()
        return output


#: What a ResNet is made of. `expansion` is the number of its outputs as a multiple of its width.
Block: TypeAlias = type[BasicBlock] | type[Bottleneck]


class ResNet(nn.Module):
    """A stem, stages of blocks, the mean over the image, and a linear layer: its head, `fc`.

    layers: how many blocks each stage has. Every stage after the first halves the side of the
        image and doubles the width.
    channels: of the input image, 3 for colour.
    width: of the first stage.
    large: whether the stem quarters the side (a 7x7 convolution of stride 2, then max pooling);
        images of a few pixels get a 3x3 convolution of stride 1 instead.
    zero_init_residual: start every block as the identity, with a zero scale in its last BatchNorm.

    Shapes: (n, channels, h, w) -> logits (n, num_classes). h and w may be any: the mean over the
    image leaves one number a channel.
    """

    def __init__(
        self,
        block: Block,
        layers: Sequence[int],
        num_classes: int = 1000,
        *,
        channels: int = 3,
        width: int = 64,
        large: bool = True,
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        self.large = large
        self.conv1 = (
            convolution(channels, width, 7, 2) if large else convolution(channels, width, 3)
        )
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        self.stages: list[str] = []
        for number, count in enumerate(layers):
            blocks = []
            for place in range(count):
                stride = 2 if number > 0 and place == 0 else 1
                blocks.append(block(channels, width * 2**number, stride))
                channels = width * 2**number * block.expansion
            self.stages.append(f"layer{number + 1}")
            self.add_module(self.stages[-1], nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, num_classes)
        initialise(self, zero_init_residual)

    def features(self, x: Tensor) -> Tensor:
        """What the head gets: (n, channels, h, w) -> (n, features)."""
        x = self.bn1(self.conv1(x)).relu()
        if self.large:
            x = nn.functional.max_pool2d(x, 3, stride=2, padding=1)
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return x.mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.features(x))
        return logits


def initialise(model: nn.Module, zero_init_residual: bool = False) -> None:
    """Draw the convolutions from N(0, 2 / fan_out); BatchNorm starts with scale 1 and shift 0.

    fan_out = filters * side * side, so that gradients keep their size on the way back. The linear
    layer keeps PyTorch's default. Source: https://arxiv.org/abs/1502.01852, section 2.2; for
    `zero_init_residual`: https://arxiv.org/abs/1706.02677, section 5.1
    """
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
                module.weight.normal_(0, (2 / fan_out) ** 0.5)
            elif zero_init_residual and isinstance(module, BasicBlock):
                module.bn2.weight.zero_()
            elif zero_init_residual and isinstance(module, Bottleneck):
                module.bn3.weight.zero_()


def resnet18(num_classes: int = 1000, *, zero_init_residual: bool = False) -> ResNet:
    """18 layers with weights: the stem, 4 stages of 2 basic blocks (2 layers each), the head.

    Input (n, 3, h, w), made for 224 x 224. Source: https://arxiv.org/abs/1512.03385, table 1
    """
    return ResNet(BasicBlock, [2, 2, 2, 2], num_classes, zero_init_residual=zero_init_residual)


def resnet50(num_classes: int = 1000, *, zero_init_residual: bool = False) -> ResNet:
    """50 layers with weights: the stem, 3 + 4 + 6 + 3 bottlenecks (3 layers each), the head.

    Input (n, 3, h, w), made for 224 x 224. Source: https://arxiv.org/abs/1512.03385, table 1
    """
    return ResNet(Bottleneck, [3, 4, 6, 3], num_classes, zero_init_residual=zero_init_residual)


def digits_resnet(num_classes: int = 10, *, width: int = 8) -> ResNet:
    """8 layers for grey images of 8 x 8 pixels: (n, 1, 8, 8) -> (n, num_classes).

    Three stages of one basic block, on 8 x 8, 4 x 4 and 2 x 2 pixels, with `width`, 2 * width and
    4 * width channels. The form is that for small images in https://arxiv.org/abs/1512.03385,
    section 4.2.
    """
    return ResNet(BasicBlock, [1, 1, 1], num_classes, channels=1, width=width, large=False)
