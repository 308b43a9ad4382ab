"""What must hold for each method by its definition, in float64 on a tiny network; CxGrad has a file of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from invariants import CONVS, SCALE_FREE, assert_same, make, set_weights
from torch import Tensor
from torch.nn import functional as F

from metazoo.algorithm import Algorithm
from metazoo.errors import Incompatible
from metazoo.testing import tiny_episodes, trace

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
