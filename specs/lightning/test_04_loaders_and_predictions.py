"""Where the batches come from: loaders for training, validation, test and prediction.

At the end you know which loader each function of the Trainer takes, who wins where two are there,
and what `predict` gives back.

`quiet(...)` holds the options of a Trainer on one CPU that prints and writes nothing.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from reference.data import digits
from specs.harness import raising, rule, spec
from specs.harness.optional import optional

pl = optional("pytorch_lightning")
modules = optional("reference.lightning_modules")
exceptions = optional("pytorch_lightning.utilities.exceptions")

TRAINER_PAGE = "https://lightning.ai/docs/pytorch/stable/common/trainer.html"

Batch = tuple[Tensor, Tensor]


def loader(x: float, batches: int = 1) -> Any:
    """Batches of one sample each: x and the target 2x."""
    xs = torch.full((batches, 1), x)
    return DataLoader(TensorDataset(xs, 2 * xs), batch_size=1)


class Line(pl.LightningModule):
    """Learns y = 2x with one weight, and writes down which batches it is given for what.

    Its own loaders all have x = 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.layer.weight)
        self.given: list[tuple[str, float]] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)

    def loss(self, purpose: str, batch: Batch) -> Tensor:
        x, y = batch
        self.given.append((purpose, x.item()))
        return (self(x) - y).square().mean()

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        return self.loss("train", batch)

    def validation_step(self, batch: Batch, batch_idx: int) -> Any:
        self.loss("validate", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> Any:
        self.loss("test", batch)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Any:
        self.loss("predict", batch)
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> Any:
        return loader(1.0, batches=2)

    def val_dataloader(self) -> Any:
        return loader(1.0)

    def test_dataloader(self) -> Any:
        return loader(1.0)

    def predict_dataloader(self) -> Any:
        return loader(1.0)


# --- Which loader ---------------------------------------------------------------------------------


class LooksAtTheTestData(pl.Trainer):
    """Looks at the test data as soon as it has trained."""

    def fit(self, module: Any, *loaders: Any, **options: Any) -> None:
        super().fit(module, *loaders, **options)
        super().test(module, verbose=False)


class ValidatesOnTrainingData(pl.Trainer):
    """Takes the training loader where no other is given."""

    def fit(self, module: Any, *loaders: Any, **options: Any) -> None:
        super().fit(module, module.train_dataloader(), loaders[1:] or module.train_dataloader())


@rule(
    "PL-44",
    "fit takes train_dataloader and val_dataloader of the module, validate, test and predict the"
    " one of their name; a loader that is given to the function wins over the module's.",
    kind="contract",
    source=TRAINER_PAGE,
    subject=pl.Trainer,
    violated_by=[LooksAtTheTestData, ValidatesOnTrainingData],
)
def test_each_function_of_the_trainer_has_its_loader(Trainer: Any) -> None:
    """The test data are seen when somebody calls test, and never before."""
    module, trainer = Line(), Trainer(**modules.quiet(max_epochs=1))
    own = 1.0

    trainer.fit(module)
    assert module.given == [("train", own), ("train", own), ("validate", own)]

    module.given.clear()
    trainer.validate(module, verbose=False)
    trainer.test(module, verbose=False)
    trainer.predict(module)
    assert module.given == [("validate", own), ("test", own), ("predict", own)]


class TrainsOnItsOwn(pl.Trainer):
    """Prefers the loader of the module to the one that it is given."""

    def fit(self, module: Any, *_: Any, **options: Any) -> None:
        options.pop("train_dataloaders", None)
        super().fit(module, **options)


class ForgetsTheOther(pl.Trainer):
    """Takes what is given to fit for all there is: no validation, unless its loader is given."""

    def fit(self, module: Any, *given: Any, **options: Any) -> None:
        super().fit(module, *given, **{"val_dataloaders": [], **options})


class JudgesOnItsOwn(pl.Trainer):
    """Prefers the loader of the module, in test."""

    def test(self, module: Any, dataloaders: Any = None, **options: Any) -> Any:
        return super().test(module, **options)


@spec("PL-44", violated_by=[TrainsOnItsOwn, ForgetsTheOther, JudgesOnItsOwn])
def test_a_loader_that_is_given_wins(Trainer: Any) -> None:
    """Only over the one of its own kind: the module's other loaders stay in use."""
    module, trainer = Line(), Trainer(**modules.quiet(max_epochs=1))

    trainer.fit(module, train_dataloaders=loader(2.0))
    trainer.validate(module, dataloaders=loader(3.0), verbose=False)
    trainer.test(module, dataloaders=loader(4.0), verbose=False)
    trainer.predict(module, dataloaders=loader(5.0))

    in_fit = [("train", 2.0), ("validate", 1.0)]
    assert module.given == [*in_fit, ("validate", 3.0), ("test", 4.0), ("predict", 5.0)]


class Elsewhere(pl.LightningDataModule):
    """A third place for loaders, apart from the module."""

    def train_dataloader(self) -> Any:
        return loader(6.0)


class IgnoresDataModules(pl.Trainer):
    """Takes a datamodule, and the module's own loaders."""

    def fit(self, module: Any, *loaders: Any, datamodule: Any = None) -> None:
        super().fit(module, *loaders)


@spec("PL-44", violated_by=[IgnoresDataModules])
def test_a_datamodule_wins_and_must_be_the_only_one_given(Trainer: Any) -> None:
    """Loaders and a datamodule together are refused: nobody could tell which was meant."""
    module, trainer = Line(), Trainer(**modules.quiet(max_epochs=1))

    trainer.fit(module, datamodule=Elsewhere())

    assert ("train", 6.0) in module.given
    assert ("train", 1.0) not in module.given
    with pytest.raises(exceptions.MisconfigurationException):
        trainer.fit(module, loader(2.0), datamodule=Elsewhere())


# --- Predictions ----------------------------------------------------------------------------------


class JoinsBatches(pl.Trainer):
    """Gives one tensor in place of a list of batches."""

    def predict(self, *arguments: Any, **options: Any) -> Any:
        return torch.cat(super().predict(*arguments, **options))


class KeepsTheLastBatch(pl.Trainer):
    """Gives what was predicted last."""

    def predict(self, *arguments: Any, **options: Any) -> Any:
        return super().predict(*arguments, **options)[-1:]


class FlattensLoaders(pl.Trainer):
    """Does not say which loader a batch came from."""

    def predict(self, *arguments: Any, **options: Any) -> Any:
        given = super().predict(*arguments, **options)
        if given and isinstance(given[0], list):
            return [batch for of_one_loader in given for batch in of_one_loader]
        return given


@rule(
    "PL-45",
    "predict returns a list with what predict_step returned for each batch, in their order; with"
    " several loaders a list of such lists. Without predict_step, forward gets the batch.",
    kind="contract",
    source="https://lightning.ai/docs/pytorch/stable/deploy/production_basic.html",
    subject=pl.Trainer,
    violated_by=[JoinsBatches, KeepsTheLastBatch, FlattensLoaders],
)
def test_predict_gives_a_list_of_batches(Trainer: Any) -> None:
    """Put them together with torch.cat. Where they would fill the memory, do not have them kept."""
    module, trainer = Line(), Trainer(**modules.quiet(max_epochs=1))
    nn.init.constant_(module.layer.weight, 2.0)

    of_one_loader = trainer.predict(module, loader(1.0, batches=3))
    assert [batch.tolist() for batch in of_one_loader] == [[[2.0]]] * 3

    of_two_loaders = trainer.predict(module, [loader(1.0, batches=2), loader(3.0)])
    assert of_two_loaders == [[torch.tensor([[2.0]])] * 2, [torch.tensor([[6.0]])]]

    not_kept = trainer.predict(module, loader(1.0), return_predictions=False)
    assert not_kept is None


class WithoutPredictStep(Line):
    """Leaves predictions to forward."""

    predict_step = pl.LightningModule.predict_step


class TakesTheFirst(pl.Trainer):
    """Guesses that the first part of a batch is what forward wants."""

    def predict(self, module: Any, dataloaders: Any) -> Any:
        module.predict_step = lambda batch, **_: module(batch[0])
        return super().predict(module, dataloaders)


@spec("PL-45", violated_by=[TakesTheFirst])
def test_without_predict_step_forward_gets_the_whole_batch(Trainer: Any) -> None:
    """Right for batches of inputs alone; a pair of inputs and targets reaches forward as a list."""
    module, trainer = WithoutPredictStep(), Trainer(**modules.quiet(max_epochs=1))
    inputs = torch.tensor([[1.0], [3.0]])

    with pytest.raises(TypeError):
        trainer.predict(module, DataLoader(TensorDataset(inputs, 2 * inputs), batch_size=2))
    (predicted,) = trainer.predict(module, DataLoader(inputs, batch_size=2))

    assert torch.equal(predicted, module(inputs))


class PredictsLogits(modules.DigitsClassifier):
    """Gives ten numbers for each image, and leaves the digit to the caller."""

    def predict_step(self, batch: Batch, batch_idx: int) -> Any:
        return self(batch[0])


class PredictsTargets(modules.DigitsClassifier):
    """Gives back the targets, which stand beside the images in the batch."""

    def predict_step(self, batch: Batch, batch_idx: int) -> Any:
        return batch[1]


@spec(
    "PL-45",
    subject=modules.DigitsClassifier,
    violated_by=[PredictsLogits, PredictsTargets],
)
def test_the_classifier_predicts_digits(DigitsClassifier: Any) -> None:
    """In eval mode, as a user of the model would see them: no dropout, in the order of the data."""
    module, images = DigitsClassifier(dropout=0.5), digits().test_inputs

    predicted = pl.Trainer(**modules.quiet(max_epochs=1)).predict(module)

    assert [len(batch) for batch in predicted] == [64, 64, 64, 64, 64, 40]
    assert torch.equal(torch.cat(predicted), module.eval()(images).argmax(dim=1))


class WithABatchSizeByPosition(Line):
    """Writes DataLoader(data, 2)."""

    def predict_dataloader(self) -> Any:
        return DataLoader(TensorDataset(torch.ones(3, 1), torch.ones(3, 1)), 1)


@spec(
    "PL-45",
    subject=Line,
    violated_by=[raising(exceptions.MisconfigurationException, WithABatchSizeByPosition)],
)
def test_predict_dataloader_names_its_batch_size(Line: Any) -> None:
    """predict builds the loader anew and adds a batch size by name: then there would be two.

    An open issue: https://github.com/Lightning-AI/pytorch-lightning/issues/17991
    """
    predicted = pl.Trainer(**modules.quiet(max_epochs=1)).predict(Line())

    assert len(predicted) == 1
