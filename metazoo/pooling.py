"""2x2 max-pool by vectorised passes: torch's own kernel for contiguous maps on a CPU visits value by value."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metazoo.normalisation import LARGE


class HalvingMaxPool(nn.MaxPool2d):
    """`nn.MaxPool2d(2)` of `[n, C, H, W]`; as there, the first of equal values in row-major order gets the gradient.

    Of several NaN in a window another one may get it. It may run under `torch.func.vmap` while gradients are taken
    outside by autograd.
    """

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu" or input.numel() < LARGE:
            return super().forward(input)
        if torch.is_grad_enabled():
            return _Pool.apply(input)[0]
        return torch.maximum(*_rows(torch.maximum(*_columns(input))))


class _Pool(torch.autograd.Function):
    """The maxima, and their positions in the flattened maps as torch's kernels for the gradient want them."""

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        left, right = _columns(x)
        above, below = _rows(torch.maximum(left, right))
        maxima, low = torch.maximum(above, below), below > above
        height, width = maxima.shape[-2:]
        first = 2 * (torch.arange(height)[:, None] * x.shape[-1] + torch.arange(width))
        above, below = _rows(right > left)
        # By logic instead of `where`, which branches on every value.
        return maxima, (first + (above ^ (low & (above ^ below)))).add_(low, alpha=x.shape[-1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.shape = inputs[0].shape
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> Tensor:
        like = gradient.new_empty(()).expand(ctx.shape)  # only its shape counts
        (positions,) = ctx.saved_tensors
        return torch.ops.aten.max_pool2d_with_indices_backward(
            gradient, like, [2, 2], [2, 2], [0, 0], [1, 1], False, positions
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], x: Tensor) -> Any:
        axis = in_dims[0] if in_dims[0] < 2 else 0
        x = x.movedim(in_dims[0], axis)
        maxima, positions = _Pool.apply(x.flatten(0, 1))
        return (maxima.unflatten(0, x.shape[:2]), positions.unflatten(0, x.shape[:2])), (axis, axis)


def _columns(x: Tensor) -> tuple[Tensor, Tensor]:
    """Left and right pixels `[..., H, W/2]` of the windows; an odd last row or column is in none."""
    height, width = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
    return x[..., :height, 0:width:2], x[..., :height, 1:width:2]


def _rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Upper and lower rows of the windows."""
    return x[..., 0::2, :], x[..., 1::2, :]
