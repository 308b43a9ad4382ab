"""CML: a second head, never adapted and gone at test, whose query loss augments the meta-gradient of any method."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

from pydantic import NonNegativeFloat
from torch import Tensor, nn

from metazoo import (
    Conv4,
    ConvBlock,
    Episodes,
    Incompatible,
    Mlp,
    Outcome,
    OuterStep,
    Wrapper,
    each_task,
    task_losses,
)


class CML(Wrapper):
    name = "cml"
    title = "CML"
    paper = "Shin, Han, Kim: Cooperative Meta-Learning with Gradient Augmentation. UAI 2024."
    deviations = (
        "Adam runs through; the official code makes its two optimisers anew every 100 iterations.",
        "The official code runs MAML alone; around other methods the co-learner does the same.",
        "For vectors (sinusoids) the paper's networks are not published; one hidden layer on the body's last is ours.",
    )

    class Settings(Wrapper.Settings):
        gamma: NonNegativeFloat = 1.0
        """Weight of the co-learner's loss."""

    settings: Settings

    def build(self) -> None:
        """The co-learner: from block 4 before its pooling, or a perceptron's last hidden layer, to outputs."""
        backbone, head = self.backbone, self.backbone.head
        assert isinstance(head, nn.Linear)
        if isinstance(backbone, Conv4):
            block, ending = backbone.body.block4, backbone.body[4:]
            assert isinstance(block, ConvBlock)
            settings = Conv4.Settings(
                filters=block.conv.out_channels,
                conv_bias=block.conv.bias is not None,
                activation="relu" if isinstance(block.activation, nn.ReLU) else "leaky_relu",
                norm_eps=block.norm.eps,
            )
            pools = not isinstance(block.pool, nn.Identity)
            layers = (ConvBlock(settings.filters, settings, 1, False), ConvBlock(settings.filters, settings, 1, pools))
            self.tap = "body.block4.norm"
            self.colearner = nn.Sequential(deepcopy(block.activation), *layers, *deepcopy(ending))
        elif isinstance(backbone, Mlp) and len(backbone.body):
            self.tap = f"body.{[name for name, _ in backbone.body.named_children()][-1]}"
            self.colearner = nn.Sequential(nn.Linear(backbone.features, backbone.features), nn.ReLU())
        else:
            raise Incompatible("CML's co-learner is made for the backbones conv4 and mlp; use one of them.")
        self.colearner.append(type(head)(backbone.features, head.out_features))
        super().build()
        if backbone.head is not head:
            raise Incompatible(f"CML adds a second head to a method's own, and {self.settings.base} has none.")

    def learn(self, episodes: Episodes, outer: OuterStep = OuterStep()) -> Outcome:
        outcome = self.base.learn(episodes, replace(outer, taps=(*outer.taps, self.tap)))
        if self.tap not in outcome.tapped:
            raise Incompatible(f"CML reads what the adapted network makes of queries, which {self.base.name} hides.")
        return replace(outcome, losses=outcome.losses + self.settings.gamma * self.co_losses(outcome, episodes))

    def co_losses(self, outcome: Outcome, episodes: Episodes) -> Tensor:
        """The co-learner's loss `[T]` on the adapted network's query features."""
        return task_losses(each_task(self.colearner, outcome.tapped[self.tap]), episodes.query_y)
