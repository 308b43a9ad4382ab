"""CxGrad's ablations: contexts made afresh for every step, factors without a context, any number of steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from goldens import build, episodes, family_mlp
from torch import Tensor
from torch.nn import functional as F

from metazoo import contract
from metazoo.algorithms.cxgrad import CxGrad
from metazoo.backbones import Conv4
from metazoo.episodes import Episodes
from metazoo.learner import TaskBatch
from metazoo.testing import Trace, tiny_algorithm, tiny_episodes, trace

CONTEXTS = ["task_wise", "step_wise", "step_wise_lagged"]
LARGE_EPS = Conv4.Settings(filters=4, norm_eps=0.1)
"""With it the context moves by as much as its rate says, so that the readings differ visibly."""


def make(backbone: Conv4.Settings | None = None, **settings: object) -> CxGrad:
    algorithm = tiny_algorithm(CxGrad, CxGrad.Settings(**settings), backbone)
    assert isinstance(algorithm, CxGrad)
    return algorithm


def by_hand(algorithm: CxGrad, task: Episodes) -> tuple[list[Tensor], Tensor]:
    """Support losses of every pass and the query loss of one task, by the text of Algorithm 1 and its two readings."""
    settings, network = algorithm.settings, algorithm.backbone
    weights = {name: network.get_parameter(name) for name in algorithm.rates}
    losses: list[Tensor] = []

    def loss(weights: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(network, weights, (images[0],)), labels[0])

    def scaled(context: Tensor) -> dict[str, Tensor]:
        norms = {name: weights[name] / weights[name].norm() for name in algorithm.scaled}
        factors = algorithm.scaler(context)
        return weights | {name: factor * unit for factor, (name, unit) in zip(factors, norms.items(), strict=True)}

    def support(moving: dict[str, Tensor]) -> Tensor:
        losses.append(loss(moving, task.support_x, task.support_y))
        return losses[-1]

    def looked() -> Tensor:
        context = torch.zeros(settings.context_size, dtype=torch.float64, requires_grad=True)
        (change,) = torch.autograd.grad(support(scaled(context)), context)
        return (context - settings.context_lr * change).detach().requires_grad_()

    context = looked()
    for step in range(settings.inner_steps):
        if settings.context == "step_wise" and step:
            context = looked()
        weights = scaled(context)
        *gradients, change = torch.autograd.grad(support(weights), [*weights.values(), context], create_graph=True)
        pairs = zip(weights.items(), gradients, strict=True)
        weights = {name: weight - algorithm.rates[name] * gradient for (name, weight), gradient in pairs}
        start = torch.zeros_like(context) if settings.context == "step_wise_lagged" else context
        context = start - settings.context_lr * change
    return losses, loss(weights, task.query_x, task.query_y)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("context", CONTEXTS)
def test_the_readings_by_hand(context: str, steps: int) -> None:
    algorithm = make(LARGE_EPS, context=context, inner_steps=steps)
    task = tiny_episodes(tasks=1)
    losses, query = by_hand(algorithm, task)
    expected = torch.autograd.grad(query, list(algorithm.parameters()))
    found = trace(algorithm, task)
    torch.testing.assert_close(found.support_losses[0], torch.stack(losses).detach(), atol=1e-12, rtol=0)
    torch.testing.assert_close(found.meta_loss, query.detach(), atol=1e-12, rtol=0)
    for gradient, (name, own) in zip(expected, found.meta_gradients.items(), strict=True):
        torch.testing.assert_close(own, gradient, atol=1e-11, rtol=0, msg=name)


@pytest.mark.parametrize(("context", "passes"), [*zip(CONTEXTS, [6, 10, 6], strict=True)])
def test_support_passes(context: str, passes: int) -> None:
    assert trace(make(context=context), tiny_episodes()).support_losses.shape == (3, passes)


def traces(backbone: Conv4.Settings | None = None, **settings: Any) -> list[Trace]:
    return [trace(make(backbone, context=context, **settings), tiny_episodes()) for context in CONTEXTS]


def test_with_one_step_the_readings_are_the_same() -> None:
    task_wise, *others = traces(LARGE_EPS, inner_steps=1)
    for other in others:
        assert torch.equal(other.query_losses, task_wise.query_losses)
        for name, gradient in task_wise.meta_gradients.items():
            assert torch.equal(other.meta_gradients[name], gradient)


def test_with_more_steps_they_differ() -> None:
    losses = [each.query_losses for each in traces(LARGE_EPS, inner_steps=3)]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (losses[first] - losses[second]).abs().max() > 1e-6


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_without_a_context_rate_the_factors_are_those_of_a_context_of_zeros(steps: int) -> None:
    found = traces(LARGE_EPS, context_lr=0.0, inner_steps=steps)
    for other in found[1:]:
        torch.testing.assert_close(other.query_losses, found[0].query_losses, atol=1e-14, rtol=0)
    algorithm, factors = make(LARGE_EPS, context_lr=0.0, inner_steps=steps), []
    at_zero = algorithm.scaler(torch.zeros(100, dtype=torch.float64)).detach()
    algorithm.scaler.register_forward_hook(lambda module, inputs, output: factors.append(output.detach()))
    result = trace(algorithm, tiny_episodes())
    assert len(factors) == steps + 1 == result.support_losses.shape[1]
    for factor in factors:
        torch.testing.assert_close(factor, at_zero.expand(3, 4), atol=1e-14, rtol=0)
    assert not result.adapted["context"].any()
    assert not result.meta_gradients["scaler.0.weight"].any()
    assert result.meta_gradients["scaler.0.bias"].any()


@pytest.mark.parametrize("rate", [0.01, 0.1, 1.0])
def test_the_first_context_is_proportional_to_its_rate(rate: float) -> None:
    algorithm, contexts = make(context_lr=rate, inner_steps=1), []
    algorithm.scaler.register_forward_hook(lambda module, inputs, output: contexts.append(inputs[0].detach()))
    trace(algorithm, tiny_episodes())
    unit, seen = make(context_lr=1.0, inner_steps=1), []
    unit.scaler.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach()))
    trace(unit, tiny_episodes())
    assert contexts[1].any()
    torch.testing.assert_close(contexts[1], rate * seen[1], atol=1e-15, rtol=1e-12)


def test_a_step_wise_context_starts_at_zero_before_every_step() -> None:
    algorithm, contexts = make(LARGE_EPS, context="step_wise", inner_steps=3), []
    algorithm.scaler.register_forward_hook(lambda module, inputs, output: contexts.append(inputs[0].detach()))
    trace(algorithm, tiny_episodes())
    assert [bool(context.any()) for context in contexts] == [False, True] * 3


def test_golden_setting_first_step_is_that_of_the_code() -> None:
    """The readings part after the first step, so until then official numbers hold for all of them."""
    losses = []
    for context in CONTEXTS:
        settings = {"inner_steps": 3, "inner_lr": {"body": 0.05, "head": 0.05}, "context_size": 5, "context": context}
        algorithm = build("cxgrad", settings)
        family_mlp(algorithm.scaler)
        losses.append(trace(algorithm, episodes()).support_losses[0])
    assert losses[0][:2].tolist() == pytest.approx([1.1244859734] * 2, abs=1e-9)
    for other in losses[1:]:
        torch.testing.assert_close(other[:2], losses[0][:2], atol=1e-12, rtol=0)


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("context", CONTEXTS[1:])
def test_contract(context: Any, check: Callable[[Any], str]) -> None:
    wanted = context

    class Ablation(CxGrad):
        class Settings(CxGrad.Settings):
            context: Any = wanted

    assert not check(Ablation)


@pytest.mark.parametrize("context", CONTEXTS)
def test_the_meta_gradient_with_the_looks_held_constant(context: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite differences with every context that comes of a pass of its own frozen at its value."""
    algorithm, task, looks = make(LARGE_EPS, context=context, inner_steps=2), tiny_episodes(tasks=1), []
    look = algorithm.look

    def recorded(tasks: TaskBatch) -> None:
        look(tasks)
        looks.append(tasks.weights["context"].detach())

    monkeypatch.setattr(algorithm, "look", recorded)
    exact = trace(algorithm, task).meta_gradients

    def losses_at(parameter: Tensor, direction: Tensor, contexts: Sequence[Tensor]) -> list[float]:
        losses = []
        for sign in (1, -1):
            frozen = iter(contexts)

            def replay(tasks: TaskBatch, frozen=frozen) -> None:
                tasks.weights["context"] = next(frozen).clone().requires_grad_()

            monkeypatch.setattr(algorithm, "look", replay)
            parameter.data.add_(direction, alpha=sign * 1e-6)
            losses.append(float(algorithm.learn(task).losses.detach().mean()))
            parameter.data.sub_(direction, alpha=sign * 1e-6)
        return losses

    for name, parameter in algorithm.named_parameters():
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0), dtype=parameter.dtype)
        direction /= direction.norm()
        up, down = losses_at(parameter, direction, looks)
        gradient = exact[name]
        assert gradient is not None
        assert (up - down) / 2e-6 == pytest.approx(float((gradient * direction).sum()), abs=1e-7), name
