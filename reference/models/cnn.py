"""A convolutional network for the digits."""

from __future__ import annotations

from torch import Tensor, nn


class CNN(nn.Module):
    """Twice convolution, batch normalisation, ReLU and pooling, then one linear layer.

    Inputs (n, 1, 8, 8): grey images of 8 x 8 pixels. Outputs (n, classes): logits.
    channels: how many features the two convolutions look for. Each pooling halves the sides, so
    that the linear layer sees channels[1] maps of 2 x 2. The convolutions have no bias, since the
    batch normalisation behind them would take it away again.

    Source: https://docs.pytorch.org/tutorials/beginner/introyt/modelsyt_tutorial.html
    """

    def __init__(self, channels: tuple[int, int] = (8, 8), classes: int = 10) -> None:
        super().__init__()
        first, second = channels
        self.features = nn.Sequential(
            nn.Conv2d(1, first, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(second),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Linear(second * 2 * 2, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images).flatten(start_dim=1))
        return logits
