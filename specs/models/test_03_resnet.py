"""Residual blocks: a way around every few layers, and what a deep network costs without it.

At the end you know what a residual block computes, what happens to the loss and to the gradients
of a deep network that has no way around its blocks, and whether vanishing gradients are to blame.
Read before: lesson 11, convolutional networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from reference import data
from reference.models import resnet
from reference.models.resnet import ResNet
from reference.training import fit
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe
from specs.harness.optional import optional

torchvision = optional("torchvision.models.resnet")

PAPER = "https://arxiv.org/abs/1512.03385"

Network = Callable[..., Any]


def draw_batch_norms(model: nn.Module) -> None:
    """Give every BatchNorm scales, shifts and statistics at random, as training would.

    A new one has scale 1, shift 0, mean 0 and variance 1, which hide a mistake.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)


# ---------------------------------------------------------------------------------------------
# The block


class AddsNothing(resnet.BasicBlock):
    """A plain block: its output is what it has learned, without its input."""

    def forward(self, x: Tensor) -> Tensor:
        return self.change(x).relu()


class ActivatesBeforeAdding(resnet.BasicBlock):
    """Takes the ReLU of the change alone, so that a block can only add."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.change(x).relu()


class ForgetsTheLastReLU(resnet.BasicBlock):
    """Returns the sum as it is."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.change(x)


class Averages(resnet.BasicBlock):
    """Halves the signal in every block."""

    def forward(self, x: Tensor) -> Tensor:
        return ((x + self.change(x)) / 2).relu()


class NormalisesTheSum(resnet.BasicBlock):
    """Has the last BatchNorm after the addition, on the way of the input too."""

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(x + self.conv2(self.bn1(self.conv1(x)).relu())).relu()


class NoReLUInside(resnet.BasicBlock):
    """Two convolutions without a ReLU between them: together they are one linear map."""

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.bn2(self.conv2(self.bn1(self.conv1(x))))).relu()


class ScalesTheShortcut(resnet.BasicBlock):
    """Passes on half of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return (x / 2 + self.change(x)).relu()


@rule(
    "RES-01",
    "A residual block computes relu(x + F(x)): what it has learned, F, is added to its input.",
    kind="contract",
    source=PAPER,
    subject=[torchvision.BasicBlock, resnet.BasicBlock],
    violated_by=[
        AddsNothing,
        ActivatesBeforeAdding,
        ForgetsTheLastReLU,
        Averages,
        NormalisesTheSum,
        ScalesTheShortcut,
    ],
)
def test_a_block_that_changes_nothing_passes_its_input_on(BasicBlock: Network) -> None:
    """To do nothing is easy for a block: it takes F = 0. A plain layer has to learn to copy."""
    torch.manual_seed(1)
    block = BasicBlock(8, 8)
    nn.init.zeros_(block.bn2.weight)  # the scale of the last BatchNorm: now F(x) = 0
    x = torch.randn(4, 8, 5, 5)

    output = block(x)

    assert torch.equal(output, x.relu())


@spec("RES-01", violated_by=[AddsNothing, Averages, NoReLUInside, NormalisesTheSum])
def test_a_basic_block_learns_its_change_with_two_convolutions(BasicBlock: Network) -> None:
    """3x3 convolution, BatchNorm, ReLU, 3x3 convolution, BatchNorm; then the sum and its ReLU."""
    torch.manual_seed(1)
    block = BasicBlock(8, 8)
    draw_batch_norms(block)
    x = torch.randn(4, 8, 5, 5)
    for training in (True, False):
        block.train(training)
        change = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))

        output = block(x)

        assert agree(output, (x + change).relu(), ulps=4, scale=float(x.abs().max()))
    assert [tuple(one.weight.shape) for one in (block.conv1, block.conv2)] == 2 * [(8, 8, 3, 3)]


class ForgetsTheSecondReLU(resnet.Bottleneck):
    """Goes from the 3x3 convolution to the last one without a ReLU."""

    def change(self, x: Tensor) -> Tensor:
        hidden = self.bn1(self.conv1(x)).relu()
        return self.bn3(self.conv3(self.bn2(self.conv2(hidden))))


class ActivatesTheChange(resnet.Bottleneck):
    """Has a ReLU after its last BatchNorm too, before the sum."""

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.change(x).relu()).relu()


@spec(
    "RES-01",
    subject=[torchvision.Bottleneck, resnet.Bottleneck],
    violated_by=[ForgetsTheSecondReLU, ActivatesTheChange],
)
def test_a_bottleneck_works_on_a_quarter_of_the_channels(Bottleneck: Network) -> None:
    """1x1 from 4w to w channels, 3x3 among these, 1x1 back to 4w: the 3x3 is the cheap part."""
    torch.manual_seed(1)
    block = Bottleneck(16, 4)
    draw_batch_norms(block)
    x = torch.randn(4, 16, 5, 5)
    for training in (True, False):
        block.train(training)
        hidden = block.bn1(block.conv1(x)).relu()
        hidden = block.bn2(block.conv2(hidden)).relu()
        change = block.bn3(block.conv3(hidden))

        output = block(x)

        assert agree(output, (x + change).relu(), ulps=4, scale=float(x.abs().max()))
    convolutions = [block.conv1, block.conv2, block.conv3]
    shapes = [tuple(one.weight.shape) for one in convolutions]
    assert shapes == [(4, 16, 1, 1), (4, 4, 3, 3), (16, 4, 1, 1)]


class AlwaysProjects(resnet.BasicBlock):
    """Puts a convolution on every way around: what goes through many blocks is changed by each."""

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__(channels, width, stride)
        self.downsample = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False))


class ForgetsTheStride(resnet.BasicBlock):
    """Leaves the image as large as it was."""

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        del stride
        super().__init__(channels, width)


@spec("RES-01", subject=resnet.BasicBlock, violated_by=[AlwaysProjects, ForgetsTheStride])
def test_only_a_change_of_shape_needs_a_projection(BasicBlock: Network) -> None:
    """There a 1x1 convolution with a BatchNorm, `downsample`, brings the input to the new shape."""
    x = torch.randn(4, 8, 5, 5)
    for width, stride, projects in ((8, 1, False), (16, 1, True), (8, 2, True), (16, 2, True)):
        block = BasicBlock(8, width, stride)
        nn.init.zeros_(block.bn2.weight)  # F(x) = 0: what is left is the way around

        output = block(x)

        side = math.ceil(5 / stride)
        assert output.shape == (4, width, side, side)
        around = block.downsample(x) if projects else x
        assert torch.equal(output, around.relu())


# ---------------------------------------------------------------------------------------------
# What a deep network without the way around costs


def gradient_growth(block: Any, *, default_initialisation: bool = False) -> float:
    """How many times larger the gradient is at the first of 20 blocks than at the last."""
    torch.manual_seed(0)
    model = ResNet(block, [20], channels=1, width=8, large=False)
    if default_initialisation:
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()
    split = data.digits()
    images, labels = split.train_inputs[:64].reshape(-1, 1, 8, 8), split.train_targets[:64]
    outputs: list[Tensor] = []
    for one in model.get_submodule("layer1").children():
        one.register_forward_hook(lambda _block, _inputs, output: outputs.append(output))
    loss = nn.functional.cross_entropy(model(images), labels)
    gradients = torch.autograd.grad(loss, outputs)
    return (gradients[0].norm() / gradients[-1].norm()).item()


@rule(
    "RES-02",
    "Give a deep network ways around its blocks, and leave these ways unscaled.",
    kind="practice",
    source=PAPER,
    consequence="22 layers on five digits: after 20 steps the training loss is 0.4 to 0.8 with the"
    " ways around, 1.2 to 1.6 without (eight seeds; guessing costs log(5) = 1.6)",
    subject=resnet.BasicBlock,
    violated_by=[resnet.PlainBlock, ScalesTheShortcut],
)
def test_ten_residual_blocks_learn_in_twenty_steps(BasicBlock: Network, observe: Observe) -> None:
    """It is the TRAINING loss that the plain network cannot lower: this is not overfitting."""
    torch.manual_seed(0)
    model = ResNet(BasicBlock, [10], 5, channels=1, width=8, large=False)
    split = data.digits()
    chosen = split.train_targets < 5
    images, labels = split.train_inputs[chosen][:128], split.train_targets[chosen][:128]
    batches = data.batches(images.reshape(-1, 1, 8, 8), labels, 32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    history = fit(model, batches, nn.functional.cross_entropy, optimizer, epochs=5)

    observe("loss of the last epoch", round(history.losses[-1], 2))
    assert history.losses[-1] < 0.95


@spec(
    "RES-02",
    subject=[torchvision.BasicBlock, resnet.BasicBlock],
    violated_by=[resnet.PlainBlock, Averages, ScalesTheShortcut],
)
def test_the_gradient_keeps_its_size_through_twenty_blocks(
    BasicBlock: Network, observe: Observe
) -> None:
    """d(x + F)/dx = 1 + dF/dx: the 1 carries the gradient back, however many blocks there are."""
    growth = gradient_growth(BasicBlock)
    observe("growth", round(growth))
    # Ten seeds, after 40 layers: 8 to 11 times with the ways around, 280 to 890 without.
    assert 1 < growth < 30


class PlainWithoutBatchNorm(resnet.PlainBlock):
    """A plain block as it was before BatchNorm."""

    def change(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x).relu())


@rule(
    "RES-03",
    "A deep plain network is hard to train because its gradients vanish.",
    kind="claim",
    verdict="holds if nothing restores the size of the signal, as BatchNorm does",
    source=PAPER,
    subject=resnet.PlainBlock,
    violated_by=[PlainWithoutBatchNorm, resnet.BasicBlock],
)
def test_with_batch_norm_the_gradients_of_a_plain_network_explode(
    PlainBlock: Network, observe: Observe
) -> None:
    """The network that learns badly in RES-02 gets too much gradient in its first layers."""
    growth = gradient_growth(PlainBlock)
    observe("growth", round(growth, -1))
    assert growth > 50  # ten seeds: 280 to 890

    # Without BatchNorm, and with PyTorch's default weights, each of the 40 layers shrinks it.
    assert gradient_growth(PlainWithoutBatchNorm, default_initialisation=True) < 1e-10
