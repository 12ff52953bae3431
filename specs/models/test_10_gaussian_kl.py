"""The KL divergence of a diagonal Gaussian from N(0, 1), and why a VAE predicts a log-variance.

At the end you know the closed form of the term that keeps a VAE's latent space in shape, what its
gradient does, how torch spells it, and what halving a log-variance before exp is good for.
Everything is in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal
from torch.distributions.kl import kl_divergence
from torch.nn import functional as F

from reference.losses.vae import gaussian_kl
from reference.models.vae import reparameterise
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.strategies import dtypes
from specs.losses.gradients import on

PAPER = "https://arxiv.org/abs/1312.6114"

Posterior = tuple[Tensor, Tensor]
#: A function of a mean and a log-variance.
OfPosterior = Callable[[Tensor, Tensor], Tensor]


# ---------------------------------------------------------------------------------------------
# The KL divergence of the latent Gaussian


@st.composite
def posteriors(draw: st.DrawFn) -> Posterior:
    """A mean and a log-variance, from -8 to 8, for each sample and latent dimension.

    Half of them are integers, zeros among them; some have no sample at all.
    """
    shape = draw(st.sampled_from([(3,), (0, 2), (1, 1), (3, 2), (2, 1, 2)]))
    random = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    numbers = torch.empty(2, *shape, dtype=draw(dtypes())).uniform_(-8, 8, generator=random)
    mean, log_variance = numbers.round() if draw(st.booleans()) else numbers
    return mean, log_variance


def kl_by_integration(
    mean: float, log_variance: float, prior_mean: float = 0.0, prior_log_variance: float = 0.0
) -> float:
    """KL(p || q) by its definition: the average of log(p(x) / q(x)) over x from p.

    p is N(mean, exp(log_variance)), q the prior. With x = mean + std * z it is an integral over a
    standard normal z. Cutting it at -10 and 10 loses about exp(-50), and for a Gaussian times a
    parabola the trapezoid rule in steps of 1/2 errs by no more than that.
    """
    std, prior_std = math.sqrt(math.exp(log_variance)), math.sqrt(math.exp(prior_log_variance))
    divergence = 0.0
    for z in (step / 2 for step in range(-20, 21)):
        x = mean + std * z
        log_p = -(z**2) / 2 - math.log(std)  # both without log(sqrt(2 pi)), which cancels
        log_q = -(((x - prior_mean) / prior_std) ** 2) / 2 - math.log(prior_std)
        divergence += math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * (log_p - log_q) / 2
    return divergence


def without_the_half(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Forgets the factor 1/2."""
    return 2 * gaussian_kl(mean, log_variance)


def with_the_wrong_sign(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Has +1/2 in front of 1 + log_variance - mean ** 2 - variance: never positive."""
    return -gaussian_kl(mean, log_variance)


def mean_over_the_latents(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Averages over the latent dimensions, where the KL of independent dimensions is their sum."""
    return gaussian_kl(mean, log_variance) / mean.shape[-1]


def log_variance_as_log_std(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Takes exp(log_variance) for the standard deviation: the variance is its square."""
    return gaussian_kl(mean, 2 * log_variance)


def summed_over_the_batch(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Returns one number for all samples."""
    return gaussian_kl(mean, log_variance).sum()


@rule(
    "VAE-01",
    "The KL divergence of a diagonal Gaussian from N(0, 1) is the sum over its dimensions of"
    " (mean**2 + exp(log_variance) - 1 - log_variance) / 2.",
    kind="contract",
    source=PAPER,
    subject=gaussian_kl,
    violated_by=[
        without_the_half,
        with_the_wrong_sign,
        mean_over_the_latents,
        log_variance_as_log_std,
        summed_over_the_batch,
    ],
)
@given(posterior=posteriors())
def test_the_closed_form_is_the_integral(
    gaussian_kl: OfPosterior, device: torch.device, posterior: Posterior
) -> None:
    """No sampling is needed for this term: for two Gaussians the integral can be solved."""
    mean, log_variance = (on(device, tensor) for tensor in posterior)

    divergence = gaussian_kl(mean, log_variance)

    elements = zip(mean.flatten().tolist(), log_variance.flatten().tolist(), strict=True)
    integrals = torch.tensor([kl_by_integration(m, v) for m, v in elements], dtype=torch.float64)
    # 41 summands of up to 8**2 + exp(8) on the side of the integral.
    assert agree(divergence, integrals.view(mean.shape).sum(dim=-1), ulps=64, scale=math.exp(8))


def blind_to_the_mean(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Has the right value, but no gradient for the mean."""
    return gaussian_kl(mean.detach(), log_variance) + 0 * mean.sum(dim=-1)


def blind_to_the_variance(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Has the right value, but no gradient for the log-variance."""
    return gaussian_kl(mean, log_variance.detach()) + 0 * log_variance.sum(dim=-1)


@spec("VAE-01", violated_by=[blind_to_the_mean, blind_to_the_variance, without_the_half])
@given(posterior=posteriors())
def test_its_gradient_pulls_the_mean_to_0_and_the_variance_to_1(
    gaussian_kl: OfPosterior, posterior: Posterior
) -> None:
    """The derivatives are mean and (exp(log_variance) - 1) / 2: both 0 only at N(0, 1)."""
    mean, log_variance = (tensor.requires_grad_() for tensor in posterior)

    gaussian_kl(mean, log_variance).sum().backward()

    assert agree(mean.grad, mean)
    assert agree(log_variance.grad, (log_variance.exp() - 1) / 2)


def the_other_way_round(p: Normal, q: Normal) -> Tensor:
    """Returns KL(q || p): the KL is not symmetric."""
    return kl_divergence(q, p)


def ratio_of_stds(p: Normal, q: Normal) -> Tensor:
    """Forgets to square std / prior_std."""
    ratio = p.scale / q.scale
    return (((p.loc - q.loc) / q.scale) ** 2 + ratio - 1) / 2 - ratio.log()


@spec("VAE-01", subject=kl_divergence, violated_by=[the_other_way_round, ratio_of_stds])
@given(p=posteriors(), prior_mean=st.floats(-3, 3), prior_log_variance=st.floats(-2, 2))
def test_torch_has_it_for_any_two_gaussians_given_by_their_stds(
    kl_divergence: Callable[[Normal, Normal], Tensor],
    p: Posterior,
    prior_mean: float,
    prior_log_variance: float,
) -> None:
    """torch.distributions wants the standard deviation, and gives the KL of each dimension."""
    mean, log_variance = p
    prior_std = math.sqrt(math.exp(prior_log_variance))
    prior = Normal(mean.new_tensor(prior_mean), mean.new_tensor(prior_std))

    divergence = kl_divergence(Normal(mean, torch.exp(0.5 * log_variance)), prior)

    elements = zip(mean.flatten().tolist(), log_variance.flatten().tolist(), strict=True)
    integrals = [kl_by_integration(m, v, prior_mean, prior_log_variance) for m, v in elements]
    expected = torch.tensor(integrals, dtype=torch.float64).view(mean.shape)
    # The largest summand is the variance over the prior's: exp(8) / exp(-2).
    assert agree(divergence, expected, ulps=64, scale=math.exp(10))


# ---------------------------------------------------------------------------------------------
# The log-variance


def std_is_exp_log_variance(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Takes the variance for the standard deviation."""
    return mean + torch.exp(log_variance) * torch.randn_like(mean)


def std_is_softplus(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Makes the layer's output positive in another way than the KL does."""
    return mean + F.softplus(log_variance) * torch.randn_like(mean)


def std_is_one(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Does not use the log-variance."""
    return mean + torch.randn_like(mean) + 0 * log_variance


@rule(
    "VAE-02",
    "A layer that predicts the log-variance gives the standard deviation exp(log_variance / 2).",
    kind="practice",
    source=PAPER,
    consequence="exp(log_variance) as std: at log-variance 2 samples scatter by 7.39, not by 2.72",
    subject=reparameterise,
    violated_by=[std_is_exp_log_variance, std_is_softplus, std_is_one],
)
def test_samples_scatter_by_the_square_root_of_the_variance(reparameterise: OfPosterior) -> None:
    """A layer's output may be any real number; half of it, through exp, is a positive std."""
    torch.manual_seed(0)
    draws = 10_000
    for log_variance, std in [(-2.0, 1 / math.e), (0.0, 1.0), (2.0, math.e)]:
        mean = torch.full((draws,), 3.0)

        samples = reparameterise(mean, torch.full((draws,), log_variance))

        # Within five standard errors: those of a mean and of a standard deviation.
        assert samples.mean().item() == pytest.approx(3, abs=5 * std / math.sqrt(draws))
        assert samples.std().item() == pytest.approx(std, abs=5 * std / math.sqrt(2 * draws))


def square_root_of_the_variance(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Right in real numbers: sqrt(exp(log_variance))."""
    return mean + log_variance.exp().sqrt() * torch.randn_like(mean)


@spec("VAE-02", violated_by=[square_root_of_the_variance, std_is_exp_log_variance])
def test_halving_before_exp_survives_what_float32_cannot_square(
    reparameterise: OfPosterior,
) -> None:
    """float32 ends at exp(88), and exp(-104) is 0; the std is still in range then."""
    for extreme in (100.0, -110.0):
        log_variance = torch.tensor([extreme], requires_grad=True)

        sample = reparameterise(torch.zeros(1), log_variance)
        sample.backward()

        assert sample.isfinite().all()
        assert sample.item() != 0
        assert log_variance.grad is not None
        # std * noise = exp(log_variance / 2) * noise: its derivative is half of itself.
        assert agree(log_variance.grad, sample / 2, scale=0)


def kl_through_the_std(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Gives torch the std, which it squares, and takes the logarithm of that."""
    posterior = Normal(mean, torch.exp(0.5 * log_variance))
    return kl_divergence(posterior, Normal(0.0, 1.0)).sum(dim=-1)


@spec("VAE-02", subject=gaussian_kl, violated_by=[kl_through_the_std])
def test_the_kl_of_a_tiny_variance_is_finite(gaussian_kl: OfPosterior) -> None:
    """exp(-110) is 0 in float32 and its logarithm -inf, but the log-variance is there already."""
    divergence = gaussian_kl(torch.zeros(1, 2), torch.full((1, 2), -110.0))

    assert agree(divergence, [2 * (math.exp(-110) - 1 + 110) / 2])
