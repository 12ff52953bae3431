"""Convolution by loops over its windows, and the sizes of what it gives.

Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.Conv2d.html and
https://docs.pytorch.org/docs/stable/generated/torch.nn.ConvTranspose2d.html
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Pair = tuple[int, int]


def convolution_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """How many windows fit: floor((n + 2 * padding - dilation * (kernel - 1) - 1) / stride) + 1.

    One side of an image of n pixels, padded on both ends. A window reaches over
    dilation * (kernel - 1) + 1 pixels, and moves on by `stride` pixels at a time.

    Raises ValueError if not even one window fits.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.Conv2d.html
    """
    room_to_move = size + 2 * padding - (dilation * (kernel - 1) + 1)
    if room_to_move < 0:
        raise ValueError(f"a window of {dilation * (kernel - 1) + 1} does not fit into {size}")
    return room_to_move // stride + 1


def transposed_size(
    size: int, kernel: int, stride: int, padding: int, dilation: int, output_padding: int
) -> int:
    """(n - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1 + output_padding.

    One side. It is the size of an image from which a convolution with the same numbers makes n
    windows. With a stride s there are s such sizes, and `output_padding`, below s, chooses.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.ConvTranspose2d.html
    """
    return (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1 + output_padding


def padded(inputs: Tensor, padding: Pair, value: float = 0.0) -> Tensor:
    """The images (n, c, h, w) with `value` around them: rows above and below, columns beside.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.Conv2d.html
    """
    n, c, h, w = inputs.shape
    rows, columns = padding
    frame = torch.full((n, c, h + 2 * rows, w + 2 * columns), value, dtype=inputs.dtype)
    frame[:, :, rows : rows + h, columns : columns + w] = inputs
    return frame


def conv2d(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Tensor:
    """y[n, o, i, j] = bias[o] + sum over c, a, b of weight[o, c, a, b] * x[n, c', i', j'].

    i' = i * stride + a * dilation - padding, j' likewise, and x is 0 outside the image. The output
    channels are cut into `groups` equal parts, and so are the input channels; part g of the output
    sees only part g of the input, so that c' = g * (channels / groups) + c. The kernel is not
    flipped: this is the cross-correlation of image and kernel.

    inputs: (n, channels, h, w). weight: (out, channels / groups, kh, kw). bias: (out,) or None.
    Pairs are (rows, columns). Returns (n, out, h', w'), with sides from `convolution_size`.

    Raises ValueError if no window fits, or if the channels are not those of the weight.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.Conv2d.html
    """
    out, channels, kh, kw = weight.shape
    if inputs.shape[1] != channels * groups or out % groups:
        raise ValueError(f"{inputs.shape[1]} channels, weight {tuple(weight.shape)}, {groups=}")
    h = convolution_size(inputs.shape[2], kh, stride[0], padding[0], dilation[0])
    w = convolution_size(inputs.shape[3], kw, stride[1], padding[1], dilation[1])
    image = padded(inputs, padding)
    pixels = []
    for o in range(out):
        group = o // (out // groups)
        seen = image[:, group * channels : (group + 1) * channels]
        for i in range(h):
            for j in range(w):
                top, left = i * stride[0], j * stride[1]
                rows = slice(top, top + dilation[0] * (kh - 1) + 1, dilation[0])
                columns = slice(left, left + dilation[1] * (kw - 1) + 1, dilation[1])
                pixels.append((seen[:, :, rows, columns] * weight[o]).sum(dim=(1, 2, 3)))
    outputs = torch.stack(pixels, dim=1).reshape(len(inputs), out, h, w)
    return outputs if bias is None else outputs + bias.reshape(1, out, 1, 1)


def conv_transpose2d(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    output_padding: Pair = (0, 0),
) -> Tensor:
    """Each input value stamps the kernel, times itself, on the output; overlapping stamps add up.

    Input (i, j) stamps weight[c, o, a, b] at the row i * stride + a * dilation - padding, likewise
    at the column. What falls outside of the output is lost. Where no stamp arrives there is 0,
    plus bias[o] as everywhere.

    inputs: (n, c, h, w). weight: (c, out, kh, kw). bias: (out,) or None. Pairs are (rows, columns).
    Returns (n, out, h', w'), with sides from `transposed_size`. No groups.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.ConvTranspose2d.html
    """
    n, _, *sides = inputs.shape
    _, out, *kernel = weight.shape
    reach = [dilation[d] * (kernel[d] - 1) + 1 for d in (0, 1)]
    h, w = ((sides[d] - 1) * stride[d] + reach[d] + output_padding[d] for d in (0, 1))
    canvas = torch.zeros(n, out, h, w, dtype=inputs.dtype)
    for i in range(sides[0]):
        for j in range(sides[1]):
            top, left = i * stride[0], j * stride[1]
            stamp = (inputs[:, :, i, j, None, None, None] * weight).sum(dim=1)
            rows = slice(top, top + reach[0], dilation[0])
            columns = slice(left, left + reach[1], dilation[1])
            canvas[:, :, rows, columns] += stamp
    outputs = canvas[:, :, padding[0] : h - padding[0], padding[1] : w - padding[1]]
    return outputs if bias is None else outputs + bias.reshape(1, out, 1, 1)


def receptive_field(layers: Sequence[tuple[int, int]]) -> int:
    """How many pixels on a side one value of the last layer depends on: 1 + sum (k - 1) * jump.

    layers: (kernel, stride) of each convolution or pooling, from the image on. The jump of a layer
    is the product of the strides before it: the distance in pixels between two neighbours of what
    it reads.

    Source: https://distill.pub/2019/computing-receptive-fields/
    """
    field, jump = 1, 1
    for kernel, stride in layers:
        field += (kernel - 1) * jump
        jump *= stride
    return field
