"""Every form of a stacked convolution against one convolution a task, and the methods' meta-steps with each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.func import vmap
from torch.nn import functional as F

from metazoo import registry
from metazoo.algorithm import Algorithm
from metazoo.backbones import Conv4, ResNet12, create
from metazoo.errors import UserError
from metazoo.fast import blocks, compiled, forms, trials
from metazoo.fast.convolution import Conv2d, convolve
from metazoo.learner import Learner
from metazoo.testing import tiny_algorithm, tiny_episodes

FORMS = ["grouped", "grouped_channels_last", "looped", "looped_channels_last", "unfolded"]
SHAPES = [
    ((3, 2, 4, 6, 5), (3, 5, 4, 3, 3), 1),
    ((2, 3, 2, 5, 7), (2, 3, 2, 3, 3), 0),
    ((2, 2, 3, 4, 4), (2, 4, 3, 1, 1), 0),
]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("METAZOO_CONVOLUTION", request.param)
    return request.param


def each_task(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    return torch.stack([F.conv2d(maps, own, padding=padding) for maps, own in zip(x, weight, strict=True)])


def orders(maps: Tensor) -> list[Tensor]:
    """The same maps in several orders of memory."""
    return [
        maps,
        maps.transpose(0, 1).contiguous().transpose(0, 1),
        maps.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3),
    ]


@pytest.mark.parametrize(("of_maps", "of_weight", "padding"), SHAPES)
def test_operations_are_those_of_each_task(
    form: str, of_maps: tuple[int, ...], of_weight: tuple[int, ...], padding: int
) -> None:
    x, weight = random(*of_maps).requires_grad_(), random(*of_weight, seed=1).requires_grad_()
    y = each_task(x, weight, padding)
    g = random(*y.shape, seed=2)
    dx, dw = grad(y, (x, weight), g)
    with torch.no_grad():
        for maps, gradient in zip(orders(x), orders(g), strict=True):
            torch.testing.assert_close(forms.forward(maps, weight, padding), y, atol=1e-12, rtol=0)
            torch.testing.assert_close(forms.of_maps(gradient, weight, padding), dx, atol=1e-12, rtol=0)
            torch.testing.assert_close(forms.of_weight(gradient, maps, weight, padding), dw, atol=1e-12, rtol=0)


@pytest.mark.parametrize("stacked", [(0, 0), (0, None), (None, 0), (1, 0)])
def test_derivatives(form: str, stacked: tuple[int | None, int | None]) -> None:
    x, weight = random(2, 2, 3, 4, 3), random(2, 2, 3, 3, 3, seed=1)
    inputs = tuple(
        (tensor[0] if dim is None else tensor.movedim(0, dim)).detach().requires_grad_()
        for tensor, dim in zip((x, weight), stacked, strict=True)
    )
    function = vmap(partial(convolve, padding=1), in_dims=stacked)
    assert gradcheck(function, inputs, fast_mode=True)
    assert gradgradcheck(function, inputs, fast_mode=True)


def test_a_third_derivative_of_one_task(form: str) -> None:
    x, weight = random(2, 2, 4, 5).requires_grad_(), random(3, 2, 3, 3, seed=1).requires_grad_()
    found: list[list[Tensor]] = []
    for function in (convolve, lambda x, w, padding: F.conv2d(x, w, padding=padding)):
        loss = function(x, weight, 1).sin().sum()
        found.append([])
        for _ in range(3):
            of_x, of_weight = grad(loss, (x, weight), create_graph=True)
            found[-1] += [of_x, of_weight]
            loss = of_x.sin().sum() + of_weight.sin().sum()
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-10)


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The groups of every convolution forward, and of every gradient at maps."""
    seen: list[int] = []

    def watch(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        seen.append(arguments[-1])
        return function(*arguments)

    for name in ("conv2d", "conv_transpose2d"):
        monkeypatch.setattr(forms.F, name, partial(watch, getattr(F, name)))
    return seen


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_tasks_that_share_a_weight_are_one_task(groups: list[int], dtype: torch.dtype) -> None:
    """As in the first inner step, where every task has a gradient of its own all the same."""
    shared, x = random(4, 3, 3, 3, seed=1), random(2, 5, 3, 6, 6)
    weight, own = shared.expand(2, -1, -1, -1, -1).requires_grad_(), shared.repeat(2, 1, 1, 1, 1).requires_grad_()
    function = vmap(partial(convolve, padding=1))
    x = x.to(dtype).requires_grad_()
    ours, theirs = function(x, weight), function(x, own)
    assert groups == [1, 2] and ours.dtype == dtype
    found = [grad(y.square().sum(), (x, w), create_graph=True) for y, w in ((ours, weight), (theirs, own))]
    assert groups == [1, 2, 1, 2]
    for mine, other in zip(*found, strict=True):
        assert mine.shape == other.shape and mine.dtype == other.dtype
        torch.testing.assert_close(mine, other, atol=1e-10 if dtype == torch.float64 else 0.2, rtol=1e-10)


def test_constant_images_have_no_gradient(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    asked: list[int] = []
    original = forms.of_maps
    monkeypatch.setattr(forms, "of_maps", lambda *arguments: asked.append(1) or original(*arguments))
    x, weight = random(2, 2, 3, 6, 6), random(2, 4, 3, 3, 3, seed=1).requires_grad_()
    (first,) = grad(vmap(partial(convolve, padding=1))(x, weight).square().sum(), weight, create_graph=True)
    grad(first.square().sum(), weight)
    assert not asked


def test_every_form_is_tried_that_makes_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[str, ...]] = []

    def choose(subject: str, facts: Any, ways: dict[str, Callable[[], Tensor]], default: str, device: Any) -> str:
        first, *others = (way() for way in ways.values())
        for other in others:
            torch.testing.assert_close(other, first)
        tried.append((facts[0], *ways))
        assert default in ways
        return default

    monkeypatch.setattr(trials, "choose", choose)
    for tasks in (2, 1):
        x, weight = random(tasks, 2, 3, 6, 6).requires_grad_(), random(tasks, 4, 3, 3, 3, seed=1).requires_grad_()
        vmap(partial(convolve, padding=1))(x, weight).square().sum().backward()
    assert [seen for seen, *_ in tried] == ["forward", "of_maps", "of_weight"] * 2
    assert [len(seen) - 1 for seen in tried] == [5, 5, 5, 3, 3, 3]


def test_a_form_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAZOO_CONVOLUTION", "groupd")
    with pytest.raises(UserError, match=r"METAZOO_CONVOLUTION.*did you mean 'grouped'"):
        convolve(random(1, 1, 4, 4), random(1, 1, 3, 3), 1)


def test_a_module_with_a_bias(form: str) -> None:
    module = Conv2d(3, 4, 3, padding=1).double()
    images = random(2, 5, 3, 6, 6)
    torch.testing.assert_close(vmap(module)(images), torch.stack([super(Conv2d, module).forward(x) for x in images]))


def meta_step(algorithm: Algorithm) -> dict[str, Tensor]:
    """Of three tasks in one pass."""
    algorithm.zero_grad()
    outcome = algorithm.learn(tiny_episodes(3))
    outcome.losses.sum().backward()
    gradients = {n: p.grad.clone() for n, p in algorithm.named_parameters() if p.grad is not None}
    return gradients | {"losses": outcome.losses.detach(), "predictions": algorithm.predict(tiny_episodes(3))}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], atol=1e-10, rtol=1e-10)


@pytest.fixture
def plainly(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Algorithm], dict[str, Tensor]]]:
    """The meta-step of torch's own modules, one by one."""

    def step(algorithm: Algorithm) -> dict[str, Tensor]:
        with monkeypatch.context() as patch:
            patch.delenv("METAZOO_CONVOLUTION", raising=False)
            patch.delenv("METAZOO_BLOCK", raising=False)
            patch.setattr(blocks, "fits", lambda *_: False)
            return meta_step(algorithm)

    yield step


@pytest.mark.parametrize(
    ("form", "way", "name"),
    [(form, "eager", name) for form in FORMS for name in ("cxgrad", "maml")]
    + [("looped", "modules", name) for name in ("anil", "cxgrad", "maml")],
)
def test_meta_steps_are_the_plain_networks(
    monkeypatch: pytest.MonkeyPatch, plainly: Any, form: str, way: str, name: str
) -> None:
    monkeypatch.setenv("METAZOO_CONVOLUTION", form)
    monkeypatch.setenv("METAZOO_BLOCK", way)
    method: Any = registry.algorithm(name)
    algorithm = tiny_algorithm(method, method.Settings(inner_steps=2))
    same(meta_step(algorithm), plainly(algorithm))


@pytest.mark.parametrize("name", ["cxgrad", "maml"])
def test_a_first_meta_step_with_all_its_trials(monkeypatch: pytest.MonkeyPatch, plainly: Any, name: str) -> None:
    """Every way is gone in the middle of the pass, forwards and backwards; each question is answered differently."""
    asked: list[str] = []

    def choose(subject: str, facts: Any, ways: dict[str, Callable[[], object]], default: str, device: Any) -> str:
        asked.append(f"{subject} {facts[0]}")
        for way in ways.values():
            way()
        return list(ways)[len(asked) % len(ways)]

    monkeypatch.setattr(trials, "choose", choose)
    monkeypatch.setattr(blocks, "_on_kernels", lambda maps: False)
    monkeypatch.setattr(compiled, "available", lambda device: False)
    method: Any = registry.algorithm(name)
    algorithm = tiny_algorithm(method, method.Settings(inner_steps=2))
    found = meta_step(algorithm)
    assert {"convolution forward", "convolution of_maps", "convolution of_weight"} < set(asked)
    assert "block torch.float64" in asked
    same(found, plainly(algorithm))


def test_resnets_convolutions_run_in_the_form(form: str) -> None:
    network = create(ResNet12.Settings(), (3, 8, 8), 2).double()
    learner = Learner(network, network.roles())
    images = replace(tiny_episodes(2, size=8, shots=1, queries=1)).support_x
    torch.testing.assert_close(learner.clone(2).module(images), torch.stack([network(task) for task in images]))


def test_convolutions_of_changed_blocks_run_in_the_form(monkeypatch: pytest.MonkeyPatch, plainly: Any) -> None:
    """A block that somebody looks into runs module by module; its convolution still is one of ours."""
    monkeypatch.setenv("METAZOO_CONVOLUTION", "unfolded")
    monkeypatch.setenv("METAZOO_BLOCK", "eager")
    method: Any = registry.algorithm("maml")
    algorithm = tiny_algorithm(method, method.Settings(inner_steps=1), Conv4.Settings(filters=4, conv_bias=True))
    calls: list[int] = []
    original = forms.forward
    monkeypatch.setattr(forms, "forward", lambda *arguments: calls.append(1) or original(*arguments))
    meta_step(algorithm)
    before = len(calls)
    for block in list(algorithm.backbone.body)[:4]:
        block.norm.register_forward_hook(lambda module, inputs, output: None)
    calls.clear()
    found = meta_step(algorithm)
    assert len(calls) >= before > 0
    same(found, plainly(algorithm))
