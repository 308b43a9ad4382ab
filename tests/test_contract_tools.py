"""What the contract lends to methods: taps, masks, inserted modules, each example's gradient, outer groups."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tiny import tiny_sets  # noqa: F401
from torch import Tensor, nn

from metazoo import registry, training
from metazoo.algorithm import OuterGroup, surrogate
from metazoo.algorithms.maml import MAML
from metazoo.backbones import Conv4, Mlp, create
from metazoo.config import TrainingSettings
from metazoo.episodes import Episodes
from metazoo.errors import UserError
from metazoo.learner import Learner, TaskBatch
from metazoo.outer_step import OuterStep
from metazoo.outer_update import outer_lr
from metazoo.stacking import each_task
from metazoo.testing import tiny_algorithm, tiny_episodes, trace

Close = torch.testing.assert_close


def maml(**settings: Any) -> MAML:
    method: Any = registry.algorithm("maml")
    return tiny_algorithm(method, method.Settings(**settings))


def test_taps_see_the_adapted_network_on_the_query_set() -> None:
    """Task by task they are what the module gives when the adapted weights are put into a plain network."""
    algorithm, episodes = maml(inner_steps=2), tiny_episodes()
    names = ("body.block2.norm", "body.block4")
    for chunk in (*episodes.chunks(1), episodes):
        outcome = algorithm.learn(chunk, OuterStep(taps=names))
        assert outcome.tapped.keys() == set(names)
        assert all(tap.requires_grad for tap in outcome.tapped.values())
    tapped = {name: tap.detach() for name, tap in outcome.tapped.items()}
    plain = tiny_algorithm(registry.algorithm("maml")).backbone
    seen: dict[str, Tensor] = {}
    for name in names:
        plain.get_submodule(name).register_forward_hook(lambda m, i, output, name=name: seen.update({name: output}))
    for task in range(len(episodes)):
        adapted = {name: weight[task].detach() for name, weight in outcome.adapted.items()}
        plain.load_state_dict(dict(algorithm.backbone.state_dict()) | adapted)
        plain(episodes.query_x[task])
        for name in names:
            Close(tapped[name][task], seen[name].detach(), atol=1e-12, rtol=0)


def test_a_tap_changes_no_result_and_leaves_no_hook() -> None:
    algorithm, episodes = maml(), tiny_episodes()
    without, tapped = trace(algorithm, episodes), trace(algorithm, episodes, outer=OuterStep(taps=("body.block1",)))
    assert torch.equal(without.query_logits, tapped.query_logits)
    assert not algorithm.backbone.body.get_submodule("block1")._forward_hooks


def test_masks_thin_the_network_of_each_task() -> None:
    """What is masked starts at 0, stays there, and gets no meta-gradient; the rest is MAML on the thinned network."""
    name = "body.block3.conv.weight"
    algorithm, episodes = maml(inner_steps=3, inner_lr={"body": 0.1, "head": 0.1}), tiny_episodes()
    generator = torch.Generator().manual_seed(0)
    shape = (len(episodes), *algorithm.backbone.get_parameter(name).shape)
    mask = (torch.rand(shape, generator=generator) > 0.4).double()
    result = trace(algorithm, episodes, outer=OuterStep(masks={name: mask}))
    assert not result.adapted[name][mask == 0].any() and result.adapted[name][mask == 1].all()

    for task in range(len(episodes)):
        thinned = maml(inner_steps=3, inner_lr={"body": 0.1, "head": 0.1})
        parameter = thinned.backbone.get_parameter(name)
        parameter.data.mul_(mask[task])
        parameter.register_hook(lambda gradient, task=task: gradient * mask[task])
        # A plain inner loop whose gradient is masked by hand.
        tasks = TaskBatch(Learner(thinned.backbone, thinned.adapted_names()), episodes.select([task]))
        for _ in range(3):
            gradients = tasks.gradients(tasks.support_loss())
            gradients[name] = gradients[name] * mask[task]
            tasks.update({key: -0.1 * gradient for key, gradient in gradients.items()})
        Close(tasks.query_logits()[0].detach(), result.query_logits[task], atol=1e-12, rtol=0)
    alone = trace(algorithm, episodes.select([0]), outer=OuterStep(masks={name: mask[:1]}))
    gradient = alone.meta_gradients[f"backbone.{name}"]
    assert gradient is not None and not gradient[mask[0] == 0].any() and gradient[mask[0] == 1].all()


def test_masks_of_ones_change_nothing_and_score_the_initial_weights() -> None:
    """The gradient at a mask of ones is weight times meta-gradient, task by task."""
    name = "body.block2.conv.weight"
    algorithm, episodes = maml(inner_steps=2), tiny_episodes()
    weight = algorithm.backbone.get_parameter(name)
    ones = torch.ones(len(episodes), *weight.shape, dtype=torch.float64, requires_grad=True)
    outcome = algorithm.learn(episodes, OuterStep(masks={name: ones}))
    (scores,) = torch.autograd.grad(outcome.losses.sum(), ones)
    Close(outcome.losses.detach(), algorithm.learn(episodes).losses.detach(), atol=1e-12, rtol=0)
    for task in range(len(episodes)):
        loss = algorithm.learn(episodes.select([task])).losses.sum()
        (gradient,) = torch.autograd.grad(loss, weight)
        Close(scores[task], weight.detach() * gradient, atol=1e-12, rtol=0)


def test_each_examples_gradient() -> None:
    """Equal to the gradients of the losses one by one, though batch norm couples them; their mean is the usual one."""
    algorithm, episodes = maml(), tiny_episodes()
    learner = Learner(algorithm.backbone, algorithm.adapted_names())
    tasks = TaskBatch(learner, episodes)
    losses, gradients = tasks.example_gradients()
    plain = TaskBatch(learner, episodes)
    Close(losses.mean(dim=1), plain.support_loss(), atol=1e-12, rtol=0)
    whole = plain.gradients(plain.support_loss())
    for name, gradient in gradients.items():
        Close(gradient.mean(dim=1), whole[name], atol=1e-12, rtol=0)
    network = algorithm.backbone
    task_losses = nn.functional.cross_entropy(network(episodes.support_x[1]), episodes.support_y[1], reduction="none")
    (own,) = torch.autograd.grad(task_losses[4], network.get_parameter("body.block1.conv.weight"))
    Close(gradients["body.block1.conv.weight"][1, 4], own, atol=1e-12, rtol=0)


def test_each_examples_gradient_can_be_differentiated() -> None:
    algorithm, episodes = maml(), tiny_episodes(tasks=1)
    parameter = algorithm.backbone.get_parameter("body.block2.conv.weight")
    learner = Learner(algorithm.backbone, algorithm.adapted_names())

    def objective() -> Tensor:
        _, gradients = TaskBatch(learner, episodes).example_gradients()
        return sum(gradient.pow(3).sum() for gradient in gradients.values())  # type: ignore[return-value]

    (exact,) = torch.autograd.grad(objective(), parameter)
    direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            parameter.add_(direction, alpha=sign * 1e-6)
        values.append(objective().item())
        with torch.no_grad():
            parameter.sub_(direction, alpha=sign * 1e-6)
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(float((exact * direction).sum()), rel=1e-5)


class Shift(nn.Module):
    """Adds a task's own vector, through a learned matrix."""

    context: Tensor

    def __init__(self, features: int):
        super().__init__()
        self.mix = nn.Linear(3, features)
        self.register_buffer("context", torch.zeros(3), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.mix(self.context)[:, None, None]


def test_inserted_modules_are_fixed_and_their_buffers_are_contexts() -> None:
    network = Conv4((3, 16, 16), 3, Conv4.Settings(filters=4))
    images = torch.randn(6, 3, 16, 16)
    before = network(images)
    shift = Shift(4)
    nn.init.zeros_(shift.mix.bias)
    network.insert("shift", shift, after="block3.pool")
    assert [name for name, _ in network.body.block3.named_children()] == ["conv", "norm", "pool", "shift", "activation"]
    torch.testing.assert_close(network(images), before)
    roles = network.roles()
    assert roles["body.block3.shift.mix.weight"] == roles["body.block3.shift.mix.bias"] == "fixed"
    assert roles["body.block3.shift.context"] == "context"
    assert "body.block3.shift.context" not in network.state_dict()
    network.insert("front", nn.Identity())
    assert next(iter(network.body.named_children()))[0] == "front"
    network.insert("last", nn.Identity(), after="block2")
    assert [name for name, _ in network.body.named_children()][3] == "last"
    with pytest.raises(UserError, match=r"no 'block9\.pool'"):
        network.insert("nowhere", nn.Identity(), after="block9.pool")
    with pytest.raises(UserError, match=r"no 'block1\.conv\.weight'"):
        network.insert("nowhere", nn.Identity(), after="block1.conv.weight")


class Contextual(MAML):
    """MAML in a three-dimensional space of shifts."""

    name, title, paper = "contextual", "Contextual", "None."

    def adapts(self) -> set:
        return {"context"}

    def build(self) -> None:
        self.backbone.insert("shift", Shift(4), after="block3.pool")
        self.rates = {"body.block3.shift.context": 1.0}


def test_contexts_are_per_task_and_start_anew() -> None:
    from metazoo import contract

    for check in contract.CHECKS:
        assert not check(Contextual), check.__name__
    algorithm, episodes = tiny_algorithm(Contextual), tiny_episodes()
    result = trace(algorithm, episodes)
    assert result.adapted.keys() == {"body.block3.shift.context"}
    contexts = result.adapted["body.block3.shift.context"]
    assert contexts.shape == (3, 3) and len(contexts.unique(dim=0)) == 3
    assert not algorithm.backbone.get_buffer("body.block3.shift.context").any()


def test_each_task_by_itself() -> None:
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, track_running_stats=False)).double()
    maps = torch.randn(4, 5, 2, 6, 6, dtype=torch.float64)
    for count in (1, 4):
        found = each_task(module, maps[:count])
        Close(found, torch.stack([module(task) for task in maps[:count]]), atol=1e-12, rtol=0)


def test_a_surrogate_has_one_value_and_another_gradient() -> None:
    x = torch.tensor(3.0, requires_grad=True)
    value = surrogate(torch.tensor(7.0), x**2)
    value.backward()
    assert value.item() == 7 and x.grad == 6


def test_the_clock() -> None:
    assert OuterStep(epoch=14, epochs=100).within(0.15) and not OuterStep(epoch=15, epochs=100).within(0.15)
    assert not OuterStep().within(1.0), "without a training all schedules are over"


def test_numbers_drawn_for_an_episode_belong_to_it() -> None:
    episodes = tiny_episodes(tasks=5)
    drawn = episodes.uniform(1000, "test")
    assert torch.equal(drawn[3:4], episodes.select([3]).uniform(1000, "test"))
    assert torch.equal(drawn[:, :10], episodes.uniform(10, "test"))
    assert not torch.equal(drawn, episodes.uniform(1000, "another"))
    assert drawn.min() >= 0 and drawn.max() < 1 and abs(drawn.mean() - 0.5) < 3 / math.sqrt(12 * 5000)
    assert len(drawn.unique()) == drawn.numel()
    with pytest.raises(ValueError, match="not numbered"):
        replace(episodes, numbers=None).uniform(1, "test")


class Grouped(MAML):
    """The head learns ten times as fast; the rest is bounded."""

    name, title, paper = "grouped", "Grouped", "None."

    def outer_groups(self) -> list[OuterGroup]:
        head = list(self.backbone.head.parameters())
        body = list(self.backbone.body.parameters())
        return [
            OuterGroup(head, rate=lambda outer: 10.0 if outer.within(0.5) else 1.0, clamped=False),
            OuterGroup(body, max_norm=1e-3),
        ]


def test_outer_groups_have_rates_and_bounds_of_their_own(
    tmp_path: Path,
    tiny_sets: None,  # noqa: F811
    monkeypatch: Any,
) -> None:
    registry._catalogue().methods["grouped"] = Grouped
    seen: list[list[float]] = []
    norms: list[list[float]] = []
    step = torch.optim.Adam.step

    def watched(self: torch.optim.Adam, *args: Any) -> Any:
        seen.append([group["lr"] for group in self.param_groups])
        norms.append([float(sum(p.grad.square().sum() for p in g["params"]).sqrt()) for g in self.param_groups])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    try:
        training.train(tiny.config(algorithm="grouped", epochs=2, iterations_per_epoch=2), home=tmp_path)
    finally:
        del registry._catalogue().methods["grouped"]
    assert [rate for rates in seen for rate in rates] == pytest.approx([0.01, 0.001] * 2 + [0.001, 0.001] * 2)
    assert all(head > 1e-3 and body <= 1.001e-3 for head, body in norms)


def test_the_rate_falls_in_steps() -> None:
    settings = TrainingSettings(schedule="steps", decay=0.5, milestones=(2, 3), outer_lr=1.0)
    assert [outer_lr(settings, epoch) for epoch in range(5)] == [1, 1, 0.5, 0.25, 0.25]


def test_adam_made_anew_forgets(tmp_path: Path, tiny_sets: None) -> None:  # noqa: F811
    """With a restart at every iteration each step is Adam's first: no moments in the checkpoint are older than one."""
    config = tiny.config(epochs=1, legacy_restart_every=1)
    run = training.train(config, home=tmp_path)
    entry = run.checkpoints.index.last
    assert entry is not None
    state = run.checkpoints.load(entry)["optimizer"]["state"]
    assert {float(moments["step"]) for moments in state.values()} == {1.0}


def test_regression_through_the_same_contract() -> None:
    """MAML on an Mlp with numbers for targets: the gradient of the sum of squared errors, task by task."""
    network = create(Mlp.Settings(hidden=(8,)), (1,), 1).double()
    method: Any = registry.algorithm("maml")
    algorithm = method(network, method.Settings(inner_steps=1, inner_lr={"body": 0.1, "head": 0.1})).double()
    x = torch.randn(3, 5, 1, dtype=torch.float64)
    episodes = Episodes(x, x.sin(), x + 1, (x + 1).sin(), ways=1)
    outcome = algorithm.learn(episodes)
    for task in range(3):
        loss = (network(x[task]) - x[task].sin()).square().mean()
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        adapted = {n: p - 0.1 * g for (n, p), g in zip(network.named_parameters(), gradients, strict=True)}
        predicted = torch.func.functional_call(network, adapted, (x[task] + 1,))
        Close(outcome.logits[task], predicted, atol=1e-12, rtol=0)
        Close(outcome.losses[task], (predicted - (x[task] + 1).sin()).square().mean(), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_y": torch.zeros(3, 6, 2, dtype=torch.float64)}, "do not fit|floating and int64"),
        ({"numbers": torch.arange(2)}, "have .* numbers"),
    ],
)
def test_episodes_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(tiny_episodes(), **changes)


def test_networks_refuse_inputs_they_are_not_for() -> None:
    with pytest.raises(UserError, match="'mlp' is for vectors"):
        create(Mlp.Settings(), (3, 16, 16), 5)
    with pytest.raises(UserError, match="'conv4' is for images"):
        create(Conv4.Settings(), (1,), 1)
    with pytest.raises(UserError, match="too small for block 3"):
        create(Conv4.Settings(paddings=(0, 0, 0, 0)), (3, 16, 16), 5)
