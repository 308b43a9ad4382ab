"""The fused block against the same block made of torch's own modules, to the second derivative."""

from __future__ import annotations

import copy
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.func import functional_call, vmap

from metazoo import registry
from metazoo.algorithm import Algorithm
from metazoo.backbones import Conv4, ConvBlock
from metazoo.fast import blocks, native
from metazoo.fast.convolution import convolve
from metazoo.testing import tiny_algorithm, tiny_episodes

needs_kernels = pytest.mark.skipif(native.kernels(torch.float64) is None, reason="there is no C compiler here")
pytestmark = needs_kernels

FILTERS = 16
ALL = {"body": 0.05, "norm": 0.05, "head": 0.05}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def conv_block(channels: int, padding: int = 1, pools: bool = True, **settings: Any) -> ConvBlock:
    """Scales of both signs, one of them zero, so that all of its values tie."""
    torch.manual_seed(0)
    block = ConvBlock(channels, Conv4.Settings(filters=FILTERS, norm_eps=1e-3, **settings), padding, pools).double()
    block.norm.weight.data.copy_(random(FILTERS, seed=1)).mul_(torch.arange(FILTERS) != 1)
    block.norm.bias.data.copy_(random(FILTERS, seed=2))
    return block


def plain(block: ConvBlock) -> nn.Sequential:
    """Torch's own modules with the same parameters, in the published order."""
    norm = nn.BatchNorm2d(FILTERS, eps=block.norm.eps, track_running_stats=False)
    norm.weight, norm.bias = block.norm.weight, block.norm.bias
    pool = nn.Identity() if isinstance(block.pool, nn.Identity) else nn.MaxPool2d(2)
    modules = {"conv": copy.copy(block.conv), "norm": norm, "activation": copy.copy(block.activation), "pool": pool}
    sequential = nn.Sequential()
    for name, module in modules.items():
        sequential.add_module(name, module)
    return sequential


def derivatives(module: nn.Module, images: Tensor, wanted: slice = slice(None)) -> list[Tensor]:
    """Outputs, gradients, and gradients of a function of some of the gradients and the weights in front of them."""
    outputs = module(images)
    weight = random(*outputs.shape, seed=3).requires_grad_()
    places = [images, *module.parameters()]
    first = grad((outputs.sin() * weight).sum(), places, create_graph=True)
    loss = sum((g * random(*g.shape, seed=4)).sum() for g in first[wanted])
    return [outputs, *first, *grad(loss, [*places, weight], materialize_grads=True)]


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls of the fused block, so that no test passes because nothing was fused."""
    calls: list[str] = []
    original = blocks.block

    def block(*arguments: Any, **options: Any) -> Tensor:
        calls.append("block")
        return original(*arguments, **options)

    monkeypatch.setattr(blocks, "block", block)
    return calls


@pytest.mark.parametrize("settings", [{}, {"activation": "relu"}, {"conv_bias": True}])
@pytest.mark.parametrize(
    ("shape", "padding", "pools"), [((3, 4, 8, 8), 1, True), ((2, 3, 7, 9), 0, True), ((2, 16, 3, 5), 1, False)]
)
def test_to_the_second_derivative(
    fused: list[str], shape: tuple[int, ...], padding: int, pools: bool, settings: dict[str, Any]
) -> None:
    block = conv_block(shape[1], padding, pools, **settings)
    images = random(*shape, seed=5).requires_grad_()
    ours, theirs = derivatives(block, images), derivatives(_named(plain(block), block), images)
    assert fused
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-10, rtol=1e-10)


def _named(sequential: nn.Sequential, block: ConvBlock) -> nn.Sequential:
    """Its parameters come in the block's order."""
    assert [name for name, _ in sequential.named_parameters()] == [name for name, _ in block.named_parameters()]
    return sequential


@pytest.mark.parametrize("wanted", [slice(0, 1), slice(1, 2), slice(2, 3), slice(3, 4), slice(2, 4)])
def test_second_derivatives_of_a_part_of_the_gradient(wanted: slice) -> None:
    """Only some of the gradients at images, weight, scale and shift count, as where a method adapts some tensors."""
    block, images = conv_block(4), random(3, 4, 6, 6, seed=5).requires_grad_()
    for mine, other in zip(derivatives(block, images, wanted), derivatives(plain(block), images, wanted), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-10, rtol=1e-10)


def test_gradcheck() -> None:
    block = conv_block(2)

    def forward(images: Tensor, *parameters: Tensor) -> Tensor:
        names = (name for name, _ in block.named_parameters())
        return functional_call(block, dict(zip(names, parameters, strict=True)), (images,))

    block.norm.weight.data[1] = 0.5  # a scale of zero has no derivative: its values tie
    inputs = tuple(t.detach().requires_grad_() for t in (random(2, 2, 4, 5, seed=5), *block.parameters()))
    assert gradcheck(forward, inputs, fast_mode=True)
    assert gradgradcheck(forward, inputs, fast_mode=True)


def test_ties_go_to_the_first_as_in_torch(fused: list[str]) -> None:
    """Images of few values, under a kernel that looks at one pixel."""
    block = conv_block(1)
    block.conv.weight.data.zero_()[:, :, 1, 1] = torch.arange(1.0, FILTERS + 1, dtype=torch.float64)[:, None] % 3 - 1
    images = random(4, 1, 8, 8, seed=5).round().requires_grad_()
    for mine, other in zip(derivatives(block, images), derivatives(plain(block), images), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-10, rtol=1e-10)
    assert fused


def test_the_bias_in_front_of_batch_norm_has_a_gradient_of_exactly_zero() -> None:
    block = conv_block(3, conv_bias=True)
    (gradient,) = grad(block(random(2, 3, 6, 6)).square().sum(), block.conv.bias)
    assert torch.equal(gradient, torch.zeros(FILTERS, dtype=torch.float64))


def test_a_large_mean_costs_no_precision() -> None:
    block = conv_block(1)
    block.conv.weight.data.zero_()[:, :, 1, 1] = 1
    images = (1000 + random(4, 1, 8, 8)).float()
    found = block.float()(images).double()
    torch.testing.assert_close(found, plain(block.double())(images.double()), atol=1e-4, rtol=1e-4)


def test_what_is_not_a_number_stays_so() -> None:
    """Divergence must show."""
    images = random(2, 3, 4, 4)
    images[1, 2, 3, 3] = torch.nan
    assert conv_block(3)(images).isnan().all()


@pytest.mark.parametrize("stacked", [("images",), ("weight",), ("images", "weight"), ("images", "gamma", "beta")])
def test_stacked_tasks(fused: list[str], stacked: tuple[str, ...]) -> None:
    """Under vmap, whichever inputs have a task axis, equal each task alone, to the second derivative."""
    block = conv_block(3)
    values = {"images": random(2, 4, 3, 6, 6), "weight": random(2, FILTERS, 3, 3, 3, seed=1)}
    values |= {"gamma": random(2, FILTERS, seed=2), "beta": random(2, FILTERS, seed=3)}
    leaves = {k: (v if k in stacked else v[0]).clone().requires_grad_() for k, v in values.items()}

    def forward(images: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        parameters = {"conv.weight": weight, "norm.weight": gamma, "norm.bias": beta}
        return functional_call(block, parameters, (images,))

    tasks = [{k: v[t] if k in stacked else v for k, v in leaves.items()} for t in range(2)]
    together = vmap(forward, in_dims=tuple(0 if k in stacked else None for k in leaves))(*leaves.values())
    found = []
    for outputs in (together, torch.stack([forward(**task) for task in tasks])):
        first = grad(outputs.pow(3).sum(), list(leaves.values()), create_graph=True)
        second = grad(sum(g.square().sum() for g in first), list(leaves.values()))
        found.append((outputs, *first, *second))
    assert len(fused) == 3
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-8, rtol=1e-10)


def test_convolution_has_derivatives_of_every_order() -> None:
    x, weight = random(2, 2, 4, 5).requires_grad_(), random(3, 2, 3, 3, seed=1).requires_grad_()
    found = []
    for function in (convolve, lambda x, w, padding: nn.functional.conv2d(x, w, padding=padding)):
        outputs = function(x, weight, 1)
        first = grad(outputs.sin().sum(), (x, weight), create_graph=True)
        second = grad(sum(g.sin().sum() for g in first), (x, weight), create_graph=True)
        found.append((outputs, *first, *second, *grad(sum(g.sin().sum() for g in second), (x, weight))))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)


def test_a_third_derivative_is_refused() -> None:
    block, images = conv_block(3), random(2, 3, 4, 4).requires_grad_()
    (first,) = grad(block(images).pow(3).sum(), images, create_graph=True)
    (second,) = grad(first.pow(2).sum(), images, create_graph=True)
    with pytest.raises(RuntimeError, match="third derivative"):
        grad(second.sum(), images)


def test_modules_that_are_looked_at_or_changed_run_one_by_one(fused: list[str]) -> None:
    network, images = Conv4((3, 8, 8), 3, Conv4.Settings(filters=FILTERS)).double(), random(2, 3, 8, 8)
    expected = network(images)
    assert len(fused) == 4
    seen: list[Tensor] = []
    hook = network.body.block2.norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    torch.testing.assert_close(network(images), expected, atol=1e-12, rtol=0)
    assert len(fused) == 7 and len(seen) == 1
    hook.remove()
    network.insert("enlarge", nn.Upsample(scale_factor=1), after="block3.conv")
    torch.testing.assert_close(network(images), expected, atol=1e-12, rtol=0)
    assert len(fused) == 10


def test_without_kernels_the_plain_modules_run(fused: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    block, images = conv_block(3), random(2, 3, 6, 6)
    expected = block(images)
    monkeypatch.setattr(native, "kernels", lambda dtype: None)
    torch.testing.assert_close(block(images), expected, atol=1e-12, rtol=0)
    assert len(fused) == 1


def meta_step(algorithm: Algorithm, tasks_per_pass: int) -> dict[str, Tensor]:
    dtype = next(algorithm.parameters()).dtype
    drawn = tiny_episodes(2)
    episodes = replace(drawn, support_x=drawn.support_x.to(dtype), query_x=drawn.query_x.to(dtype))
    algorithm.zero_grad()
    losses = []
    for chunk in episodes.chunks(tasks_per_pass):
        outcome = algorithm.learn(chunk)
        outcome.losses.sum().backward()
        losses.append(outcome.losses.detach())
    gradients = {n: p.grad.clone() for n, p in algorithm.named_parameters() if p.grad is not None}
    predictions = torch.cat([algorithm.predict(chunk) for chunk in episodes.chunks(1)])
    return gradients | {"losses": torch.cat(losses), "predictions": predictions}


def algorithm_of(name: str, dtype: torch.dtype = torch.float64, **settings: Any) -> Algorithm:
    method: Any = registry.algorithm(name)
    return tiny_algorithm(method, method.Settings(**settings), Conv4.Settings(filters=FILTERS)).to(dtype)


@pytest.mark.parametrize("tasks_per_pass", [1, 2])
@pytest.mark.parametrize("name", ["anil", "boil", "cml", "cxgrad", "fomaml", "maml", "warpmaml"])
def test_every_methods_meta_step_is_the_plain_networks(
    fused: list[str], monkeypatch: pytest.MonkeyPatch, name: str, tasks_per_pass: int
) -> None:
    algorithm = algorithm_of(name)
    ours = meta_step(algorithm, tasks_per_pass)
    assert fused
    monkeypatch.setattr(blocks, "fits", lambda maps, weight, dtype: False)
    theirs = meta_step(algorithm, tasks_per_pass)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], atol=1e-10, rtol=1e-10)


def test_meta_gradient_in_float32() -> None:
    ours = meta_step(algorithm_of("maml", torch.float32, inner_lr=ALL, inner_steps=2), 1)
    exact = meta_step(algorithm_of("maml", inner_lr=ALL, inner_steps=2), 1)
    for key, value in ours.items():
        assert (value - exact[key]).norm() <= 1e-4 * exact[key].norm(), key


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, for kernels that are compiled in a moment: without optimisation."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "_BASIC", ("-std=gnu11", "-O0", "-Wno-psabi", "-shared", "-fPIC"))
    native.kernels.cache_clear()
    return tmp_path / "metazoo"


@pytest.fixture(autouse=True)
def forget() -> Any:
    yield
    native.kernels.cache_clear()


def test_compiled_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.kernels(torch.float32) is not None
    (compiled,) = cache.iterdir()
    native.kernels.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("compiled again"))
        assert native.kernels(torch.float32) is not None
    # A damaged file, in a folder of its own: the loader remembers what it has opened under one name.
    damaged = cache.parent / "other" / "metazoo" / compiled.name
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"not a library")
    monkeypatch.setenv("XDG_CACHE_HOME", str(damaged.parent.parent))
    native.kernels.cache_clear()
    assert native.kernels(torch.float32) is not None
    assert list(damaged.parent.iterdir()) == [damaged] and damaged.read_bytes() == compiled.read_bytes()


def test_what_a_compiler_cannot_do_is_not_tried_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_ATTEMPTS", (("--no-such-flag",), ()))
    assert native.kernels(torch.float32) is not None
    native.kernels.cache_clear()
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("compiled again"))
    assert native.kernels(torch.float32) is not None


@pytest.mark.parametrize("hindrance", ["switched off", "no compiler", "compiler fails", "no type"])
def test_no_kernels(cache: Path, monkeypatch: pytest.MonkeyPatch, hindrance: str) -> None:
    dtype = torch.float32
    if hindrance == "switched off":
        monkeypatch.setenv("METAZOO_NATIVE", "off")
    elif hindrance == "no compiler":
        monkeypatch.setenv("PATH", "")
        monkeypatch.delenv("CC", raising=False)
    elif hindrance == "compiler fails":
        monkeypatch.setattr(native, "_BASIC", ("--no-such-flag",))
    else:
        dtype = torch.float16
    assert native.kernels(dtype) is None
    assert not cache.exists()


def test_an_unwritable_cache_is_no_hindrance(cache: Path) -> None:
    cache.parent.mkdir(exist_ok=True)
    cache.write_text("a file where the folder should be")
    assert native.kernels(torch.float32) is not None
