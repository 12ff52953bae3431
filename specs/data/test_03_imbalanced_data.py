"""Rare classes and weighted sampling: what is in an epoch, and what the model then believes.

At the end you know how many samples a weighted epoch misses, why weights do nothing good without
replacement, and how to turn the logits of a model that was trained on balanced batches back into
probabilities for the world as it is.

The task: is this digit an 8? Of 1,437 training images 139 are, the others are 1,298. The images
have 4 x 4 pixels, so that the classes overlap. What pos_weight, oversampling and the focal loss do
to a loss is shown in specs/losses/test_11_class_imbalance.py and test_12_focal_loss.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Sampler, WeightedRandomSampler

from reference import loading
from reference.samplers import balancing_weights, corrected_for_prior
from reference.training import train_one_epoch
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe
from specs.losses.eights import eights

SAMPLER = "https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.WeightedRandomSampler"
LOGIT_ADJUSTMENT = "https://arxiv.org/abs/2007.07314"

MakeSampler = Callable[..., Any]
Correct = Callable[[Tensor, Tensor, Tensor], Tensor]

NEGATIVES, POSITIVES = 1298, 139
SAMPLES = NEGATIVES + POSITIVES


def seeded(seed: int) -> Generator:
    """A source of random numbers of its own."""
    return Generator().manual_seed(seed)


@lru_cache
def is_eight() -> tuple[Tensor, Tensor]:
    """1 for an 8 and 0 for any other digit, int64: for the training and for the test images."""
    return eights().train_targets.long(), eights().test_targets.long()


# --- What is in an epoch --------------------------------------------------------------------------


class WeightsOfClasses(Sampler[int]):
    """Draws a class by the weights of its samples, then walks through the class in turn."""

    def __init__(self, weights: Tensor, num_samples: int, generator: Generator) -> None:
        rare = weights == weights.max()
        common = int((~rare).sum())
        of_class = torch.multinomial(torch.ones(2), num_samples, True, generator=generator)
        turns = [(~rare).nonzero().flatten().roll(common // 2), rare.nonzero().flatten()]
        self.drawn = [int(turns[c][i % len(turns[c])]) for i, c in enumerate(of_class.tolist())]

    def __iter__(self) -> Iterator[int]:
        return iter(self.drawn)


class EachOnceFirst(WeightedRandomSampler):
    """Starts an epoch with every sample once, and fills up with rare ones."""

    def __iter__(self) -> Iterator[int]:
        draws = list(super().__iter__())
        return iter(list(range(len(draws) // 2)) + draws[len(draws) // 2 :])


class IgnoresWeights(WeightedRandomSampler):
    """Draws every sample with the same probability."""

    def __iter__(self) -> Iterator[int]:
        self.weights = torch.ones_like(self.weights)
        return super().__iter__()


@rule(
    "DATA-21",
    "WeightedRandomSampler draws with replacement: of n draws, an index with the share s of all"
    " weight comes n * s times on average, and is missed with probability (1 - s) ** n.",
    kind="contract",
    source=SAMPLER,
    subject=[WeightedRandomSampler, loading.WeightedRandomSampler],
    violated_by=[IgnoresWeights, EachOnceFirst, WeightsOfClasses],
    consequence="an epoch of 1,437 balanced draws shows each 8 five times, and misses 57 % of the"
    " other digits; with equal weights it would miss 37 % of all",
)
def test_a_balanced_epoch_misses_more_than_half_of_the_common_class(
    WeightedRandomSampler: MakeSampler, observe: Observe
) -> None:
    """Equal weights miss (1 - 1/n) ** n of the samples, which is about exp(-1) = 37 %."""
    targets = is_eight()[0]
    drawn = list(WeightedRandomSampler(balancing_weights(targets), SAMPLES, generator=seeded(0)))
    times = torch.bincount(torch.tensor(drawn), minlength=SAMPLES)

    # Half of all weight lies on either class, so a single sample has half of 1 / its size.
    share_of_a_negative, share_of_a_positive = 1 / (2 * NEGATIVES), 1 / (2 * POSITIVES)
    missed = (times[targets == 0] == 0).double().mean().item()
    expected = (1 - share_of_a_negative) ** SAMPLES
    observe("missed", missed)
    assert expected == pytest.approx(0.575, abs=0.001)
    # The standard deviation of that share is below sqrt(0.575 * 0.425 / 1298) = 0.014.
    assert abs(missed - expected) < 5 * 0.014

    # A positive is expected 1437 / 278 = 5.2 times. The counts spread as those of dice do.
    of_positives = times[targets == 1].double()
    mean = SAMPLES * share_of_a_positive
    assert abs(of_positives.mean().item() - mean) < 5 * math.sqrt(mean / POSITIVES)
    variance = mean * (1 - share_of_a_positive)
    assert variance / 1.8 < of_positives.var().item() < variance * 1.8


class RoundsToWholeEpochs(WeightedRandomSampler):
    """Makes an epoch as long as the data set, whatever it is told."""

    def __init__(self, weights: Any, num_samples: int, **options: Any) -> None:
        super().__init__(weights, len(weights) + 0 * num_samples, **options)


@spec("DATA-21", violated_by=[RoundsToWholeEpochs])
def test_the_length_of_an_epoch_is_for_you_to_choose(WeightedRandomSampler: MakeSampler) -> None:
    """2 * 1298 draws hold about as many different negatives as a plain epoch with replacement."""
    for length in (1, 10, 2 * NEGATIVES):
        sampler = WeightedRandomSampler([1.0, 0.0, 3.0], length, generator=seeded(0))
        drawn = list(sampler)
        assert len(sampler) == len(drawn) == length
        assert 1 not in drawn  # a weight of 0 is never drawn
    # Three of four are the last one. The standard deviation of their number is 22.
    assert abs(drawn.count(2) - 0.75 * len(drawn)) < 5 * 22


class ReplacesAnyway(WeightedRandomSampler):
    """Puts every sample back, replacement or not."""

    def __init__(
        self, weights: Any, num_samples: int, replacement: bool = True, generator: Any = None
    ) -> None:
        super().__init__(weights, num_samples, replacement or True, generator)


@spec("DATA-21", violated_by=[ReplacesAnyway, IgnoresWeights])
def test_without_replacement_weights_change_the_order_and_not_the_shares(
    WeightedRandomSampler: MakeSampler, observe: Observe
) -> None:
    """A whole epoch then holds each sample once: 8s stay as rare as they were. But they come first,
    and the model ends the epoch with batches that hold none.

    Eight seeds: 45 to 64 of the first 128 are 8s, and none of the last 512 is.
    """
    targets = is_eight()[0]
    weights = balancing_weights(targets)
    order = list(WeightedRandomSampler(weights, SAMPLES, replacement=False, generator=seeded(0)))

    assert sorted(order) == list(range(SAMPLES))
    first, last = targets[order[:128]].sum().item(), targets[order[-512:]].sum().item()
    observe("8s in the first 128", first)
    assert first > 3 * 128 * POSITIVES / SAMPLES
    assert last == 0


class WrapsAround(WeightedRandomSampler):
    """Begins a second round without replacement when the first one is over."""

    def __iter__(self) -> Iterator[int]:
        whole, rest = divmod(self.num_samples, len(self.weights))
        return iter([*range(len(self.weights))] * whole + [0] * rest)


@spec("DATA-21", subject=WeightedRandomSampler, violated_by=[WrapsAround])
def test_no_more_can_be_drawn_without_replacement_than_there_are(
    WeightedRandomSampler: MakeSampler, observe: Observe
) -> None:
    """It is found out when the epoch begins, not when the sampler is made."""
    sampler = WeightedRandomSampler([1.0, 1.0, 1.0], num_samples=4, replacement=False)
    with pytest.raises(RuntimeError, match="without replacement") as refusal:
        list(sampler)
    observe("four of three", refusal.value)


# --- What the model then believes -----------------------------------------------------------------


@lru_cache
def logits_for_test_images(weighted: bool, replacement: bool = True) -> Tensor:
    """A logistic regression after eight epochs drawn by WeightedRandomSampler, on the test images:
    the logits for "another digit" and for "8"."""
    images, test_images = eights().train_inputs, eights().test_inputs
    targets = is_eight()[0]
    weights = balancing_weights(targets) if weighted else torch.ones(SAMPLES)
    torch.manual_seed(0)
    model = nn.Linear(16, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    sampler = WeightedRandomSampler(weights.tolist(), SAMPLES, replacement, seeded(0))
    for _ in range(8):
        batches = torch.tensor(list(sampler)).split(128)
        train_one_epoch(model, [(images[i], targets[i]) for i in batches], cross_entropy, optimizer)
    with torch.no_grad():
        logits: Tensor = model(test_images)
    return logits


def calibration_error(probabilities: Tensor, came_true: Tensor) -> float:
    """How far what was announced is from what came true, on average over samples.

    Samples are put into ten bins by their probability; in each the mean probability is compared
    with the share that came true.
    """
    bins = (probabilities * 10).long().clamp(max=9)
    gaps = [
        (probabilities[bins == one].sum() - came_true[bins == one].sum()).abs() for one in range(10)
    ]
    return (torch.stack(gaps).sum() / len(probabilities)).item()


def uncorrected(logits: Tensor, seen: Tensor, true: Tensor) -> Tensor:  # noqa: ARG001
    """Leaves the logits as they are."""
    return logits


def the_wrong_way(logits: Tensor, seen: Tensor, true: Tensor) -> Tensor:
    """Subtracts what it should add."""
    return corrected_for_prior(logits, true, seen)


def shares_for_their_logarithms(logits: Tensor, seen: Tensor, true: Tensor) -> Tensor:
    """Adds the ratio of the shares, not its logarithm."""
    return logits + true / seen


def by_the_true_shares_only(logits: Tensor, seen: Tensor, true: Tensor) -> Tensor:  # noqa: ARG001
    """Supposes that all classes were seen equally often."""
    return logits + torch.log(true * len(true))


@rule(
    "DATA-22",
    "A model learns the shares of the classes as its batches have them: add log(true share / share"
    " seen) to each logit before you read probabilities.",
    kind="practice",
    source=LOGIT_ADJUSTMENT,
    subject=corrected_for_prior,
    violated_by=[uncorrected, the_wrong_way, shares_for_their_logarithms, by_the_true_shares_only],
    consequence="8s, balanced batches: announced probabilities are wrong by 0.15 to 0.30 on"
    " average (five seeds), corrected by 0.05 to 0.07, as those of plain training",
)
def test_corrected_logits_are_those_of_bayes_rule_with_the_true_shares(
    corrected_for_prior: Correct,
) -> None:
    """Three classes whose inputs are normal around -2, 0 and 3: there p(class | x) is known.

    Bayes: p(class | x) = share * density(x) / sum of the same over all classes.
    """
    x = torch.linspace(-5, 6, 45, dtype=torch.float64).unsqueeze(1)
    density = torch.exp(-((x - torch.tensor([-2.0, 0.0, 3.0])) ** 2) / 2)
    seen = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    for true in ([0.90, 0.09, 0.01], [0.2, 0.3, 0.5], [1 / 3, 1 / 3, 1 / 3]):
        true_shares = torch.tensor(true, dtype=torch.float64)
        # Logits are known up to a constant, so any of them will do.
        logits = torch.log(seen * density) + 7.0

        probabilities = corrected_for_prior(logits, seen, true_shares).softmax(dim=1)

        bayes = true_shares * density
        assert agree(probabilities, bayes / bayes.sum(dim=1, keepdim=True), ulps=64)


@spec("DATA-22", violated_by=[by_the_true_shares_only])
def test_nothing_changes_for_a_model_that_saw_the_true_shares(corrected_for_prior: Correct) -> None:
    """Plain training needs no correction: in what it announces, 8s are as rare as they are."""
    targets, test_targets = is_eight()
    shares = torch.bincount(targets) / SAMPLES
    logits = logits_for_test_images(weighted=False)

    probabilities = corrected_for_prior(logits, shares, shares).softmax(dim=1)

    assert agree(probabilities, logits.softmax(dim=1).double())
    assert calibration_error(probabilities[:, 1], test_targets) < 0.1


@spec("DATA-22", violated_by=[uncorrected, the_wrong_way])
def test_the_announced_probabilities_come_true_again(
    corrected_for_prior: Correct, observe: Observe
) -> None:
    """The loss on the test images falls, too: from 0.37 or more to 0.28 or less (five seeds)."""
    targets, test_targets = is_eight()
    balanced = torch.tensor([0.5, 0.5])
    logits = logits_for_test_images(weighted=True)

    corrected = corrected_for_prior(logits, balanced, torch.bincount(targets) / SAMPLES)

    before = calibration_error(logits.softmax(dim=1)[:, 1], test_targets)
    after = calibration_error(corrected.softmax(dim=1)[:, 1], test_targets)
    observe("calibration error", {"before": before, "after": after})
    assert before > 0.12
    assert after < 0.1
    loss, corrected_loss = (cross_entropy(z, test_targets).item() for z in (logits, corrected))
    assert corrected_loss < 0.32 < 0.35 < loss


@spec("DATA-22", violated_by=[uncorrected, the_wrong_way])
def test_the_threshold_that_finds_the_rare_class_moves_along(corrected_for_prior: Correct) -> None:
    """Balancing finds most 8s at a threshold of 1/2; plain training does at one of 139 / 1437, and
    at 1/2 hardly any. They are two ways to ask for the same trade, and only one says the truth."""
    targets, test_targets = is_eight()
    shares = torch.bincount(targets) / SAMPLES

    def found(probabilities: Tensor, threshold: float) -> float:
        return (probabilities[test_targets == 1, 1] > threshold).double().mean().item()

    plain = logits_for_test_images(weighted=False).softmax(dim=1)
    balanced = logits_for_test_images(weighted=True)
    assert found(plain, 0.5) < 0.2
    assert found(plain, POSITIVES / SAMPLES) > 0.6
    assert found(balanced.softmax(dim=1), 0.5) > 0.6

    corrected = corrected_for_prior(balanced, torch.tensor([0.5, 0.5]), shares).softmax(dim=1)
    assert found(corrected, 0.5) < 0.2
    # At 139 / 1437 the corrected odds are those that were 1 before: the same images are found.
    assert found(corrected, POSITIVES / SAMPLES) == found(balanced.softmax(dim=1), 0.5)
