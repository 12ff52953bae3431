"""Pooling by loops over its windows.

Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.MaxPool2d.html,
https://docs.pytorch.org/docs/stable/generated/torch.nn.AvgPool2d.html and
https://docs.pytorch.org/docs/stable/generated/torch.nn.AdaptiveAvgPool2d.html
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from reference.layers.convolution import Pair, convolution_size, padded


def max_pool2d(
    inputs: Tensor, kernel: Pair, stride: Pair, padding: Pair = (0, 0), dilation: Pair = (1, 1)
) -> Tensor:
    """The largest value of each window; the padding is minus infinity, so it never wins.

    inputs: (n, c, h, w). Pairs are (rows, columns). Of equal values the first one, by rows, gets
    the gradient.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.MaxPool2d.html
    """

    def largest(window: Tensor) -> Tensor:
        flat = window.flatten(start_dim=2)
        return flat.gather(2, flat.argmax(dim=2, keepdim=True)).squeeze(2)

    return _windows(padded(inputs, padding, -torch.inf), kernel, stride, dilation, largest)


def avg_pool2d(
    inputs: Tensor,
    kernel: Pair,
    stride: Pair,
    padding: Pair = (0, 0),
    count_include_pad: bool = True,
) -> Tensor:
    """The sum of each window by its size; without `count_include_pad` by its pixels in the image.

    inputs: (n, c, h, w). Pairs are (rows, columns). The padding is zero.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.AvgPool2d.html
    """
    one_by_one = (1, 1)
    total = _windows(padded(inputs, padding), kernel, stride, one_by_one, lambda w: w.sum((2, 3)))
    if count_include_pad:
        return total / (kernel[0] * kernel[1])
    inside = padded(torch.ones_like(inputs), padding)
    return total / _windows(inside, kernel, stride, one_by_one, lambda w: w.sum((2, 3)))


def adaptive_avg_pool2d(inputs: Tensor, output_size: Pair) -> Tensor:
    """The mean of each cell, for as many cells as asked for.

    Of k cells along a side of n pixels, cell i takes in the pixels from floor(i * n / k) up to,
    not including, ceil((i + 1) * n / k). Where k does not divide n they overlap.

    inputs: (n, c, h, w). Returns (n, c, *output_size).

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.AdaptiveAvgPool2d.html
    """
    rows, columns = (
        [slice(i * n // k, -(-(i + 1) * n // k)) for i in range(k)]
        for n, k in zip(inputs.shape[2:], output_size, strict=True)
    )
    means = [inputs[:, :, r, c].mean(dim=(2, 3)) for r in rows for c in columns]
    return torch.stack(means, dim=2).reshape(*inputs.shape[:2], *output_size)


def _windows(
    image: Tensor, kernel: Pair, stride: Pair, dilation: Pair, reduce: Callable[[Tensor], Tensor]
) -> Tensor:
    """What `reduce` makes of each window (n, c, kh, kw) of a padded image."""
    h, w = (
        convolution_size(image.shape[2 + d], kernel[d], stride[d], 0, dilation[d]) for d in (0, 1)
    )
    reach = [dilation[d] * (kernel[d] - 1) + 1 for d in (0, 1)]
    values = [
        reduce(
            image[
                :,
                :,
                i * stride[0] : i * stride[0] + reach[0] : dilation[0],
                j * stride[1] : j * stride[1] + reach[1] : dilation[1],
            ]
        )
        for i in range(h)
        for j in range(w)
    ]
    return torch.stack(values, dim=2).reshape(*image.shape[:2], h, w)
