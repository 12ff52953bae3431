"""A Trainer and the loop that one writes by hand: the same weights, bit for bit.

At the end you know that a Trainer adds nothing to the numbers, with which line of the plain loop
each line of a LightningModule stands, and which random numbers are drawn when.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import OneCycleLR, StepLR
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from reference import training
from reference.data import batches, digits
from reference.losses.vae import vae_loss
from reference.models.mlp import MLP
from reference.models.vae import VAE, VAEOutput
from specs.harness import rule, spec
from specs.harness.observations import Observe
from specs.harness.optional import optional

pl = optional("pytorch_lightning")
modules = optional("reference.lightning_modules")
loop = optional("reference.lightning_loop")

TRAINER_PAGE = "https://lightning.ai/docs/pytorch/stable/common/trainer.html"

Module = Callable[..., Any]
Loop = Callable[..., Any]


def some_digits(images: int = 150) -> TensorDataset:
    """The first images of the training part with their targets: in batches of 32, four and 22."""
    return TensorDataset(digits().train_inputs[:images], digits().train_targets[:images])


def equal_bit_for_bit(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models of the same make have the same parameters and buffers."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(mine, yours) for mine, yours in pairs)


# --- The same weights -----------------------------------------------------------------------------


class StepsTheScheduleInEachBatch(modules.DigitsClassifier):
    """Has its StepLR count batches in place of epochs."""

    def configure_optimizers(self) -> Any:
        [optimizer], [scheduler] = super().configure_optimizers()
        plan = {"scheduler": scheduler, "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": plan}


class TrainsInEvalMode(modules.DigitsClassifier):
    """Switches its dropout off."""

    def on_train_epoch_start(self) -> None:
        self.eval()


class DrawsForItself(modules.DigitsClassifier):
    """Draws a random number in each step, if only to decide whether to print something."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        torch.rand(1)
        return super().training_step(batch, batch_idx)


class ForgetsItsMomentum(modules.DigitsClassifier):
    """Begins every epoch with an optimizer that remembers nothing."""

    def on_train_epoch_start(self) -> None:
        self.trainer.optimizers[0].state.clear()


@rule(
    "PL-21",
    "A Trainer adds nothing to the numbers: for the same seed and data it ends with the weights of"
    " the plain loop, bit for bit.",
    kind="contract",
    source="https://lightning.ai/docs/pytorch/stable/common/optimization.html#automatic-optimization",
    subject=modules.DigitsClassifier,
    violated_by=[
        StepsTheScheduleInEachBatch,
        TrainsInEvalMode,
        DrawsForItself,
        ForgetsItsMomentum,
    ],
    consequence="A doubt about a Trainer can be settled: any difference to the plain loop, be it in"
    " the last bit, has a cause that can be found.",
)
def test_a_classifier_with_dropout_and_a_rate_that_falls_with_the_epochs(
    DigitsClassifier: Module, observe: Observe
) -> None:
    """The order of the images and the dropped units are random, and the same in both."""
    images = some_digits()

    torch.manual_seed(3)
    by_trainer = DigitsClassifier(hidden=32, dropout=0.2, lr=0.2)
    trainer = pl.Trainer(**modules.quiet(max_epochs=3, limit_val_batches=0))
    trainer.fit(by_trainer, DataLoader(images, 32, shuffle=True))

    torch.manual_seed(3)
    by_hand = MLP((64, 32, 10), dropout=0.2)
    optimizer = SGD(by_hand.parameters(), lr=0.2, momentum=0.9)
    scheduler = StepLR(optimizer, step_size=2, gamma=0.1)  # the third epoch has a tenth of the rate
    loader = DataLoader(images, 32, shuffle=True)
    training.fit(by_hand, loader, cross_entropy, optimizer, epochs=3, scheduler=scheduler)

    observe("a row of weights", by_trainer.network.layers[1].weight[0])
    assert equal_bit_for_bit(by_trainer.network, by_hand)
    assert trainer.optimizers[0].param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


class DecodesTheMean(modules.DigitsVAE):
    """Trains without noise: its code is the mean, as in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.network.latent = lambda mean, _: mean


class DrawsTheNoiseTwice(modules.DigitsVAE):
    """Calls itself once more, to look at a reconstruction."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self(batch[0])
        return super().training_step(batch, batch_idx)


class WeighsNoDivergence(modules.DigitsVAE):
    """Is told another kld_beta."""

    def __init__(self) -> None:
        super().__init__(kld_beta=0.0)


@spec(
    "PL-21",
    subject=modules.DigitsVAE,
    violated_by=[DecodesTheMean, DrawsTheNoiseTwice, WeighsNoDivergence],
)
def test_a_variational_autoencoder_with_its_noise(DigitsVAE: Module, observe: Observe) -> None:
    """Here the loss itself is random: one draw for each image and latent dimension."""
    images = some_digits().tensors[0]

    torch.manual_seed(3)
    by_trainer = DigitsVAE()
    trainer = pl.Trainer(**modules.quiet(max_epochs=2, limit_val_batches=0))
    trainer.fit(by_trainer, DataLoader(some_digits(), 32, shuffle=True))

    def loss_of(output: VAEOutput, targets: Tensor) -> Tensor:
        means = {"reconstruction_reduction": "batchmean", "kld_reduction": "batchmean"}
        reconstruction, mean, log_variance = output
        return vae_loss(reconstruction, targets, mean, log_variance, kld_beta=0.1, **means).total

    torch.manual_seed(3)
    by_hand = VAE(64, hidden=64, latents=8)
    to_themselves = DataLoader(TensorDataset(images, images), 32, shuffle=True)
    training.fit(by_hand, to_themselves, loss_of, Adam(by_hand.parameters(), lr=0.005), epochs=2)

    observe("biases of the means", by_trainer.network.mean.bias)
    assert equal_bit_for_bit(by_trainer.network, by_hand)


class OneCycleInSteps(modules.DigitsClassifier):
    """A cycle over the whole run, which steps with each batch; the Trainer knows how many."""

    interval = "step"

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=0.1, momentum=0.9)
        steps = self.trainer.estimated_stepping_batches
        scheduler = OneCycleLR(optimizer, max_lr=0.2, total_steps=steps)
        plan = {"scheduler": scheduler, "interval": self.interval}
        return {"optimizer": optimizer, "lr_scheduler": plan}


class OneCycleInEpochs(OneCycleInSteps):
    """Says "epoch": three steps of a cycle of 15."""

    interval = "epoch"


@pytest.mark.filterwarnings("ignore:A `OneCycleLR` scheduler is using")  # the violation is told
@spec("PL-21", subject=OneCycleInSteps, violated_by=[OneCycleInEpochs])
def test_a_cycle_that_steps_with_each_batch(OneCycleInSteps: Module) -> None:
    """OneCycleLR moves the momentum, too, so a single step out of place is in every weight."""
    images = some_digits()

    torch.manual_seed(3)
    by_trainer = OneCycleInSteps(dropout=0.2)
    trainer = pl.Trainer(**modules.quiet(max_epochs=3, limit_val_batches=0))
    trainer.fit(by_trainer, DataLoader(images, 32, shuffle=True))

    torch.manual_seed(3)
    by_hand = MLP((64, 32, 10), dropout=0.2)
    optimizer = SGD(by_hand.parameters(), lr=0.1, momentum=0.9)
    scheduler = OneCycleLR(optimizer, max_lr=0.2, total_steps=3 * 5)
    loader = DataLoader(images, 32, shuffle=True)
    for _ in range(3):
        training.train_one_epoch(by_hand, loader, cross_entropy, optimizer, scheduler)

    assert equal_bit_for_bit(by_trainer.network, by_hand)
    assert trainer.optimizers[0].param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


def leaves_the_last_batch_out(*loop_of: Any, **options: Any) -> Any:
    """Trains on full batches only."""
    model, batches, *others = loop_of
    return training.fit(model, batches[:-1], *others, **options)


def reports_the_last_batch(*loop_of: Any, **options: Any) -> Any:
    """Takes the loss of the last batch for that of the epoch."""
    history = training.fit(*loop_of, **options)
    model, batches, loss_function, _ = loop_of
    history.losses[-1] = loss_function(model(batches[-1][0]), batches[-1][1]).item()
    return history


@spec("PL-21", subject=loop.fit, violated_by=[leaves_the_last_batch_out, reports_the_last_batch])
def test_objects_that_exist_already_can_be_handed_to_a_trainer(fit: Loop) -> None:
    """A small LightningModule around model, loss, optimizer and scheduler is enough."""
    images, targets = some_digits().tensors
    runs = []
    for one_of_both in (fit, training.fit):
        torch.manual_seed(3)
        model = MLP((64, 32, 10), dropout=0.2)
        optimizer = Adam(model.parameters(), lr=0.01)
        scheduler = StepLR(optimizer, step_size=1, gamma=0.5)
        cut = batches(images, targets, 32)
        history = one_of_both(model, cut, cross_entropy, optimizer, epochs=3, scheduler=scheduler)
        runs.append((model, history))
    (by_trainer, seen_by_trainer), (by_hand, seen_by_hand) = runs

    assert equal_bit_for_bit(by_trainer, by_hand)
    assert seen_by_trainer == seen_by_hand


# --- Which random numbers are drawn ---------------------------------------------------------------


class ValidatesFirst(pl.Trainer):
    """Has a look at the validation data before it trains, as the sanity check does."""

    def fit(self, module: Any, loader: Any, held_out: Any) -> None:
        self.validate(module, held_out, verbose=False)
        super().fit(module, loader, held_out)


class LooksAtABatch(pl.Trainer):
    """Takes a batch out of the training loader, to see what shapes it has."""

    def fit(self, module: Any, loader: Any, held_out: Any) -> None:
        next(iter(loader))
        super().fit(module, loader, held_out)


class GivesAllBack(pl.Trainer):
    """Puts the generator back to where it was before the training."""

    def fit(self, module: Any, loader: Any, held_out: Any) -> None:
        with torch.random.fork_rng():
            super().fit(module, loader, held_out)


@rule(
    "PL-22",
    "A Trainer draws no random numbers of its own: what the sanity check drew is given back, and"
    " all others are drawn by the loaders and by the module.",
    kind="contract",
    source=TRAINER_PAGE,
    subject=pl.Trainer,
    violated_by=[ValidatesFirst, LooksAtABatch, GivesAllBack],
    consequence="A validation that shares the stream changes the training: the same seed has other"
    " batches from the second epoch on, and weights that are off by 0.02 to 0.07 after the third"
    " (six seeds).",
)
def test_each_loader_draws_as_often_as_it_is_iterated(Trainer: Module) -> None:
    """Any DataLoader draws one number when it is iterated: the seed of workers, which it may not
    even have. One that shuffles draws another one."""
    shuffled = DataLoader(some_digits(), 32, shuffle=True)
    held_out = DataLoader(some_digits(60), 32)
    for checks in (0, 2):
        module = modules.DigitsClassifier()  # without dropout nothing random is in it
        torch.manual_seed(3)
        options = modules.quiet(max_epochs=3, num_sanity_val_steps=checks)
        Trainer(**options).fit(module, shuffled, held_out)
        next_number_of_the_trainer = torch.rand(1)

        torch.manual_seed(3)
        for _ in range(3):
            list(shuffled)
            list(held_out)
        assert torch.equal(next_number_of_the_trainer, torch.rand(1))


class ValidatesAside(modules.DigitsClassifier):
    """Gives the validation loader a generator of its own: the global stream does not notice."""

    def val_dataloader(self) -> Any:
        return DataLoader(some_digits(60), 32, generator=torch.Generator())


class SharesTheStream(modules.DigitsClassifier):
    """Leaves the generator out. The loader does not shuffle, so nobody misses it."""

    def val_dataloader(self) -> Any:
        return DataLoader(some_digits(60), 32)


class AddsNoiseInValidation(ValidatesAside):
    """Measures how it bears noise, which it takes from the global stream."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, targets = batch
        super().validation_step((images + 0.1 * torch.randn_like(images), targets), batch_idx)


@spec("PL-22", subject=ValidatesAside, violated_by=[SharesTheStream, AddsNoiseInValidation])
def test_with_a_generator_of_its_own_validation_does_not_touch_the_training(
    ValidatesAside: Module, observe: Observe
) -> None:
    """Else a plain loop has the weights of the Trainer only if it validates at the same place."""
    trained = []
    for validations in (0, 1.0):
        torch.manual_seed(3)
        module = ValidatesAside(dropout=0.2)
        trainer = pl.Trainer(**modules.quiet(max_epochs=2, limit_val_batches=validations))
        trainer.fit(module, DataLoader(some_digits(), 32, shuffle=True))
        trained.append(module)
    without_validation, with_validation = trained

    observe("validation loss", trainer.callback_metrics["val_loss"].item())
    assert equal_bit_for_bit(without_validation, with_validation)


class NoisyStream(IterableDataset[Any]):
    """Images of an unknown number. Their noise comes from a generator of the stream's own."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(5)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for image, target in zip(*some_digits().tensors, strict=True):
            yield image + 0.1 * torch.randn(64, generator=self.generator), target


class NoisyStreamOfTheGlobalGenerator(NoisyStream):
    """Draws from the stream that the dropout draws from."""

    def __init__(self) -> None:
        self.generator = torch.default_generator


@spec("PL-22", subject=NoisyStream, violated_by=[NoisyStreamOfTheGlobalGenerator])
def test_a_loader_without_a_length_is_read_one_batch_ahead(NoisyStream: Module) -> None:
    """The Trainer has to know which batch is the last one. The noise of batch 2 is therefore drawn
    before the dropout of batch 1, in the plain loop after it."""
    torch.manual_seed(3)
    by_trainer = modules.DigitsClassifier(dropout=0.2)
    trainer = pl.Trainer(**modules.quiet(max_epochs=1, limit_val_batches=0))
    trainer.fit(by_trainer, DataLoader(NoisyStream(), 32))

    torch.manual_seed(3)
    by_hand = MLP((64, 32, 10), dropout=0.2)
    optimizer = SGD(by_hand.parameters(), lr=0.2, momentum=0.9)
    training.train_one_epoch(by_hand, DataLoader(NoisyStream(), 32), cross_entropy, optimizer)

    assert equal_bit_for_bit(by_trainer.network, by_hand)
