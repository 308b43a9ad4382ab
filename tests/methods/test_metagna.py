"""Meta-GNA: golden numbers, what normalising does, its alternatives and the numerical traps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from arbiters import assert_same, make
from goldens import (
    CASES,
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

from metazoo import objectives, registry
from metazoo.algorithm import Algorithm
from metazoo.algorithms.metagna import MetaGNA
from metazoo.backbones import Conv4, Mlp, ResNet12, parameter_count
from metazoo.episodes import Episodes
from metazoo.outer_step import OuterStep
from metazoo.testing import float64, tiny_algorithm, tiny_episodes, trace

ALTERNATIVES: dict[str, dict[str, Any]] = {
    "default": {},
    "batch": {"per_sample": False},
    "network": {"per_tensor": False},
    "raw": {"inputs": "raw"},
    "ratio": {"inputs": "ratio"},
    "repository": {"per_sample": False, "inputs": "standardised", "scale": "absolute"},
}


def constant(algorithm: MetaGNA, value: float) -> MetaGNA:
    algorithm.scales = lambda norms, sizes: torch.full_like(norms, value)
    return algorithm


def make_maml(**settings: Any) -> Algorithm:
    method = registry.algorithm("maml")
    algorithm = tiny_algorithm(method, method.Settings(**settings))
    algorithm.backbone.head.bias.data.copy_(auxiliary((3,), 0, amplitude=0.1))
    return algorithm


# Golden numbers


def golden(case: str) -> MetaGNA:
    activation = "relu" if case == "metagna" else "leaky_relu"
    settings = {"inner_steps": 3, "inner_lr": {"body": 0.05, "head": 0.05}}
    algorithm = build("metagna", settings, activation=activation)
    assert isinstance(algorithm, MetaGNA)
    for k, (parameter, amplitude) in enumerate(zip(algorithm.arbiter.parameters(), (0.3, 0.2) * 2, strict=True)):
        parameter.data.copy_(auxiliary(parameter.shape, k, amplitude))
    return algorithm


@pytest.mark.parametrize("case", ["metagna", "metagna_leaky"])
def test_golden(case: str) -> None:
    algorithm = golden(case)
    result = trace(algorithm, episodes())
    check_losses(result, CASES[case])
    check_logits(result, CASES[case])
    names = backbone_names(algorithm.backbone)
    places = [("l1", 0), ("l2", 2)]
    names |= {f"arb.{ours}.{kind}": f"arbiter.{n}.{kind}" for ours, n in places for kind in ("weight", "bias")}
    check_gradients(result, CASES[case], names)


@pytest.mark.parametrize("case", ["metagna", "metagna_leaky"])
def test_golden_intermediates(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm, norms, scales, losses = golden(case), [], [], []
    plain, each = algorithm.scales, objectives.example_losses

    def spy(read: Tensor, sizes: Tensor) -> Tensor:
        norms.append(read[0])
        scales.append(plain(read, sizes)[0])
        return scales[-1][None]

    def watch(outputs: Tensor, targets: Tensor) -> Tensor:
        losses.append(each(outputs, targets)[0])
        return losses[-1][None]

    monkeypatch.setattr(algorithm, "scales", spy)
    monkeypatch.setattr(objectives, "example_losses", watch)
    trace(algorithm, episodes())
    found = CASES[case]["intermediates"]
    close(norms[0], found["sample_norms_step0"])
    close(scales[0], found["scales_step0"])
    close(losses[0], found["sample_losses_step0"])


def test_golden_support_loss_after() -> None:
    algorithm = golden("metagna")
    longer = MetaGNA(algorithm.backbone, MetaGNA.Settings(inner_steps=4, inner_lr={"body": 0.05, "head": 0.05}))
    longer.arbiter = algorithm.arbiter
    close(trace(longer, episodes()).support_losses[0, 3], CASES["metagna"]["support_after"], absolute=1e-9, relative=0)


# What it is


@pytest.mark.parametrize("alternative", ["default", "batch", "network"])
def test_scales_that_are_the_norms_make_it_maml(alternative: str) -> None:
    algorithm = make(**ALTERNATIVES[alternative], detach_norms=False)
    algorithm.scales = lambda norms, sizes: norms
    found, expected = trace(algorithm, tiny_episodes()), trace(make_maml(), tiny_episodes())
    assert_same(found.query_losses, expected.query_losses)
    assert_same(found.support_losses, expected.support_losses)
    for name, gradient in expected.meta_gradients.items():
        assert_same(found.meta_gradients[name], gradient)


def test_at_first_every_sample_has_the_mean_norm() -> None:
    """An explicit loop over samples and tensors, with the network that is made afresh."""
    algorithm = tiny_algorithm(MetaGNA, MetaGNA.Settings(inner_steps=2, inner_lr={"body": 0.03, "head": 0.07}))
    network, task = algorithm.backbone, tiny_episodes(tasks=1)
    weights = {name: p for name, p in network.named_parameters() if ".norm." not in name}
    for _ in range(2):
        outputs = torch.func.functional_call(network, weights, (task.support_x[0],))
        each = F.cross_entropy(outputs, task.support_y[0], reduction="none")
        gradients = [torch.autograd.grad(loss, list(weights.values()), retain_graph=True) for loss in each]
        moved = {}
        for place, (name, weight) in enumerate(weights.items()):
            mine = [gradient[place] for gradient in gradients]
            size = sum(gradient.norm() for gradient in mine) / len(mine)
            direction = sum(gradient / gradient.norm() for gradient in mine) / len(mine)
            moved[name] = weight - (0.07 if "head" in name else 0.03) * size * direction
        weights = moved
    found = trace(algorithm, task).adapted
    for name, weight in weights.items():
        assert_same(found[name][0], weight)


def test_the_step_is_bounded_by_the_scale() -> None:
    algorithm = constant(make(inner_steps=1, inner_lr={"body": 0.1, "head": 0.1}), 0.3)
    adapted = trace(algorithm, tiny_episodes()).adapted
    start = dict(algorithm.backbone.named_parameters())
    for name, weight in adapted.items():
        steps = (weight - start[name]).flatten(1).norm(dim=1)
        assert (steps <= 0.03 + 1e-12).all() and (steps > 0.003).all(), name


def test_one_step_of_the_batch_has_exactly_the_scale() -> None:
    algorithm = constant(make(inner_steps=1, per_sample=False, inner_lr={"body": 0.1, "head": 0.1}), 0.3)
    start = dict(algorithm.backbone.named_parameters())
    for name, weight in trace(algorithm, tiny_episodes()).adapted.items():
        assert_same((weight - start[name]).flatten(1).norm(dim=1), torch.full((3,), 0.03, dtype=torch.float64), 1e-12)
    whole = constant(make(inner_steps=1, per_sample=False, per_tensor=False, inner_lr={"body": 0.1, "head": 0.1}), 0.3)
    changes = [(w - start[name]).flatten(1) for name, w in trace(whole, tiny_episodes()).adapted.items()]
    assert_same(torch.cat(changes, dim=1).norm(dim=1), torch.full((3,), 0.03, dtype=torch.float64), 1e-12)


def test_a_samples_loss_may_be_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit gradient does not see by how much; MAML's update does."""
    algorithm, task, plain = constant(make(inner_steps=1), 0.3), tiny_episodes(), objectives.example_losses
    before, factors = trace(algorithm, task).adapted, torch.ones(6, dtype=torch.float64)
    other = make_maml(inner_steps=1)
    before_maml, factors[2] = trace(other, task).adapted, 7.0

    def scaled(outputs: Tensor, targets: Tensor) -> Tensor:
        losses = plain(outputs, targets)
        return losses * factors

    monkeypatch.setattr(objectives, "example_losses", scaled)
    after = trace(algorithm, task).adapted
    for name, weight in before.items():
        assert_same(after[name], weight, 1e-12)
    assert (trace(other, task).adapted["head.bias"] - before_maml["head.bias"]).abs().max() > 1e-4


def test_with_one_sample_it_is_the_batch() -> None:
    one = tiny_episodes(ways=1, shots=1)
    found = [
        trace(tiny_algorithm(MetaGNA, MetaGNA.Settings(per_sample=each), ways=1), one).adapted for each in (True, False)
    ]
    assert found[0].keys() == found[1].keys()
    for name, weight in found[0].items():
        assert_same(found[1][name], weight, 1e-13)


def test_the_losses_of_samples_are_recorded_as_their_mean() -> None:
    assert_same(
        trace(make(), tiny_episodes()).support_losses[:, 0],
        trace(make_maml(), tiny_episodes()).support_losses[:, 0],
        1e-12,
    )


def test_what_adapts() -> None:
    result = trace(make(Conv4.Settings(filters=4, conv_bias=True)), tiny_episodes())
    assert result.adapted.keys() == {f"body.block{n}.conv.weight" for n in range(1, 5)} | {"head.weight", "head.bias"}
    algorithm = make()
    before = {name: p.clone() for name, p in algorithm.named_parameters()}
    trace(algorithm, tiny_episodes())
    assert all(torch.equal(p, before[name]) for name, p in algorithm.named_parameters())


def test_the_arbiter_learns_from_the_start() -> None:
    result = trace(tiny_algorithm(MetaGNA, MetaGNA.Settings(inner_steps=1)), tiny_episodes())
    assert result.meta_gradients["arbiter.2.weight"].abs().max() > 1e-6
    first = trace(tiny_algorithm(MetaGNA), tiny_episodes(), outer=OuterStep(first_order=True))
    assert first.meta_gradients["arbiter.2.weight"].abs().max() > 1e-6


# Its alternatives


@pytest.mark.parametrize("alternative", ALTERNATIVES)
def test_tasks_and_samples_do_not_mix(alternative: str) -> None:
    algorithm, tasks = make(**ALTERNATIVES[alternative]), tiny_episodes()
    together = trace(algorithm, tasks)
    alone = [trace(algorithm, tasks.select([task])) for task in range(3)]
    assert_same(together.query_losses, torch.cat([one.query_losses for one in alone]))
    for name, gradient in together.meta_gradients.items():
        parts = [part for one in alone if (part := one.meta_gradients[name]) is not None]
        assert_same(gradient, torch.stack(parts).mean(dim=0))
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    shuffled = Episodes(tasks.support_x[:, order], tasks.support_y[:, order], tasks.query_x, tasks.query_y, 3)
    assert_same(trace(algorithm, shuffled).query_losses, together.query_losses)


@pytest.mark.parametrize("alternative", ALTERNATIVES)
def test_the_meta_gradient_without_constants_is_exact(alternative: str) -> None:
    algorithm, task = make(**ALTERNATIVES[alternative], detach_norms=False, inner_steps=2), tiny_episodes(tasks=1)
    gradients, generator = trace(algorithm, task).meta_gradients, torch.Generator().manual_seed(0)
    for name, parameter in algorithm.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        direction, losses = direction / direction.norm(), []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(direction, alpha=sign * 1e-6)
            losses.append(float(algorithm.learn(task).losses.detach()))
            with torch.no_grad():
                parameter.sub_(direction, alpha=sign * 1e-6)
        exact = float((gradients[name] * direction).sum())
        assert abs((losses[0] - losses[1]) / 2e-6 - exact) < 1e-6, name


def test_each_alternative_is_another_method() -> None:
    losses = [float(trace(make(**each), tiny_episodes()).meta_loss) for each in ALTERNATIVES.values()]
    assert all(abs(a - b) > 1e-7 for i, a in enumerate(losses) for b in losses[:i])
    kept = trace(make(), tiny_episodes()).meta_gradients
    flowing = trace(make(detach_norms=False), tiny_episodes()).meta_gradients
    assert (kept["backbone.head.weight"] - flowing["backbone.head.weight"]).abs().max() > 1e-7


def test_the_repositorys_form() -> None:
    """An explicit step: the unit gradient of the mean loss times what the Arbiter makes of standardised norms."""
    algorithm, task = make(**ALTERNATIVES["repository"], inner_steps=1), tiny_episodes(tasks=1)
    weights = {name: p for name, p in algorithm.backbone.named_parameters() if ".norm." not in name}
    loss = F.cross_entropy(algorithm.backbone(task.support_x[0]), task.support_y[0])
    gradients = torch.autograd.grad(loss, list(weights.values()))
    read = torch.stack([gradient.norm() for gradient in gradients] + [weight.norm() for weight in weights.values()])
    scales = algorithm.arbiter((read - read.mean()) / read.std())
    found = trace(algorithm, task).adapted
    for (name, weight), gradient, scale in zip(weights.items(), gradients, scales, strict=True):
        assert_same(found[name][0], (weight - 0.01 * scale * gradient / gradient.norm()).detach())


# Sizes and traps


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 12 * 12 + 12 + 12 * 6 + 6),
        ({"inputs": "ratio"}, 6 * 12 + 12 + 12 * 6 + 6),
        ({"per_tensor": False}, 2 * 2 + 2 + 2 + 1),
    ],
)
def test_parameter_count(settings: dict[str, Any], count: int) -> None:
    algorithm = MetaGNA(Conv4((3, 84, 84), 5, Conv4.Settings()), MetaGNA.Settings(**settings))
    assert parameter_count(algorithm.arbiter) == count
    assert parameter_count(algorithm) == 70_085 - 4 * 48 + count


def test_biases_that_batch_norm_cancels_stay() -> None:
    """Their gradient is rounding noise; in float32, a unit step along it would be a random one."""
    biased = make(Conv4.Settings(filters=4, conv_bias=True))
    assert not any("conv.bias" in name for name in biased.rates)
    with torch.no_grad():
        for n in range(1, 5):
            biased.backbone.get_parameter(f"body.block{n}.conv.bias").fill_(0.3)
    result = trace(biased, tiny_episodes())
    for n in range(1, 5):
        assert result.meta_gradients[f"backbone.body.block{n}.conv.bias"].norm() < 1e-12


def test_biases_that_nothing_cancels_adapt() -> None:
    with float64():
        algorithm = MetaGNA(Mlp((1,), 1, Mlp.Settings(hidden=(5,))))
    assert {"body.linear1.bias", "head.bias"} <= set(algorithm.rates)
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 4, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    result = trace(algorithm, Episodes(x, y, x + 1, y, 1))
    assert all(gradient is not None and gradient.isfinite().all() for gradient in result.meta_gradients.values())


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("alternative", ["default", "ratio", "repository"])
def test_samples_that_are_fitted_do_no_harm(alternative: str, detach: bool) -> None:
    """In float32 their losses are exactly 0, and so are their gradients."""
    algorithm = make(**ALTERNATIVES[alternative], detach_norms=detach).float()
    task, fitted = tiny_episodes(tasks=1), torch.tensor([500.0, -500.0, -500.0])
    task = Episodes(task.support_x.float(), task.support_y, task.query_x.float(), task.query_y, 3)
    algorithm.backbone.head.bias.data.copy_(fitted)
    losses = algorithm.learn(task).losses
    gradients = torch.autograd.grad(losses.sum(), list(algorithm.parameters()), allow_unused=True)
    assert losses.isfinite().all()
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


def test_it_works_on_a_residual_network() -> None:
    with float64():
        algorithm = MetaGNA(ResNet12((3, 8, 8), 2, ResNet12.Settings()), MetaGNA.Settings(inner_steps=1))
    assert not any("bias" in name for name in algorithm.rates if name.startswith("body."))
    with torch.no_grad():
        assert algorithm.predict(tiny_episodes(tasks=1, ways=2, shots=1, queries=1, size=8)).isfinite().all()
