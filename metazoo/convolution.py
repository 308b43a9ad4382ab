"""Convolution with its derivatives of every order, each made of plain forward and backward convolutions.

torch's own second derivative writes the weight's share as one convolution with kernels as large as the maps and turns
images in memory for it. Convolution is linear in the image x and in the weight w, so no more is needed than this: with
g the gradient at the output, dx = data(g, w) and dw = weight(g, x), and for cotangents u_x and u_w of these two,

    of_g = conv(u_x, w) + conv(x, u_w),   of_x = data(g, u_w),   of_w = weight(g, u_x).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_BACKWARD = torch.ops.aten.convolution_backward.default


def convolve(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """The convolution `[n, F, H, W]` of maps `[n, C, H, W]` with a weight `[F, C, h, w]`, channels last in memory.

    It may run under `torch.func.vmap` while gradients are taken outside by autograd.
    """
    if stacked(x, weight):
        return _ConvolveStacked.apply(x, weight, padding)
    return _Convolve.apply(x, weight, padding, 1)


def stacked(*tensors: Tensor) -> bool:
    """Whether one of the tensors has a task axis that `torch.func.vmap` hides."""
    return any(map(torch._C._functorch.is_batchedtensor, tensors))


def channels_last(maps: Tensor) -> Tensor:
    """The same maps with a pixel's channels as neighbours in memory; a copy unless they are."""
    return maps.contiguous(memory_format=torch.channels_last)


def fold(tensor: Tensor, dim: int | None, to: int, tasks: int) -> Tensor:
    """A batched tensor's task axis `dim`, or a new one, folded into axis `to`."""
    stacked = tensor.movedim(dim, to) if dim is not None else tensor.unsqueeze(to)
    return stacked.expand(*stacked.shape[:to], tasks, *stacked.shape[to + 1 :]).flatten(to, to + 1)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: int, groups: int) -> Tensor:
        ctx.padding, ctx.groups = padding, groups
        ctx.save_for_backward(x, weight)
        ctx.set_materialize_grads(False)
        return torch.conv2d(channels_last(x), weight, None, 1, padding, 1, groups)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> tuple[Tensor | None, ...]:
        if g is None:
            return None, None, None, None
        wanted = tuple(ctx.needs_input_grad[:2])
        return *_Gradient.apply(g, *ctx.saved_tensors, ctx.padding, ctx.groups, wanted), None, None


class _ConvolveStacked(torch.autograd.Function):
    """The same under `torch.func.vmap`.

    A function of its own, because one that vmap takes has its arguments' names looked up at every call.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, padding: int) -> Tensor:
        return _Convolve.apply(x, weight, padding, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None: ...

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, weight: Tensor, padding: int) -> tuple[Tensor, int]:
        """The task axis folded into the channels: a group of them a task."""
        tasks = info.batch_size
        folded = fold(x, in_dims[0], 1, tasks), fold(weight, in_dims[1], 0, tasks)
        return _Convolve.apply(*folded, padding, tasks).unflatten(1, (tasks, -1)), 1


class _Gradient(torch.autograd.Function):
    """`(dx, dw)` of `(g, x, w)`, None for what is not wanted."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor, padding: int, groups: int, wanted: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.save_for_backward(g, x, weight)
        ctx.padding, ctx.groups = padding, groups
        ctx.set_materialize_grads(False)
        pads, ones = [padding, padding], [1, 1]
        options = None, ones, pads, ones, False, [0, 0], groups, [*wanted, False]
        dx, dw, _ = _BACKWARD(channels_last(g), channels_last(x), weight, *options)
        return dx, dw

    @staticmethod
    def backward(ctx: Any, u_x: Tensor | None, u_w: Tensor | None) -> tuple[Tensor | None, ...]:
        g, x, weight = ctx.saved_tensors
        of_g = of_x = of_w = None
        wants_g, wants_x, wants_w = ctx.needs_input_grad[:3]
        if u_x is not None:
            if wants_g:
                of_g = _Convolve.apply(u_x, weight, ctx.padding, ctx.groups)
            if wants_w:
                _, of_w = _Gradient.apply(g, u_x, weight, ctx.padding, ctx.groups, (False, True))
        if u_w is not None:
            if wants_g:
                other = _Convolve.apply(x, u_w, ctx.padding, ctx.groups)
                of_g = other if of_g is None else of_g + other
            if wants_x:
                of_x, _ = _Gradient.apply(g, x, u_w, ctx.padding, ctx.groups, (True, False))
        return of_g, of_x, of_w, None, None, None
