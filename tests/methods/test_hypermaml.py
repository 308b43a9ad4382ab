"""HyperMAML: golden numbers, its schedule, what the hypernetwork may see and change, its legacy switches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from goldens import (
    CASES,
    RELU,
    auxiliary,
    backbone_names,
    build,
    check_gradients,
    check_logits,
    check_losses,
    close,
    episodes,
)
from torch import Tensor
from torch.nn import functional as F

from metazoo import registry
from metazoo.algorithm import Algorithm
from metazoo.algorithms.hypermaml import HyperMAML
from metazoo.backbones import Conv4, Mlp, parameter_count
from metazoo.episodes import Episodes
from metazoo.errors import Incompatible
from metazoo.outer_step import OuterStep
from metazoo.testing import Trace, tiny_algorithm, tiny_episodes, trace

WARM_UP, MIXING = OuterStep(epoch=0, epochs=40), OuterStep(epoch=6, epochs=40)
HYPER = {f"hyper.l{n}.{kind}": f"hypernetwork.{2 * n - 2}.{kind}" for n in (1, 2, 3) for kind in ("weight", "bias")}
AMPLITUDES = (0.4, 0.2, 0.12, 0.1, 0.12, 0.1)


def make(**settings: object) -> HyperMAML:
    algorithm = tiny_algorithm(HyperMAML, HyperMAML.Settings(**settings))
    assert isinstance(algorithm, HyperMAML)
    return algorithm


def golden(**settings: object) -> Algorithm:
    algorithm = build("hypermaml", settings, **RELU)
    for k, (name, amplitude) in enumerate(zip(HYPER.values(), AMPLITUDES, strict=True)):
        parameter = algorithm.get_parameter(name)
        parameter.data.copy_(auxiliary(parameter.shape, k, amplitude))
    return algorithm


def delta(result: Trace) -> Tensor:
    """`[T, N, D+1]`."""
    return torch.cat([result.adapted["delta.weight"], result.adapted["delta.bias"].unsqueeze(2)], dim=2)


def head(result: Trace) -> Tensor:
    return torch.cat([result.adapted["head.weight"], result.adapted["head.bias"].unsqueeze(2)], dim=2)


def initial_head(algorithm: HyperMAML) -> Tensor:
    return torch.cat([algorithm.backbone.head.weight, algorithm.backbone.head.bias.unsqueeze(1)], dim=1).detach()


def same(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


# Golden numbers


@pytest.mark.parametrize(
    ("case", "settings", "outer"),
    [
        ("hypermaml", {}, OuterStep()),
        ("hypermaml_warmup", {}, WARM_UP),
        ("hypermaml_warmup_legacy", {"legacy_warmup_grad": True}, WARM_UP),
    ],
)
def test_golden(case: str, settings: dict, outer: OuterStep) -> None:
    algorithm = golden(**settings)
    result = trace(algorithm, episodes(), outer=outer)
    check_losses(result, CASES[case])
    check_logits(result, CASES[case])
    check_gradients(result, CASES[case], backbone_names(algorithm.backbone) | HYPER)


def test_golden_delta_and_support_losses() -> None:
    algorithm, case = golden(), CASES["hypermaml"]
    result = trace(algorithm, episodes())
    close(delta(result)[0], case["intermediates"]["delta"], absolute=1e-9, relative=0)
    close(delta(result).norm(), case["intermediates"]["delta_norm"], absolute=1e-9, relative=0)
    support = algorithm.backbone.body(episodes().support_x[0])
    for weights, expected in (
        ({}, case["support_before"]),
        ({kind: result.adapted[f"head.{kind}"][0] for kind in ("weight", "bias")}, case["support_after"]),
    ):
        logits = torch.func.functional_call(algorithm.backbone.head, weights, (support,))
        close(F.cross_entropy(logits, episodes().support_y[0]), expected, absolute=1e-9, relative=0)


def test_the_same_task_twice_gives_the_same() -> None:
    algorithm, (first, stale) = golden(), CASES["hypermaml"]["intermediates"]["stale_head_query_losses"]
    losses = [trace(algorithm, episodes()).query_losses for _ in range(2)]
    close(torch.cat(losses), [first, first], absolute=1e-9, relative=0)
    assert abs(stale - first) > 1e-3


# The update


def test_the_update_is_subtracted_once_and_from_the_head_alone() -> None:
    algorithm = make()
    result = trace(algorithm, tiny_episodes())
    same(head(result), initial_head(algorithm) - delta(result), tolerance=1e-14)
    assert not result.support_losses.numel(), "no gradient step"
    assert {name for name in result.adapted if not name.startswith("delta.")} == {"head.weight", "head.bias"}


def test_without_an_update_it_is_the_meta_learned_head() -> None:
    algorithm, task = make(), tiny_episodes()
    algorithm.hypernetwork[4].weight.data.zero_()
    algorithm.hypernetwork[4].bias.data.zero_()
    expected = torch.stack([algorithm.backbone(images) for images in task.query_x])
    same(algorithm.predict(task), expected.detach(), tolerance=1e-12)


def test_prediction_calls_no_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("autograd was called")

    algorithm = make()
    monkeypatch.setattr(torch.autograd, "grad", refuse)
    monkeypatch.setattr(torch.Tensor, "backward", refuse)
    algorithm.predict(tiny_episodes())
    with pytest.raises(AssertionError, match="autograd was called"):
        algorithm.learn(tiny_episodes(), WARM_UP)


@pytest.mark.parametrize("sees_label", [False, True])
def test_relabelling_permutes_the_update_unless_the_label_is_seen(sees_label: bool) -> None:
    algorithm, task, renamed = make(), tiny_episodes(), torch.tensor([2, 0, 1])
    if not sees_label:
        algorithm.hypernetwork[0].weight.data[:, -1] = 0
    first, other = (delta(trace(algorithm, e)) for e in (task, replace(task, support_y=renamed[task.support_y])))
    assert torch.allclose(other[:, renamed], first, atol=1e-12, rtol=0) != sees_label


def test_several_shots_are_seen_by_their_mean() -> None:
    algorithm, task = make(), tiny_episodes(shots=1)
    doubled = replace(task, support_x=task.support_x.repeat(1, 2, 1, 1, 1), support_y=task.support_y.repeat(1, 2))
    same(algorithm.predict(doubled), algorithm.predict(task))


def test_the_meta_gradient_is_exact_but_for_the_probabilities() -> None:
    algorithm, task = make(), tiny_episodes(tasks=1)
    ways = task.ways
    algorithm.hypernetwork[0].weight.data[:, -ways - 1 : -1] = 0  # blind to the probabilities
    gradients = trace(algorithm, task).meta_gradients
    generator = torch.Generator().manual_seed(0)
    for name, parameter in algorithm.named_parameters():
        direction = F.normalize(torch.randn(parameter.numel(), generator=generator, dtype=torch.float64), dim=0)
        direction = 1e-6 * direction.view_as(parameter)
        losses = []
        for sign in (1, -1):
            parameter.data.add_(direction, alpha=sign)
            losses.append(algorithm.learn(task).losses.sum().item())
            parameter.data.sub_(direction, alpha=sign)
        gradient = gradients[name]
        assert gradient is not None
        assert (losses[0] - losses[1]) / 2e-6 == pytest.approx((gradient * direction).sum().item() * 1e6, abs=1e-7)


def test_a_penalty_makes_the_update_smaller() -> None:
    task, sizes = tiny_episodes(), []
    for penalty in (0.0, 1.0):
        algorithm = make(delta_penalty=penalty)
        result = trace(algorithm, task)
        squares = delta(result).square().sum(dim=(1, 2))
        same(algorithm.learn(task).losses, result.query_losses + penalty * squares, tolerance=1e-12)
        optimizer = torch.optim.SGD(algorithm.parameters(), lr=0.05)
        for _ in range(5):
            optimizer.zero_grad()
            algorithm.learn(task).losses.mean().backward()
            optimizer.step()
        sizes.append(delta(trace(algorithm, task)).norm().item())
    assert sizes[1] < 0.8 * sizes[0]


# Warm-up and mixing


def test_the_schedule_of_the_official_code() -> None:
    algorithm = make()
    share = {e: algorithm.gradient_share(OuterStep(epoch=e, epochs=4000)) for e in (0, 99, 100, 600, 1099, 1100, 3999)}
    assert share == {0: 1, 99: 1, 100: 1000 / 1001, 600: 500 / 1001, 1099: 1 / 1001, 1100: 0, 3999: 0}
    assert algorithm.gradient_share(OuterStep()) == 0
    assert make(warm_up=0, mixing=0).gradient_share(OuterStep(epoch=0, epochs=10)) == 0
    assert make(warm_up=1).gradient_share(OuterStep(epoch=9, epochs=10)) == 1


@pytest.mark.parametrize("legacy", [False, True])
def test_in_warm_up_it_is_anil(legacy: bool) -> None:
    task = tiny_episodes()
    anil = tiny_algorithm(registry.algorithm("anil"))
    result = trace(make(legacy_warmup_grad=legacy), task, outer=WARM_UP)
    expected = trace(anil, task)
    assert not any(name.startswith("delta.") for name in result.adapted), "the hypernetwork is not asked"
    if legacy:
        assert (result.query_losses - expected.query_losses).abs().max() > 1e-8
        return
    same(result.query_losses, expected.query_losses)
    same(result.support_losses, expected.support_losses)
    for name, gradient in result.meta_gradients.items():
        if name.startswith("hypernetwork"):
            assert gradient is None
        else:
            same(gradient, expected.meta_gradients[name])


@pytest.mark.parametrize(("legacy", "times"), [(False, 1), (True, 5)])
def test_mixing_subtracts_both(legacy: bool, times: int) -> None:
    algorithm = make(inner_lr=1e-300, legacy_repeated_delta=legacy)
    p = algorithm.gradient_share(MIXING)
    assert p == 5 / 11
    result = trace(algorithm, tiny_episodes(), outer=MIXING)
    same(initial_head(algorithm) - head(result), times * (1 - p) * delta(result), tolerance=1e-13)
    assert result.support_losses.shape == (3, 5)
    assert all(gradient is not None for gradient in result.meta_gradients.values())


def test_a_mixing_step_by_hand() -> None:
    algorithm, task = make(inner_steps=1, inner_lr=0.3), tiny_episodes(tasks=1)
    result, p = trace(algorithm, task, outer=MIXING), algorithm.gradient_share(MIXING)
    loss = F.cross_entropy(algorithm.backbone(task.support_x[0]), task.support_y[0])
    weight, bias = torch.autograd.grad(loss, list(algorithm.backbone.head.parameters()))
    step = 0.3 * torch.cat([weight, bias.unsqueeze(1)], dim=1)
    same(head(result)[0], initial_head(algorithm) - p * step - (1 - p) * delta(result)[0], tolerance=1e-13)


@pytest.mark.parametrize("outer", [WARM_UP, MIXING], ids=["warm-up", "mixing"])
@pytest.mark.parametrize("legacy", [False, True])
def test_tasks_do_not_mix_before_the_hypernetwork_is_alone(outer: OuterStep, legacy: bool) -> None:
    algorithm, task = make(legacy_warmup_grad=legacy), tiny_episodes()
    together = trace(algorithm, task, outer=outer)
    alone = [trace(algorithm, task.select([t]), outer=outer) for t in range(3)]
    same(together.query_losses, torch.cat([one.query_losses for one in alone]))
    first = trace(algorithm, task, second_order=False, outer=outer)
    same(first.query_losses, together.query_losses, tolerance=1e-12)


def test_prediction_knows_no_warm_up() -> None:
    algorithm, task = make(warm_up=1.0), tiny_episodes()
    same(algorithm.predict(task), trace(algorithm, task).query_logits)


# The network


def test_parameter_counts() -> None:
    network = Conv4((3, 84, 84), 5, Conv4.Settings(filters=64, global_pool=True, **RELU))
    algorithm = HyperMAML(network)
    assert parameter_count(network) == 113_413 and parameter_count(network.head) == 325
    assert parameter_count(algorithm.hypernetwork) == 100_673
    assert [layer.in_features for layer in algorithm.hypernetwork if hasattr(layer, "in_features")] == [70, 256, 256]


def test_numbers_to_be_hit_are_refused() -> None:
    inputs, targets = torch.rand(1, 4, 2), torch.rand(1, 4, 1)
    with pytest.raises(Incompatible, match="tells classes apart"):
        HyperMAML(Mlp((2,), 1, Mlp.Settings())).predict(Episodes(inputs, targets, inputs, targets, ways=1))
