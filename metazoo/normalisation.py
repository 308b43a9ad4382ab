"""Batch normalisation by the statistics of the batch it is given, cheap to differentiate twice.

torch differentiates batch norm's backward by composing about forty elementwise passes, a large part of a second-order
meta-step. Here it is written by hand. With n values a channel, z the input, r = 1/sqrt(var + eps), x = (z - mean) r,
y = gamma x + beta and dy the gradient at y, the backward is

    dbeta = sum(dy),   dgamma = sum(dy x),   dz = k (dy - mean(dy) - x A),   with A = mean(dy x) and k = gamma r.

Let u, u_gamma, u_beta be the cotangents of dz, dgamma, dbeta, and B = mean(u x). What the three outputs say together is
L = sum(u dz) + sum(u_gamma dgamma) + sum(u_beta dbeta), with sum(u dz) = k S, where

    S = n (mean(u dy) - mean(u) mean(dy) - A B).

- dL/d dy = k (u - mean(u) - x B) + u_gamma x + u_beta: its first term is the backward itself, applied to u.
- z acts through x, where dL/dx = G := -k (A u + B dy) + u_gamma dy, and through r in k. A normalised x moves by
  r (dz - mean(dz) - x mean(dz x)) and r by -r^2 x dz / n, so
  dL/dz = r (G - mean(G) - x mean(G x)) - gamma S r^2 x / n.
- dL/d gamma = r S.

The means of G and G x follow from A, B and the means of u and dy, so what remains is two reductions and, per channel,
one linear combination of dense tensors for each of dy and z.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_NORM, _BACKWARD = torch.ops.aten.native_batch_norm.default, torch.ops.aten.native_batch_norm_backward.default

LARGE = 2**15
"""Number of values from which several vectorised passes beat torch's one scalar pass on a CPU."""


class BatchStatisticsNorm(nn.BatchNorm2d):
    """Batch norm of `[n, C, H, W]` with learned scale and shift, in training and evaluation by the batch's statistics.

    Equals `nn.BatchNorm2d(C, track_running_stats=False)` in numbers, gradients and second derivatives, and gives the
    shift for a channel of a single value, which that refuses. It may run under `torch.func.vmap` while gradients are
    taken outside by autograd. As in torch, a third derivative raises RuntimeError.
    """

    def __init__(self, features: int, eps: float = 1e-5):
        super().__init__(features, eps=eps, track_running_stats=False)

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        if input.device.type != "cpu" or input.dtype != self.weight.dtype:  # the latter under autocast
            return torch.batch_norm(input, self.weight, self.bias, None, None, True, 0.0, self.eps, True)
        return _Normalise.apply(input, self.weight, self.bias, self.eps)[0]


class _Normalise(torch.autograd.Function):
    """`(y, mean, r)` of `(z, gamma, beta, eps)`."""

    @staticmethod
    def forward(z: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        if z.numel() < LARGE:
            return _NORM(z, gamma, beta, None, None, True, 0.0, eps)
        size = z.numel() // len(gamma)
        mean = z.sum((0, 2, 3)) / size
        centred = z - _wide(mean)
        r = (_sum_of_products(centred, centred) / size + eps).rsqrt()
        return centred.mul_(_wide(gamma * r)).add_(_wide(beta)), mean, r

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        z, gamma, _, _ = inputs
        _, mean, r = output
        ctx.mark_non_differentiable(mean, r)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(z, gamma, mean, r)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return None, None, None, None
        return *_Gradient.apply(dy, *ctx.saved_tensors), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], z: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Any:
        """The task axis folded into the channels, which is where a grouped convolution leaves it."""
        tasks = info.batch_size

        def fold(tensor: Tensor, dim: int | None, to: int) -> Tensor:
            stacked = tensor.movedim(dim, to) if dim is not None else tensor.unsqueeze(to)
            return stacked.expand(*stacked.shape[:to], tasks, *stacked.shape[to + 1 :]).flatten(to, to + 1)

        folded = fold(z, in_dims[0], 1), fold(gamma, in_dims[1], 0), fold(beta, in_dims[2], 0)
        y, mean, r = _Normalise.apply(*folded, eps)
        return (y.unflatten(1, (tasks, -1)), mean.view(tasks, -1), r.view(tasks, -1)), (1, 0, 0)


class _Gradient(torch.autograd.Function):
    """`(dz, dgamma, dbeta)` of `(dy, z, gamma, mean, r)`, where mean and r count as functions of z."""

    @staticmethod
    def forward(ctx: Any, dy: Tensor, z: Tensor, gamma: Tensor, mean: Tensor, r: Tensor) -> tuple[Tensor, ...]:
        dz, dgamma, dbeta = _backward(dy, z, gamma, mean, r)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(dy, z, gamma, mean, r, dgamma, dbeta)
        return dz, dgamma, dbeta

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        return *_SecondGradient.apply(*cotangents, *ctx.saved_tensors), None, None


class _SecondGradient(torch.autograd.Function):
    """Cotangents of dy, z and gamma from those of dz, dgamma and dbeta.

    A function of its own for the error in its backward: `once_differentiable` lets gradients pass by silently.
    """

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor | None,
        u_gamma: Tensor | None,
        u_beta: Tensor | None,
        dy: Tensor,
        z: Tensor,
        gamma: Tensor,
        mean: Tensor,
        r: Tensor,
        dgamma: Tensor,
        dbeta: Tensor,
    ) -> tuple[Tensor | None, ...]:
        size = z.numel() // len(gamma)
        dy_mean, a = dbeta / size, dgamma / size
        of_dy, of_z, of_gamma = None, None, None
        weight_u, weight_dy = None, u_gamma  # G = weight_u u + weight_dy dy
        g_mean = g_product = curvature = torch.zeros_like(r)  # mean(G), mean(G x), gamma S r / n
        if u is not None:
            of_dy, u_product, u_sum = _backward(u, z, gamma, mean, r)
            u_mean, b = u_sum / size, u_product / size
            s = _sum_of_products(u, dy) - size * (u_mean * dy_mean + a * b)
            of_gamma = r * s
            k = gamma * r
            curvature = k * s / size
            weight_u = -k * a
            weight_dy = -k * b if u_gamma is None else u_gamma - k * b
            g_mean, g_product = weight_u * u_mean, weight_u * b
        if u_gamma is not None or u_beta is not None:
            of_dy = torch.zeros_like(dy) if of_dy is None else of_dy
            shift = torch.zeros_like(r) if u_beta is None else u_beta
            if u_gamma is not None:
                slope = u_gamma * r
                of_dy.addcmul_(z, _wide(slope))
                shift = shift - slope * mean
            of_dy.add_(_wide(shift))
        if weight_dy is not None:
            g_mean, g_product = g_mean + weight_dy * dy_mean, g_product + weight_dy * a
            slope = -r * r * (g_product + curvature)
            of_z = (z * _wide(slope)).add_(_wide(-r * g_mean - slope * mean)).addcmul_(dy, _wide(r * weight_dy))
            if u is not None and weight_u is not None:
                of_z.addcmul_(u, _wide(r * weight_u))
        return of_dy, of_z, of_gamma

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise RuntimeError("The batch norm of metazoo.normalisation has no third derivative.")


def _backward(dy: Tensor, z: Tensor, gamma: Tensor, mean: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _BACKWARD(dy, z, gamma, None, None, mean, r, True, 0.0, [True, True, True])


def _sum_of_products(left: Tensor, right: Tensor) -> Tensor:
    """Sum of `left * right` over each channel, by batch norm's reduction, without a dense product."""
    zeros = left.new_zeros(left.shape[1])
    _, products, _ = _BACKWARD(left, right, None, None, None, zeros, zeros + 1, True, 0.0, [False, True, True])
    return products


def _wide(channels: Tensor) -> Tensor:
    """`[C]` as `[C, 1, 1]`, to broadcast over images."""
    return channels[:, None, None]
