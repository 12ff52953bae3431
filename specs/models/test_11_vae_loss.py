"""The loss of a variational autoencoder: how far off the output is, plus kld_beta times a KL.

At the end you know how the two terms are put together, which reductions they can have, what each
pulls on, and how the loss is written with torch. The KL is the divergence of the latent Gaussian,
given by a mean and a log-variance, from N(0, 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from reference.losses import vae
from reference.losses.vae import VAELoss
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.strategies import dtypes
from specs.losses.gradients import on

PAPER = "https://arxiv.org/abs/1312.6114"

REDUCTIONS = ["sum", "batchmean", "mean"]
Loss = Callable[..., tuple[Tensor, Tensor, Tensor]]


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """reconstruction and inputs (samples, ...), mean and log_variance (samples, latents)."""
    samples, latents = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    features = draw(st.sampled_from([(1,), (3,), (2, 2)]))  # vectors, and images of 2 x 2 pixels
    random = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    dtype = draw(dtypes())

    def numbers(*shape: int) -> Tensor:
        return 2 * torch.randn(samples, *shape, dtype=dtype, generator=random)

    return numbers(*features), numbers(*features), numbers(latents), numbers(latents)


@st.composite
def any_options(draw: st.DrawFn) -> dict[str, Any]:
    """Any weight, any pair of reductions, any beta of smooth L1 or the one by default."""
    smooth_l1 = draw(st.sampled_from([{}, {"smooth_l1_beta": 0.25}, {"smooth_l1_beta": 3.0}]))
    return {
        "kld_beta": draw(st.sampled_from([0.0, 0.1, 1.0, 4.0])),
        "reconstruction_reduction": draw(st.sampled_from(REDUCTIONS)),
        "kld_reduction": draw(st.sampled_from(REDUCTIONS)),
        **smooth_l1,
    }


def divisor(reduction: str, batch: Tensor) -> int:
    """What a sum over all elements of a batch is divided by."""
    return {"sum": 1, "batchmean": len(batch), "mean": batch.numel()}[reduction]


def weighs_the_reconstruction(*batch: Tensor, kld_beta: float, **options: Any) -> VAELoss:
    """Multiplies the reconstruction by kld_beta, and not the KL."""
    _, reconstruction, kld = vae.vae_loss(*batch, kld_beta=kld_beta, **options)
    return VAELoss(kld_beta * reconstruction + kld, reconstruction, kld)


def subtracts_the_kl(*batch: Tensor, kld_beta: float, **options: Any) -> VAELoss:
    """Rewards a posterior that is far from N(0, 1)."""
    return vae.vae_loss(*batch, kld_beta=-kld_beta, **options)


def squared_error(
    reconstruction: Tensor,
    inputs: Tensor,
    *latent: Tensor,
    reconstruction_reduction: str,
    **options: Any,
) -> VAELoss:
    """Reconstructs by half the squared error, which has no linear part."""
    stated = {"reconstruction_reduction": reconstruction_reduction, **options}
    _, _, kld = vae.vae_loss(reconstruction, inputs, *latent, **stated)
    squares = (reconstruction - inputs) ** 2
    error = squares.sum() / 2 / divisor(reconstruction_reduction, inputs)
    return VAELoss(error + options["kld_beta"] * kld, error, kld)


def averages_the_kld(*batch: Tensor, kld_reduction: str, **options: Any) -> VAELoss:
    """Takes the mean of the KL, over latent dimensions too, whatever it is asked for."""
    del kld_reduction
    return vae.vae_loss(*batch, kld_reduction="mean", **options)


def averages_the_reconstruction(
    *batch: Tensor, reconstruction_reduction: str, **options: Any
) -> VAELoss:
    """Takes the mean of the reconstruction, over features too, whatever it is asked for."""
    del reconstruction_reduction
    return vae.vae_loss(*batch, reconstruction_reduction="mean", **options)


@rule(
    "VAE-09",
    "A VAE's loss is total = smooth L1 of the reconstruction + kld_beta * KL, each term reduced as"
    " its own argument states.",
    kind="contract",
    source=PAPER,
    subject=vae.vae_loss,
    violated_by=[
        weighs_the_reconstruction,
        subtracts_the_kl,
        squared_error,
        averages_the_kld,
        averages_the_reconstruction,
    ],
)
@given(batch=batches(), options=any_options())
def test_the_loss_is_the_sum_of_its_two_reduced_terms(
    vae_loss: Loss, device: torch.device, batch: tuple[Tensor, ...], options: dict[str, Any]
) -> None:
    """Worked out number by number, in plain Python."""
    batch = tuple(on(device, tensor) for tensor in batch)
    reconstruction, inputs, mean, log_variance = (tensor.flatten().tolist() for tensor in batch)
    beta = options.get("smooth_l1_beta", 1.0)

    total, reconstruction_term, kld_term = vae_loss(*batch, **options)
    terms = torch.stack([total, reconstruction_term, kld_term])

    distances = [abs(r - x) for r, x in zip(reconstruction, inputs, strict=True)]
    errors = [d**2 / (2 * beta) if d < beta else d - beta / 2 for d in distances]
    error = sum(errors) / divisor(options["reconstruction_reduction"], batch[1])
    latents = zip(mean, log_variance, strict=True)
    divergences = [(m**2 + math.exp(v) - 1 - v) / 2 for m, v in latents]
    divergence = sum(divergences) / divisor(options["kld_reduction"], batch[2])
    expected = [error + options["kld_beta"] * divergence, error, divergence]
    # The largest intermediate is the variance, exp(2 * 3.5) with noise of up to 3.5.
    assert agree(terms, expected, scale=math.exp(7))


def reports_but_does_not_train_the_kl(*batch: Tensor, **options: Any) -> VAELoss:
    """Has the right value, but cuts the KL's gradient off."""
    reconstruction, inputs, mean, log_variance = batch
    return vae.vae_loss(reconstruction, inputs, mean.detach(), log_variance.detach(), **options)


def trains_the_decoder_on_squared_error(*batch: Tensor, **options: Any) -> VAELoss:
    """Has the right value, but the gradient of another reconstruction."""
    right, other = vae.vae_loss(*batch, **options), squared_error(*batch, **options)
    return VAELoss(other.total + (right.total - other.total).detach(), right[1], right[2])


@spec(
    "VAE-09",
    violated_by=[
        reports_but_does_not_train_the_kl,
        trains_the_decoder_on_squared_error,
        averages_the_kld,
    ],
)
@given(batch=batches(), options=any_options())
def test_each_term_has_its_own_gradient(
    vae_loss: Loss, batch: tuple[Tensor, ...], options: dict[str, Any]
) -> None:
    """The reconstruction pulls on the output alone, the KL on the mean and the log-variance."""
    reconstruction, inputs, mean, log_variance = batch
    leaves = [tensor.requires_grad_() for tensor in (reconstruction, mean, log_variance)]

    total, _, _ = vae_loss(reconstruction, inputs, mean, log_variance, **options)
    gradients = torch.autograd.grad(total, leaves, materialize_grads=True)

    beta = options.get("smooth_l1_beta", 1.0)
    pull = ((reconstruction - inputs) / beta).clamp(-1, 1)
    weight = options["kld_beta"] / divisor(options["kld_reduction"], mean)
    assert agree(gradients[0], pull / divisor(options["reconstruction_reduction"], inputs))
    assert agree(gradients[1], weight * mean)
    assert agree(gradients[2], weight * (log_variance.exp() - 1) / 2, scale=math.exp(7))


def huber_of_smooth_l1(
    input: Tensor, target: Tensor, reduction: str = "mean", beta: float = 1.0
) -> Tensor:
    """Is the Huber loss, which is beta times smooth L1."""
    return F.huber_loss(input, target, reduction=reduction, delta=beta)


def smooth_l1_without_beta(
    input: Tensor, target: Tensor, reduction: str = "mean", beta: float = 1.0
) -> Tensor:
    """Takes a beta, and does nothing with it."""
    del beta
    return F.smooth_l1_loss(input, target, reduction=reduction)


@spec(
    "VAE-09",
    subject=F.smooth_l1_loss,
    violated_by=[huber_of_smooth_l1, smooth_l1_without_beta],
)
@given(batch=batches(), beta=st.sampled_from([0.25, 3.0]))
def test_it_takes_two_lines_of_torch(
    smooth_l1_loss: Callable[..., Tensor], batch: tuple[Tensor, ...], beta: float
) -> None:
    """Both terms summed for each sample and averaged over the batch: the negative ELBO."""
    reconstruction, inputs, mean, log_variance = batch

    error = smooth_l1_loss(reconstruction, inputs, reduction="sum", beta=beta) / len(inputs)
    kld = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum() / len(inputs)

    expected = vae.vae_loss(
        *batch,
        kld_beta=0.1,
        reconstruction_reduction="batchmean",
        kld_reduction="batchmean",
        smooth_l1_beta=beta,
    ).total
    assert agree(error + 0.1 * kld, expected, scale=math.exp(7))


def mean_of_none_is_zero(*batch: Tensor, **options: Any) -> VAELoss:
    """Hides that there was nothing to average."""
    return VAELoss(*(term.nan_to_num(0.0) for term in vae.vae_loss(*batch, **options)))


@spec("VAE-09", violated_by=[mean_of_none_is_zero])
def test_without_a_sample_a_sum_is_0_and_a_mean_is_nan(vae_loss: Loss) -> None:
    """As with every loss of torch: nan shows that a batch was empty, 0 would look like success."""
    nothing = [torch.empty(0, 4), torch.empty(0, 4), torch.empty(0, 2), torch.empty(0, 2)]
    for reduction, value in [("sum", 0.0), ("batchmean", math.nan), ("mean", math.nan)]:
        options = {"reconstruction_reduction": reduction, "kld_reduction": reduction}
        terms = vae_loss(*nothing, kld_beta=1.0, **options)
        assert agree(torch.stack(list(terms)), [value] * 3)


def sums_by_default(
    *batch: Tensor,
    reconstruction_reduction: str = "sum",
    kld_reduction: str = "sum",
    **options: Any,
) -> VAELoss:
    """Chooses the reductions for who does not state them."""
    options |= {"kld_reduction": kld_reduction}
    return vae.vae_loss(*batch, reconstruction_reduction=reconstruction_reduction, **options)


@spec("VAE-09", violated_by=[sums_by_default])
def test_a_reduction_left_out_is_an_error(vae_loss: Loss) -> None:
    """A default would decide, unseen, what kld_beta means."""
    for stated in ({}, {"kld_reduction": "sum"}, {"reconstruction_reduction": "sum"}):
        with pytest.raises(TypeError, match="reduction"):
            vae_loss(*torch.zeros(4, 2, 3), kld_beta=1.0, **stated)


def broadcasts(*batch: Tensor, **options: Any) -> VAELoss:
    """Compares every output with every input when the shapes allow it."""
    reconstruction, inputs = torch.broadcast_tensors(*batch[:2])
    return vae.vae_loss(reconstruction, inputs, *batch[2:], **options)


def sums_what_it_does_not_know(*batch: Tensor, **options: Any) -> VAELoss:
    """Takes an unknown reduction for "sum"."""
    known = {key: "sum" if value == "average" else value for key, value in options.items()}
    return vae.vae_loss(*torch.broadcast_tensors(*batch), **known)


@spec("VAE-09", violated_by=[broadcasts, sums_what_it_does_not_know])
def test_other_shapes_and_unknown_reductions_are_errors(vae_loss: Loss) -> None:
    """(2, 3) against (1, 3) would broadcast to six differences that nobody asked for."""
    options = {"reconstruction_reduction": "sum", "kld_reduction": "sum", "kld_beta": 1.0}
    latent = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="shape"):
        vae_loss(torch.zeros(2, 3), torch.zeros(1, 3), latent, latent, **options)
    for name in ("reconstruction_reduction", "kld_reduction"):
        with pytest.raises(ValueError, match="average"):
            vae_loss(latent, latent, latent, latent, **options | {name: "average"})
