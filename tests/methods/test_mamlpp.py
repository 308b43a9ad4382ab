"""MAML++: golden numbers, what its tables must and must not do, each ingredient's switch, its schedules."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from goldens import CASES, backbone_names, build, check_gradients, check_losses, close, episodes
from torch import Tensor
from torch.nn import functional as F

from metazoo import registry
from metazoo.algorithms.mamlpp import MAMLPP
from metazoo.backbones import Conv4, parameter_count
from metazoo.episodes import Episodes
from metazoo.errors import Incompatible
from metazoo.learner import TaskBatch
from metazoo.outer_step import OuterStep
from metazoo.testing import Trace, tiny_algorithm, tiny_episodes, trace

GOLDEN = {"inner_steps": 3, "inner_lr": {"body": 0.05, "head": 0.05}, "first_order_share": 0.0}
OFF = {"learned_rates": False, "per_step_norm": False, "multi_step": 0.0, "first_order_share": 0.0}
START = OuterStep(epoch=0, epochs=100)


def make(backbone: Conv4.Settings | None = None, **settings: object) -> MAMLPP:
    algorithm = tiny_algorithm(MAMLPP, MAMLPP.Settings(**settings), backbone)
    assert isinstance(algorithm, MAMLPP)
    return algorithm


def maml(**settings: object) -> Trace:
    method = registry.algorithm("maml")
    return trace(tiny_algorithm(method, method.Settings(**settings)), tiny_episodes())


def assert_same(found: Tensor | None, expected: Tensor | None, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


def spread(algorithm: MAMLPP) -> MAMLPP:
    """Give every row and rate a value of its own."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in algorithm.named_parameters():
        if ".norm." in name or name.startswith("step_rates"):
            noise = torch.rand(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.data.mul_(1 + 0.3 * noise)
    return algorithm


# Golden numbers


@pytest.mark.parametrize(("case", "epoch"), [("mamlpp_e0", 0), ("mamlpp_e7", 7), ("mamlpp_e15", 15)])
def test_golden(case: str, epoch: int) -> None:
    algorithm = build("mamlpp", GOLDEN, conv_bias=True)
    outer = OuterStep(epoch=epoch, epochs=100)
    result = trace(algorithm, episodes(), outer=outer)
    check_losses(result, CASES[case])
    names = backbone_names(algorithm.backbone)
    names |= {f"lr.{tensor}": f"step_rates.{j}" for j, tensor in enumerate(t for t in names if "bn" not in t)}
    check_gradients(result, CASES[case], names, zero=1e-15)
    assert algorithm.query_weights(outer) == pytest.approx(CASES[case]["query_weights"], abs=1e-14)


@pytest.mark.parametrize("step", range(3))
def test_golden_query_loss_after_each_step(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = build("mamlpp", GOLDEN, conv_bias=True)
    monkeypatch.setattr(algorithm, "query_weights", lambda outer: [float(k == step) for k in range(3)])
    result = trace(algorithm, episodes())
    close(result.meta_loss, CASES["mamlpp_e0"]["query_losses_per_step"][step], absolute=1e-9, relative=0)


# The multi-step loss


def weights(epoch: int, steps: int = 5, share: float = 0.15, epochs: int = 100) -> list[float]:
    algorithm = make(inner_steps=steps, multi_step=share)
    return list(algorithm.query_weights(OuterStep(epoch=epoch, epochs=epochs)))


@pytest.mark.parametrize(
    ("epoch", "early", "last"),
    [(0, 0.2, 0.2), (1, 0.186667, 0.253333), (7, 0.106667, 0.573333), (14, 0.013333, 0.946667), (15, 0.0, 1.0)],
)
def test_weights_of_the_query_losses(epoch: int, early: float, last: float) -> None:
    assert weights(epoch) == pytest.approx([early] * 4 + [last], abs=1e-6)


def test_the_weights_sum_to_one_and_scale_with_the_training() -> None:
    for epoch in range(20):
        assert sum(weights(epoch)) == pytest.approx(1, abs=1e-14)
    assert weights(2, epochs=20) == pytest.approx(weights(10), abs=1e-14)
    assert weights(39, share=0.4) == pytest.approx([0.03 / 5] * 4 + [1 - 4 * 0.03 / 5], abs=1e-14)


def test_after_its_share_one_query_pass_is_made() -> None:
    algorithm, passes = make(), []
    algorithm.backbone.body.register_forward_hook(lambda module, inputs, output: passes.append(inputs[0].shape[0]))
    task = tiny_episodes(tasks=1, shots=1, queries=2)
    for epoch, queries in ((0, 5), (14, 5), (15, 1)):
        passes.clear()
        algorithm.learn(task, OuterStep(epoch=epoch, epochs=100))
        assert (passes.count(3), passes.count(6)) == (5, queries)
    passes.clear()
    algorithm.predict(task)
    assert (passes.count(3), passes.count(6)) == (5, 1)


# Rates and batch norm of each step


def test_with_every_ingredient_off_it_is_maml() -> None:
    found, expected = trace(make(**OFF), tiny_episodes(), outer=START), maml()
    assert found.meta_gradients.keys() == expected.meta_gradients.keys()
    assert torch.equal(found.query_losses, expected.query_losses)
    for name, gradient in expected.meta_gradients.items():
        assert_same(found.meta_gradients[name], gradient, 1e-15)
    assert len(make(**OFF).outer_groups()) == 1


def test_equal_rates_and_rows_are_maml() -> None:
    """A row's gradient is part of that of the tensor it stands for."""
    found, expected = trace(make(), tiny_episodes()), maml()
    assert_same(found.query_losses, expected.query_losses)
    assert_same(found.support_losses, expected.support_losses)
    for name, gradient in expected.meta_gradients.items():
        own = found.meta_gradients[name]
        assert own is not None
        assert_same(own.sum(dim=0) if ".norm." in name else own, gradient)


@pytest.mark.parametrize("ingredient", ["learned_rates", "per_step_norm"])
def test_one_ingredient_alone(ingredient: str) -> None:
    algorithm = make(**OFF | {ingredient: True})
    learned = {name for name, _ in algorithm.named_parameters()}
    assert any(name.startswith("step_rates") for name in learned) == (ingredient == "learned_rates")
    rows = algorithm.backbone.get_parameter("body.block1.norm.weight").shape
    assert rows == ((5, 4) if ingredient == "per_step_norm" else (4,))
    before = trace(algorithm, tiny_episodes()).query_losses
    assert_same(before, maml().query_losses)
    assert (trace(spread(algorithm), tiny_episodes()).query_losses - before).abs().max() > 1e-4


def test_the_tables_are_those_of_an_explicit_loop() -> None:
    algorithm, task = spread(make(inner_steps=2)), tiny_episodes(tasks=1)
    network = make(per_step_norm=False).backbone
    learned = dict(algorithm.backbone.named_parameters())
    weights = {name: learned[name] for name in algorithm.rates}

    def loss(step: int, images: Tensor, labels: Tensor) -> Tensor:
        rows = {name: rows[step] for name, rows in learned.items() if name not in weights}
        return F.cross_entropy(torch.func.functional_call(network, {**weights, **rows}, (images[0],)), labels[0])

    for step in range(2):
        gradients = torch.autograd.grad(loss(step, task.support_x, task.support_y), list(weights.values()))
        weights = {
            name: weight - rates[step] * gradient
            for (name, weight), rates, gradient in zip(weights.items(), algorithm.step_rates, gradients, strict=True)
        }
    expected = loss(1, task.query_x, task.query_y)
    assert_same(trace(algorithm, task).query_losses, expected.detach()[None])


def losses_after_each_step(algorithm: MAMLPP, task: Episodes) -> list[Tensor]:
    tasks = TaskBatch(algorithm._learner[0], task)
    found = []
    for step in range(algorithm.settings.inner_steps):
        algorithm.step(tasks, step)
        found.append(F.cross_entropy(tasks.query_logits()[0], task.query_y[0]).detach())
    return found


@pytest.mark.parametrize("row", range(1, 5))
def test_a_row_matters_from_its_step_on(row: int) -> None:
    algorithm, task = make(), tiny_episodes(tasks=1)
    before = losses_after_each_step(algorithm, task)
    algorithm.backbone.get_parameter("body.block4.norm.weight").data[row] += 0.5
    after = losses_after_each_step(algorithm, task)
    assert [torch.equal(*pair) for pair in zip(before, after, strict=True)] == [step < row for step in range(5)]


def test_the_tables_are_learned_and_never_adapted() -> None:
    result = trace(make(), tiny_episodes())
    assert result.adapted.keys() == {f"body.block{n}.conv.weight" for n in range(1, 5)} | {"head.weight", "head.bias"}
    for name, gradient in result.meta_gradients.items():
        if name.startswith("step_rates") or ".norm." in name:
            assert gradient is not None and gradient.shape[0] == 5
            assert gradient.flatten(1).any(dim=1).all() if gradient.dim() > 1 else gradient.all()


def test_rates_get_their_gradient_in_first_order_and_may_turn_negative() -> None:
    algorithm, task = make(inner_steps=1), tiny_episodes()
    before = algorithm.backbone.head.bias.detach().clone()
    result = trace(algorithm, task, second_order=False)
    assert all(result.meta_gradients[f"step_rates.{j}"].all() for j in range(6))
    algorithm.step_rates[5].data.neg_()
    up = trace(algorithm, task).adapted["head.bias"] - before
    assert_same(up, before - result.adapted["head.bias"], 1e-14)


def test_more_steps_than_trained_are_refused() -> None:
    for settings in ({}, {"learned_rates": False}, {"per_step_norm": False}):
        with pytest.raises(Incompatible, match="each of its 5 inner steps, so it cannot be evaluated with 6"):
            make(evaluation_steps=6, **settings)
    assert make(evaluation_steps=6, **OFF).predict(tiny_episodes()).shape == (3, 6, 3)
    fewer = make(evaluation_steps=3).predict(tiny_episodes())
    assert_same(fewer, make(inner_steps=3).predict(tiny_episodes()), 1e-14)


def test_adapted_batch_norm_has_no_rows() -> None:
    everything = {"body": 0.01, "norm": 0.01, "head": 0.01}
    with pytest.raises(Incompatible, match="leave 'norm' out of inner_lr"):
        make(inner_lr=everything)
    found = trace(make(inner_lr=everything, per_step_norm=False), tiny_episodes())
    assert_same(found.query_losses, maml(inner_lr=everything).query_losses)


@pytest.mark.parametrize("bias", [True, False])
def test_parameter_count(bias: bool) -> None:
    """The network's, batch norm once more for each step after the first, a rate for each tensor and step."""
    algorithm: Any = MAMLPP(Conv4((3, 84, 84), 5, Conv4.Settings(conv_bias=bias)))
    network, tensors = (70_085, 10) if bias else (69_893, 6)
    assert parameter_count(algorithm) == network + 4 * 384 + 5 * tensors


# Schedules


def test_first_order_at_the_start() -> None:
    def head(epoch: int, **settings: Any) -> Tensor | None:
        algorithm = make(multi_step=0.0, **settings)
        result = trace(algorithm, tiny_episodes(), outer=OuterStep(epoch=epoch, epochs=100))
        return result.meta_gradients["backbone.head.weight"]

    first = trace(make(first_order=True), tiny_episodes()).meta_gradients["backbone.head.weight"]
    second = trace(make(), tiny_episodes()).meta_gradients["backbone.head.weight"]
    assert (first - second).abs().max() > 1e-6
    assert torch.equal(head(10), first) and torch.equal(head(11), second)
    assert torch.equal(head(0, first_order_share=0.0), second)
    asked = trace(make(), tiny_episodes(), outer=OuterStep(first_order=True))
    assert torch.equal(asked.meta_gradients["backbone.head.weight"], first)


def test_the_outer_rate_falls_along_a_cosine() -> None:
    def rates(epoch: float, floor: float) -> list[float]:
        outer = OuterStep(epoch=epoch, epochs=100)
        return [group.rate(outer) for group in make(outer_rate_floor=floor).outer_groups()]

    assert rates(0, 0.01) == [1.0, 1.0]
    assert rates(50, 0.01) == pytest.approx([0.505] * 2)
    assert rates(25, 0.2) == pytest.approx([0.2 + 0.4 * (1 + math.sqrt(0.5))] * 2)
    assert rates(100, 0.01) == rates(math.inf, 0.01) == pytest.approx([0.01] * 2)
    assert rates(37, 1.0) == [1.0, 1.0]


def test_the_clamp_bounds_all_but_the_rates() -> None:
    algorithm = make()
    network, rates = algorithm.outer_groups()
    assert network.clamped and not rates.clamped
    assert [*network.parameters, *rates.parameters] == list(algorithm.parameters())
