"""ProtoNet: golden numbers and its geometry; and what all metric methods share, such as other ways in training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from goldens import CASES, RELU, backbone_names, build, check_gradients, check_logits, check_losses, episodes
from tiny import tiny_sets  # noqa: F401
from torch import Tensor

from metazoo import registry, training
from metazoo.algorithm import Metric
from metazoo.algorithms.protonet import ProtoNet
from metazoo.backbones import Conv4, Mlp, parameter_count
from metazoo.episodes import Episodes
from metazoo.errors import Incompatible
from metazoo.testing import tiny_algorithm, tiny_episodes, trace

METRICS = ["protonet", "matchingnet", "relationnet"]


def embeddings(shots: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Support `[2, S, 5]`, labels and queries `[2, 6, 5]`."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.tensor([[2, 0, 1] * shots, [0, 1, 2] * shots])
    support = torch.randn(2, labels.shape[1], 5, generator=generator, dtype=torch.float64)
    return support, labels, torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)


def make(name: str = "protonet", **settings: object) -> Metric:
    method = registry.algorithm(name)
    algorithm = tiny_algorithm(method, method.Settings(**settings))
    assert isinstance(algorithm, Metric)
    return algorithm


def same(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize(("case", "joint"), [("protonet", True), ("protonet_separate_bn", False)])
def test_golden(case: str, joint: bool) -> None:
    algorithm = build("protonet", {"joint_batch_norm": joint}, **RELU)
    result = trace(algorithm, episodes())
    check_losses(result, CASES[case])
    check_logits(result, CASES[case])
    check_gradients(result, CASES[case], backbone_names(algorithm.backbone))


# Geometry


def test_with_one_shot_the_nearest_support_image_wins() -> None:
    support, labels, query = embeddings(shots=1)
    nearest = torch.cdist(query, support).argmin(dim=2)
    scores = make().compare(support, labels, query, 3)
    assert torch.equal(scores.argmax(dim=2), labels.gather(1, nearest))


def test_translating_all_embeddings_changes_nothing() -> None:
    support, labels, query = embeddings()
    scores = make().compare(support, labels, query, 3)
    same(make().compare(support + 7, labels, query + 7, 3), scores, tolerance=1e-9)


def test_the_support_counts_through_its_class_means_alone() -> None:
    support, labels, query = embeddings()
    moved = support.clone()
    first, second = (labels[0] == 1).nonzero().flatten()
    moved[0, first] += 2.5
    moved[0, second] -= 2.5
    same(make().compare(moved, labels, query, 3), make().compare(support, labels, query, 3))


def test_it_is_a_linear_classifier() -> None:
    support, labels, query = embeddings()
    scores = make().compare(support, labels, query, 3)
    for task in range(2):
        prototypes = torch.stack([support[task][labels[task] == label].mean(dim=0) for label in range(3)])
        linear = 2 * query[task] @ prototypes.T - prototypes.square().sum(dim=1)
        same(scores[task].log_softmax(dim=1), linear.log_softmax(dim=1))


def test_the_encoder_alone_is_learned() -> None:
    network = Conv4((3, 84, 84), 5, Conv4.Settings(filters=64, **RELU))
    assert parameter_count(ProtoNet(network)) == 113_088


# All metric methods


@pytest.mark.parametrize("name", METRICS)
def test_joint_and_separate_batches_differ(name: str) -> None:
    joint, separate = (make(name, joint_batch_norm=joint).predict(tiny_episodes()) for joint in (True, False))
    assert (joint - separate).abs().max() > 1e-6


@pytest.mark.parametrize("name", METRICS)
def test_permuting_the_labels_permutes_the_scores(name: str) -> None:
    algorithm, task = make(name), tiny_episodes()
    renamed = torch.tensor([2, 0, 1])
    other = replace(task, support_y=renamed[task.support_y])
    same(algorithm.predict(other)[:, :, renamed], algorithm.predict(task), tolerance=1e-9)


@pytest.mark.parametrize("name", METRICS)
def test_one_network_compares_any_number_of_classes(name: str) -> None:
    for ways in (2, 4):
        assert make(name).predict(tiny_episodes(ways=ways)).shape == (3, 2 * ways, ways)


@pytest.mark.parametrize("name", METRICS)
def test_numbers_to_be_hit_are_refused(name: str) -> None:
    task = tiny_episodes()
    support, query = (torch.rand(*y.shape, 1, dtype=torch.float64) for y in (task.support_y, task.query_y))
    with pytest.raises(Incompatible, match="tells classes apart"):
        make(name).predict(Episodes(task.support_x, support, task.query_x, query, ways=1))


@pytest.mark.parametrize("name", ["protonet", "matchingnet"])
def test_vectors_can_be_compared(name: str) -> None:
    task = tiny_episodes()
    vectors = replace(task, support_x=task.support_x[..., 0, 0], query_x=task.query_x[..., 0, 0])
    method = registry.algorithm(name)
    algorithm = method(Mlp((3,), 3, Mlp.Settings())).double()
    assert algorithm.predict(vectors).shape == (3, 6, 3)


@pytest.mark.parametrize("name", METRICS)
def test_training_with_more_ways_than_the_test(name: str, tiny_sets: None, tmp_path: Path) -> None:  # noqa: F811
    def loss(ways: int | None) -> float:
        changes = {"algorithm": name, "settings": {}, "epochs": 1, "ways": 3}
        config = tiny.config(**changes)
        config = config.model_copy(update={"training": config.training.model_copy(update={"ways": ways})})
        run = training.train(config, home=tmp_path / str(ways), command="")
        assert run.state == "done" and 0 <= run.metrics[0]["validation_accuracy"] <= 1
        assert 0 <= run.metrics[0]["train_accuracy"] <= 1
        return run.metrics[0]["train_loss"]

    assert loss(4) != loss(None)


@pytest.mark.parametrize("name", ["maml", "hypermaml"])
def test_a_method_with_a_head_refuses_other_ways(name: str, tiny_sets: None, tmp_path: Path) -> None:  # noqa: F811
    config = tiny.config(algorithm=name, settings={})
    config = config.model_copy(update={"training": config.training.model_copy(update={"ways": 4})})
    with pytest.raises(Incompatible, match="one output a class, so it cannot train with 4 ways and be tested with 3"):
        training.train(config, home=tmp_path, command="")
