"""MGAug: golden numbers, which weights are pruned and what becomes of them, shares, sizes, reduction to its base."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from goldens import CASES, RELU, backbone_names, build, check_gradients, check_logits, check_losses, close, episodes
from torch import Tensor
from torch.nn import functional as F

from metazoo import registry
from metazoo.algorithm import Algorithm, Outcome
from metazoo.algorithms.mgaug import MGAug, resized, without_highest
from metazoo.backbones import Mlp, ResNet12, parameter_count
from metazoo.episodes import Episodes
from metazoo.errors import Incompatible
from metazoo.outer_step import OuterStep
from metazoo.testing import Trace, tiny_algorithm, tiny_episodes, trace

BASES = ["maml", "fomaml", "protonet", "anil", "boil", "cxgrad", "cml"]
CONVS = [f"body.block{n}.conv.weight" for n in range(1, 5)]
THINNED: dict[str, Any] = {"kept": (0.9, 0.7)}


def make(base: str = "maml", base_settings: dict[str, Any] | None = None, side: int = 16, **settings: Any) -> MGAug:
    own = MGAug.Settings(base=base, base_settings=base_settings or {}, **settings)
    algorithm = tiny_algorithm(MGAug, own, size=side)
    assert isinstance(algorithm, MGAug)
    return algorithm


def make_base(base: str, side: int = 16) -> Algorithm:
    return tiny_algorithm(registry.algorithm(base), size=side)


def assert_same(found: Tensor | None, expected: Tensor | None, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


def assert_same_gradients(found: Trace, expected: Trace, factor: float = 1.0, tolerance: float = 1e-10) -> None:
    """By name; what a wrapper adds to the names of a method's own networks is left out."""
    gradients = {name.removeprefix("base."): gradient for name, gradient in found.meta_gradients.items()}
    for name, gradient in expected.meta_gradients.items():
        assert_same(gradients[name], None if gradient is None else factor * gradient, tolerance)


def watch(algorithm: MGAug, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Episodes, OuterStep, Outcome]]:
    """All that the base method is asked, and what it says."""
    calls: list[tuple[Episodes, OuterStep, Outcome]] = []
    learn = algorithm.base.learn

    def spy(episodes: Episodes, outer: OuterStep = OuterStep()) -> Outcome:
        calls.append((episodes, outer, learn(episodes, outer)))
        return calls[-1][2]

    monkeypatch.setattr(algorithm.base, "learn", spy)
    return calls


# Golden numbers


GOLDEN: dict[str, tuple[str, dict[str, Any]]] = {
    "mgaug_maml": ("maml", {"inner_steps": 2, "inner_lr": {"body": 0.1, "norm": 0.1, "head": 0.1}}),
    "mgaug_fomaml": ("fomaml", {"inner_steps": 2, "inner_lr": {"body": 0.1, "norm": 0.1, "head": 0.1}}),
    "mgaug_protonet": ("protonet", {"joint_batch_norm": False}),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_golden(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base, base_settings = GOLDEN[case]
    settings = {"base": base, "base_settings": base_settings, "kept": (0.93, 0.88, 0.81)}
    algorithm = build("mgaug", settings, **RELU)
    assert isinstance(algorithm, MGAug)
    calls = watch(algorithm, monkeypatch)
    result = trace(algorithm, episodes())
    check_losses(result, CASES[case])
    check_logits(result, CASES[case])
    # ProtoNet's prototypes cancel the last shift; its other gradients are of the order of 10.
    check_gradients(result, CASES[case], backbone_names(algorithm.backbone), zero=1e-11)
    pruned = [[int((mask == 0).sum()) for mask in outer.masks.values()] for _, outer, _ in calls[1:]]
    assert pruned == CASES[case]["intermediates"]["pruned_per_layer"]
    losses = [torch.stack([*each.support_losses, each.losses.detach()]) for _, _, each in calls[1:]]
    close(torch.stack(losses).squeeze(2), CASES[case]["subnet_losses"], absolute=1e-9, relative=0)


# Reductions


@pytest.mark.parametrize("base", BASES)
def test_without_thinned_networks_it_is_the_base(base: str) -> None:
    wrapped, alone = make(base, networks=0), make_base(base)
    found, expected = trace(wrapped, tiny_episodes()), trace(alone, tiny_episodes())
    assert torch.equal(found.meta_loss, expected.meta_loss)
    assert_same_gradients(found, expected, tolerance=1e-15)
    assert torch.equal(wrapped.predict(tiny_episodes()), alone.predict(tiny_episodes()))
    assert parameter_count(wrapped) == parameter_count(alone)


@pytest.mark.parametrize("base", BASES)
def test_networks_that_keep_all_give_four_times_the_gradient(base: str) -> None:
    found, expected = trace(make(base, kept=(1.0, 1.0, 1.0)), tiny_episodes()), trace(make_base(base), tiny_episodes())
    assert_same(found.meta_loss, 4 * expected.meta_loss)
    assert_same(found.query_losses, expected.query_losses)
    assert_same_gradients(found, expected, factor=4.0)


@pytest.mark.parametrize("base", BASES)
def test_nothing_of_it_is_left_at_test(base: str) -> None:
    settings: list[dict[str, Any]] = [{}, THINNED, {"networks": 1, "sizes": (16,)}]
    predictions = [make(base, **each).predict(tiny_episodes()) for each in settings]
    assert all(torch.equal(prediction, make_base(base).predict(tiny_episodes())) for prediction in predictions)


# What is pruned


def test_the_highest_scores_are_pruned() -> None:
    scores = torch.tensor([[5.0, 1.0, 4.0, 2.0, 3.0, 0.0, 6.0, 7.0, 8.0, 9.0], [*range(10)]])
    masks = without_highest(scores, torch.tensor([0.7, 0.95], dtype=torch.float64))
    assert masks[0].tolist() == [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]
    assert masks[1].tolist() == [1] * 10
    assert without_highest(scores.view(2, 5, 2), torch.tensor([0.5, 0.5]).double()).shape == (2, 5, 2)


def test_thinner_networks_are_inside_thicker_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = make(kept=(0.9, 0.8, 0.5))
    calls = watch(algorithm, monkeypatch)
    trace(algorithm, tiny_episodes())
    assert [set(outer.masks) for _, outer, _ in calls[1:]] == [set(CONVS)] * 3
    for name in CONVS:
        thick, middle, thin = (outer.masks[name] for _, outer, _ in calls[1:])
        assert (thin <= middle).all() and (middle <= thick).all() and thin.sum() < middle.sum() < thick.sum()
        assert set(thick.unique().tolist()) == {0.0, 1.0}


def test_the_scores_are_weight_times_meta_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each task's own, in one pass for all tasks."""
    algorithm, tasks = make(kept=(0.8,)), tiny_episodes()
    calls = watch(algorithm, monkeypatch)
    trace(algorithm, tasks)
    base = make_base("maml")
    for task in range(3):
        gradients = trace(base, tasks.select([task])).meta_gradients
        for name in CONVS:
            gradient = gradients[f"backbone.{name}"]
            assert gradient is not None
            scores = (base.backbone.get_parameter(name).detach() * gradient).abs()
            k = int(scores.numel() * (1 - 0.8))
            expected = scores <= scores.flatten().sort(descending=True).values[k - 1]
            assert torch.equal(calls[1][1].masks[name][task].bool(), expected)


@pytest.mark.parametrize("base", ["maml", "fomaml", "boil", "cxgrad"])
def test_pruned_weights_stay_out(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are zero all along, and that network has no meta-gradient for them."""
    algorithm = make(base, **THINNED)
    calls = watch(algorithm, monkeypatch)
    algorithm.learn(tiny_episodes(tasks=1))
    for _, outer, outcome in calls[1:]:
        parameters = [algorithm.backbone.get_parameter(name) for name in CONVS]
        gradients = torch.autograd.grad(outcome.losses.sum(), parameters, retain_graph=True)
        for name, gradient in zip(CONVS, gradients, strict=True):
            gone = outer.masks[name][0] == 0
            assert gone.any() and not outcome.adapted[name][0][gone].any() and not gradient[gone].any()
            assert gradient[~gone].any()


def test_the_whole_network_is_that_of_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = make(**THINNED)
    calls = watch(algorithm, monkeypatch)
    result, alone = trace(algorithm, tiny_episodes()), trace(make_base("maml"), tiny_episodes())
    assert_same(result.query_losses, alone.query_losses)
    assert_same(result.support_losses, alone.support_losses)
    assert_same(result.meta_loss, torch.stack([each.losses.detach().mean() for _, _, each in calls]).sum())
    assert all(torch.equal(result.adapted[name], calls[0][2].adapted[name].detach()) for name in result.adapted)


def test_a_thinned_network_is_the_base_on_pruned_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the gradients of what is pruned left out, too: an explicit loop."""
    algorithm, task = make(base_settings={"inner_steps": 2}, kept=(0.7,)), tiny_episodes(tasks=1)
    calls = watch(algorithm, monkeypatch)
    trace(algorithm, task)
    masks, network = {name: mask[0] for name, mask in calls[1][1].masks.items()}, algorithm.backbone
    weights = {name: p * masks.get(name, 1) for name, p in network.named_parameters() if ".norm." not in name}
    for _ in range(2):
        loss = F.cross_entropy(torch.func.functional_call(network, weights, (task.support_x[0],)), task.support_y[0])
        gradients = torch.autograd.grad(loss, list(weights.values()))
        moved = zip(weights.items(), gradients, strict=True)
        weights = {name: weight - 0.01 * gradient * masks.get(name, 1) for (name, weight), gradient in moved}
    outputs = torch.func.functional_call(network, weights, (task.query_x[0],))
    assert_same(calls[1][2].losses[0], F.cross_entropy(outputs, task.query_y[0]))


@pytest.mark.parametrize("base", ["maml", "protonet", "anil", "cxgrad", "cml"])
def test_tasks_do_not_mix(base: str) -> None:
    algorithm = make(base, networks=2, least_kept=0.5, sizes=(32, 16), side=32)
    tasks = tiny_episodes(tasks=4, shots=1, size=32)
    together = trace(algorithm, tasks)
    alone = [trace(algorithm, tasks.select([task])) for task in range(4)]
    assert_same(together.meta_loss, torch.stack([one.meta_loss for one in alone]).mean())
    for name, gradient in together.meta_gradients.items():
        parts = [part for one in alone if (part := one.meta_gradients[name]) is not None]
        assert_same(gradient, torch.stack(parts).mean(dim=0))


@pytest.mark.parametrize("base", ["maml", "protonet", "anil"])
def test_the_meta_gradient_is_exact(base: str) -> None:
    algorithm, task = make(base, **THINNED), tiny_episodes(tasks=1)
    gradients, generator = trace(algorithm, task).meta_gradients, torch.Generator().manual_seed(0)
    for name, parameter in algorithm.named_parameters():
        direction, losses = torch.randn(parameter.shape, generator=generator, dtype=torch.float64), []
        direction /= direction.norm()
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(direction, alpha=sign * 1e-7)
            losses.append(float(algorithm.learn(task).losses.detach()))
            with torch.no_grad():
                parameter.sub_(direction, alpha=sign * 1e-7)
        exact = float((gradients[name] * direction).sum())
        assert abs((losses[0] - losses[1]) / 2e-7 - exact) < 1e-5 * max(1.0, abs(exact)), name


# Shares and sizes


def test_the_shares_belong_to_the_episode() -> None:
    tasks = tiny_episodes(tasks=3)
    many = replace(tiny_episodes(tasks=1), numbers=torch.tensor([7]))
    algorithm = make(least_kept=0.6, most_kept=0.99)
    shares = algorithm.shares(tasks)
    assert shares.shape == (3, 3) and (shares[:, 2] == 0.6).all()
    assert (shares[:, :2] > 0.6).all() and (shares[:, :2] <= 0.99).all()
    assert (shares[:, 0] >= shares[:, 1]).all() and len(shares[:, :2].unique()) == 6
    assert torch.equal(algorithm.shares(tasks.select([1])), shares[1:2])
    drawn = torch.cat([algorithm.shares(replace(many, numbers=torch.tensor([n])))[:, :2] for n in range(500)])
    assert drawn.max() == 0.99 and abs(drawn.mean() - 0.8) < 0.01
    assert torch.equal(make(kept=(0.9, 0.8)).shares(tasks), torch.tensor([[0.9, 0.8]] * 3, dtype=torch.float64))


def test_sizes_are_drawn_for_each_task_and_network(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = make("anil", sizes=(32, 24, 16), side=32)
    tasks = tiny_episodes(tasks=8, shots=1, size=32)
    calls = watch(algorithm, monkeypatch)
    algorithm.learn(tasks)
    monkeypatch.undo()
    sizes = {(each.support_x.shape[-1], each.query_x.shape[-1]) for each, _, _ in calls[1:]}
    assert sizes == {(32, 32), (24, 24), (16, 16)} and calls[0][0].support_x.shape[-1] == 32
    alone = torch.cat([algorithm.learn(tasks.select([task])).losses for task in range(8)])
    assert_same(algorithm.learn(tasks).losses, alone)
    groups = [each.numbers.tolist() for each, _, _ in calls[1:] if each.numbers is not None]
    assert sorted(number for group in groups for number in group) == sorted([*range(8)] * 3)
    assert len({tuple(group) for group in groups}) > 3


def test_resizing_keeps_the_corners() -> None:
    tasks = tiny_episodes(tasks=2)
    small = resized(tasks, 8)
    assert small.support_x.shape == (2, 6, 3, 8, 8) and small.query_x.shape == (2, 6, 3, 8, 8)
    for corner in (0, -1):
        assert_same(small.query_x[..., corner, corner], tasks.query_x[..., corner, corner])
    assert_same(resized(tasks, 16).support_x, tasks.support_x)
    assert torch.equal(small.support_y, tasks.support_y) and small.numbers is tasks.numbers


def test_at_one_size_it_is_the_base_on_small_images() -> None:
    """The head then uses its first columns."""
    tasks, base = tiny_episodes(shots=1, size=32), make_base("maml", side=32)
    assert base.backbone.head.in_features == 16
    found = make(kept=(1.0,), sizes=(16,), side=32).learn(tasks).losses
    assert_same(found, base.learn(tasks).losses + base.learn(resized(tasks, 16)).losses)


# Refusals


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(Incompatible, match="lower sizes"):
        make(sizes=(32,)).learn(tiny_episodes())
    with pytest.raises(Incompatible, match="below 16 pixels; raise sizes"):
        make(sizes=(16, 15))
    with pytest.raises(Incompatible, match="reptile hands down none"):
        make("reptile").learn(tiny_episodes())
    with pytest.raises(Incompatible, match="prunes the weights of convolutions"):
        MGAug(Mlp((1,), 1, Mlp.Settings()))


def test_other_networks() -> None:
    algorithm = MGAug(ResNet12((3, 8, 8), 3, ResNet12.Settings()), MGAug.Settings(base="fomaml"))
    assert len(algorithm.thinned) == 16 and all(
        algorithm.backbone.get_parameter(n).dim() == 4 for n in algorithm.thinned
    )
    warped = make("warpmaml") if "warpmaml" in registry.algorithms() else None
    assert warped is None or warped.thinned == CONVS
