"""Autoencoders for vectors, what a linear one is compared with, and batches to train a denoiser.

Everywhere: inputs have shape (samples, features), codes (samples, latents). A reconstruction error
is a mean of squares: over the features of one sample, or over everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim.lr_scheduler import LinearLR

from reference.modes import evaluating
from reference.training import fit


class LinearAutoencoder(nn.Module):
    """features -> latents -> features, each an affine map, nothing between them.

    Minimises the squared error where PCA does, up to the choice of the axes of the code.

    Source: https://doi.org/10.1016/0893-6080(89)90014-2 (Baldi and Hornik 1989)
    """

    def __init__(self, features: int, latents: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(features, latents)
        self.decoder = nn.Linear(latents, features)

    def forward(self, inputs: Tensor) -> Tensor:
        reconstruction: Tensor = self.decoder(self.encoder(inputs))
        return reconstruction


class Autoencoder(nn.Module):
    """features -> hidden -> latents -> hidden -> features, with ReLU on the hidden units only.

    The code and the output are linear: neither is kept from any value. All that the decoder learns
    of a sample are the `latents` numbers of its code.

    Source: https://www.deeplearningbook.org/contents/autoencoders.html (section 14.1)
    """

    def __init__(self, features: int, hidden: int, latents: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, latents)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latents, hidden), nn.ReLU(), nn.Linear(hidden, features)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        reconstruction: Tensor = self.decoder(self.encoder(inputs))
        return reconstruction


def fitted(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], lr: float, epochs: int = 15
) -> nn.Module:
    """The model, trained on pairs (input, target) to minimise their mean squared error.

    Adam with betas 0.9 and 0.95; the learning rate falls in a line from `lr` to a fiftieth of it.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.MSELoss.html
    """
    # fused: one kernel for all parameters, which counts in a model as small as this.
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.95), fused=True)
    schedule = LinearLR(optimizer, 1.0, 0.02, total_iters=epochs)
    fit(model, batches, mse_loss, optimizer, epochs=epochs, scheduler=schedule)
    return model


def pca_reconstruction(train_inputs: Tensor, inputs: Tensor, latents: int) -> Tensor:
    """What is left of `inputs` on the first principal axes of the training part, in float64.

    mean + (x - mean) V V', where the columns of V are the eigenvectors of the training part's
    covariance matrix with the `latents` largest eigenvalues; same shape as `inputs`. No affine map
    through so few numbers has a smaller mean squared error on the training part.

    Source: https://en.wikipedia.org/wiki/Principal_component_analysis
    """
    train = train_inputs.double()
    mean = train.mean(dim=0)
    covariance = (train - mean).T @ (train - mean) / len(train)
    _, vectors = torch.linalg.eigh(covariance)  # in the order of rising eigenvalues
    axes = vectors[:, vectors.shape[1] - latents :]
    projected: Tensor = mean + (inputs.double() - mean) @ axes @ axes.T
    return projected


def reconstruction_errors(model: nn.Module, inputs: Tensor) -> Tensor:
    """The mean squared error of each sample over its features, float64 of shape (samples,).

    Taken in eval mode; the model's mode is put back.

    Source: https://www.deeplearningbook.org/contents/autoencoders.html
    """
    with evaluating(model):
        reconstruction = model(inputs)
    squares: Tensor = (reconstruction.double() - inputs.double()).pow(2)
    return squares.mean(dim=1)


class NoisyBatches:
    """Pairs (noisy images, clean images) to train a denoiser with: new noise in every epoch.

    The noise is Gaussian with standard deviation `noise`, in the units of the images. Order and
    noise come from the generator. Shapes: images (samples, features); batches of `batch_size`, the
    last one smaller when the sizes do not divide.

    Source: https://www.jmlr.org/papers/v11/vincent10a.html (denoising autoencoders)
    """

    def __init__(
        self, images: Tensor, noise: float, batch_size: int, generator: torch.Generator
    ) -> None:
        self.images = images
        self.noise = noise
        self.batch_size = batch_size
        self.generator = generator

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.images), generator=self.generator)
        for chosen in order.split(self.batch_size):
            yield self.noisy(self.images[chosen]), self.images[chosen]

    def noisy(self, images: Tensor) -> Tensor:
        """The images with new noise."""
        return images + self.noise * torch.randn(images.shape, generator=self.generator)


class TwiceNoisyBatches(NoisyBatches):
    """Pairs of two noisy copies of the same images, each with noise of its own.

    The mean of the noise is 0, so that of all targets of an image the mean is the clean one: that
    is what a mean squared error asks for.

    Source: https://arxiv.org/abs/1803.04189 (Noise2Noise)
    """

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for noisy, clean in super().__iter__():
            yield noisy, self.noisy(clean)
