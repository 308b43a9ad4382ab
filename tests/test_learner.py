"""The stacked learner against learn2learn's own task-by-task loop, in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metazoo import registry
from metazoo.algorithm import Algorithm
from metazoo.backbones import Conv4
from metazoo.episodes import Episodes
from metazoo.learner import Learner, TaskBatch, learn2learn, per_task
from metazoo.outer_step import OuterStep
from metazoo.testing import tiny_algorithm, tiny_episodes, trace

EVERYTHING = {"body": 0.05, "norm": 0.05, "head": 0.05}
METHODS = sorted(registry.algorithms())


def learn2learn_loop(
    backbone: nn.Module, episodes: Episodes, lr: float, steps: int, first_order: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Query losses and meta-gradients of learn2learn's published MAML recipe: one clone a task, one task at a time."""
    maml = learn2learn.algorithms.MAML(copy.deepcopy(backbone), lr=lr, first_order=first_order)
    losses = []
    for task in range(len(episodes)):
        clone = maml.clone()
        for _ in range(steps):
            clone.adapt(F.cross_entropy(clone(episodes.support_x[task]), episodes.support_y[task]))
        losses.append(F.cross_entropy(clone(episodes.query_x[task]), episodes.query_y[task]))
    torch.stack(losses).mean().backward()
    return torch.stack(losses).detach(), {n: p.grad for n, p in maml.module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("tasks_per_pass", [1, 2, 3])
def test_maml_equals_learn2learns_loop(tasks_per_pass: int, first_order: bool) -> None:
    method: Any = registry.algorithm("maml")
    settings = method.Settings(inner_lr=EVERYTHING, inner_steps=3)
    network = Conv4.Settings(filters=4, conv_bias=True)
    algorithm, episodes = tiny_algorithm(method, settings, network), tiny_episodes()
    losses, gradients = learn2learn_loop(algorithm.backbone, episodes, 0.05, 3, first_order)

    found = []
    for chunk in episodes.chunks(tasks_per_pass):
        outcome = algorithm.learn(chunk, OuterStep(first_order=first_order))
        (outcome.losses.sum() / len(episodes)).backward()
        found.append(outcome.losses.detach())
    torch.testing.assert_close(torch.cat(found), losses, atol=1e-10, rtol=0)
    assert gradients.keys() == dict(algorithm.backbone.named_parameters()).keys()
    for name, parameter in algorithm.backbone.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-10, rtol=0)


def meta_step(algorithm: Algorithm, episodes: Episodes, tasks_per_pass: int) -> dict[str, Tensor]:
    algorithm.zero_grad()
    losses = []
    for chunk in episodes.chunks(tasks_per_pass):
        outcome = algorithm.learn(chunk)
        outcome.losses.mean().mul(len(chunk) / len(episodes)).backward()
        losses.append(outcome.losses.detach())
    gradients = {n: p.grad.clone() for n, p in algorithm.named_parameters() if p.grad is not None}
    return gradients | {"losses": torch.cat(losses)}


@pytest.mark.parametrize("name", METHODS)
def test_tasks_per_pass_changes_no_result(name: str) -> None:
    algorithm, episodes = tiny_algorithm(registry.algorithm(name)), tiny_episodes(tasks=4)
    whole = meta_step(algorithm, episodes, 4)
    for tasks_per_pass in (1, 2, 3):
        part = meta_step(algorithm, episodes, tasks_per_pass)
        assert part.keys() == whole.keys()
        for key, value in part.items():
            torch.testing.assert_close(value, whole[key], atol=1e-10, rtol=0)
    logits = algorithm.predict(episodes)
    for task, chunk in enumerate(episodes.chunks(1)):
        torch.testing.assert_close(algorithm.predict(chunk)[0], logits[task], atol=1e-10, rtol=0)


def test_uniform_rates_take_learn2learns_own_step(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = learn2learn.algorithms.MAML.adapt

    def adapt(self: Any, *arguments: Any, **options: Any) -> None:
        calls.append(self)
        original(self, *arguments, **options)

    monkeypatch.setattr(learn2learn.algorithms.MAML, "adapt", adapt)
    method: Any = registry.algorithm("maml")
    tiny_algorithm(method, method.Settings(inner_steps=3)).learn(tiny_episodes())
    assert len(calls) == 3


def test_different_rates_per_role() -> None:
    """A role's rate is the step of its tensors; equal rates by this path are learn2learn's step."""
    algorithm, episodes = tiny_algorithm(registry.algorithm("maml")), tiny_episodes()
    results = {}
    for head_rate in (0.1, torch.tensor(0.1, dtype=torch.float64)):  # a tensor takes the general path
        tasks = TaskBatch(Learner(algorithm.backbone, algorithm.adapted_names()), episodes)
        rates = dict.fromkeys(tasks.weights, head_rate)
        tasks.descend(tasks.support_loss(), rates)
        results[type(head_rate)] = dict(tasks.weights)
    for name in results[float]:
        torch.testing.assert_close(results[float][name], results[torch.Tensor][name], atol=1e-14, rtol=0)


def test_an_error_in_the_gradient_reaches_the_caller() -> None:
    """learn2learn prints RuntimeErrors such as out-of-memory and fails on an unset variable; that must not happen."""

    class NoMemory(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise torch.OutOfMemoryError("no memory left")

    algorithm = tiny_algorithm(registry.algorithm("maml"))
    tasks = TaskBatch(Learner(algorithm.backbone, algorithm.adapted_names()), tiny_episodes())
    with pytest.raises(torch.OutOfMemoryError, match="no memory left"):
        tasks.descend(NoMemory.apply(tasks.support_loss()), dict.fromkeys(tasks.weights, 0.1))


def test_prediction_leads_nowhere() -> None:
    """Validation and test build no graph to the meta-parameters."""
    algorithm = tiny_algorithm(registry.algorithm("cxgrad"))
    assert not algorithm.predict(tiny_episodes()).requires_grad
    assert all(parameter.grad is None and parameter.requires_grad for parameter in algorithm.parameters())


def test_support_losses_do_not_hold_the_graph() -> None:
    outcome = tiny_algorithm(registry.algorithm("maml")).learn(tiny_episodes())
    assert len(outcome.support_losses) == 5
    assert not any(loss.requires_grad for loss in outcome.support_losses)


def test_per_task_factors() -> None:
    weights = torch.ones(2, 3, 4)
    assert torch.equal(per_task(torch.tensor([1.0, 2.0]), weights)[1], 2 * torch.ones(3, 4))


def test_trace_has_the_shapes_it_says() -> None:
    episodes = tiny_episodes(tasks=2, ways=3, shots=1, queries=4)
    result = trace(tiny_algorithm(registry.algorithm("l2f")), episodes)
    assert result.support_losses.shape == (2, 6)  # the embedding pass and five steps
    assert result.query_losses.shape == (2,)
    assert result.query_logits.shape == (2, 12, 3)
    torch.testing.assert_close(result.meta_loss, result.query_losses.mean())
    assert result.adapted["head.weight"].shape[0] == 2
