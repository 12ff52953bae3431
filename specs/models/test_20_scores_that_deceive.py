"""Scores of anomalies that look perfect, or useless, because of the company that they came in.

At the end you know why a sample's score and the threshold must not depend on what else is judged:
what the mean of a batch ranks, what BatchNorm in training mode measures, and what a quantile of
the test set finds. Read before: test_18_anomaly_scores.py (scores and thresholds), and
test_19_anomaly_detection.py (the area under the ROC curve: 1 is perfect, 1/2 is chance).
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from reference.models import anomaly, vae
from reference.models.anomaly import anomaly_scores, anomaly_threshold, roc_auc
from reference.models.vae import VAE
from specs.harness import rule, spec
from specs.harness.observations import Observe
from specs.models.detectors import (
    model_of_tumours,
    model_without_3,
    share_above,
    tumours,
    without_3,
)

MEAN_REDUCTION = "https://docs.pytorch.org/docs/stable/generated/torch.nn.SmoothL1Loss.html"
BATCH_NORM = "https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm1d.html"
CALIBRATION_PAPER = "https://arxiv.org/abs/2104.08279"

Scores = Callable[[nn.Module, Tensor], Tensor]
Threshold = Callable[[nn.Module, Tensor, float], float]


def scores_by_batch(scores: Scores, model: nn.Module, inputs: Tensor) -> Tensor:
    """The scores of a stream that comes in batches of 17, (samples,)."""
    return torch.cat([scores(model, batch) for batch in inputs.split(17)])


# ---------------------------------------------------------------------------------------------
# The mean of a batch


def mean_of_the_batch(model: nn.Module, inputs: Tensor) -> Tensor:
    """Gives every sample the loss of its batch, as reduction="mean" computes it."""
    scores = anomaly.anomaly_scores(model, inputs)
    return scores.mean().expand_as(scores)


def worst_of_the_batch(model: nn.Module, inputs: Tensor) -> Tensor:
    """Gives every sample the highest score of its batch."""
    scores = anomaly.anomaly_scores(model, inputs)
    return scores.max().expand_as(scores)


def relative_to_the_batch(model: nn.Module, inputs: Tensor) -> Tensor:
    """Divides by the mean score of the batch: in a batch of anomalies none stands out."""
    scores = anomaly.anomaly_scores(model, inputs)
    return scores / scores.mean()


@rule(
    "AD-05",
    "A sample's score is its own: the mean loss of a batch ranks batches, and ranks samples only if"
    " somebody has sorted them.",
    kind="practice",
    source=MEAN_REDUCTION,
    consequence="tumours in batches of 17: by the batch's mean loss the area under the ROC curve is"
    " 0.998 if they come sorted by diagnosis and 0.51 to 0.58 if shuffled; by each one's own score"
    " it is 0.90 to 0.95 either way (five seeds)",
    subject=anomaly.anomaly_scores,
    violated_by=[mean_of_the_batch, worst_of_the_batch, relative_to_the_batch],
)
def test_the_order_in_which_samples_come_does_not_matter(
    anomaly_scores: Scores, observe: Observe
) -> None:
    """A loader of a test set does not shuffle, and files are often sorted by class."""
    model, split = model_of_tumours(), tumours()
    inputs = torch.cat([split.normal, split.anomalies])
    is_malignant = torch.arange(len(inputs)) >= len(split.normal)
    shuffled = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))

    of_sorted = scores_by_batch(anomaly_scores, model, inputs)
    of_shuffled = scores_by_batch(anomaly_scores, model, inputs[shuffled])

    area = roc_auc(of_sorted, is_malignant)
    observe("area under the ROC curve", round(area, 2))
    # Seven digits: a matrix product sums in another order for another row of the batch.
    assert torch.allclose(of_shuffled, of_sorted[shuffled], rtol=1e-4)
    assert roc_auc(of_shuffled, is_malignant[shuffled]) == pytest.approx(area, abs=1e-3)
    assert 0.85 < area < 0.97


@spec("AD-05", violated_by=[mean_of_the_batch, worst_of_the_batch])
def test_one_anomaly_is_found_among_sixteen_normal_samples(anomaly_scores: Scores) -> None:
    """The mean of the batch sounds an alarm for all seventeen, or for none."""
    model, split = model_of_tumours(), tumours()
    normal = split.normal[:16]
    threshold = anomaly_threshold(model, split.held_out, 0.95)
    found = 0
    for malignant in split.anomalies[:50]:
        scores = anomaly_scores(model, torch.cat([normal, malignant.unsqueeze(0)]))
        alarms = scores > threshold
        found += int(alarms[16])
        assert alarms[:16].sum() <= 4

    # Found alone, as above: about six in ten.
    assert found == (anomaly.anomaly_scores(model, split.anomalies[:50]) > threshold).sum()
    assert found > 20


# ---------------------------------------------------------------------------------------------
# Training mode


class WithBatchNorm(vae.VAE):
    """A VAE whose encoder normalises its hidden units."""

    def __init__(self, features: int, hidden: int, latents: int) -> None:
        super().__init__(features, hidden, latents)
        normalised = nn.BatchNorm1d(hidden)
        self.hidden = nn.Sequential(nn.Linear(features, hidden), normalised, nn.ReLU())


def in_training_mode(model: nn.Module, inputs: Tensor) -> Tensor:
    """Forgets eval(): a sample of the latent Gaussian is decoded, BatchNorm looks at the batch."""
    model.train()
    with torch.no_grad():
        distances = (model(inputs).reconstruction - inputs).abs().double()
    return torch.where(distances < 1, distances**2 / 2, distances - 0.5).mean(dim=1)


@rule(
    "AD-06",
    "Score in eval mode: in training mode BatchNorm measures a sample by those it came with, and"
    " learns from them, and a VAE draws its score anew at every call.",
    kind="practice",
    source=BATCH_NORM,
    consequence="tumours, a VAE with BatchNorm: of the benign ones judged with malignant ones 88 to"
    " 97% are called malignant, not 1 to 8%; judged apart, both kinds get an area under the ROC"
    " curve of 1.00 that is not theirs, and 0.90 to 0.94 in eval mode (five seeds)",
    subject=anomaly.anomaly_scores,
    violated_by=[in_training_mode],
)
def test_a_benign_tumour_among_malignant_ones_stays_benign(
    anomaly_scores: Scores, observe: Observe
) -> None:
    """In eval mode BatchNorm uses what it has learned from the fitted samples."""
    split = tumours()
    model = copy.deepcopy(model_of_tumours(WithBatchNorm))
    threshold = anomaly_threshold(model, split.held_out, 0.95)

    together = anomaly_scores(model, torch.cat([split.normal, split.anomalies]))

    false_alarms = share_above(threshold, together[: len(split.normal)])
    observe("false alarms", round(false_alarms, 2))
    assert false_alarms < 0.2


@spec("AD-06", violated_by=[in_training_mode])
def test_judging_changes_nothing_in_the_model(anomaly_scores: Scores) -> None:
    """Running statistics are updated by every batch in training mode, without an optimizer."""
    model = copy.deepcopy(model_of_tumours(WithBatchNorm))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    anomaly_scores(model, tumours().anomalies)

    changed = [
        name for name, tensor in model.state_dict().items() if (tensor != before[name]).any()
    ]
    assert changed == []


@spec("AD-06", violated_by=[in_training_mode])
def test_an_image_gets_the_same_verdict_twice(anomaly_scores: Scores) -> None:
    """The noise hardly moves the area under the ROC curve, by 0.01; it moves single verdicts.

    Images of digits, 3 is the anomaly: in training mode 4 to 9% of the verdicts differ from one
    call to the next (five seeds).
    """
    model, split = model_without_3(VAE, kld_beta=0.01), without_3()
    threshold = anomaly_threshold(model, split.held_out, 0.95)
    images = torch.cat([split.normal, split.anomalies])

    first = anomaly_scores(model, images) > threshold
    second = anomaly_scores(model, images) > threshold

    assert torch.equal(first, second)


# ---------------------------------------------------------------------------------------------
# The threshold


def quantile_of_what_is_judged(model: nn.Module, held_out: Tensor, quantile: float) -> float:
    """Takes the quantile of the test set's own scores."""
    del held_out
    split = tumours()
    return anomaly.anomaly_threshold(model, torch.cat([split.normal, split.anomalies]), quantile)


def quantile_of_both(model: nn.Module, held_out: Tensor, quantile: float) -> float:
    """Adds the test set to the samples that were held out, to have more of them."""
    everything = torch.cat([held_out, tumours().normal, tumours().anomalies])
    return anomaly.anomaly_threshold(model, everything, quantile)


@rule(
    "AD-07",
    "Choose the threshold before you see what is judged: a quantile of the test set's scores"
    " sounds its share of alarms whatever the test set holds.",
    kind="practice",
    source=CALIBRATION_PAPER,
    consequence="tumours, of which 73% are malignant: the 95% quantile of the test set's scores"
    " finds 7% of the malignant ones, that of held-out benign ones 59 to 76% (five seeds)",
    subject=anomaly.anomaly_threshold,
    violated_by=[quantile_of_what_is_judged, quantile_of_both],
)
def test_a_threshold_from_the_test_set_hides_what_it_is_to_find(
    anomaly_threshold: Threshold, observe: Observe
) -> None:
    """Where most samples are anomalies, an anomaly is nothing unusual."""
    model, split = model_of_tumours(), tumours()

    threshold = anomaly_threshold(model, split.held_out, 0.95)

    false_alarms = share_above(threshold, anomaly_scores(model, split.normal))
    found = share_above(threshold, anomaly_scores(model, split.anomalies))
    observe("malignant tumours found", round(found, 2))
    # Promised are 5% false alarms. Five seeds: 3 to 8%, and 59 to 76% found.
    assert false_alarms < 0.15
    assert found > 0.45
