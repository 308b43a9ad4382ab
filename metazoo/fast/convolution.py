"""Convolution with its derivatives of every order, each made of plain forward and backward convolutions.

torch's own second derivative writes the weight's share as one convolution with kernels as large as the maps and turns
images in memory for it. Convolution is linear in the image x and in the weight w, so no more is needed than this: with
g the gradient at the output, dx = data(g, w) and dw = weight(g, x), and for cotangents u_x and u_w of these two,

    of_g = conv(u_x, w) + conv(x, u_w),   of_x = data(g, u_w),   of_w = weight(g, u_x).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metazoo.fast import forms, winograd
from metazoo.fast.forms import channels_last

_BACKWARD = torch.ops.aten.convolution_backward.default


def convolve(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """The convolution `[n, F, H, W]` of maps `[n, C, H, W]` with a weight `[F, C, h, w]`; on a CPU channels last.

    It multiplies in the maps' type, or more exactly. It may run under `torch.func.vmap` while gradients are taken
    outside by autograd.
    """
    if stacked(x, weight):
        return _ConvolveStacked.apply(x, weight, padding)
    if weight.dtype != x.dtype and (_in_forms(x) or not winograd.fits(x, weight)):
        weight = weight.to(x.dtype)
    if not _in_forms(x):
        return _Convolve.apply(x, weight, padding)
    return _Convolve.apply(x.unsqueeze(0), weight.unsqueeze(0), padding).squeeze(0)


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` in steps of one pixel, which on a GPU runs in the form that is fastest there."""

    def forward(self, input: Tensor) -> Tensor:
        if not _in_forms(input) or torch.is_autocast_enabled(input.device.type) or input.numel() == 0:
            return super().forward(input)
        maps = convolve(input, self.weight, int(self.padding[0]))
        return maps if self.bias is None else maps + self.bias[:, None, None]


def _in_forms(x: Tensor) -> bool:
    """Whether convolutions of these maps run in one of `metazoo.fast.forms`, of however many tasks."""
    return x.device.type != "cpu" or forms.asked_for() is not None


def stacked(*tensors: Tensor) -> bool:
    """Whether one of the tensors has a task axis that `torch.func.vmap` hides."""
    return any(map(torch._C._functorch.is_batchedtensor, tensors))


def tasks_first(tensor: Tensor, dim: int | None, tasks: int) -> Tensor:
    """A batched tensor with its task axis `dim`, or one of a tensor that all tasks share, in front."""
    return tensor.movedim(dim, 0) if dim is not None else tensor.expand(tasks, *tensor.shape)


class _Convolve(torch.autograd.Function):
    """Of maps and a weight; or of several tasks' `[T, n, C, H, W]` and `[T, F, C, h, w]`, in one of `forms`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: int) -> Tensor:
        ctx.padding = padding
        ctx.save_for_backward(x, weight)
        ctx.set_materialize_grads(False)
        if x.dim() == 5:
            return forms.forward(x, weight, padding)
        if winograd.fits(x, weight):
            return winograd.convolve(channels_last(x), weight, padding)
        return torch.conv2d(channels_last(x), weight, None, 1, padding)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> tuple[Tensor | None, ...]:
        if g is None:
            return None, None, None
        wanted = tuple(ctx.needs_input_grad[:2])
        return *_Gradient.apply(g, *ctx.saved_tensors, ctx.padding, wanted), None


class _ConvolveStacked(torch.autograd.Function):
    """The same under `torch.func.vmap`.

    A function of its own, because one that vmap takes has its arguments' names looked up at every call.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, padding: int) -> Tensor:
        return _Convolve.apply(x, weight, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None: ...

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, weight: Tensor, padding: int) -> tuple[Tensor, int]:
        x = tasks_first(x, in_dims[0], info.batch_size)
        if in_dims[1] is None:
            return convolve(x.flatten(0, 1), weight, padding).unflatten(0, (info.batch_size, -1)), 0
        weight = weight.movedim(in_dims[1], 0)
        return _Convolve.apply(x, weight if weight.dtype == x.dtype else _InType.apply(weight, x.dtype), padding), 0


class _InType(torch.autograd.Function):
    """Tasks' weights in another type; tasks that share one still do."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = weight.dtype
        return weight.to(dtype) if weight.stride(0) else weight[0].to(dtype).expand_as(weight)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g.to(ctx.dtype), None


class _Gradient(torch.autograd.Function):
    """`(dx, dw)` of `(g, x, w)`, None for what is not wanted."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor, padding: int, wanted: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.save_for_backward(g, x, weight)
        ctx.padding = padding
        ctx.set_materialize_grads(False)
        if x.dim() == 5:
            dx = forms.of_maps(g, weight, padding) if wanted[0] else None
            dw = forms.of_weight(g, x, weight, padding) if wanted[1] else None
            return dx, dw
        if winograd.fits(x, weight):
            g = channels_last(g)
            dx = winograd.gradient_at_maps(g, weight, padding) if wanted[0] else None
            dw = winograd.gradient_at_weight(g, channels_last(x), padding) if wanted[1] else None
            return dx, dw
        pads, ones = [padding, padding], [1, 1]
        options = None, ones, pads, ones, False, [0, 0], 1, [*wanted, False]
        dx, dw, _ = _BACKWARD(channels_last(g), channels_last(x), weight, *options)
        return dx, dw

    @staticmethod
    def backward(ctx: Any, u_x: Tensor | None, u_w: Tensor | None) -> tuple[Tensor | None, ...]:
        g, x, weight = ctx.saved_tensors
        of_g = of_x = of_w = None
        wants_g, wants_x, wants_w = ctx.needs_input_grad[:3]
        if u_x is not None:
            if wants_g:
                of_g = _Convolve.apply(u_x, weight, ctx.padding)
            if wants_w:
                _, of_w = _Gradient.apply(g, u_x, weight, ctx.padding, (False, True))
        if u_w is not None:
            if wants_g:
                other = _Convolve.apply(x, u_w, ctx.padding)
                of_g = other if of_g is None else of_g + other
            if wants_x:
                of_x, _ = _Gradient.apply(g, x, u_w, ctx.padding, (True, False))
        return of_g, of_x, of_w, None, None
