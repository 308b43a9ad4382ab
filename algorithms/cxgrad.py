"""CxGrad: scale the body's gradients by a context vector that is itself adapted to the task."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import nn

from metazoo import Incompatible, TaskBatch, per_task
from metazoo.algorithms.maml import MAML

CONTEXT = "context"


class CxGrad(MAML):
    name = "cxgrad"
    title = "CxGrad"
    paper = "Lee, Lee, Song: Contextual Gradient Scaling for Few-Shot Learning. WACV 2022."
    stops_gradient = "the context's update in a support pass of its own (before the first step, or before every step)"
    deviations = (
        "The context's update before the first step contributes no meta-gradient, as in the official code; "
        "the paper does not say so.",
        "The meta-loss is the mean over tasks, as in the code; the paper's Eq. 3 has a sum.",
        "The code of the paper's step-wise context is not released: `step_wise` and `step_wise_lagged` are our two "
        "readings of the text, the first the closer one; its updates carry no meta-gradient, as that before the first "
        "step.",
    )

    class Settings(MAML.Settings):
        context_size: PositiveInt = 100
        context_lr: NonNegativeFloat = 1.0
        """eta_c; 0 leaves the factors the same for every task."""
        context: Literal["task_wise", "step_wise", "step_wise_lagged"] = "task_wise"
        """Whether the context's updates add up over a task, are made afresh before every step in one more support pass,
        or are made afresh from the pass of the step before."""

    settings: Settings

    def build(self) -> None:
        super().build()
        roles, parameters = self.backbone.roles(), dict(self.backbone.named_parameters())
        self.scaled = [name for name, role in roles.items() if role == "body"]
        if "norm" not in roles.values():
            raise Incompatible(
                "CxGrad rescales weights whose scale a normalisation layer cancels; this backbone has none."
            )
        if any(parameters[name].dim() < 2 for name in self.scaled):
            raise Incompatible(
                "CxGrad divides every body tensor by its norm, which is 0 for a fresh bias; set conv_bias: false."
            )
        if not {"body", "head"} <= self.adapts():
            raise Incompatible("CxGrad adapts body and head; give both an inner_lr above 0.")
        size = self.settings.context_size
        self.scaler = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, len(self.scaled)), nn.Softplus())

    def begin(self, tasks: TaskBatch) -> None:
        self.look(tasks)

    def step(self, tasks: TaskBatch, step: int) -> None:
        if step and self.settings.context == "step_wise":
            self.look(tasks)
        self.rescale(tasks)
        before = tasks.weights[CONTEXT]
        tasks.descend(tasks.support_loss(), self.rates | {CONTEXT: self.settings.context_lr})
        if self.settings.context == "step_wise_lagged":
            tasks.weights[CONTEXT] = tasks.weights[CONTEXT] - before

    def look(self, tasks: TaskBatch) -> None:
        """Set the context to zero and update it once, at the scaled weights, which are not kept."""
        kept = {name: weight for name, weight in tasks.weights.items() if name != CONTEXT}
        zeros = kept[self.scaled[0]].new_zeros(len(tasks), self.settings.context_size)
        tasks.weights[CONTEXT] = zeros.requires_grad_()
        self.rescale(tasks)
        change = tasks.gradients(tasks.support_loss(), first_order=True)[CONTEXT]
        tasks.weights.update(kept)
        tasks.update({CONTEXT: -self.settings.context_lr * change})

    def rescale(self, tasks: TaskBatch) -> None:
        """Give each body tensor the norm that the scaler makes of the context: w <- f w / |w| (Eq. 6, Algorithm 2)."""
        factors = self.scaler(tasks.weights[CONTEXT])
        for factor, name in zip(factors.unbind(dim=1), self.scaled, strict=True):
            weight = tasks.weights[name]
            tasks.weights[name] = per_task(factor / torch.linalg.vector_norm(weight.flatten(1), dim=1), weight)
