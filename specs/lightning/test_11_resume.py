"""Going on where a training stopped.

At the end you know what fit(ckpt_path=...) restores, what it cannot restore, and what a checkpoint
from the middle of an epoch is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from reference import data
from specs.harness import rule, spec
from specs.harness.optional import optional

pl = optional("pytorch_lightning")
callbacks = optional("pytorch_lightning.callbacks")
modules = optional("reference.lightning_modules")

RESUMING = "https://lightning.ai/docs/pytorch/stable/common/checkpointing_basic.html"


def digits_for_training() -> TensorDataset:
    """1,200 images, which make four batches of 300."""
    digits = data.digits()
    return TensorDataset(digits.train_inputs[:1200], digits.train_targets[:1200])


class InOrder(modules.DigitsClassifier):
    """Sees the same four batches in the same order in every epoch; SGD with momentum, StepLR."""

    def train_dataloader(self) -> Any:
        return DataLoader(digits_for_training(), batch_size=300)


def fit(
    module: Any,
    *,
    epochs: int = -1,
    ckpt_path: str | None = None,
    make_trainer: Callable[..., Any] | None = None,
    **options: Any,
) -> Any:
    """Fit the module up to so many epochs, from the checkpoint if there is one; the Trainer."""
    make_trainer = make_trainer or pl.Trainer
    trainer = make_trainer(**modules.quiet(max_epochs=epochs, limit_val_batches=0, **options))
    trainer.fit(module, ckpt_path=ckpt_path)
    return trainer


def seeded(module: Callable[..., Any], seed: int = 0) -> Any:
    """The module with the weights that this seed draws."""
    torch.manual_seed(seed)
    return module(hidden=8)


def identical(one: Any, other: Any) -> bool:
    """Whether two nested values are the same, tensors bit for bit."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(identical(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(identical, one, other))
    return bool(one == other)


def distance(one: Any, other: Any) -> float:
    """The largest difference between a weight of one module and the same weight of the other."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((mine - yours).abs().max()) for mine, yours in pairs)


# At the end of an epoch


class LoadsTheWeights(pl.Trainer):
    """Takes the weights from the checkpoint, and begins with everything else."""

    def fit(self, module: Any, ckpt_path: str | None = None) -> None:
        if ckpt_path is not None:
            module.load_state_dict(torch.load(ckpt_path)["state_dict"])
        super().fit(module)


class ForgetsTheMomentum(pl.Trainer):
    """Restores everything but the momenta of the optimizer."""

    def fit(self, module: Any, ckpt_path: str | None = None) -> None:
        if ckpt_path is not None:
            checkpoint = torch.load(ckpt_path)
            checkpoint["optimizer_states"][0]["state"] = {}
            torch.save(checkpoint, ckpt_path)
        super().fit(module, ckpt_path=ckpt_path)


class ForgetsTheScheduler(pl.Trainer):
    """Restores everything, and lets the scheduler count its epochs anew."""

    def fit(self, module: Any, ckpt_path: str | None = None) -> None:
        if ckpt_path is not None:
            checkpoint = torch.load(ckpt_path)
            checkpoint["lr_schedulers"][0]["last_epoch"] = 0
            torch.save(checkpoint, ckpt_path)
        super().fit(module, ckpt_path=ckpt_path)


@rule(
    "PL-06",
    "Resume with fit(module, ckpt_path=...): weights, optimizer, schedulers and counters are"
    " restored, and the training goes on as if it had not stopped, bit for bit, as long as the"
    " same batches come.",
    kind="practice",
    source=RESUMING,
    subject=pl.Trainer,
    violated_by=[LoadsTheWeights, ForgetsTheMomentum, ForgetsTheScheduler],
    consequence="With load_from_checkpoint and a new fit, the rate is 0.2 again where the schedule"
    " is at 0.02. After two such epochs on digits, weights differ from those of the uninterrupted"
    " training by more than 0.15.",
)
def test_two_epochs_and_two_more_are_four(Trainer: Callable[..., Any]) -> None:
    """Both trainings end with the same checkpoint: weights, momenta, schedule, all counters."""
    whole = fit(seeded(InOrder), epochs=4, make_trainer=Trainer)
    whole.save_checkpoint("whole.ckpt")

    fit(seeded(InOrder), epochs=2, make_trainer=Trainer).save_checkpoint("half.ckpt")
    resumed = fit(seeded(InOrder), epochs=4, ckpt_path="half.ckpt", make_trainer=Trainer)
    resumed.save_checkpoint("resumed.ckpt")

    assert resumed.global_step == whole.global_step == 4 * 4
    assert resumed.current_epoch == whole.current_epoch == 4
    assert identical(torch.load("resumed.ckpt"), torch.load("whole.ckpt"))


@spec("PL-06", violated_by=[LoadsTheWeights])
def test_weights_alone_lead_elsewhere(
    Trainer: Callable[..., Any], observe: Callable[[str, Any], None]
) -> None:
    """For five seeds the largest difference was 0.23 to 0.32; 0.15 is asked for."""
    whole, half, resumed = (seeded(InOrder) for _ in range(3))
    fit(whole, epochs=4)
    fit(half, epochs=2).save_checkpoint("half.ckpt")

    fit(resumed, epochs=4, ckpt_path="half.ckpt", make_trainer=Trainer)
    assert distance(resumed, whole) == 0

    loaded = InOrder.load_from_checkpoint("half.ckpt")
    fit(loaded, epochs=2)
    observe("difference with the weights alone", distance(loaded, whole))
    assert distance(loaded, whole) > 0.15


# Which batches come


class ShuffledByEpoch(InOrder):
    """Shuffles by a sampler whose order follows from its seed and from the number of the epoch.

    A Trainer tells this number to every sampler that has a method set_epoch.
    """

    def train_dataloader(self) -> Any:
        images = digits_for_training()
        order: DistributedSampler[Any] = DistributedSampler(
            images, num_replicas=1, rank=0, shuffle=True, seed=0
        )
        return DataLoader(images, batch_size=300, sampler=order)


class ShuffledByTheGlobalGenerator(InOrder):
    """Draws each order from the global random numbers, which a checkpoint does not contain."""

    def train_dataloader(self) -> Any:
        return DataLoader(digits_for_training(), batch_size=300, shuffle=True)


@spec("PL-06", subject=ShuffledByEpoch, violated_by=[ShuffledByTheGlobalGenerator])
def test_shuffled_batches_come_again_if_their_order_follows_from_the_epoch(
    ShuffledByEpoch: Callable[..., Any],
) -> None:
    """With shuffle=True, a program that starts anew draws the order of the first epoch third."""
    whole, half, resumed = (seeded(ShuffledByEpoch) for _ in range(3))

    torch.manual_seed(1)
    trainer = fit(whole, epochs=4)
    torch.manual_seed(1)
    fit(half, epochs=2).save_checkpoint("half.ckpt")
    torch.manual_seed(1)
    fit(resumed, epochs=4, ckpt_path="half.ckpt")

    assert distance(resumed, whole) == 0
    assert trainer.train_dataloader.sampler.epoch == 3  # each epoch had an order of its own


# In the middle of an epoch


class ResumableLoader:
    """The four batches in order; the state says how many of them were given in this epoch."""

    def __init__(self) -> None:
        images, targets = digits_for_training().tensors
        self.batches = list(zip(images.split(300), targets.split(300), strict=True))
        self.given = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.batches[self.given :]:
            self.given = (self.given + 1) % len(self)
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.given = state["given"]


class InOrderFromTheMiddle(InOrder):
    """The same batches, from a loader that can be resumed."""

    def train_dataloader(self) -> Any:
        return ResumableLoader()


class SavesAfterSixSteps(callbacks.Callback):
    """Writes a checkpoint after the first epoch and half of the second."""

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 6:
            trainer.save_checkpoint("middle.ckpt")


class NotesBatches(callbacks.Callback):
    """Notes epoch, batch_idx, and which of the four batches came, 0 to 3."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, int]] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        images, _ = batch
        first_images = digits_for_training().tensors[0][::300]
        number = int((first_images == images[0]).all(dim=1).nonzero())
        self.seen.append((trainer.current_epoch, batch_idx, number))


RESUMED_IN_THE_MIDDLE = "You're resuming from a checkpoint that ended before the epoch ended"


@spec("PL-06", subject=InOrderFromTheMiddle, violated_by=[InOrder])
@pytest.mark.filterwarnings(f"ignore:{RESUMED_IN_THE_MIDDLE}")
def test_an_epoch_goes_on_in_the_middle_if_the_loader_has_a_state(
    InOrderFromTheMiddle: Callable[..., Any],
) -> None:
    """A loader with state_dict() and load_state_dict() is saved and restored with the loops."""
    whole, resumed = seeded(InOrderFromTheMiddle), seeded(InOrderFromTheMiddle)

    fit(whole, epochs=4, callbacks=[SavesAfterSixSteps()])
    rest = fit(resumed, epochs=4, ckpt_path="middle.ckpt")

    assert rest.global_step == 4 * 4
    assert distance(resumed, whole) == 0


@spec("PL-06", subject=InOrder, violated_by=[InOrderFromTheMiddle])
def test_another_loader_gives_the_first_batches_again_and_the_last_ones_never(
    InOrder: Callable[..., Any], observe: Callable[[str, Any], None]
) -> None:
    """batch_idx goes on with 2 and 3, but a new loader begins with batch 0, and Lightning warns.

    So batches 0 and 1 are trained on twice in this epoch, batches 2 and 3 not at all.
    """
    notes = NotesBatches()
    fit(seeded(InOrder), epochs=2, callbacks=[SavesAfterSixSteps()])

    with pytest.warns(UserWarning, match=RESUMED_IN_THE_MIDDLE):
        fit(seeded(InOrder), epochs=2, ckpt_path="middle.ckpt", callbacks=[notes])
    observe("epoch, batch_idx and batch", notes.seen)
    assert notes.seen == [(1, 2, 0), (1, 3, 1)]


class SavesAnUnfinishedEpoch(pl.Trainer):
    """Counts an epoch as done only when its last batch was trained on."""

    def save_checkpoint(self, filepath: str) -> None:
        super().save_checkpoint(filepath)
        checkpoint = torch.load(filepath)
        epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
        epochs["completed"] = epochs["processed"] = self.global_step // 4
        torch.save(checkpoint, filepath)


@spec("PL-06", subject=pl.Trainer, violated_by=[SavesAnUnfinishedEpoch])
def test_an_epoch_that_max_steps_cut_short_is_not_taken_up_again(
    Trainer: Callable[..., Any], observe: Callable[[str, Any], None]
) -> None:
    """fit had ended when the file was written: half of the second epoch counts as all of it.

    The resumed training begins with the third one, and makes 14 steps in 4 epochs, not 16.
    """
    fit(seeded(InOrder), max_steps=6, make_trainer=Trainer).save_checkpoint("middle.ckpt")

    notes = NotesBatches()
    rest = fit(seeded(InOrder), epochs=4, ckpt_path="middle.ckpt", callbacks=[notes])
    observe("steps", rest.global_step)
    assert notes.seen[0] == (2, 0, 0)
    assert rest.global_step == 6 + 2 * 4
