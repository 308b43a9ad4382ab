"""MatchingNet: golden numbers of both scores and of full-context embeddings, and what its attention must do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from goldens import CASES, RELU, auxiliary, backbone_names, build, check_gradients, check_logits, check_losses, episodes
from torch import Tensor

from metazoo.algorithms.matchingnet import MatchingNet
from metazoo.backbones import Conv4, parameter_count
from metazoo.contract import CHECKS, Check, ignores_order
from metazoo.testing import tiny_algorithm, tiny_episodes, trace

BASIC = {"scoring": "cosine"}
FULL = {"full_context_embeddings": True}
CASES_OF = {
    "matchingnet_basic": BASIC,
    "matchingnet_basic_separate_bn": BASIC | {"joint_batch_norm": False},
    "matchingnet_x100": {},
    "matchingnet_fce": FULL,
}
CELLS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
CONTEXT = {f"bilstm.{cell}{way}": f"context.support.{cell}_l0{way}" for way in ("", "_reverse") for cell in CELLS}
CONTEXT |= {f"attlstm.{cell}": f"context.query.{cell}" for cell in CELLS}


def make(**settings: object) -> MatchingNet:
    algorithm = tiny_algorithm(MatchingNet, MatchingNet.Settings(**settings))
    assert isinstance(algorithm, MatchingNet)
    return algorithm


def embeddings() -> tuple[Tensor, Tensor, Tensor]:
    """Support `[2, 6, 5]`, labels and queries `[2, 4, 5]`, not negative."""
    generator = torch.Generator().manual_seed(3)
    support, query = (torch.rand(2, n, 5, generator=generator, dtype=torch.float64) for n in (6, 4))
    return support, torch.tensor([[2, 0, 1, 1, 0, 2], [0, 1, 2, 0, 1, 2]]), query


def same(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("case", CASES_OF)
def test_golden(case: str) -> None:
    algorithm = build("matchingnet", CASES_OF[case], **RELU)
    names = backbone_names(algorithm.backbone)
    if case == "matchingnet_fce":
        for k, name in enumerate(CONTEXT.values()):
            parameter = algorithm.get_parameter(name)
            values = auxiliary(parameter.shape, k, amplitude=0.2 if "bias" in name else 0.3 if "query" in name else 0.4)
            parameter.data.copy_(values)
        names |= CONTEXT
    result = trace(algorithm, episodes())
    check_losses(result, CASES[case])
    check_logits(result, CASES[case])
    check_gradients(result, CASES[case], names)


@pytest.mark.parametrize(("settings", "floor"), [(BASIC, 0.0), ({}, 1e-6), (FULL, 1e-6)])
def test_the_scores_are_logarithms_of_probabilities(settings: dict, floor: float) -> None:
    scores = make(**settings).predict(tiny_episodes())
    same(scores.exp().sum(dim=2), torch.full(scores.shape[:2], 1 + 3 * floor, dtype=torch.float64))


def test_the_cosine_does_not_know_lengths() -> None:
    support, labels, query = embeddings()
    scores = make(**BASIC).compare(support, labels, query, 3)
    lengths = torch.rand(2, 6, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5
    same(make(**BASIC).compare(lengths * support, labels, 3 * query, 3), scores)


def test_a_duplicate_doubles_its_attention() -> None:
    support, labels, query = (part[:, :3] for part in embeddings())
    once = make(**BASIC).compare(support, labels, query, 3).exp()
    twice = (
        make(**BASIC)
        .compare(torch.cat([support, support[:, :1]], dim=1), torch.cat([labels, labels[:, :1]], dim=1), query, 3)
        .exp()
    )
    for task in range(2):
        doubled = labels[task, 0]
        other = labels[task, 1]
        ratio = (twice[task, :, doubled] / twice[task, :, other]) / (once[task, :, doubled] / once[task, :, other])
        same(ratio, torch.full_like(ratio, 2.0))


def test_the_cosine_does_not_shrink_to_nothing_for_a_zero_embedding() -> None:
    support, labels, query = embeddings()
    support[:, 0] = 0
    for settings in (BASIC, {}):
        assert make(**settings).compare(support, labels, query, 3).isfinite().all()


def test_an_opposite_embedding_counts_as_one_that_has_nothing_to_do_with_the_query() -> None:
    query = torch.tensor([[[1.0, 0.0, 0.0]]], dtype=torch.float64)
    support = torch.tensor([[[0.02, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]], dtype=torch.float64)
    opposite, unrelated = (
        make(**s).compare(support, torch.tensor([[0, 1, 2]]), query, 3)[0, 0, 1:] for s in ({}, BASIC)
    )
    same(opposite[0], opposite[1])
    assert unrelated[0] < unrelated[1] - 0.5


def test_full_context_depends_on_the_order_of_the_support() -> None:
    algorithm, task = make(**FULL), tiny_episodes()
    turned = replace(task, support_x=task.support_x.flip(1), support_y=task.support_y.flip(1))
    assert (algorithm.predict(turned) - algorithm.predict(task)).abs().max() > 1e-6
    assert not ignores_order(MatchingNet)


def test_full_context_reads_the_support_in_the_order_of_its_labels() -> None:
    algorithm, task = make(**FULL), tiny_episodes(shots=1)
    turned = replace(task, support_x=task.support_x.flip(1), support_y=task.support_y.flip(1))
    same(algorithm.predict(turned), algorithm.predict(task))


class WithFullContext(MatchingNet):
    """The method whose default they are, for the contract suite."""

    name = ""

    class Settings(MatchingNet.Settings):
        full_context_embeddings: bool = True


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_full_context_keeps_the_rest_of_the_contract(check: Check) -> None:
    if check.__name__ == "declares_itself":
        return
    fault = check(WithFullContext)
    assert fault.startswith("logits in another order") if check is ignores_order else not fault


def test_parameter_counts() -> None:
    def count(global_pool: bool) -> int:
        network = Conv4((3, 84, 84), 5, Conv4.Settings(filters=64, global_pool=global_pool, **RELU))
        algorithm = MatchingNet(network, MatchingNet.Settings(**FULL))
        return parameter_count(algorithm) - parameter_count(network)

    assert count(global_pool=False) == 71_718_400
    assert count(global_pool=True) == 2 * (4 * 64 * 128 + 8 * 64) + 4 * 64 * 192 + 8 * 64
