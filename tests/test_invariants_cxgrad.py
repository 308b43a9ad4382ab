"""What must hold for CxGrad by its definition, in float64 on a tiny network."""

from __future__ import annotations

import pytest
import torch
from invariants import CONVS, SCALE_FREE, assert_same, make, set_weights
from torch import Tensor

from metazoo import registry
from metazoo.algorithm import Algorithm
from metazoo.backbones import Conv4
from metazoo.errors import Incompatible
from metazoo.learner import TaskBatch
from metazoo.testing import tiny_episodes, trace


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
