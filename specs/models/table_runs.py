"""The training runs of a VAE for tables that the specs of this chapter look at."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch

from reference.models.tabular_vae import TabularVAE, tabular_vae_loss
from reference.tables import Rows, Table

#: What one row costs: each term summed over its columns, averaged over the rows.
OF_ONE_ROW = {
    "continuous_reduction": "batchmean",
    "categorical_reduction": "batchmean",
    "kld_reduction": "batchmean",
}


def trained(model: TabularVAE, rows: Rows, kld_beta: float) -> TabularVAE:
    """60 steps of Adam on all rows at once; the model comes back in eval mode."""
    # fused: one kernel for all parameters, three times as fast on a model as small as this.
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03, fused=True)
    for _ in range(60):
        optimizer.zero_grad()
        tabular_vae_loss(model(rows), rows, kld_beta=kld_beta, **OF_ONE_ROW).total.backward()
        optimizer.step()
    return model.eval()


@lru_cache
def trained_on(load: Callable[[], Table], kld_beta: float, seed: int = 0) -> TabularVAE:
    """Of the training part of a table: 32 hidden units, 4 latent dimensions."""
    table = load()
    torch.manual_seed(seed)
    model = TabularVAE(table.cardinalities, len(table.value_names), hidden=32, latents=4)
    return trained(model, table.train, kld_beta)
