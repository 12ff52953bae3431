"""Clipping and resume: where a Trainer keeps up with the plain loop, and where you must help.

At the end you know which gradients a Trainer clips and when, that a resumed Trainer ends with the
weights of a loop that was never interrupted, and which two things are not in a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, TensorDataset

from reference import training
from reference.data import batches, digits
from reference.models.mlp import MLP
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe
from specs.harness.optional import optional
from specs.harness.versions import release_of

pl = optional("pytorch_lightning")
callbacks = optional("pytorch_lightning.callbacks")
modules = optional("reference.lightning_modules")

TRAINER_PAGE = "https://lightning.ai/docs/pytorch/stable/common/trainer.html"
CHECKPOINT_PAGE = "https://lightning.ai/docs/pytorch/stable/common/checkpointing_basic.html"

Made = Callable[..., Any]


def some_digits(images: int = 150) -> TensorDataset:
    """Images with their targets: in batches of 32, four and one of 22."""
    return TensorDataset(digits().train_inputs[:images], digits().train_targets[:images])


def some_batches() -> list[tuple[Tensor, Tensor]]:
    """The same, cut by hand."""
    images, targets = some_digits().tensors
    return batches(images, targets, 32)


def equal_bit_for_bit(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models of the same make have the same parameters and buffers."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(mine, yours) for mine, yours in pairs)


def by_hand_from_seed_3() -> tuple[MLP, SGD]:
    """The network and the optimizer of a DigitsClassifier that is made after that seed."""
    torch.manual_seed(3)
    model = MLP((64, 32, 10))
    return model, SGD(model.parameters(), lr=0.2, momentum=0.9)


def by_trainer_from_seed_3(Trainer: Made, **options: Any) -> nn.Module:
    """The network of a DigitsClassifier after two epochs with these options of the Trainer."""
    torch.manual_seed(3)
    module = modules.DigitsClassifier(lr=0.2)
    silent = modules.quiet(max_epochs=2, limit_val_batches=0, **options)
    Trainer(**silent).fit(module, DataLoader(some_digits(), 32))
    return module.network


# --- Clipping -------------------------------------------------------------------------------------


class ClipsEachEntry(pl.Trainer):
    """Cuts each entry off at the bound."""

    def __init__(self, **options: Any) -> None:
        super().__init__(gradient_clip_algorithm="value", **options)


class ClipsToTheDouble(pl.Trainer):
    """Lets gradients be twice as long."""

    def __init__(self, gradient_clip_val: float, **options: Any) -> None:
        super().__init__(gradient_clip_val=2 * gradient_clip_val, **options)


class ClipsEveryBatch(pl.Trainer):
    """Clips after each backward, also where no step follows."""

    def fit(self, module: Any, loader: Any) -> None:
        bound = self.gradient_clip_val
        module.on_after_backward = lambda: clip_grad_norm_(module.parameters(), bound)
        super().fit(module, loader)


@rule(
    "PL-24",
    "gradient_clip_val=c is clip_grad_norm_ with max_norm=c, bit for bit, of the optimizer's"
    " parameters, once before each step.",
    kind="contract",
    source=TRAINER_PAGE + "#gradient-clip-val",
    subject=pl.Trainer,
    violated_by=[ClipsEachEntry, ClipsToTheDouble],
)
def test_it_is_the_clipping_of_torch_between_backward_and_step(Trainer: Made) -> None:
    """The reference takes the norm in float64: with that one the weights agree up to rounding."""
    for bound in (0.1, 0.5, 100.0):
        by_trainer = by_trainer_from_seed_3(Trainer, gradient_clip_val=bound)

        by_hand, optimizer = by_hand_from_seed_3()
        for inputs, targets in some_batches() * 2:
            optimizer.zero_grad()
            cross_entropy(by_hand(inputs), targets).backward()
            clip_grad_norm_(by_hand.parameters(), bound)
            optimizer.step()
        in_float64, optimizer = by_hand_from_seed_3()
        for _ in range(2):
            images = some_batches()
            training.train_one_epoch(in_float64, images, cross_entropy, optimizer, max_norm=bound)

        assert equal_bit_for_bit(by_trainer, by_hand)
        for clipped, expected in zip(by_trainer.parameters(), in_float64.parameters(), strict=True):
            assert agree(clipped, expected, ulps=32)  # ten steps of a few roundings each


@spec("PL-24", violated_by=[ClipsEveryBatch])
def test_accumulated_gradients_are_clipped_once(Trainer: Made) -> None:
    """What is clipped is the gradient of the whole window."""
    options = {"gradient_clip_val": 0.1, "accumulate_grad_batches": 2}
    by_trainer = by_trainer_from_seed_3(Trainer, **options)

    by_hand, optimizer = by_hand_from_seed_3()
    first, second, third, fourth, last = some_batches()
    for window in [(first, second), (third, fourth), (last,)] * 2:
        optimizer.zero_grad()
        for inputs, targets in window:
            (cross_entropy(by_hand(inputs), targets) / 2).backward()
        clip_grad_norm_(by_hand.parameters(), 0.1)
        optimizer.step()

    assert equal_bit_for_bit(by_trainer, by_hand)


class TrainsTheHead(modules.DigitsClassifier):
    """Gives the optimizer the last layer only. The first one has gradients all the same."""

    def configure_optimizers(self) -> Any:
        return SGD(self.network.layers[1].parameters(), lr=0.2)


class ClipsAllParameters(pl.Trainer):
    """Takes the norm of all gradients in the module."""

    def fit(self, module: Any, loader: Any) -> None:
        bound = self.gradient_clip_val
        module.on_before_optimizer_step = lambda _: clip_grad_norm_(module.parameters(), bound)
        super().fit(module, loader)


@spec("PL-24", violated_by=[ClipsAllParameters])
def test_parameters_without_an_optimizer_are_not_in_the_norm(Trainer: Made) -> None:
    """A plain loop that clips model.parameters() counts them, and shortens the rest too much."""
    torch.manual_seed(3)
    module = TrainsTheHead()
    options = modules.quiet(max_epochs=1, limit_val_batches=0, gradient_clip_val=0.1)
    Trainer(**options).fit(module, DataLoader(some_digits(), 32))

    by_hand, _ = by_hand_from_seed_3()
    head = by_hand.layers[1].parameters  # a method: a generator could be walked once
    optimizer = SGD(head(), lr=0.2)
    for inputs, targets in some_batches():
        optimizer.zero_grad()
        cross_entropy(by_hand(inputs), targets).backward()
        clip_grad_norm_(head(), 0.1)
        optimizer.step()

    assert equal_bit_for_bit(module.network, by_hand)


# --- Resume ---------------------------------------------------------------------------------------


def largest_difference(one: nn.Module, other: nn.Module) -> float:
    """Of any two weights that stand at the same place; 0 if all are equal bit for bit."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max((mine - yours).abs().max().item() for mine, yours in pairs)


def trained_by_a_plain_loop(*, dropout: float, shuffle: bool) -> nn.Module:
    """A DigitsClassifier's network after four epochs, from seed 3, without an interruption."""
    torch.manual_seed(3)
    model = MLP((64, 32, 10), dropout)
    optimizer = SGD(model.parameters(), lr=0.2, momentum=0.9)
    falls_by_ten = StepLR(optimizer, step_size=2, gamma=0.1)
    loader = DataLoader(some_digits(80), 32, shuffle=shuffle)
    training.fit(model, loader, cross_entropy, optimizer, epochs=4, scheduler=falls_by_ten)
    return model


def trained_in_two_halves(Module: Made, *, dropout: float, shuffle: bool) -> nn.Module:
    """The same by two Trainers. The second one has another seed, a new module, and a file."""
    torch.manual_seed(3)
    first_half = pl.Trainer(**modules.quiet(max_epochs=2, limit_val_batches=0))
    first_half.fit(Module(dropout=dropout), DataLoader(some_digits(80), 32, shuffle=shuffle))
    first_half.save_checkpoint("half.ckpt")

    torch.manual_seed(4)
    module = Module(dropout=dropout)
    second_half = pl.Trainer(**modules.quiet(max_epochs=4, limit_val_batches=0))
    loader = DataLoader(some_digits(80), 32, shuffle=shuffle)
    second_half.fit(module, loader, ckpt_path="half.ckpt")
    return module.network


class ForgetsTheMomentum(modules.DigitsClassifier):
    """Takes everything but the optimizer's state."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["optimizer_states"] = []


class BeginsTheScheduleAgain(modules.DigitsClassifier):
    """Takes everything but the scheduler's state, and the rate that it had set."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["lr_schedulers"] = []
        checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] = 0.2


class CountsFromZero(modules.DigitsClassifier):
    """Does not know how many epochs there were: it trains four more."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        del checkpoint["loops"]


class LosesItsWeights(modules.DigitsClassifier):
    """Goes on from new weights with an old momentum."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = self.state_dict()


@rule(
    "PL-26",
    "fit(ckpt_path=...) goes on with the saved weights, optimizer, schedule and epochs: the weights"
    " are those of a loop that was never interrupted. Random states are yours to save.",
    kind="contract",
    source=CHECKPOINT_PAGE,
    subject=modules.DigitsClassifier,
    violated_by=[ForgetsTheMomentum, BeginsTheScheduleAgain, CountsFromZero, LosesItsWeights],
    consequence="Resumed without the random state, a run of four epochs ends with weights that are"
    " off by 0.009 to 0.018 (six seeds).",
)
def test_two_epochs_and_two_more_are_four_of_the_plain_loop(DigitsClassifier: Made) -> None:
    """max_epochs counts from the start of the first run: 4, not 2."""
    resumed = trained_in_two_halves(DigitsClassifier, dropout=0.0, shuffle=False)
    uninterrupted = trained_by_a_plain_loop(dropout=0.0, shuffle=False)

    assert largest_difference(resumed, uninterrupted) == 0.0


#: A resumed Trainer of 2.5.2 or older iterates its loader twice before the first batch. Each time
#: the loader draws a number, so there the state is put back later.
ITERATES_ONCE = release_of("pytorch-lightning") >= (2, 5, 3)


class SavesItsRandomState(modules.DigitsClassifier):
    """Puts the state of torch's generator into the checkpoint, and takes it from there."""

    random_state: Tensor | None = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["random_state"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.random_state = checkpoint["random_state"]
        if ITERATES_ONCE:
            torch.set_rng_state(self.random_state)

    def on_train_start(self) -> None:
        if self.random_state is not None and not ITERATES_ONCE:
            torch.set_rng_state(self.random_state)


class SavesNoRandomState(modules.DigitsClassifier):
    """Relies on the Trainer."""


class SeedsAgain(modules.DigitsClassifier):
    """Begins both halves from one seed, so that the third epoch has the dice of the first."""

    def on_train_start(self) -> None:
        torch.manual_seed(3)


@spec("PL-26", subject=SavesItsRandomState, violated_by=[SavesNoRandomState, SeedsAgain])
def test_with_the_random_state_dropout_and_the_order_of_images_go_on(
    SavesItsRandomState: Made, observe: Observe
) -> None:
    """This is enough for torch. Python's and NumPy's generators have states of their own."""
    resumed = trained_in_two_halves(SavesItsRandomState, dropout=0.2, shuffle=True)
    uninterrupted = trained_by_a_plain_loop(dropout=0.2, shuffle=True)

    without = trained_in_two_halves(SavesNoRandomState, dropout=0.2, shuffle=True)
    observe("without the state", largest_difference(without, uninterrupted))
    assert largest_difference(without, uninterrupted) > 0.003  # six seeds: 0.009 to 0.018
    assert largest_difference(resumed, uninterrupted) == 0.0


class NeverImproves(pl.LightningModule):
    """A validation value that stays 1: each epoch but the first is a bad one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.rates: list[float] = []

    def on_train_epoch_start(self) -> None:
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.weight * batch).sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("value", 1.0, batch_size=1)

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=0.8)
        halves_at_once = ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
        plan = {"scheduler": halves_at_once, "monitor": "value"}
        return {"optimizer": optimizer, "lr_scheduler": plan}


class SavesAtTheEndOfTheRun(callbacks.ModelCheckpoint):
    """Saves when the last epoch is over, scheduler and all."""

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.best_model_path = "end.ckpt"
        trainer.save_checkpoint(self.best_model_path)


@spec("PL-26", subject=callbacks.ModelCheckpoint, violated_by=[SavesAtTheEndOfTheRun])
def test_a_model_checkpoint_is_one_judgement_of_a_plateau_behind(
    ModelCheckpoint: Made, observe: Observe
) -> None:
    """It saves after the validation, before ReduceLROnPlateau has seen it, and a resumed Trainer
    does not make up for that: the third epoch has the rate of the second. Where that matters, save
    with trainer.save_checkpoint after fit()."""
    one_batch: Any = DataLoader(torch.ones(1, 1))
    saves = ModelCheckpoint(".", save_top_k=1)
    options = modules.quiet(enable_checkpointing=True, callbacks=[saves])
    pl.Trainer(**options, max_epochs=2).fit(NeverImproves(), one_batch, one_batch)

    resumed = NeverImproves()
    trainer = pl.Trainer(**modules.quiet(max_epochs=4))
    trainer.fit(resumed, one_batch, one_batch, ckpt_path=saves.best_model_path)

    model = nn.Linear(1, 1)
    optimizer = SGD(model.parameters(), lr=0.8)
    history = training.fit(
        model,
        [(torch.ones(1, 1), torch.ones(1, 1))],
        nn.MSELoss(),
        optimizer,
        epochs=4,
        scheduler=ReduceLROnPlateau(optimizer, factor=0.5, patience=0),
        validate=lambda: 1.0,
    )

    observe("rates after the resume", resumed.rates)
    assert history.learning_rates == [0.8, 0.8, 0.4, 0.2]  # the second epoch was the first bad one
    assert resumed.rates == [0.8, 0.4]
