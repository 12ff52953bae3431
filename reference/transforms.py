"""Transforms of images, as a learner writes them: each is a callable that takes an image.

A tensor image has the shape (channels, height, width), a batch of them (n, channels, height,
width). Random transforms draw from torch's global generator, once for each call.

Source: https://docs.pytorch.org/vision/stable/transforms.html
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reference.loading import TableDataset

Transform = Callable[[Any], Any]


class Compose:
    """Several transforms as one: each is given what the one before it returned.

    Source: https://docs.pytorch.org/vision/stable/generated/torchvision.transforms.v2.Compose.html
    """

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms = transforms

    def __call__(self, image: Any) -> Any:
        for transform in self.transforms:
            image = transform(image)
        return image


class ToTensor:
    """A PIL image or an array, (height, width, channels) or (height, width), as a tensor image.

    Bytes, 0 to 255, become float32 from 0 to 1. Other dtypes keep dtype and values.

    Source: https://docs.pytorch.org/vision/stable/generated/torchvision.transforms.ToTensor.html
    """

    def __call__(self, image: Any) -> Tensor:
        pixels = torch.from_numpy(np.array(image))
        if pixels.dim() == 2:
            pixels = pixels.unsqueeze(-1)
        channels_first = pixels.permute(2, 0, 1).contiguous()
        return channels_first.float() / 255 if pixels.dtype == torch.uint8 else channels_first


class Normalize:
    """(pixel - mean) / std with the mean and the std of the pixel's channel.

    Takes an image or a batch of images. Raises TypeError for anything but a tensor of floating
    point, ValueError for a std of 0.

    Source: https://docs.pytorch.org/vision/stable/generated/torchvision.transforms.v2.Normalize.html
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        if 0 in std:
            raise ValueError("a std of 0 cannot be divided by")
        self.mean, self.std = mean, std

    def __call__(self, image: Tensor) -> Tensor:
        if not isinstance(image, Tensor) or not image.is_floating_point():
            raise TypeError("only tensors of floating point can be normalized")
        normalized = image.clone()
        for channel, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
            normalized[..., channel, :, :] = (image[..., channel, :, :] - mean) / std
        return normalized


def channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over all pixels of all images.

    `images` has the shape (n, channels, height, width). The deviation is sqrt(mean((x - mean)^2)).

    Source: https://docs.pytorch.org/vision/stable/generated/torchvision.transforms.v2.Normalize.html
    """
    means, deviations = [], []
    for channel in range(images.shape[1]):
        pixels = images[:, channel].double()
        mean = pixels.mean()
        means.append(mean.item())
        deviations.append((pixels - mean).square().mean().sqrt().item())
    return means, deviations


class RandomHorizontalFlip:
    """Mirrors left and right with probability p, for all that one call is given.

    Source:
    https://docs.pytorch.org/vision/stable/generated/torchvision.transforms.v2.RandomHorizontalFlip.html
    """

    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, image: Tensor) -> Tensor:
        mirrored = torch.rand(()) < self.p
        return image[..., range(image.shape[-1] - 1, -1, -1)] if mirrored else image


class RandomShift:
    """Moves an image by at most `pixels` up or down and left or right; what gets free is 0.

    All (2 * pixels + 1)^2 shifts are equally probable.

    Source: https://docs.pytorch.org/vision/stable/transforms.html
    """

    def __init__(self, pixels: int = 1) -> None:
        self.pixels = pixels

    def __call__(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        down, right = torch.randint(2 * self.pixels + 1, (2,)).tolist()
        # Lay the image onto a larger black one, and cut a window out of that.
        canvas = image.new_zeros(
            *image.shape[:-2], height + 2 * self.pixels, width + 2 * self.pixels
        )
        canvas[..., down : down + height, right : right + width] = image
        return canvas[
            ..., self.pixels : self.pixels + height, self.pixels : self.pixels + width
        ].clone()


def train_and_validation(
    inputs: Tensor, targets: Tensor, augment: Transform, *, validation: int, seed: int
) -> tuple[TableDataset, TableDataset]:
    """Two data sets at random, of which only the first one is augmented.

    `validation` samples are held out, the others are for training.

    Source: https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.random_split
    """
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    held_out, fitted = order[:validation], order[validation:]
    return (
        TableDataset(inputs[fitted], targets[fitted], augment),
        TableDataset(inputs[held_out], targets[held_out]),
    )
