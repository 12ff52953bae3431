"""A feed-forward network, and what nn.Module does for it.

At the end you can write a network, know which of its tensors are trained, saved and moved, what
train() and eval() change, how to watch a layer, and how weights are loaded.
Read before: lessons 2 (autograd), 4 (gradient descent) and 9 (softmax and cross entropy).

The task is to tell odd digits from even ones. A linear model gets 89 to 91% of the test images
right, whatever the seed, and a network with one hidden layer 97 to 99%.
"""

from __future__ import annotations

from copy import deepcopy
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Dropout, Module
from torch.nn.functional import dropout

from reference import data, training
from reference.layers import dense
from reference.models.mlp import MLP
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe

MODULE = "https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html"


@lru_cache
def accuracy_on_parity(network: Any) -> float:
    """Train 64 pixels -> 64 hidden values -> 2 logits for 25 epochs; the share of right answers."""
    digits, order = data.digits(), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = network((64, 64, 2))
    batches = data.batches(digits.train_inputs, digits.train_targets % 2, 256, order)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    training.fit(model, batches, nn.CrossEntropyLoss(), optimizer, epochs=25)
    return training.accuracy(model, digits.test_inputs, digits.test_targets % 2)


class NothingBetweenTheLayers(MLP):
    """Feeds each linear layer directly into the next."""

    def forward(self, inputs: Tensor) -> Tensor:
        for layer in self.layers:
            inputs = layer(inputs)
        return inputs


@rule(
    "MOD-09",
    "Put a non-linear function between two linear layers.",
    kind="practice",
    source="https://docs.pytorch.org/tutorials/beginner/basics/buildmodel_tutorial.html",
    consequence="Linear layers alone, however many, are one linear layer: two of them find the odd"
    " digits with an accuracy of 0.89 to 0.91, with ReLU between them 0.97 to 0.99 (eight seeds).",
    subject=MLP,
    violated_by=[NothingBetweenTheLayers],
)
def test_hidden_values_are_cut_off_at_zero_and_logits_are_not(MLP: Any) -> None:
    """ReLU is max(0, x). nn.Linear is x @ weight.T + bias, with a weight of shape (out, in)."""
    model, inputs = MLP((3, 5, 4, 6)), 10 * torch.randn(20, 3)
    exact = [parameter.detach().double().requires_grad_() for parameter in model.parameters()]

    logits = model(inputs)
    logits.square().mean().backward()

    hidden = dense.linear(inputs.double(), *exact[0:2]).clamp(min=0)
    hidden = dense.linear(hidden, *exact[2:4]).clamp(min=0)
    expected = dense.linear(hidden, *exact[4:6])
    expected.square().mean().backward()
    assert agree(logits, expected, scale=10.0)
    assert logits.min() < 0
    for parameter, same in zip(model.parameters(), exact, strict=True):
        assert agree(parameter.grad, same.grad, scale=10.0)


@spec("MOD-09", violated_by=[NothingBetweenTheLayers])
def test_a_network_learns_what_a_linear_model_cannot(MLP: Any, observe: Observe) -> None:
    """Eight seeds: linear model 0.894 to 0.906, network 0.972 to 0.986."""
    linear = accuracy_on_parity(lambda sizes: nn.Linear(sizes[0], sizes[-1]))
    network = accuracy_on_parity(MLP)
    observe("accuracy, linear and not", [round(linear, 2), round(network, 2)])
    assert linear < 0.93
    assert network > 0.95


class LooksIntoLists(nn.Module):
    """Registers the modules of a list as well."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, nn.ModuleList(value) if isinstance(value, list) else value)


@rule(
    "MOD-01",
    "Parameters and modules belong to a module when they are its attributes, or stand in a"
    " ModuleList or ModuleDict; plain tensors and layers in a plain list do not belong to it.",
    kind="contract",
    source=MODULE,
    consequence="A layer in a plain list is not trained, and nothing warns: odd digits are found"
    " with an accuracy of 0.86 to 0.92 instead of 0.97 to 0.99 (eight seeds).",
    subject=Module,
    violated_by=[LooksIntoLists],
)
def test_a_plain_list_hides_its_layers(Module: Any) -> None:
    """What belongs to a module is trained, saved and moved with it. The rest is left behind."""

    class Net(Module):
        def __init__(self) -> None:
            super().__init__()  # comes first: without it nothing can be registered
            self.scale = nn.Parameter(torch.ones(1))
            self.layer = nn.Linear(1, 1, bias=False)
            self.module_list = nn.ModuleList([nn.Linear(1, 1, bias=False)])
            self.module_dict = nn.ModuleDict({"a": nn.Linear(1, 1, bias=False)})
            self.plain_list = [nn.Linear(1, 1, bias=False)]
            self.plain_tensor = torch.ones(1)

    net = Net().double()

    belong = ["scale", "layer.weight", "module_list.0.weight", "module_dict.a.weight"]
    assert [name for name, _ in net.named_parameters()] == belong
    assert list(net.state_dict()) == belong
    assert all(parameter.dtype == torch.float64 for parameter in net.parameters())
    assert net.plain_list[0].weight.dtype == net.plain_tensor.dtype == torch.float32


class HiddenLayersInAPlainList(MLP):
    """Has only its last layer registered."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__(sizes)
        plain_list = list(self.layers)
        del self.layers
        self.__dict__["layers"], self.last = plain_list, plain_list[-1]


@spec("MOD-01", subject=MLP, violated_by=[HiddenLayersInAPlainList])
def test_an_optimizer_trains_what_is_registered(MLP: Any) -> None:
    """Counting the parameters shows the mistake before training; the loss falls all the same."""
    assert accuracy_on_parity(MLP) > 0.95
    counts = [parameter.numel() for parameter in MLP((64, 64, 2)).parameters()]
    assert counts == [64 * 64, 64, 64 * 2, 2]


class SavesEveryBuffer(nn.Module):
    """Ignores persistent=False."""

    def register_buffer(self, name: str, tensor: Any, **_: Any) -> None:
        super().register_buffer(name, tensor)


@rule(
    "MOD-03",
    "A buffer is a tensor of the model that is not trained: it moves with the model, and is saved"
    " unless persistent=False.",
    kind="contract",
    source=MODULE + "#torch.nn.Module.register_buffer",
    subject=Module,
    violated_by=[SavesEveryBuffer],
)
def test_a_buffer_is_moved_and_saved_but_not_trained(Module: Any) -> None:
    """A mean that inputs are shifted by has to be saved; a cache can be computed anew."""
    net = Module()
    net.register_buffer("mean", torch.zeros(2))
    net.register_buffer("cache", torch.zeros(2), persistent=False)

    net.double()
    assert net.mean.dtype == net.cache.dtype == torch.float64
    assert list(net.parameters()) == []
    assert list(net.state_dict()) == ["mean"]


class ModeOfTheOutsideOnly(nn.Module):
    """Does not pass the mode on to the modules inside."""

    def train(self, mode: bool = True) -> Any:
        self.training = mode
        return self


@rule(
    "MOD-04",
    "train() and eval() set the flag `training` of a module and of all modules inside, no more."
    " Dropout obeys it; functional.dropout does not know it and has to be told.",
    kind="contract",
    source=MODULE + "#torch.nn.Module.train",
    consequence="With functional.dropout(x) in the odd-digit network, asking twice in eval mode"
    " gives two answers for 2 to 5% of the images (eight seeds).",
    subject=Module,
    violated_by=[ModeOfTheOutsideOnly],
)
def test_the_mode_reaches_every_module_and_no_parameter(Module: Any) -> None:
    """In eval mode, gradients are still recorded: that is no_grad's business (AG-08)."""
    net = Module()
    net.block = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Dropout()))

    for switch, mode in [(net.eval, False), (net.train, True)]:
        assert switch() is net
        assert [module.training for module in net.modules()] == [mode] * 5
        assert all(parameter.requires_grad for parameter in net.parameters())


class ScaledInEvalMode(nn.Dropout):
    """Makes up for the dropped values in eval mode, as the first paper on dropout did."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) * (1 - self.p)


@spec("MOD-04", subject=Dropout, violated_by=[ScaledInEvalMode])
def test_dropout_divides_what_it_keeps_by_one_minus_p(Dropout: Any) -> None:
    """(1 - p) * x / (1 - p) + p * 0 = x: on average nothing changes, so eval mode has no factor."""
    for p in (0.0, 0.2, 0.5, 0.9, 1.0):
        layer, inputs = Dropout(p), (torch.rand(100, 100) + 1).requires_grad_()

        outputs = layer(inputs)
        outputs.sum().backward()

        kept = outputs != 0
        assert agree(outputs, dense.dropout(inputs.double(), kept, p), ulps=2)
        assert agree(inputs.grad, dense.dropout(torch.ones(100, 100).double(), kept, p), ulps=2)
        # Five standard deviations: one is at most 0.05 for 100 values, and 0.005 for 10,000.
        for share in (kept.double().mean(dim=0), kept.double().mean(dim=1)):
            assert ((share - (1 - p)).abs() <= 5 * 0.05).all()
        assert abs(kept.double().mean() - (1 - p)) <= 5 * 0.005
        assert torch.equal(layer(inputs) != 0, kept) == (p in (0, 1))  # each call draws anew
        assert torch.equal(layer.eval()(inputs), inputs)


class FunctionalDropout(MLP):
    """Forgets to say training=self.training."""

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers[1](dropout(torch.relu(self.layers[0](inputs)), p=0.5))


@spec("MOD-04", subject=MLP, violated_by=[FunctionalDropout, NothingBetweenTheLayers])
def test_a_network_drops_in_training_mode_only(MLP: Any) -> None:
    """In eval mode it gives the logits of a network with the same weights and without dropout."""
    with_dropout, without = MLP((64, 64, 2), dropout=0.5), MLP((64, 64, 2), dropout=0.0)
    without.load_state_dict(with_dropout.state_dict())
    images = data.digits().test_inputs
    in_training, in_eval = with_dropout(images), with_dropout.eval()(images)
    assert not agree(in_training, without(images))
    assert (in_training != 0).all()  # hidden values are dropped, logits never
    assert agree(in_eval, without(images), ulps=0)


class RunsNoHooks(nn.Module):
    """Goes straight to forward."""

    def __call__(self, *args: Any) -> Any:
        return self.forward(*args)


@rule(
    "MOD-08",
    "Call module(x), not module.forward(x): only the call runs the hooks.",
    kind="practice",
    source=MODULE + "#torch.nn.Module.register_forward_hook",
    consequence="A network that calls forward hides 2 of 2 layers from their hooks, silently.",
    subject=Module,
    violated_by=[RunsNoHooks],
)
def test_hooks_run_around_forward_when_the_module_is_called(Module: Any) -> None:
    """A hook sees what goes into a module or comes out, and may replace it."""

    class Doubling(Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return 2 * inputs

    net, three = Doubling(), torch.tensor(3.0)
    net.register_forward_pre_hook(lambda _, args: args[0] + 10)
    handle = net.register_forward_hook(lambda _, args, output: output + args[0])

    assert net(three) == 2 * (3 + 10) + (3 + 10)
    assert net.forward(three) == 2 * 3
    handle.remove()
    assert net(three) == 2 * (3 + 10)


class CallsForward(MLP):
    """Goes around the hooks of its layers."""

    def forward(self, inputs: Tensor) -> Tensor:
        first, second = self.layers
        return second.forward(torch.relu(first.forward(inputs)))


@spec("MOD-08", subject=MLP, violated_by=[CallsForward])
def test_each_layer_of_the_network_can_be_watched(MLP: Any) -> None:
    """Hidden values are read by a hook, without a change of the model."""
    model, shapes = MLP((64, 32, 10)), []
    for layer in model.layers:
        layer.register_forward_hook(lambda *event: shapes.append(event[-1].shape))
    model(torch.zeros(5, 64))
    assert shapes == [(5, 32), (5, 10)]


class CopiesItsState(nn.Module):
    """Gives a dictionary of tensors of its own."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return deepcopy(super().state_dict(*args, **kwargs))


@rule(
    "MOD-05",
    "state_dict() refers to the weights, it does not copy them: copy what you want to keep.",
    kind="contract",
    source="https://docs.pytorch.org/tutorials/beginner/saving_loading_models.html",
    consequence="The best weights of a training, kept as state_dict(), are its last (LOOP-09).",
    subject=Module,
    violated_by=[CopiesItsState],
)
def test_a_state_dict_changes_with_the_weights(Module: Any) -> None:
    """A copy of the dictionary alone does not help: its values are the same tensors."""
    net = Module()
    net.weight = nn.Parameter(torch.zeros(2))
    kept, shallow, deep = net.state_dict(), net.state_dict().copy(), deepcopy(net.state_dict())
    with torch.no_grad():
        net.weight -= 1.0  # in place, as an optimizer updates
    assert kept["weight"].tolist() == shallow["weight"].tolist() == [-1.0, -1.0]
    assert deep["weight"].tolist() == [0.0, 0.0]


class NeverStrict(nn.Module):
    """Ignores missing and unexpected keys without being asked to."""

    def load_state_dict(self, state_dict: Any, **_: Any) -> Any:
        return super().load_state_dict(state_dict, strict=False)


@rule(
    "MOD-06",
    "load_state_dict() raises for missing and unexpected keys; with strict=False it reports them"
    " instead, but a tensor of another shape raises in any case.",
    kind="contract",
    source=MODULE + "#torch.nn.Module.load_state_dict",
    subject=Module,
    violated_by=[NeverStrict],
)
def test_what_does_not_match_raises_or_is_reported(Module: Any) -> None:
    """Read the report: with a wrong prefix before every key, strict=False loads nothing at all."""
    net = Module()
    net.body, net.head = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))
    without_head = {"body": torch.ones(3)}
    with_two_heads = without_head | {"head": torch.ones(2), "old_head": torch.ones(10)}
    with_other_head = without_head | {"head": torch.ones(10)}

    for checkpoint in (without_head, with_two_heads, with_other_head):
        with pytest.raises(RuntimeError):
            net.load_state_dict(checkpoint)
    with pytest.raises(RuntimeError):
        net.load_state_dict(with_other_head, strict=False)
    # The report is (missing keys, unexpected keys).
    assert net.load_state_dict(with_two_heads, strict=False) == ([], ["old_head"])
    assert net.load_state_dict(without_head, strict=False) == (["head"], [])
    assert net.body.tolist() == [1.0, 1.0, 1.0]


class NeverAssigns(nn.Module):
    """Copies the values, also with assign=True."""

    def load_state_dict(self, state_dict: Any, **_: Any) -> Any:
        return super().load_state_dict(state_dict)


@rule(
    "MOD-07",
    "load_state_dict() copies values into the model's own tensors and keeps their dtype; with"
    " assign=True it takes the checkpoint's tensors, so build the optimizer after it.",
    kind="contract",
    source=MODULE + "#torch.nn.Module.load_state_dict",
    subject=Module,
    violated_by=[NeverAssigns],
)
def test_assign_changes_the_tensors_and_leaves_the_optimizer_behind(Module: Any) -> None:
    """The default keeps float32 although the checkpoint has float64."""
    for assign in (False, True):
        net, checkpoint = Module(), {"weight": torch.ones(2, dtype=torch.float64)}
        net.weight = nn.Parameter(torch.zeros(2))
        built_before = torch.optim.SGD(net.parameters(), lr=1.0)

        net.load_state_dict(checkpoint, assign=assign)
        assert net.weight.tolist() == [1.0, 1.0]
        assert net.weight.dtype == (torch.float64 if assign else torch.float32)

        net.weight.sum().backward()  # a gradient of 1
        built_before.step()
        assert net.weight.tolist() == ([1.0, 1.0] if assign else [0.0, 0.0])

        torch.optim.SGD(net.parameters(), lr=1.0).step()
        # With assign=True the checkpoint is trained too: it is the same memory.
        assert checkpoint["weight"].tolist() == ([0.0, 0.0] if assign else [1.0, 1.0])
