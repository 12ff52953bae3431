"""Initialisation: from which weights training starts.

At the end you know what a new layer is filled with, and what the functions of torch.nn.init draw.
What training makes of it is shown in the next file.

A random draw is compared with the whole distribution that is due, by the largest gap between the
share of values below x and the probability of being below x. Among n values of the right
distribution that gap exceeds LIMIT / sqrt(n) once in a billion draws at most, whatever the
distribution (the Dvoretzky-Kiefer-Wolfowitz inequality). So no seed is a lucky one.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log, sqrt
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Conv2d, ConvTranspose2d, Linear
from torch.nn.init import (
    calculate_gain,
    kaiming_normal_,
    kaiming_uniform_,
    trunc_normal_,
    xavier_normal_,
    xavier_uniform,
    xavier_uniform_,
)

from reference import initialisation
from reference.initialisation import default_bound, kaiming_deviation, xavier_deviation
from specs.harness import known_bug, rule, spec
from specs.harness.observations import Observe

INIT_PAGE = "https://docs.pytorch.org/docs/stable/nn.init.html"

Function = Callable[..., Any]
Probability = Callable[[Tensor], Tensor]

LIMIT = sqrt(log(2 / 1e-9) / 2)


def gap(values: Tensor, probability_below: Probability) -> float:
    """The largest gap between the values and a distribution, times sqrt(n); see above."""
    ordered = values.detach().flatten().double().sort().values
    n = len(ordered)
    below = probability_below(ordered)
    ranks = torch.arange(n, dtype=torch.float64)
    largest = torch.maximum(below - ranks / n, (ranks + 1) / n - below).max()
    return largest.item() * sqrt(n)


def uniform(bound: float) -> Probability:
    """The uniform distribution between -bound and bound; its deviation is bound / sqrt(3)."""
    return lambda x: ((x + bound) / (2 * bound)).clamp(0, 1)


def normal(std: float, mean: float = 0.0) -> Probability:
    """The normal distribution."""
    return lambda x: (1 + torch.erf((x - mean) / (std * sqrt(2)))) / 2


def truncated(whole: Probability, a: float, b: float) -> Probability:
    """What is left of a distribution between a and b, brought to a total of 1."""
    at_a, at_b = whole(torch.tensor([a, b], dtype=torch.float64)).tolist()
    return lambda x: (whole(x) - at_a) / (at_b - at_a)


# --- What a new layer holds -----------------------------------------------------------------------


class StartsWithoutBias(Linear):
    """Sets the bias to 0."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.zeros_(self.bias)


class StartsWithXavier(Linear):
    """Divides by the mean of inputs and outputs."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        xavier_uniform_(self.weight)


@rule(
    "INIT-01",
    "A new Linear or Conv draws weight and bias uniformly between plus and minus 1 / sqrt(fan_in),"
    " where fan_in is the number of inputs of one output.",
    kind="contract",
    source="https://docs.pytorch.org/docs/stable/generated/torch.nn.Linear.html",
    subject=Linear,
    violated_by=[StartsWithoutBias, StartsWithXavier],
)
def test_a_new_linear_layer_is_uniform_in_weight_and_bias(Linear: Function) -> None:
    """Its variance is 1 / (3 * fan_in): less than either of the schemes below would give."""
    for inputs, outputs in [(25, 4000), (400, 1000)]:
        layer = Linear(inputs, outputs)

        bound = default_bound((outputs, inputs))
        assert bound == 1 / sqrt(inputs)
        assert gap(layer.weight, uniform(bound)) < LIMIT
        assert gap(layer.bias, uniform(bound)) < LIMIT
        # Nothing lies beyond, up to the rounding of float32.
        assert max(layer.weight.abs().max().item(), layer.bias.abs().max().item()) < bound * 1.0001


class IgnoresTheKernel(Conv2d):
    """Counts channels only."""

    def reset_parameters(self) -> None:
        bound = 1 / sqrt(self.weight.shape[1])
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)


class IgnoresTheGroups(Conv2d):
    """Counts all input channels, not those of the group."""

    def reset_parameters(self) -> None:
        bound = 1 / sqrt(self.in_channels * self.weight[0, 0].numel())
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)


@spec("INIT-01", subject=Conv2d, violated_by=[IgnoresTheKernel, IgnoresTheGroups])
def test_a_convolution_counts_the_cells_of_its_kernel_and_its_group(Conv2d: Function) -> None:
    """One output sees the kernel's cells of the channels in its group."""
    layer = Conv2d(8, 2000, kernel_size=(3, 5), groups=2)
    bound = 1 / sqrt(8 / 2 * 3 * 5)
    assert gap(layer.weight, uniform(bound)) < LIMIT
    assert gap(layer.bias, uniform(bound)) < LIMIT


class CountsItsInputs(ConvTranspose2d):
    """Counts the channels that come in, as the name fan_in suggests."""

    def reset_parameters(self) -> None:
        bound = 1 / sqrt(self.weight.shape[0] * self.weight[0, 0].numel())
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)


@spec("INIT-01", subject=ConvTranspose2d, violated_by=[CountsItsInputs])
def test_a_transposed_convolution_counts_its_output_channels(ConvTranspose2d: Function) -> None:
    """Its weight is stored as (inputs, outputs, *kernel), and the second size is taken for the
    inputs: with 100 channels in and 4 out, the weights are five times what their fan_in allows."""
    layer = ConvTranspose2d(100, 4, kernel_size=(4, 4))
    assert gap(layer.weight, uniform(1 / sqrt(4 * 4 * 4))) < LIMIT


# --- The functions of torch.nn.init ---------------------------------------------------------------

GAINS = [
    (("linear",), 1.0),
    (("conv2d",), 1.0),
    (("sigmoid",), 1.0),
    (("tanh",), 5 / 3),
    (("relu",), sqrt(2)),
    (("leaky_relu",), sqrt(2 / (1 + 0.01**2))),
    (("leaky_relu", 0.5), sqrt(2 / 1.25)),
    (("selu",), 3 / 4),
]


def knows_relu_only(nonlinearity: str, param: float = 0.01) -> float:
    """Gives every activation function the gain of a leaky ReLU."""
    return sqrt(2 / (1 + param**2)) if nonlinearity != "relu" else sqrt(2)


@rule(
    "INIT-02",
    "Kaiming draws with deviation gain / sqrt(fan), Xavier with gain * sqrt(2 / (fan_in +"
    " fan_out)); the uniform forms have a bound of sqrt(3) deviations.",
    kind="contract",
    source=INIT_PAGE,
    subject=[calculate_gain, initialisation.calculate_gain],
    violated_by=[knows_relu_only],
)
def test_the_gain_makes_up_for_the_activation_function(calculate_gain: Function) -> None:
    """ReLU halves the second moment of a symmetric signal, so the variance has to be doubled."""
    for arguments, gain in GAINS:
        assert calculate_gain(*arguments) == pytest.approx(gain, rel=1e-12), arguments
    with pytest.raises(ValueError, match="nonlinearity"):
        calculate_gain("gelu")


# shape, options, and the deviation; a weight (400, 50, 3) has fan_in 150 and fan_out 1200
KAIMING = [
    ((400, 250), {}, sqrt(2 / 250)),  # the default is a leaky ReLU of slope a = 0: a ReLU
    ((400, 250), {"nonlinearity": "relu"}, sqrt(2 / 250)),
    ((400, 250), {"mode": "fan_out"}, sqrt(2 / 400)),
    ((400, 250), {"nonlinearity": "tanh"}, 5 / 3 / sqrt(250)),
    ((400, 250), {"a": 1.0}, 1 / sqrt(250)),
    ((400, 250), {"a": sqrt(5)}, 1 / sqrt(3 * 250)),  # as uniform: the default of Linear
    ((400, 50, 3), {"nonlinearity": "linear"}, 1 / sqrt(150)),
    ((400, 50, 3), {"nonlinearity": "linear", "mode": "fan_out"}, 1 / sqrt(1200)),
]


def always_fan_in(tensor: Tensor, **options: Any) -> Tensor:
    """Ignores the mode."""
    return kaiming_normal_(tensor, **options | {"mode": "fan_in"})


def always_relu(tensor: Tensor, **options: Any) -> Tensor:
    """Ignores the nonlinearity and its slope."""
    return kaiming_normal_(tensor, **options | {"nonlinearity": "relu"})


def mistakes_the_variance(tensor: Tensor, **options: Any) -> Tensor:
    """Draws with the variance where the deviation belongs."""
    return kaiming_normal_(tensor, **options).div_(sqrt(tensor[0].numel()))


@spec(
    "INIT-02",
    subject=kaiming_normal_,
    violated_by=[always_fan_in, always_relu, mistakes_the_variance, kaiming_uniform_],
)
def test_kaiming_normal_divides_by_the_root_of_one_fan(kaiming_normal_: Function) -> None:
    """fan_in keeps the size of the signal, fan_out that of the gradient on its way back."""
    for shape, options, deviation in KAIMING:
        weight = torch.empty(shape)
        assert kaiming_normal_(weight, **options) is weight
        assert gap(weight, normal(deviation)) < LIMIT, (shape, options)
    assert kaiming_deviation((400, 50, 3), 1.0, "fan_out") == 1 / sqrt(1200)


def takes_the_deviation_for_the_bound(tensor: Tensor, **options: Any) -> Tensor:
    """Draws between plus and minus one deviation: the variance is a third of what it should be."""
    return kaiming_uniform_(tensor, **options).div_(sqrt(3))


@spec(
    "INIT-02",
    subject=kaiming_uniform_,
    violated_by=[takes_the_deviation_for_the_bound, kaiming_normal_],
)
def test_kaiming_uniform_has_a_bound_of_root_3_deviations(kaiming_uniform_: Function) -> None:
    """The deviation of a uniform distribution is its bound divided by sqrt(3)."""
    for shape, options, deviation in KAIMING:
        weight = kaiming_uniform_(torch.empty(shape), **options)
        assert gap(weight, uniform(sqrt(3) * deviation)) < LIMIT, (shape, options)


def counts_channels_only(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Leaves the cells of the kernel out of both fans."""
    return tensor.normal_(0, gain * sqrt(2 / (tensor.shape[0] + tensor.shape[1])))


def ignores_the_gain(tensor: Tensor, **_gain: float) -> Tensor:
    """Draws as for a linear layer."""
    return xavier_normal_(tensor)


@spec(
    "INIT-02",
    subject=xavier_normal_,
    violated_by=[counts_channels_only, ignores_the_gain, xavier_uniform_],
)
def test_xavier_normal_divides_by_the_root_of_the_mean_fan(xavier_normal_: Function) -> None:
    """It stands between the two modes of Kaiming, and its default gain is 1, that of no ReLU."""
    for shape, gain, fans in [((400, 250), 1.0, 650), ((400, 50, 3), 5 / 3, 150 + 1200)]:
        weight = xavier_normal_(torch.empty(shape), gain=gain)
        assert gap(weight, normal(gain * sqrt(2 / fans))) < LIMIT
        assert xavier_deviation(shape, gain) == gain * sqrt(2 / fans)


def forgets_root_3(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Takes the deviation for the bound."""
    return xavier_uniform_(tensor, gain / sqrt(3))


@spec("INIT-02", subject=xavier_uniform_, violated_by=[forgets_root_3, xavier_normal_])
def test_xavier_uniform_has_the_bound_root_of_6_by_the_fans(xavier_uniform_: Function) -> None:
    """sqrt(3) * sqrt(2 / fans) = sqrt(6 / fans)."""
    for shape, gain, fans in [((400, 250), 1.0, 650), ((400, 50, 3), 5 / 3, 150 + 1200)]:
        weight = xavier_uniform_(torch.empty(shape), gain=gain)
        assert gap(weight, uniform(gain * sqrt(6 / fans))) < LIMIT


def takes_a_bias_for_a_row(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Invents a dimension."""
    return xavier_uniform_(tensor.view(1, -1), gain).view(-1)


@spec("INIT-02", subject=xavier_uniform_, violated_by=[takes_a_bias_for_a_row])
def test_a_bias_has_no_fans(xavier_uniform_: Function) -> None:
    """A loop over model.parameters() meets biases: tell them apart by their dimensions."""
    with pytest.raises(ValueError, match="Fan in and fan out"):
        xavier_uniform_(torch.empty(5))


# mean, std, a, b
TRUNCATED = [
    (0.0, 1.0, -2.0, 2.0),
    (0.0, 0.02, -2.0, 2.0),  # 100 deviations away: in effect nothing is cut off
    (0.0, 0.02, -0.04, 0.04),  # two deviations away
    (1.0, 0.5, 0.0, 1.25),
]


def cuts_at_multiples_of_std(tensor: Tensor, mean: Any, std: Any, a: Any, b: Any) -> Tensor:
    """Takes a and b for numbers of deviations."""
    return trunc_normal_(tensor, mean, std, mean + a * std, mean + b * std)


def moves_it_to_the_edge(tensor: Tensor, mean: Any, std: Any, a: Any, b: Any) -> Tensor:
    """Clamps: the edges get all that should have been drawn again."""
    return tensor.normal_(mean, std).clamp_(a, b)


@rule(
    "INIT-03",
    "trunc_normal_ draws normal values and redraws those outside a and b, which are absolute"
    " values, not multiples of std: with std=0.02 the default bounds of -2 and 2 cut nothing.",
    kind="contract",
    source="https://docs.pytorch.org/docs/stable/nn.init.html#torch.nn.init.trunc_normal_",
    subject=[trunc_normal_, initialisation.trunc_normal_],
    violated_by=[cuts_at_multiples_of_std, moves_it_to_the_edge],
)
def test_the_bounds_are_in_the_unit_of_the_weights(trunc_normal_: Function) -> None:
    """Who wants to cut at two deviations writes a=-2 * std, b=2 * std."""
    for mean, std, a, b in TRUNCATED:
        weight = trunc_normal_(torch.empty(40_000), mean=mean, std=std, a=a, b=b)

        assert a <= weight.min() <= weight.max() <= b
        assert gap(weight, truncated(normal(std, mean), a, b)) < LIMIT


def inverts_in_the_dtype_of_the_weights(tensor: Tensor, std: float) -> Tensor:
    """In bfloat16 one uniform value in 256 is rounded to -1, whose quantile is minus infinity."""
    return tensor.uniform_(-1, 1).erfinv_().mul_(std * sqrt(2)).clamp_(-2, 2)


@spec(
    "INIT-03",
    subject=[
        known_bug(
            trunc_normal_, "https://github.com/pytorch/pytorch/issues/145498", fixed_in="2.12"
        ),
        initialisation.trunc_normal_,
    ],
    violated_by=[inverts_in_the_dtype_of_the_weights],
)
def test_a_coarse_dtype_gets_no_outliers(trunc_normal_: Function, observe: Observe) -> None:
    """Before torch 2.12, 0.4% of bfloat16 weights were -2: that is 100 deviations."""
    weight = trunc_normal_(torch.empty(20_000, dtype=torch.bfloat16), std=0.02)
    observe("largest weight", weight.abs().max().item())
    # Beyond 8 deviations lies one normal value in 10^15.
    assert weight.abs().max() < 8 * 0.02


def says_nothing(tensor: Tensor) -> Tensor:
    """Accepts the old name for good."""
    return xavier_uniform_(tensor)


OLD_NAMES = ["uniform", "normal", "eye", "xavier_normal", "kaiming_uniform", "kaiming_normal"]


@rule(
    "INIT-04",
    "Initialisers end in an underscore: they fill a parameter in place, outside autograd. The names"
    " without it are deprecated, and change the tensor too.",
    kind="contract",
    source=INIT_PAGE,
    subject=xavier_uniform,
    violated_by=[says_nothing],
)
def test_the_old_name_warns(xavier_uniform: Function, observe: Observe) -> None:
    """FutureWarning is shown by default, and names the new function."""
    weight = torch.zeros(3, 3)
    with pytest.warns(FutureWarning, match="nn.init.xavier_uniform") as caught:
        xavier_uniform(weight)
    assert weight.all()
    observe("warning", caught[0])
    for name in OLD_NAMES:
        with pytest.warns(FutureWarning, match=f"nn.init.{name}"):
            getattr(nn.init, name)(torch.empty(3, 3))


def returns_another_tensor(tensor: Tensor) -> Tensor:
    """Leaves the parameter as it is."""
    return xavier_uniform_(tensor.detach().clone())


@spec("INIT-04", subject=xavier_uniform_, violated_by=[returns_another_tensor])
def test_a_parameter_is_filled_in_place_and_stays_a_leaf(xavier_uniform_: Function) -> None:
    """In-place work on a leaf that requires gradients is an error elsewhere; here it is not."""
    weight = nn.Parameter(torch.zeros(3, 3))
    assert xavier_uniform_(weight) is weight
    assert weight.abs().min() > 0
    assert weight.is_leaf
    assert weight.requires_grad
