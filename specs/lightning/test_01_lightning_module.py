"""A LightningModule, line by line: what it has to say, and what belongs to it.

At the end you know which methods a training needs, which names of older tutorials are gone, and why
layers and tensors have to be parts of the module. What `training_step` gives back is told in
test_02_training_step.py, the order of all calls in test_03_order_of_calls.py.

`quiet(...)` holds the options of a Trainer on one CPU that prints and writes nothing.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from specs.harness import raising, rule, spec
from specs.harness.agreement import agree
from specs.harness.optional import optional

pl = optional("pytorch_lightning")
modules = optional("reference.lightning_modules")
exceptions = optional("pytorch_lightning.utilities.exceptions")

MODULE_PAGE = "https://lightning.ai/docs/pytorch/stable/common/lightning_module.html"

Batch = tuple[Tensor, Tensor]


class Line(pl.LightningModule):
    """Learns y = 2x with one weight. All that a training needs is here."""

    def __init__(self) -> None:
        super().__init__()  # first of all: before it no layer can be assigned
        self.layer = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """The model: what `module(x)` gives."""
        return self.layer(x)

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        """The loss of one batch. The Trainer does the rest: zero_grad, backward, step."""
        x, y = batch
        return (self(x) - y).square().mean()

    def configure_optimizers(self) -> Any:
        """Who steps. Asked once, when fit begins."""
        return SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> Any:
        """What an epoch goes through: here two batches, each of them x = 1 and y = 2."""
        ones = torch.ones(2, 1)
        return DataLoader(TensorDataset(ones, 2 * ones), batch_size=1)


#: The gradient of (w - 2)**2 is 2 * (w - 2): each step of 0.1 leaves 0.8 of the distance to 2.
AFTER_TWO_STEPS = 2 * (1 - 0.8**2)


# --- What fit needs -------------------------------------------------------------------------------


class WithoutTrainingStep(Line):
    """Does not say what the loss is."""

    training_step = pl.LightningModule.training_step  # as if it had never been written


class WithoutOptimizer(Line):
    """Does not say who steps."""

    configure_optimizers = pl.LightningModule.configure_optimizers


class WithoutLoader(Line):
    """Has no data, and fit is given none."""

    train_dataloader = pl.LightningModule.train_dataloader


class WithoutSuperInit(Line):
    """Forgets super().__init__()."""

    def __init__(self) -> None:
        self.layer = nn.Linear(1, 1, bias=False)


@rule(
    "PL-17",
    "fit needs training_step, configure_optimizers and a train_dataloader, and refuses to begin"
    " without; what Lightning 2.0 removed is an error where Lightning knows the old name, and is"
    " never called where it does not.",
    kind="contract",
    source=MODULE_PAGE,
    subject=Line,
    violated_by=[
        raising(exceptions.MisconfigurationException, WithoutTrainingStep),
        raising(exceptions.MisconfigurationException, WithoutOptimizer),
        raising(exceptions.MisconfigurationException, WithoutLoader),
        raising(AttributeError, WithoutSuperInit),
    ],
)
def test_three_methods_are_enough_to_train(Line: Any) -> None:
    """One method says what the loss is, one who steps, one what an epoch goes through."""
    module = Line()
    trainer = pl.Trainer(**modules.quiet(max_epochs=1))

    trainer.fit(module)

    assert trainer.global_step == 2  # one epoch of two batches
    assert agree(module(torch.ones(1, 1)), torch.tensor([[AFTER_TWO_STEPS]]))


#: Methods of Lightning 1.x, and the function of the Trainer that refuses a module that has them.
REMOVED_HOOKS = [
    ("training_epoch_end", "fit"),  # now on_train_epoch_end
    ("validation_epoch_end", "fit"),  # now on_validation_epoch_end
    ("test_epoch_end", "test"),  # now on_test_epoch_end; fit takes no notice of it
]

#: Options of Lightning 1.x. `gpus=2` is now `accelerator="gpu", devices=2`.
REMOVED_OPTIONS = ("gpus", "tpu_cores", "num_processes", "auto_lr_find", "resume_from_checkpoint")


class TakesOldOptions(pl.Trainer):
    """Takes `gpus` and its like, and does nothing about them."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{n: v for n, v in options.items() if n not in REMOVED_OPTIONS})


class TakesOldHooks(pl.Trainer):
    """Says nothing where a method of the module will never be called."""

    def fit(self, module: Any) -> None:
        with suppress(NotImplementedError):
            super().fit(module)


@spec("PL-17", subject=pl.Trainer, violated_by=[TakesOldOptions])
def test_options_of_version_1_are_refused(Trainer: Any) -> None:
    """Better than a Trainer that takes `gpus=2` and trains on the CPU."""
    for option in REMOVED_OPTIONS:
        with pytest.raises(TypeError):
            Trainer(**modules.quiet(**{option: 1}))


@spec("PL-17", subject=pl.Trainer, violated_by=[TakesOldHooks])
def test_the_epoch_end_methods_of_version_1_are_refused(Trainer: Any) -> None:
    """They were given the outputs of all batches; their successors are not, and keep their own."""
    for name, function in REMOVED_HOOKS:
        module = modules.DigitsClassifier()
        setattr(module, name, lambda *_: None)

        with pytest.raises(NotImplementedError, match="has been removed in"):
            getattr(Trainer(**modules.quiet(max_epochs=1)), function)(module)


class CallsOldHooks(pl.Trainer):
    """Calls on_epoch_end after the training, as version 1 did after each epoch."""

    def fit(self, module: Any) -> None:
        super().fit(module)
        module.on_epoch_end()


@spec("PL-17", subject=pl.Trainer, violated_by=[CallsOldHooks])
def test_any_other_old_or_misspelt_name_is_never_called(Trainer: Any) -> None:
    """A hook is found by its name. A method of another name is yours, and nobody says so."""
    called, module = [], Line()
    for name in ("on_epoch_end", "training_step_end", "on_train_epochs_end", "on_train_epoch_end"):
        setattr(module, name, lambda *_, name=name: called.append(name))

    Trainer(**modules.quiet(max_epochs=1)).fit(module)

    assert called == ["on_train_epoch_end"]


# --- What belongs to the module -------------------------------------------------------------------


class TwoLayers(pl.LightningModule):
    """Standardises x by a mean that is part of the model, then goes through two layers."""

    layers: Any
    mean: Any

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 1)])
        self.register_buffer("mean", torch.tensor([1.0, 2.0]))  # saved and moved, never trained

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.layers
        return second(torch.relu(first(x - self.mean)))

    def noise(self, n: int) -> Tensor:
        """A tensor that is made on the way: it has to be told where the module is."""
        return torch.randn(n, 2, device=self.device)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self(batch + self.noise(len(batch))) - 1).square().mean()

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> Any:
        return DataLoader(torch.randn(8, 2), batch_size=4)


class KeepsLayersInAList(TwoLayers):
    """Has its first layer in a Python list, which no module looks into."""

    def __init__(self) -> None:
        super().__init__()
        first, self.second = self.layers
        del self.layers
        self.layers = [first, self.second]


class KeepsAPlainTensor(TwoLayers):
    """Has its mean as an attribute like any other."""

    def __init__(self) -> None:
        super().__init__()
        del self.mean
        self.mean = torch.tensor([1.0, 2.0])


class MakesTensorsAnywhere(TwoLayers):
    """Makes its noise where torch makes tensors by default: on the CPU."""

    def noise(self, n: int) -> Tensor:
        return torch.randn(n, 2)


class TrainsItsBuffer(TwoLayers):
    """Has its mean as a parameter, which the optimizer then moves."""

    def __init__(self) -> None:
        super().__init__()
        del self.mean
        self.mean = nn.Parameter(torch.tensor([1.0, 2.0]))


@rule(
    "PL-46",
    "A LightningModule is an nn.Module: what is to be trained, saved and moved has to be a module,"
    " a parameter or a buffer of it, and a tensor made on the way is made on self.device.",
    kind="contract",
    source=MODULE_PAGE,
    subject=TwoLayers,
    violated_by=[KeepsLayersInAList, TrainsItsBuffer],
)
def test_layers_are_trained_and_buffers_are_not(TwoLayers: Any) -> None:
    """With one layer in a plain list fit raises nothing: it trains the other one."""
    module = TwoLayers()
    first, second = (layer.weight.detach().clone() for layer in module.layers)

    pl.Trainer(**modules.quiet(max_epochs=1)).fit(module)

    assert not torch.equal(module.layers[0].weight, first)
    assert not torch.equal(module.layers[1].weight, second)
    assert torch.equal(module.mean, torch.tensor([1.0, 2.0]))


@spec("PL-46", violated_by=[KeepsLayersInAList, KeepsAPlainTensor])
def test_layers_and_buffers_are_in_the_checkpoint(TwoLayers: Any) -> None:
    """What is not in state_dict() has its first value again after the model has been loaded."""
    saved = TwoLayers().state_dict()

    assert len(saved) == 2 + 2 + 1  # weight and bias of two layers, and the mean
    assert any(torch.equal(value, torch.tensor([1.0, 2.0])) for value in saved.values())


@spec("PL-46", violated_by=[KeepsLayersInAList, KeepsAPlainTensor, MakesTensorsAnywhere])
def test_everything_moves_with_the_module(TwoLayers: Any) -> None:
    """The Trainer moves the module before fit. "meta" is a device that every machine has."""
    module = TwoLayers().to("meta")

    places = [layer.weight.device for layer in module.layers]
    places += [module.mean.device, module.device, module.noise(4).device]

    assert places == [torch.device("meta")] * 5
