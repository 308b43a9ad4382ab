"""Norm, max-pool and activation of a block as one autograd function, with both derivatives written by hand.

The derivation is in `metazoo.normalisation`; pooling and activation only choose and scale single values, which are
remembered as one byte a window. What computes is exchangeable: the kernels in C, or the functions of
`metazoo.fast.derivatives` as they are or compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metazoo.fast import compiled, derivatives, native
from metazoo.fast.forms import channels_last


@dataclass(frozen=True)
class Passes:
    """One way to compute y and its derivatives; what they take and give is said in `metazoo.fast.derivatives`."""

    forward: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]
    second: Callable[..., tuple[Tensor, Tensor, Tensor]]


class NormalisePool(torch.autograd.Function):
    """y of `(z, gamma, beta)`."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, gamma: Tensor, beta: Tensor, eps: float, slope: float, side: int, passes: Passes
    ) -> Tensor:
        y, code, mean, r = passes.forward(z, gamma, beta, eps=eps, slope=slope, side=side)
        ctx.options = slope, side, passes
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(z, gamma, code, mean, r)  # as given: second derivatives go where they came from
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 7
        return *_Gradient.apply(dy, *ctx.saved_tensors, *ctx.options), *(None,) * 4


class _Gradient(torch.autograd.Function):
    """`(dz, dgamma, dbeta)` of `(dy, z, gamma)`, where code, mean and r count as functions of z."""

    @staticmethod
    def forward(
        ctx: Any,
        dy: Tensor,
        z: Tensor,
        gamma: Tensor,
        code: Tensor,
        mean: Tensor,
        r: Tensor,
        slope: float,
        side: int,
        passes: Passes,
    ) -> tuple[Tensor, ...]:
        dz, dgamma, dbeta = passes.backward(dy, z, code, gamma, mean, r, slope=slope, side=side)
        ctx.options = slope, side, passes
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(dy, z, code, gamma, mean, r, dgamma, dbeta)
        return dz, dgamma, dbeta

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        return *_SecondGradient.apply(*cotangents, *ctx.saved_tensors, *ctx.options), *(None,) * 6


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
        passes: Passes,
    ) -> tuple[Tensor, Tensor, Tensor]:
        u = torch.zeros_like(z) if u is None else u
        given = u, u_gamma, u_beta, dy, z, code, gamma, mean, r, dgamma, dbeta
        return passes.second(*given, slope=slope, side=side)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise RuntimeError("A block of metazoo.fast.blocks has no third derivative.")


def _kernels_forward(
    z: Tensor, gamma: Tensor, beta: Tensor, *, eps: float, slope: float, side: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    images, channels, height, width = z.shape
    pooled = images, channels, height // side, width // side
    y = torch.empty(pooled, dtype=z.dtype, memory_format=torch.channels_last)
    code = torch.empty(pooled, dtype=torch.uint8, memory_format=torch.channels_last)
    given = channels_last(z), gamma.contiguous(), beta.contiguous()
    mean, r = torch.empty_like(given[1]), torch.empty_like(given[1])
    native.run("normalise_pool", z.dtype, *given, eps, slope, native.shape_of(z, side), y, code, mean, r)
    return y, code, mean, r


def _kernels_backward(
    dy: Tensor, z: Tensor, code: Tensor, gamma: Tensor, mean: Tensor, r: Tensor, *, slope: float, side: int
) -> tuple[Tensor, Tensor, Tensor]:
    dy, z, gamma = channels_last(dy), channels_last(z), gamma.contiguous()
    dz, dgamma, dbeta = torch.empty_like(z), torch.empty_like(gamma), torch.empty_like(gamma)
    shape = native.shape_of(z, side)
    native.run("normalise_pool_backward", z.dtype, dy, z, code, gamma, mean, r, slope, shape, dz, dgamma, dbeta)
    return dz, dgamma, dbeta


def _kernels_second(
    u: Tensor,
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
    *,
    slope: float,
    side: int,
) -> tuple[Tensor, Tensor, Tensor]:
    u, dy, z, gamma = channels_last(u), channels_last(dy), channels_last(z), gamma.contiguous()
    u_gamma, u_beta = (t if t is None else t.contiguous() for t in (u_gamma, u_beta))
    of_dy, of_z, of_gamma = torch.empty_like(dy), torch.empty_like(z), torch.empty_like(gamma)
    given = u, u_gamma, u_beta, dy, z, code, gamma, mean, r, dgamma, dbeta
    shape = native.shape_of(z, side)
    native.run("normalise_pool_second", z.dtype, *given, slope, shape, of_dy, of_z, of_gamma)
    return of_dy, of_z, of_gamma


def _compiled_second(
    u: Tensor, u_gamma: Tensor | None, u_beta: Tensor | None, *others: Tensor, **numbers: float
) -> tuple[Tensor, Tensor, Tensor]:
    """With zeros for None, which saves the compilation of a kind of its own."""
    zeros = torch.zeros_like(others[-1])
    given = zeros if u_gamma is None else u_gamma, zeros if u_beta is None else u_beta
    return _SECOND(u, *given, *others, **numbers)


KERNELS = Passes(_kernels_forward, _kernels_backward, _kernels_second)
EAGER = Passes(derivatives.normalise_pool, derivatives.backward, derivatives.second)
_SECOND = compiled.Compiled(derivatives.second)
COMPILED = Passes(
    compiled.Compiled(derivatives.normalise_pool), compiled.Compiled(derivatives.backward), _compiled_second
)
