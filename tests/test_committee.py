"""Several sets of weights in one stacked pass predict what each of them predicts by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metazoo import TaskBatch, registry
from metazoo.algorithm import Algorithm
from metazoo.algorithms.cxgrad import CxGrad
from metazoo.algorithms.maml import MAML
from metazoo.backbones import Conv4, Mlp
from metazoo.committee import Committee
from metazoo.episodes import Episodes
from metazoo.testing import float64, tiny_algorithm, tiny_episodes

METHODS = registry.algorithms()

ONE_AFTER_THE_OTHER = {"alfa", "alfa_l2f", "alfa_random", "hypermaml", "mamlpp", "metasgd", "relationnet"}
"""What reads learned rates, the head or a module's weights itself, for all tasks alike."""


def members(method: Any, count: int = 2, settings: Any = None, **options: Any) -> list[Algorithm]:
    """Models of one method, in two inner steps where it says no other number, that differ in every learned tensor."""
    if settings is None:
        few = {"inner_steps": 2} if "inner_steps" in method.Settings.model_fields else {}
        settings = method.Settings(**few)
    models = [tiny_algorithm(method, settings, **options) for _ in range(count)]
    generator = torch.Generator().manual_seed(0)
    for model in models:
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.rand(parameter.shape, generator=generator, dtype=parameter.dtype)
    return models


def one_by_one(models: list[Algorithm], episodes: Episodes) -> list[Tensor]:
    return [model.predict(episodes) for model in models]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for logits, alone in zip(found, expected, strict=True):
        torch.testing.assert_close(logits, alone, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_together_is_one_by_one(name: str) -> None:
    models, episodes = members(METHODS[name]), tiny_episodes(tasks=3)
    expected = one_by_one(models, episodes)
    assert not torch.allclose(expected[0], expected[1]), "members must differ for the test to say anything"
    committee = Committee(models)
    assert_same(committee.predict(episodes, 5), expected)
    assert committee.is_stacked == (name not in ONE_AFTER_THE_OTHER)
    assert_same(committee.predict(episodes, 6), expected)


@pytest.mark.parametrize("settings", [Conv4.Settings(filters=16), Conv4.Settings(filters=4, conv_bias=True)])
def test_whatever_kernels_the_network_has(settings: Conv4.Settings) -> None:
    models, episodes = members(CxGrad if not settings.conv_bias else MAML, backbone=settings), tiny_episodes(tasks=2)
    committee = Committee(models)
    assert_same(committee.predict(episodes, 6), one_by_one(models, episodes))
    assert committee.is_stacked


def test_sinusoids() -> None:
    with float64():
        models = [registry.create("maml", Mlp((1,), 1, Mlp.Settings())) for _ in range(4)]
        x, y = torch.rand(5, 10, 1), torch.rand(5, 10, 1)
    committee, episodes = Committee(models), Episodes(x, y, x + 1, y, 1)
    assert_same(committee.predict(episodes, 8), one_by_one(models, episodes))
    assert committee.is_stacked


def test_weights_may_move_between_predictions() -> None:
    models, episodes = members(CxGrad), tiny_episodes()
    committee = Committee(models)
    committee.predict(episodes, 6)
    for model in models:
        for parameter in model.parameters():
            parameter.data *= 1.1
    assert_same(committee.predict(episodes, 6), one_by_one(models, episodes))
    assert committee.is_stacked


def test_a_pass_holds_as_many_tasks_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    adaptation = MAML.adaptation

    def watched(self: MAML, episodes: Episodes, steps: int | None = None) -> Any:
        seen.append(len(episodes))
        return adaptation(self, episodes, steps)

    models, episodes = members(MAML, 3), tiny_episodes(tasks=5)
    committee = Committee(models)
    committee.predict(episodes, 7)
    monkeypatch.setattr(MAML, "adaptation", watched)
    committee.predict(episodes, 7)
    assert seen == [6, 6, 3]
    seen.clear()
    committee.predict(episodes, 2)  # no room for one episode of each
    assert seen == [2, 2, 1] * 3


def test_models_of_different_kinds_are_not_stacked() -> None:
    episodes = tiny_episodes()
    for models in (
        [*members(MAML, 1), *members(MAML, 1, MAML.Settings(inner_steps=3))],
        [*members(MAML, 1), *members(METHODS["fomaml"], 1)],
        [*members(MAML, 1), *members(MAML, 1, backbone=Conv4.Settings(filters=5))],
    ):
        committee = Committee(models)
        assert_same(committee.predict(episodes, 6), one_by_one(models, episodes))
        assert not committee.is_stacked


class ReadsItself(MAML):
    def step(self, tasks: TaskBatch, step: int) -> None:
        pull = {name: self.backbone.get_parameter(name) - weight for name, weight in tasks.weights.items()}
        super().step(tasks, step)
        tasks.update({name: 0.1 * back for name, back in pull.items()})


class ReadsShared(MAML):
    def step(self, tasks: TaskBatch, step: int) -> None:
        scale = tasks.shared["body.block1.norm.weight"].mean()
        tasks.descend(tasks.support_loss(), dict.fromkeys(tasks.weights, 0.1 * scale))


class ReplacesShared(MAML):
    def step(self, tasks: TaskBatch, step: int) -> None:
        tasks.shared["body.block1.norm.weight"] = torch.full((4,), 0.5 + step, dtype=torch.float64)
        super().step(tasks, step)


class WithModule(MAML):
    """Its module sees something that has as many rows as there are tasks in the pass below, and that is no tasks."""

    rows = 6

    def build(self) -> None:
        super().build()
        self.rate = nn.Linear(2, 1).double()

    def step(self, tasks: TaskBatch, step: int) -> None:
        rate = self.rate(torch.ones(self.rows, 2, dtype=torch.float64)).mean()
        tasks.descend(tasks.support_loss(), dict.fromkeys(tasks.weights, rate))


class ReadsModule(WithModule):
    def step(self, tasks: TaskBatch, step: int) -> None:
        tasks.descend(tasks.support_loss(), dict.fromkeys(tasks.weights, self.rate.bias))


class IndexesModule(WithModule):
    def build(self) -> None:
        super().build()
        self.rate = nn.Sequential(self.rate)  # type: ignore[assignment]

    def step(self, tasks: TaskBatch, step: int) -> None:
        tasks.descend(tasks.support_loss(), dict.fromkeys(tasks.weights, self.rate[0].bias))


class WithBuffer(MAML):
    def build(self) -> None:
        super().build()
        self.register_buffer("rate", torch.rand((), dtype=torch.float64))

    def step(self, tasks: TaskBatch, step: int) -> None:
        tasks.descend(tasks.support_loss(), dict.fromkeys(tasks.weights, self.rate))


READERS = ReadsItself, ReadsShared, ReplacesShared, WithModule, ReadsModule, IndexesModule, WithBuffer


@pytest.mark.parametrize("method", READERS)
def test_what_a_method_reads_of_its_own_is_never_another_members(method: type[MAML]) -> None:
    models, episodes = members(method), tiny_episodes()
    expected = one_by_one(models, episodes)
    committee = Committee(models)
    assert_same(committee.predict(episodes, 6), expected)
    assert not committee.is_stacked
    assert_same(committee.predict(episodes, 6), expected)


def test_an_error_in_a_method_is_its_own() -> None:
    class Broken(MAML):
        def step(self, tasks: TaskBatch, step: int) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        Committee(members(Broken)).predict(tiny_episodes(), 6)
