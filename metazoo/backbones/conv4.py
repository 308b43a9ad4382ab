"""Conv4, the network of four convolutional blocks that few-shot learning is usually measured on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from metazoo.backbones.backbone import Backbone, xavier_uniform
from metazoo.errors import UserError
from metazoo.fast import blocks
from metazoo.fast.convolution import Conv2d
from metazoo.normalisation import BatchStatisticsNorm
from metazoo.pooling import HalvingMaxPool
from metazoo.precision import Precision
from metazoo.schema import Strict

Padding = Annotated[int, Field(ge=0, le=1)]


class Conv4(Backbone):
    """Four blocks of 3x3 convolution, batch norm, activation and 2x2 max-pool, then a linear head.

    As in the MAML++/L2F/ALFA/CxGrad code: batch norm always uses the statistics of the batch it is given, weights are
    Xavier-uniform, the features are not pooled (25 positions at 84 pixels). Maps of one pixel are not pooled further.
    """

    class Settings(Strict):
        name: Literal["conv4"] = "conv4"
        filters: PositiveInt = 48
        conv_bias: bool = False
        """A bias in front of batch norm has an exactly zero gradient; only as-published configs want it."""
        activation: Literal["leaky_relu", "relu"] = "leaky_relu"
        """`leaky_relu` has slope 0.01, as every official repository of the family runs it."""
        norm_eps: PositiveFloat = 1e-5
        """Batch norm's epsilon; it is what CxGrad's context gradient consists of."""
        paddings: tuple[Padding, Padding, Padding, Padding] = (1, 1, 1, 1)
        """Each block's zero padding; RelationNet's encoder has (0, 0, 1, 1)."""
        pooled_blocks: Annotated[int, Field(ge=0, le=4)] = 4
        """How many blocks, from the first, pool; RelationNet's encoder has 2."""
        global_pool: bool = False
        """Average each map to one feature, as HyperMAML's encoder does."""

    activations: ClassVar[dict[str, Callable[[], nn.Module]]] = {"leaky_relu": nn.LeakyReLU, "relu": nn.ReLU}

    def __init__(self, image_shape: tuple[int, int, int], ways: int, settings: Settings):
        channels, *sides = image_shape
        body = nn.Sequential()
        for number, padding in enumerate(settings.paddings, start=1):
            sides = [side - 2 + 2 * padding for side in sides]
            if min(sides) < 1:
                raise UserError(
                    f"Images of {image_shape[1]} pixels are too small for block {number} of a Conv4 with paddings "
                    f"{settings.paddings}; use larger images or padding 1."
                )
            pools = number <= settings.pooled_blocks and min(sides) >= 2
            body.add_module(f"block{number}", ConvBlock(channels, settings, padding, pools))
            channels = settings.filters
            sides = [side // 2 for side in sides] if pools else sides
        if settings.global_pool:
            body.add_module("average", nn.AdaptiveAvgPool2d(1))
            sides = [1, 1]
        body.add_module("flatten", nn.Flatten())
        super().__init__(body, channels * math.prod(sides), ways, maps=(channels, sides[0], sides[1]))
        self.apply(xavier_uniform)

    def compute_in(self, precision: Precision) -> None:
        modules = list(self.body)
        for module, following in zip(modules, [*modules[1:], None], strict=True):
            if isinstance(module, ConvBlock):
                module.precision, module.feeds_block = precision, isinstance(following, ConvBlock)


class ConvBlock(nn.Sequential):
    """Convolution, batch norm, max-pool, activation; `[n, C, H, W]` to `[n, F, H/2, W/2]`.

    The activations are increasing, so pooling first gives the same numbers and gradients for a quarter of their work.
    """

    def __init__(self, channels: int, settings: Conv4.Settings, padding: int, pools: bool):
        super().__init__()
        self.precision: Precision = "float32"
        self.feeds_block = False
        """Whether the next module is another block, which takes maps at a lower precision as they are."""
        filters = settings.filters
        self.conv = Conv2d(channels, filters, 3, padding=padding, bias=settings.conv_bias)
        self.norm = BatchStatisticsNorm(filters, eps=settings.norm_eps)
        self.pool = HalvingMaxPool() if pools else nn.Identity()
        self.activation = Conv4.activations[settings.activation]()

    def forward(self, images: Tensor) -> Tensor:
        """All four modules as one function where nothing was put between them and nobody looks at what one gives."""
        weight = self.conv.weight
        dtype = torch.bfloat16 if self.precision == "bfloat16" else weight.dtype
        if not (self._is_whole() and blocks.fits(images, weight, dtype)):
            return self._one_by_one(images, dtype)
        maps = blocks.block(
            images,
            weight,
            self.conv.bias,
            self.norm.weight,
            self.norm.bias,
            padding=int(self.conv.padding[0]),
            eps=self.norm.eps,
            slope=getattr(self.activation, "negative_slope", 0.0),
            side=2 if isinstance(self.pool, HalvingMaxPool) else 1,
            dtype=dtype,
        )
        return maps if self.feeds_block else maps.to(weight.dtype)

    def _one_by_one(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        """The same by the modules as they are; at a lower precision the convolution alone has it."""
        kept = self.conv.weight.dtype
        if dtype == kept:
            return super().forward(images)
        maps = images.to(kept)
        for module in self:
            with torch.autocast(images.device.type, dtype, enabled=module is self.conv):
                maps = module(maps).to(kept)
        return maps

    def _is_whole(self) -> bool:
        children = list(self.children())
        return tuple(map(type, children)) in _WHOLE and not any(
            child._forward_hooks or child._forward_pre_hooks or child._backward_hooks for child in children
        )


_WHOLE = {
    (Conv2d, BatchStatisticsNorm, pool, activation)
    for pool in (HalvingMaxPool, nn.Identity)
    for activation in (nn.LeakyReLU, nn.ReLU)
}
"""What a ConvBlock consists of as long as no method has changed it."""
