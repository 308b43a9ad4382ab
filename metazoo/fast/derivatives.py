"""The passes of a block behind its convolution, as three pure functions in torch's operations.

They compute what the kernels in C compute, on any device; `metazoo.fast.compiled` makes few kernels of each. Maps are
`[..., n, C, H, W]` and what belongs to a channel is `[..., C]`, where `...` is nothing or a task axis. A window is a
group of `side` x `side` pixels that is pooled to one. Its code is the number of its largest pixel in row-major order,
plus `NEGATIVE` where that pixel's value is not above 0, so that the activation multiplies it by `slope`. Maps stored in
bfloat16 are computed with in float32. The derivation is in `metazoo.normalisation`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

NEGATIVE = 128
PIXELS = (-4, -2, -1)
"""The axes over which batch norm averages."""


def normalise_pool(
    z: Tensor, gamma: Tensor, beta: Tensor, eps: float, slope: float, side: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`(y, code, mean, r)`: batch norm by the batch's statistics, max-pool, (leaky) ReLU."""
    maps = z.to(gamma.dtype)
    variance, mean = torch.var_mean(maps, PIXELS, correction=0)
    r = (variance + eps).rsqrt()
    largest, *others = (
        (maps - _wide(mean)) * _wide(gamma * r) + _wide(beta) for maps in _pixels_of_windows(maps, side)
    )
    number = torch.zeros_like(largest, dtype=torch.uint8)
    for k, pixel in enumerate(others, start=1):
        larger = (pixel > largest) | pixel.isnan()
        largest, number = torch.where(larger, pixel, largest), torch.where(larger, k, number)
    positive = largest > 0
    y = torch.where(positive, largest, slope * largest)
    return y.to(z.dtype), torch.where(positive, number, number + NEGATIVE), mean, r


def backward(
    dy: Tensor, z: Tensor, code: Tensor, gamma: Tensor, mean: Tensor, r: Tensor, slope: float, side: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`(dz, dgamma, dbeta)` of dy."""
    centred = z.to(gamma.dtype) - _wide(mean)
    g = _through(dy.to(gamma.dtype), code, slope)
    dbeta = g.sum(PIXELS)
    dgamma = (_chosen(centred, code, side) * g).sum(PIXELS) * r
    k, size = gamma * r, z.numel() // r.numel()
    dz = centred * _wide(-k * r * dgamma / size) + _spread(g, code, side, z.shape) * _wide(k) - _wide(k * dbeta / size)
    return dz.to(z.dtype), dgamma, dbeta


def second(
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
    slope: float,
    side: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The cotangents of dy, z and gamma from those of dz, dgamma and dbeta."""
    centred, wide_u = z.to(gamma.dtype) - _wide(mean), u.to(gamma.dtype)
    g = _through(dy.to(gamma.dtype), code, slope)
    chosen_u = _chosen(wide_u, code, side)
    k, size = gamma * r, z.numel() // r.numel()
    u_mean, b = wide_u.sum(PIXELS) / size, (centred * wide_u).sum(PIXELS) * r / size
    dy_mean, a = dbeta / size, dgamma / size
    s = (chosen_u * g).sum(PIXELS) - size * (u_mean * dy_mean + a * b)
    weight_u, weight_dy = -k * a, -k * b if u_gamma is None else u_gamma - k * b
    g_mean, g_product = weight_u * u_mean + weight_dy * dy_mean, weight_u * b + weight_dy * a
    of_z = (
        centred * _wide(-r * r * (g_product + k * s / size))
        + wide_u * _wide(r * weight_u)
        + _spread(g, code, side, z.shape) * _wide(r * weight_dy)
        - _wide(r * g_mean)
    )
    shift = -k * u_mean if u_beta is None else u_beta - k * u_mean
    at_windows = _chosen(centred, code, side) * _wide(r * weight_dy) + chosen_u * _wide(k) + _wide(shift)
    return _through(at_windows, code, slope).to(dy.dtype), of_z.to(z.dtype), r * s


def _wide(channels: Tensor) -> Tensor:
    """`[..., C]` as `[..., 1, C, 1, 1]`, to broadcast over maps."""
    return channels[..., None, :, None, None]


def _pixels_of_windows(maps: Tensor, side: int) -> list[Tensor]:
    """The first pixel of every window, the second, and so on; rows and columns that fill no window are in none."""
    height, width = (length // side * side for length in maps.shape[-2:])
    return [maps[..., i:height:side, j:width:side] for i in range(side) for j in range(side)]


def _chosen(maps: Tensor, code: Tensor, side: int) -> Tensor:
    """Of every window the pixel that its code names."""
    value, *others = _pixels_of_windows(maps, side)
    number = _number(code)
    for k, pixel in enumerate(others, start=1):
        value = torch.where(number == k, pixel, value)
    return value


def _spread(g: Tensor, code: Tensor, side: int, shape: torch.Size) -> Tensor:
    """Maps of a shape with each window's value at the pixel that its code names, and zeros everywhere else."""
    if side == 1:
        return g
    down, across = (torch.arange(side, dtype=code.dtype, device=g.device).repeat(length) for length in g.shape[-2:])
    here = _enlarged(_number(code), side) == (side * down[:, None] + across)
    spread = torch.where(here, _enlarged(g, side), 0)
    return F.pad(spread, (0, shape[-1] - spread.shape[-1], 0, shape[-2] - spread.shape[-2]))


def _number(code: Tensor) -> Tensor:
    return code & (NEGATIVE - 1)


def _enlarged(windows: Tensor, side: int) -> Tensor:
    """Every window's value at each of its pixels."""
    spaced = windows[..., :, None, :, None]
    return spaced.expand(*spaced.shape[:-3], side, spaced.shape[-2], side).flatten(-2).flatten(-3, -2)


def _through(g: Tensor, code: Tensor, slope: float) -> Tensor:
    """Values through the activation's derivative at the coded pixels."""
    return torch.where(code < NEGATIVE, g, slope * g)
