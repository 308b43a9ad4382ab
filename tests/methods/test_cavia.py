"""CAVIA: published numbers, one context for the whole network, and where it can enter."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from goldens import CASES, RELU, auxiliary, backbone_names, build, check_gradients, check_logits, check_losses, close
from goldens import episodes as golden_episodes
from torch import Tensor, nn

from metazoo import contract
from metazoo.algorithms.cavia import CAVIA
from metazoo.backbones import Conv4, Mlp, ResNet12, create, parameter_count
from metazoo.episodes import Episodes
from metazoo.errors import Incompatible
from metazoo.testing import tiny_algorithm, tiny_episodes, trace

CONTEXT = "body.context.values"
Close = torch.testing.assert_close


def make(**settings: Any) -> Any:
    return tiny_algorithm(CAVIA, CAVIA.Settings(**settings))


def curves(tasks: int = 3, seed: int = 0) -> Episodes:
    generator = torch.Generator().manual_seed(seed)
    support, query = (10 * torch.rand(tasks, 10, 1, generator=generator, dtype=torch.float64) - 5 for _ in range(2))
    return Episodes(support, torch.sin(support), query, torch.sin(query), ways=1)


def regression(**settings: Any) -> Any:
    torch.manual_seed(0)
    network = create(Mlp.Settings(), (1,), 1).double()
    return CAVIA(network, CAVIA.Settings(context_size=5, inner_steps=1, **settings)).double()


@pytest.mark.parametrize("case", ["cavia", "cavia_fo"])
def test_golden_numbers(case: str) -> None:
    algorithm = build("cavia", {"first_order": case == "cavia_fo"}, **RELU)
    film = "backbone.body.block3.film.generator.0"
    for k, (kind, amplitude) in enumerate((("weight", 0.3), ("bias", 0.8))):
        parameter = algorithm.get_parameter(f"{film}.{kind}")
        parameter.data.copy_(auxiliary(parameter.shape, k, amplitude))
    result, golden = trace(algorithm, golden_episodes()), CASES[case]
    check_losses(result, golden)
    check_logits(result, golden)
    names = {f"film3.{kind}": f"{film}.{kind}" for kind in ("weight", "bias")}
    check_gradients(result, golden, backbone_names(algorithm.backbone) | names)
    (context,) = result.adapted[CONTEXT]
    close(context.norm(), golden["intermediates"]["context_norm"])
    close(context[:5], golden["intermediates"]["context_first5"])


@pytest.mark.parametrize(("filters", "added"), [(32, 6464), (64, 12928), (128, 25856)])
def test_parameter_count(filters: int, added: int) -> None:
    shape, settings = (3, 84, 84), Conv4.Settings(filters=filters, conv_bias=True)
    plain = parameter_count(Conv4(shape, 5, settings))
    assert parameter_count(CAVIA(Conv4(shape, 5, settings))) - plain == added == 202 * filters


def test_the_context_is_per_task_starts_at_zero_and_is_all_that_moves() -> None:
    algorithm, episodes = make(), tiny_episodes()
    result = trace(algorithm, episodes)
    assert result.adapted.keys() == {CONTEXT}
    assert result.adapted[CONTEXT].shape == (3, 100) and (result.adapted[CONTEXT].norm(dim=1) > 1e-4).all()
    assert not algorithm.backbone.get_buffer(CONTEXT).any()
    assert not any("context" in name for name in [*dict(algorithm.named_parameters()), *algorithm.state_dict()])
    first = trace(algorithm, episodes, second_order=False)
    assert torch.equal(first.adapted[CONTEXT], result.adapted[CONTEXT])


@pytest.mark.parametrize("places", [(3,), (4, 1), (1, 2, 3, 4, "features"), ("features",)])
@pytest.mark.parametrize("hidden_layer", [False, True])
def test_one_context_enters_at_every_place(places: tuple, hidden_layer: bool) -> None:
    """The adapted context put into the plain network, where all places read it, gives the predictions."""
    algorithm, episodes = make(places=places, hidden_layer=hidden_layer), tiny_episodes()
    result = trace(algorithm, episodes)
    assert result.adapted.keys() == {CONTEXT}
    Close(algorithm.predict(episodes), result.query_logits, atol=1e-12, rtol=0)
    for task, context in enumerate(result.adapted[CONTEXT]):
        algorithm.backbone.get_buffer(CONTEXT).copy_(context)
        Close(algorithm.backbone(episodes.query_x[task]).detach(), result.query_logits[task], atol=1e-12, rtol=0)


class Everywhere(CAVIA):
    """With every place and layer that images can have."""

    class Settings(CAVIA.Settings):
        places: Any = (1, 3, "features")
        hidden_layer: bool = True


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
def test_the_contract_holds_at_every_place(check: contract.Check) -> None:
    assert not check(Everywhere)


def test_the_step_is_down_the_gradient_of_the_context() -> None:
    algorithm, episodes = make(inner_steps=1, inner_lr=0.5, places=(2, 4)), tiny_episodes(tasks=1)
    context = algorithm.backbone.get_buffer(CONTEXT).requires_grad_()
    loss = nn.functional.cross_entropy(algorithm.backbone(episodes.support_x[0]), episodes.support_y[0])
    (gradient,) = torch.autograd.grad(loss, context)
    context.requires_grad_(False)
    Close(trace(algorithm, episodes).adapted[CONTEXT][0], -0.5 * gradient, atol=1e-14, rtol=0)


def test_a_context_that_modulates_nothing_adapts_nothing() -> None:
    algorithm, episodes = make(), tiny_episodes()
    algorithm.backbone.body.block3.film.generator[0].weight.data.zero_()
    result = trace(algorithm, episodes)
    assert not result.adapted[CONTEXT].any()
    plain = torch.stack([algorithm.backbone(images) for images in episodes.query_x]).detach()
    Close(result.query_logits, plain, atol=1e-12, rtol=0)


def test_beside_the_features_the_context_is_a_bias_of_the_head() -> None:
    algorithm, episodes = make(places=("features",), inner_steps=1), tiny_episodes(tasks=1)
    result = trace(algorithm, episodes)
    head, features = algorithm.backbone.head, algorithm.backbone.body(episodes.query_x[0])[:, 100:]
    bias = head.bias + head.weight[:, :100] @ result.adapted[CONTEXT][0]
    Close((features @ head.weight[:, 100:].T + bias).detach(), result.query_logits[0], atol=1e-12, rtol=0)


def test_the_modulation_starts_as_in_the_official_code() -> None:
    """Scales at context zero are biases within 0.1 of zero, and not one."""
    torch.manual_seed(0)
    algorithm: Any = CAVIA(Conv4((3, 16, 16), 5, Conv4.Settings(filters=32)), CAVIA.Settings(kaiming_init=True))
    (layer,) = algorithm.backbone.body.block3.film.generator
    assert 0.95 * math.sqrt(3 / 100) < layer.weight.abs().max() <= math.sqrt(3 / 100)
    assert 0.08 < layer.bias.abs().max() <= 0.1
    conv, head = algorithm.backbone.body.block2.conv, algorithm.backbone.head
    assert 0.95 * math.sqrt(6 / 288) < conv.weight.abs().max() <= math.sqrt(6 / 288)
    assert 0.9 * math.sqrt(3 / 32) < head.weight.abs().max() <= math.sqrt(3 / 32) and not head.bias.any()


def test_regression() -> None:
    """One step on a context among the inputs; 1,961 parameters, as in the paper's sinusoids."""
    algorithm, episodes = regression(), curves()
    assert parameter_count(algorithm) == 1961
    result = trace(algorithm, episodes)
    assert (result.query_losses < result.support_losses[:, 0]).any()
    for task, found in enumerate(result.adapted[CONTEXT]):
        context = torch.zeros(5, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(squared(algorithm, context, episodes.support_x[task]), context)
        Close(found, -gradient, atol=1e-14, rtol=0)
        Close(result.query_losses[task], squared(algorithm, found, episodes.query_x[task]).detach())
    alone = [trace(algorithm, chunk).query_losses for chunk in episodes.chunks(1)]
    Close(torch.cat(alone), result.query_losses, atol=1e-14, rtol=0)


def squared(algorithm: CAVIA, context: Tensor, inputs: Tensor) -> Tensor:
    """The squared error of the network with that context on a sine, layer by layer."""
    layers = algorithm.backbone.body
    hidden = layers.linear1(torch.cat([context.expand(len(inputs), 5), inputs], dim=1)).relu()
    return (algorithm.backbone.head(layers.linear2(hidden).relu()) - torch.sin(inputs)).square().mean()


@pytest.mark.parametrize(
    ("backbone", "places"),
    [
        (ResNet12.Settings(), None),
        (Conv4.Settings(filters=4), ("inputs",)),
        (Mlp.Settings(), (3,)),
        (Mlp.Settings(hidden=()), None),
    ],
)
def test_places_that_a_backbone_does_not_have(backbone: Any, places: tuple | None) -> None:
    network = create(backbone, (1,) if isinstance(backbone, Mlp.Settings) else (3, 16, 16), 3)
    with pytest.raises(Incompatible, match="blocks of a Conv4, the inputs of an Mlp, or their features"):
        CAVIA(network, CAVIA.Settings(places=places))
