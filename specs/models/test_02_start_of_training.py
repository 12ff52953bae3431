"""The start of training: what the first weights have to do with the last ones.

At the end you know why a deep network, a network of equal units and a loud head do not learn, and
what to draw instead. Read before: initialisation, the file before this one.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log, sqrt
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam

from reference.data import batches, digits
from reference.initialisation import initialise
from reference.training import accuracy, fit
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe

Function = Callable[..., Any]


# --- Depth ----------------------------------------------------------------------------------------


def deep_network() -> Any:
    """Twenty layers with ReLU between them, for digits."""
    hidden = [nn.Linear(64, 64) if i % 2 == 0 else nn.ReLU() for i in range(38)]
    return nn.Sequential(*hidden, nn.Linear(64, 10))


def leaves_the_defaults(model: nn.Module, **_head: Any) -> None:
    """Trusts what the layers did when they were built."""


def xavier_throughout(model: nn.Module, **_head: Any) -> None:
    """Draws as for a network without activation functions."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)


def large_numbers(model: nn.Module, **_head: Any) -> None:
    """Draws with a deviation of 0.3, whatever the size of the layer."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)


@rule(
    "INIT-05",
    "In a deep ReLU network draw weights with variance 2 / fan_in: every layer then keeps the size"
    " of its signal. With c / fan_in the variance changes by c / 2 in each.",
    kind="practice",
    source="https://arxiv.org/abs/1502.01852",
    subject=initialise,
    violated_by=[leaves_the_defaults, xavier_throughout, large_numbers],
    consequence="20 layers on digits, five epochs of Adam: 73 to 89% accuracy (twelve seeds); with"
    " the default of Linear, which is c = 1/3, 10%, that is chance",
)
def test_a_signal_survives_nineteen_layers(initialise: Function, observe: Observe) -> None:
    """How much the outputs of the last hidden layer vary over the images, against the pixels."""
    torch.manual_seed(0)
    model = deep_network()
    initialise(model)
    images = digits().train_inputs

    with torch.no_grad():
        signal = model[:-1](images)

    ratio = (signal.var(dim=0).mean() / images.var(dim=0).mean()).item()
    observe("variance, relative", ratio)
    # Twelve seeds: 0.02 to 0.8. Xavier has c = 1 and comes to 2e-6 at most, as (1/2)^19 says, the
    # default has c = 1/3 and comes to 2e-15, as (1/6)^19 says.
    assert 1e-4 < ratio < 100


@spec("INIT-05", violated_by=[leaves_the_defaults])
def test_twenty_layers_learn_in_five_epochs(initialise: Function, observe: Observe) -> None:
    """With the default the logits hardly depend on the image: all that is learned is the bias."""
    data = digits()
    torch.manual_seed(0)
    model = deep_network()
    initialise(model)
    shuffled = batches(data.train_inputs, data.train_targets, 64, torch.Generator().manual_seed(0))
    optimizer = Adam(model.parameters(), lr=1e-3, fused=True)  # one kernel for all 40 tensors
    fit(model, shuffled, cross_entropy, optimizer, epochs=5)
    share_of_right = accuracy(model, data.test_inputs, data.test_targets)
    observe("accuracy", share_of_right)
    assert share_of_right > 0.5


def counts_outputs(model: nn.Module, **_head: Any) -> None:
    """Takes fan_out for fan_in, which is the same in square layers only."""
    initialise(model)
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")


def leaves_convolutions_alone(model: nn.Module, **_head: Any) -> None:
    """Sets up linear layers only."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            initialise(layer)


@spec("INIT-05", violated_by=[leaves_the_defaults, counts_outputs, leaves_convolutions_alone])
def test_each_weight_has_variance_2_by_fan_in_and_biases_are_zero(initialise: Function) -> None:
    """The deviation of n normal values is off by 1 / sqrt(2n) in the mean; six times that much is
    allowed, which happens once in 500 million draws."""
    model: Any = nn.Sequential(nn.Linear(250, 400), nn.Conv2d(50, 400, 3), nn.Conv1d(8, 4000, 5))
    initialise(model)
    for layer, fan_in in zip(model, [250, 50 * 3 * 3, 8 * 5], strict=True):
        deviation = layer.weight.double().square().mean().sqrt().item()
        off = deviation / sqrt(2 / fan_in) - 1
        assert abs(off) < 6 / sqrt(2 * layer.weight.numel())
        assert not layer.bias.any()


# --- Symmetry -------------------------------------------------------------------------------------


def shallow_network() -> Any:
    """One hidden layer of 32 units."""
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def constant_weights(model: nn.Module, **_head: Any) -> None:
    """Makes all units alike."""
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.1)


def zero_weights(model: nn.Module, **_head: Any) -> None:
    """Makes all units alike, and silent."""
    for parameter in model.parameters():
        nn.init.zeros_(parameter)


def trained(initialise: Function) -> tuple[int, float]:
    """After five epochs on digits: the hidden units that differ from the first, the accuracy."""
    data, model = digits(), shallow_network()
    initialise(model)
    few = batches(data.train_inputs, data.train_targets, 64)
    fit(model, few, cross_entropy, SGD(model.parameters(), lr=0.1), epochs=5)
    weights = model[0].weight
    different = (weights - weights[0]).abs().amax(dim=1) > 1e-4
    return int(different.sum()), accuracy(model, data.test_inputs, data.test_targets)


def constant_first_layer(model: Any) -> None:
    """Makes the units alike in what they see, but not in where they go."""
    nn.init.constant_(model[0].weight, 0.1)


@rule(
    "LOOP-05",
    "Draw weights at random: units with equal weights before and behind them get equal gradients,"
    " and stay copies of one another.",
    kind="practice",
    source="https://docs.pytorch.org/docs/stable/nn.init.html",
    subject=initialise,
    violated_by=[constant_weights, zero_weights],
    consequence="32 hidden units that start alike are one unit after training: 10% accuracy on the"
    " digits, that is chance, instead of 87 to 90% (six seeds)",
)
def test_units_that_start_alike_never_part(initialise: Function) -> None:
    """One random layer is enough: through it the units of the constant one get different
    gradients. So a constant layer alone is no fault, a constant network is."""
    units_that_differ, share_of_right = trained(initialise)
    assert units_that_differ == 31
    assert share_of_right > 0.6
    assert trained(constant_weights)[0] == trained(zero_weights)[0] == 0
    assert trained(constant_first_layer)[0] == 31


# --- The head -------------------------------------------------------------------------------------


def draws_the_head(model: nn.Module, **_head: Any) -> None:
    """Draws the head as any other layer."""
    initialise(model)


@rule(
    "INIT-06",
    "Compare the first loss with ln K, the cost of equal probabilities for K classes: a head of"
    " zeros starts there exactly, and it does learn.",
    kind="practice",
    source="https://arxiv.org/abs/1706.02677",
    subject=initialise,
    violated_by=[draws_the_head, zero_weights],
    consequence="it is a check of the set-up, not a cure: after five epochs on digits the head of"
    " zeros is at a loss of 0.9 to 1.2, a head drawn like the other layers at 0.6 to 0.75 (six"
    " seeds)",
)
def test_a_head_of_zeros_learns_first_and_the_other_layers_follow(initialise: Function) -> None:
    """Its rows get different gradients, from different targets, so they part in the first step. No
    gradient passes back through zeros: the hidden layer waits for the second step."""
    data, model = digits(), shallow_network()
    initialise(model, head=model[2])
    optimizer = SGD(model.parameters(), lr=0.1)

    first_loss = cross_entropy(model(data.train_inputs), data.train_targets)
    first_loss.backward()
    assert agree(first_loss, log(10))
    assert not model[0].weight.grad.any()
    optimizer.step()

    cross_entropy(model(data.train_inputs), data.train_targets).backward()
    assert model[0].weight.grad.any()


@spec("INIT-06", violated_by=[zero_weights])
def test_a_head_of_zeros_learns_but_not_faster(initialise: Function, observe: Observe) -> None:
    """Its first epochs are spent on growing to the size that a drawn head starts with."""
    losses = []
    for zero_head in (True, False):
        torch.manual_seed(0)
        data, model = digits(), shallow_network()
        initialise(model, head=model[2] if zero_head else None)
        few = batches(data.train_inputs, data.train_targets, 64)
        history = fit(model, few, cross_entropy, SGD(model.parameters(), lr=0.1), epochs=5)
        losses.append(history.losses[-1])
    observe("losses", losses)
    with_zeros, drawn = losses
    assert drawn < with_zeros < 1.6 < log(10)
