"""Two switches in a Trainer's hands: training or evaluation mode, and gradients or none.

At the end you know in which mode each step of a module runs, and what fit does with a module that
is in evaluation mode: it trains in it. Freezing is the subject of test_07_freezing.py.

Evaluation mode turns Dropout off and has BatchNorm use the statistics that it has collected, in
place of the batch's. Gradients are another matter: a module in eval mode records them.
`quiet(...)` holds the options of a Trainer on one CPU that prints and writes nothing.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from reference.data import digits
from specs.harness import rule, spec
from specs.harness.observations import Observe
from specs.harness.optional import optional
from specs.harness.versions import release_of

pl = optional("pytorch_lightning")
modules = optional("reference.lightning_modules")

TRAINER_PAGE = "https://lightning.ai/docs/pytorch/stable/common/trainer.html#inference-mode"
MODULE_PAGE = "https://lightning.ai/docs/pytorch/stable/common/lightning_module.html"

Batch = tuple[Tensor, Tensor]

#: From this release on, fit says so when it finds something in eval mode.
WARNS_OF_EVAL = release_of("pytorch-lightning") >= (2, 5, 5)


def ten_samples() -> Any:
    """Two batches of five, four numbers and one target each."""
    drawn = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(10, 4, generator=drawn), torch.randn(10, 1, generator=drawn)
    return DataLoader(TensorDataset(inputs, targets), batch_size=5)


class Observed(pl.LightningModule):
    """A network with BatchNorm and Dropout, which writes down how each of its steps is called."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.last = nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1)
        self.seen: dict[str, set[tuple[bool, bool, bool]]] = {}

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.drop(self.norm(inputs)))

    def loss(self, step: str, batch: Batch) -> Tensor:
        modes = self.training, torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        self.seen.setdefault(step, set()).add(modes)  # one entry, if all batches are alike
        inputs, targets = batch
        return (self(inputs) - targets).square().mean()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.loss("training_step", batch)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.loss(f"validation_step in {self.trainer.state.fn.value}", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.loss("test_step", batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.loss("predict_step", batch)
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> Any:
        return ten_samples()

    def val_dataloader(self) -> Any:
        return ten_samples()

    def test_dataloader(self) -> Any:
        return ten_samples()

    def predict_dataloader(self) -> Any:
        return ten_samples()


def modes_of(module: nn.Module) -> list[bool]:
    """`training` of the module and of each of its parts."""
    return [part.training for part in module.modules()]


# --- In which mode each step runs -----------------------------------------------------------------


class TurnsGradientsOffOnly(pl.Trainer):
    """Evaluates under no_grad, as Lightning did before it had inference mode."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, inference_mode=False)


class ValidatesInTrainingMode(pl.Trainer):
    """Switches gradients off and forgets the other switch."""

    def fit(self, module: Any) -> None:
        module.on_validation_model_eval = lambda: None
        super().fit(module)


class RecordsValidation(pl.Trainer):
    """Switches the mode and forgets the gradients."""

    def fit(self, module: Any) -> None:
        module.validation_step = torch.enable_grad()(module.validation_step)
        super().fit(module)


class TestsAsItTrains(pl.Trainer):
    """Has test run in training mode."""

    __test__ = False  # pytest: a Trainer, though its name begins like a test's

    def test(self, module: Any, **options: Any) -> Any:
        module.on_test_model_eval = module.train
        return super().test(module, **options)


#: For each step: is the module in training mode, are gradients recorded, is it inference mode?
MODES = {
    "training_step": {(True, True, False)},
    "validation_step in fit": {(False, False, False)},  # no_grad: training goes on afterwards
    "validation_step in validate": {(False, False, True)},
    "test_step": {(False, False, True)},
    "predict_step": {(False, False, True)},
}


@rule(
    "PL-08",
    "The Trainer evaluates in eval mode and without gradients (no_grad inside fit, inference mode"
    " in validate, test and predict), then puts every part back into its mode; fit trains each part"
    " in the mode in which it finds it.",
    kind="contract",
    source=TRAINER_PAGE,
    subject=pl.Trainer,
    violated_by=[
        TurnsGradientsOffOnly,
        ValidatesInTrainingMode,
        RecordsValidation,
        TestsAsItTrains,
    ],
)
def test_every_step_has_its_mode(Trainer: Any) -> None:
    """A module calls neither train() nor eval() nor no_grad itself, and neither does its user."""
    module, trainer = Observed(), Trainer(**modules.quiet(max_epochs=2))

    trainer.fit(module)
    trainer.validate(module, verbose=False)
    trainer.test(module, verbose=False)
    trainer.predict(module)

    assert module.seen == MODES


@spec("PL-08", violated_by=[TurnsGradientsOffOnly])
def test_a_tensor_of_inference_mode_never_enters_a_graph(Trainer: Any) -> None:
    """Predictions to train on: copy them, or predict with Trainer(inference_mode=False)."""
    module, weight = Observed(), torch.ones(5, 1, requires_grad=True)

    first, _ = Trainer(**modules.quiet(max_epochs=1)).predict(module)

    assert first.is_inference()
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        (weight * first).sum().backward()
    (weight * first.clone()).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, first)


class WithGradientPenalty(Observed):
    """Needs the gradient of its output in validation, and says so with enable_grad."""

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        with torch.enable_grad():
            inputs = batch[0].clone().requires_grad_()
            torch.autograd.grad(self(inputs).sum(), inputs)


@spec("PL-08", violated_by=[TurnsGradientsOffOnly])
def test_enable_grad_brings_gradients_back_in_fit_and_not_in_validate(Trainer: Any) -> None:
    """enable_grad ends no_grad; nothing but inference_mode=False ends inference mode."""
    module, trainer = WithGradientPenalty(), Trainer(**modules.quiet(max_epochs=1))

    trainer.fit(module)

    with pytest.raises(RuntimeError, match="does not require grad"):
        trainer.validate(module, verbose=False)


# --- Which part is in which mode ------------------------------------------------------------------


class CallsTrain(pl.Trainer):
    """Puts the whole module into training mode, as Lightning did before 2.2."""

    def fit(self, module: Any) -> None:
        super().fit(module.train())


class CallsTrainAfterValidation(pl.Trainer):
    """Ends a validation with train(), as most loops by hand do."""

    def fit(self, module: Any) -> None:
        module.on_validation_model_train = module.train
        super().fit(module)


class StaysInEval(pl.Trainer):
    """Leaves the module in eval mode after a validation."""

    def validate(self, module: Any, **options: Any) -> Any:
        result = super().validate(module, **options)
        module.eval()
        return result


@spec("PL-08", violated_by=[CallsTrain, CallsTrainAfterValidation, StaysInEval])
def test_every_part_keeps_its_mode(Trainer: Any) -> None:
    """A BatchNorm that is put into eval mode once stays frozen: its statistics never move."""
    module, trainer = Observed(), Trainer(**modules.quiet(max_epochs=2))
    module.norm.eval()
    before = modes_of(module)
    assert before == [True, False, True, True]  # the whole, then norm, drop and last

    trainer.fit(module)
    assert modes_of(module) == before
    assert torch.equal(module.norm.running_mean, torch.zeros(4))
    assert module.norm.num_batches_tracked == 0

    for evaluate in (trainer.validate, trainer.test):
        evaluate(module, verbose=False)
        assert modes_of(module) == before
    trainer.predict(module)
    assert modes_of(module) == before


# --- The claim that fit() puts a model into training mode -----------------------------------------


@rule(
    "CLAIM-22",
    "fit() puts the model into training mode.",
    kind="claim",
    verdict="false",
    source="https://github.com/Lightning-AI/pytorch-lightning/pull/18951",
    subject=pl.Trainer,
    violated_by=[CallsTrain],
    consequence="400 digits, BatchNorm and Dropout, five epochs after a forgotten eval(): 58 to 68%"
    " of the test images are right in place of 91 to 92% (five seeds)",
)
def test_a_module_in_eval_mode_is_trained_in_eval_mode(Trainer: Any, observe: Observe) -> None:
    """True until Lightning 2.1. Since 2.5.5 there is a warning, which does not change the mode."""
    module = Observed().eval()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Trainer(**modules.quiet(max_epochs=2)).fit(module)

    assert module.seen["training_step"] == {(False, True, False)}  # in eval mode, with gradients
    assert modes_of(module) == [False] * 4
    warned = [one for one in caught if "in eval mode at the start of training" in str(one.message)]
    observe("warnings", warned)
    assert len(warned) == WARNS_OF_EVAL


class FailsToValidate(Observed):
    """Has a validation that goes wrong, as when somebody stops it by hand."""

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        raise ConnectionError


@spec("CLAIM-22", violated_by=[CallsTrain])
def test_the_fit_after_a_failed_validation_trains_in_eval_mode(Trainer: Any) -> None:
    """Nobody has called eval() here. Call train() before you go on in the same process."""
    module = FailsToValidate()
    with pytest.raises(ConnectionError):
        Trainer(**modules.quiet(max_epochs=1)).fit(module)
    module.seen.clear()

    with pytest.raises(ConnectionError):
        Trainer(**modules.quiet(max_epochs=1)).fit(module)

    assert module.seen["training_step"] == {(False, True, False)}


class Digits(pl.LightningModule):
    """Learns 400 digits with BatchNorm and Dropout."""

    def __init__(self) -> None:
        super().__init__()
        hidden = [nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.5)]
        self.network = nn.Sequential(*hidden, nn.Linear(64, 10))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, targets = batch
        return cross_entropy(self.network(images), targets)

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> Any:
        few = TensorDataset(digits().train_inputs[:400], digits().train_targets[:400])
        return DataLoader(few, batch_size=40, shuffle=True)


@spec("CLAIM-22", violated_by=[CallsTrain])
def test_a_forgotten_eval_costs_a_quarter_of_the_digits(Trainer: Any, observe: Observe) -> None:
    """In eval mode BatchNorm normalises nothing: the statistics that it uses stay at 0 and 1."""
    data, right = digits(), {}

    for mode in ("train", "eval"):
        torch.manual_seed(0)
        module = Digits()
        getattr(module, mode)()  # somebody has looked at the model, and left it like this
        Trainer(**modules.quiet(max_epochs=5)).fit(module)
        predicted = module.eval().network(data.test_inputs).argmax(dim=1)
        right[mode] = (predicted == data.test_targets).double().mean().item()

    observe("accuracy", right)
    assert right["train"] > 0.85
    assert right["eval"] < right["train"] - 0.15
