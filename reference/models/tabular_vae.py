"""A variational autoencoder for tables: some columns hold categories, the others numbers.

Sources: https://arxiv.org/abs/1312.6114 (the model and its loss),
https://docs.pytorch.org/docs/stable/generated/torch.nn.Embedding.html (categories as input)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reference.losses.classification import log_softmax, softmax
from reference.losses.reduction import in_float64
from reference.losses.regression import mse_loss, smooth_l1_loss
from reference.losses.vae import gaussian_kl, reduced_batch
from reference.models.vae import reparameterise
from reference.tables import Rows

CONTINUOUS_LOSSES: dict[str, Callable[..., Tensor]] = {"smooth_l1": smooth_l1_loss, "mse": mse_loss}


class TabularOutput(NamedTuple):
    """What the model says about each row."""

    #: For each categorical column a score of each of its categories: (rows, categories).
    logits: tuple[Tensor, ...]
    #: (rows, continuous columns)
    values: Tensor
    #: Of the latent Gaussian, each (rows, latents).
    mean: Tensor
    log_variance: Tensor


class TabularLoss(NamedTuple):
    """The loss to minimise and the three terms that it is made of, already reduced; all scalars."""

    total: Tensor
    continuous: Tensor
    categorical: Tensor
    kld: Tensor


class TabularVAE(nn.Module):
    """Rows of categories and numbers -> a Gaussian over `latents` dimensions -> such rows again.

    Encoder: each categorical column is looked up in an embedding of its own, all continuous
    columns go through one linear layer; side by side they enter a hidden layer. Decoder: a hidden
    layer, and from it logits for each categorical column and one number for each continuous one.
    In training mode the decoder gets a sample of the Gaussian, in eval mode its mean.

    cardinalities: the number of categories of each categorical column.
    Raises ValueError without a categorical or without a continuous column.
    """

    def __init__(
        self,
        cardinalities: Sequence[int],
        continuous: int,
        hidden: int,
        latents: int,
        embedding: int = 4,
    ) -> None:
        super().__init__()
        if not cardinalities or continuous < 1:
            raise ValueError("a table needs a categorical and a continuous column")
        self.embeddings = nn.ModuleList(nn.Embedding(count, embedding) for count in cardinalities)
        self.continuous = nn.Linear(continuous, hidden)
        self.hidden = nn.Linear(len(cardinalities) * embedding + hidden, hidden)
        self.mean = nn.Linear(hidden, latents)
        self.log_variance = nn.Linear(hidden, latents)
        self.decoder = nn.Sequential(nn.Linear(latents, hidden), nn.ReLU())
        self.logits = nn.ModuleList(nn.Linear(hidden, count) for count in cardinalities)
        self.values = nn.Linear(hidden, continuous)

    def encode(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Rows -> mean and log-variance, each (rows, latents)."""
        columns = rows.categories.unbind(dim=1)
        looked_up = [
            embedding(column) for embedding, column in zip(self.embeddings, columns, strict=True)
        ]
        inputs = torch.cat([*looked_up, self.continuous(rows.values)], dim=1)
        hidden = self.hidden(inputs.relu()).relu()
        return self.mean(hidden), self.log_variance(hidden)

    def latent(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """What the decoder gets, (rows, latents): a sample in training, the mean in eval."""
        return reparameterise(mean, log_variance) if self.training else mean

    def decode(self, latent: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """(rows, latents) -> logits for each categorical column, values (rows, columns)."""
        hidden = self.decoder(latent)
        return tuple(head(hidden) for head in self.logits), self.values(hidden)

    def forward(self, rows: Rows) -> TabularOutput:
        mean, log_variance = self.encode(rows)
        return TabularOutput(*self.decode(self.latent(mean, log_variance)), mean, log_variance)


def tabular_vae_loss(
    output: TabularOutput,
    rows: Rows,
    *,
    kld_beta: float,
    continuous_reduction: str,
    categorical_reduction: str,
    kld_reduction: str,
    continuous_loss: str = "smooth_l1",
) -> TabularLoss:
    """total = loss of the values + cross entropy of the categories + kld_beta * KL from N(0, 1).

    The loss of the values is "smooth_l1", residual**2 / 2 below 1, or "mse", residual**2. Each
    term has its own reduction, and has to be given one:

    "sum"        over rows and columns (for the KL: over rows and latent dimensions)
    "batchmean"  that sum / rows: what one row costs
    "mean"       that sum / (rows * columns of this kind), for the KL / (rows * latent dimensions)

    Returns float64 scalars. With no row a sum is 0 and a mean nan.
    Raises ValueError for values of another shape, another number of categorical columns, an
    unknown reduction and an unknown loss; RuntimeError (from `gather`) where a category has no
    logit.
    Source: equation 10 of https://arxiv.org/abs/1312.6114, with one likelihood for each column
    """
    if continuous_loss not in CONTINUOUS_LOSSES:
        known = ", ".join(CONTINUOUS_LOSSES)
        raise ValueError(f"continuous_loss is none of {known}: {continuous_loss!r}")
    errors = CONTINUOUS_LOSSES[continuous_loss](output.values, rows.values, reduction="sum")
    columns = rows.categories.unbind(dim=1)
    if len(output.logits) != len(columns):
        raise ValueError(f"logits for {len(output.logits)} columns, categories in {len(columns)}")
    entropies = in_float64(output.values.new_zeros(()))
    for logits, column in zip(output.logits, columns, strict=True):
        log_p = log_softmax(logits, dim=1)
        entropies = entropies - log_p.gather(1, column.cpu().unsqueeze(1)).sum()
    divergences = gaussian_kl(output.mean, output.log_variance).sum()

    count, latents = len(rows.values), output.mean.shape[1]
    continuous = reduced_batch(errors, count, rows.values.shape[1], continuous_reduction)
    categorical = reduced_batch(entropies, count, len(columns), categorical_reduction)
    kld = reduced_batch(divergences, count, latents, kld_reduction)
    return TabularLoss(continuous + categorical + kld_beta * kld, continuous, categorical, kld)


def sample_rows(
    model: TabularVAE, count: int, *, value_std: float, generator: torch.Generator
) -> Rows:
    """New rows: z from N(0, 1), decoded; then a category and a value are drawn for each column.

    A category is drawn with the probabilities softmax(logits), a value from
    N(decoded value, value_std**2), in standardised units. The encoder is not asked.

    Source: section 2.1 of https://arxiv.org/abs/1312.6114
    """
    latents = model.mean.out_features
    with torch.no_grad():
        logits, values = model.decode(torch.randn(count, latents, generator=generator))
    drawn = [
        torch.multinomial(softmax(one, dim=1), 1, generator=generator).squeeze(1) for one in logits
    ]
    noise = torch.randn(values.shape, generator=generator)
    return Rows(torch.stack(drawn, dim=1), values + value_std * noise)
