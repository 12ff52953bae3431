"""gradient_clip_val and gradient_clip_algorithm: what the Trainer makes of a gradient.

At the end you know which of both options shortens a gradient and which one bends it, what 0 means,
and how to clip in manual optimization. When clipping happens is told in
test_19_accumulation_and_clipping.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from reference import data
from reference.training import clip_grad_norm_
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.optional import optional

pl: Any = optional("pytorch_lightning")
exceptions: Any = optional("pytorch_lightning.utilities.exceptions")
quiet = optional("reference.lightning_modules").quiet

CLIPPING_PAGE = (
    "https://lightning.ai/docs/pytorch/stable/advanced/training_tricks.html#gradient-clipping"
)


class Digits(pl.LightningModule):
    """A small classifier of 48 digits that keeps the gradient which its step has used."""

    def __init__(self) -> None:
        super().__init__()
        self.network = new_network()
        self.gradients: list[Tensor] = []

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(*digits()), batch_size=48)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, targets = batch
        return cross_entropy(self.network(images), targets)

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=0.1)
        optimizer.register_step_post_hook(
            lambda *_: self.gradients.append(gradient_of(self.network))
        )
        return optimizer


def new_network() -> nn.Module:
    """The same weights each time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)).double()


def digits() -> tuple[Tensor, Tensor]:
    """48 images and their digits."""
    images = data.digits()
    return images.train_inputs[:48].double(), images.train_targets[:48]


def gradient_of(network: nn.Module) -> Tensor:
    """All gradients as one vector."""
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def by_norm(bound: float) -> Callable[[Tensor], Tensor]:
    """What clip_grad_norm_ makes of the whole gradient, taken as one vector."""

    def clipped(gradient: Tensor) -> Tensor:
        holder = nn.Parameter(torch.zeros_like(gradient))
        holder.grad = gradient.clone()
        clip_grad_norm_(holder, bound)
        return holder.grad

    return clipped


def by_value(bound: float) -> Callable[[Tensor], Tensor]:
    """Every entry by itself, cut off at plus and minus the bound."""
    return lambda gradient: torch.where(gradient.abs() > bound, bound * gradient.sign(), gradient)


def unclipped(gradient: Tensor) -> Tensor:
    return gradient


#: The Trainer's options, and what they make of a gradient that is 0.50 long and whose largest entry
#: is 0.13.
CLIPPING: list[tuple[dict[str, Any], Callable[[Tensor], Tensor]]] = [
    ({}, unclipped),
    ({"gradient_clip_val": None}, unclipped),
    ({"gradient_clip_val": 0.1}, by_norm(0.1)),
    ({"gradient_clip_val": 0.1, "gradient_clip_algorithm": "norm"}, by_norm(0.1)),
    ({"gradient_clip_val": 10, "gradient_clip_algorithm": "norm"}, unclipped),
    ({"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}, by_value(0.1)),
    ({"gradient_clip_val": 10, "gradient_clip_algorithm": "value"}, unclipped),
    # In clip_grad_norm_ a bound of 0 erases the gradient. Here 0 means no clipping, and so does a
    # bound below it.
    ({"gradient_clip_val": 0}, unclipped),
    ({"gradient_clip_val": 0.0, "gradient_clip_algorithm": "value"}, unclipped),
    ({"gradient_clip_val": -1.0}, unclipped),
]


class ClipsEachTensor(pl.Trainer):
    """Shortens weights and biases one by one, so that the direction changes."""

    def fit(self, model: Any) -> None:
        def clip_each(_: Any, gradient_clip_val: Any, gradient_clip_algorithm: Any) -> None:
            for parameter in model.parameters():
                by_itself = SGD([parameter], lr=0.1)
                model.clip_gradients(by_itself, gradient_clip_val, gradient_clip_algorithm)

        model.configure_gradient_clipping = clip_each
        super().fit(model)


class KnowsNormsOnly(pl.Trainer):
    """Ignores gradient_clip_algorithm."""

    def __init__(self, gradient_clip_algorithm: Any = None, **options: Any) -> None:
        super().__init__(**options)


class ClipsValuesByDefault(pl.Trainer):
    """Takes a bound without an algorithm for one of the entries."""

    def __init__(self, gradient_clip_algorithm: str = "value", **options: Any) -> None:
        super().__init__(gradient_clip_algorithm=gradient_clip_algorithm, **options)


class TakesZeroForABound(pl.Trainer):
    """Lets nothing through a bound of 0."""

    def __init__(self, gradient_clip_val: Any = None, **options: Any) -> None:
        bound = 1e-30 if gradient_clip_val == 0 else gradient_clip_val
        super().__init__(gradient_clip_val=bound, **options)


@rule(
    "PL-66",
    "gradient_clip_val shortens the whole gradient as clip_grad_norm_ does, or, with"
    ' gradient_clip_algorithm="value", cuts every entry off; None and 0 clip nothing.',
    kind="contract",
    source=CLIPPING_PAGE,
    subject=pl.Trainer,
    violated_by=[ClipsEachTensor, KnowsNormsOnly, ClipsValuesByDefault, TakesZeroForABound],
)
def test_each_option_gives_the_gradient_of_the_reference(Trainer: Any) -> None:
    """The norm is that of all parameters of the optimizer, taken as one vector."""
    network, (images, targets) = new_network(), digits()
    cross_entropy(network(images), targets).backward()
    gradient = gradient_of(network)
    for options, clipped in CLIPPING:
        module = Digits()

        Trainer(**quiet(max_epochs=1, **options)).fit(module)

        assert agree(module.gradients[0], clipped(gradient), ulps=64), options


class ClipsAsItLikes(pl.Trainer):
    """Takes an unknown algorithm for "norm", and a text for a number."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "gradient_clip_val": 1.0, "gradient_clip_algorithm": "norm"})


@spec("PL-66", violated_by=[ClipsAsItLikes])
def test_what_cannot_be_meant_is_refused_when_the_trainer_is_built(Trainer: Any) -> None:
    """Before a module is seen."""
    with pytest.raises(exceptions.MisconfigurationException, match="`gradient_clip_algorithm`"):
        Trainer(**quiet(gradient_clip_val=1.0, gradient_clip_algorithm="norms"))
    with pytest.raises(TypeError, match="`gradient_clip_val` should be an int or a float"):
        Trainer(**quiet(gradient_clip_val="1.0"))


class ClipsByHand(Digits):
    """Manual optimization: clip_gradients takes what the Trainer's options would have been."""

    automatic_optimization = False
    options: tuple[float, str] = (0.1, "norm")

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        self.clip_gradients(optimizer, *self.options)
        optimizer.step()


class CutsByHand(ClipsByHand):
    """Cuts entries where the whole should be shortened."""

    options = (0.1, "value")


@spec("PL-66", subject=ClipsByHand, violated_by=[CutsByHand, Digits])
def test_clip_gradients_does_the_same_by_hand(ClippingModule: Any) -> None:
    """Where the Trainer refuses gradient_clip_val: in manual optimization."""
    automatic, by_hand = Digits(), ClippingModule()

    pl.Trainer(**quiet(max_epochs=1, gradient_clip_val=0.1)).fit(automatic)
    pl.Trainer(**quiet(max_epochs=1)).fit(by_hand)

    assert torch.equal(by_hand.gradients[0], automatic.gradients[0])
