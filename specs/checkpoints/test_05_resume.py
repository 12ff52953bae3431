"""Going on in the middle of an epoch, as if the run had never stopped.

At the end you know what a run must save beside its weights: which batches are done, the scale of
mixed precision, and the random states of Python and NumPy, which torch does not know about.

Read before: lesson 12 (CKPT-05: model, optimizer, scheduler and torch's random states).
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.functional import cross_entropy
from torch.optim import Adam
from torch.optim.lr_scheduler import LinearLR
from torch.utils.data import DataLoader, TensorDataset

from reference.checkpoint import load_checkpoint, save_checkpoint
from reference.data import digits
from reference.resume import RandomStates, ResumableBatches, resumable_loader
from specs.harness import raising, rule, spec
from specs.harness.observations import Observe

RECIPE = "https://docs.pytorch.org/tutorials/recipes/recipes/saving_and_loading_a_general_checkpoint.html"

Function = Callable[..., Any]

#: 360 images in batches of 60 are 6 steps an epoch: step 8 is the second step of the second epoch.
STEPS, INTERRUPTED_AFTER = 15, 8


class Run:
    """A training in which everything has a state. Some parts can be exchanged for wrong ones."""

    def __init__(
        self,
        seed: int,
        batches: Function = ResumableBatches,
        states: Function = RandomStates,
        scaler: Function = GradScaler,
        loader: Function = resumable_loader,
    ) -> None:
        for seed_a_generator in (torch.manual_seed, random.seed, np.random.seed):
            seed_a_generator(seed)
        self.first = nn.Linear(64, 32)
        self.model = nn.Sequential(self.first, nn.Dropout(0.2), nn.ReLU(), nn.Linear(32, 10))
        self.optimizer = Adam(self.model.parameters(), lr=0.01)
        self.scheduler = LinearLR(self.optimizer, end_factor=0.1, total_iters=STEPS)
        self.batches, self.states = batches(360, batch_size=60, seed=seed), states()
        # A scale so high that it overflows again and again, as happens in float16.
        self.scaler = scaler("cpu", init_scale=2.0**127, growth_interval=2)
        self.generator = torch.Generator()
        images = TensorDataset(digits().test_inputs, digits().test_targets)
        self.loader = loader(images, self.batches)

    def train(self, steps: int) -> None:
        """Train for that many steps, wherever in an epoch they begin and end."""
        batches = (batch for _ in range(1 + steps) for batch in self.loader)  # epoch after epoch
        for inputs, targets in islice(batches, steps):
            self.optimizer.zero_grad()
            logits = self.model(self.augmented(inputs))
            loss = cross_entropy(logits, targets, reduction="sum")
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)  # skipped where the gradient is infinite
            self.scaler.update()
            self.scheduler.step()
            self.batches.step()

    def augmented(self, images: Tensor) -> Tensor:
        """Sometimes upside down, by Python's generator, and noisy, by NumPy's."""
        if random.random() < 0.5:
            images = images.flip(dims=[1])
        return images + torch.from_numpy(np.random.normal(0.0, 0.1, images.shape)).float()

    def parts(self) -> dict[str, Any]:
        """What has a state."""
        names = ("model", "optimizer", "scheduler", "scaler", "batches", "states")
        return {name: getattr(self, name) for name in names}


def resumed_and_uninterrupted(path: Path, **exchanged: Any) -> tuple[Tensor, Tensor]:
    """The first layer's weights after 8 + 7 steps in two programs, and after 15 in one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the scaler skips steps, and the scheduler wonders: AMP-03
        uninterrupted = Run(seed=0, **exchanged)
        uninterrupted.train(STEPS)

        interrupted = Run(seed=0, **exchanged)
        interrupted.train(INTERRUPTED_AFTER)
        save_checkpoint(path, epoch=1, generator=interrupted.generator, **interrupted.parts())

        resumed = Run(seed=1, **exchanged)  # another seed: all has to come from the file
        load_checkpoint(path, generator=resumed.generator, **resumed.parts())
        resumed.train(STEPS - INTERRUPTED_AFTER)
    return resumed.first.weight.detach(), uninterrupted.first.weight.detach()


class BeginsTheEpochAgain(ResumableBatches):
    """Remembers the epoch, and trains on its first batches twice."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"trained": 0})


class ShufflesAnew(ResumableBatches):
    """Remembers how many batches are done, and not which."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"seed": self.seed})


@rule(
    "CKPT-13",
    "To resume inside an epoch, save how its order was drawn and how many of its batches are done,"
    " and give the loader a generator of its own.",
    kind="practice",
    source="https://docs.pytorch.org/docs/stable/data.html#data-loading-order-and-sampler",
    subject=ResumableBatches,
    violated_by=[BeginsTheEpochAgain, ShufflesAnew],
    consequence="digits, stopped after 8 of 15 steps: weights are off by 0.007 to 0.010 if the"
    " epoch begins again or has another order, by 0.004 to 0.007 if the loader draws from the"
    " global generator (five seeds)",
)
def test_eight_steps_and_seven_more_are_fifteen(
    ResumableBatches: Function, tmp_path: Path, observe: Observe
) -> None:
    """Bit for bit: model, optimizer, schedule, scale, Dropout, augmentation and batches."""
    resumed, uninterrupted = resumed_and_uninterrupted(tmp_path / "run", batches=ResumableBatches)
    observe("weights", uninterrupted)
    assert torch.equal(resumed, uninterrupted)


class CountsWhatItHandsOut(ResumableBatches):
    """Takes a batch for trained on when the loader asks for it."""

    def __iter__(self) -> Iterator[list[int]]:
        for batch in list(super().__iter__()):
            super().step()
            yield batch

    def step(self) -> None:
        pass


class OneOrderForAll(ResumableBatches):
    """Shuffles once, and has the same batches in every epoch."""

    def __iter__(self) -> Iterator[list[int]]:
        self.seed -= self.epoch
        yield from list(super().__iter__())
        self.seed += self.epoch


@spec("CKPT-13", violated_by=[CountsWhatItHandsOut, OneOrderForAll])
def test_the_position_is_where_training_is(ResumableBatches: Function) -> None:
    """A loader with workers takes batches ahead of the training; here it takes all of them."""
    batches = ResumableBatches(10, batch_size=4, seed=3)
    first_epoch = list(batches)
    assert [len(batch) for batch in first_epoch] == [4, 4, 2]
    assert sorted(index for batch in first_epoch for index in batch) == list(range(10))

    batches.step()
    state = batches.state_dict()
    resumed = ResumableBatches(10, batch_size=4, seed=0)
    resumed.load_state_dict(state)
    assert list(resumed) == first_epoch[1:]
    assert len(resumed) == 2

    resumed.step()
    resumed.step()
    second_epoch = list(resumed)
    assert len(resumed) == len(second_epoch) == 3
    assert sorted(index for batch in second_epoch for index in batch) == list(range(10))
    assert second_epoch != first_epoch
    assert list(ResumableBatches(10, batch_size=4, seed=3)) == first_epoch
    assert list(ResumableBatches(10, batch_size=4, seed=4)) != first_epoch


def draws_from_the_global_stream(dataset: Any, batches: Any) -> DataLoader[Any]:
    """Gives the loader no generator of its own."""
    return DataLoader(dataset, batch_sampler=batches)


@spec("CKPT-13", subject=resumable_loader, violated_by=[draws_from_the_global_stream])
def test_a_loader_that_is_iterated_once_more_does_not_move_dropout(
    resumable_loader: Function, tmp_path: Path
) -> None:
    """A loader draws a number each time that it is iterated, and resuming iterates it again."""
    resumed, uninterrupted = resumed_and_uninterrupted(tmp_path / "run", loader=resumable_loader)
    assert torch.equal(resumed, uninterrupted)


# --- The scale of mixed precision -----------------------------------------------------------------


class ForgetsItsScale(GradScaler):
    """Begins again with the scale that it was made with."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"scale": self.get_scale()})


class ForgetsItsCount(GradScaler):
    """Begins again to count the steps without overflow."""

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"_growth_tracker": 0}


class ForgetsItsSettings(GradScaler):
    """Keeps the factors and the interval that it was made with."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        changing = {name: state_dict[name] for name in ("scale", "_growth_tracker")}
        super().load_state_dict(self.state_dict() | changing)


@rule(
    "CKPT-14",
    "A GradScaler has a state to save: its scale, how many steps went without overflow, and its"
    " settings.",
    kind="contract",
    source="https://docs.pytorch.org/docs/stable/notes/amp_examples.html",
    subject=GradScaler,
    violated_by=[ForgetsItsScale, ForgetsItsCount, ForgetsItsSettings],
)
def test_the_scale_goes_on_as_it_would_have(GradScaler: Function) -> None:
    """Every third step without overflow doubles the scale; an overflow halves it."""
    gradients = [1.0, 1.0, 1.0, 1.0, 1.0, float("inf"), 1.0, 1.0, 1.0]
    scales = [8, 8, 16, 16, 16, 8, 8, 8, 16]

    def scales_after(scaler: Any, gradients: list[float]) -> list[float]:
        weight = nn.Parameter(torch.zeros(()))
        optimizer, seen = torch.optim.SGD([weight], lr=1.0), []
        for gradient in gradients:
            weight.grad = scaler.scale(torch.tensor(gradient))
            scaler.step(optimizer)
            scaler.update()
            seen.append(scaler.get_scale())
        return seen

    for done in range(1, len(gradients)):
        interrupted = GradScaler("cpu", init_scale=8.0, growth_interval=3)
        assert scales_after(interrupted, gradients[:done]) == scales[:done]

        resumed = GradScaler("cpu")  # 65536 at first, and 2000 steps before it grows
        resumed.load_state_dict(interrupted.state_dict())
        assert scales_after(resumed, gradients[done:]) == scales[done:]


@spec("CKPT-14", violated_by=[ForgetsItsScale])
def test_a_resumed_run_skips_the_steps_that_it_would_have_skipped(
    GradScaler: Function, tmp_path: Path
) -> None:
    """The scale is a power of two: only by the steps that it skips does it reach the weights."""
    resumed, uninterrupted = resumed_and_uninterrupted(tmp_path / "run.pt", scaler=GradScaler)
    assert torch.equal(resumed, uninterrupted)


# --- Random states that torch does not know -------------------------------------------------------


class WithoutPython(RandomStates):
    """Knows the state of NumPy only."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"python": random.getstate()})


class WithoutNumPy(RandomStates):
    """Knows the state of Python only."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"numpy": np.random.get_state()})


class WithAnArray(RandomStates):
    """Saves NumPy's state as NumPy gives it."""

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"numpy": np.random.get_state()}


@rule(
    "CKPT-15",
    "If the training draws from `random` or NumPy, save their states too: torch's are not theirs.",
    kind="practice",
    source="https://docs.pytorch.org/docs/stable/notes/randomness.html",
    subject=RandomStates,
    violated_by=[WithoutPython, WithoutNumPy],
    consequence="digits, flipped by Python's generator and made noisy by NumPy's: weights are off"
    " by 0.002 to 0.008 without the first state, by 0.006 to 0.011 without the second (five seeds)",
)
def test_the_augmentation_goes_on_too(RandomStates: Function, tmp_path: Path) -> None:
    """Images upside down and noise are those of the uninterrupted run."""
    resumed, uninterrupted = resumed_and_uninterrupted(tmp_path / "run.pt", states=RandomStates)
    assert torch.equal(resumed, uninterrupted)


@spec("CKPT-15", violated_by=[raising(Exception, WithAnArray), WithoutPython, WithoutNumPy])
def test_both_streams_go_on_after_a_file_that_loads_by_default(
    RandomStates: Function, tmp_path: Path
) -> None:
    """NumPy keeps half a pair of normal numbers back: that is part of the state as well."""
    random.seed(3)
    np.random.seed(3)
    np.random.normal()  # draws two, and keeps one
    torch.save(RandomStates().state_dict(), tmp_path / "states.pt")
    expected = [random.random(), np.random.normal(), np.random.random()]

    random.seed(4)
    np.random.seed(4)
    RandomStates().load_state_dict(torch.load(tmp_path / "states.pt"))

    assert [random.random(), np.random.normal(), np.random.random()] == expected
