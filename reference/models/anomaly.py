"""Detecting anomalies: split, model, score, threshold, and how well scores rank.

A detector is fitted to normal samples only. What it reconstructs badly is called an anomaly.

Sources: https://arxiv.org/abs/2104.08279 (thresholds from held-out normal samples),
https://scikit-learn.org/stable/modules/model_evaluation.html#roc-metrics (the ROC curve)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from reference.losses.reduction import in_float64
from reference.losses.regression import smooth_l1_loss
from reference.modes import evaluating


class DetectionSplit(NamedTuple):
    """Samples for each step of a detector's life, (samples, features); no sample is in two."""

    fitted: Tensor  # normal: what the model is fitted to
    held_out: Tensor  # normal: what the threshold is chosen on
    normal: Tensor  # normal: for the judgement
    anomalies: Tensor  # all of them: for the judgement


def detection_split(
    inputs: Tensor,
    is_anomaly: Tensor,
    *,
    fitted: int,
    held_out: int,
    generator: torch.Generator,
) -> DetectionSplit:
    """Shuffle the normal samples and cut them in three; keep all anomalies for the judgement.

    fitted, held_out: the number of normal samples in these parts.
    Shapes: inputs (samples, features), is_anomaly bool (samples,).
    Raises ValueError if the lengths differ or no normal sample is left for the judgement.
    Source: https://arxiv.org/abs/2104.08279
    """
    if len(inputs) != len(is_anomaly):
        raise ValueError(f"{len(inputs)} inputs but {len(is_anomaly)} labels")
    normal = inputs[~is_anomaly]
    if fitted + held_out >= len(normal):
        raise ValueError(f"{len(normal)} normal samples: none left after {fitted} + {held_out}")
    normal = normal[torch.randperm(len(normal), generator=generator)]
    return DetectionSplit(
        fitted=normal[:fitted],
        held_out=normal[fitted : fitted + held_out],
        normal=normal[fitted + held_out :],
        anomalies=inputs[is_anomaly],
    )


class PCAOutput(NamedTuple):
    """reconstruction: (samples, features); code: (samples, components)."""

    reconstruction: Tensor
    code: Tensor


class PCA(nn.Module):
    """Keeps the directions along which the fitted samples vary most, and forgets the others.

    reconstruction = mean + the part of (input - mean) that lies in those directions; with no
    component it is the mean of the fitted samples. Computed in float64, returned in the dtype of
    the inputs.

    fitted: (samples, features). Raises ValueError for more components than features or samples.
    Source: https://scikit-learn.org/stable/modules/decomposition.html#pca
    """

    def __init__(self, fitted: Tensor, components: int) -> None:
        super().__init__()
        if components > min(fitted.shape):
            raise ValueError(f"{components} components of samples {tuple(fitted.shape)}")
        samples = in_float64(fitted)
        self.mean = samples.mean(dim=0)
        # The rows of the last factor are the directions, those of most variance first.
        self.directions = torch.linalg.svd(samples - self.mean, full_matrices=False)[2][:components]

    def forward(self, inputs: Tensor) -> PCAOutput:
        code = (in_float64(inputs) - self.mean) @ self.directions.T
        return PCAOutput((self.mean + code @ self.directions).to(inputs), code.to(inputs))


def anomaly_scores(model: nn.Module, inputs: Tensor) -> Tensor:
    """How badly the model reconstructs each sample: its smooth L1, averaged over its features.

    Taken in eval mode, where the score of a sample is always the same; the model's mode is put
    back. Shapes: (samples, features) -> float64 (samples,). `model` returns a VAEOutput.
    """
    with evaluating(model):
        reconstruction = model(inputs).reconstruction
    errors = smooth_l1_loss(in_float64(reconstruction), in_float64(inputs), reduction="none")
    return errors.mean(dim=1)


def anomaly_threshold(model: nn.Module, held_out: Tensor, quantile: float) -> float:
    """The score that this share of normal samples stays below: what is above is called an anomaly.

    held_out: normal samples that the model was NOT fitted to, (samples, features). Between two
    scores the quantile is interpolated linearly.
    """
    return float(torch.quantile(anomaly_scores(model, held_out), quantile))


def roc_auc(scores: Tensor, is_anomaly: Tensor) -> float:
    """The area under the ROC curve: how often an anomaly has a higher score than a normal sample.

    Of all pairs of one anomaly and one normal sample: the share in which the anomaly's score is
    the higher one, where a tie counts half. 1 is a perfect ranking, 1/2 is no better than chance.

    Shapes: scores and is_anomaly (bool) (samples,). Time and memory grow with the number of pairs.
    Raises ValueError for shapes that differ, for nan among the scores, and if one kind is missing.
    Source: section 7 of https://doi.org/10.1016/j.patrec.2005.10.010 (Fawcett, 2006)
    """
    if scores.shape != is_anomaly.shape or scores.dim() != 1:
        raise ValueError(f"scores {tuple(scores.shape)}, is_anomaly {tuple(is_anomaly.shape)}")
    if scores.isnan().any():
        raise ValueError("nan has no rank")
    anomalies, normal = scores[is_anomaly], scores[~is_anomaly]
    if not len(anomalies) or not len(normal):
        raise ValueError(f"{len(anomalies)} anomalies and {len(normal)} normal samples: no pair")
    higher = anomalies.unsqueeze(1) > normal
    equal = anomalies.unsqueeze(1) == normal
    return float((higher.double() + equal.double() / 2).mean())
