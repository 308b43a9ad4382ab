"""Reptile: where its meta-gradient points, and that what it reports is honest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from metazoo.algorithms.maml import MAML
from metazoo.algorithms.reptile import Reptile
from metazoo.backbones import Mlp, create
from metazoo.episodes import Episodes
from metazoo.objectives import task_losses
from metazoo.outer_step import OuterStep
from metazoo.testing import tiny_algorithm, tiny_episodes, trace

Close = torch.testing.assert_close


def make(**settings: Any) -> Any:
    return tiny_algorithm(Reptile, Reptile.Settings(**settings))


def descended(network: Any, episodes: Episodes, task: int, steps: int) -> dict[str, Tensor]:
    """The network's tensors after plain gradient descent at 0.1 on all that task's examples; it keeps them."""
    inputs = torch.cat([episodes.support_x[task], episodes.query_x[task]])
    targets = torch.cat([episodes.support_y[task], episodes.query_y[task]])
    names, parameters = zip(*network.named_parameters(), strict=True)
    for _ in range(steps):
        loss = task_losses(network(inputs)[None], targets[None]).sum()
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.data.sub_(gradient, alpha=0.1)
    return {name: parameter.detach() for name, parameter in zip(names, parameters, strict=True)}


def test_the_meta_gradient_is_the_initialisation_minus_the_mean_of_the_trained_weights() -> None:
    algorithm, episodes = make(inner_steps=4), tiny_episodes()
    result = trace(algorithm, episodes)
    trained = [descended(make().backbone, episodes, task, steps=4) for task in range(3)]
    for name, parameter in algorithm.backbone.named_parameters():
        weights = torch.stack([each[name] for each in trained])
        Close(result.adapted[name], weights, atol=1e-12, rtol=0)
        Close(result.meta_gradients[f"backbone.{name}"], parameter.detach() - weights.mean(dim=0), atol=1e-12, rtol=0)


def test_one_step_is_training_on_all_tasks_at_once() -> None:
    algorithm, episodes = make(inner_steps=1), tiny_episodes()
    found, network = trace(algorithm, episodes).meta_gradients, algorithm.backbone
    images = torch.cat([episodes.support_x, episodes.query_x], dim=1)
    labels = torch.cat([episodes.support_y, episodes.query_y], dim=1)
    task_losses(torch.stack([network(task) for task in images]), labels).mean().backward()
    for name, parameter in network.named_parameters():
        Close(found[f"backbone.{name}"], 0.1 * parameter.grad, atol=1e-12, rtol=0)


def test_what_it_reports_is_adaptation_to_the_support_set_alone() -> None:
    rates, episodes = {"body": 0.1, "norm": 0.1, "head": 0.1}, tiny_episodes()
    relabelled = replace(episodes, query_y=(episodes.query_y + 1) % 3)
    found, other = trace(make(), episodes), trace(make(), relabelled)
    maml = trace(tiny_algorithm(MAML, MAML.Settings(inner_lr=rates)), episodes)
    Close(found.query_logits, maml.query_logits, atol=1e-10, rtol=0)
    Close(found.meta_loss, maml.meta_loss, atol=1e-10, rtol=0)
    assert torch.equal(found.query_logits, other.query_logits)
    name = "backbone.head.weight"
    assert (found.meta_gradients[name] - other.meta_gradients[name]).abs().max() > 1e-3


def test_no_graph_is_kept_and_first_order_changes_nothing() -> None:
    algorithm, episodes = make(), tiny_episodes()
    outcome = algorithm.learn(episodes)
    assert not outcome.logits.requires_grad
    parameters = list(algorithm.parameters())
    gradients = torch.autograd.grad(outcome.losses.sum(), parameters, create_graph=True)
    assert not any(gradient.requires_grad for gradient in gradients)
    second, first = trace(algorithm, episodes), trace(algorithm, episodes, second_order=False)
    assert all(torch.equal(gradient, first.meta_gradients[name]) for name, gradient in second.meta_gradients.items())


def test_more_steps_at_test_than_in_training() -> None:
    episodes, steps = tiny_episodes(), {"inner_steps": 2, "evaluation_steps": 5}
    result = trace(make(**steps), episodes)
    assert result.support_losses.shape == (3, 2)
    Close(result.query_logits, make(inner_steps=5).predict(episodes), atol=1e-12, rtol=0)


def test_what_a_mask_holds_at_zero_is_not_pulled_there() -> None:
    name, algorithm = "body.block2.conv.weight", make()
    mask = torch.ones(3, *algorithm.backbone.get_parameter(name).shape, dtype=torch.float64)
    mask[:, 0] = 0
    gradient = trace(algorithm, tiny_episodes(), outer=OuterStep(masks={name: mask})).meta_gradients[f"backbone.{name}"]
    assert gradient is not None and not gradient[0].any() and gradient[1:].all()


def test_regression() -> None:
    torch.manual_seed(0)
    network = create(Mlp.Settings(), (1,), 1).double()
    inputs = torch.rand(2, 5, 1, dtype=torch.float64)
    episodes = Episodes(inputs, inputs.sin(), inputs + 1, (inputs + 1).sin(), ways=1)
    algorithm = Reptile(network, Reptile.Settings(inner_steps=3))
    result, before = trace(algorithm, episodes), {name: p.detach().clone() for name, p in network.named_parameters()}
    adapted = descended(network, episodes, 1, steps=3)
    for name, initial in before.items():
        Close(result.adapted[name][1], adapted[name], atol=1e-12, rtol=0)
        Close(result.meta_gradients[f"backbone.{name}"], initial - result.adapted[name].mean(dim=0), atol=1e-12, rtol=0)
