"""Accumulation and early stopping: what a Trainer makes of them, in lines of the plain loop.

At the end you know by what accumulated losses are divided, where that is not one large batch, and
that ReduceLROnPlateau and early stopping see the same values as in a loop of your own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset

from reference import early_stopping, training
from reference.data import batches, digits
from reference.evaluation import evaluate
from reference.models.mlp import MLP
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe
from specs.harness.optional import optional

pl = optional("pytorch_lightning")
callbacks = optional("pytorch_lightning.callbacks")
modules = optional("reference.lightning_modules")
loop = optional("reference.lightning_loop")

TRAINER_PAGE = "https://lightning.ai/docs/pytorch/stable/common/trainer.html"

Made = Callable[..., Any]


def some_digits(first: int = 0, last: int = 150) -> TensorDataset:
    """Images of the training part with their targets: in batches of 32, four and one of 22."""
    return TensorDataset(digits().train_inputs[first:last], digits().train_targets[first:last])


def equal_bit_for_bit(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models of the same make have the same parameters and buffers."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(mine, yours) for mine, yours in pairs)


def by_hand_from_seed_3() -> tuple[MLP, SGD]:
    """The network and the optimizer of a DigitsClassifier that is made after that seed."""
    torch.manual_seed(3)
    model = MLP((64, 32, 10))
    return model, SGD(model.parameters(), lr=0.2, momentum=0.9)


def by_trainer_from_seed_3(Trainer: Made, images: TensorDataset, **options: Any) -> nn.Module:
    """The network of a DigitsClassifier after two epochs with these options of the Trainer."""
    torch.manual_seed(3)
    module = modules.DigitsClassifier(lr=0.2)
    silent = modules.quiet(max_epochs=2, limit_val_batches=0, **options)
    Trainer(**silent).fit(module, DataLoader(images, 32))
    return module.network


# --- Accumulation ---------------------------------------------------------------------------------


def windows(images: TensorDataset, size: int) -> list[list[tuple[Tensor, Tensor]]]:
    """The batches of 32 in groups of `size`; the last group has what is left."""
    inputs, targets = images.tensors
    cut = batches(inputs, targets, 32)
    return [cut[start : start + size] for start in range(0, len(cut), size)]


class SumsTheWindow(pl.Trainer):
    """Divides nothing: a step that is as many times too long as the window has batches."""

    def fit(self, module: Any, loader: Any) -> None:
        step = module.training_step
        module.training_step = lambda *of: step(*of) * self.accumulate_grad_batches
        super().fit(module, loader)


class DividesByWhatIsThere(pl.Trainer):
    """Divides the last batch, which is a window by itself, by one."""

    def fit(self, module: Any, loader: Any) -> None:
        step, size = module.training_step, self.accumulate_grad_batches
        module.training_step = lambda batch, batch_idx: (
            step(batch, batch_idx) * (size if batch_idx == 4 else 1)
        )
        super().fit(module, loader)


class LeavesTheLastWindowOut(pl.Trainer):
    """Takes no step for a window that is not full."""

    def __init__(self, **options: Any) -> None:
        super().__init__(limit_train_batches=4, **options)


@rule(
    "PL-23",
    "accumulate_grad_batches=k divides every loss by k and steps after k batches and at the end of"
    " the epoch: one large batch if all windows are full and all batches equal.",
    kind="contract",
    source=TRAINER_PAGE + "#accumulate-grad-batches",
    subject=pl.Trainer,
    violated_by=[SumsTheWindow, DividesByWhatIsThere, LeavesTheLastWindowOut],
    consequence="Five batches in windows of four: the fifth moves the weights by a quarter of what"
    " a step of its own would.",
)
def test_every_loss_is_divided_by_the_size_of_a_full_window(Trainer: Made) -> None:
    """Two, two and one batch: the last one is divided by 2 as well."""
    by_trainer = by_trainer_from_seed_3(Trainer, some_digits(), accumulate_grad_batches=2)

    by_hand, optimizer = by_hand_from_seed_3()
    for _ in range(2):
        for window in windows(some_digits(), size=2):
            optimizer.zero_grad()
            for inputs, targets in window:
                (cross_entropy(by_hand(inputs), targets) / 2).backward()
            optimizer.step()

    assert equal_bit_for_bit(by_trainer, by_hand)


@spec("PL-23", violated_by=[SumsTheWindow])
def test_full_windows_of_equal_batches_are_one_large_batch(Trainer: Made) -> None:
    """Weighted by their share of the samples, 32 / 128, as OPT-09 asks, they are the same: a
    quarter has no rounding."""
    by_trainer = by_trainer_from_seed_3(Trainer, some_digits(0, 256), accumulate_grad_batches=4)

    by_hand, optimizer = by_hand_from_seed_3()
    for _ in range(2):
        for window in windows(some_digits(0, 256), size=4):
            optimizer.zero_grad()
            training.accumulate_gradients(by_hand, window, cross_entropy)
            optimizer.step()

    assert equal_bit_for_bit(by_trainer, by_hand)


class OneWeight(pl.LightningModule):
    """A weight that starts at 0. The loss is its product with the batch: a gradient of 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.weight * batch).sum()

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.1)


@spec("PL-23", violated_by=[SumsTheWindow, DividesByWhatIsThere, LeavesTheLastWindowOut])
def test_the_last_window_takes_a_shorter_step(Trainer: Made, observe: Observe) -> None:
    """Four batches make a mean gradient of 1, the fifth 1/4. Where that matters: drop_last, or a
    number of batches that k divides."""
    module = OneWeight()
    options = modules.quiet(max_epochs=1, accumulate_grad_batches=4)
    Trainer(**options).fit(module, DataLoader(torch.ones(5, 1), batch_size=1))

    observe("weight", module.weight.item())
    assert agree(module.weight, [-(0.1 * 1 + 0.1 * 1 / 4)])


# --- Early stopping and ReduceLROnPlateau ---------------------------------------------------------


class ReducesOnPlateau(modules.DigitsClassifier):
    """A rate that is too high for it; divided by ten after two epochs without improvement."""

    plan: dict[str, Any] = {"monitor": "val_loss"}  # noqa: RUF012 (nobody changes it)

    def on_fit_start(self) -> None:
        self.rates: list[float] = []

    def on_train_epoch_start(self) -> None:
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=0.5, momentum=0.9)
        plateau = ReduceLROnPlateau(optimizer, factor=0.1, patience=1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, **self.plan}}


class WatchesTheTrainingLoss(ReducesOnPlateau):
    """Monitors a loss that goes on falling."""

    plan = {"monitor": "train_loss"}  # noqa: RUF012


class JudgesEverySecondEpoch(ReducesOnPlateau):
    """Lets the scheduler see every other validation."""

    plan = {"monitor": "val_loss", "frequency": 2}  # noqa: RUF012


class BeginsAgainOnPlateau(ReducesOnPlateau):
    """Forgets its momentum whenever the rate has changed."""

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        if self.rates[-1] != self.rates[max(0, len(self.rates) - 2)]:
            self.trainer.optimizers[0].state.clear()


@rule(
    "PL-25",
    "A Trainer's ReduceLROnPlateau and EarlyStopping judge the validation after each epoch as the"
    " plain loop does: same epochs, same rates, same weights.",
    kind="contract",
    source="https://lightning.ai/docs/pytorch/stable/common/early_stopping.html",
    subject=ReducesOnPlateau,
    violated_by=[WatchesTheTrainingLoss, JudgesEverySecondEpoch, BeginsAgainOnPlateau],
)
def test_both_reduce_and_stop_after_the_same_epochs(
    ReducesOnPlateau: Made, observe: Observe
) -> None:
    """The validation loss is a mean over the samples in both, up to the rounding of its sum."""
    held_out = DataLoader(some_digits(300, 500), 128)

    torch.manual_seed(0)
    module = ReducesOnPlateau()
    stopping = callbacks.EarlyStopping("val_loss", patience=3)
    trainer = pl.Trainer(**modules.quiet(max_epochs=9, callbacks=[stopping]))
    trainer.fit(module, DataLoader(some_digits(), 32, shuffle=True), held_out)

    torch.manual_seed(0)
    by_hand = MLP((64, 32, 10))
    optimizer = SGD(by_hand.parameters(), lr=0.5, momentum=0.9)
    history = training.fit(
        by_hand,
        DataLoader(some_digits(), 32, shuffle=True),
        cross_entropy,
        optimizer,
        epochs=9,
        scheduler=ReduceLROnPlateau(optimizer, factor=0.1, patience=1),
        validate=lambda: evaluate(by_hand, held_out, cross_entropy),
        early_stopping=early_stopping.EarlyStopping(patience=3),
    )

    observe("rate of each epoch", module.rates)
    assert module.rates == history.learning_rates
    assert module.rates[0] > module.rates[-1]  # it was reduced,
    assert len(module.rates) < 9  # and stopped
    assert agree(stopping.best_score, min(history.validation_losses))
    assert equal_bit_for_bit(module.network, by_hand)


def asks_before_the_epoch_counts(*loop_of: Any, early_stopping: Any, **options: Any) -> Any:
    """Stops one epoch later."""
    early_stopping.patience += 1
    return training.fit(*loop_of, early_stopping=early_stopping, **options)


def never_reduces(*loop_of: Any, scheduler: Any, **options: Any) -> Any:
    """Forgets the scheduler."""
    del scheduler
    return training.fit(*loop_of, **options)


@spec("PL-25", subject=loop.fit, violated_by=[asks_before_the_epoch_counts, never_reduces])
def test_the_history_of_both_loops_is_the_same(fit: Made) -> None:
    """Two bad epochs after 4 and after 2, and between them two that are better by 1e-9 only."""
    values = [5.0, 4.0, 4.0, 4.5, 3.0, 3.0 - 1e-9, 3.0 - 2e-9, 2.0, 2.0, 2.0, 2.0, 2.0]
    histories = []
    for one_of_both in (fit, training.fit):
        model, optimizer = by_hand_from_seed_3()
        plateau = ReduceLROnPlateau(optimizer, factor=0.5, patience=1, threshold=0.0)
        history = one_of_both(
            model,
            windows(some_digits(0, 64), size=2)[0],
            cross_entropy,
            optimizer,
            epochs=20,
            scheduler=plateau,
            validate=iter(values).__next__,
            early_stopping=early_stopping.EarlyStopping(patience=3),
        )
        histories.append(history)
    of_the_trainer, of_the_plain_loop = histories

    assert of_the_trainer == of_the_plain_loop
    assert of_the_trainer.learning_rates == [0.2] * 4 + [0.1] * 6 + [0.05]


class LogsDoubles(OneWeight):
    """Gets better by 1e-9 in each epoch, and logs that as a float64 tensor."""

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        value = torch.tensor(1 - 1e-9 * self.current_epoch, dtype=torch.float64)
        self.log("value", value, batch_size=1)


class LogsFloats(OneWeight):
    """Logs a float of Python, of which a Trainer makes a float32 tensor."""

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("value", 1 - 1e-9 * self.current_epoch, batch_size=1)


@spec("PL-25", subject=LogsDoubles, violated_by=[LogsFloats])
def test_a_float_that_is_logged_is_rounded_to_float32(LogsDoubles: Made) -> None:
    """Below 1 the next number of float32 is 1 - 6e-8: steps of 1e-9 are none. The plain loop
    watches the floats themselves."""
    stopping = callbacks.EarlyStopping("value", patience=2)
    trainer = pl.Trainer(**modules.quiet(max_epochs=5, callbacks=[stopping]))
    one_batch: Any = DataLoader(torch.ones(1, 1))
    trainer.fit(LogsDoubles(), one_batch, one_batch)

    of_the_plain_loop = early_stopping.EarlyStopping(patience=2)
    stops = [of_the_plain_loop.should_stop(1 - 1e-9 * epoch) for epoch in range(5)]

    assert stops == [False] * 5
    assert trainer.current_epoch == 5
