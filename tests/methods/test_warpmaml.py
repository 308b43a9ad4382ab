"""Warp-MAML: golden numbers, how far each meta-gradient goes, and MAML behind identity layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from goldens import CASES, RELU, auxiliary, backbone_names, build, check_gradients, check_logits, check_losses, close
from goldens import episodes as golden_episodes
from torch.nn import functional as F

from metazoo import contract
from metazoo.algorithms.maml import MAML
from metazoo.algorithms.warpmaml import WarpMAML
from metazoo.backbones import Conv4, Mlp, ResNet12, create, parameter_count
from metazoo.errors import Incompatible
from metazoo.testing import tiny_algorithm, tiny_episodes, trace

ALL = {"body": 0.1, "norm": 0.1, "head": 0.1}
Close = torch.testing.assert_close


def make(bent: bool = True, **settings: Any) -> Any:
    """The method with warp layers moved off the identity unless they are to stay there."""
    algorithm: Any = tiny_algorithm(WarpMAML, WarpMAML.Settings(**settings))
    if bent:
        generator = torch.Generator().manual_seed(1)
        for name in warps(algorithm):
            warp = algorithm.get_parameter(name)
            warp.data.add_(0.1 * torch.randn(warp.shape, generator=generator, dtype=warp.dtype))
    return algorithm


def warps(algorithm: WarpMAML) -> list[str]:
    return [f"backbone.{name}" for name, role in algorithm.backbone.roles().items() if role == "fixed"]


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_golden_numbers(steps: int) -> None:
    algorithm: Any = build("warpmaml", {"inner_steps": steps}, **RELU)
    golden, names = CASES["warpmaml"], backbone_names(algorithm.backbone)
    for k, name in enumerate(warps(algorithm)):
        parameter = algorithm.get_parameter(name)
        parameter.data.copy_(auxiliary(parameter.shape, k, 0.1, parameter.detach().clone()))
        *_, block, _, kind = name.split(".")
        names[f"warp{block[-1]}.{kind}"] = name
    result = trace(algorithm, golden_episodes())
    close(result.query_losses, golden["query_losses_per_step"][steps - 1 : steps], absolute=1e-9, relative=0)
    if steps == 3:
        check_losses(result, golden)
        check_logits(result, golden)
        check_gradients(result, golden, names)


def test_identity_layers_that_do_not_learn_leave_maml() -> None:
    episodes = tiny_episodes()
    warped = trace(make(bent=False, learn_warps=False, every_step=False), episodes)
    maml = trace(tiny_algorithm(MAML, MAML.Settings(inner_lr=ALL)), episodes)
    assert warped.meta_gradients.keys() == maml.meta_gradients.keys()
    Close(warped.support_losses, maml.support_losses, atol=1e-10, rtol=0)
    Close(warped.meta_loss, maml.meta_loss, atol=1e-10, rtol=0)
    for name, gradient in maml.meta_gradients.items():
        Close(warped.meta_gradients[name], gradient, atol=1e-10, rtol=0)


@pytest.mark.parametrize("settings", [{}, {"warp_after": (1, 2, 3, 4)}, {"warp_kernel": 1}, {"warp_after": (1,)}])
def test_it_starts_as_the_plain_network(settings: dict) -> None:
    episodes, maml = tiny_episodes(), tiny_algorithm(MAML, MAML.Settings(inner_lr=ALL))
    Close(make(bent=False, **settings).predict(episodes), maml.predict(episodes), atol=1e-10, rtol=0)


def test_parameter_count() -> None:
    shape, settings = (3, 84, 84), Conv4.Settings(filters=64, conv_bias=True)
    assert parameter_count(WarpMAML(Conv4(shape, 5, settings))) == 121_093 + 3 * 36_928


def test_what_moves() -> None:
    """Everything of the network's own, and no warp layer; the meta-loss is the sum over the steps."""
    algorithm, episodes = make(inner_steps=3), tiny_episodes()
    result = trace(algorithm, episodes)
    assert {f"backbone.{name}" for name in result.adapted}.isdisjoint(warps(algorithm))
    assert len(result.adapted) == len(list(algorithm.parameters())) - len(warps(algorithm))
    after = [trace(make(inner_steps=steps), episodes).query_losses for steps in (1, 2, 3)]
    Close(result.meta_loss, torch.stack(after).sum(dim=0).mean(), atol=1e-12, rtol=0)


def test_the_warps_meta_gradient_goes_one_step_back() -> None:
    """It is the sum of what trainings of one step have that start from each of the trajectory's weights."""
    whole, single, episodes = make(inner_steps=3), make(inner_steps=1), tiny_episodes(tasks=1)
    found = trace(whole, episodes).meta_gradients
    sums = dict.fromkeys(warps(whole), torch.zeros(()))
    for _ in range(3):
        result = trace(single, episodes)
        sums = {name: total + result.meta_gradients[name] for name, total in sums.items()}
        for name, weight in result.adapted.items():
            single.backbone.get_parameter(name).data.copy_(weight[0])
    for name, total in sums.items():
        assert total.norm() > 1e-3
        Close(found[name], total, atol=1e-10, rtol=0)


def test_the_initialisations_meta_gradient_goes_all_the_way() -> None:
    algorithm, episodes = make(inner_steps=2), tiny_episodes(tasks=1)
    gradients, generator = trace(algorithm, episodes).meta_gradients, torch.Generator().manual_seed(0)
    for tensor in ("body.block1.conv.weight", "body.block2.norm.bias", "body.block4.conv.weight", "head.weight"):
        name = f"backbone.{tensor}"
        parameter = algorithm.get_parameter(name)
        direction = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        direction /= direction.norm()
        losses = []
        for step in (1e-6, -2e-6):
            parameter.data.add_(direction, alpha=step)
            losses.append(float(trace(algorithm, episodes).meta_loss))
        parameter.data.add_(direction, alpha=1e-6)
        assert abs((losses[0] - losses[1]) / 2e-6 - float((gradients[name] * direction).sum())) < 1e-6


class OneStep(WarpMAML):
    """With one step, nothing is held constant."""

    stops_gradient = ""

    class Settings(WarpMAML.Settings):
        inner_steps: int = 1
        warp_after: Any = (1, 2, 3, 4)


def test_of_one_step_the_meta_gradient_is_exact() -> None:
    assert not contract.meta_gradient_is_exact(OneStep)
    several = type("Several", (OneStep,), {"Settings": WarpMAML.Settings})
    assert "warp.weight" in contract.meta_gradient_is_exact(several)


def test_first_order_leaves_the_warps_their_direct_path() -> None:
    algorithm, episodes = make(inner_steps=1), tiny_episodes(tasks=1)
    result = trace(algorithm, episodes, second_order=False)
    network = make().backbone
    for name, weight in result.adapted.items():
        network.get_parameter(name).data.copy_(weight[0])
    F.cross_entropy(network(episodes.query_x[0]), episodes.query_y[0]).backward()
    for name, parameter in network.named_parameters():
        Close(result.meta_gradients[f"backbone.{name}"], parameter.grad, atol=1e-12, rtol=0)


def test_warps_that_do_not_learn_have_no_meta_gradient() -> None:
    algorithm = make(learn_warps=False)
    (group,) = algorithm.outer_groups()
    assert len(list(group.parameters)) == len(list(algorithm.parameters())) - 6
    outcome = algorithm.learn(tiny_episodes())
    outcome.losses.sum().backward()
    assert all(algorithm.get_parameter(name).grad is None for name in warps(algorithm))


@pytest.mark.parametrize(("backbone", "shape"), [(ResNet12.Settings(), (3, 16, 16)), (Mlp.Settings(), (1,))])
def test_other_backbones_are_refused(backbone: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(Incompatible, match="behind the blocks of a Conv4"):
        WarpMAML(create(backbone, shape, 3))
