"""The loss of a variational autoencoder, from its formulas, in float64.

The encoder gives, for each sample, a diagonal Gaussian over the latent space: a mean and the
logarithm of a variance for each latent dimension.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from reference.losses.reduction import in_float64
from reference.losses.regression import smooth_l1_loss


class VAELoss(NamedTuple):
    """The loss to minimise and the two terms that it is made of, already reduced; all scalars."""

    total: Tensor
    reconstruction: Tensor
    kld: Tensor


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) of each sample, in nats.

    Each latent dimension adds (mean**2 + exp(log_variance) - 1 - log_variance) / 2. It is 0 where
    mean and log-variance are 0, and positive elsewhere.

    Shapes: both (..., latents); returns float64 of shape (...), summed over the latent dimensions.
    Raises ValueError if the shapes differ.
    Source: appendix B of https://arxiv.org/abs/1312.6114
    """
    _same_shape("mean and log_variance", mean, log_variance)
    mean, log_variance = in_float64(mean), in_float64(log_variance)
    return 0.5 * (mean**2 + log_variance.expm1() - log_variance).sum(dim=-1)


def vae_loss(
    reconstruction: Tensor,
    inputs: Tensor,
    mean: Tensor,
    log_variance: Tensor,
    *,
    kld_beta: float,
    reconstruction_reduction: str,
    kld_reduction: str,
    smooth_l1_beta: float = 1.0,
) -> VAELoss:
    """total = smooth L1 of the reconstruction + kld_beta * KL of the latent Gaussian from N(0, 1).

    Each term has its own reduction, and has to be given one, for kld_beta means nothing without:

    "sum"        over samples and features (for the KL: over samples and latent dimensions)
    "batchmean"  that sum / samples: what one sample costs. In both terms: the negative ELBO
    "mean"       that sum / (samples * features), for the KL / (samples * latent dimensions)

    smooth_l1_beta is the residual where smooth L1 turns from a parabola into a line.

    Shapes: reconstruction and inputs (samples, ...), mean and log_variance (samples, latents).
    Returns float64 scalars. With no sample a sum is 0 and a mean nan.
    Raises ValueError if shapes differ, for an unknown reduction, or a negative smooth_l1_beta.
    Source: equation 10 of https://arxiv.org/abs/1312.6114, with the beta of
    https://openreview.net/forum?id=Sy2fzU9gl
    """
    _same_shape("reconstruction and inputs", reconstruction, inputs)
    errors = smooth_l1_loss(
        in_float64(reconstruction), in_float64(inputs), reduction="none", beta=smooth_l1_beta
    )
    features, latents = math.prod(inputs.shape[1:]), mean.shape[-1]
    divergence = gaussian_kl(mean, log_variance).sum()
    reconstruction_term = reduced_batch(
        errors.sum(), len(inputs), features, reconstruction_reduction
    )
    kld_term = reduced_batch(divergence, len(mean), latents, kld_reduction)
    return VAELoss(reconstruction_term + kld_beta * kld_term, reconstruction_term, kld_term)


def warmed_up(kld_beta: float, step: int, warm_up_steps: int) -> float:
    """The weight of the KL at a step, counted from 0: kld_beta * (step + 1) / warm_up_steps.

    It is kld_beta from the last step of the warm-up on, and always without one (0 steps).

    Source: section 3.1 of https://arxiv.org/abs/1511.06349
    """
    return kld_beta * min(1.0, (step + 1) / warm_up_steps) if warm_up_steps else kld_beta


def reduced_batch(total: Tensor, samples: int, elements: int, reduction: str) -> Tensor:
    """The total over a batch ("sum"), or its share of one sample ("batchmean"), or of one of a
    sample's elements ("mean"): total / (samples * elements).

    Raises ValueError for another reduction.
    """
    divisors = {"sum": 1, "batchmean": samples, "mean": samples * elements}
    if reduction not in divisors:
        raise ValueError(f"reduction is none of {', '.join(divisors)}: {reduction!r}")
    return total / divisors[reduction]


def _same_shape(names: str, one: Tensor, other: Tensor) -> None:
    if one.shape != other.shape:
        shapes = f"{tuple(one.shape)} and {tuple(other.shape)}"
        raise ValueError(f"{names} must have one shape, got {shapes}")
