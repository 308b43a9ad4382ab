"""First-order ANIL: golden numbers, and what it leaves out of ANIL's meta-gradient."""

from __future__ import annotations

import torch
from goldens import CASES, RELU, backbone_names, build, check_gradients, check_logits, check_losses, episodes

from metazoo import registry
from metazoo.algorithms.anil import ANIL
from metazoo.algorithms.foanil import FOANIL
from metazoo.backbones import Conv4, parameter_count
from metazoo.testing import tiny_algorithm, tiny_episodes, trace


def test_golden() -> None:
    algorithm = build("foanil", {"inner_steps": 3, "inner_lr": {"head": 0.1}}, **RELU)
    result = trace(algorithm, episodes())
    check_losses(result, CASES["anil_fo"])
    check_logits(result, CASES["anil_fo"])
    check_gradients(result, CASES["anil_fo"], backbone_names(algorithm.backbone))


def test_it_is_anil_without_second_derivatives() -> None:
    first, second = trace(tiny_algorithm(FOANIL), tiny_episodes()), trace(tiny_algorithm(ANIL), tiny_episodes())
    assert first.adapted.keys() == {"head.weight", "head.bias"}
    assert torch.equal(first.query_logits, second.query_logits)
    asked = trace(tiny_algorithm(ANIL), tiny_episodes(), second_order=False)
    for name, gradient in first.meta_gradients.items():
        assert torch.equal(gradient, asked.meta_gradients[name])
        assert (gradient - second.meta_gradients[name]).abs().max() > 1e-6


def test_with_steps_of_second_order_it_is_anil() -> None:
    found = trace(tiny_algorithm(FOANIL, FOANIL.Settings(first_order=False)), tiny_episodes())
    for name, gradient in trace(tiny_algorithm(ANIL), tiny_episodes()).meta_gradients.items():
        assert torch.equal(found.meta_gradients[name], gradient)


def test_the_body_is_trained_by_the_query_features_alone() -> None:
    """As if the adapted head were given: the body's meta-gradient is that of the query loss below a constant head."""
    algorithm, task = tiny_algorithm(FOANIL), tiny_episodes(tasks=1)
    result = trace(algorithm, task)
    network = tiny_algorithm(ANIL).backbone
    with torch.no_grad():
        network.head.weight.copy_(result.adapted["head.weight"][0])
        network.head.bias.copy_(result.adapted["head.bias"][0])
    torch.nn.functional.cross_entropy(network(task.query_x[0]), task.query_y[0]).backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(result.meta_gradients[f"backbone.{name}"], parameter.grad, atol=1e-12, rtol=0)


def test_parameter_count() -> None:
    network = Conv4((3, 84, 84), 5, Conv4.Settings(filters=64, conv_bias=True))
    assert parameter_count(registry.create("foanil", network)) == 121_093
