"""Two LightningModules: a classifier and a variational autoencoder for scikit-learn's digits.

A LightningModule says what is trained and how; a Trainer decides when each of its methods is
called. Both modules below hold everything that a run needs, so that `Trainer(...).fit(module)`
trains, `.test(module)` tests, and no argument tells them anything else.

Shapes: images are float32 (n, 64) with grey levels from 0 to 1, targets int64 (n,) with the digit.

Sources: https://lightning.ai/docs/pytorch/stable/common/lightning_module.html and
https://lightning.ai/docs/pytorch/stable/common/trainer.html
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

from reference import data
from reference.losses.vae import vae_loss
from reference.models.mlp import MLP
from reference.models.vae import VAE, VAEOutput

#: Images of the training part that the modules train on; the other 237 validate.
TRAINED_ON = 1200

Batch = tuple[Tensor, Tensor]


def quiet(**options: Any) -> dict[str, Any]:
    """Options for a Trainer on one CPU that writes no file and prints no bar; `options` go first.

    Source: https://lightning.ai/docs/pytorch/stable/common/trainer.html#trainer-flags
    """
    silent = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return silent | options


class DigitsModule(pl.LightningModule):
    """The data of a module that works on digits: one loader for each thing that a Trainer does."""

    def train_dataloader(self) -> DataLoader[Any]:
        """The first 1,200 training images, in an order that is drawn anew in every epoch."""
        images = data.digits()
        trained_on = TensorDataset(
            images.train_inputs[:TRAINED_ON], images.train_targets[:TRAINED_ON]
        )
        return DataLoader(trained_on, batch_size=self.hparams["batch_size"], shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """The other 237 training images, always in the same order."""
        images = data.digits()
        held_out = TensorDataset(
            images.train_inputs[TRAINED_ON:], images.train_targets[TRAINED_ON:]
        )
        return DataLoader(held_out, batch_size=self.hparams["batch_size"])

    def test_dataloader(self) -> DataLoader[Any]:
        """The 360 images of the test part."""
        images = data.digits()
        test = TensorDataset(images.test_inputs, images.test_targets)
        return DataLoader(test, batch_size=self.hparams["batch_size"])

    def predict_dataloader(self) -> DataLoader[Any]:
        """The images of the test part, with their targets, which prediction does not look at."""
        return self.test_dataloader()


class DigitsClassifier(DigitsModule):
    """64 -> hidden -> 10 logits, trained by SGD with momentum on the cross entropy.

    lr: the first learning rate; it is divided by 10 after every second epoch. dropout: probability
    that a hidden value is dropped in training.

    Source: https://lightning.ai/docs/pytorch/stable/starter/introduction.html
    """

    def __init__(
        self, hidden: int = 32, dropout: float = 0.0, lr: float = 0.2, batch_size: int = 64
    ) -> None:
        super().__init__()
        # Keeps the four arguments in self.hparams, in checkpoints and in the logger.
        self.save_hyperparameters()
        self.network = MLP((64, hidden, 10), dropout)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (n, 10): what `module(images)` gives; used by every step below."""
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch; the Trainer differentiates it and steps the optimizer."""
        images, targets = batch
        loss = cross_entropy(self(images), targets)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True, logger=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and accuracy of one batch; the Trainer averages both over the samples."""
        self._log_loss_and_accuracy(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """The same on the test part, when somebody asks for it: `trainer.test(module)`."""
        self._log_loss_and_accuracy(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The digits that the module sees, (n,): the Trainer gives back a list of these."""
        images, _ = batch
        digits: Tensor = self(images).argmax(dim=1)
        return digits

    def configure_optimizers(self) -> Any:
        """One optimizer, and one scheduler that the Trainer steps after each epoch."""
        optimizer = SGD(self.parameters(), lr=self.hparams["lr"], momentum=0.9)
        scheduler = StepLR(optimizer, step_size=2, gamma=0.1)
        return [optimizer], [scheduler]

    def _log_loss_and_accuracy(self, batch: Batch, part: str) -> None:
        images, targets = batch
        logits = self(images)
        self.log(f"{part}_loss", cross_entropy(logits, targets))
        self.log(f"{part}_accuracy", (logits.argmax(dim=1) == targets).float().mean())


class DigitsVAE(DigitsModule):
    """A variational autoencoder of the images, trained by Adam on reconstruction and divergence.

    kld_beta: the weight of the divergence. Losses are nats per image: both parts are summed over
    an image and averaged over the images.

    Source: https://arxiv.org/abs/1312.6114
    """

    def __init__(
        self,
        hidden: int = 64,
        latents: int = 8,
        kld_beta: float = 0.1,
        lr: float = 0.005,
        batch_size: int = 64,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = VAE(64, hidden, latents)

    def forward(self, images: Tensor) -> VAEOutput:
        """Reconstruction, mean, log-variance; the code is drawn in training, the mean otherwise."""
        output: VAEOutput = self.network(images)
        return output

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch; both of its parts are logged, since one can hide the other."""
        return self._loss_of(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The same loss on images that are not trained on."""
        self._loss_of(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """The same loss on the test part."""
        self._loss_of(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Reconstructions, (n, 64)."""
        images, _ = batch
        reconstruction: Tensor = self(images).reconstruction
        return reconstruction

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """An optimizer alone is a legal answer, too: the learning rate stays what it is."""
        return Adam(self.parameters(), lr=self.hparams["lr"])

    def _loss_of(self, batch: Batch, part: str) -> Tensor:
        images, _ = batch
        reconstruction, mean, log_variance = self(images)
        loss = vae_loss(
            reconstruction,
            images,
            mean,
            log_variance,
            kld_beta=self.hparams["kld_beta"],
            reconstruction_reduction="batchmean",
            kld_reduction="batchmean",
        )
        self.log(f"{part}_reconstruction", loss.reconstruction)
        self.log(f"{part}_kld", loss.kld)
        self.log(f"{part}_loss", loss.total)
        return loss.total
