"""Meta-Curvature: learn2learn's linear maps on MAML's gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metazoo.algorithms.maml import MAML
from metazoo.algorithms.metacurvature import Curvature, MetaCurvature
from metazoo.backbones import Conv4, ResNet12, create, parameter_count
from metazoo.learner import learn2learn
from metazoo.testing import tiny_algorithm, tiny_episodes, trace

Close = torch.testing.assert_close


def make(**settings: Any) -> Any:
    return tiny_algorithm(MetaCurvature, MetaCurvature.Settings(**settings))


def maml(rate: float) -> Any:
    return tiny_algorithm(MAML, MAML.Settings(inner_lr={"body": rate, "norm": rate, "head": rate}))


def filled(shape: tuple[int, ...]) -> Curvature:
    curvature = Curvature(torch.Size(shape)).double()
    generator = torch.Generator().manual_seed(0)
    for factor in curvature.factors:
        factor.data.copy_(torch.randn(factor.shape, generator=generator, dtype=torch.float64))
    return curvature


@pytest.mark.parametrize("shape", [(5,), (5, 3), (4, 3, 3, 3), (6, 2, 1, 1)])
def test_the_maps_are_learn2learns(shape: tuple[int, ...]) -> None:
    """Whose names are TensorFlow's: its `mc_in` acts on the first dimension."""
    curvature, theirs = filled(shape), learn2learn.optim.transforms.MetaCurvatureTransform(torch.empty(shape)).double()
    places = ["mc"] if len(shape) == 1 else ["mc_in", "mc_out", "mc_f"][: len(curvature.factors)]
    for place, factor in zip(places, curvature.factors, strict=True):
        getattr(theirs, place).data.copy_(factor)
    gradients = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.stack([theirs(gradient) for gradient in gradients])
    Close(curvature(gradients).detach(), expected.detach(), atol=1e-12, rtol=0)


def test_the_map_of_a_kernel_is_a_kronecker_product() -> None:
    curvature, gradient = filled((4, 3, 2, 2)), torch.randn(1, 4, 3, 2, 2, dtype=torch.float64)
    first, second, positions = curvature.factors
    matrix = torch.kron(torch.kron(first, second.T.contiguous()), positions)
    Close(curvature(gradient).flatten(), matrix @ gradient.flatten(), atol=1e-12, rtol=0)


def test_it_starts_as_maml() -> None:
    episodes = tiny_episodes()
    found, expected = trace(make(), episodes), trace(maml(0.1), episodes)
    Close(found.support_losses, expected.support_losses, atol=1e-10, rtol=0)
    Close(found.query_losses, expected.query_losses, atol=1e-10, rtol=0)
    for name, gradient in expected.meta_gradients.items():
        Close(found.meta_gradients[name], gradient, atol=1e-10, rtol=0)


def test_matrices_that_double_are_a_doubled_rate() -> None:
    algorithm, episodes = make(inner_lr={"body": 0.05, "norm": 0.05, "head": 0.05}), tiny_episodes()
    for curvature in algorithm.curvatures:
        curvature.factors[-1].data.mul_(2.0)
    found, expected = trace(algorithm, episodes), trace(maml(0.1), episodes)
    Close(found.query_losses, expected.query_losses, atol=1e-10, rtol=0)
    for name, gradient in expected.meta_gradients.items():
        Close(found.meta_gradients[name], gradient, atol=1e-10, rtol=0)


def test_the_matrices_are_learned_in_first_order_too_and_never_adapted() -> None:
    result = trace(make(), tiny_episodes(), second_order=False)
    assert result.adapted.keys() == {name for name, _ in make().backbone.named_parameters()}
    own = {name: gradient for name, gradient in result.meta_gradients.items() if name.startswith("curvatures")}
    # Four kernels with three matrices each, eight vectors of batch norm, the head's two matrices and one vector.
    assert len(own) == 4 * 3 + 8 + 3
    assert all(gradient is not None and gradient.any() for gradient in own.values())


def test_parameter_count() -> None:
    network = Conv4((3, 84, 84), 5, Conv4.Settings(filters=32, conv_bias=True))
    kernels = (32**2 + 3**2 + 81) + 3 * (32**2 + 32**2 + 81)
    assert parameter_count(MetaCurvature(network)) == 32_901 + kernels + 4 * 3 * 32 + 5**2 + 800**2 + 5


def test_what_adapts_has_matrices() -> None:
    head = make(inner_lr={"head": 0.1})
    assert len(head.curvatures) == 2
    assert trace(head, tiny_episodes()).adapted.keys() == {"head.weight", "head.bias"}
    residual: Any = MetaCurvature(create(ResNet12.Settings(), (3, 16, 16), 3))
    assert len(residual.curvatures) == len(list(residual.backbone.parameters()))
