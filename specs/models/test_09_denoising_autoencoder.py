"""Denoising autoencoders: taught to give back what they were not given.

At the end you know what goes into a denoiser and what its output is compared with, and which
targets serve if there are no clean ones. The data are the 1,797 digits of scikit-learn, 64 grey
levels from 0 to 1 each, with Gaussian noise. Errors are mean squares, on 360 unseen images.

Read before: the file on autoencoders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from reference import data
from reference.models.autoencoder import Autoencoder, NoisyBatches, TwiceNoisyBatches, fitted
from specs.harness import rule, spec
from specs.harness.observations import Observe

Build = Callable[..., Any]
Pair = tuple[Tensor, Tensor]

NOISE = 0.5  # standard deviation; the mean square of the noise is 0.25


def with_noise(images: Tensor) -> Tensor:
    """The images with noise that no training run has seen."""
    return images + NOISE * torch.randn(images.shape, generator=torch.Generator().manual_seed(99))


@lru_cache
def error_after_denoising(batches: Build) -> float:
    """From unseen noisy images to the clean ones, by a model of ten epochs with these batches.

    The code is as wide as the images: it could pass everything on.
    """
    torch.manual_seed(0)
    images = data.digits()
    pairs = batches(images.train_inputs, NOISE, 64, torch.Generator().manual_seed(0))
    model = fitted(Autoencoder(64, 64, 64), pairs, lr=0.01, epochs=10)
    with torch.no_grad():
        denoised = model(with_noise(images.test_inputs))
    return mse_loss(denoised, images.test_inputs).item()


class NoisyTargets(NoisyBatches):
    """Asks the model to give the noise back as well."""

    def __iter__(self) -> Iterator[Pair]:
        for noisy, _ in super().__iter__():
            yield noisy, noisy


class NoNoise(NoisyBatches):
    """Never shows the model what it is to remove."""

    def __iter__(self) -> Iterator[Pair]:
        for _, clean in super().__iter__():
            yield clean, clean


@rule(
    "AE-04",
    "To train a denoiser, add noise to the input, new in every epoch, and compare the output with"
    " the clean image.",
    kind="practice",
    source="https://www.jmlr.org/papers/v11/vincent10a.html",
    subject=NoisyBatches,
    violated_by=[NoisyTargets],
    consequence="images with noise of mean square 0.25: a model trained so leaves 0.036 to 0.037"
    " (five seeds), one trained on noisy targets 0.146 to 0.156, one without noise 0.067 to 0.070",
)
def test_the_denoiser_leaves_a_sixth_of_the_noise(NoisyBatches: Build, observe: Observe) -> None:
    """The loss decides what is noise: what is in the target is not."""
    error = error_after_denoising(NoisyBatches)
    observe("error", error)

    assert error < 0.045


class NoiseDrawnOnce(NoisyBatches):
    """Has one noise for each image: it can be learned by heart."""

    def __iter__(self) -> Iterator[Pair]:
        noise = self.noise * torch.randn(self.images.shape, generator=self.generator.manual_seed(0))
        order = torch.randperm(len(self.images))
        for chosen in order.split(self.batch_size):
            yield self.images[chosen] + noise[chosen], self.images[chosen]


@spec("AE-04", violated_by=[NoisyTargets, NoNoise, NoiseDrawnOnce])
def test_the_noise_is_new_in_every_epoch_and_the_target_clean(NoisyBatches: Build) -> None:
    """1,437 images of 64 pixels: a mean over all of the noise has a standard error of 0.002."""
    images = data.digits().train_inputs
    batches = NoisyBatches(images, NOISE, 64, torch.Generator().manual_seed(0))
    order = []
    seen: set[tuple[float, ...]] = set()
    for _ in range(2):
        epoch = list(batches)
        noisy, clean = (torch.cat(part) for part in zip(*epoch, strict=True))
        noise = noisy - clean
        order.append(clean)

        assert [len(inputs) for inputs, _ in epoch] == [64] * 22 + [29]
        assert torch.equal(clean.unique(dim=0), images.unique(dim=0))
        assert abs(noise.mean()) < 0.01
        assert abs(noise.std() - NOISE) < 0.01
        noise_of_each_image = {tuple(row) for row in noise.tolist()}
        assert not noise_of_each_image & seen
        seen |= noise_of_each_image
    assert not torch.equal(order[0], order[1])
    assert not torch.equal(order[0], images)


@rule(
    "AE-05",
    "A denoiser can be trained only where clean images are at hand.",
    kind="claim",
    verdict="false",
    source="https://arxiv.org/abs/1803.04189",
    subject=TwiceNoisyBatches,
    violated_by=[NoisyTargets],
    consequence="a second noisy copy as target leaves 0.040 to 0.042, the clean image 0.036 to"
    " 0.037; the loss itself stays above the mean square of the target's noise, 0.25",
)
def test_a_second_noisy_copy_serves_for_a_target(
    TwiceNoisyBatches: Build, observe: Observe
) -> None:
    """A mean squared error asks for the mean of all targets, and the mean of the noise is 0. It
    has to be another noise than the input's, or the best answer is to keep it."""
    error = error_after_denoising(TwiceNoisyBatches)
    observe("error", error)

    assert error < error_after_denoising(NoisyBatches) * 1.3


class TargetsTwiceAsNoisy(TwiceNoisyBatches):
    """Adds new noise to the noisy input instead of the clean image."""

    def __iter__(self) -> Iterator[Pair]:
        for noisy, _ in super().__iter__():
            yield noisy, self.noisy(noisy)


@spec("AE-05", violated_by=[NoisyTargets, TargetsTwiceAsNoisy])
def test_both_copies_have_a_noise_of_their_own(TwiceNoisyBatches: Build) -> None:
    """Black images, so that what is left of them is noise."""
    batches = TwiceNoisyBatches(torch.zeros(500, 64), NOISE, 100, torch.Generator().manual_seed(0))

    inputs, targets = (torch.cat(part).flatten() for part in zip(*batches, strict=True))

    assert abs(inputs.std() - NOISE) < 0.01
    assert abs(targets.std() - NOISE) < 0.01
    assert abs(torch.corrcoef(torch.stack([inputs, targets]))[0, 1]) < 0.03
