"""A variational autoencoder for vectors, and how new vectors are drawn from it.

Sources: https://arxiv.org/abs/1312.6114 (the model, and the reparameterisation in section 2.4),
https://docs.pytorch.org/docs/stable/distributions.html#pathwise-derivative
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


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


def sample(model: VAE, count: int, generator: torch.Generator) -> Tensor:
    """New vectors, (count, features): z from N(0, 1) for each latent dimension, then decoded.

    That is what the KL of the loss has trained the decoder for. The encoder is not asked, the
    model's mode does not matter, and no gradient is kept. `generator` is one of the CPU.

    Source: section 2.1 of https://arxiv.org/abs/1312.6114
    """
    weight = model.mean.weight
    latent = torch.randn(count, len(weight), generator=generator, dtype=weight.dtype)
    with torch.no_grad():
        return model.decode(latent.to(weight.device))
