"""Predictions of models for validation and test: in passes of as many tasks as fit, replayed where they can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from metazoo.algorithm import Algorithm
from metazoo.committee import Committee
from metazoo.episodes import Episodes
from metazoo.graphs import Recorder
from metazoo.memory import PassSize

STACKED_TASKS = 32
"""Tasks of a model that are adapted in one pass unless told otherwise, where stacking pays."""

GATHER_TASKS = 16
"""Episodes gathered at a time, at least: gathering few at a time costs more."""


class Predictors:
    """Models of one kind on a device that predict on the same episodes; those that are alike in stacked passes.

    `tasks_per_pass` as in `PassSize`. Passes are replayed where there is a recorder (`metazoo.graphs`); `note` gets a
    sentence if they cannot be.
    """

    def __init__(
        self,
        models: Sequence[Algorithm],
        device: torch.device,
        tasks_per_pass: int | None = None,
        recorder: Recorder | None = None,
        note: Callable[[str], object] = lambda text: None,
    ):
        self.models = list(models)
        self.committee = Committee(self.models, recorder, note)
        most, networks = STACKED_TASKS * len(self.models), nn.ModuleList(self.models)
        self.size = PassSize(tasks_per_pass, device, most, networks, "the passes of an evaluation", note)

    @property
    def gathered(self) -> int:
        """How many episodes are best asked for at a time."""
        return max(self.size.tasks // len(self.models), GATHER_TASKS)

    def __call__(self, episodes: Episodes) -> list[Tensor]:
        """Query outputs `[T, Q, N]` of every model."""
        self.size.measure(lambda part: self.committee.predict(part, len(part), replay=False), episodes)
        return self.size.run(lambda size: self.committee.predict(episodes, size))
