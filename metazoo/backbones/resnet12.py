"""ResNet-12, as the methods' authors run it beside Conv4."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from metazoo.backbones.backbone import Backbone, xavier_uniform
from metazoo.fast.convolution import Conv2d
from metazoo.normalisation import BatchStatisticsNorm
from metazoo.pooling import HalvingMaxPool
from metazoo.schema import Strict


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
        self.apply(xavier_uniform)


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
