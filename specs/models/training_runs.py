"""The training run that the specs of this chapter look at: a small VAE on handwritten digits."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reference import data
from reference.models.vae import VAEOutput
from reference.training import fit

#: 64 pixels, 64 hidden units, 8 latent dimensions.
SIZES = (64, 64, 8)


class DigitsRun(NamedTuple):
    """A trained VAE, and what it does with an unseen image: the average over 360, in eval mode."""

    model: nn.Module
    #: Smooth L1 of the reconstruction, summed over the 64 pixels.
    error: float
    #: KL of the latent Gaussian from N(0, 1), in nats, summed over the 8 latent dimensions.
    kl: float


@lru_cache
def trained_on_digits(
    VAE: Callable[[int, int, int], nn.Module],
    vae_loss: Callable[..., tuple[Tensor, Tensor, Tensor]],
    *,
    kld_beta: float,
    reconstruction_reduction: str = "batchmean",
    kld_reduction: str = "batchmean",
    smooth_l1_beta: float = 1.0,
    seed: int = 0,
) -> DigitsRun:
    """Eight epochs of Adam on 1,437 images. The same arguments give the same run, made once."""
    torch.manual_seed(seed)
    model = VAE(*SIZES)
    images = data.digits().train_inputs
    batches = data.batches(images, images, 128, torch.Generator().manual_seed(seed))

    def loss(output: VAEOutput, inputs: Tensor) -> Tensor:
        total, _, _ = vae_loss(
            output.reconstruction,
            inputs,
            output.mean,
            output.log_variance,
            kld_beta=kld_beta,
            reconstruction_reduction=reconstruction_reduction,
            kld_reduction=kld_reduction,
            smooth_l1_beta=smooth_l1_beta,
        )
        return total

    # fused: one kernel for all parameters, three times as fast on a model as small as this.
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    fit(model, batches, loss, optimizer, epochs=8)
    return DigitsRun(model, *error_and_kl(model.eval()))


def error_and_kl(model: nn.Module) -> tuple[float, float]:
    """Error and KL of an unseen image, as in DigitsRun, in the mode that the model is in."""
    images = data.digits().test_inputs
    with torch.no_grad():
        output = model(images)
    errors = nn.functional.smooth_l1_loss(output.reconstruction, images, reduction="sum")
    divergences = output.mean**2 + output.log_variance.exp() - 1 - output.log_variance
    return errors.item() / len(images), divergences.sum().item() / 2 / len(images)
