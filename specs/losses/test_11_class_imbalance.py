"""Rare positives: pos_weight and oversampling, and what both do to probabilities.

At the end you know that pos_weight and oversampling are one thing in two forms, where the two part,
that both pay for their attention to the rare class with wrong probabilities, and how to repair
them.

The task is real: is this digit an 8? Of 1,437 training images 139 are. The images are averaged down
to 4 x 4 pixels, so that the classes overlap and a probability has something to say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Sampler, WeightedRandomSampler

from reference.losses import binary
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe
from specs.harness.strategies import dtypes, tensors
from specs.losses.eights import STEPS, eights, logits_after_training, predicted_share
from specs.losses.gradients import Loss, on, value_and_gradient

LOGITS_PAGE = "https://docs.pytorch.org/docs/stable/generated/torch.nn.BCEWithLogitsLoss.html"
DATA_PAGE = "https://docs.pytorch.org/docs/stable/data.html"

ON_LOGITS = [F.binary_cross_entropy_with_logits, binary.binary_cross_entropy_with_logits]

MakeSampler = Callable[..., Sampler[int]]

#: negatives / positives: with it, both classes weigh the same.
BALANCING_WEIGHT = 1298 / 139

BATCH_SIZE = 128


# ---------------------------------------------------------------------------------------------
# Calibration: do the announced probabilities come true?


class SamplesUniformly(Sampler[int]):
    """Takes the weights, and draws every sample with the same probability."""

    def __init__(
        self,
        weights: Sequence[float],
        num_samples: int,
        replacement: bool = True,  # noqa: ARG002
        generator: torch.Generator | None = None,
    ) -> None:
        self.drawn = torch.randint(len(weights), (num_samples,), generator=generator)

    def __iter__(self) -> Iterator[int]:
        return iter(self.drawn.tolist())


def drawn_by_weight(
    WeightedRandomSampler: MakeSampler, weights: Tensor, num_samples: int, seed: int
) -> Tensor:
    """The indices that the sampler draws."""
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor(list(WeightedRandomSampler(weights, num_samples, generator=generator)))


@rule(
    "CLAIM-13",
    "Balanced (stratified) batch sampling keeps predicted probabilities calibrated, pos_weight"
    " does not.",
    kind="claim",
    source=DATA_PAGE,
    subject=WeightedRandomSampler,
    violated_by=[SamplesUniformly],
    consequence="where 10 % are eights, a model trained on balanced batches announces over 25 %,"
    " and so does one trained with pos_weight",
    verdict="false",
)
def test_balanced_batches_more_than_double_the_announced_share(
    WeightedRandomSampler: MakeSampler, observe: Observe
) -> None:
    """Half of what the model sees are eights, and that is the world it learns to expect.

    Seen over six seeds of the sampler: 33 to 38 % are announced. (Stratified in the strict sense
    means that a batch keeps the shares of the classes, as uniform sampling does on average. What
    is judged here are balanced batches.)
    """
    images, targets = eights()[:2]
    weights = torch.where(targets == 1, BALANCING_WEIGHT, 1.0)
    drawn = drawn_by_weight(WeightedRandomSampler, weights, STEPS * BATCH_SIZE, seed=0)
    balanced = [(images[chosen], targets[chosen]) for chosen in drawn.split(BATCH_SIZE)]

    logits = logits_after_training(balanced, F.binary_cross_entropy_with_logits)

    true_share = eights().test_targets.mean().item()
    observe("shares", {"true": true_share, "announced": predicted_share(logits)})
    assert true_share == pytest.approx(0.0972, abs=0.0001)
    assert predicted_share(logits) > 0.25


def pos_weight_ignored(
    input: Tensor,
    target: Tensor,
    pos_weight: Tensor | None = None,  # noqa: ARG001
    **options: Any,
) -> Tensor:
    """Takes pos_weight, and weighs both classes alike."""
    return F.binary_cross_entropy_with_logits(input, target, **options)


@spec("CLAIM-13", subject=F.binary_cross_entropy_with_logits, violated_by=[pos_weight_ignored])
def test_pos_weight_more_than_doubles_the_announced_share_too(
    binary_cross_entropy_with_logits: Loss, observe: Observe
) -> None:
    """Without a weight, the same training announces the true share up to 0.02."""
    images, targets, _, test_targets = eights()
    whole_set = [(images, targets)] * STEPS
    weighted_loss = partial(
        binary_cross_entropy_with_logits, pos_weight=torch.tensor(BALANCING_WEIGHT)
    )

    plain = logits_after_training(whole_set, binary_cross_entropy_with_logits)
    weighted = logits_after_training(whole_set, weighted_loss)

    observe("shares", {"plain": predicted_share(plain), "weighted": predicted_share(weighted)})
    assert predicted_share(plain) == pytest.approx(test_targets.mean().item(), abs=0.02)
    assert predicted_share(weighted) > 0.25


def pos_weight_on_both_classes(
    input: Tensor, target: Tensor, pos_weight: Tensor | float = 1.0, **options: Any
) -> Tensor:
    """Multiplies the losses of the negatives by pos_weight as well."""
    return pos_weight * F.binary_cross_entropy_with_logits(input, target, **options)


@spec("CLAIM-13", subject=ON_LOGITS, violated_by=[pos_weight_ignored, pos_weight_on_both_classes])
def test_subtracting_the_logarithm_of_pos_weight_repairs_the_probabilities(
    binary_cross_entropy_with_logits: Loss,
) -> None:
    """A weight of w multiplies the odds p / (1 - p) by w, so it adds log(w) to the logit."""
    images, targets, _, test_targets = eights()
    weighted_loss = partial(
        binary_cross_entropy_with_logits, pos_weight=torch.tensor(BALANCING_WEIGHT)
    )

    logits = logits_after_training([(images, targets)] * STEPS, weighted_loss)

    repaired = predicted_share(logits - math.log(BALANCING_WEIGHT))
    assert repaired == pytest.approx(test_targets.mean().item(), abs=0.02)


# ---------------------------------------------------------------------------------------------
# Are pos_weight and oversampling one thing?


def divided_by_the_weights(
    input: Tensor, target: Tensor, pos_weight: Tensor, reduction: str = "mean"
) -> Tensor:
    """Divides by the sum of the weights, as a weighted mean does, even where a sum is asked for."""
    loss = F.binary_cross_entropy_with_logits(
        input, target, pos_weight=pos_weight, reduction=reduction
    )
    return loss / torch.where(target == 1, pos_weight, 1.0).mean()


@rule(
    "CLAIM-14",
    "pos_weight = negatives / positives is equivalent to oversampling the positives.",
    kind="claim",
    source=LOGITS_PAGE,
    subject=ON_LOGITS,
    violated_by=[pos_weight_ignored, pos_weight_on_both_classes, divided_by_the_weights],
    verdict="holds if losses are summed over the whole set, or on average over random batches up to"
    " a factor of the learning rate, and no layer looks across the batch",
)
@given(
    logits=tensors(dtype=dtypes(), shape=st.tuples(st.integers(1, 6)), low=-8.0, high=8.0),
    labels=st.lists(st.booleans(), min_size=6, max_size=6),
    times=st.integers(2, 5),
)
def test_summed_a_weight_of_w_equals_w_copies_of_every_positive(
    binary_cross_entropy_with_logits: Loss,
    device: torch.device,
    logits: Tensor,
    labels: list[bool],
    times: int,
) -> None:
    """Loss and gradient are the same, for any weight, and not only for negatives / positives."""
    targets = torch.tensor(labels[: len(logits)], dtype=logits.dtype)
    copies = torch.where(targets == 1, times, 1)

    loss, gradient = value_and_gradient(
        binary_cross_entropy_with_logits,
        on(device, logits),
        on(device, targets),
        pos_weight=on(device, torch.tensor(float(times), dtype=logits.dtype)),
        reduction="sum",
    )

    def loss_of_copies(logits: Tensor) -> Tensor:
        copied = logits.repeat_interleave(copies), targets.repeat_interleave(copies)
        return binary.binary_cross_entropy_with_logits(*copied, reduction="sum")

    expected_loss, expected_gradient = value_and_gradient(loss_of_copies, logits)
    assert agree(loss, expected_loss)
    assert agree(gradient, expected_gradient)


def gradients_at_the_start(images: Tensor, targets: Tensor) -> Tensor:
    """Gradient of each image's loss by the weights of a logistic regression that starts at 0.

    There every probability is 0.5, and the gradient is (0.5 - target) * image.
    """
    return (0.5 - targets).unsqueeze(1) * images


@spec("CLAIM-14", subject=WeightedRandomSampler, violated_by=[SamplesUniformly])
def test_averaged_pos_weight_pulls_harder_than_oversampling_by_a_known_factor(
    WeightedRandomSampler: MakeSampler,
) -> None:
    """The mean with pos_weight divides by N, though its weights sum to 2 * negatives.

    On the eights its gradient is 2 * 1298 / 1437 = 1.8 times that of balanced batches. Plain SGD
    feels that as another learning rate; Adam hardly feels it.
    """
    images, targets = eights()[:2]
    negatives = 1298
    weights = torch.where(targets == 1, BALANCING_WEIGHT, 1.0)
    drawn = drawn_by_weight(WeightedRandomSampler, weights, 20_000, seed=0)

    with_pos_weight = (weights.unsqueeze(1) * gradients_at_the_start(images, targets)).mean(dim=0)
    sampled = gradients_at_the_start(images[drawn], targets[drawn])

    expected = with_pos_weight * len(targets) / (2 * negatives)
    standard_error = sampled.std(dim=0) / math.sqrt(len(drawn))
    assert ((sampled.mean(dim=0) - expected).abs() < 5 * standard_error).all()


@spec("CLAIM-14", subject=WeightedRandomSampler, violated_by=[SamplesUniformly])
def test_in_batches_of_32_oversampling_is_less_noisy_than_pos_weight(
    WeightedRandomSampler: MakeSampler, observe: Observe
) -> None:
    """A plain batch holds 3 eights, and 0.903 ** 32 = 4 % hold none at all.

    There pos_weight has nothing to weigh. Noise is the spread of the batches' gradients over the
    length of their mean: seen over five seeds, 3.6 to 4.0 with pos_weight, and 2.1 to 2.4 with
    oversampling.
    """
    images, targets = eights()[:2]
    weights = torch.where(targets == 1, BALANCING_WEIGHT, 1.0)
    gradients = gradients_at_the_start(images, targets)

    def noise(batch_gradients: Tensor) -> float:
        return (batch_gradients.std(dim=0).norm() / batch_gradients.mean(dim=0).norm()).item()

    drawn = drawn_by_weight(WeightedRandomSampler, weights, 20_000, seed=0).view(-1, 32)
    shuffled = torch.randint(len(targets), drawn.shape, generator=torch.Generator().manual_seed(0))
    of_oversampling = noise(gradients[drawn].mean(dim=1))
    of_pos_weight = noise((weights.unsqueeze(1) * gradients)[shuffled].mean(dim=1))

    assert (targets[drawn].sum(dim=1) > 0).all()
    assert 0.01 < (targets[shuffled].sum(dim=1) == 0).float().mean() < 0.07
    observe("noise", {"oversampling": of_oversampling, "pos_weight": of_pos_weight})
    assert of_pos_weight > 1.4 * of_oversampling


class NormalisesByRunningStatistics(nn.BatchNorm1d):
    """Treats a training batch as in evaluation: each sample by itself."""

    def forward(self, input: Tensor) -> Tensor:
        self.eval()
        return super().forward(input)


@spec("CLAIM-14", subject=nn.BatchNorm1d, violated_by=[NormalisesByRunningStatistics])
def test_a_batch_normalisation_sees_the_copies_but_not_the_weights(
    BatchNorm1d: type[nn.Module],
) -> None:
    """Copies of the positives move the mean of the batch, and with it every activation."""
    images, targets = eights()[:2]
    copies = torch.where(targets == 1, 9, 1)  # 1298 / 139 = 9.3

    as_it_is = BatchNorm1d(16)(images)
    oversampled = BatchNorm1d(16)(images.repeat_interleave(copies, dim=0))

    # The first image is a negative: it is not copied, and yet it is normalised differently.
    assert targets[0] == 0
    assert (as_it_is[0] - oversampled[0]).abs().max() > 0.1
