"""The perceptron, for regression."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import PositiveInt
from torch import nn

from metazoo.backbones.backbone import Backbone
from metazoo.schema import Strict


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
