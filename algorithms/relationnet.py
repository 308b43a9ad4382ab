"""RelationNet: a small network learns to compare the feature maps of a query and a class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn
from torch.nn import functional as F

from metazoo import Conv4, ConvBlock, Metric, OuterGroup, class_means, class_sums, each_task, task_losses


class RelationModule(nn.Sequential):
    """Scores `[n, 1]` of pairs of maps, stacked to `[n, 2C, H, W]`: two convolution blocks and two linear layers.

    As in CloserLook, maps below 10 pixels are padded; beyond that, maps of one pixel are not pooled. Weights are drawn
    as in the official code.
    """

    def __init__(self, maps: tuple[int, int, int], conv_bias: bool):
        super().__init__()
        channels, *sides = maps
        padding = 0 if min(sides) >= 10 else 1
        settings = Conv4.Settings(filters=channels, conv_bias=conv_bias, activation="relu")
        for number, inputs in enumerate((2 * channels, channels), start=1):
            sides = [side - 2 + 2 * padding for side in sides]
            pools = min(sides) >= 2
            self.add_module(f"block{number}", ConvBlock(inputs, settings, padding, pools))
            sides = [side // 2 for side in sides] if pools else sides
        self.flatten = nn.Flatten()
        self.linear1 = nn.Linear(channels * math.prod(sides), 8)
        self.activation = nn.ReLU()
        self.linear2 = nn.Linear(8, 1)
        self.apply(_initialise)


class RelationNet(Metric):
    name = "relationnet"
    title = "RelationNet"
    paper = (
        "Sung, Yang, Zhang, Xiang, Torr, Hospedales: Learning to Compare: Relation Network for Few-Shot Learning. "
        "CVPR 2018."
    )
    deviations = (
        "It compares the maps that the shared backbone ends with; `paddings: [0, 0, 1, 1]` and `pooled_blocks: 2` are "
        "the paper's encoder.",
        "The backbone's weights are drawn as for every other method, those of the relation module as in the official "
        "code.",
        "A task's test queries are one batch for batch norm; the official code tests them in class-balanced parts.",
    )

    class Settings(Metric.Settings):
        joint_batch_norm: bool = False
        loss: Literal["mse", "softmax"] = "mse"
        """Squared error of scores in (0, 1), or cross-entropy of scores without the final sigmoid."""
        aggregation: Literal["sum", "mean"] = "sum"
        """What a class's support maps are made one by; CloserLook has the mean."""
        conv_bias: bool = False
        """A bias in the relation module's convolutions, where batch norm cancels it."""
        max_gradient_norm: PositiveFloat | None = 0.5
        """Bound on the norm of the meta-gradient of the encoder, and on that of the relation module."""

    settings: Settings

    def build(self) -> None:
        self.relation = RelationModule(self.backbone.keep_maps(), self.settings.conv_bias)

    def compare(self, support: Tensor, labels: Tensor, query: Tensor, ways: int) -> Tensor:
        """The relation module on every pair of class and query, all pairs of a task as one batch."""
        aggregate = class_sums if self.settings.aggregation == "sum" else class_means
        classes = aggregate(support, labels, ways)
        pairs = torch.cat(
            [
                classes.unsqueeze(1).expand(-1, query.shape[1], *[-1] * 4),
                query.unsqueeze(2).expand(-1, -1, ways, *[-1] * 3),
            ],
            dim=3,
        )
        scores = each_task(self.relation, pairs.flatten(1, 2)).view(*query.shape[:2], ways)
        return scores.sigmoid() if self.settings.loss == "mse" else scores

    def losses(self, scores: Tensor, labels: Tensor) -> Tensor:
        if self.settings.loss == "softmax":
            return task_losses(scores, labels)
        return (scores - F.one_hot(labels, scores.shape[2])).square().mean(dim=(1, 2))

    def outer_groups(self) -> Sequence[OuterGroup]:
        bound = self.settings.max_gradient_norm
        return [OuterGroup(list(part.parameters()), max_norm=bound) for part in (self.backbone, self.relation)]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=math.sqrt(2 / (module.weight[0, 0].numel() * module.out_channels)))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.ones_(module.bias)
