"""One block of Conv4 in few passes over memory: convolution; then batch norm, max-pool and activation as one function.

The derivation of batch norm's first and second derivative is in `metazoo.normalisation`; pooling and activation only
choose and scale single values, which `kernels/blocks.c` remembers as one byte a window.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metazoo import native, patches
from metazoo.convolution import channels_last, convolve, fold, stacked


def fits(maps: Tensor, weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether `block` can be used with maps kept in `dtype`: on a CPU, with a C compiler, for filters in sixteens."""
    return (
        maps.device.type == "cpu"
        and maps.dtype in (weight.dtype, dtype)
        and (dtype == weight.dtype or (dtype, weight.dtype) == (torch.bfloat16, torch.float32))
        and weight.shape[-4] % native.LANES == 0
        and maps.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and native.usable(dtype)
    )


def block(
    maps: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    *,
    padding: int,
    eps: float,
    slope: float,
    side: int,
    dtype: torch.dtype,
) -> Tensor:
    """Convolution, batch norm by the batch's statistics, max-pool over `side` x `side` pixels, (leaky) ReLU.

    Maps `[n, C, H, W]` become `[n, F, H / side, W / side]`, channels last in memory; `side` is 1 or 2. Equals torch's
    modules in numbers, gradients and second derivatives, ties of the max-pool included; the bias has a gradient of
    exactly zero, because batch norm takes it away again. It may run under `torch.func.vmap` while gradients are taken
    outside by autograd. A third derivative raises RuntimeError.

    With dtype bfloat16, convolutions multiply in it and maps are kept in it; statistics, scale and shift stay float32.
    """
    if bias is not None:
        beta = beta + (bias - bias)
    together = stacked(maps, weight, gamma, beta)
    if patches.fit(maps, weight) and not together:
        return patches.block(maps, weight, gamma, beta, padding=padding, eps=eps, slope=slope, side=side, dtype=dtype)
    maps = convolve(maps.to(dtype), weight.to(dtype), padding)
    function = _NormalisePoolStacked if together else _NormalisePool
    return function.apply(maps, gamma, beta, eps, slope, side)


class _NormalisePool(torch.autograd.Function):
    """y of `(z, gamma, beta)`."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, gamma: Tensor, beta: Tensor, eps: float, slope: float, side: int) -> Tensor:
        images, channels, height, width = z.shape
        pooled = images, channels, height // side, width // side
        y = torch.empty(pooled, dtype=z.dtype, memory_format=torch.channels_last)
        code = torch.empty(pooled, dtype=torch.uint8, memory_format=torch.channels_last)
        given = channels_last(z), gamma.contiguous(), beta.contiguous()
        mean, r = torch.empty_like(given[1]), torch.empty_like(given[1])
        native.run("normalise_pool", z.dtype, *given, eps, slope, native.shape_of(z, side), y, code, mean, r)
        ctx.slope, ctx.side = slope, side
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(z, gamma, code, mean, r)  # as given: second derivatives go where they came from
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 6
        return *_Gradient.apply(dy, *ctx.saved_tensors, ctx.slope, ctx.side), None, None, None


class _NormalisePoolStacked(torch.autograd.Function):
    """The same under `torch.func.vmap`."""

    @staticmethod
    def forward(z: Tensor, gamma: Tensor, beta: Tensor, eps: float, slope: float, side: int) -> Tensor:
        return _NormalisePool.apply(z, gamma, beta, eps, slope, side)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None: ...

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        z: Tensor,
        gamma: Tensor,
        beta: Tensor,
        eps: float,
        slope: float,
        side: int,
    ) -> tuple[Tensor, int]:
        """The task axis folded into the channels, which is where the convolution leaves it."""
        tasks = info.batch_size
        of_z, of_gamma, of_beta = in_dims[:3]
        folded = fold(z, of_z, 1, tasks), fold(gamma, of_gamma, 0, tasks), fold(beta, of_beta, 0, tasks)
        return _NormalisePool.apply(*folded, eps, slope, side).unflatten(1, (tasks, -1)), 1


class _Gradient(torch.autograd.Function):
    """`(dz, dgamma, dbeta)` of `(dy, z, gamma)`, where code, mean and r count as functions of z."""

    @staticmethod
    def forward(
        ctx: Any, dy: Tensor, z: Tensor, gamma: Tensor, code: Tensor, mean: Tensor, r: Tensor, slope: float, side: int
    ) -> tuple[Tensor, ...]:
        dy, z, gamma = channels_last(dy), channels_last(z), gamma.contiguous()
        dz, dgamma, dbeta = torch.empty_like(z), torch.empty_like(gamma), torch.empty_like(gamma)
        shape = native.shape_of(z, side)
        native.run("normalise_pool_backward", z.dtype, dy, z, code, gamma, mean, r, slope, shape, dz, dgamma, dbeta)
        ctx.slope, ctx.side = slope, side
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(dy, z, code, gamma, mean, r, dgamma, dbeta)
        return dz, dgamma, dbeta

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        return *_SecondGradient.apply(*cotangents, *ctx.saved_tensors, ctx.slope, ctx.side), *(None,) * 5


class _SecondGradient(torch.autograd.Function):
    """Cotangents of dy, z and gamma from those of dz, dgamma and dbeta."""

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor | None,
        u_gamma: Tensor | None,
        u_beta: Tensor | None,
        dy: Tensor,
        z: Tensor,
        code: Tensor,
        gamma: Tensor,
        mean: Tensor,
        r: Tensor,
        dgamma: Tensor,
        dbeta: Tensor,
        slope: float,
        side: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        u = torch.zeros_like(z) if u is None else channels_last(u)
        u_gamma, u_beta = (t if t is None else t.contiguous() for t in (u_gamma, u_beta))
        of_dy, of_z, of_gamma = torch.empty_like(dy), torch.empty_like(z), torch.empty_like(gamma)
        given = u, u_gamma, u_beta, dy, z, code, gamma, mean, r, dgamma, dbeta
        shape = native.shape_of(z, side)
        native.run("normalise_pool_second", z.dtype, *given, slope, shape, of_dy, of_z, of_gamma)
        return of_dy, of_z, of_gamma

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise RuntimeError("A block of metazoo.blocks has no third derivative.")
