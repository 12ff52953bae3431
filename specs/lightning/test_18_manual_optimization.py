"""Manual optimization: the training step does what the Trainer otherwise does.

At the end you know what `automatic_optimization = False` leaves to you, how to train two networks
against each other, what toggle_optimizer is for, and what the Trainer refuses or counts
differently then.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, TensorDataset

from reference import data
from specs.harness import rule, spec
from specs.harness.observations import Observe
from specs.harness.optional import optional

pl: Any = optional("pytorch_lightning")
exceptions: Any = optional("pytorch_lightning.utilities.exceptions")
quiet = optional("reference.lightning_modules").quiet

PAGE = "https://lightning.ai/docs/pytorch/stable/model/manual_optimization.html"

# --- Two networks against each other --------------------------------------------------------------


def digits_with_noise() -> DataLoader[Any]:
    """128 digits, in batches of 32, and for each of them the noise that a forgery is made of."""
    images = data.digits().train_inputs[:128]
    noise = torch.randn(128, 8, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(images, noise), batch_size=32)


def new_networks(seed: int) -> tuple[nn.Sequential, nn.Sequential]:
    """A forger that makes an image out of 8 numbers, and a critic with one logit: is it real?"""
    torch.manual_seed(seed)
    forger = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 64), nn.Sigmoid())
    critic = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 1))
    return forger, critic


class Adversaries(pl.LightningModule):
    """A forger of digits and a critic, each with an optimizer and a scheduler of its own."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.forger, self.critic = new_networks(seed)

    def train_dataloader(self) -> DataLoader[Any]:
        return digits_with_noise()

    def configure_optimizers(self) -> Any:
        for_critic = SGD(self.critic.parameters(), lr=0.1, momentum=0.5)
        for_forger = Adam(self.forger.parameters(), lr=0.01)
        per_epoch = StepLR(for_critic, step_size=1, gamma=0.5)
        per_batch = ExponentialLR(for_forger, gamma=0.9)
        return [for_critic, for_forger], [per_epoch, per_batch]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        images, noise = batch
        for_critic, for_forger = self.optimizers()

        self.toggle_optimizer(for_critic)  # the forger gets no gradient of this loss
        real, forged = self.critic(images), self.critic(self.forger(noise))
        self.update(for_critic, softplus(-real).mean() + softplus(forged).mean())
        self.untoggle_optimizer(for_critic)

        self.toggle_optimizer(for_forger)  # and the critic none of this one
        self.update(for_forger, softplus(-self.critic(self.forger(noise))).mean())
        self.untoggle_optimizer(for_forger)

    def update(self, optimizer: Any, loss: Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)  # in place of loss.backward()
        optimizer.step()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        _, per_batch = self.lr_schedulers()
        per_batch.step()

    def on_train_epoch_end(self) -> None:
        per_epoch, _ = self.lr_schedulers()
        per_epoch.step()


def plain_loop(seed: int, epochs: int) -> list[Tensor]:
    """The weights of both networks after the same training in plain PyTorch."""
    forger, critic = new_networks(seed)
    for_critic = SGD(critic.parameters(), lr=0.1, momentum=0.5)
    for_forger = Adam(forger.parameters(), lr=0.01)
    per_epoch = StepLR(for_critic, step_size=1, gamma=0.5)
    per_batch = ExponentialLR(for_forger, gamma=0.9)
    for _ in range(epochs):
        for images, noise in digits_with_noise():
            for_critic.zero_grad()
            real, forged = critic(images), critic(forger(noise).detach())
            (softplus(-real).mean() + softplus(forged).mean()).backward()
            for_critic.step()

            for_forger.zero_grad()
            softplus(-critic(forger(noise))).mean().backward()
            for_forger.step()

            per_batch.step()
        per_epoch.step()
    return [parameter.detach() for parameter in (*forger.parameters(), *critic.parameters())]


class LeavesSchedulersToTheTrainer(Adversaries):
    """Returns its schedulers and never steps them."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None: ...

    def on_train_epoch_end(self) -> None: ...


class StepsOneOptimizer(Adversaries):
    """Lets the forger stand still."""

    def update(self, optimizer: Any, loss: Tensor) -> None:
        if not isinstance(optimizer, Adam):
            super().update(optimizer, loss)


class ZeroesNothing(Adversaries):
    """Adds the gradients of all batches up."""

    def update(self, optimizer: Any, loss: Tensor) -> None:
        self.manual_backward(loss)
        optimizer.step()


@rule(
    "PL-16",
    "With automatic_optimization = False, zero, differentiate and step every optimizer yourself,"
    " and step every scheduler; several optimizers require it.",
    kind="practice",
    source=PAGE,
    subject=Adversaries,
    violated_by=[LeavesSchedulersToTheTrainer, StepsOneOptimizer, ZeroesNothing],
    consequence="a scheduler that is left to the Trainer never steps: the rate stays 0.1 in every"
    " epoch, and the networks are other ones",
)
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler")
def test_two_optimizers_train_as_in_the_plain_loop(
    AdversarialModule: Any, observe: Observe
) -> None:
    """Bit for bit, for two seeds: the Trainer adds nothing to the training step."""
    for seed in range(2):
        module = AdversarialModule(seed)

        pl.Trainer(**quiet(max_epochs=2)).fit(module)

        weights = [*module.forger.parameters(), *module.critic.parameters()]
        in_plain_torch = plain_loop(seed, epochs=2)
        assert all(torch.equal(w, p) for w, p in zip(weights, in_plain_torch, strict=True))
    observe("first forged pixel", module.forger(torch.zeros(8))[0].item())


# --- What the Trainer does not do -----------------------------------------------------------------


class ByHand(pl.LightningModule):
    """One weight whose gradient is 3, stepped by hand; its scheduler is nobody's business."""

    automatic_optimization = False

    def __init__(self, keys: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.keys = keys or {}
        self.rates: list[float] = []

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(torch.full((4, 1), 3.0))

    def scheduler(self, optimizer: Optimizer) -> Any:
        return ExponentialLR(optimizer, gamma=0.5)

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=0.1)
        scheduler = {"scheduler": self.scheduler(optimizer), **self.keys}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        optimizer = self.optimizers()
        self.rates.append(optimizer.param_groups[0]["lr"])
        optimizer.zero_grad()
        self.manual_backward((self.weight * batch).sum())
        optimizer.step()


class StepsSchedulersAnyway(pl.Trainer):
    """Steps schedulers after each epoch, whoever steps the optimizers."""

    def __init__(self, **options: Any) -> None:
        class Steps(pl.Callback):
            def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
                module.lr_schedulers().step()

        super().__init__(callbacks=[Steps()], **options)


@spec("PL-16", subject=pl.Trainer, violated_by=[StepsSchedulersAnyway])
def test_the_trainer_leaves_the_rate_alone_whatever_the_keys_say(Trainer: Any) -> None:
    """interval and frequency are read by LearningRateMonitor only."""
    for keys in ({}, {"interval": "epoch"}, {"interval": "step", "frequency": 2}):
        module = ByHand(keys)

        Trainer(**quiet(max_epochs=3)).fit(module)

        assert module.rates == [0.1] * 3 * 4


class WatchesAPlateau(ByHand):
    """Gives the plateau its value itself, at the end of each epoch; no epoch is better."""

    def scheduler(self, optimizer: Optimizer) -> Any:
        return ReduceLROnPlateau(optimizer, factor=0.5, patience=0)

    def on_train_epoch_end(self) -> None:
        self.lr_schedulers().step(1.0)


class IgnoresAMonitorInSilence(pl.Trainer):
    """Does not say that nobody reads the key."""

    def fit(self, model: Any) -> None:
        model.keys = {}
        super().fit(model)


@spec("PL-16", subject=pl.Trainer, violated_by=[IgnoresAMonitorInSilence])
def test_a_plateau_needs_no_monitor_here(Trainer: Any) -> None:
    """You pass the value. A monitor, or strict, is ignored with a warning."""

    def warned(keys: dict[str, Any]) -> int:
        module = WatchesAPlateau(keys)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            Trainer(**quiet(max_epochs=3)).fit(module)
        assert module.rates == [0.1] * 4 + [0.1] * 4 + [0.05] * 4
        return sum(str(w.message).startswith("The lr scheduler dict contain") for w in caught)

    assert warned({}) == 0
    assert warned({"monitor": "val_loss"}) == 1
    assert warned({"strict": False}) == 1


# --- What the Trainer refuses ---------------------------------------------------------------------


class Automatic(Adversaries):
    """The same two optimizers, left to the Trainer."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.automatic_optimization = True


class UsesTheFirstOptimizer(pl.Trainer):
    """Trains with one optimizer and drops the others."""

    def fit(self, model: Any) -> None:
        model.automatic_optimization = False
        super().fit(model)


@spec("PL-16", subject=pl.Trainer, violated_by=[UsesTheFirstOptimizer])
def test_several_optimizers_are_refused_otherwise(Trainer: Any) -> None:
    """The Trainer cannot know which loss is whose."""
    module = Automatic(seed=0)
    before = [parameter.clone() for parameter in module.parameters()]

    with pytest.raises(RuntimeError, match="Training with multiple optimizers is only supported"):
        Trainer(**quiet(max_epochs=1)).fit(module)

    now = module.parameters()
    assert all(torch.equal(old, new) for old, new in zip(before, now, strict=True))


class DropsTheOptions(pl.Trainer):
    """Trains without what it cannot do."""

    def __init__(
        self, gradient_clip_val: Any = None, accumulate_grad_batches: int = 1, **options: Any
    ) -> None:
        super().__init__(**options)


@spec("PL-16", subject=pl.Trainer, violated_by=[DropsTheOptions])
def test_clipping_and_accumulating_are_refused(Trainer: Any) -> None:
    """They happen between backward and step, which are yours now. How to clip by hand is told in
    test_20_gradient_clipping.py."""
    for option in ({"gradient_clip_val": 1.0}, {"accumulate_grad_batches": 2}):
        module = ByHand()

        with pytest.raises(exceptions.MisconfigurationException) as caught:
            Trainer(**quiet(max_epochs=1, **option)).fit(module)

        assert "is not supported for manual optimization" in str(caught.value)
        assert module.rates == []


# --- What the Trainer counts ----------------------------------------------------------------------


class CountsBatches(pl.Trainer):
    """Ends after max_steps batches, however many optimizers step in each."""

    def __init__(self, max_steps: int, **options: Any) -> None:
        super().__init__(max_steps=2 * max_steps, **options)


@spec("PL-16", subject=pl.Trainer, violated_by=[CountsBatches])
def test_max_steps_counts_the_steps_of_every_optimizer(Trainer: Any) -> None:
    """global_step, too: two optimizers, six steps, three batches."""

    class CountsItsBatches(Adversaries):
        batches = 0

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.batches += 1

    module = CountsItsBatches(seed=0)
    trainer = Trainer(**quiet(max_steps=6))

    trainer.fit(module)

    assert (module.batches, trainer.global_step) == (3, 6)


# --- toggle_optimizer -----------------------------------------------------------------------------


class TogglesNothing(pl.LightningModule):
    """Lets every parameter collect gradients."""

    def toggle_optimizer(self, optimizer: Any) -> None: ...

    def untoggle_optimizer(self, optimizer: Any) -> None: ...


class ThawsEverything(pl.LightningModule):
    """Switches the gradients of every parameter on afterwards, also of a frozen one."""

    def untoggle_optimizer(self, optimizer: Any) -> None:
        self.requires_grad_(True)


@spec("PL-16", subject=pl.LightningModule, violated_by=[TogglesNothing, ThawsEverything])
def test_toggling_keeps_gradients_from_the_other_optimizers(LightningModule: Any) -> None:
    """In between only the parameters of that optimizer ask for a gradient, and of these only those
    that did before. Afterwards all is as it was."""

    class Three(LightningModule):
        automatic_optimization = False

        def __init__(self) -> None:
            super().__init__()
            self.own: Any = nn.Parameter(torch.ones(1))
            self.others: Any = nn.Parameter(torch.ones(1))
            self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)

        def configure_optimizers(self) -> Any:
            return SGD([self.own, self.frozen], lr=0.1), SGD([self.others], lr=0.1)

        def asking(self) -> list[bool]:
            return [p.requires_grad for p in (self.own, self.others, self.frozen)]

        def training_step(self, batch: Tensor, batch_idx: int) -> None:
            optimizer, _ = self.optimizers()
            before = self.asking()
            self.toggle_optimizer(optimizer)
            between = self.asking()
            self.manual_backward(self.own * self.others * self.frozen)
            self.untoggle_optimizer(optimizer)
            self.seen = (before, between, self.asking())

    module = Three()
    pl.Trainer(**quiet(max_steps=1, max_epochs=1)).fit(module, DataLoader([1.0]))

    assert module.seen == ([True, True, False], [True, False, False], [True, True, False])
    assert module.own.grad.item() == 1.0
    assert module.others.grad is None
