"""Batch norm and max-pool of our own against torch's, to the second derivative."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.func import functional_call, vmap

from metazoo import normalisation, pooling, registry
from metazoo.algorithm import Algorithm
from metazoo.backbones import Conv4, ConvBlock, ResidualBlock, ResNet12
from metazoo.normalisation import BatchStatisticsNorm
from metazoo.pooling import HalvingMaxPool
from metazoo.testing import tiny_algorithm, tiny_episodes

ALL = {"body": 0.05, "norm": 0.05, "head": 0.05}


@pytest.fixture(params=["large", "small"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to compute, whatever the sizes in a test."""
    for module in (normalisation, pooling):
        monkeypatch.setattr(module, "LARGE", 0 if request.param == "large" else 2**60)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (normalisation, pooling):
        monkeypatch.setattr(module, "LARGE", 0)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def norm(channels: int, eps: float = 1e-3) -> BatchStatisticsNorm:
    """Scales of both signs, one of them zero."""
    module = BatchStatisticsNorm(channels, eps).double()
    module.weight.data.copy_(torch.linspace(-1, 1.5, channels)).mul_(torch.arange(channels) != 1)
    module.bias.data.copy_(random(channels))
    return module


def plain(module: nn.Module) -> nn.Module:
    """A copy with torch's own modules in place of ours."""
    module = copy.deepcopy(module)
    for path, ours in list(module.named_modules()):
        theirs: nn.Module
        if isinstance(ours, BatchStatisticsNorm):
            theirs = nn.BatchNorm2d(ours.num_features, eps=ours.eps, track_running_stats=False)
            theirs.weight, theirs.bias = ours.weight, ours.bias
        elif isinstance(ours, HalvingMaxPool):
            theirs = nn.MaxPool2d(2)
        else:
            continue
        parent, _, name = path.rpartition(".")
        setattr(module.get_submodule(parent), name, theirs)
    return module


def with_ties(x: Tensor) -> Tensor:
    return torch.where(x > 0, x.round(), x.round() / 2).contiguous()


@pytest.mark.parametrize("shape", [(3, 4, 5, 3), (2, 4, 1, 1), (1, 4, 7, 2)])
def test_norm_to_the_second_derivative(size: None, shape: tuple[int, ...]) -> None:
    module = norm(4)

    def forward(z: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return functional_call(module, {"weight": gamma, "bias": beta}, (z,))

    inputs = tuple(t.detach().requires_grad_() for t in (random(*shape), module.weight, module.bias))
    assert gradcheck(forward, inputs)
    assert gradgradcheck(forward, inputs)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)])
def test_second_derivatives_of_a_part_of_the_gradient(size: None, wanted: tuple[int, ...]) -> None:
    """Cotangents of some of (dz, dgamma, dbeta) only, as methods have them that do not adapt the norm."""
    z, weight = random(3, 4, 5, 6).requires_grad_(), random(3, 4, 5, 6, seed=1).requires_grad_()
    found = []
    for module in (norm(4), plain(nn.Sequential(norm(4)))):
        places = (z, *module.parameters())
        first = grad((module(z).sin() * weight).sum(), places, create_graph=True)
        loss = sum((first[k] * random(*first[k].shape, seed=k + 2)).sum() for k in wanted)
        found.append(grad(loss, (*places, weight), materialize_grads=True))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=0)


def test_a_single_value_becomes_the_shift(size: None) -> None:
    module, pixel = norm(3), random(1, 3, 1, 1).requires_grad_()
    normalised = module(pixel)
    torch.testing.assert_close(normalised.flatten(), module.bias, atol=1e-13, rtol=0)
    (gradient,) = grad(normalised.square().sum(), pixel, create_graph=True)
    assert not gradient.any()
    assert not grad(gradient.square().sum(), pixel)[0].any()


def test_a_large_mean_costs_no_precision(large: None) -> None:
    images = 1000 + random(4, 3, 8, 8)
    found = BatchStatisticsNorm(3)(images.float())
    expected = plain(nn.Sequential(BatchStatisticsNorm(3)))(images.float())
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(found.var((0, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0)


def test_a_third_derivative_is_refused(size: None) -> None:
    """Even one that is asked for by name, of which `once_differentiable` would give a part without a word."""
    module, z = norm(4), random(3, 4, 2, 2).requires_grad_()
    (first,) = grad(module(z).pow(3).sum(), z, create_graph=True)
    (second,) = grad(first.pow(2).sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match="third derivative"):
        grad(second.sum(), z)


def test_norm_is_the_plain_one_to_a_checkpoint_and_to_roles() -> None:
    module = norm(2)
    assert module.state_dict().keys() == {"weight", "bias"}
    assert torch.equal(module.train()(random(3, 2, 4, 4)), module.eval()(random(3, 2, 4, 4)))
    for backbone in (Conv4((3, 16, 16), 3, Conv4.Settings(filters=4)), ResNet12((3, 8, 8), 3, ResNet12.Settings())):
        norms = [path for path, part in backbone.named_modules() if isinstance(part, nn.BatchNorm2d)]
        assert all(isinstance(backbone.get_submodule(path), BatchStatisticsNorm) for path in norms)
        expected = {f"{path}.{name}" for path in norms for name in ("weight", "bias")}
        assert {name for name, role in backbone.roles().items() if role == "norm"} == expected


def test_norm_under_autocast(large: None) -> None:
    module, images = BatchStatisticsNorm(4), random(3, 4, 5, 5).bfloat16()
    expected = plain(nn.Sequential(module))(images)
    assert torch.equal(module(images), expected)


@pytest.mark.parametrize("shape", [(2, 3, 6, 8), (2, 3, 7, 9), (1, 1, 2, 3), (5, 2, 3, 2)])
def test_pool_is_torchs_with_ties(size: None, shape: tuple[int, ...]) -> None:
    images = with_ties(random(*shape)).requires_grad_()
    found = []
    for module in (HalvingMaxPool(), nn.MaxPool2d(2)):
        pooled = module(images)
        weight = random(*pooled.shape, seed=1).requires_grad_()
        (first,) = grad((pooled.exp() * weight).sum(), images, create_graph=True)
        found.append((pooled, first, *grad((first * random(*shape, seed=2)).sum(), (images, weight))))
        with torch.no_grad():
            assert torch.equal(module(images), pooled)
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-14, rtol=0)


@pytest.mark.parametrize("stacked", [("z",), ("z", "weight"), ("z", "bias"), ("z", "weight", "bias"), ("weight",)])
@pytest.mark.parametrize("axis", [0, 1, 3])
def test_stacked_tasks(size: None, stacked: tuple[str, ...], axis: int) -> None:
    """Under vmap, whichever inputs have a task axis, equal each task alone, to the second derivative."""
    module, pool = norm(4), HalvingMaxPool()
    values = {"z": random(3, 2, 4, 5, 6), "weight": random(3, 4, seed=1), "bias": random(3, 4, seed=2)}
    leaves = {k: (v if k in stacked else v[0]).clone().requires_grad_() for k, v in values.items()}
    inputs = dict(leaves)
    if "z" in stacked:
        inputs["z"] = leaves["z"].movedim(0, axis)
    axes = {k: (axis if k == "z" else 0) if k in stacked else None for k in values}

    def forward(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return pool(functional_call(module, {"weight": weight, "bias": bias}, (z,)))

    def each() -> Tensor:
        tasks = [{k: v[t] if k in stacked else v for k, v in leaves.items()} for t in range(3)]
        return torch.stack([forward(**task) for task in tasks])

    found = []
    for outputs in (vmap(forward, in_dims=tuple(axes.values()))(*inputs.values()), each()):
        first = grad(outputs.pow(3).sum(), list(leaves.values()), create_graph=True)
        second = grad(sum(g.square().sum() for g in first), list(leaves.values()))
        found.append((outputs, *first, *second))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-12)


@pytest.mark.parametrize("axis", [0, 1, 2, 3, 4])
def test_pool_of_stacked_tasks(size: None, axis: int) -> None:
    images = with_ties(random(3, 2, 4, 5, 6)).requires_grad_()
    found = []
    for pooled in (
        vmap(HalvingMaxPool(), in_dims=axis)(images.movedim(0, axis)),
        torch.stack([nn.MaxPool2d(2)(task) for task in images]),
    ):
        (first,) = grad((pooled.exp() * random(*pooled.shape)).sum(), images, create_graph=True)
        found.append((pooled, first, *grad(first.square().sum(), images)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-14, rtol=1e-14)


def meta_step(algorithm: Algorithm, tasks_per_pass: int, tasks: int = 3) -> dict[str, Tensor]:
    algorithm.zero_grad()
    dtype = next(algorithm.parameters()).dtype
    drawn = tiny_episodes(tasks)
    episodes = replace(drawn, support_x=drawn.support_x.to(dtype), query_x=drawn.query_x.to(dtype))
    results = []
    for chunk in episodes.chunks(tasks_per_pass):
        outcome = algorithm.learn(chunk)
        outcome.losses.sum().backward()
        results.append(outcome.losses.detach())
    gradients = {n: p.grad.clone() for n, p in algorithm.named_parameters() if p.grad is not None}
    return gradients | {"losses": torch.cat(results), "predictions": algorithm.predict(episodes)}


def both(name: str, dtype: torch.dtype, tasks_per_pass: int, **settings: Any) -> tuple[dict[str, Tensor], ...]:
    method: Any = registry.algorithm(name)
    algorithm = tiny_algorithm(method, method.Settings(**settings)).to(dtype)
    reference = copy.deepcopy(algorithm)
    reference.backbone.body = cast(nn.Sequential, plain(reference.backbone.body))
    assert not any(isinstance(part, (BatchStatisticsNorm, HalvingMaxPool)) for part in reference.modules())
    return meta_step(algorithm, tasks_per_pass), meta_step(reference, 1)


@pytest.mark.parametrize("tasks_per_pass", [1, 3])
@pytest.mark.parametrize("name", ["anil", "boil", "cxgrad", "fomaml", "l2f", "maml", "metasgd"])
def test_every_methods_meta_step_is_the_plain_networks(large: None, name: str, tasks_per_pass: int) -> None:
    ours, theirs = both(name, torch.float64, tasks_per_pass)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], atol=1e-10, rtol=0)


def test_meta_gradient_in_float32(large: None) -> None:
    ours, _ = both("maml", torch.float32, 1, inner_lr=ALL, inner_steps=2)
    _, exact = both("maml", torch.float64, 1, inner_lr=ALL, inner_steps=2)
    for key, value in ours.items():
        assert (value - exact[key]).norm() <= 1e-4 * exact[key].norm(), key


def test_resnets_blocks_are_the_plain_ones(large: None) -> None:
    backbone = ResNet12((3, 8, 8), 3, ResNet12.Settings()).double()
    block = next(part for part in backbone.modules() if isinstance(part, ResidualBlock))
    assert isinstance(block.pool, HalvingMaxPool)
    images, found = random(2, 3, 8, 8), []
    for module in (block, plain(block)):
        first = grad(module(images).pow(2).sum(), list(module.parameters()), create_graph=True)
        found.append((*first, *grad(sum(g.square().sum() for g in first), list(module.parameters()))))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


def test_conv4_uses_both() -> None:
    blocks = [b for b in Conv4((3, 16, 16), 3, Conv4.Settings(filters=4)).modules() if isinstance(b, ConvBlock)]
    assert len(blocks) == 4
    assert all(isinstance(b.norm, BatchStatisticsNorm) and isinstance(b.pool, HalvingMaxPool) for b in blocks)
