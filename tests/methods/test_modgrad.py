"""ModGrad: published numbers, what its factors are, and MAML on two blocks where they are one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from goldens import CASES, RELU, auxiliary, backbone_names, build, check_gradients, check_logits, check_losses, close
from goldens import episodes as golden_episodes
from torch import Tensor, nn

from metazoo.algorithms.maml import MAML
from metazoo.algorithms.modgrad import CONTEXT, ModGrad
from metazoo.backbones import Conv4, Mlp, ResNet12, create, parameter_count
from metazoo.errors import Incompatible
from metazoo.outer_step import OuterStep
from metazoo.testing import tiny_algorithm, tiny_episodes, trace

WEIGHTS = ["body.block3.conv.weight", "body.block4.conv.weight"]
LAYERS = ((1, "weight", 1.0), (1, "bias", 0.5), (2, "weight", 2.0), (2, "bias", 1.5))
AUXILIARY = {f"{v}{b}.l{n}.{kind}": size for b in (3, 4) for v in "uvb" for n, kind, size in LAYERS}
Close = torch.testing.assert_close


def golden(passes: int) -> tuple[Any, dict[str, str]]:
    """The method with golden values, and our names of its tensors."""
    algorithm = build("modgrad", {"passes": passes}, **RELU)
    own = [name for name, _ in algorithm.named_parameters() if name.startswith("modulators")]
    for k, (name, size) in enumerate(zip(own, AUXILIARY.values(), strict=True)):
        parameter = algorithm.get_parameter(name)
        parameter.data.copy_(auxiliary(parameter.shape, k, size))
    return algorithm, backbone_names(algorithm.backbone) | dict(zip(AUXILIARY, own, strict=True))


def make(**settings: Any) -> Any:
    return tiny_algorithm(ModGrad, ModGrad.Settings(**settings))


def record(algorithm: ModGrad) -> tuple[list[Tensor], list[Tensor]]:
    """The contexts and factors that the modulators will see and give."""
    contexts: list[Tensor] = []
    factors: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        contexts.append(inputs[0].detach())
        factors.append(output.detach())

    for modulator in algorithm.modulators:
        modulator.register_forward_hook(keep)
    return contexts, factors


class Constant(nn.Module):
    """A modulator that returns one number for every entry and context."""

    def __init__(self, shape: torch.Size, value: float):
        super().__init__()
        self.shape, self.value = shape, value

    def forward(self, context: Tensor) -> Tensor:
        return self.value + 0 * context.sum(dim=1).view(-1, *[1] * len(self.shape)).expand(-1, *self.shape)


def constant(value: float, **settings: Any) -> Any:
    algorithm = make(**settings)
    algorithm.modulators = nn.ModuleList(Constant(modulator.shape, value) for modulator in algorithm.modulators)
    return algorithm


class LastTwoBlocks(MAML):
    def adapted_names(self) -> list[str]:
        return WEIGHTS


@pytest.mark.parametrize(("case", "passes"), [("modgrad", 2), ("modgrad_R2", 4)])
def test_golden_numbers(case: str, passes: int) -> None:
    wanted = CASES[case]
    algorithm, names = golden(passes)
    contexts, factors = record(algorithm)
    result = trace(algorithm, golden_episodes())
    # We leave out the last support loss, which only the next pass would need.
    check_losses(result, wanted | {"support_losses": wanted["support_losses"][:-1]})
    close(trace(golden(passes + 1)[0], golden_episodes()).support_losses, [wanted["support_losses"]], absolute=1e-9)
    check_logits(result, wanted)
    check_gradients(result, wanted, names)
    inside = wanted["intermediates"]
    close(result.adapted[CONTEXT].norm(), inside["context_norm"])
    close(torch.stack([factor.sum() for factor in factors[4 * passes - 4 : 4 * passes]]), inside["modulator_sums"])
    close((factors[4 * passes - 4] > 0).double().mean(), inside["conv3_modulator_nonzero_fraction"])
    assert not contexts[0].any()


def test_parameter_count() -> None:
    for conv_bias, generators in ((True, 1_056_926), (False, 1_056_926 - 80_778)):
        network = Conv4((3, 84, 84), 5, Conv4.Settings(filters=64, conv_bias=conv_bias))
        assert parameter_count(network) == 121_093 - 256 * (not conv_bias)
        algorithm: Any = ModGrad(network)
        assert parameter_count(algorithm.modulators) == generators
        assert [len(modulator.vectors) for modulator in algorithm.modulators] == [2, 1, 2, 1][:: 2 - conv_bias]


def test_the_convolutions_of_two_blocks_move_and_nothing_else() -> None:
    result = trace(make(), tiny_episodes())
    assert result.adapted.keys() == {*WEIGHTS, CONTEXT}
    assert result.adapted[CONTEXT].shape == (3, 300)
    biased = tiny_algorithm(ModGrad, backbone=Conv4.Settings(filters=4, conv_bias=True))
    adapted = trace(biased, tiny_episodes()).adapted
    assert adapted.keys() == {*WEIGHTS, *(name.replace("weight", "bias") for name in WEIGHTS), CONTEXT}
    for name in WEIGHTS:
        bias = name.replace("weight", "bias")
        Close(adapted[bias], biased.backbone.get_parameter(bias).detach().expand(3, -1), atol=1e-14, rtol=0)


def test_factors_are_positive_parts_of_matrices_of_rank_one() -> None:
    algorithm = make(passes=3)
    contexts, factors = record(algorithm)
    trace(algorithm, tiny_episodes())
    assert len(contexts) == 6 and not contexts[0].any() and contexts[2].any()
    for factor in factors:
        assert (factor >= 0).all() and factor.any()
    rows, columns = (vector(contexts[-1]) for vector in algorithm.modulators[1].vectors)
    for task in range(3):
        matrix = torch.outer(rows[task], columns[task]).relu().detach()
        assert torch.equal(factors[-1][task].reshape(12, 12), matrix)


@pytest.mark.parametrize("passes", [1, 2, 5])
def test_with_factors_of_one_it_is_maml_on_two_blocks(passes: int) -> None:
    episodes = tiny_episodes()
    found = trace(constant(1.0, passes=passes), episodes)
    maml = trace(tiny_algorithm(LastTwoBlocks, MAML.Settings(inner_steps=1, inner_lr={"body": 0.1})), episodes)
    Close(found.query_losses, maml.query_losses, atol=1e-10, rtol=0)
    for name, gradient in maml.meta_gradients.items():
        Close(found.meta_gradients[name], gradient, atol=1e-10, rtol=0)


def test_with_factors_of_zero_nothing_adapts() -> None:
    algorithm, episodes = constant(0.0), tiny_episodes()
    plain = torch.stack([algorithm.backbone(images) for images in episodes.query_x]).detach()
    Close(algorithm.predict(episodes), plain, atol=1e-12, rtol=0)


def test_every_pass_starts_from_the_same_weights() -> None:
    """Where the factors do not depend on the context, more passes change nothing."""
    episodes, adapted = tiny_episodes(), []
    for passes in (1, 2, 4):
        algorithm = make(passes=passes)
        for modulator in algorithm.modulators:
            for vector in modulator.vectors:
                vector.network[0].weight.data.zero_()
        result = trace(algorithm, episodes)
        assert result.support_losses.shape == (3, passes)
        adapted.append(result.adapted[WEIGHTS[0]])
    assert torch.equal(adapted[0], adapted[1]) and torch.equal(adapted[0], adapted[2])


def test_a_context_is_minus_the_gradient_of_the_loss_with_the_one_before() -> None:
    algorithm, episodes = make(passes=2), tiny_episodes(tasks=1)
    found, network = trace(algorithm, episodes).adapted[CONTEXT], algorithm.backbone
    zero, names = torch.zeros(1, 300, dtype=torch.float64, requires_grad=True), algorithm.adapted_names()

    def loss(weights: dict[str, Tensor]) -> Tensor:
        logits = torch.func.functional_call(network, weights, (episodes.support_x[0],))
        return nn.functional.cross_entropy(logits, episodes.support_y[0])

    initial = {name: network.get_parameter(name) for name in names}
    gradients = torch.autograd.grad(loss(initial), list(initial.values()))
    moved = {
        name: initial[name] - 0.1 * gradient * modulator(zero)[0]
        for name, gradient, modulator in zip(names, gradients, algorithm.modulators, strict=True)
    }
    (change,) = torch.autograd.grad(loss(moved), zero)
    assert change.any()
    Close(found, -change, atol=1e-14, rtol=0)


def test_outer_rates_are_halved_where_it_is_asked_for() -> None:
    plain = make().outer_groups()
    assert sum(len(group.parameters) for group in plain) == len(list(make().parameters()))
    halved = make(backbone_halvings=(0.4, 0.8), generator_halvings=(0.16, 0.32, 0.48, 0.64)).outer_groups()
    rates = {epoch: [group.rate(OuterStep(epoch=epoch, epochs=500)) for group in halved] for epoch in (0, 80, 399, 400)}
    assert rates == {0: [1, 1], 80: [1, 1 / 2], 399: [1 / 2, 1 / 16], 400: [1 / 4, 1 / 16]}
    assert [group.rate(OuterStep(epoch=400, epochs=500)) for group in plain] == [1, 1]


@pytest.mark.parametrize(("backbone", "shape"), [(ResNet12.Settings(), (3, 16, 16)), (Mlp.Settings(), (1,))])
def test_other_backbones_are_refused(backbone: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(Incompatible, match="a Conv4's last two blocks"):
        ModGrad(create(backbone, shape, 3))
