"""L2F: attenuate the initialisation of each layer, task by task, before MAML adapts it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from metazoo import OuterGroup, TaskBatch, per_task
from metazoo.algorithms.maml import MAML


class L2F(MAML):
    name = "l2f"
    title = "L2F"
    paper = "Baik, Hong, Lee: Learning to Forget for Meta-Learning. CVPR 2020."
    stops_gradient = "the task embedding (mean support gradients)"
    deviations = ()

    class Settings(MAML.Settings):
        differentiable_embedding: bool = False
        """Let the meta-gradient flow through the task embedding, as ALFA's L2F option does."""

    settings: Settings

    def build(self) -> None:
        super().build()
        layers = len(self.rates)
        self.attenuator = nn.Sequential(nn.Linear(layers, layers), nn.ReLU(), nn.Linear(layers, layers), nn.Sigmoid())

    def outer_groups(self) -> Sequence[OuterGroup]:
        """The gradient clamp bounds the network and not the attenuator, as in the official code."""
        return [OuterGroup(list(self.backbone.parameters())), OuterGroup(self.own_parameters(), clamped=False)]

    def begin(self, tasks: TaskBatch) -> None:
        """Scale each tensor by its factor in (0, 1), made from the mean of each tensor's support gradient."""
        detached = not self.settings.differentiable_embedding
        gradients = tasks.gradients(tasks.support_loss(), first_order=detached or None)
        embedding = torch.stack([gradient.flatten(1).mean(dim=1) for gradient in gradients.values()], dim=1)
        for factors, name in zip(self.attenuator(embedding).unbind(dim=1), gradients, strict=True):
            tasks.weights[name] = per_task(factors, tasks.weights[name])
