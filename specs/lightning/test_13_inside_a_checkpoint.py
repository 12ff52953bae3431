"""What is in a checkpoint of Lightning, and what can be done with it without Lightning.

At the end you know what torch.load finds in a .ckpt file, how a plain nn.Module gets the weights
out of it, and which files a training cannot be resumed from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from reference.models.mlp import MLP
from specs.harness import rule, spec
from specs.harness.optional import optional

pl = optional("pytorch_lightning")
modules = optional("reference.lightning_modules")

#: Three batches are enough to have weights and momenta.
SHORT = {"limit_train_batches": 3, "limit_val_batches": 0}


class SavesTheStateDict(pl.Trainer):
    """Writes the weights of the module and nothing beside them."""

    def save_checkpoint(self, filepath: str) -> None:
        torch.save(self.lightning_module.state_dict(), filepath)


class SavesWeightsOnly(pl.Trainer):
    """Leaves out what is needed to resume, as ModelCheckpoint(save_weights_only=True) does."""

    def save_checkpoint(self, filepath: str) -> None:
        super().save_checkpoint(filepath, weights_only=True)


@rule(
    "PL-51",
    "A .ckpt is a dictionary that torch.load reads: under state_dict the weights, named as the"
    " module's attributes are; beside them all that is needed to resume.",
    kind="contract",
    source="https://lightning.ai/docs/pytorch/stable/common/checkpointing_basic.html",
    subject=pl.Trainer,
    violated_by=[SavesTheStateDict, SavesWeightsOnly],
)
def test_what_a_checkpoint_contains(
    Trainer: Callable[..., Any], observe: Callable[[str, Any], None]
) -> None:
    """One entry for each optimizer and scheduler; epochs and steps that are done; the release."""
    trainer = Trainer(**modules.quiet(max_epochs=2, **SHORT))
    trainer.fit(modules.DigitsClassifier(hidden=8))
    trainer.save_checkpoint("digits.ckpt")

    checkpoint = torch.load("digits.ckpt")
    observe("keys", sorted(checkpoint))
    assert {"state_dict", "optimizer_states", "lr_schedulers", "loops"} <= checkpoint.keys()
    assert len(checkpoint["optimizer_states"]) == len(checkpoint["lr_schedulers"]) == 1
    assert (checkpoint["epoch"], checkpoint["global_step"]) == (2, 2 * 3)
    assert checkpoint["hyper_parameters"]["hidden"] == 8
    assert checkpoint["pytorch-lightning_version"] == pl.__version__


class RenamesItsWeights(modules.DigitsClassifier):
    """Writes its weights under names that its attributes do not have."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint["state_dict"]
        checkpoint["state_dict"] = {f"module.{name}": saved[name] for name in saved}


@spec("PL-51", subject=modules.DigitsClassifier, violated_by=[RenamesItsWeights])
def test_a_plain_module_loads_the_weights_without_lightning(
    DigitsClassifier: Callable[..., Any],
) -> None:
    """The network is self.network, so its names begin with "network."; take that off."""
    module = DigitsClassifier(hidden=8)
    trainer = pl.Trainer(**modules.quiet(max_epochs=1, **SHORT))
    trainer.fit(module)
    trainer.save_checkpoint("digits.ckpt")

    weights = torch.load("digits.ckpt")["state_dict"]
    assert all(name.startswith("network.") for name in weights)
    network = MLP((64, 8, 10))
    network.load_state_dict({name.removeprefix("network."): weights[name] for name in weights})

    images = torch.rand(5, 64)
    assert torch.equal(network(images), module(images))


class KeepsWhatItNeeds(pl.Trainer):
    """Writes a full checkpoint, also where the weights are asked for."""

    def save_checkpoint(self, filepath: str, weights_only: bool = False) -> None:
        super().save_checkpoint(filepath)


@spec("PL-51", violated_by=[KeepsWhatItNeeds])
def test_a_training_cannot_be_resumed_from_weights_alone(Trainer: Callable[..., Any]) -> None:
    """ModelCheckpoint(save_weights_only=True) writes such files, too."""
    trainer = Trainer(**modules.quiet(max_epochs=1, **SHORT))
    trainer.fit(modules.DigitsClassifier(hidden=8))
    trainer.save_checkpoint("weights.ckpt", weights_only=True)
    assert "optimizer_states" not in torch.load("weights.ckpt")

    resumed = Trainer(**modules.quiet(max_epochs=2, **SHORT))
    with pytest.raises(KeyError, match="Trying to restore optimizer state"):
        resumed.fit(modules.DigitsClassifier(hidden=8), ckpt_path="weights.ckpt")
