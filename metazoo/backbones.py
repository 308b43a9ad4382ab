"""The networks: a body that embeds images and a linear head that classifies them, and the role of each parameter."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal, TypeAlias

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from metazoo.errors import Incompatible, UserError
from metazoo.fast import blocks
from metazoo.fast.convolution import Conv2d
from metazoo.normalisation import BatchStatisticsNorm
from metazoo.pooling import HalvingMaxPool
from metazoo.precision import Precision
from metazoo.recomputing import Recomputing
from metazoo.schema import Strict

Role: TypeAlias = Literal["body", "norm", "head", "context", "fixed"]
"""What a tensor of a backbone is.

`head`: the last linear layer; `norm`: scale and shift of a normalisation layer; `body`: everything else a backbone has
of its own. Of a module that a method has inserted, parameters are `fixed`: meta-learned and never adapted; buffers are
`context`: no parameters, but what every task starts its own copy of and may adapt.
"""

Padding = Annotated[int, Field(ge=0, le=1)]

_NORMALISATIONS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


class Backbone(nn.Module):
    """A `body` from inputs `[n, ...]` to features `[n, D]` and a linear `head` to outputs `[n, N]`."""

    body: nn.Sequential
    head: nn.Module

    def __init__(self, body: nn.Sequential, features: int, ways: int, maps: tuple[int, int, int] | None = None):
        super().__init__()
        self.body = body
        self.head = Head(features, ways)
        self.features = features
        """Length D of a feature vector."""
        self.recomputing: Recomputing | None = None
        """What calls the body in adaptation, so that it is computed anew for derivatives; None keeps what they need."""
        self._maps = maps
        self._inserted: list[str] = []

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs `[n, N]` of inputs `[n, ...]`."""
        return self.head(self.body(inputs))

    def roles(self) -> dict[str, Role]:
        """The role of every parameter and context by its name, read off the modules that own them, in module order."""
        roles: dict[str, Role] = {}
        for path, module in self.named_modules():
            inserted = any(f"{path}.".startswith(f"{prefix}.") for prefix in self._inserted)
            for name, _ in module.named_parameters(prefix=path, recurse=False):
                normalises = isinstance(module, _NORMALISATIONS)
                own: Role = "head" if module is self.head else "norm" if normalises else "body"
                roles[name] = "fixed" if inserted else own
            if inserted:
                roles |= dict.fromkeys((name for name, _ in module.named_buffers(path, recurse=False)), "context")
        return roles

    def insert(self, name: str, module: nn.Module, after: str = "") -> None:
        """Put `module` into the body as `name`, behind its neighbour `after` (`block3.pool`), or at the very front.

        Its parameters become `fixed`, its buffers `context` (register them with `persistent=False`: they are not
        learned). Raises UserError where the body has no such place.
        """
        parent, _, neighbour = after.rpartition(".")
        try:
            place = self.body.get_submodule(parent)
            if not isinstance(place, nn.Sequential) or (neighbour and neighbour not in place._modules):
                raise AttributeError
        except AttributeError:
            raise UserError(f"This backbone's body has no '{after}' behind which '{name}' could be put.") from None
        children = list(place.named_children())
        position = 1 + [child for child, _ in children].index(neighbour) if neighbour else 0
        for child, _ in children:
            del place._modules[child]
        for child, content in (*children[:position], (name, module), *children[position:]):
            place.add_module(child, content)
        self._inserted.append(".".join(part for part in ("body", parent, name) if part))

    def compute_in(self, precision: Precision) -> None:
        """Let the convolutions multiply in a type; everything else stays as it is.

        Between float32 and tf32 the network makes no difference (`metazoo.precision.arithmetic` does). Raises UserError
        for a network that has no such choice.
        """
        modules = list(self.body)
        convolutions = [module for module in modules if isinstance(module, ConvBlock)]
        if precision == "bfloat16" and not convolutions:
            raise UserError("Only conv4 computes in bfloat16; choose another precision, or use conv4.")
        for module, following in zip(modules, [*modules[1:], None], strict=True):
            if isinstance(module, ConvBlock):
                module.precision, module.feeds_block = precision, isinstance(following, ConvBlock)

    def drop_head(self) -> None:
        """Let the backbone end with its features, for methods that compare embeddings."""
        self.head = nn.Identity()

    def keep_maps(self) -> tuple[int, int, int]:
        """Let the body end with its maps `[n, C, H, W]`, not flattened; (C, H, W), for methods that compare maps.

        Raises Incompatible for a body that has none.
        """
        if self._maps is None:
            raise Incompatible("This method compares feature maps and this backbone has none; use conv4 or resnet12.")
        self.body.flatten = nn.Identity()
        return self._maps


class Head(nn.Linear):
    """The last linear layer. Given fewer features than it has columns (a smaller image), it uses its first ones."""

    def forward(self, input: Tensor) -> Tensor:
        if input.shape[-1] == self.in_features:
            return super().forward(input)
        return F.linear(input, self.weight[:, : input.shape[-1]], self.bias)


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
        self.apply(_initialise)


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


class ResNet12(Backbone):
    """Four residual blocks of 64, 128, 256 and 512 channels, global average pool, linear head.

    As L2F and ALFA run it: no convolution bias, a 1x1 shortcut with batch norm in every block, ReLU, 2x2 max-pool after
    the first three blocks only (the third padded by one: 84, 42, 21, 11, 11), batch statistics always, no dropout.
    """

    class Settings(Strict):
        name: Literal["resnet12"] = "resnet12"

    def __init__(self, image_shape: tuple[int, int, int], ways: int, settings: Settings):
        widths = (image_shape[0], 64, 128, 256, 512)
        body = nn.Sequential()
        for number in range(1, 5):
            pool = HalvingMaxPool() if number < 3 else nn.MaxPool2d(2, padding=1) if number == 3 else nn.Identity()
            body.add_module(f"block{number}", ResidualBlock(widths[number - 1], widths[number], pool))
        body.add_module("average", nn.AdaptiveAvgPool2d(1))
        body.add_module("flatten", nn.Flatten())
        super().__init__(body, widths[-1], ways, maps=(widths[-1], 1, 1))
        self.apply(_initialise)


class ResidualBlock(nn.Module):
    """Three 3x3 convolutions beside a 1x1 shortcut, each with batch norm; their sum through ReLU and `pool`."""

    def __init__(self, channels: int, filters: int, pool: nn.Module):
        super().__init__()
        inputs = (channels, filters, filters)
        self.convs = nn.ModuleList(Conv2d(n, filters, 3, padding=1, bias=False) for n in inputs)
        self.norms = nn.ModuleList(BatchStatisticsNorm(filters) for _ in inputs)
        self.shortcut = Conv2d(channels, filters, 1, bias=False)
        self.shortcut_norm = BatchStatisticsNorm(filters)
        self.pool = pool

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.relu(self.norms[0](self.convs[0](images)))
        hidden = F.relu(self.norms[1](self.convs[1](hidden)))
        hidden = self.norms[2](self.convs[2](hidden)) + self.shortcut_norm(self.shortcut(images))
        return self.pool(F.relu(hidden))


class Mlp(Backbone):
    """Fully connected layers with ReLU for vectors `[n, d]`, then a linear head; as sinusoid regression uses it.

    Weights and biases are drawn as `nn.Linear` draws them, so that the kinks of the first layer are spread over the
    inputs.
    """

    class Settings(Strict):
        name: Literal["mlp"] = "mlp"
        hidden: tuple[PositiveInt, ...] = (40, 40)

    def __init__(self, input_shape: tuple[int, ...], ways: int, settings: Settings):
        body, width = nn.Sequential(), math.prod(input_shape)
        for number, size in enumerate(settings.hidden, start=1):
            body.add_module(f"linear{number}", nn.Linear(width, size))
            body.add_module(f"activation{number}", nn.ReLU())
            width = size
        super().__init__(body, width, ways)


AnySettings = Conv4.Settings | ResNet12.Settings | Mlp.Settings


def create(settings: AnySettings, input_shape: tuple[int, ...], ways: int) -> Backbone:
    """A freshly initialised backbone for inputs of one shape: images `(C, H, W)`, or vectors `(d,)` for an Mlp.

    Draws from torch's global generator. Raises UserError for inputs the network is not made for.
    """
    if isinstance(settings, Mlp.Settings):
        if len(input_shape) != 1:
            raise UserError("The backbone 'mlp' is for vectors and these inputs are images; use conv4 or resnet12.")
        return Mlp(input_shape, ways, settings)
    if len(input_shape) != 3:
        raise UserError(f"The backbone '{settings.name}' is for images and these inputs are vectors; use mlp.")
    if min(input_shape) < 1:
        raise UserError(f"A backbone needs images of at least one pixel; got {input_shape}.")
    channels, height, width = input_shape
    if isinstance(settings, ResNet12.Settings):
        return ResNet12((channels, height, width), ways, settings)
    return Conv4((channels, height, width), ways, settings)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def parameter_count(module: nn.Module) -> int:
    """Number of scalars a module learns."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
