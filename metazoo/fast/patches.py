"""The first block on images: what it would compute on its largest maps follows from the images' 3x3 patches.

With p the patch of a pixel and w a filter, the convolution's output there is w p, so that over all pixels

    mean = w m   and   var = w C w,   with m the mean patch and C the patches' covariance,

which need no map at all: m and C belong to the images, whatever the weights. Batch norm is then part of the
convolution, with weights s w and shift beta - s mean for s = gamma r, r = 1 / sqrt(var + eps), and as max-pool and
activation follow, only the largest pixel of each window is ever kept.

Backwards, with g the gradient at a window's pixel and p its patch, a = sum g (p - m), which is sums over windows, and
e = a w:

    dw = s (a - r^2 e w C),   dgamma = r e,   dbeta = sum g.

Of cotangents u, u_gamma, u_beta of these, with k = u_gamma r - s r^2 (u w C), that of a is b = s u + k w, that of g
is b (p - m) + u_beta, which is a value at the same pixel again, and directly

    of w:       k a - s r^2 e u C - r^3 (gamma (u a) - 3 gamma r^2 e (u w C) + u_gamma e) w C,
    of gamma:   r (u a) - r^3 e (u w C).
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
    images: int
    channels: int
    down: int
    across: int
    """The number of patches in an image is `down` times `across`."""
    mean: Tensor
    """`[9 C]` in float64, of the pixels as they are kept here."""
    covariance: Tensor
    """`[9 C, 9 C]` in float64."""


def fit(images: Tensor, weight: Tensor) -> bool:
    """Whether `block` can be used: for constant images of few channels, in the type of the weight."""
    few = 3 * images.shape[-3] <= native.GROUP
    return few and not images.requires_grad and images.dtype == weight.dtype and weight.shape[-2:] == (3, 3)


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
    """As `metazoo.fast.blocks.block`, without a bias and a gradient at the images and outside of `torch.func.vmap`."""
    return _Block.apply(weight, gamma, beta, _Given(patches_of(images, padding), slope, side, dtype), eps)


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
    native.run("patches_moments", pixels.dtype, pixels, channels, shape, second, mean)
    number = count * (height - 2) * (width - 2)
    mean /= number
    covariance = second / number - mean[:, None] * mean
    return Patches(pixels, count, channels, height - 2, width - 2, mean, covariance)


@dataclass(frozen=True)
class _Given:
    """What no derivative is taken of."""

    patches: Patches
    slope: float
    side: int
    dtype: torch.dtype
    """What y is stored in."""

    def run(self, name: str, *arguments: native.Argument) -> None:
        """Run a kernel on the patches; the other arguments come behind them."""
        native.run(name, self.dtype, self.patches.pixels, self.patches.channels, *arguments)

    def maps(self, filters: int, dtype: torch.dtype) -> Tensor:
        """Room for pooled maps, channels last."""
        shape = self.patches.images, filters, self.patches.down // self.side, self.patches.across // self.side
        return torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)

    def shape(self, filters: int) -> native.Shape:
        """Of the maps that are pooled."""
        patches = self.patches
        return native.Shape(patches.images, patches.down, patches.across, filters, self.side, torch.get_num_threads())


class _Block(torch.autograd.Function):
    """y of `(weight, gamma, beta)`."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, gamma: Tensor, beta: Tensor, given: _Given, eps: float) -> Tensor:
        patches, filters = given.patches, len(gamma)
        y, code = given.maps(filters, given.dtype), given.maps(filters, torch.uint8)
        kept = torch.empty(filters, 2 * len(patches.mean) + 1, dtype=torch.float64)
        moments, leaves = (patches.mean, patches.covariance), (t.contiguous() for t in (weight, gamma, beta))
        given.run("patches_forward", *moments, *leaves, eps, given.slope, given.shape(filters), y, code, kept)
        ctx.given = given
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weight, gamma, code, kept)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 5
        return *_Gradient.apply(dy, *ctx.saved_tensors, ctx.given), None, None


class _Gradient(torch.autograd.Function):
    """`(dw, dgamma, dbeta)` of `(dy, weight, gamma)`, where what the forward pass kept counts as theirs."""

    @staticmethod
    def forward(
        ctx: Any, dy: Tensor, weight: Tensor, gamma: Tensor, code: Tensor, kept: Tensor, given: _Given
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean, dy, scale = given.patches.mean, channels_last(dy), gamma.contiguous()
        dw = torch.empty(weight.shape, dtype=weight.dtype)
        dgamma, dbeta = torch.empty_like(scale), torch.empty_like(scale)
        kept_too = torch.empty(len(scale), len(mean) + 1, dtype=torch.float64)
        options = given.slope, given.shape(len(scale))
        given.run("patches_backward", mean, dy, code, scale, kept, *options, dw, dgamma, dbeta, kept_too)
        ctx.given = given
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(gamma, code, kept, kept_too)
        return dw, dgamma, dbeta

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        return *_SecondGradient.apply(*cotangents, *ctx.saved_tensors, ctx.given), *(None,) * 3


class _SecondGradient(torch.autograd.Function):
    """Cotangents of dy, weight and gamma from those of dw, dgamma and dbeta."""

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor | None,
        u_gamma: Tensor | None,
        u_beta: Tensor | None,
        gamma: Tensor,
        code: Tensor,
        kept: Tensor,
        kept_too: Tensor,
        given: _Given,
    ) -> tuple[Tensor, Tensor, Tensor]:
        patches, scale, filters = given.patches, gamma.contiguous(), len(gamma)
        cotangents = (t if t is None else t.contiguous() for t in (u, u_gamma, u_beta))
        of_dy, of_gamma = given.maps(filters, given.dtype), torch.empty_like(scale)
        of_weight = torch.empty(filters, patches.channels, 3, 3, dtype=gamma.dtype)
        known = patches.mean, patches.covariance, *cotangents, code, scale, kept, kept_too
        given.run("patches_second", *known, given.slope, given.shape(filters), of_dy, of_weight, of_gamma)
        return of_dy, of_weight, of_gamma

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise RuntimeError("A block of metazoo.fast.blocks has no third derivative.")
