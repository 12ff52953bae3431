"""A variational autoencoder for vectors, and what is built on it to detect anomalies.

Sources: https://arxiv.org/abs/1312.6114 (the model, and the reparameterisation in section 2.4),
https://docs.pytorch.org/docs/stable/distributions.html#pathwise-derivative
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from reference.losses.reduction import in_float64
from reference.losses.regression import smooth_l1_loss


class VAEOutput(NamedTuple):
    """reconstruction: (samples, features); mean and log_variance: (samples, latents)."""

    reconstruction: Tensor
    mean: Tensor
    log_variance: Tensor


def reparameterise(mean: Tensor, log_variance: Tensor) -> Tensor:
    """A sample of N(mean, exp(log_variance)) through which gradients flow to both.

    The randomness comes from outside, as noise from N(0, 1), one for each element. What is left,
    mean + std * noise, is ordinary arithmetic: d/dmean is 1, d/dstd is the noise.

    Shapes: mean, log_variance and the sample alike. std = exp(log_variance / 2).
    """
    std = torch.exp(0.5 * log_variance)
    return mean + std * torch.randn_like(std)


class VAE(nn.Module):
    """features -> hidden -> a Gaussian over `latents` dimensions -> hidden -> features.

    The output is linear, for inputs of any range. In training mode the decoder gets a sample of
    the Gaussian, in eval mode its mean.
    """

    def __init__(self, features: int, hidden: int, latents: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(features, hidden), nn.ReLU())
        self.mean = nn.Linear(hidden, latents)
        self.log_variance = nn.Linear(hidden, latents)
        self.decoder = nn.Sequential(
            nn.Linear(latents, hidden), nn.ReLU(), nn.Linear(hidden, features)
        )

    def encode(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """(samples, features) -> mean and log-variance, each (samples, latents)."""
        hidden = self.hidden(inputs)
        return self.mean(hidden), self.log_variance(hidden)

    def latent(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """What the decoder gets, (samples, latents): a sample in training, the mean in eval."""
        return reparameterise(mean, log_variance) if self.training else mean

    def decode(self, latent: Tensor) -> Tensor:
        """(samples, latents) -> (samples, features)."""
        reconstruction: Tensor = self.decoder(latent)
        return reconstruction

    def forward(self, inputs: Tensor) -> VAEOutput:
        mean, log_variance = self.encode(inputs)
        return VAEOutput(self.decode(self.latent(mean, log_variance)), mean, log_variance)


def anomaly_scores(model: nn.Module, inputs: Tensor) -> Tensor:
    """How badly the model reconstructs each sample: its smooth L1, averaged over its features.

    Taken in eval mode, where the score of a sample is always the same; the model's mode is put
    back. Shapes: (samples, features) -> float64 (samples,). `model` returns a VAEOutput.
    """
    was_training = model.training
    model.eval()
    with torch.no_grad():
        reconstruction = model(inputs).reconstruction
    model.train(was_training)
    errors = smooth_l1_loss(in_float64(reconstruction), in_float64(inputs), reduction="none")
    return errors.mean(dim=1)


def anomaly_threshold(model: nn.Module, held_out: Tensor, quantile: float) -> float:
    """The score that this share of normal samples stays below: what is above is called an anomaly.

    held_out: normal samples that the model was NOT fitted to, (samples, features). Between two
    scores the quantile is interpolated linearly.
    """
    return float(torch.quantile(anomaly_scores(model, held_out), quantile))
