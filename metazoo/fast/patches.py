"""The first block on images: what it would compute on its largest maps follows from the images' 3x3 patches.

With p the patch of a pixel and w a filter, the convolution's output there is w p, so that over all pixels

    mean = w m   and   var = w C w,   with m the mean patch and C the patches' covariance,

which need no map at all: m and C belong to the images, whatever the weights. Batch norm is then part of the
convolution, with weights s w and shift beta - s mean for s = gamma / sqrt(var + eps), and as max-pool and activation
follow, only the largest pixel of each window is ever kept. The derivatives of weights and shift are sums over windows,
and theirs are values at the same pixels again; of m, C and w, autograd takes care.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.weak import TensorWeakRef

from metazoo.fast import native
from metazoo.fast.forms import channels_last


@dataclass(frozen=True)
class Patches:
    """The 3x3 patches of images, each in the order row, column, channel."""

    pixels: Tensor
    """`[n (H + 2) (W + 2) C]` and some to spare: images channels last, with the zeros around them.

    All less each channel's mean, which changes what a convolution gives by a constant that batch norm takes away; so a
    large mean costs no precision.
    """
    shape: tuple[int, int, int, int]
    """n, C and the number of patches down and across."""
    mean: Tensor
    """`[9 C]` in float64, of the pixels as they are kept here."""
    covariance: Tensor
    """`[9 C, 9 C]` in float64."""


def fit(images: Tensor, weight: Tensor) -> bool:
    """Whether `block` can be used: for constant images of few channels."""
    return not images.requires_grad and 3 * images.shape[-3] <= native.GROUP and weight.shape[-2:] == (3, 3)


def block(
    images: Tensor,
    weight: Tensor,
    gamma: Tensor,
    beta: Tensor,
    *,
    padding: int,
    eps: float,
    slope: float,
    side: int,
    dtype: torch.dtype,
) -> Tensor:
    """As `metazoo.fast.blocks.block`, without a bias and a gradient at the images and outside of `torch.func.vmap`.

    It has derivatives of every order.
    """
    patches = patches_of(images, padding)
    filters = weight.permute(0, 2, 3, 1).flatten(1).double()
    mean = filters @ patches.mean
    scale = gamma * ((filters @ patches.covariance * filters).sum(dim=1) + eps).rsqrt()
    return _Pool.apply(scale[:, None] * filters, beta - scale * mean, patches, slope, side, dtype)[0]


_recent: deque[tuple[TensorWeakRef, tuple[Any, ...], Patches]] = deque(maxlen=4)
"""Patches of the last few batches of images: an inner loop asks for those of its support set in every step."""


def patches_of(images: Tensor, padding: int) -> Patches:
    """The patches of images `[n, C, H, W]`, remembered as long as the images are there and unchanged."""
    owner = images if images._base is None else images._base
    if owner.is_inference():
        return _patches(images, padding)
    place = images.storage_offset(), images.shape, images.stride(), images.dtype, owner._version, padding
    for reference, known, patches in _recent:
        if known == place and reference() is owner:
            return patches
    patches = _patches(images, padding)
    _recent.append((TensorWeakRef(owner), place, patches))
    return patches


def _patches(images: Tensor, padding: int) -> Patches:
    centre = images.detach().mean(dim=(0, 2, 3))
    padded = F.pad(images.detach(), (padding,) * 4).permute(0, 2, 3, 1) - centre
    count, height, width, channels = padded.shape
    pixels = F.pad(padded.flatten(), (0, native.GROUP))
    second = torch.empty(9 * channels, 9 * channels, dtype=torch.float64)
    mean = torch.empty(9 * channels, dtype=torch.float64)
    shape = native.Shape(count, height - 2, width - 2, 1, 1, torch.get_num_threads())
    native.run("patches_moments", pixels.dtype, pixels, native.Count(channels), shape, second, mean)
    number = count * (height - 2) * (width - 2)
    mean /= number
    return Patches(pixels, (count, channels, height - 2, width - 2), mean, second / number - mean[:, None] * mean)


class _Pool(torch.autograd.Function):
    """`(y, code)` of `(weights, shift)`, which are float64 whatever the images are; y is of type `dtype`."""

    @staticmethod
    def forward(
        ctx: Any, weights: Tensor, shift: Tensor, patches: Patches, slope: float, side: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        code = _empty(patches, len(shift), side, torch.uint8)
        y = _convolved(weights, shift, patches, slope, side, dtype, code=code)
        ctx.options = patches, slope, side, dtype
        ctx.save_for_backward(code)
        ctx.mark_non_differentiable(code)
        ctx.set_materialize_grads(False)
        return y, code

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 6
        return *_Sums.apply(dy, *ctx.saved_tensors, *ctx.options), *(None,) * 4


class _Sums(torch.autograd.Function):
    """Of dy, what arrives at the weights and the shift: linear in dy."""

    @staticmethod
    def forward(
        ctx: Any, dy: Tensor, code: Tensor, patches: Patches, slope: float, side: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        ctx.options = patches, slope, side, dtype
        ctx.save_for_backward(code)
        filters = dy.shape[1]
        of_weights = torch.empty(filters, len(patches.mean), dtype=torch.float64)
        of_shift = torch.empty(filters, dtype=torch.float64)
        shape = _shape(patches, filters, side)
        given = patches.pixels, native.Count(patches.shape[1]), channels_last(dy), code
        native.run("patches_sums", dtype, *given, slope, shape, of_weights, of_shift)
        return of_weights, of_shift

    @staticmethod
    def backward(ctx: Any, u_weights: Tensor, u_shift: Tensor) -> tuple[Tensor | None, ...]:
        return _Chosen.apply(u_weights, u_shift, *ctx.saved_tensors, *ctx.options), *(None,) * 5


class _Chosen(torch.autograd.Function):
    """The transpose of `_Sums`: what weights and shift give at the coded pixels."""

    @staticmethod
    def forward(
        ctx: Any,
        weights: Tensor,
        shift: Tensor,
        code: Tensor,
        patches: Patches,
        slope: float,
        side: int,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.options = patches, slope, side, dtype
        ctx.save_for_backward(code)
        return _convolved(weights, shift, patches, slope, side, dtype, chosen_by=code)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return *_Sums.apply(dy, *ctx.saved_tensors, *ctx.options), *(None,) * 5


def _convolved(
    weights: Tensor,
    shift: Tensor,
    patches: Patches,
    slope: float,
    side: int,
    dtype: torch.dtype,
    *,
    code: Tensor | None = None,
    chosen_by: Tensor | None = None,
) -> Tensor:
    """Largest pixels, activated, with their codes written to `code`; or the pixels that `chosen_by` names."""
    count, real = len(shift), patches.pixels.dtype
    y = _empty(patches, count, side, dtype)
    packed = weights.unflatten(0, (-1, native.GROUP)).transpose(1, 2).to(real).contiguous()
    given = patches.pixels, native.Count(patches.shape[1]), packed, shift.to(real).contiguous()
    native.run("patches", dtype, *given, slope, _shape(patches, count, side), y, code, chosen_by)
    return y


def _empty(patches: Patches, filters: int, side: int, dtype: torch.dtype) -> Tensor:
    count, _, down, across = patches.shape
    return torch.empty(count, filters, down // side, across // side, dtype=dtype, memory_format=torch.channels_last)


def _shape(patches: Patches, filters: int, side: int) -> native.Shape:
    count, _, down, across = patches.shape
    return native.Shape(count, down, across, filters, side, torch.get_num_threads())
