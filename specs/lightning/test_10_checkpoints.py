"""What load_from_checkpoint() gives back, and which files it refuses.

At the end you know what a loaded module has and what it lacks, why it has to be put into
evaluation mode, and what weights_only does in which release of Lightning.
"""

from __future__ import annotations

import pickle
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from specs.harness import raising, rule, spec
from specs.harness.observations import Observe
from specs.harness.optional import optional
from specs.harness.versions import release_of

pl = optional("pytorch_lightning")
modules = optional("reference.lightning_modules")

LOADING = "https://lightning.ai/docs/pytorch/stable/common/checkpointing_basic.html"
WEIGHTS_ONLY = "https://github.com/Lightning-AI/pytorch-lightning/pull/21072"

SINCE_2_6 = release_of("pytorch-lightning") >= (2, 6)


def fitted(module: Any, **options: Any) -> str:
    """Fit the module for two epochs of one batch; the name of the checkpoint that was written."""
    two_batches = {"max_epochs": 2, "limit_train_batches": 1, "limit_val_batches": 0}
    trainer = pl.Trainer(**modules.quiet(**two_batches | options))
    trainer.fit(module)
    trainer.save_checkpoint("last.ckpt")
    return "last.ckpt"


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Whether both modules have the same weights, bit for bit."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(mine, yours) for mine, yours in pairs)


# What comes back


class ForgetsTheRate(modules.DigitsClassifier):
    """Takes the default learning rate in place of the saved one."""

    @classmethod
    def load_from_checkpoint(cls, path: str, **arguments: Any) -> Any:
        return super().load_from_checkpoint(path, **{"lr": 0.2} | arguments)


class LeavesTheWeights(modules.DigitsClassifier):
    """Rebuilds the module from its hyperparameters and does not fill in the weights."""

    @classmethod
    def load_from_checkpoint(cls, path: str, **arguments: Any) -> Any:
        return cls(**torch.load(path)["hyper_parameters"] | arguments)


@rule(
    "PL-04",
    "load_from_checkpoint() is called on the class: it makes a new module from the saved"
    " hyperparameters, or from those that it is given, and fills in the weights; the module is in"
    " training mode, and the state of the optimizer stays in the file.",
    kind="contract",
    source=LOADING,
    subject=modules.DigitsClassifier,
    violated_by=[ForgetsTheRate, LeavesTheWeights],
)
def test_arguments_and_weights_come_back(DigitsClassifier: Any) -> None:
    """The class is made again with what save_hyperparameters() kept: no argument is repeated."""
    module = DigitsClassifier(hidden=8, dropout=0.5, lr=0.1)
    loaded = DigitsClassifier.load_from_checkpoint(fitted(module))

    assert dict(loaded.hparams) == {"hidden": 8, "dropout": 0.5, "lr": 0.1, "batch_size": 64}
    assert same_weights(loaded, module)
    assert loaded is not module


class PrefersTheFile(modules.DigitsClassifier):
    """Takes the saved values, whatever it is given."""

    @classmethod
    def load_from_checkpoint(cls, path: str, **_: Any) -> Any:
        return super().load_from_checkpoint(path)


@spec("PL-04", violated_by=[PrefersTheFile])
def test_an_argument_that_is_given_wins_over_the_saved_one(DigitsClassifier: Any) -> None:
    """So a trained network goes on with another rate. Its shape has to stay: the weights say so."""
    file = fitted(DigitsClassifier(hidden=8, lr=0.1))

    faster = DigitsClassifier.load_from_checkpoint(file, lr=0.5)
    assert (faster.hparams["lr"], faster.hparams["hidden"]) == (0.5, 8)

    with pytest.raises(RuntimeError, match="size mismatch for network"):
        DigitsClassifier.load_from_checkpoint(file, hidden=9)


class RefusesUnknownArguments(modules.DigitsClassifier):
    """Raises where an argument is not one of __init__'s."""

    @classmethod
    def load_from_checkpoint(cls, path: str, **arguments: Any) -> Any:
        cls(**arguments)
        return super().load_from_checkpoint(path, **arguments)


@spec("PL-04", violated_by=[raising(TypeError, RefusesUnknownArguments)])
def test_a_misspelt_argument_is_dropped_without_a_word(DigitsClassifier: Any) -> None:
    """What __init__ does not take is not handed to it. Look at hparams after you gave something."""
    file = fitted(DigitsClassifier(hidden=8, lr=0.1))

    assert DigitsClassifier.load_from_checkpoint(file, learning_rate=0.5).hparams["lr"] == 0.1


class LoadsForEvaluation(modules.DigitsClassifier):
    """Gives the module back in evaluation mode."""

    @classmethod
    def load_from_checkpoint(cls, path: str, **arguments: Any) -> Any:
        return super().load_from_checkpoint(path, **arguments).eval()


@spec("PL-04", violated_by=[LoadsForEvaluation])
def test_a_loaded_module_still_drops_values(DigitsClassifier: Any) -> None:
    """The mode is not in the file. Without eval() two predictions for one image differ."""
    module = DigitsClassifier(hidden=32, dropout=0.5)
    file = fitted(module)
    image = torch.ones(1, 64)

    loaded = DigitsClassifier.load_from_checkpoint(file)
    assert not torch.equal(loaded(image), loaded(image))

    loaded.eval()
    assert torch.equal(loaded(image), loaded(image))


class BringsItsOptimizer(modules.DigitsClassifier):
    """Gives a new optimizer the state of the saved one."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.saved = checkpoint["optimizer_states"][0]

    def configure_optimizers(self) -> Any:
        [optimizer], schedulers = super().configure_optimizers()
        if hasattr(self, "saved"):
            optimizer.load_state_dict(self.saved)
        return [optimizer], schedulers


@spec("PL-04", violated_by=[BringsItsOptimizer])
def test_the_optimizer_begins_anew(DigitsClassifier: Any) -> None:
    """After two epochs the saved optimizer had momenta, and 0.01 as its rate.

    Whoever trains a loaded module on starts with the first rate and without momentum. To go on
    where the training stopped, give the file to fit: `trainer.fit(module, ckpt_path=file)`.
    """
    file = fitted(DigitsClassifier(hidden=8, lr=0.1))
    saved = torch.load(file)["optimizer_states"][0]
    assert saved["param_groups"][0]["lr"] == pytest.approx(0.1 * 0.1)
    assert len(saved["state"]) == 4  # two layers, each with weight and bias

    [optimizer], _ = DigitsClassifier.load_from_checkpoint(file).configure_optimizers()
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert len(optimizer.state) == 0


@spec("PL-04", violated_by=[PrefersTheFile])
def test_a_module_that_exists_cannot_load(DigitsClassifier: Any) -> None:
    """`module.load_from_checkpoint(file)` would look as if it changed the module. It raises."""
    module = DigitsClassifier(hidden=8)
    file = fitted(module)

    with pytest.raises(TypeError, match="cannot be called on an instance"):
        module.load_from_checkpoint(file)


class Doubles(pl.LightningModule):
    """Learns y = 2x from four points. What follows is about the arguments of its children."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(1, 1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        inputs, targets = batch
        return mse_loss(self.network(inputs), targets)

    def configure_optimizers(self) -> SGD:
        return SGD(self.parameters(), lr=0.01)

    def train_dataloader(self) -> DataLoader[Any]:
        inputs = torch.arange(4.0).reshape(4, 1)
        return DataLoader(TensorDataset(inputs, 2 * inputs), batch_size=4)


class SavesItsName(Doubles):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.save_hyperparameters()


class LosesItsName(Doubles):
    """Needs an argument and does not save it."""

    def __init__(self, name: str) -> None:
        super().__init__()


@spec("PL-04", subject=SavesItsName, violated_by=[raising(TypeError, LosesItsName)])
def test_a_needed_argument_has_to_be_saved(SavesItsName: Any) -> None:
    """Else the class cannot be made: "missing 1 required positional argument"."""
    file = fitted(SavesItsName("first try"))

    assert SavesItsName.load_from_checkpoint(file).hparams["name"] == "first try"


# Which files are refused


class DecidesAsOtherReleasesDo(pl.LightningModule):
    """Loads everything since Lightning 2.6, and only plain values before it."""

    @classmethod
    def load_from_checkpoint(cls, path: str, **arguments: Any) -> Any:
        if SINCE_2_6:
            return super().load_from_checkpoint(path, weights_only=False)
        torch.load(path, weights_only=True)
        return super().load_from_checkpoint(path, **arguments)


def refused(load: Callable[[], Any]) -> bool:
    """Whether loading ended with the exception that torch.load has for objects."""
    try:
        load()
    except pickle.UnpicklingError as error:
        return str(error).startswith("Weights only load failed")
    return False


def checkpoint_with_a_namespace(LightningModule: type[Any]) -> tuple[Any, str]:
    """A module whose hyperparameters hold what argparse gives, and its checkpoint."""

    class HasOptions(Doubles, LightningModule):
        def __init__(self, options: Namespace) -> None:
            super().__init__()
            self.save_hyperparameters()

    return HasOptions, fitted(HasOptions(Namespace(depth=2)))


@rule(
    "PL-05",
    "Since Lightning 2.6, load_from_checkpoint and ckpt_path read a checkpoint as torch.load does:"
    " plain values only, unless weights_only=False; before, they made every object that the file"
    " asked for.",
    kind="contract",
    source=WEIGHTS_ONLY,
    subject=pl.LightningModule,
    violated_by=[DecidesAsOtherReleasesDo],
)
def test_a_namespace_among_the_hyperparameters_is_refused(
    LightningModule: type[Any], observe: Observe
) -> None:
    """torch.load itself refuses it since torch 2.6."""
    HasOptions, file = checkpoint_with_a_namespace(LightningModule)
    assert refused(lambda: torch.load(file))

    is_refused = refused(lambda: HasOptions.load_from_checkpoint(file))
    observe("a Namespace is refused", is_refused)
    assert is_refused == SINCE_2_6


@spec("PL-05", violated_by=[DecidesAsOtherReleasesDo])
def test_weights_only_opens_and_closes_the_file(LightningModule: type[Any]) -> None:
    """An old Lightning takes it for a hyperparameter, and drops it: there it protects nobody."""
    HasOptions, file = checkpoint_with_a_namespace(LightningModule)

    assert refused(lambda: HasOptions.load_from_checkpoint(file, weights_only=True)) == SINCE_2_6

    loaded = HasOptions.load_from_checkpoint(file, weights_only=False)
    assert loaded.hparams["options"] == Namespace(depth=2)
    with torch.serialization.safe_globals([Namespace]):  # the narrow way: allow what you know
        loaded = HasOptions.load_from_checkpoint(file)
    assert loaded.hparams["options"] == Namespace(depth=2)


class ResumesAsOtherReleasesDo(pl.Trainer):
    """Resumes from everything since Lightning 2.6, and only from plain values before it."""

    def fit(self, module: Any, ckpt_path: str, **options: Any) -> None:
        if SINCE_2_6:
            super().fit(module, ckpt_path=ckpt_path, weights_only=False)
        else:
            torch.load(ckpt_path, weights_only=True)
            super().fit(module, ckpt_path=ckpt_path)


@spec("PL-05", subject=pl.Trainer, violated_by=[ResumesAsOtherReleasesDo])
def test_a_resumed_fit_reads_the_file_by_the_same_rule(
    Trainer: Callable[..., Any], observe: Observe
) -> None:
    """Whoever updates Lightning in the middle of a long training meets it here."""
    HasOptions, file = checkpoint_with_a_namespace(pl.LightningModule)
    trainer = Trainer(**modules.quiet(max_epochs=3))
    module = HasOptions(Namespace(depth=2))

    is_refused = refused(lambda: trainer.fit(module, ckpt_path=file))
    observe("fit refuses a Namespace", is_refused)
    assert is_refused == SINCE_2_6
    if SINCE_2_6:
        trainer.fit(module, ckpt_path=file, weights_only=False)
    assert trainer.global_step == 3  # two epochs of the file, one of this fit


#: What torch.load reads without further permission.
PLAIN = {
    "rate": 0.1,
    "layers": [64, 32],
    "window": (3, 5),
    "classes": {0, 9},
    "where": "runs/first",
    "seed": None,
    "dtype": torch.float16,
    "priors": torch.ones(2),
}


class HasPlainValues(Doubles):
    def __init__(self, **values: Any) -> None:
        super().__init__()
        self.save_hyperparameters()


class TurnsTextIntoAPath(Doubles):
    """Keeps a pathlib.Path among its hyperparameters."""

    def __init__(self, **values: Any) -> None:
        super().__init__()
        self.save_hyperparameters(values | {"where": Path(values["where"])})


@spec(
    "PL-05",
    subject=HasPlainValues,
    violated_by=[raising(pickle.UnpicklingError, TurnsTextIntoAPath)],
)
def test_numbers_texts_containers_and_tensors_pass_everywhere(HasPlainValues: Any) -> None:
    """Keep to these and the checkpoint loads in every release: write a path as text."""
    file = fitted(HasPlainValues(**PLAIN))
    torch.load(file, weights_only=True)

    values = dict(HasPlainValues.load_from_checkpoint(file).hparams)
    assert torch.equal(values.pop("priors"), PLAIN["priors"])  # type: ignore[arg-type]
    assert values == {name: value for name, value in PLAIN.items() if name != "priors"}
