"""RelationNet: golden numbers in both geometries, what its scores must do, and how its two parts are bounded."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from goldens import CASES, RELU, auxiliary, backbone_names, build, check_gradients, check_logits, check_losses, episodes
from torch import Tensor

from metazoo.algorithms.relationnet import RelationModule, RelationNet
from metazoo.backbones import Conv4, Mlp, ResNet12, parameter_count
from metazoo.errors import Incompatible
from metazoo.testing import tiny_algorithm, tiny_episodes, trace

ENCODER = RELU | {"pooled_blocks": 2}
PUBLISHED = ENCODER | {"paddings": (0, 0, 1, 1)}
CASES_OF: dict[str, tuple[dict, dict, int]] = {
    "relationnet": ({}, ENCODER, 16),
    "relationnet_mean_joint_bn": ({"aggregation": "mean", "joint_batch_norm": True}, ENCODER, 16),
    "relationnet_softmax": ({"loss": "softmax", "joint_batch_norm": True}, ENCODER, 16),
    "relationnet_48px": ({}, PUBLISHED, 48),
}
KINDS = ("weight", "bias")
RELATION = {
    f"rel.{n}.{golden}.{kind}": f"relation.block{n}.{ours}.{kind}"
    for n in (1, 2)
    for golden, ours in (("conv", "conv"), ("bn", "norm"))
    for kind in KINDS
} | {f"rel.fc{n}.{kind}": f"relation.linear{n}.{kind}" for n in (1, 2) for kind in KINDS}
VALUES = [(0.3, 0), (0.1, 0), (0.1, 1), (0.1, 0)] * 2 + [(0.5, 0), (0.3, 0.3), (0.5, 0), (0.1, 0)]


def make(backbone: dict | None = None, **settings: object) -> RelationNet:
    conv4 = Conv4.Settings(filters=4, **(backbone or {}))
    algorithm = tiny_algorithm(RelationNet, RelationNet.Settings(**settings), conv4)
    assert isinstance(algorithm, RelationNet)
    return algorithm


def same(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("case", CASES_OF)
def test_golden(case: str) -> None:
    settings, backbone, size = CASES_OF[case]
    algorithm = build("relationnet", settings | {"conv_bias": True}, size, **backbone)
    for k, (name, (amplitude, offset)) in enumerate(zip(RELATION.values(), VALUES, strict=True)):
        parameter = algorithm.get_parameter(name)
        parameter.data.copy_(auxiliary(parameter.shape, k, amplitude, offset))
    result = trace(algorithm, episodes(size))
    check_losses(result, CASES[case])
    check_logits(result, CASES[case])
    check_gradients(result, CASES[case], backbone_names(algorithm.backbone) | RELATION)
    maps = algorithm.backbone.body(episodes(size).support_x[0])
    if "intermediates" in CASES[case]:
        assert list(maps.shape[1:]) == CASES[case]["intermediates"]["encoder_map"]


def test_scores_lie_between_0_and_1() -> None:
    scores = make().predict(tiny_episodes())
    assert scores.min() > 0 and scores.max() < 1


def test_sum_and_mean_are_the_same_with_one_shot_only() -> None:
    for shots, alike in ((1, True), (2, False)):
        task = tiny_episodes(shots=shots)
        total, mean = (make(ENCODER, aggregation=how).predict(task) for how in ("sum", "mean"))
        assert torch.allclose(total, mean, atol=1e-12, rtol=0) == alike


def test_the_mean_does_not_know_how_often_an_image_is_there() -> None:
    task = tiny_episodes(shots=1)
    doubled = replace(task, support_x=task.support_x.repeat(1, 2, 1, 1, 1), support_y=task.support_y.repeat(1, 2))
    for how, alike in (("mean", True), ("sum", False)):
        once, twice = (make(ENCODER, aggregation=how).predict(each) for each in (task, doubled))
        assert torch.allclose(once, twice, atol=1e-10, rtol=0) == alike


def test_the_relation_is_not_symmetric() -> None:
    algorithm, task = make(ENCODER), tiny_episodes(shots=1)
    support, query = (algorithm.backbone.body(images) for images in (task.support_x[0], task.query_x[0]))
    pairs = torch.cat([support, query[:3]], dim=1)
    swapped = torch.cat([query[:3], support], dim=1)
    assert (algorithm.relation(pairs) - algorithm.relation(swapped)).abs().max() > 1e-6


def test_the_loss_is_the_squared_error_of_all_scores() -> None:
    scores = torch.tensor([[[0.5, 0.25], [1.0, 0.0]]], dtype=torch.float64)
    losses = make().losses(scores, torch.tensor([[0, 1]]))
    same(losses, torch.tensor([(0.25 + 0.0625 + 1 + 1) / 4], dtype=torch.float64))


def test_the_published_sizes() -> None:
    backbone = Conv4((3, 84, 84), 5, Conv4.Settings(filters=64, **PUBLISHED))
    algorithm = RelationNet(backbone, RelationNet.Settings(conv_bias=True))
    assert parameter_count(algorithm.relation) == 115_601
    assert parameter_count(algorithm.backbone) == 113_088
    assert backbone.body(torch.rand(2, 3, 84, 84)).shape == (2, 64, 19, 19)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 6, 9, 10, 19, 21])
def test_maps_of_any_size_are_compared(side: int) -> None:
    module = RelationModule((4, side, side), conv_bias=False)
    assert module(torch.rand(6, 8, side, side)).shape == (6, 1)
    assert module.block1.conv.padding == ((0, 0) if side >= 10 else (1, 1))


def test_a_deep_backbone_is_compared_by_its_average_maps() -> None:
    algorithm = RelationNet(ResNet12((3, 16, 16), 3, ResNet12.Settings())).double()
    assert algorithm.predict(tiny_episodes(tasks=1)).shape == (1, 6, 3)


def test_vectors_are_refused() -> None:
    with pytest.raises(Incompatible, match="compares feature maps"):
        RelationNet(Mlp((3,), 3, Mlp.Settings()))


def test_encoder_and_relation_module_are_bounded_apart() -> None:
    algorithm = make()
    encoder, relation = algorithm.outer_groups()
    assert encoder.max_norm == relation.max_norm == 0.5
    assert set(encoder.parameters) == set(algorithm.backbone.parameters())
    assert set(relation.parameters) == set(algorithm.relation.parameters())
    assert {group.max_norm for group in make(max_gradient_norm=None).outer_groups()} == {None}


def test_the_relation_module_starts_as_the_official_code_has_it() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        relation = RelationModule((64, 19, 19), conv_bias=True)
    assert relation.block1.conv.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    assert relation.linear1.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert (relation.linear1.bias == 1).all() and (relation.linear2.bias == 1).all()
    assert not relation.block1.conv.bias.any()
