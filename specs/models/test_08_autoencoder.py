"""Autoencoders: a network that gives back its input, through a code that is too small for it.

At the end you know what a linear autoencoder learns, what hidden layers add to it, what its last
layer has to reach, and what happens if the code is as wide as the input. The data are the 1,797
digits of scikit-learn, 64 grey levels from 0 to 1 each. Errors are mean squares, on 360 unseen
images unless the training images are named.

Read before: lesson 10, the feed-forward network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from reference import data
from reference.models.autoencoder import (
    Autoencoder,
    LinearAutoencoder,
    fitted,
    pca_reconstruction,
    reconstruction_errors,
)
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe

BALDI_AND_HORNIK = "https://doi.org/10.1016/0893-6080(89)90014-2"
DEEP_LEARNING_BOOK = "https://www.deeplearningbook.org/contents/autoencoders.html"

Function = Callable[..., Any]
Build = Callable[..., nn.Module]
Batches = Iterable[tuple[Tensor, Tensor]]


def in_batches(inputs: Tensor) -> Batches:
    """Each input is its own target."""
    return data.batches(inputs, inputs, 64, torch.Generator().manual_seed(0))


@lru_cache
def fitted_to_digits(build: Build, *sizes: int, lr: float, epochs: int = 15) -> nn.Module:
    """A model of these sizes, fitted to the training images. The same arguments, the same run."""
    torch.manual_seed(0)
    return fitted(build(*sizes), in_batches(data.digits().train_inputs), lr, epochs)


def pca_error(inputs: Tensor, latents: int) -> float:
    """Mean squared error of PCA, fitted to the training images."""
    images = data.digits().train_inputs
    return (pca_reconstruction(images, inputs, latents) - inputs).pow(2).mean().item()


# ---------------------------------------------------------------------------------------------
# The code


class PastTheCode(Autoencoder):
    """Adds the input to the output: the code may say nothing."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + super().forward(inputs)


class OneLatentMore(Autoencoder):
    """Has a wider code than it was asked for."""

    def __init__(self, features: int, hidden: int, latents: int) -> None:
        super().__init__(features, hidden, latents + 1)


class WithoutReLU(Autoencoder):
    """Has hidden layers without an activation: a product of matrices is a matrix."""

    def __init__(self, features: int, hidden: int, latents: int) -> None:
        super().__init__(features, hidden, latents)
        self.encoder = nn.Sequential(nn.Linear(features, hidden), nn.Linear(hidden, latents))
        self.decoder = nn.Sequential(nn.Linear(latents, hidden), nn.Linear(hidden, features))


@rule(
    "AE-01",
    "The output of an autoencoder has the shape of its input and depends on it through the code"
    " alone: with k latents, its derivatives by the input have rank k at most.",
    kind="contract",
    source=DEEP_LEARNING_BOOK,
    subject=Autoencoder,
    violated_by=[PastTheCode, OneLatentMore],
    consequence="a connection past the code learns to copy, and the code learns nothing",
)
def test_what_comes_out_has_gone_through_the_code(Autoencoder: Build) -> None:
    """Of ten directions in which an input may change, seven leave the output as it is."""
    model = Autoencoder(10, 32, 3).double()
    inputs = torch.randn(5, 10, dtype=torch.float64)

    assert model(inputs).shape == (5, 10)
    for sample in inputs:
        jacobian = torch.autograd.functional.jacobian(lambda x: model(x[None])[0], sample)
        assert torch.linalg.matrix_rank(jacobian, rtol=1e-9) == 3


@spec("AE-01", violated_by=[WithoutReLU])
def test_both_halves_bend(Autoencoder: Build) -> None:
    """A half without an activation is a plane: the mean of f(x) and f(-x) is f(0)."""
    model: Any = Autoencoder(10, 32, 3)
    for half, width in [(model.encoder, 10), (model.decoder, 3)]:
        inputs = torch.randn(5, width)

        middle = (half(inputs) + half(-inputs)) / 2

        assert (middle - half(torch.zeros(5, width))).abs().max() > 0.01


# ---------------------------------------------------------------------------------------------
# Linear


def without_the_mean(train_inputs: Tensor, inputs: Tensor, latents: int) -> Tensor:
    """Takes for granted that the data have mean 0."""
    mean = train_inputs.mean(dim=0)
    return pca_reconstruction(train_inputs, inputs + mean, latents) - mean


def smallest_axes(train_inputs: Tensor, inputs: Tensor, latents: int) -> Tensor:
    """Keeps the axes along which the data hardly differ."""
    everything = pca_reconstruction(train_inputs, inputs, inputs.shape[1])
    rest = inputs.shape[1] - latents
    mean = train_inputs.double().mean(dim=0)
    return everything - pca_reconstruction(train_inputs, inputs, rest) + mean


class WithoutBiases(LinearAutoencoder):
    """Cannot subtract the mean, and spends a latent on it."""

    def __init__(self, features: int, latents: int) -> None:
        super().__init__(features, latents)
        self.encoder = nn.Linear(features, latents, bias=False)
        self.decoder = nn.Linear(latents, features, bias=False)


class WiderThanAsked(LinearAutoencoder):
    """Has a latent more than PCA has axes."""

    def __init__(self, features: int, latents: int) -> None:
        super().__init__(features, latents + 1)


@rule(
    "VAE-08",
    "A linear autoencoder with the mean squared error reaches the error of PCA with as many"
    " components on its training data, and never less.",
    kind="contract",
    source=BALDI_AND_HORNIK,
    subject=LinearAutoencoder,
    violated_by=[WithoutBiases, WiderThanAsked],
    consequence="without hidden layers, training is a slow way to an answer that one eigenvalue"
    " problem gives exactly",
)
def test_its_training_error_ends_just_above_that_of_pca(
    LinearAutoencoder: Build, observe: Observe
) -> None:
    """Seen over ten seeds with 4 latents: 1.0003 to 1.0008 times PCA's error.

    The bound is for the training images. On unseen ones either may be ahead: 0.9994 to 1.0023.
    """
    images = data.digits().train_inputs
    model = fitted_to_digits(LinearAutoencoder, 64, 4, lr=0.05)

    error = reconstruction_errors(model, images).mean().item()
    observe("error", error)

    assert pca_error(images, 4) * (1 - 1e-6) <= error < pca_error(images, 4) * 1.01


@spec("VAE-08", violated_by=[WithoutBiases])
def test_it_finds_the_subspace_of_pca_and_axes_of_its_own(LinearAutoencoder: Build) -> None:
    """Any invertible mixture of the latents can be undone by the decoder, so none is preferred.

    PCA's components are uncorrelated. Here the largest correlation is 0.2 to 0.4 (five seeds),
    while more than 0.999 of what the decoder writes lies in PCA's subspace.
    """
    images = data.digits().train_inputs.double()
    model: Any = fitted_to_digits(LinearAutoencoder, 64, 4, lr=0.05)
    _, vectors = torch.linalg.eigh(torch.cov(images.T))
    axes = vectors[:, -4:]  # those of the four largest eigenvalues

    written = model.decoder.weight.detach().double()
    in_subspace = (axes.T @ written).pow(2).sum() / written.pow(2).sum()
    correlations = torch.corrcoef(model.encoder(images.float()).detach().T) - torch.eye(4)

    assert in_subspace > 0.99
    assert correlations.abs().max() > 0.1


@spec("VAE-08", subject=pca_reconstruction, violated_by=[without_the_mean, smallest_axes])
def test_the_error_of_pca_is_what_the_axes_left_out_would_have_added(
    pca_reconstruction: Function,
) -> None:
    """The variance along each axis is an eigenvalue of the covariance matrix; all add up to the
    variance of the data."""
    images = data.digits().train_inputs.double()
    eigenvalues = torch.linalg.eigvalsh(torch.cov(images.T, correction=0))  # rising

    for latents in (0, 1, 4, 32, 64):
        error = (pca_reconstruction(images, images, latents) - images).pow(2).sum(dim=1).mean()
        assert agree(error, eigenvalues[: 64 - latents].sum(), ulps=64 * 64)


# ---------------------------------------------------------------------------------------------
# With hidden layers


class ReLUOnTheCode(Autoencoder):
    """Cuts the negative half of every latent off, and some latents for good."""

    def __init__(self, features: int, hidden: int, latents: int) -> None:
        super().__init__(features, hidden, latents)
        self.encoder.append(nn.ReLU())


@rule(
    "AE-02",
    "A non-linear autoencoder reconstructs unseen digits better than PCA of the same width.",
    kind="claim",
    verdict="holds if it is trained for long enough, and its code is linear",
    source="https://doi.org/10.1126/science.1127647",
    subject=Autoencoder,
    violated_by=[WithoutReLU, ReLUOnTheCode],
    consequence="4 latents, five seeds: 0.70 to 0.80 of PCA's error after 15 epochs, 1.3 to 1.5 of"
    " it after 2; with a ReLU on the code 1.2 to 2.0 after 15",
)
def test_after_fifteen_epochs_it_is_ahead_of_pca_and_after_two_behind(
    Autoencoder: Build, observe: Observe
) -> None:
    """Digits lie on a bent surface, which a flat one of four dimensions misses. But PCA has its
    best answer at once, and training has to find its own."""
    unseen = data.digits().test_inputs
    errors = [
        reconstruction_errors(fitted_to_digits(Autoencoder, 64, 64, 4, lr=0.01, epochs=e), unseen)
        .mean()
        .item()
        for e in (2, 15)
    ]
    observe("errors", errors)

    assert errors[0] > pca_error(unseen, 4)
    assert errors[1] < pca_error(unseen, 4) * 0.9


class EndsInASigmoid(Autoencoder):
    """Gives numbers between 0 and 1 only."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.sigmoid(super().forward(inputs))


@rule(
    "AE-03",
    "The last layer has to reach every value of the data: a sigmoid is for data from 0 to 1, a"
    " linear layer for standardised ones.",
    kind="practice",
    source=DEEP_LEARNING_BOOK,
    subject=Autoencoder,
    violated_by=[EndsInASigmoid],
    consequence="standardised measurements of tumours: behind a sigmoid 0.62 of the variance stays"
    " unexplained, behind a linear layer 0.10 to 0.13 (five seeds); for digits the two are alike",
)
def test_a_linear_output_follows_standardised_data(Autoencoder: Build, observe: Observe) -> None:
    """Half of all standardised numbers are negative. The loss falls all the same, and says
    nothing of what is out of reach."""
    tumours = data.breast_cancer()
    model = fitted(Autoencoder(30, 64, 8), in_batches(tumours.train_inputs), lr=0.01)

    error = reconstruction_errors(model, tumours.test_inputs).mean().item()
    unexplained = error / tumours.test_inputs.var(dim=0).mean().item()
    observe("unexplained", unexplained)

    assert unexplained < 0.3


# ---------------------------------------------------------------------------------------------
# A code that is too wide


def auc_for_zeros(error_of: Callable[[Tensor], Tensor]) -> float:
    """How often an unseen 0 has a larger error than an unseen other digit: ROC AUC, 1/2 by chance.

    Half of a tie counts.
    """
    images = data.digits()
    is_zero = images.test_targets == 0
    errors = error_of(images.test_inputs)
    zeros, others = errors[is_zero].unsqueeze(1), errors[~is_zero]
    return ((zeros > others).double() + (zeros == others).double() / 2).mean().item()


def without_zeros() -> Tensor:
    """The training images of the nine other digits."""
    images = data.digits()
    return images.train_inputs[images.train_targets != 0]


def auc_of_wide(build: Build, *sizes: int) -> float:
    """A model with 64 latents for 64 pixels, which has never seen a 0."""
    torch.manual_seed(0)
    model = fitted(build(*sizes), in_batches(without_zeros()), lr=0.01)
    return auc_for_zeros(lambda inputs: reconstruction_errors(model, inputs))


class WithHiddenLayers(Autoencoder):
    """Takes the place of a linear one, and is none."""

    def __init__(self, features: int, latents: int) -> None:
        super().__init__(features, 64, latents)


@rule(
    "AE-06",
    "An autoencoder whose code is as wide as its input learns the identity, and finds no anomaly.",
    kind="claim",
    verdict="holds if it is linear: it then reconstructs everything. With hidden layers the code is"
    " not what limits it, and anomalies keep larger errors",
    source=DEEP_LEARNING_BOOK,
    subject=LinearAutoencoder,
    violated_by=[WithHiddenLayers],
    consequence="a digit that was not trained on, told by its error from the others: ROC AUC 0.96"
    " with 8 components, 0.42 to 0.59 with a linear code of 64, 0.85 to 0.97 with hidden layers",
)
def test_a_linear_one_of_full_width_cannot_tell_a_zero_that_it_has_never_seen(
    LinearAutoencoder: Build, observe: Observe
) -> None:
    """Its error on everything is 0.0001. PCA with 8 components, with an error 200 times as large,
    knows a stranger when it sees one."""

    def pca_errors(inputs: Tensor) -> Tensor:
        return (pca_reconstruction(without_zeros(), inputs, 8) - inputs).pow(2).mean(dim=1)

    narrow, wide = auc_for_zeros(pca_errors), auc_of_wide(LinearAutoencoder, 64, 64)
    observe("AUC", [narrow, wide])

    assert narrow > 0.9
    assert wide < 0.7


class WithoutHiddenLayers(LinearAutoencoder):
    """Takes the place of a non-linear one, and is none."""

    def __init__(self, features: int, hidden: int, latents: int) -> None:
        del hidden
        super().__init__(features, latents)


@spec("AE-06", subject=Autoencoder, violated_by=[WithoutHiddenLayers])
def test_hidden_layers_keep_it_from_the_identity(Autoencoder: Build, observe: Observe) -> None:
    """64 ReLU units and fifteen epochs fit what they were shown, and little else."""
    wide = auc_of_wide(Autoencoder, 64, 64, 64)
    observe("AUC", wide)

    assert wide > 0.75


def in_training_mode(model: nn.Module, inputs: Tensor) -> Tensor:
    """Scores what the model makes of its input while dropout is at work."""
    reconstruction = model.train()(inputs)
    return (reconstruction.double() - inputs.double()).pow(2).mean(dim=1)


def leaves_eval_mode_on(model: nn.Module, inputs: Tensor) -> Tensor:
    """Forgets to put the mode back."""
    errors = reconstruction_errors(model, inputs)
    model.eval()
    return errors


@spec("AE-06", subject=reconstruction_errors, violated_by=[in_training_mode, leaves_eval_mode_on])
def test_an_error_is_that_of_one_sample_in_eval_mode(reconstruction_errors: Function) -> None:
    """In eval mode dropout does nothing. The mode that the model was in is put back."""
    inputs = torch.tensor([[0.0, 2.0], [4.0, 0.0]])
    model = nn.Sequential(nn.Linear(2, 2))  # gives 1 for everything
    nn.init.zeros_(model[0].weight)
    nn.init.ones_(model[0].bias)
    copies = nn.Sequential(nn.Dropout(0.5))

    for training in (True, False):
        errors = reconstruction_errors(model.train(training), inputs)
        of_copies = reconstruction_errors(copies.train(training), inputs)

        # 1 is given back for 0 and 2, and for 4 and 0.
        assert errors.tolist() == [(1 + 1) / 2, (9 + 1) / 2]
        assert of_copies.tolist() == [0, 0]
        assert model.training == training
