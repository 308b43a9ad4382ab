"""Methods that are made of another method: training-time companions of any gradient-based one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import model_validator
from torch import Tensor

from metazoo import registry
from metazoo.algorithm import Algorithm, OuterGroup
from metazoo.episodes import Episodes
from metazoo.learner import TaskBatch
from metazoo.schema import parse


class Wrapper(Algorithm):
    """A method around another one, its `base`, which alone is left at test.

    `learn` is to be written; it asks the base with `self.base.learn(episodes, replace(outer, taps=..., masks=...))`.
    """

    class Settings(Algorithm.Settings):
        base: str = "maml"
        """The method that is wrapped."""
        base_settings: dict[str, Any] = {}
        """Its hyper-parameters; those not named take its defaults."""

        @model_validator(mode="after")
        def _complete_base_settings(self) -> Wrapper.Settings:
            method = registry.algorithm(self.base)
            parsed = parse(method.Settings, self.base_settings, f"base_settings ({self.base})")
            object.__setattr__(self, "base_settings", parsed.model_dump(mode="json"))
            return self

    settings: Settings

    def build(self) -> None:
        self.base = registry.create(self.settings.base, self.backbone, self.settings.base_settings)
        self.step_limit = self.base.step_limit

    def outer_groups(self) -> Sequence[OuterGroup]:
        """Those of the base, and one of what the wrapper adds."""
        groups = list(self.base.outer_groups())
        covered = {id(parameter) for group in groups for parameter in group.parameters}
        added = [
            parameter for parameter in self.parameters() if parameter.requires_grad and id(parameter) not in covered
        ]
        return [*groups, OuterGroup(added)] if added else groups

    def predict(self, episodes: Episodes) -> Tensor:
        return self.base.predict(episodes)

    @property
    def evaluation_steps(self) -> int:
        return self.base.evaluation_steps

    def adaptation(self, episodes: Episodes, steps: int | None = None) -> Iterator[TaskBatch]:
        return self.base.adaptation(episodes, steps)

    @classmethod
    def written_in(cls, settings: Algorithm.Settings) -> set[type[Algorithm]]:
        assert isinstance(settings, cls.Settings)
        base = registry.algorithm(settings.base)
        return {cls} | base.written_in(parse(base.Settings, settings.base_settings, "base_settings"))
