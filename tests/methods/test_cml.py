"""CML: golden numbers, the co-learner around several methods, and that it is gone at test."""

from __future__ import annotations

from typing import Any

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
from metazoo.algorithms.cml import CML
from metazoo.backbones import Conv4, Mlp, ResNet12, parameter_count
from metazoo.episodes import Episodes
from metazoo.errors import Incompatible
from metazoo.objectives import task_losses
from metazoo.outer_step import OuterStep
from metazoo.testing import float64, tiny_algorithm, tiny_episodes, trace

BASES = ["maml", "boil", "anil", "cxgrad", "fomaml", "metasgd", "mamlpp"]


def make(base: str = "maml", backbone: Conv4.Settings | None = None, gamma: float = 1.0, **settings: Any) -> CML:
    algorithm = tiny_algorithm(CML, CML.Settings(base=base, base_settings=settings, gamma=gamma), backbone)
    assert isinstance(algorithm, CML)
    return algorithm


def make_base(base: str, backbone: Conv4.Settings | None = None, **settings: Any) -> Algorithm:
    method = registry.algorithm(base)
    return tiny_algorithm(method, method.Settings(**settings), backbone)


def share_weights(wrapped: CML, base: Algorithm) -> None:
    """Their random initial values differ, as the co-learner draws, too."""
    own = dict(wrapped.base.named_parameters())
    for name, parameter in base.named_parameters():
        parameter.data.copy_(own[name])


def assert_same(found: Tensor | None, expected: Tensor | None, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


# Golden numbers


def golden(case: str) -> tuple[CML, dict[str, str]]:
    rates = {"body": 0.5, "norm": 0.5, "head": 0.5}
    settings = {"inner_steps": 1, "inner_lr": rates, "first_order": case == "cml_fo"}
    algorithm = build("cml", {"base_settings": settings}, **RELU)
    assert isinstance(algorithm, CML)
    amplitudes = [(0.3, 0.0), (0.1, 0.0), (0.1, 1.0), (0.1, 0.0)] * 2 + [(0.4, 0.0), (0.1, 0.0)]
    names = [f"{n}.{layer}.{kind}" for n in (1, 2) for layer in ("conv", "bn") for kind in ("weight", "bias")]
    names += ["fc.weight", "fc.bias"]
    own = list(algorithm.colearner.named_parameters(prefix="colearner"))
    for k, ((_, parameter), values) in enumerate(zip(own, amplitudes, strict=True)):
        parameter.data.copy_(auxiliary(parameter.shape, k, *values))
    co = {f"co.{name}": ours for name, (ours, _) in zip(names, own, strict=True)}
    return algorithm, backbone_names(algorithm.backbone) | co


@pytest.mark.parametrize("case", ["cml", "cml_fo"])
def test_golden(case: str) -> None:
    algorithm, names = golden(case)
    result = trace(algorithm, episodes())
    check_losses(result, CASES[case])
    check_logits(result, CASES[case])
    check_gradients(result, CASES[case], names)


@pytest.mark.parametrize("case", ["cml", "cml_fo"])
def test_golden_colearner_alone(case: str) -> None:
    algorithm, names = golden(case)
    outcome = algorithm.base.learn(episodes(), OuterStep(taps=(algorithm.tap,)))
    loss = algorithm.co_losses(outcome, episodes())
    close(loss, [CASES[case]["co_query_loss"]], absolute=1e-9, relative=0)
    learned = dict(algorithm.named_parameters())
    gradients = dict(
        zip(learned, torch.autograd.grad(loss.sum(), list(learned.values()), allow_unused=True), strict=True)
    )
    result = trace(algorithm, episodes())
    result.meta_gradients.update(gradients)
    check_gradients(result, CASES[case]["co_only"], names)


@pytest.mark.parametrize(("case", "base"), [("cml", "maml_all_tensors"), ("cml_fo", "maml_all_tensors_fo")])
def test_golden_without_the_colearner(case: str, base: str) -> None:
    algorithm, names = golden(case)
    check_gradients(trace(algorithm.base, episodes()), CASES[base], names)


def test_golden_colearner_logits() -> None:
    algorithm, _ = golden("cml")
    seen: list[Tensor] = []
    algorithm.colearner.register_forward_hook(lambda module, inputs, output: seen.append(output))
    trace(algorithm, episodes())
    close(seen[0], CASES["cml"]["intermediates"]["co_query_logits"], absolute=1e-9, relative=0)


# Around any method


@pytest.mark.parametrize("base", BASES)
def test_without_weight_it_is_the_base(base: str) -> None:
    wrapped, alone = make(base, gamma=0.0), make_base(base)
    share_weights(wrapped, alone)
    for outer in (None, OuterStep(epoch=0, epochs=100)):
        found, expected = trace(wrapped, tiny_episodes(), outer=outer), trace(alone, tiny_episodes(), outer=outer)
        assert_same(found.meta_loss, expected.meta_loss)
        assert_same(found.query_losses, expected.query_losses)
        gradients = {name.removeprefix("base."): gradient for name, gradient in found.meta_gradients.items()}
        for name, gradient in expected.meta_gradients.items():
            assert_same(gradients[name], gradient)
        for name, gradient in found.meta_gradients.items():
            assert not name.startswith("colearner") or (gradient is not None and not gradient.any()), name


@pytest.mark.parametrize("base", BASES)
def test_the_colearner_is_gone_at_test(base: str) -> None:
    wrapped, alone = make(base), make_base(base)
    share_weights(wrapped, alone)
    before = wrapped.predict(tiny_episodes())
    assert torch.equal(before, alone.predict(tiny_episodes()))
    del wrapped.colearner
    assert torch.equal(wrapped.predict(tiny_episodes()), before)


@pytest.mark.parametrize("base", BASES)
def test_the_colearner_augments_the_gradient(base: str) -> None:
    wrapped, tasks = make(base), tiny_episodes()
    before = {name: parameter.clone() for name, parameter in wrapped.named_parameters()}
    result = trace(wrapped, tasks)
    assert all(torch.equal(parameter, before[name]) for name, parameter in wrapped.named_parameters())
    plain = trace(make(base, gamma=0.0), tasks).meta_gradients
    for n in range(1, 5):
        name = f"backbone.body.block{n}.conv.weight"
        change = result.meta_gradients[name] - plain[name]
        assert change.norm() > 1e-5, name
    assert all(g is not None and g.any() for name, g in result.meta_gradients.items() if name.startswith("colearner"))
    assert not any(name.startswith("colearner") for name in result.adapted)


@pytest.mark.parametrize("base", ["boil", "anil", "cxgrad"])
def test_tasks_do_not_mix(base: str) -> None:
    wrapped, tasks = make(base), tiny_episodes()
    together = trace(wrapped, tasks)
    alone = [trace(wrapped, tasks.select([task])) for task in range(3)]
    assert_same(together.meta_loss, torch.stack([one.meta_loss for one in alone]).mean())
    for name, gradient in together.meta_gradients.items():
        parts = [part for one in alone if (part := one.meta_gradients[name]) is not None]
        assert_same(gradient, torch.stack(parts).mean(dim=0))


def test_anils_colearner_reads_the_embedded_queries() -> None:
    """As ANIL forwards the body once, the co-learner's input is there, with or without support in the batch."""
    for joint in (False, True):
        wrapped, task = make("anil", joint_batch_norm=joint), tiny_episodes(tasks=1)
        outcome = wrapped.base.learn(task, OuterStep(taps=(wrapped.tap,)))
        images = torch.cat([task.support_x[0], task.query_x[0]]) if joint else task.query_x[0]
        body = wrapped.backbone.body
        expected = body.block4.norm(body.block4.conv(body.block3(body.block2(body.block1(images)))))[-6:]
        assert_same(outcome.tapped[wrapped.tap][0], expected)


def test_the_colearner_sees_the_adapted_queries_only() -> None:
    """An explicit step, and the co-learner on maps of its own that are not pooled."""
    wrapped, task = make(inner_steps=1, inner_lr={"body": 0.3, "head": 0.3}), tiny_episodes(tasks=1)
    network = wrapped.backbone
    weights = {name: p for name, p in network.named_parameters() if ".norm." not in name}
    loss = F.cross_entropy(network(task.support_x[0]), task.support_y[0])
    gradients = torch.autograd.grad(loss, list(weights.values()))
    moved = {name: w - 0.3 * g for (name, w), g in zip(weights.items(), gradients, strict=True)}
    seen: list[Tensor] = []
    hook = network.body.block4.norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    logits = torch.func.functional_call(network, moved, (task.query_x[0],))
    hook.remove()
    assert seen[0].shape == (6, 4, 2, 2)
    co = F.cross_entropy(wrapped.colearner[1:](F.leaky_relu(seen[0])), task.query_y[0])
    found = trace(wrapped, task)
    assert_same(found.meta_loss, (F.cross_entropy(logits, task.query_y[0]) + co).detach())


@pytest.mark.parametrize("base", ["boil", "anil"])
def test_the_meta_gradient_is_exact(base: str) -> None:
    wrapped, task = make(base), tiny_episodes(tasks=1)
    gradients, generator = trace(wrapped, task).meta_gradients, torch.Generator().manual_seed(0)
    for name, parameter in wrapped.named_parameters():
        direction, losses = torch.randn(parameter.shape, generator=generator, dtype=torch.float64), []
        direction /= direction.norm()
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(direction, alpha=sign * 1e-6)
            losses.append(float(wrapped.learn(task).losses.detach()))
            with torch.no_grad():
                parameter.sub_(direction, alpha=sign * 1e-6)
        gradient = gradients[name]
        exact = 0.0 if gradient is None else float((gradient * direction).sum())
        assert abs((losses[0] - losses[1]) / 2e-6 - exact) < 1e-6 * max(1.0, abs(exact)), name


@pytest.mark.parametrize("steps", [1, 2])
def test_in_first_order_the_colearner_does_not_reach_the_head(steps: int) -> None:
    wrapped = make(inner_steps=steps)
    for first_order in (True, False):
        outcome = wrapped.base.learn(tiny_episodes(), OuterStep(first_order=first_order, taps=(wrapped.tap,)))
        loss = wrapped.co_losses(outcome, tiny_episodes()).sum()
        head = torch.autograd.grad(loss, list(wrapped.backbone.head.parameters()), allow_unused=True)
        assert all((gradient is None) == first_order for gradient in head)


def test_the_base_keeps_its_outer_groups() -> None:
    wrapped = make("mamlpp")
    groups = wrapped.outer_groups()
    assert [group.clamped for group in groups] == [True, False, True]
    assert [id(p) for p in groups[-1].parameters] == [id(p) for p in wrapped.colearner.parameters()]


# Sizes


def test_parameter_count_and_input() -> None:
    network = Conv4((3, 84, 84), 5, Conv4.Settings(filters=64, conv_bias=True, activation="relu"))
    wrapped = CML(network, CML.Settings(base_settings={"inner_steps": 1}))
    assert parameter_count(wrapped) == 121_093 + 82_117
    assert parameter_count(wrapped.colearner) == 82_117
    assert parameter_count(wrapped.base) == 121_093
    shapes: list[torch.Size] = []
    wrapped.colearner.register_forward_pre_hook(lambda module, inputs: shapes.append(inputs[0].shape))
    images, labels = torch.rand(1, 5, 3, 84, 84), torch.arange(5)[None]
    wrapped.learn(Episodes(images, labels, images, labels, 5))
    assert shapes == [(5, 64, 10, 10)]


@pytest.mark.parametrize(
    "settings",
    [
        Conv4.Settings(filters=4),
        Conv4.Settings(filters=4, global_pool=True),
        Conv4.Settings(filters=4, pooled_blocks=2),
        Conv4.Settings(filters=4, norm_eps=1e-3, activation="relu"),
    ],
)
def test_it_follows_the_backbone(settings: Conv4.Settings) -> None:
    wrapped = make(backbone=settings)
    assert trace(wrapped, tiny_episodes(tasks=1)).meta_loss.isfinite()
    assert [type(m) for m in wrapped.colearner][3:-1] == [type(m) for m in wrapped.backbone.body][4:]
    assert wrapped.colearner[1].norm.eps == settings.norm_eps
    assert (wrapped.colearner[1].conv.bias is None) is not settings.conv_bias
    assert isinstance(wrapped.colearner[0], torch.nn.ReLU) == (settings.activation == "relu")


# Regression


def sinusoids(tasks: int = 2) -> Episodes:
    generator = torch.Generator().manual_seed(0)
    x, more = (torch.rand(tasks, n, 1, generator=generator, dtype=torch.float64) * 10 - 5 for n in (5, 10))
    return Episodes(x, x.sin(), more, more.sin(), 1)


def test_on_vectors_it_reads_the_last_hidden_layer() -> None:
    with float64():
        wrapped = CML(Mlp((1,), 1, Mlp.Settings()), CML.Settings(base_settings={"inner_steps": 1}))
    assert parameter_count(wrapped.base) == 1_761
    assert [tuple(p.shape) for p in wrapped.colearner.parameters()] == [(40, 40), (40,), (1, 40), (1,)]
    outcome = wrapped.base.learn(sinusoids(), OuterStep(taps=(wrapped.tap,)))
    hidden = outcome.tapped[wrapped.tap]
    assert hidden.shape == (2, 10, 40) and (hidden >= 0).all()
    co = task_losses(wrapped.colearner(hidden), sinusoids().query_y)
    assert_same(wrapped.learn(sinusoids()).losses, outcome.losses + co)
    head = outcome.adapted
    assert_same(
        outcome.logits, torch.einsum("tqd,tod->tqo", hidden, head["head.weight"]) + head["head.bias"].unsqueeze(1)
    )
    result = trace(wrapped, sinusoids())
    assert all(gradient is not None and gradient.any() for gradient in result.meta_gradients.values())


# Refusals


def test_what_it_cannot_wrap_is_refused() -> None:
    with pytest.raises(Incompatible, match="made for the backbones conv4 and mlp"):
        CML(ResNet12((3, 16, 16), 3, ResNet12.Settings()))
    with pytest.raises(Incompatible, match="made for the backbones conv4 and mlp"):
        CML(Mlp((1,), 1, Mlp.Settings(hidden=())))
    with pytest.raises(Incompatible, match="protonet has none"):
        make("protonet")
    with pytest.raises(Incompatible, match="which reptile hides"):
        make("reptile").learn(tiny_episodes())
