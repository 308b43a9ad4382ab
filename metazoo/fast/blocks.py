"""One block of Conv4 in few passes over memory: convolution; then batch norm, max-pool and activation as one function.

On a CPU that function computes by kernels in C. On a GPU it computes by torch's operations, compiled or as they are,
unless torch's own modules are faster there: a trial decides (`metazoo.fast.trials`). The environment variable
`METAZOO_BLOCK` fixes one of the three, on any device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from metazoo.fast import compiled, native, patches, trials
from metazoo.fast.convolution import convolve, stacked, tasks_first
from metazoo.fast.forms import folded, unfolded
from metazoo.fast.fused import COMPILED, EAGER, KERNELS, NormalisePool, Passes


def fits(maps: Tensor, weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether `block` can be used with maps kept in `dtype`; on a CPU if there are kernels, for filters in sixteens."""
    return (
        maps.dtype in (weight.dtype, dtype)
        and (dtype == weight.dtype or (dtype, weight.dtype) == (torch.bfloat16, torch.float32))
        and maps.numel() > 0
        and not torch.is_autocast_enabled(maps.device.type)
        and (not _on_kernels(maps) or (weight.shape[-4] % native.GROUP == 0 and native.usable(dtype)))
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

    Maps `[n, C, H, W]` become `[n, F, H / side, W / side]`, on a CPU channels last in memory; `side` is 1 or 2. Equals
    torch's modules in numbers, gradients and second derivatives, ties of the max-pool included; the bias has a gradient
    of exactly zero, because batch norm takes it away again. It may run under `torch.func.vmap` while gradients are
    taken outside by autograd. A third derivative raises RuntimeError.

    With dtype bfloat16, maps are kept in it, and convolutions multiply in it or more exactly; statistics, scale and
    shift stay float32.
    """
    if bias is not None:
        beta = beta + (bias - bias)
    together = stacked(maps, weight, gamma, beta)
    if _on_kernels(maps) and patches.fit(maps, weight) and not together:
        return patches.block(maps, weight, gamma, beta, padding=padding, eps=eps, slope=slope, side=side, dtype=dtype)
    maps = convolve(maps.to(dtype), weight, padding)
    if together:
        return _NormalisePoolStacked.apply(maps, gamma, beta, eps, slope, side)
    return _normalise_pool(maps, gamma, beta, eps, slope, side)


def _on_kernels(maps: Tensor) -> bool:
    """Whether it is kernels in C that compute."""
    return maps.device.type == "cpu" and trials.asked_for("block", WAYS) is None


def _normalise_pool(z: Tensor, gamma: Tensor, beta: Tensor, eps: float, slope: float, side: int) -> Tensor:
    """y `[..., n, C, h, w]` of maps `[..., n, C, H, W]` and `[..., C]`, where `...` is nothing or a task axis."""
    if not _on_kernels(z):
        return WAYS[_way(z, gamma, beta, eps, slope, side)](z, gamma, beta, eps, slope, side)
    if z.dim() == 4:
        return NormalisePool.apply(z, gamma, beta, eps, slope, side, KERNELS)
    maps = NormalisePool.apply(folded(z), gamma.flatten(), beta.flatten(), eps, slope, side, KERNELS)
    return unfolded(maps, len(z))


def _way(z: Tensor, gamma: Tensor, beta: Tensor, eps: float, slope: float, side: int) -> str:
    """Which of `WAYS` to go for maps of these shapes: as asked, or whichever is fastest with its derivatives."""
    if asked := trials.asked_for("block", WAYS):
        return asked
    graph = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (z, gamma, beta))

    def work(way: Callable[..., Tensor]) -> None:
        inputs = [tensor.detach().requires_grad_(graph) for tensor in (z, gamma, beta)]
        y = way(*inputs, eps, slope, side)
        if graph:
            first = torch.autograd.grad(y, inputs, torch.ones_like(y).requires_grad_(), create_graph=True)
            torch.autograd.grad(first, inputs[:2], [torch.ones_like(gradient) for gradient in first])

    possible = {name: way for name, way in WAYS.items() if name != "compiled" or compiled.available(z.device)}
    facts = str(z.dtype), *map(trials.layout, (z, gamma)), side, slope, "with derivatives" if graph else "alone"
    return trials.choose("block", facts, {n: partial(work, w) for n, w in possible.items()}, "modules", z.device)


def _modules(z: Tensor, gamma: Tensor, beta: Tensor, eps: float, slope: float, side: int) -> Tensor:
    """What torch's own modules do, one by one."""
    maps = folded(z) if z.dim() == 5 else z
    scale, shift = gamma.flatten(), beta.flatten()
    maps = torch.batch_norm(maps.to(gamma.dtype), scale, shift, None, None, True, 0.0, eps, True)
    maps = F.max_pool2d(maps, side) if side > 1 else maps
    maps = (F.leaky_relu(maps, slope) if slope else F.relu(maps)).to(z.dtype)
    return unfolded(maps, len(z)) if z.dim() == 5 else maps


class _NormalisePoolStacked(torch.autograd.Function):
    """`_normalise_pool` under `torch.func.vmap`."""

    @staticmethod
    def forward(z: Tensor, gamma: Tensor, beta: Tensor, eps: float, slope: float, side: int) -> Tensor:
        return _normalise_pool(z, gamma, beta, eps, slope, side)

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
        z, gamma, beta = (
            tasks_first(t, dim, info.batch_size) for t, dim in zip((z, gamma, beta), in_dims, strict=False)
        )
        return _normalise_pool(z, gamma, beta, eps, slope, side), 0


def _by_passes(of: Passes, z: Tensor, gamma: Tensor, beta: Tensor, eps: float, slope: float, side: int) -> Tensor:
    return NormalisePool.apply(z, gamma, beta, eps, slope, side, of)


WAYS: dict[str, Callable[..., Tensor]] = {
    "compiled": partial(_by_passes, COMPILED),
    "eager": partial(_by_passes, EAGER),
    "modules": _modules,
}
"""How norm, pool and activation can be computed where there are no kernels for them."""
