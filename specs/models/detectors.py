"""The detectors of anomalies that the specs of this chapter look at: of tumours, and of digits."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

from reference import data
from reference.models.anomaly import DetectionSplit, detection_split, roc_auc
from reference.models.vae import VAE, VAEOutput
from reference.training import fit

Split = Callable[..., DetectionSplit]
Scores = Callable[[nn.Module, Tensor], Tensor]
#: Of features, hidden units and latent dimensions.
MakesModel = Callable[[int, int, int], nn.Module]


@lru_cache
def tumours(seed: int = 0, detection_split: Split = detection_split) -> DetectionSplit:
    """Of 357 benign tumours 200 are to be fitted, 80 held out, 77 judged with 212 malignant ones.

    30 measurements each, scaled by the mean and the standard deviation of the fitted ones: who
    builds a detector has seen no anomaly.
    """
    everything = data.breast_cancer()
    inputs = torch.cat([everything.train_inputs, everything.test_inputs])
    malignant = torch.cat([everything.train_targets, everything.test_targets]) == 1
    generator = torch.Generator().manual_seed(seed)
    split = detection_split(inputs, malignant, fitted=200, held_out=80, generator=generator)
    mean, std = split.fitted.mean(dim=0), split.fitted.std(dim=0)
    return DetectionSplit(*((part - mean) / std for part in split))


@lru_cache
def model_of_tumours(
    VAE: MakesModel = VAE, seed: int = 0, detection_split: Split = detection_split
) -> nn.Module:
    """30 measurements, 8 latent dimensions, fitted to 200 benign tumours for 40 epochs."""
    torch.manual_seed(seed)
    fitted = tumours(seed, detection_split).fitted
    return trained(VAE(30, 64, 8), fitted, kld_beta=0.01, batch_size=50, epochs=40)


@lru_cache
def without_3(seed: int = 0) -> DetectionSplit:
    """Images of digits, a 3 is the anomaly: 1,300 others to be fitted, 200 held out, 114 judged."""
    everything = data.digits()
    images = torch.cat([everything.train_inputs, everything.test_inputs])
    is_3 = torch.cat([everything.train_targets, everything.test_targets]) == 3
    generator = torch.Generator().manual_seed(seed)
    return detection_split(images, is_3, fitted=1300, held_out=200, generator=generator)


@lru_cache
def model_without_3(VAE: MakesModel, kld_beta: float, seed: int = 0) -> nn.Module:
    """64 pixels, 8 latent dimensions, fitted to 1,300 images of the other digits for 12 epochs."""
    torch.manual_seed(seed)
    return trained(VAE(64, 128, 8), without_3(seed).fitted, kld_beta, batch_size=64, epochs=12)


def trained(
    model: nn.Module, fitted: Tensor, kld_beta: float, batch_size: int, epochs: int
) -> nn.Module:
    """Fit a VAE to these samples, with Adam and both terms of its loss summed for each sample."""

    def loss(output: VAEOutput, inputs: Tensor) -> Tensor:  # see VAE-09
        reconstruction, mean, log_variance = output
        error = smooth_l1_loss(reconstruction, inputs, reduction="sum")
        kld = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum()
        return (error + kld_beta * kld) / len(inputs)

    # fused: one kernel for all parameters, three times as fast on a model as small as this.
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    fit(model, data.batches(fitted, fitted, batch_size), loss, optimizer, epochs=epochs)
    return model


def auc_of(anomaly_scores: Scores, model: nn.Module, split: DetectionSplit) -> float:
    """The area under the ROC curve of the samples that are judged."""
    normal, anomalies = (anomaly_scores(model, part) for part in (split.normal, split.anomalies))
    is_anomaly = torch.arange(len(normal) + len(anomalies)) >= len(normal)
    return roc_auc(torch.cat([normal, anomalies]), is_anomaly)


def share_above(threshold: float, scores: Tensor) -> float:
    """The share of the scores that raise an alarm."""
    return (scores > threshold).double().mean().item()
