"""The networks: a body that embeds images and a linear head that classifies them, and the role of each parameter."""

from __future__ import annotations

from metazoo.backbones.backbone import Backbone, Role, parameter_count
from metazoo.backbones.conv4 import Conv4, ConvBlock
from metazoo.backbones.mlp import Mlp
from metazoo.backbones.resnet12 import ResidualBlock, ResNet12
from metazoo.errors import UserError

__all__ = [
    "AnySettings",
    "Backbone",
    "Conv4",
    "ConvBlock",
    "Mlp",
    "ResNet12",
    "ResidualBlock",
    "Role",
    "create",
    "parameter_count",
]

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
