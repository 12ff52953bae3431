"""freeze and unfreeze: a module that is only to be used, whole or in part.

At the end you know the two things that freeze() changes, what unfreeze() gives back, that a frozen
module cannot be fitted, and how to freeze one part of a module and train the rest.

`quiet(...)` holds the options of a Trainer on one CPU that prints and writes nothing.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from specs.harness import raising, rule, spec
from specs.harness.observations import Observe
from specs.harness.optional import optional
from specs.harness.versions import release_of

pl = optional("pytorch_lightning")
modules = optional("reference.lightning_modules")

MODULE_PAGE = "https://lightning.ai/docs/pytorch/stable/common/lightning_module.html#freeze"

Batch = tuple[Tensor, Tensor]

#: From this release on, freeze() and unfreeze() give back the module; before, they give None.
RETURNS_SELF = release_of("pytorch-lightning") >= (2, 6, 1)


def ten_samples() -> Any:
    """Two batches of five: four numbers around 3, and a target."""
    drawn = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(10, 4, generator=drawn), torch.randn(10, 1, generator=drawn)
    return DataLoader(TensorDataset(3 + inputs, targets), batch_size=5)


def network(LightningModule: Any) -> Any:
    """A module of the class that is judged: BatchNorm, Dropout and a linear layer."""

    class Network(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.drop, self.last = nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.last(self.drop(self.norm(inputs)))

        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            inputs, targets = batch
            return (self(inputs) - targets).square().mean()

        def configure_optimizers(self) -> Any:
            return SGD(self.parameters(), lr=0.1)

        def train_dataloader(self) -> Any:
            return ten_samples()

    return Network()


def modes_of(module: nn.Module) -> set[bool]:
    """The values of `training` in the module and its parts."""
    return {part.training for part in module.modules()}


def trainable(module: nn.Module) -> set[bool]:
    """The values of `requires_grad` in its parameters."""
    return {parameter.requires_grad for parameter in module.parameters()}


# --- The whole module -----------------------------------------------------------------------------


class FreezesParametersOnly(pl.LightningModule):
    """Leaves Dropout and BatchNorm at work."""

    def freeze(self) -> Any:
        return self.requires_grad_(False)


class FreezesTheModeOnly(pl.LightningModule):
    """Leaves the parameters trainable: eval() under another name."""

    def freeze(self) -> Any:
        return self.eval()


class FreezesTheFirstLayer(pl.LightningModule):
    """Stops after the first part that has parameters."""

    def freeze(self) -> Any:
        next(self.children()).requires_grad_(False)
        return self.eval()


class ThawsParametersOnly(pl.LightningModule):
    """Stays in eval mode when it is unfrozen."""

    def unfreeze(self) -> Any:
        return self.requires_grad_(True)


class ThawsTheModeOnly(pl.LightningModule):
    """Stays untrainable when it is unfrozen."""

    def unfreeze(self) -> Any:
        return self.train()


@rule(
    "PL-07",
    "freeze() puts every part into eval mode and turns requires_grad of every parameter off;"
    " unfreeze() turns both on, everywhere; a module that is frozen whole cannot be fitted.",
    kind="contract",
    source=MODULE_PAGE,
    subject=pl.LightningModule,
    violated_by=[
        FreezesParametersOnly,
        FreezesTheModeOnly,
        FreezesTheFirstLayer,
        ThawsParametersOnly,
        ThawsTheModeOnly,
    ],
)
def test_freeze_and_unfreeze_turn_both_switches(LightningModule: Any) -> None:
    """The mode decides what Dropout and BatchNorm do, requires_grad what an optimizer can move."""
    module = network(LightningModule)

    module.freeze()
    assert (modes_of(module), trainable(module)) == ({False}, {False})

    module.unfreeze()
    assert (modes_of(module), trainable(module)) == ({True}, {True})


class RemembersFrozenParts(pl.LightningModule):
    """Thaws what its own freeze() froze, and leaves what was frozen before."""

    def freeze(self) -> Any:
        self.trained = [one for one in self.parameters() if one.requires_grad]
        return super().freeze()

    def unfreeze(self) -> Any:
        for parameter in self.trained:
            parameter.requires_grad_(True)
        return self.train()


@spec("PL-07", violated_by=[RemembersFrozenParts, ThawsParametersOnly, ThawsTheModeOnly])
def test_unfreeze_also_thaws_what_you_had_frozen_yourself(LightningModule: Any) -> None:
    """It is no undo: it knows nothing of what was before freeze()."""
    module = network(LightningModule)
    module.last.requires_grad_(False)
    module.norm.eval()

    module.freeze()
    module.unfreeze()

    assert (modes_of(module), trainable(module)) == ({True}, {True})


@spec("PL-07", violated_by=[FreezesParametersOnly, FreezesTheModeOnly, FreezesTheFirstLayer])
def test_a_frozen_module_is_a_fixed_function(LightningModule: Any) -> None:
    """Nothing is dropped, nothing counted. What goes through it can still have gradients."""
    module, (inputs, _) = network(LightningModule), next(iter(ten_samples()))
    inputs.requires_grad_()

    module.freeze()
    first, second = module(inputs), module(inputs)
    first.sum().backward()

    assert torch.equal(first, second)
    assert module.norm.num_batches_tracked == 0
    assert [parameter.grad for parameter in module.parameters()] == [None] * 4
    assert inputs.grad is not None


class AnswersOtherwise(pl.LightningModule):
    """Gives None where Lightning gives the module, and the module where Lightning gives None."""

    def freeze(self) -> Any:
        return None if super().freeze() is self else self

    def unfreeze(self) -> Any:
        return None if super().unfreeze() is self else self


@spec("PL-07", violated_by=[AnswersOtherwise])
def test_freeze_gives_back_the_module_since_2_6_1(LightningModule: Any, observe: Observe) -> None:
    """`model = Model().freeze()` is None in older releases."""
    module = network(LightningModule)

    expected = module if RETURNS_SELF else None

    frozen = module.freeze()
    assert frozen is expected
    assert module.unfreeze() is expected
    observe("freeze() gives back the module", frozen is module)


class ThawsToBeFitted(pl.LightningModule):
    """Unfreezes itself when a training begins."""

    def on_fit_start(self) -> None:
        self.unfreeze()


@spec("PL-07", violated_by=[ThawsToBeFitted, FreezesTheModeOnly, FreezesTheFirstLayer])
def test_a_frozen_module_cannot_be_fitted(LightningModule: Any) -> None:
    """The loss has no gradient, and backward says so. After unfreeze() all is as before."""
    module, trainer = network(LightningModule), pl.Trainer(**modules.quiet(max_epochs=1))

    module.freeze()
    with pytest.raises(RuntimeError, match="does not require grad"):
        trainer.fit(module)

    module.unfreeze()
    pl.Trainer(**modules.quiet(max_epochs=1)).fit(module)
    assert module.norm.num_batches_tracked == 2


# --- One part -------------------------------------------------------------------------------------


class HeadOnly(pl.LightningModule):
    """A backbone that is used as it is, and a head that is trained on its output."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.head = nn.Linear(3, 1)
        self.freeze_backbone()

    def freeze_backbone(self) -> None:
        self.backbone.requires_grad_(False)  # no parameter of it moves
        self.backbone.eval()  # no statistics move, nothing is dropped; fit leaves it like this

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        inputs, targets = batch
        return (self.head(self.backbone(inputs)) - targets).square().mean()

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> Any:
        return ten_samples()


class ForgetsEval(HeadOnly):
    """Freezes the parameters; BatchNorm and Dropout work on."""

    def freeze_backbone(self) -> None:
        self.backbone.requires_grad_(False)


class ForgetsRequiresGrad(HeadOnly):
    """Takes eval() for freezing."""

    def freeze_backbone(self) -> None:
        self.backbone.eval()


class TrainsAllInEachEpoch(HeadOnly):
    """Calls train() at the start of every epoch, as a loop by hand has to."""

    def on_train_epoch_start(self) -> None:
        self.train()


class FreezesItself(HeadOnly):
    """Freezes the head, too."""

    def freeze_backbone(self) -> None:
        self.freeze()


@spec(
    "PL-07",
    subject=HeadOnly,
    violated_by=[
        ForgetsEval,
        ForgetsRequiresGrad,
        TrainsAllInEachEpoch,
        raising(RuntimeError, FreezesItself),
    ],
)
def test_a_frozen_backbone_stays_as_it_is(HeadOnly: Any) -> None:
    """Both switches, once, in __init__: a plain nn.Module has no freeze(), and fit no train()."""
    module = HeadOnly()
    backbone = {name: value.clone() for name, value in module.backbone.state_dict().items()}
    head = module.head.weight.clone()

    pl.Trainer(**modules.quiet(max_epochs=2)).fit(module)

    after = module.backbone.state_dict()
    assert {name for name in after if not torch.equal(after[name], backbone[name])} == set()
    assert not torch.equal(module.head.weight, head)
