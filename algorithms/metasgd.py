"""Meta-SGD: learn the inner learning rate of every single weight along with the initialisation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from metazoo import InnerLoop, Role, TaskBatch


class MetaSGD(InnerLoop):
    name = "metasgd"
    title = "Meta-SGD"
    paper = "Li, Zhou, Chen, Li: Meta-SGD: Learning to Learn Quickly for Few-Shot Learning. arXiv:1707.09835, 2017."
    deviations = (
        "The initial rates are drawn uniformly from [0.005, 0.1], a range recalled from the paper and not re-checked; "
        "`initial_rates: constant` starts all of them at `rate_high`.",
    )

    class Settings(InnerLoop.Settings):
        inner_steps: int = 1
        adapts: tuple[Role, ...] = ("body", "norm", "head")
        initial_rates: Literal["uniform", "constant"] = "uniform"
        rate_low: float = 0.005
        rate_high: float = 0.1

    settings: Settings

    def build(self) -> None:
        adapted, low, high = self.adapts(), self.settings.rate_low, self.settings.rate_high
        roles = self.backbone.roles()
        self.names = [name for name, role in roles.items() if role in adapted]
        uniform = self.settings.initial_rates == "uniform"
        self.rates = nn.ParameterList(
            torch.empty_like(self.backbone.get_parameter(name)).uniform_(low if uniform else high, high)
            for name in self.names
        )

    def adapts(self) -> set[Role]:
        return set(self.settings.adapts)

    def step(self, tasks: TaskBatch, step: int) -> None:
        tasks.descend(tasks.support_loss(), dict(zip(self.names, self.rates, strict=True)))
