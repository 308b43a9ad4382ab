"""ALFA on MAML, on random initialisation and with L2F: golden numbers, limits, what the meta-gradient leaves out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from goldens import CASES, backbone_names, build, check_gradients, check_losses, close, episodes, family_mlp
from torch import Tensor

from metazoo import registry
from metazoo.algorithms.alfa import ALFA
from metazoo.backbones import Conv4, ResNet12, parameter_count
from metazoo.errors import Incompatible
from metazoo.testing import Trace, tiny_algorithm, tiny_episodes, trace

GOLDEN = {"inner_steps": 3, "inner_lr": {"body": 0.05, "head": 0.05}}
NAMES = ["alfa", "alfa_random", "alfa_l2f"]
MLP = ("W1", "b1", "W2", "b2")


def make(name: str = "alfa", **settings: object) -> Any:
    method = registry.algorithm(name)
    return tiny_algorithm(method, method.Settings(**settings))


def constant(algorithm: Any, rate: float, decay: float) -> Any:
    """Let the generator return these for every tensor, whatever it reads."""
    generator, tensors = algorithm.generator, len(algorithm.rates)
    generator[2].weight.data.zero_()
    generator[2].bias.data.copy_(torch.tensor([rate] * tensors + [decay] * tensors))
    return algorithm


def read_by_generator(algorithm: ALFA) -> list[Tensor]:
    """What the generator is given, filled as it is called."""
    seen: list[Tensor] = []
    algorithm.generator.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    return seen


def assert_same(found: Trace, expected: Trace, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found.query_losses, expected.query_losses, atol=tolerance, rtol=0)
    for name, gradient in expected.meta_gradients.items():
        torch.testing.assert_close(found.meta_gradients[name], gradient, atol=tolerance, rtol=0)


# Golden numbers


def golden(name: str) -> Any:
    algorithm = build(name, GOLDEN, conv_bias=True)
    family_mlp(algorithm.generator)
    if name == "alfa_l2f":
        family_mlp(algorithm.attenuator)
    return algorithm


def golden_names(algorithm: Any) -> dict[str, str]:
    own = {"mlp": "generator", "attenuator": "attenuator"}
    names = {
        f"{theirs}.{tensor}": f"{ours}.{place}"
        for theirs, ours in own.items()
        for tensor, place in zip(MLP, ("0.weight", "0.bias", "2.weight", "2.bias"), strict=True)
    }
    tensors = backbone_names(algorithm.backbone)
    adapted = [tensor for tensor in tensors if not tensor.startswith("bn")]
    return tensors | names | {f"beta1.{tensor}": f"weight_decays.{j}" for j, tensor in enumerate(adapted)}


@pytest.mark.parametrize(("name", "case"), [*zip(NAMES, ["alfa", "alfa_random_init", "alfa_l2f"], strict=True)])
def test_golden(name: str, case: str) -> None:
    algorithm, expected = golden(name), dict(CASES[case])
    result = trace(algorithm, episodes())
    check_losses(result, expected)
    names = golden_names(algorithm)
    adapted = [tensor.removeprefix("beta1.") for tensor in names if tensor.startswith("beta1.")]
    rows = {"alpha0": "step_rates", "beta0": "step_decays"}
    tables = {key: value for key, value in expected["gradients"].items() if key.partition(".")[0] in rows}
    expected["gradients"] = {key: value for key, value in expected["gradients"].items() if key not in tables}
    check_gradients(result, expected, names)
    for key, (norm,) in tables.items():
        table, _, tensor = key.partition(".")
        gradient = result.meta_gradients[rows[table]]
        assert gradient is not None
        close(gradient[adapted.index(tensor)].norm(), norm, what=key)
    assert len(tables) == (2 if case == "alfa" else 0)


def test_golden_intermediates() -> None:
    algorithm, made = golden("alfa"), []
    algorithm.generator.register_forward_hook(lambda module, inputs, output: made.append(output[0].detach()))
    trace(algorithm, episodes())
    expected = CASES["alfa"]["intermediates"]
    close(made[0][:10], expected["alpha_hat_step0"], absolute=1e-10, relative=0)
    close(made[0][10:], expected["beta_hat_step0"], absolute=1e-10, relative=0)
    assert len(made) == 3, "the generator is called once a step"


# Limits


@pytest.mark.parametrize("name", ["maml", "l2f"])
def test_unit_rates_without_decay_are_the_method_below(name: str) -> None:
    settings = {"inner_lr": {"body": 0.05, "head": 0.02}}
    below = make(name, **settings) if name == "maml" else make(name, differentiable_embedding=True, **settings)
    algorithm = constant(make("alfa" if name == "maml" else "alfa_l2f", **settings), 1.0, 0.0)
    if name == "l2f":
        algorithm.attenuator.load_state_dict(below.attenuator.state_dict())
    found, expected = trace(algorithm, tiny_episodes()), trace(below, tiny_episodes())
    torch.testing.assert_close(found.support_losses, expected.support_losses, atol=1e-10, rtol=0)
    assert_same(found, expected)


def test_without_attenuation_the_l2f_variant_is_alfa() -> None:
    algorithm, plain = make("alfa_l2f"), make()
    algorithm.attenuator[2].weight.data.zero_()
    algorithm.attenuator[2].bias.data.fill_(40.0)
    algorithm.generator.load_state_dict(plain.generator.state_dict())
    assert_same(trace(algorithm, tiny_episodes()), trace(plain, tiny_episodes()))


@pytest.mark.parametrize("name", ["alfa", "alfa_random"])
def test_a_decay_alone_shrinks_every_tensor(name: str) -> None:
    algorithm, share = constant(make(name), 0.0, 1.0), 0.1
    algorithm.step_decays.data.fill_(share)
    for factor in getattr(algorithm, "weight_decays", []):
        factor.data.fill_(1.0)
    for tensor, weight in trace(algorithm, tiny_episodes()).adapted.items():
        expected = (1 - share) ** 5 * algorithm.backbone.get_parameter(tensor).detach().expand_as(weight)
        torch.testing.assert_close(weight, expected, atol=1e-12, rtol=0)


# What the generator reads


def test_the_generator_reads_means_of_weights_and_gradients_at_every_step() -> None:
    algorithm = make(inner_steps=3)
    seen, passes = read_by_generator(algorithm), []
    algorithm.backbone.body.register_forward_hook(lambda *_: passes.append(1))
    trace(algorithm, tiny_episodes(tasks=1))
    assert [tuple(each.shape) for each in seen] == [(1, 12)] * 3
    assert len(passes) == 3 + 1
    means = [algorithm.backbone.get_parameter(name).detach().mean() for name in algorithm.rates]
    torch.testing.assert_close(seen[0][0, :6].detach(), torch.stack(means), atol=1e-14, rtol=0)
    gradients = seen[0][0, 6:].detach()
    assert gradients[4:].abs().max() < 1e-15 < gradients[:4].abs().min(), "the head's means are zero by structure"
    assert not torch.equal(seen[0], seen[1])


def test_only_the_mean_gradients_are_held_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite differences agree when the gradient half is frozen at its values, and do not when it may move."""
    algorithm, task = make(inner_steps=2), tiny_episodes(tasks=1)
    algorithm.step_rates.data.fill_(0.5)
    algorithm.step_decays.data.fill_(0.5)
    algorithm.generator[0].weight.data.mul_(3.0)
    seen, generate = read_by_generator(algorithm), algorithm.generator.forward
    exact = trace(algorithm, task).meta_gradients
    halves = [each.detach()[:, 6:] for each in seen]

    def numeric(name: str, frozen: bool) -> tuple[float, float]:
        parameter = algorithm.get_parameter(name)
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0), dtype=parameter.dtype)
        direction /= direction.norm()
        losses = []
        for sign in (1, -1):
            steps = iter(halves)

            def forward(means: Tensor, steps=steps) -> Tensor:
                return generate(torch.cat([means[:, :6], next(steps)], dim=1) if frozen else means)

            monkeypatch.setattr(algorithm.generator, "forward", forward)
            parameter.data.add_(direction, alpha=sign * 1e-6)
            losses.append(float(algorithm.learn(task).losses.detach().mean()))
            parameter.data.sub_(direction, alpha=sign * 1e-6)
        gradient = exact[name]
        assert gradient is not None
        return (losses[0] - losses[1]) / 2e-6, float((gradient * direction).sum())

    for name, _ in algorithm.named_parameters():
        found, expected = numeric(name, frozen=True)
        assert found == pytest.approx(expected, abs=2e-8)
    found, expected = numeric("backbone.body.block4.conv.weight", frozen=False)
    assert abs(found - expected) > 1e-5


def test_the_weight_means_carry_meta_gradient() -> None:
    algorithm = make(inner_steps=2)
    seen = read_by_generator(algorithm)
    losses = algorithm.learn(tiny_episodes()).losses
    assert torch.autograd.grad(losses.sum(), seen[0], retain_graph=True)[0].any()
    weight = algorithm.backbone.body.block1.conv.weight
    (reached,) = torch.autograd.grad(seen[0][:, 0].sum(), weight, retain_graph=True)
    torch.testing.assert_close(reached, torch.full_like(weight, 3 / weight.numel()), atol=1e-14, rtol=0)
    assert not torch.autograd.grad(seen[0][:, 6:].sum(), weight)[0].any()


# Random initialisation


def test_random_initialisation_is_not_learned() -> None:
    algorithm: Any = make("alfa_random")
    learned = {name for name, parameter in algorithm.named_parameters() if parameter.requires_grad}
    assert not any(name.startswith("backbone") for name in learned)
    (group,) = algorithm.outer_groups()
    assert len(group.parameters) == len(learned) == 2 + 4 + 6
    before = {name: tensor.clone() for name, tensor in algorithm.backbone.state_dict().items()}
    optimiser = torch.optim.Adam(group.parameters, lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        algorithm.learn(tiny_episodes()).losses.sum().backward()
        optimiser.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in algorithm.backbone.state_dict().items())
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in group.parameters)


def test_random_initialisation_starts_as_alfa_does() -> None:
    random, plain = make("alfa_random"), make()
    random.generator.load_state_dict(plain.generator.state_dict())
    found, expected = trace(random, tiny_episodes()), trace(plain, tiny_episodes())
    torch.testing.assert_close(found.query_losses, expected.query_losses, atol=1e-9, rtol=0)
    for name, factors in zip(random.rates, random.weight_decays, strict=True):
        assert factors.shape == random.backbone.get_parameter(name).shape
    assert plain.step_decays.unique().tolist() == pytest.approx([5e-6])
    assert random.step_decays.unique().tolist() == [1.0]


# The rest


@pytest.mark.parametrize("name", NAMES)
def test_more_steps_than_trained_are_refused(name: str) -> None:
    with pytest.raises(Incompatible, match="each of its 5 inner steps, so it cannot be evaluated with 7"):
        make(name, evaluation_steps=7)
    fewer, three = make(name, evaluation_steps=3), make(name, inner_steps=3)
    torch.testing.assert_close(fewer.predict(tiny_episodes()), three.predict(tiny_episodes()), atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_batch_norm_is_never_adapted(name: str) -> None:
    result = trace(make(name), tiny_episodes())
    assert result.adapted.keys() == {f"body.block{n}.conv.weight" for n in range(1, 5)} | {"head.weight", "head.bias"}
    learned = [tensor for tensor in result.meta_gradients if ".norm." in tensor]
    assert len(learned) == (0 if name == "alfa_random" else 8)


@pytest.mark.parametrize(
    ("name", "network", "parameters"),
    [
        ("alfa", Conv4((3, 84, 84), 5, Conv4.Settings(conv_bias=True)), 70_085 + 840 + 100),
        ("alfa_random", Conv4((3, 84, 84), 5, Conv4.Settings(conv_bias=True)), 69_701 + 840 + 100),
        ("alfa_l2f", Conv4((3, 84, 84), 5, Conv4.Settings(conv_bias=True)), 70_085 + 840 + 100 + 220),
        ("alfa", ResNet12((3, 84, 84), 5, ResNet12.Settings()), 7_999_365 + 2_664 + 180),
    ],
)
def test_parameter_count(name: str, network: Any, parameters: int) -> None:
    algorithm = registry.create(name, network)
    assert parameter_count(algorithm) == parameters
