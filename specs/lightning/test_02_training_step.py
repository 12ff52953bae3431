"""training_step: the one method that says what is learned, and what may come back from it.

At the end you know that the Trainer trains on what `training_step` returns and on nothing else,
what a module is without a Trainer, and what `fit` and `test` make of a classifier and of a
variational autoencoder of scikit-learn's digits (reference/lightning_modules.py).

`quiet(...)` holds the options of a Trainer on one CPU that prints and writes nothing.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from reference.data import digits
from specs.harness import raising, rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe
from specs.harness.optional import optional

pl = optional("pytorch_lightning")
modules = optional("reference.lightning_modules")
exceptions = optional("pytorch_lightning.utilities.exceptions")

MODULE_PAGE = "https://lightning.ai/docs/pytorch/stable/common/lightning_module.html"

Batch = tuple[Tensor, Tensor]


class Line(pl.LightningModule):
    """Learns y = 2x with one weight, which starts at 0, from batches of x = 1 and y = 2."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        x, y = batch
        return (self(x) - y).square().mean()

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> Any:
        ones = torch.ones(2, 1)
        return DataLoader(TensorDataset(ones, 2 * ones), batch_size=1)


#: The gradient of (w - 2)**2 is 2 * (w - 2): each step of 0.1 leaves 0.8 of the distance to 2.
AFTER_TWO_STEPS = 2 * (1 - 0.8**2)


# --- What training_step gives back ----------------------------------------------------------------


class SaysNothing(Line):
    """Computes the loss and forgets `return`: fit runs to its end and has trained nothing."""

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        super().training_step(batch, batch_idx)


class GivesANumber(Line):
    """Takes the number out of the loss with item()."""

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx).item()


class DetachesItsLoss(Line):
    """Cuts the loss off from the weights."""

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx).detach()


class GivesALossForEachSample(Line):
    """Leaves the mean to somebody else."""

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx).expand(2)


class CallsTheLossOtherwise(Line):
    """Gives a dict that has no "loss"."""

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        return {"train_loss": super().training_step(batch, batch_idx)}


@rule(
    "PL-42",
    "training_step returns the loss of the batch, one number that still hangs on the weights,"
    ' alone or as "loss" in a dict; None skips the batch. It steps nothing itself.',
    kind="contract",
    source=MODULE_PAGE,
    subject=Line,
    violated_by=[
        SaysNothing,
        raising(exceptions.MisconfigurationException, GivesANumber),
        raising(exceptions.MisconfigurationException, CallsTheLossOtherwise),
        raising(RuntimeError, DetachesItsLoss),
        raising(RuntimeError, GivesALossForEachSample),
    ],
)
def test_the_loss_is_what_training_step_returns(Line: Any) -> None:
    """Four of the mistakes raise. A forgotten `return` does not: the weight stays where it was."""
    module = Line()

    pl.Trainer(**modules.quiet(max_epochs=1)).fit(module)

    assert agree(module.layer.weight.detach(), torch.tensor([[AFTER_TWO_STEPS]]))


class StepsItself(Line):
    """Takes the step in training_step, as in a loop written by hand; the Trainer takes another."""

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        loss.backward()
        SGD(self.parameters(), lr=0.1).step()
        return super().training_step(batch, batch_idx)


@spec("PL-42", violated_by=[StepsItself])
def test_training_step_by_itself_only_computes(Line: Any) -> None:
    """So it can be called without a Trainer, to look at the loss of a batch."""
    module = Line()

    loss = module.training_step((torch.ones(1, 1), 2 * torch.ones(1, 1)), 0)

    assert loss.item() == (0 - 2) ** 2
    assert module.layer.weight.item() == 0
    assert module.layer.weight.grad is None


class Answers(Line):
    """Gives the Trainer what `answers` makes of the loss of each batch; has momentum."""

    def __init__(self, *answers: Any) -> None:
        super().__init__()
        self.answers = answers

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        return self.answers[batch_idx](super().training_step(batch, batch_idx))

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.1, momentum=0.9)

    def train_dataloader(self) -> Any:
        ones = torch.ones(len(self.answers), 1)
        return DataLoader(TensorDataset(ones, 2 * ones), batch_size=1)


def the_loss(loss: Tensor) -> Any:
    """The usual answer."""
    return loss


def in_a_dict(loss: Tensor) -> Any:
    """For hooks such as on_train_batch_end, which see the whole dict."""
    return {"loss": loss, "seen by hooks": 1}


def none(_: Tensor) -> Any:
    """Skip this batch."""
    return None


#: What the three batches are answered with, and where the weight then is.
FIRST = 0.1 * 4  # from 0, with the gradient 2 * (0 - 2) = -4
SECOND = FIRST + 0.1 * (0.9 * 4 + 3.2)  # momentum of the first step, gradient 2 * (0.4 - 2) = -3.2
THIRD = SECOND + 0.1 * (0.9 * 6.8 + 1.84)  # momentum of 6.8 by now, gradient 2 * (1.08 - 2)
ANSWERS = [
    ((the_loss, the_loss, the_loss), THIRD),
    ((in_a_dict, in_a_dict, the_loss), THIRD),
    ((the_loss, none, the_loss), SECOND),  # where momentum pauses, too
    ((none, none, the_loss), FIRST),
    ((none, none, none), 0.0),
]


class TakesNoneForZero(pl.Trainer):
    """Puts a loss of 0 in the place of None: then the momentum moves the weight on."""

    def fit(self, module: Any) -> None:
        def zero_for_none(batch: Batch, batch_idx: int) -> Any:
            loss = type(module).training_step(module, batch, batch_idx)
            return module(batch[0]).sum() * 0 if loss is None else loss

        module.training_step = zero_for_none
        super().fit(module)


class SkipsDicts(pl.Trainer):
    """Knows a tensor only."""

    def fit(self, module: Any) -> None:
        def tensor_or_none(batch: Batch, batch_idx: int) -> Any:
            loss = type(module).training_step(module, batch, batch_idx)
            return loss if isinstance(loss, Tensor) else None

        module.training_step = tensor_or_none
        super().fit(module)


@spec("PL-42", subject=pl.Trainer, violated_by=[TakesNoneForZero, SkipsDicts])
def test_none_skips_the_batch_and_a_dict_does_not(Trainer: Any) -> None:
    """A skipped batch leaves weight and momentum alone, but is counted in global_step."""
    for answers, weight in ANSWERS:
        module, trainer = Answers(*answers), Trainer(**modules.quiet(max_epochs=1))

        trainer.fit(module)

        assert agree(module.layer.weight.detach(), torch.tensor([[weight]]), scale=2.0)
        assert trainer.global_step == 3


# --- Calling a module, fitting it, testing it -----------------------------------------------------


class DecaysWhenCalled(modules.DigitsClassifier):
    """Makes its weights smaller whenever it is asked for logits."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        for parameter in self.parameters():
            parameter.data.mul_(0.99)
        return logits


class DifferentiatesWhenCalled(modules.DigitsClassifier):
    """Leaves a gradient behind, as if each call were a training step."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        logits.square().mean().backward()
        return logits


class ReturnsLossWhenCalled(modules.DigitsClassifier):
    """Its forward gives a number about the logits in place of the logits."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).logsumexp(dim=1).mean()


@rule(
    "PL-41",
    "module(x) is forward: it computes, and trains nothing; fit(module) trains the module that it"
    " is given; test(module) gives back what test_step logged, averaged over the samples.",
    kind="contract",
    source=MODULE_PAGE,
    subject=modules.DigitsClassifier,
    violated_by=[DecaysWhenCalled, DifferentiatesWhenCalled, ReturnsLossWhenCalled],
)
def test_calling_a_module_gives_logits_and_changes_nothing(DigitsClassifier: Any) -> None:
    """A LightningModule is an nn.Module: without a Trainer it is used like any other."""
    images, module = digits().test_inputs, DigitsClassifier()
    before = deepcopy(module.state_dict())

    for _ in range(3):
        logits = module(images)

    assert isinstance(module, nn.Module)
    assert logits.shape == (360, 10)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


class ForgetsToReturnTheLoss(modules.DigitsClassifier):
    """Computes and logs the loss; None is what the Trainer gets, and takes for "skip it"."""

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        super().training_step(batch, batch_idx)


class GivesBatchesEqualWeight(modules.DigitsClassifier):
    """Says of each batch that it is one sample: that of 40 images counts like those of 64."""

    def log(self, *arguments: Any, **options: Any) -> None:
        super().log(*arguments, **options, batch_size=1)


class JudgesTrainingImages(modules.DigitsClassifier):
    """Its test_dataloader gives images that it was trained on."""

    def test_dataloader(self) -> Any:
        return self.train_dataloader()


@spec(
    "PL-41",
    violated_by=[ForgetsToReturnTheLoss, GivesBatchesEqualWeight, JudgesTrainingImages],
)
def test_two_epochs_teach_the_digits(DigitsClassifier: Any, observe: Observe) -> None:
    """The 360 test images come in five batches of 64 and one of 40."""
    data, module = digits(), DigitsClassifier()
    trainer = pl.Trainer(**modules.quiet(max_epochs=2))

    trainer.fit(module)
    (reported,) = trainer.test(module, verbose=False)  # one dict for each test loader

    with torch.no_grad():
        right = (module.eval()(data.test_inputs).argmax(dim=1) == data.test_targets).sum().item()
    observe("accuracy", right / 360)
    # Five seeds: 0.85 to 0.94. One in ten is what guessing gets right.
    assert right / 360 > 0.75
    assert agree(torch.tensor(reported["test_accuracy"]), right / 360)


class ReportsTheWorstBatch(modules.DigitsVAE):
    """Has Lightning take the maximum over the batches."""

    def log(self, *arguments: Any, **options: Any) -> None:
        super().log(*arguments, **options, reduce_fx="max")


class ForgetsBeta(modules.DigitsVAE):
    """Adds the whole divergence, whatever weight it was given."""

    def __init__(self, kld_beta: float = 0.1) -> None:
        super().__init__()
        self.hparams["kld_beta"] = 1.0


@spec("PL-41", subject=modules.DigitsVAE, violated_by=[ReportsTheWorstBatch, ForgetsBeta])
def test_the_variational_autoencoder_reports_its_loss_per_image(
    DigitsVAE: Any, observe: Observe
) -> None:
    """Sums over each image, means over the images; in eval mode nothing is drawn at random."""
    images, module = digits().test_inputs, DigitsVAE(kld_beta=0.25)
    trainer = pl.Trainer(**modules.quiet(max_epochs=1))

    (before,) = trainer.test(module, verbose=False)
    trainer.fit(module)
    (after,) = trainer.test(module, verbose=False)

    with torch.no_grad():
        rebuilt, mean, log_variance = module.eval()(images)
    # Grey levels differ by less than 1, where smooth L1 is half of the square.
    reconstruction = (rebuilt - images).double().square().sum(dim=1).mean() / 2
    spread = log_variance.double().exp() + mean.double().square() - 1 - log_variance.double()
    expected = reconstruction + 0.25 * spread.sum(dim=1).mean() / 2
    observe("loss before and after", [before["test_loss"], after["test_loss"]])
    # Some hundred float32 roundings in sums of 64 numbers each.
    assert agree(torch.tensor(after["test_loss"]), expected, ulps=64)
    # Eight seeds: from 7.3 to 8.3 nats an image down to 3.0 to 3.8.
    assert after["test_loss"] < 0.65 * before["test_loss"]
