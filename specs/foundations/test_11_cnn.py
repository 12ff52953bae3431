"""Convolutional networks: the same few weights for every place in an image.

At the end you can compute the shape that a layer gives, know what convolution, pooling and batch
normalisation compute, and have seen what convolutions are worth on handwritten digits. Images are
tensors of shape (n, channels, rows, columns), in short (n, c, h, w).
Read before: lesson 10 (feed-forward network).
"""

from __future__ import annotations

import itertools
from copy import deepcopy
from functools import lru_cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reference import data, training
from reference.layers import batch_norm, convolution, pooling
from reference.models.cnn import CNN
from reference.models.mlp import MLP
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe

LAYERS = "https://docs.pytorch.org/docs/stable/generated/torch.nn."

# What decides about one side: pixels, kernel, stride, padding, dilation. Two sides make an image.
SIDE = st.tuples(
    st.integers(5, 6), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2)
)
# Settings of a convolution; pairs are (rows, columns).
SETTINGS: list[dict[str, Any]] = [
    {},
    {"stride": (2, 1), "padding": (0, 2)},
    {"stride": (1, 2), "padding": (1, 0), "dilation": (2, 1), "groups": 2},
    {"padding": (2, 1), "dilation": (1, 3), "groups": 4},
]


def swapped(channels: int, out: int, kernel: Any, stride: Any, *more: Any) -> nn.Module:
    """Strides along the rows as it should along the columns."""
    return nn.Conv2d(channels, out, kernel, stride[::-1], *more)


@rule(
    "CNN-01",
    "A convolution makes (n, out, h', w') of (n, c, h, w), where"
    " h' = floor((h + 2 * padding - dilation * (kernel - 1) - 1) / stride) + 1, and w' likewise.",
    kind="contract",
    source=LAYERS + "Conv2d.html",
    subject=nn.Conv2d,
    violated_by=[swapped],
)
@given(rows=SIDE, columns=SIDE)
def test_a_side_counts_the_places_of_the_window(Conv2d: Any, rows: Any, columns: Any) -> None:
    """A window of k pixels reaches over dilation * (k - 1) + 1 pixels of the padded image."""
    size, kernel, stride, padding, dilation = zip(rows, columns, strict=True)
    h, w = convolution.convolution_size(*rows), convolution.convolution_size(*columns)
    layer = Conv2d(2, 3, kernel, stride, padding, dilation)
    assert layer(torch.zeros(4, 2, *size)).shape == (4, 3, h, w)


def without_output_padding(*args: Any, **more: Any) -> nn.Module:
    """Gives the smallest of the sizes, whatever it is asked for."""
    return nn.ConvTranspose2d(*args, **more | {"output_padding": 0})


@spec("CNN-01", subject=nn.ConvTranspose2d, violated_by=[without_output_padding])
@given(rows=SIDE, columns=SIDE)
def test_a_transposed_one_goes_back(ConvTranspose2d: Any, rows: Any, columns: Any) -> None:
    """To a size that gives this one; with stride s there are s, and output_padding chooses."""
    size, kernel, stride, padding, dilation = zip(rows, columns, strict=True)
    added = [step - 1 for step in stride]
    others = {"padding": padding, "dilation": dilation, "output_padding": added}
    layer = ConvTranspose2d(2, 3, kernel, stride, **others)
    inputs = torch.randn(4, 2, *size)

    outputs = layer(inputs)

    exact = (inputs.double(), layer.weight.detach().double(), layer.bias.detach().double())
    assert agree(outputs, convolution.conv_transpose2d(*exact, stride, **others))
    h = convolution.transposed_size(*rows, output_padding=added[0])
    w = convolution.transposed_size(*columns, output_padding=added[1])
    assert outputs.shape == (4, 3, h, w)
    assert convolution.convolution_size(h, *rows[1:]) == rows[0]


class FlipsTheKernel(nn.Conv2d):
    """Computes what mathematics calls a convolution."""

    def forward(self, images: Tensor) -> Tensor:
        return self._conv_forward(images, self.weight.flip(2, 3), self.bias)


@rule(
    "CNN-09",
    "Conv2d lays its kernel, not flipped, on every place and sums the products; of g groups of"
    " output channels each sees its own group of input channels.",
    kind="contract",
    source=LAYERS + "Conv2d.html",
    subject=nn.Conv2d,
    violated_by=[FlipsTheKernel],
)
def test_a_convolution_is_a_loop_over_places(Conv2d: Any) -> None:
    """Mathematics calls it cross-correlation. Weights that are learned are flipped if need be."""
    for setting, bias in itertools.product(SETTINGS, (True, False)):
        layer = Conv2d(4, 8, (3, 2), bias=bias, **setting)
        judged = [torch.randn(2, 4, 6, 5, requires_grad=True), *layer.parameters()]
        exact = [tensor.detach().double().requires_grad_() for tensor in judged]

        outputs, expected = layer(judged[0]), convolution.conv2d(*exact, **setting)
        outputs.square().sum().backward()
        expected.square().sum().backward()

        assert agree(outputs, expected)
        for tensor, same in zip(judged, exact, strict=True):
            assert agree(tensor.grad, same.grad, ulps=64, scale=10.0)  # sums of up to 100 terms


class PadsWithZero(nn.MaxPool2d):
    """Gives zero where all values are negative."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).clamp(min=0)


@rule(
    "CNN-10",
    "Pooling takes the maximum or the mean of each window. Padded zeros count in the mean, unless"
    " count_include_pad=False; in the maximum they never do.",
    kind="contract",
    source=LAYERS + "AvgPool2d.html",
    subject=nn.MaxPool2d,
    violated_by=[PadsWithZero],
)
def test_max_pooling_keeps_the_largest_value(MaxPool2d: Any) -> None:
    """Only the pixel that won gets a gradient. Sides are those of a convolution (CNN-01)."""
    for settings in [((2, 2), (2, 2), (0, 0), (1, 1)), ((3, 2), (1, 2), (1, 1), (1, 2))]:
        images = (-torch.rand(2, 3, 7, 6)).requires_grad_()
        exact = images.detach().double().requires_grad_()

        outputs, expected = MaxPool2d(*settings)(images), pooling.max_pool2d(exact, *settings)
        outputs.square().sum().backward()
        expected.square().sum().backward()

        assert agree(outputs, expected, ulps=0)
        assert agree(images.grad, exact.grad)


def counting_always(*args: Any, **_: Any) -> nn.Module:
    """Ignores count_include_pad=False."""
    return nn.AvgPool2d(*args)


@spec("CNN-10", subject=nn.AvgPool2d, violated_by=[counting_always])
def test_average_pooling_counts_the_padding_unless_told(AvgPool2d: Any) -> None:
    """By default a white image gets a grey border: in its corner, 4 of 9 pixels are white."""
    white, images = torch.ones(1, 1, 3, 3).double(), torch.randn(2, 3, 7, 6).double()
    assert AvgPool2d(3, 1, 1)(white)[0, 0, 0, 0] == 4 / 9
    for counted in (True, False):
        outputs = AvgPool2d((3, 2), (2, 1), (1, 1), count_include_pad=counted)(images)
        assert agree(outputs, pooling.avg_pool2d(images, (3, 2), (2, 1), (1, 1), counted))


def resizing(output_size: Any) -> nn.Module:
    """Interpolates between the nearest pixels, as one shrinks a photograph."""
    return nn.Upsample(output_size, mode="bilinear")


@spec("CNN-10", subject=nn.AdaptiveAvgPool2d, violated_by=[resizing])
def test_adaptive_pooling_fits_its_windows_to_the_image(AdaptiveAvgPool2d: Any) -> None:
    """It is told what size to give, for images of any size. Windows may differ and overlap."""
    for size, output_size in [((8, 8), (1, 1)), ((7, 5), (3, 2)), ((8, 3), (3, 4))]:
        images = torch.randn(2, 3, *size).double()
        outputs = AdaptiveAvgPool2d(output_size)(images)
        assert agree(outputs, pooling.adaptive_avg_pool2d(images, output_size))


def sum_of_kernels(layers: Any) -> int:
    """Forgets that windows overlap, and that strides set them apart."""
    return sum(kernel for kernel, _ in layers)


@rule(
    "CNN-11",
    "A value sees 1 + sum over the layers before of (kernel - 1) * (product of the strides before"
    " that layer) pixels on a side: its receptive field.",
    kind="contract",
    source="https://distill.pub/2019/computing-receptive-fields/",
    subject=convolution.receptive_field,
    violated_by=[sum_of_kernels],
)
def test_the_receptive_field_is_where_the_gradient_arrives(receptive_field: Any) -> None:
    """Two kernels of 3 x 3 see what one of 5 x 5 sees, with 18 weights instead of 25."""
    network_below = [(3, 1), (2, 2), (3, 1), (2, 2)]  # (kernel, stride) of each layer
    for layers in ([(3, 1), (3, 1)], [(5, 1)], network_below, [(3, 2), (3, 2), (3, 2)]):
        network = nn.Sequential(*(nn.Conv2d(1, 1, *layer) for layer in layers))
        image = torch.zeros(1, 1, 32, 32, requires_grad=True)
        (gradient,) = torch.autograd.grad(network(image)[0, 0, 1, 1], image)
        rows_that_matter = gradient[0, 0].any(dim=1).sum()
        assert receptive_field(layers) == rows_that_matter


class BiasedInItsMemory(nn.BatchNorm2d):
    """Remembers the variance with divisor N, the one that it normalises with."""

    def forward(self, images: Tensor) -> Tensor:
        outputs, n = super().forward(images), images.numel() / images.shape[1]
        self.running_var = self.get_buffer("running_var") * (n - 1) / n
        return outputs


@rule(
    "CNN-02",
    "In training BatchNorm normalises each channel by mean and biased variance of the batch, and"
    " remembers mean and unbiased variance, (1 - momentum) * old + momentum * new, for eval mode.",
    kind="contract",
    source=LAYERS + "BatchNorm2d.html",
    subject=nn.BatchNorm2d,
    violated_by=[BiasedInItsMemory],
)
def test_batch_normalisation_by_hand(BatchNorm2d: Any, observe: Observe) -> None:
    """With momentum=None all batches count the same: what it remembers are plain means."""
    for momentum in (0.1, 0.4, None):
        layer = BatchNorm2d(3, 0.01, momentum).double()
        by_hand = batch_norm.BatchNorm(3, 0.01, momentum)
        for name in ("weight", "bias"):
            setattr(layer, name, nn.Parameter(torch.randn(3).double()))
            setattr(by_hand, name, getattr(layer, name).detach().clone().requires_grad_())

        for mode in (True, True, True, False):
            layer.train(mode)
            by_hand.training = mode
            images = (1 + 2 * torch.randn(2, 3, 2, 2)).double().requires_grad_()
            same = images.detach().clone().requires_grad_()

            outputs, expected = layer(images), by_hand(same)
            outputs.pow(3).sum().backward()
            expected.pow(3).sum().backward()

            assert agree(outputs, expected)
            for name in ("running_mean", "running_var"):
                assert agree(getattr(layer, name), getattr(by_hand, name))
            exact = (same, by_hand.weight, by_hand.bias)
            for got, one in zip((images, layer.weight, layer.bias), exact, strict=True):
                assert agree(got.grad, one.grad, ulps=256, scale=100.0)  # cubes, from all batches
    observe("running variance", layer.running_var)


class AcceptsOne(nn.BatchNorm1d):
    """Gives zeros, since a single value is its own mean."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) if len(inputs) > 1 else inputs - inputs


@rule(
    "CNN-03",
    "In training BatchNorm raises for a batch with one value per channel: do not let a last batch"
    " of one sample come up (drop_last=True).",
    kind="contract",
    source=LAYERS + "BatchNorm1d.html",
    subject=nn.BatchNorm1d,
    violated_by=[AcceptsOne],
)
def test_a_batch_of_one_has_no_variance(BatchNorm1d: Any) -> None:
    """65 samples in batches of 64 end with one. In eval mode there is nothing to estimate."""
    layer = BatchNorm1d(3)
    *_, (last, _) = data.batches(torch.zeros(65, 3), torch.zeros(65), batch_size=64)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        layer(last)
    assert layer.eval()(last).shape == (1, 3)


class TurnsTheShape(nn.Conv2d):
    """Takes channels_last for an order of dimensions."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).permute(0, 2, 3, 1)


@rule(
    "CNN-12",
    "channels_last is an order in memory, not a shape: the tensor keeps its shape (n, c, h, w) and"
    " its values, only its strides change, and a convolution passes the order on.",
    kind="contract",
    source="https://docs.pytorch.org/tutorials/intermediate/memory_format_tutorial.html",
    subject=nn.Conv2d,
    violated_by=[TurnsTheShape],
)
def test_channels_last_changes_the_strides_only(Conv2d: Any) -> None:
    """A stride is how far away in memory the next value of a dimension lies: 1 for channels."""
    layer, images = Conv2d(3, 4, 3), torch.randn(2, 3, 6, 5)
    last = images.to(memory_format=torch.channels_last)
    assert torch.equal(last, images)
    assert last.stride() == (3 * 6 * 5, 1, 5 * 3, 3)
    assert agree(layer(last), layer(images))
    assert layer(last).stride() == (4 * 4 * 3, 1, 3 * 4, 4)
    with pytest.raises(RuntimeError):
        layer(images.permute(0, 2, 3, 1))  # the shape (n, h, w, c) is refused


def with_useless_biases() -> nn.Module:
    """Gives its convolutions a bias."""
    model = CNN()
    for place in (0, 4):
        model.features[place].bias = nn.Parameter(torch.zeros(8))
    return model


@rule(
    "CNN-04",
    "A layer directly before BatchNorm gets no bias (bias=False): its gradient is always zero.",
    kind="practice",
    source="https://docs.pytorch.org/tutorials/recipes/recipes/tuning_guide.html",
    consequence="On digits the largest gradient of such a bias is below 0.00001, all of it rounding"
    " errors, that of any other parameter above 0.01.",
    subject=CNN,
    violated_by=[with_useless_biases],
)
def test_every_parameter_of_the_network_learns(CNN: Any) -> None:
    """BatchNorm subtracts the mean of each channel, and with it whatever a bias has added."""
    model, digits = CNN(), data.digits()
    logits = model(digits.train_inputs.reshape(-1, 1, 8, 8))
    nn.functional.cross_entropy(logits, digits.train_targets).backward()
    assert all(parameter.grad.abs().max() > 1e-4 for parameter in model.parameters())


@lru_cache
def trained(network: Any) -> tuple[nn.Module, Tensor, Tensor]:
    """The network after five epochs of digits, the test images, and the digits that they show."""
    digits = data.digits()
    torch.manual_seed(0)
    model, order = network(), torch.Generator().manual_seed(0)
    images = digits.train_inputs.reshape(-1, 1, 8, 8)
    batches = data.batches(images, digits.train_targets, 64, order)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    training.fit(model, batches, nn.CrossEntropyLoss(), optimizer, epochs=5)
    return model, digits.test_inputs.reshape(-1, 1, 8, 8), digits.test_targets


def accuracy_in_training_mode(model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    """Forgets model.eval()."""
    return float((model(inputs).argmax(dim=1) == targets).double().mean())


@rule(
    "LOOP-02",
    "Evaluate in eval mode: there the answer for a sample does not depend on its batch.",
    kind="practice",
    source=LAYERS + "BatchNorm2d.html",
    consequence="Digits, one class to a batch, as from a folder that is not shuffled: accuracy 0.83"
    " to 0.89 in training mode, where BatchNorm looks at the batch, 0.95 to 0.98 in eval mode.",
    subject=training.accuracy,
    violated_by=[accuracy_in_training_mode],
)
def test_accuracy_does_not_depend_on_the_batches(accuracy: Any, observe: Observe) -> None:
    """Eight seeds. In training mode a sample's answer depends on what else is in its batch."""
    model, images, targets = deepcopy(trained(CNN))
    model.train()
    classes = [targets == digit for digit in range(10)]
    right = sum(accuracy(model, images[one], targets[one]) * int(one.sum()) for one in classes)

    observe("accuracy, one class to a batch", round(right / 360, 2))
    assert right / 360 > 0.93
    assert right == pytest.approx(accuracy(model, images, targets) * 360)


def without_convolutions() -> nn.Module:
    """Takes an image for a list of 64 pixels, as lesson 10 does."""
    return nn.Sequential(nn.Flatten(), MLP((64, 64, 10)))


@rule(
    "CNN-13",
    "Take convolutions for images: what they learn at one place they know at every other.",
    kind="practice",
    source="https://docs.pytorch.org/tutorials/beginner/introyt/modelsyt_tutorial.html",
    consequence="Digits, eight seeds: 1,010 parameters find 0.95 to 0.98 of them, and 0.59 to 0.71"
    " when moved by a pixel; 4,810 without convolutions 0.93 to 0.96, and 0.45 to 0.48.",
    subject=CNN,
    violated_by=[without_convolutions],
)
def test_fewer_weights_know_more_about_moved_images(CNN: Any, observe: Observe) -> None:
    """They bear a shift better, but are not invariant to where the digit stands."""
    model, images, targets = trained(CNN)
    moved = [images.roll(pixel, side) for pixel in (-1, 1) for side in (2, 3)]

    in_place = training.accuracy(model, images, targets)
    off_by_one = sum(training.accuracy(model, one, targets) for one in moved) / 4

    observe("accuracy in place and moved", [round(in_place, 2), round(off_by_one, 2)])
    assert sum(parameter.numel() for parameter in model.parameters()) < 1500
    assert in_place > 0.93
    assert 0.53 < off_by_one < 0.8
