"""The outer update: Adam on the meta-gradient, with a rate and bounds of its own for each group of meta-parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from metazoo.algorithm import OuterGroup
from metazoo.config import TrainingSettings
from metazoo.outer_step import OuterStep


def outer_lr(settings: TrainingSettings, epoch: int) -> float:
    """The outer rate of epoch e (from 0).

    Constant; or min + (lr0 - min) (1 + cos(pi e / epochs)) / 2; or lr0 times `decay` for every milestone passed.
    """
    if settings.schedule == "constant":
        return settings.outer_lr
    if settings.schedule == "steps":
        return settings.outer_lr * settings.decay ** sum(milestone <= epoch for milestone in settings.milestones)
    turn = (1 + math.cos(math.pi * epoch / settings.epochs)) / 2
    return settings.min_outer_lr + (settings.outer_lr - settings.min_outer_lr) * turn


class OuterUpdate:
    """Adam and what it is told. On a GPU it is PyTorch's fused Adam: one kernel instead of some twenty.

    It stays outside of recorded passes (`metazoo.graphs`): rates change with the epochs, the bounds are the run's, and
    its state is that of any Adam, so that a checkpoint can be taken up on another device.
    """

    def __init__(self, groups: Sequence[OuterGroup], settings: TrainingSettings, device: torch.device):
        self.groups, self.settings = groups, settings
        self.parameters = [parameter for group in groups for parameter in group.parameters]
        self._fused = True if device.type == "cuda" else None
        self.restart()

    def restart(self) -> None:
        """Forget the moments."""
        groups = [{"params": list(group.parameters)} for group in self.groups]
        self._adam = torch.optim.Adam(groups, lr=self.settings.outer_lr, fused=self._fused)

    def set_rates(self, outer: OuterStep, epoch: int) -> None:
        """Take every group's rate for the epoch."""
        for group, held in zip(self.groups, self._adam.param_groups, strict=True):
            held["lr"] = outer_lr(self.settings, epoch) * float(group.rate(outer))

    def step(self) -> None:
        """Move the parameters along their gradients, which are bounded first."""
        for group in self.groups:
            if group.clamped and self.settings.gradient_clamp is not None:
                torch.nn.utils.clip_grad_value_(group.parameters, self.settings.gradient_clamp)
            if group.max_norm is not None:
                torch.nn.utils.clip_grad_norm_(group.parameters, group.max_norm)
        self._adam.step()

    def state_dict(self) -> dict[str, Any]:
        return self._adam.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state from any device: the way to compute is not part of it."""
        groups = [{**group, "fused": self._fused} for group in state["param_groups"]]
        self._adam.load_state_dict({**state, "param_groups": groups})
