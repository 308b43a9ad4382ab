"""The networks: a body that embeds images and a linear head that classifies them, and the role of each parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal, TypeAlias

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from metazoo.errors import UserError
from metazoo.normalisation import BatchStatisticsNorm
from metazoo.pooling import HalvingMaxPool
from metazoo.schema import Strict

Role: TypeAlias = Literal["body", "norm", "head"]
"""`head`: the last linear layer; `norm`: scale and shift of a normalisation layer; `body`: everything else."""

_NORMALISATIONS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


class Backbone(nn.Module):
    """A `body` from images `[n, C, H, W]` to features `[n, D]` and a linear `head` to logits `[n, N]`."""

    body: nn.Module
    head: nn.Linear

    def __init__(self, body: nn.Module, features: int, ways: int):
        super().__init__()
        self.body = body
        self.head = nn.Linear(features, ways)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[n, N]` of images `[n, C, H, W]`."""
        return self.head(self.body(images))

    def roles(self) -> dict[str, Role]:
        """The role of every parameter by its name, read off the modules that own them, in module order."""
        roles: dict[str, Role] = {}
        for path, module in self.named_modules():
            for name, _ in module.named_parameters(prefix=path, recurse=False):
                normalises = isinstance(module, _NORMALISATIONS)
                roles[name] = "head" if module is self.head else "norm" if normalises else "body"
        return roles


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

    activations: ClassVar[dict[str, Callable[[], nn.Module]]] = {"leaky_relu": nn.LeakyReLU, "relu": nn.ReLU}

    def __init__(self, image_shape: tuple[int, int, int], ways: int, settings: Settings):
        channels, height, width = image_shape
        body = nn.Sequential()
        for number in range(1, 5):
            pools = min(height, width) >= 2
            body.add_module(f"block{number}", ConvBlock(channels, settings, pools))
            channels = settings.filters
            height, width = (height // 2, width // 2) if pools else (height, width)
        body.add_module("flatten", nn.Flatten())
        super().__init__(body, channels * height * width, ways)


class ConvBlock(nn.Module):
    """Convolution, batch norm, max-pool, activation; `[n, C, H, W]` to `[n, F, H/2, W/2]`.

    The activations are increasing, so pooling first gives the same numbers and gradients for a quarter of their work.
    """

    def __init__(self, channels: int, settings: Conv4.Settings, pools: bool):
        super().__init__()
        filters = settings.filters
        self.conv = nn.Conv2d(channels, filters, 3, padding=1, bias=settings.conv_bias)
        self.norm = BatchStatisticsNorm(filters, eps=settings.norm_eps)
        self.pool = HalvingMaxPool() if pools else nn.Identity()
        self.activation = Conv4.activations[settings.activation]()

    def forward(self, images: Tensor) -> Tensor:
        return self.activation(self.pool(self.norm(self.conv(images))))


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
        super().__init__(body, widths[-1], ways)


class ResidualBlock(nn.Module):
    """Three 3x3 convolutions beside a 1x1 shortcut, each with batch norm; their sum through ReLU and `pool`."""

    def __init__(self, channels: int, filters: int, pool: nn.Module):
        super().__init__()
        inputs = (channels, filters, filters)
        self.convs = nn.ModuleList(nn.Conv2d(n, filters, 3, padding=1, bias=False) for n in inputs)
        self.norms = nn.ModuleList(BatchStatisticsNorm(filters) for _ in inputs)
        self.shortcut = nn.Conv2d(channels, filters, 1, bias=False)
        self.shortcut_norm = BatchStatisticsNorm(filters)
        self.pool = pool

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.relu(self.norms[0](self.convs[0](images)))
        hidden = F.relu(self.norms[1](self.convs[1](hidden)))
        hidden = self.norms[2](self.convs[2](hidden)) + self.shortcut_norm(self.shortcut(images))
        return self.pool(F.relu(hidden))


def create(settings: Conv4.Settings | ResNet12.Settings, image_shape: tuple[int, int, int], ways: int) -> Backbone:
    """A freshly initialised backbone for images `(C, H, W)`; draws from torch's global generator.

    Raises:
        UserError: for images without a pixel.
    """
    if min(image_shape) < 1:
        raise UserError(f"A backbone needs images of at least one pixel; got {image_shape}.")
    if isinstance(settings, ResNet12.Settings):
        return ResNet12(image_shape, ways, settings)
    return Conv4(image_shape, ways, settings)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def parameter_count(module: nn.Module) -> int:
    """Number of scalars a module learns."""
    return sum(parameter.numel() for parameter in module.parameters())
