"""Forms of a convolution of T tasks at once, each with weights of its own: which is fastest depends on the GPU.

Maps are `[T, n, C, H, W]`, weights `[T, F, C, h, w]`, gradients at the output `[T, n, F, H', W']`; strides are 1. The
three operations are what a convolution and its derivatives of every order consist of. Each is linear in both arguments
and has these forms, which give the same numbers up to rounding:

- grouped: one convolution of the maps `[n, T C, H, W]` in T groups;
- looped: one convolution a task;
- unfolded: the 3x3 patches written out, and one batched matrix product.

The first two exist for maps whose values lie in planes, and channels last. Where all tasks share one weight, as in the
first inner step, they are one task of T n images.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from metazoo.fast import trials

Operation: TypeAlias = Literal["forward", "of_maps", "of_weight"]

_Form: TypeAlias = Callable[..., Tensor]

_BACKWARD = torch.ops.aten.convolution_backward.default


def forward(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """The convolution `[T, n, F, H', W']` of maps and weights."""
    return _with_one_weight("forward", x, weight, padding)


def of_maps(g: Tensor, weight: Tensor, padding: int) -> Tensor:
    """What a gradient g at the output becomes at the maps, `[T, n, C, H, W]`."""
    return _with_one_weight("of_maps", g, weight, padding)


def of_weight(g: Tensor, x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """What a gradient g at the output becomes at a weight shaped like `weight`: each task's own."""
    return _run("of_weight", g, x, weight, padding=padding)


def asked_for() -> str | None:
    """The form that the environment variable `METAZOO_CONVOLUTION` fixes, on any device; None where it fixes none."""
    return trials.asked_for("convolution", _FORMS["forward"])


def _with_one_weight(operation: Operation, maps: Tensor, weight: Tensor, padding: int) -> Tensor:
    tasks = len(weight)
    if tasks == 1 or weight.stride(0):
        return _run(operation, maps, weight, padding=padding)
    together = maps.flatten(0, 1).unsqueeze(0)
    return _run(operation, together, weight[:1], padding=padding).squeeze(0).unflatten(0, (tasks, -1))


def _run(operation: Operation, *tensors: Tensor, padding: int) -> Tensor:
    """The operation in the form that is fixed, or else known or found to be the fastest."""
    form = asked_for() or _fastest(operation, tensors, padding)
    return _FORMS[operation][form](*tensors, padding)


def _fastest(operation: Operation, tensors: tuple[Tensor, ...], padding: int) -> str:
    maps, several = tensors[0], len(tensors[0]) > 1
    ways = {
        name: partial(form, *tensors, padding) for name, form in _FORMS[operation].items() if several or name in OF_ONE
    }
    facts: tuple[trials.Fact, ...] = (operation, str(maps.dtype), _arithmetic(maps), padding)
    facts += tuple(map(trials.layout, tensors))
    default = "grouped_channels_last" if maps.device.type == "cpu" else "grouped"
    return trials.choose("convolution", facts, ways, default, maps.device)


def _arithmetic(maps: Tensor) -> str:
    """What float32 convolutions and matrix products are multiplied in at present."""
    if maps.dtype != torch.float32:
        return ""
    cudnn: Any = torch.backends.cudnn
    return f"{cudnn.conv.fp32_precision} {torch.backends.cuda.matmul.fp32_precision}"


Layout: TypeAlias = Callable[[Tensor], Tensor]


def in_planes(maps: Tensor) -> Tensor:
    return maps.contiguous()


def channels_last(maps: Tensor) -> Tensor:
    """Maps `[n, C, H, W]` with a pixel's channels as neighbours in memory; a copy unless they are."""
    return maps.contiguous(memory_format=torch.channels_last)


def folded(maps: Tensor) -> Tensor:
    """`[T, n, C, H, W]` as `[n, T C, H, W]`."""
    return maps.transpose(0, 1).flatten(1, 2)


def unfolded(maps: Tensor, tasks: int) -> Tensor:
    """`[n, T C, H, W]` as `[T, n, C, H, W]`."""
    return maps.unflatten(1, (tasks, -1)).transpose(0, 1)


def _grouped_forward(layout: Layout, x: Tensor, weight: Tensor, padding: int) -> Tensor:
    tasks = len(weight)
    return unfolded(F.conv2d(layout(folded(x)), weight.flatten(0, 1), None, 1, padding, 1, tasks), tasks)


def _grouped_of_maps(layout: Layout, g: Tensor, weight: Tensor, padding: int) -> Tensor:
    tasks = len(weight)
    return unfolded(F.conv_transpose2d(layout(folded(g)), weight.flatten(0, 1), None, 1, padding, 0, tasks), tasks)


def _grouped_of_weight(layout: Layout, g: Tensor, x: Tensor, weight: Tensor, padding: int) -> Tensor:
    tasks = len(weight)
    found = _weights_gradient(layout(folded(g)), layout(folded(x)), weight.flatten(0, 1), padding, tasks)
    return found.unflatten(0, (tasks, -1))


def _looped_forward(layout: Layout, x: Tensor, weight: Tensor, padding: int) -> Tensor:
    each = [F.conv2d(layout(maps), own, None, 1, padding) for maps, own in zip(x, weight, strict=True)]
    return torch.cat(each).unflatten(0, (len(x), -1))


def _looped_of_maps(layout: Layout, g: Tensor, weight: Tensor, padding: int) -> Tensor:
    each = [F.conv_transpose2d(layout(maps), own, None, 1, padding) for maps, own in zip(g, weight, strict=True)]
    return torch.cat(each).unflatten(0, (len(g), -1))


def _looped_of_weight(layout: Layout, g: Tensor, x: Tensor, weight: Tensor, padding: int) -> Tensor:
    tasks = zip(g, x, weight, strict=True)
    return torch.stack([_weights_gradient(layout(at), layout(maps), own, padding, 1) for at, maps, own in tasks])


def _weights_gradient(g: Tensor, x: Tensor, weight: Tensor, padding: int, groups: int) -> Tensor:
    options = None, [1, 1], [padding, padding], [1, 1], False, [0, 0], groups, [False, True, False]
    return _BACKWARD(g, x, weight, *options)[1]


def _product_forward(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    return _product(x, weight, (padding, padding))


def _product_of_maps(g: Tensor, weight: Tensor, padding: int) -> Tensor:
    """The convolution with the kernels turned by half a circle."""
    height, width = weight.shape[-2:]
    return _product(g, weight.transpose(1, 2).flip(3, 4), (height - 1 - padding, width - 1 - padding))


def _product_of_weight(g: Tensor, x: Tensor, weight: Tensor, padding: int) -> Tensor:
    patches, _ = _patches(x, weight, (padding, padding))
    at_pixels = g.permute(0, 2, 1, 3, 4).flatten(2)
    return torch.bmm(at_pixels, patches).view(weight.shape)


def _product(x: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
    patches, pixels = _patches(x, weight, padding)
    product = torch.bmm(patches, weight.flatten(2).transpose(1, 2))
    return product.unflatten(1, pixels).permute(0, 1, 4, 2, 3)


def _patches(x: Tensor, weight: Tensor, padding: tuple[int, int]) -> tuple[Tensor, tuple[int, int, int]]:
    """Every task's patches `[T, n H' W', C h w]`, and n, H' and W'."""
    (down, across), (height, width) = padding, weight.shape[-2:]
    windows = F.pad(x, (across, across, down, down)).unfold(3, height, 1).unfold(4, width, 1)
    pixels = windows.shape[1], windows.shape[3], windows.shape[4]
    return windows.permute(0, 1, 3, 4, 2, 5, 6).flatten(4).flatten(1, 3), pixels


def _forms(product: _Form, grouped: Callable[..., Tensor], looped: Callable[..., Tensor]) -> dict[str, _Form]:
    return {
        "grouped": partial(grouped, in_planes),
        "grouped_channels_last": partial(grouped, channels_last),
        "looped": partial(looped, in_planes),
        "looped_channels_last": partial(looped, channels_last),
        "unfolded": product,
    }


OF_ONE = "grouped", "grouped_channels_last", "unfolded"
"""Forms that differ where there is one task only."""

_FORMS: dict[Operation, dict[str, _Form]] = {
    "forward": _forms(_product_forward, _grouped_forward, _looped_forward),
    "of_maps": _forms(_product_of_maps, _grouped_of_maps, _looped_of_maps),
    "of_weight": _forms(_product_of_weight, _grouped_of_weight, _looped_of_weight),
}
