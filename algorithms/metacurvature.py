"""Meta-Curvature: MAML whose gradients pass through learned matrices, one for each of a tensor's dimensions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metazoo import Rates, TaskBatch
from metazoo.algorithms.maml import MAML


class MetaCurvature(MAML):
    name = "metacurvature"
    title = "Meta-Curvature"
    paper = "Park, Oliva: Meta-Curvature. NeurIPS 2019."
    deviations = (
        "The matrices, and with them inner rate, steps and adapted tensors, are those of learn2learn and its example; "
        "the paper's own settings were not read.",
    )

    class Settings(MAML.Settings):
        inner_lr: Rates = {"body": 0.1, "norm": 0.1, "head": 0.1}

    def build(self) -> None:
        super().build()
        self.curvatures = nn.ModuleList(Curvature(self.backbone.get_parameter(name).shape) for name in self.rates)

    def step(self, tasks: TaskBatch, step: int) -> None:
        gradients = tasks.gradients(tasks.support_loss())
        curved = {name: curve(gradients[name]) for name, curve in zip(self.rates, self.curvatures, strict=True)}
        tasks.update({name: -self.rates[name] * gradient for name, gradient in curved.items()})


class Curvature(nn.Module):
    """A linear map of the gradients `[T, *shape]` of one tensor, at first the identity.

    A kernel `[O, I, k, k]` has a matrix for O, for I and for the k k positions; a matrix `[O, I]` one for O and for I;
    a vector, a factor for each entry.
    """

    def __init__(self, shape: torch.Size):
        super().__init__()
        sizes = [*shape[:2], *([shape[2:].numel()] if len(shape) > 2 else [])]
        factors = [torch.ones(shape)] if len(shape) == 1 else [torch.eye(size) for size in sizes]
        self.factors = nn.ParameterList(factors)

    def forward(self, gradients: Tensor) -> Tensor:
        if gradients.dim() == 2:
            return self.factors[0] * gradients
        first, second, *positions = self.factors
        curved = torch.einsum("ab,tbc...,cd->tad...", first, gradients, second)
        if positions:
            curved = torch.einsum("ab,tcdb->tcda", positions[0], curved.flatten(3)).view_as(curved)
        return curved
