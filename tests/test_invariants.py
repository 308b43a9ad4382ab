"""What must hold for each method by its definition, in float64 on a tiny network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from metazoo import registry
from metazoo.algorithm import Algorithm
from metazoo.backbones import Conv4
from metazoo.errors import Incompatible
from metazoo.learner import TaskBatch
from metazoo.testing import Trace, tiny_algorithm, tiny_episodes, trace

SCALE_FREE = Conv4.Settings(filters=4, norm_eps=1e-30)
CONVS = [f"body.block{n}.conv.weight" for n in range(1, 5)]


def make(name: str, backbone: Conv4.Settings | None = None, **settings: object) -> Algorithm:
    method = registry.algorithm(name)
    return tiny_algorithm(method, method.Settings(**settings), backbone)


def assert_same(first: Trace, second: Trace, gradients: bool = True, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(first.query_losses, second.query_losses, atol=tolerance, rtol=0)
    if gradients:
        for name, gradient in second.meta_gradients.items():
            torch.testing.assert_close(first.meta_gradients[name], gradient, atol=tolerance, rtol=0)


def set_weights(algorithm: Algorithm, factors: dict[str, float]) -> None:
    with torch.no_grad():
        for name, factor in factors.items():
            algorithm.backbone.get_parameter(name).mul_(factor)


# Batch norm


def test_scaling_a_convolution_scales_its_gradient_inversely() -> None:
    network, episodes = make("maml", SCALE_FREE).backbone, tiny_episodes(tasks=1)

    def run() -> tuple[Tensor, dict[str, Tensor]]:
        logits = network(episodes.support_x[0])
        loss = F.cross_entropy(logits, episodes.support_y[0])
        names, parameters = zip(*network.named_parameters(), strict=True)
        return logits, dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))

    logits, gradients = run()
    network.body.block2.conv.weight.data.mul_(3.0)
    scaled_logits, scaled = run()
    torch.testing.assert_close(scaled_logits, logits, atol=1e-12, rtol=0)
    for name, gradient in gradients.items():
        factor = 3.0 if name == "body.block2.conv.weight" else 1.0
        torch.testing.assert_close(factor * scaled[name], gradient, atol=1e-10, rtol=0)


def test_a_normalised_weight_is_orthogonal_to_its_gradient() -> None:
    network, episodes = make("maml", SCALE_FREE).backbone, tiny_episodes(tasks=1)
    loss = F.cross_entropy(network(episodes.support_x[0]), episodes.support_y[0])
    for name in CONVS:
        weight = network.get_parameter(name)
        (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
        per_filter = (gradient * weight).sum(dim=(1, 2, 3))
        assert gradient.norm() > 1e-3
        assert per_filter.abs().max() < 1e-10


@pytest.mark.parametrize("name", ["maml", "anil", "l2f", "cxgrad"])
def test_norm_parameters_are_meta_learned_and_never_adapted(name: str) -> None:
    result = trace(make(name), tiny_episodes())
    assert not any("norm" in tensor for tensor in result.adapted)
    for tensor, gradient in result.meta_gradients.items():
        if ".norm." in tensor:
            assert gradient is not None and gradient.any()


# MAML


def test_a_vanishing_rate_is_no_adaptation() -> None:
    algorithm, episodes = make("maml", inner_lr={"body": 1e-300, "head": 1e-300}), tiny_episodes()
    expected = torch.stack([algorithm.backbone(images) for images in episodes.query_x])
    torch.testing.assert_close(algorithm.predict(episodes), expected.detach(), atol=1e-12, rtol=0)


def test_adapting_nothing_is_refused() -> None:
    with pytest.raises(Incompatible, match="maml adapts nothing"):
        make("maml", inner_lr={"body": 0.0})


def test_one_first_order_step_has_the_gradient_at_the_adapted_weights() -> None:
    algorithm, episodes = make("fomaml", inner_steps=1), tiny_episodes(tasks=1)
    result = trace(algorithm, episodes)
    adapted = make("fomaml").backbone
    with torch.no_grad():
        for name, weight in result.adapted.items():
            adapted.get_parameter(name).copy_(weight[0])
    F.cross_entropy(adapted(episodes.query_x[0]), episodes.query_y[0]).backward()
    for name, parameter in adapted.named_parameters():
        torch.testing.assert_close(result.meta_gradients[f"backbone.{name}"], parameter.grad, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["maml", "anil", "boil", "metasgd", "l2f", "cxgrad"])
def test_first_order_changes_the_meta_gradient_only(name: str) -> None:
    algorithm, episodes = make(name), tiny_episodes()
    second, first = trace(algorithm, episodes), trace(algorithm, episodes, second_order=False)
    assert torch.equal(second.query_losses, first.query_losses)
    for tensor, weight in second.adapted.items():
        assert torch.equal(weight, first.adapted[tensor])
    difference = second.meta_gradients["backbone.head.weight"] - first.meta_gradients["backbone.head.weight"]
    assert difference.abs().max() > 1e-6


def test_a_scaled_convolution_with_its_rate_scaled_by_the_square_predicts_the_same() -> None:
    lr, a = 0.05, 3.0
    plain = make("maml", SCALE_FREE, inner_lr={"body": lr, "head": lr})
    scaled = make("maml", SCALE_FREE, inner_lr={"body": a**2 * lr, "head": lr})
    set_weights(scaled, dict.fromkeys(CONVS, a))
    episodes = tiny_episodes()
    torch.testing.assert_close(scaled.predict(episodes), plain.predict(episodes), atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ["maml", "anil", "boil", "l2f", "cxgrad"])
def test_swapping_two_labels_with_their_head_rows_swaps_the_logits(name: str) -> None:
    order = torch.tensor([1, 0, 2])
    algorithm, episodes = make(name), tiny_episodes()
    relabelled = replace(episodes, support_y=order[episodes.support_y], query_y=order[episodes.query_y])
    result = trace(algorithm, episodes)
    with torch.no_grad():
        for parameter in algorithm.backbone.head.parameters():
            parameter.copy_(parameter[order])
    swapped = trace(algorithm, relabelled)
    torch.testing.assert_close(swapped.query_losses, result.query_losses, atol=1e-10, rtol=0)
    torch.testing.assert_close(swapped.query_logits, result.query_logits[..., order], atol=1e-10, rtol=0)


# ANIL, BOIL


def test_anil_moves_the_head_only_and_maml_reduces_to_it() -> None:
    episodes = tiny_episodes()
    anil = trace(make("anil", inner_lr={"head": 0.05}), episodes)
    assert anil.adapted.keys() == {"head.weight", "head.bias"}
    assert_same(anil, trace(make("maml", inner_lr={"body": 0.0, "head": 0.05}), episodes))
    assert_same(
        trace(make("anil", inner_lr={"body": 0.05, "head": 0.05}), episodes),
        trace(make("maml", inner_lr={"body": 0.05, "head": 0.05}), episodes),
    )


def test_anil_forwards_the_body_once_per_set() -> None:
    algorithm, calls = make("anil"), []
    algorithm.backbone.body.register_forward_hook(lambda *_: calls.append(1))
    algorithm.learn(tiny_episodes(tasks=1))
    assert len(calls) == 2


def test_anil_meta_gradient_reaches_the_body_through_the_support_features() -> None:
    algorithm, episodes = make("anil"), tiny_episodes()
    first = trace(algorithm, episodes, second_order=False).meta_gradients["backbone.body.block1.conv.weight"]
    second = trace(algorithm, episodes).meta_gradients["backbone.body.block1.conv.weight"]
    assert first.any() and (first - second).abs().max() > 1e-6


def test_joint_batch_norm_refuses_an_adapted_body() -> None:
    with pytest.raises(Incompatible, match="only the head can be adapted"):
        make("anil", joint_batch_norm=True, inner_lr={"body": 0.1, "head": 0.1})


def test_boil_keeps_the_head_and_still_learns_it() -> None:
    algorithm, episodes = make("boil"), tiny_episodes()
    result = trace(algorithm, episodes)
    assert not any(name.startswith("head") for name in result.adapted)
    assert any("norm" in name for name in result.adapted)
    for name in ("head.weight", "head.bias"):
        assert result.meta_gradients[f"backbone.{name}"].norm() > 1e-3
    everything = {"body": 0.05, "norm": 0.05, "head": 0.05}
    assert_same(
        trace(make("boil", inner_lr=everything, inner_steps=5), episodes),
        trace(make("maml", inner_lr=everything), episodes),
    )


# Meta-SGD


def test_metasgd_with_constant_rates_is_maml() -> None:
    episodes = tiny_episodes()
    metasgd = make("metasgd", initial_rates="constant", rate_high=0.05)
    maml = make("maml", inner_steps=1, inner_lr={"body": 0.05, "norm": 0.05, "head": 0.05})
    found, expected = trace(metasgd, episodes), trace(maml, episodes)
    torch.testing.assert_close(found.query_losses, expected.query_losses, atol=1e-12, rtol=0)
    for name, gradient in expected.meta_gradients.items():
        torch.testing.assert_close(found.meta_gradients[name], gradient, atol=1e-12, rtol=0)


def test_metasgd_doubles_the_parameters_and_takes_any_sign() -> None:
    algorithm: Any = make("metasgd")
    episodes = tiny_episodes()
    assert sum(p.numel() for p in algorithm.rates) == sum(p.numel() for p in algorithm.backbone.parameters())
    initial = torch.cat([p.detach().flatten() for p in algorithm.rates])
    assert 0.005 <= initial.min() < 0.01 and 0.09 < initial.max() <= 0.1
    before = algorithm.backbone.head.bias.detach().clone()
    position = algorithm.names.index("head.bias")
    down = trace(algorithm, episodes).adapted["head.bias"] - before
    algorithm.rates[position].data.neg_()
    up = trace(algorithm, episodes).adapted["head.bias"] - before
    torch.testing.assert_close(up, -down, atol=1e-14, rtol=0)


def test_metasgd_rates_get_their_gradient_in_first_order_too() -> None:
    result = trace(make("metasgd"), tiny_episodes(), second_order=False)
    assert all(result.meta_gradients[f"rates.{n}"].any() for n in range(14))


# L2F


def saturate(algorithm: Algorithm) -> Algorithm:
    algorithm.attenuator[2].weight.data.zero_()
    algorithm.attenuator[2].bias.data.fill_(40.0)
    return algorithm


def test_l2f_with_saturated_factors_is_maml() -> None:
    episodes = tiny_episodes()
    l2f, maml = trace(saturate(make("l2f")), episodes), trace(make("maml"), episodes)
    for name, gradient in maml.meta_gradients.items():
        torch.testing.assert_close(l2f.meta_gradients[name], gradient, atol=1e-10, rtol=0)
    torch.testing.assert_close(l2f.query_losses, maml.query_losses, atol=1e-10, rtol=0)
    torch.testing.assert_close(l2f.support_losses[:, 1:], maml.support_losses, atol=1e-10, rtol=0)


def test_l2f_embedding() -> None:
    """One call for all tasks; head entries are zero by structure; it is a constant to the weights unless asked."""
    for differentiable in (False, True):
        algorithm = make("l2f", differentiable_embedding=differentiable)
        seen: list[Tensor] = []
        algorithm.attenuator.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(inputs[0]))
        trace(algorithm, tiny_episodes())
        assert len(seen) == 1
        assert seen[0].shape == (3, 6)
        assert seen[0].requires_grad == differentiable
        assert seen[0][:, 4:].abs().max() < 1e-15 < seen[0][:, :4].abs().min()


def test_l2f_attenuation_shows_only_in_the_head() -> None:
    """Batch norm cancels the convolutions' factors in the forward pass."""
    algorithm, episodes = make("l2f", SCALE_FREE), tiny_episodes(tasks=1)
    factors: list[Tensor] = []
    algorithm.attenuator.register_forward_hook(lambda module, inputs, output: factors.append(output.detach()[0]))
    losses = trace(algorithm, episodes).support_losses[0]
    network = algorithm.backbone
    with torch.no_grad():
        network.head.weight.mul_(factors[0][4])
        network.head.bias.mul_(factors[0][5])
    expected = F.cross_entropy(network(episodes.support_x[0]), episodes.support_y[0])
    torch.testing.assert_close(losses[1], expected.detach(), atol=1e-10, rtol=0)


# CxGrad


def set_factors(algorithm: Algorithm, factor: float) -> Algorithm:
    """Make the scaler return `factor` for every layer and any context."""
    algorithm.scaler[2].weight.data.zero_()
    algorithm.scaler[2].bias.data.fill_(float(torch.tensor(factor, dtype=torch.float64).expm1().log()))
    return algorithm


class OwnNorms(torch.nn.Module):
    """A scaler that returns each weight's present norm, so that rescaling changes nothing."""

    tasks: TaskBatch

    def forward(self, context: Tensor) -> Tensor:
        norms = [self.tasks.weights[name].flatten(1).norm(dim=1) for name in CONVS]
        return torch.stack(norms, dim=1) + 0 * context.sum(dim=1, keepdim=True)


def test_cxgrad_with_the_weights_own_norms_is_maml(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm, episodes = make("cxgrad", context_lr=0.0), tiny_episodes()
    algorithm.scaler, rescale = OwnNorms(), algorithm.rescale

    def of_these(tasks: TaskBatch) -> None:
        algorithm.scaler.tasks = tasks
        rescale(tasks)

    monkeypatch.setattr(algorithm, "rescale", of_these)
    found, maml = trace(algorithm, episodes), trace(make("maml"), episodes)
    torch.testing.assert_close(found.support_losses[:, 1:], maml.support_losses, atol=1e-10, rtol=0)
    assert_same(found, maml)


def test_cxgrad_does_not_see_the_stored_norms() -> None:
    episodes = tiny_episodes()
    plain, scaled = make("cxgrad"), make("cxgrad")
    set_weights(scaled, {name: 0.1 * (n + 1) for n, name in enumerate(CONVS)})
    first, second = trace(plain, episodes), trace(scaled, episodes)
    torch.testing.assert_close(second.support_losses, first.support_losses, atol=1e-9, rtol=0)
    torch.testing.assert_close(second.query_logits, first.query_logits, atol=1e-9, rtol=0)


def test_cxgrad_with_constant_factors_is_sgd_on_unit_weights_at_the_rate_over_the_factor_squared() -> None:
    episodes, lr, factor = tiny_episodes(), 0.05, 0.5
    scaled = set_factors(make("cxgrad", SCALE_FREE, inner_lr={"body": lr, "head": lr}), factor)
    unit = set_factors(make("cxgrad", SCALE_FREE, inner_lr={"body": lr / factor**2, "head": lr}), 1.0)
    torch.testing.assert_close(unit.predict(episodes), scaled.predict(episodes), atol=1e-9, rtol=0)


@pytest.mark.parametrize(("eps", "moves"), [(1e-30, False), (1e-5, True)])
def test_the_context_moves_only_by_batch_norms_epsilon(eps: float, moves: bool) -> None:
    algorithm = make("cxgrad", Conv4.Settings(filters=4, norm_eps=eps))
    context = trace(algorithm, tiny_episodes()).adapted["context"]
    assert (context.norm(dim=1) > 1e-10).all() == moves
    assert moves or context.abs().max() < 1e-12


def test_cxgrad_scales_the_body_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm, episodes = make("cxgrad"), tiny_episodes()
    factors: list[Tensor] = []
    algorithm.scaler.register_forward_hook(lambda module, inputs, output: factors.append(output.detach()))
    rescale, passes = algorithm.rescale, []

    def spy(tasks) -> None:
        head = [tasks.weights[name] for name in ("head.weight", "head.bias")]
        rescale(tasks)
        norms = torch.stack([tasks.weights[name].detach().flatten(1).norm(dim=1) for name in CONVS], dim=1)
        torch.testing.assert_close(norms, factors[-1], atol=1e-12, rtol=0)
        assert [tasks.weights[name] for name in ("head.weight", "head.bias")] == head
        passes.append(tasks)

    monkeypatch.setattr(algorithm, "rescale", spy)
    result = trace(algorithm, episodes)
    assert len(passes) == result.support_losses.shape[1] == 6
    # The query pass uses the adapted weights, which are not rescaled once more.
    last = torch.stack([result.adapted[name].flatten(1).norm(dim=1) for name in CONVS], dim=1)
    assert (last - factors[-1]).abs().max() > 1e-6
    context = result.adapted["context"].norm(dim=1).max()
    assert (result.support_losses[:, 0] - result.support_losses[:, 1]).abs().max() < 10 * context


def test_the_context_is_per_task_and_not_learned() -> None:
    algorithm, episodes = make("cxgrad"), tiny_episodes()
    assert not any("context" in name for name, _ in algorithm.named_parameters())
    assert not any("context" in name for name in algorithm.state_dict())
    result = trace(algorithm, episodes)
    assert result.meta_gradients["scaler.2.weight"].any()
    alone = trace(algorithm, tiny_episodes(tasks=3))
    assert torch.equal(alone.adapted["context"], result.adapted["context"])


def test_one_step_of_cxgrad_has_no_use_for_its_own_context_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one step only the update before it matters: the query pass does not read the context."""
    algorithm, episodes = make("cxgrad", inner_steps=1), tiny_episodes()
    expected = algorithm.predict(episodes)
    step = algorithm.step

    def without_update(tasks: TaskBatch, number: int) -> None:
        step(tasks, number)
        tasks.weights["context"] = torch.full_like(tasks.weights["context"], 7.0)

    monkeypatch.setattr(algorithm, "step", without_update)
    assert torch.equal(algorithm.predict(episodes), expected)


def test_cxgrad_without_a_context_rate_gives_every_task_the_same_factors() -> None:
    algorithm, factors = make("cxgrad", context_lr=0.0), []
    algorithm.scaler.register_forward_hook(lambda module, inputs, output: factors.append(output.detach()))
    trace(algorithm, tiny_episodes())
    assert len(factors) == 6
    assert all(torch.equal(factor, factors[0][:1].expand_as(factor)) for factor in factors)


def test_the_first_context_update_carries_no_meta_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Detaching it again changes nothing."""
    episodes = tiny_episodes()
    plain, detached = make("cxgrad"), make("cxgrad")
    begin = detached.begin

    def cut(tasks: TaskBatch) -> None:
        begin(tasks)
        tasks.weights["context"] = tasks.weights["context"].detach().requires_grad_()

    monkeypatch.setattr(detached, "begin", cut)
    assert_same(trace(plain, episodes), trace(detached, episodes), tolerance=1e-15)


@pytest.mark.parametrize(
    ("backbone", "settings", "reason"),
    [
        (Conv4.Settings(filters=4, conv_bias=True), {}, "conv_bias: false"),
        (Conv4.Settings(filters=4), {"inner_lr": {"head": 0.1}}, "body and head"),
    ],
)
def test_cxgrad_refuses_with_a_reason(backbone: Conv4.Settings, settings: dict, reason: str) -> None:
    with pytest.raises(Incompatible, match=reason):
        make("cxgrad", backbone, **settings)


def test_cxgrad_refuses_a_backbone_without_normalisation() -> None:
    network = Conv4((3, 16, 16), 3, Conv4.Settings(filters=4))
    for block in range(1, 5):
        network.body.get_submodule(f"block{block}").norm = torch.nn.Identity()
    with pytest.raises(Incompatible, match="this backbone has none"):
        registry.algorithm("cxgrad")(network)
