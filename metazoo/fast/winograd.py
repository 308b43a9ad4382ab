"""The 3x3 convolution by Winograd's minimal filtering, on a CPU: a quarter of the multiplications of a plain one.

Lavin & Gray, *Fast Algorithms for Convolutional Neural Networks*, CVPR 2016, with 4x4 outputs a tile. The rounding
error in float32 is about twice that of torch's convolution: some 6e-7 of the result.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metazoo.fast import native

MOST_PAIRS = 128 * 128
"""Pairs of a channel and a filter: with many more, the filters leave the processor's cache, and little is gained."""


_TYPE_OF_WEIGHT = {torch.float32: torch.float32, torch.float64: torch.float64, torch.bfloat16: torch.float32}
"""By the type of the maps. Those in bfloat16 are multiplied in float32 and only stored in bfloat16."""


def fits(maps: Tensor, weight: Tensor, groups: int = 1) -> bool:
    """Whether the functions here can be used: on a CPU, for 3x3 filters, channels and filters in sixteens."""
    filters, channels, *sides = weight.shape
    return (
        groups == 1
        and sides == [3, 3]
        and channels % native.GROUP == filters % native.GROUP == 0
        and filters * channels <= MOST_PAIRS
        and maps.device.type == "cpu"
        and weight.dtype == _TYPE_OF_WEIGHT.get(maps.dtype)
        and maps.numel() > 0
        and native.usable(maps.dtype)
    )


def convolve(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """The convolution `[n, F, H', W']` of maps `[n, C, H, W]`, channels last, with a weight `[F, C, 3, 3]`."""
    return _convolved(x, weight, weight.shape[0], padding, turned=0)


def gradient_at_maps(g: Tensor, weight: Tensor, padding: int) -> Tensor:
    """The gradient at x, of the gradient g at the output: a convolution with the filters turned."""
    return _convolved(g, weight, weight.shape[1], 2 - padding, turned=1)


def gradient_at_weight(g: Tensor, x: Tensor, padding: int) -> Tensor:
    """The gradient at the weight, of the gradient g at the output."""
    of_weight = torch.empty(g.shape[1], x.shape[1], 3, 3, dtype=_TYPE_OF_WEIGHT[x.dtype])
    native.run("winograd_weight", x.dtype, g, x, _maps(x, g.shape[1], padding), of_weight)
    return of_weight


def _convolved(x: Tensor, weight: Tensor, filters: int, padding: int, turned: int) -> Tensor:
    images, _, height, width = x.shape
    shape = images, filters, height + 2 * padding - 2, width + 2 * padding - 2
    y = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    native.run("winograd_convolve", x.dtype, x, weight.contiguous(), _maps(x, filters, padding), turned, y)
    return y


def _maps(x: Tensor, filters: int, padding: int) -> native.Maps:
    images, channels, height, width = x.shape
    return native.Maps(images, height, width, channels, filters, padding, torch.get_num_threads())
