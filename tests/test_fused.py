"""Norm, pool and activation as one function of torch's operations, compiled or not, against torch's modules."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.func import vmap
from torch.nn import functional as F

from metazoo.backbones import Conv4, ConvBlock
from metazoo.errors import UserError
from metazoo.fast import blocks, compiled, derivatives, trials
from metazoo.fast.fused import COMPILED, EAGER, NormalisePool, Passes

EPS = 1e-3
SHAPES = [(3, 4, 6, 8), (2, 4, 5, 7), (2, 3, 4, 4, 5), (1, 4, 2, 2)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(shape: tuple[int, ...], ties: bool = False) -> list[Tensor]:
    """Maps, scales of both signs (with ties, one of them zero) and shifts."""
    maps, channels = random(*shape), (*shape[:-4], shape[-3])
    gamma, beta = random(*channels, seed=1), random(*channels, seed=2)
    if ties:
        maps, gamma[..., 1] = torch.where(maps > 0, maps.round(), maps.round() / 2), 0
    return [tensor.requires_grad_() for tensor in (maps, gamma, beta)]


def ours(passes: Passes, slope: float, side: int) -> Callable[..., Tensor]:
    return lambda z, gamma, beta: NormalisePool.apply(z, gamma, beta, EPS, slope, side, passes)


def modules(slope: float, side: int, z: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """In the published order, of one task or several."""
    if z.dim() == 5:
        return torch.stack([modules(slope, side, *task) for task in zip(z, gamma, beta, strict=True)])
    maps = F.leaky_relu(F.batch_norm(z, None, None, gamma, beta, training=True, eps=EPS), slope)
    return F.max_pool2d(maps, side) if side > 1 else maps


def derivatives_of(function: Callable[..., Tensor], given: list[Tensor], wanted: slice = slice(None)) -> list[Tensor]:
    y = function(*given)
    weight = random(*y.shape, seed=3).to(y.dtype).requires_grad_()
    first = grad((y.sin() * weight).sum(), given, create_graph=True)
    loss = sum((g * random(*g.shape, seed=4).to(g.dtype)).sum() for g in first[wanted])
    return [y, *first, *grad(loss, [*given, weight], materialize_grads=True)]


@pytest.mark.parametrize("slope", [0.0, 0.01])
@pytest.mark.parametrize("side", [1, 2])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_to_the_second_derivative(shape: tuple[int, ...], ties: bool, side: int, slope: float) -> None:
    given = inputs(shape, ties)
    expected = derivatives_of(partial(modules, slope, side), given)
    for way in (
        ours(EAGER, slope, side),
        lambda z, gamma, beta: blocks.WAYS["modules"](z, gamma, beta, EPS, slope, side),
    ):
        for mine, other in zip(derivatives_of(way, given), expected, strict=True):
            torch.testing.assert_close(mine, other, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("wanted", [slice(0, 1), slice(1, 2), slice(2, 3), slice(0, 2), slice(1, 3)])
def test_second_derivatives_of_a_part_of_the_gradient(wanted: slice) -> None:
    given = inputs((2, 3, 4, 4, 5))
    expected = derivatives_of(partial(modules, 0.01, 2), given, wanted)
    for mine, other in zip(derivatives_of(ours(EAGER, 0.01, 2), given, wanted), expected, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 2, 2, 5, 4)])
def test_gradcheck(shape: tuple[int, ...]) -> None:
    given = tuple(inputs(shape))
    assert gradcheck(ours(EAGER, 0.01, 2), given)
    assert gradgradcheck(ours(EAGER, 0.01, 2), given, fast_mode=True)


def test_a_large_mean_costs_no_precision() -> None:
    z, gamma, beta = (tensor.detach() for tensor in inputs((4, 3, 8, 8)))
    exact, *_ = derivatives.normalise_pool(z + 1000, gamma, beta, EPS, 0.01, 2)
    single, *_ = derivatives.normalise_pool((z + 1000).float(), gamma.float(), beta.float(), EPS, 0.01, 2)
    torch.testing.assert_close(single.double(), exact, atol=1e-3, rtol=0)


def test_what_is_not_a_number_stays_so() -> None:
    z, gamma, beta = inputs((2, 3, 4, 4))
    z = z.detach()
    z[1, 2, 3, 3] = torch.nan
    y = ours(EAGER, 0.0, 2)(z, gamma, beta)
    assert y[:, 2].isnan().all() and not y[:, :2].isnan().any()


def test_a_third_derivative_is_refused() -> None:
    given = inputs((2, 3, 4, 4))
    (first,) = grad(ours(EAGER, 0.01, 2)(*given).pow(3).sum(), given[0], create_graph=True)
    (second,) = grad(first.pow(2).sum(), given[0], create_graph=True)
    with pytest.raises(RuntimeError, match="third derivative"):
        grad(second.sum(), given[0])


def test_maps_stored_in_bfloat16() -> None:
    """What is stored is rounded, what is computed with is not."""
    z, gamma, beta = (tensor.detach().float() for tensor in inputs((2, 3, 4, 6, 6)))
    stored = z.bfloat16()
    y, code, mean, r = derivatives.normalise_pool(stored, gamma, beta, EPS, 0.01, 2)
    exact = derivatives.normalise_pool(stored.float(), gamma, beta, EPS, 0.01, 2)
    assert [tensor.dtype for tensor in (y, code, mean, r)] == [torch.bfloat16, torch.uint8] + [torch.float32] * 2
    assert torch.equal(y, exact[0].bfloat16()) and all(map(torch.equal, (code, mean, r), exact[1:]))
    dy = torch.ones_like(y)
    given = code, gamma, mean, r, 0.01, 2
    found, exact_gradient = (
        derivatives.backward(dy, stored, *given),
        derivatives.backward(dy.float(), stored.float(), *given),
    )
    assert torch.equal(found[0], exact_gradient[0].bfloat16()) and all(map(torch.equal, found[1:], exact_gradient[1:]))


def block_of(channels: int, **settings: Any) -> ConvBlock:
    torch.manual_seed(0)
    return ConvBlock(channels, Conv4.Settings(filters=4, norm_eps=EPS, **settings), 1, True).double()


@pytest.mark.parametrize("way", ["eager", "modules"])
def test_the_environment_fixes_the_way_of_a_block(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    block, images = block_of(3, conv_bias=True), random(2, 5, 3, 6, 6)
    expected = vmap(block)(images)
    taken: list[str] = []
    original = blocks.WAYS[way]
    monkeypatch.setitem(blocks.WAYS, way, lambda *arguments: taken.append(way) or original(*arguments))
    monkeypatch.setenv("METAZOO_BLOCK", way)
    torch.testing.assert_close(vmap(block)(images), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(block(images[0]), expected[0], atol=1e-12, rtol=0)
    assert taken == [way] * 2
    monkeypatch.setenv("METAZOO_BLOCK", "eagr")
    with pytest.raises(UserError, match="did you mean 'eager'"):
        block(images[0])


@pytest.mark.parametrize("graph", [False, True])
def test_what_is_tried(monkeypatch: pytest.MonkeyPatch, graph: bool) -> None:
    """Every way runs to the second derivative where there is a graph, whatever it is called with."""
    asked: list[Any] = []

    def choose(subject: str, facts: Any, ways: dict[str, Callable[[], None]], default: str, device: Any) -> str:
        asked.append((subject, facts[-1], default, [way() for name, way in ways.items() if name != "compiled"]))
        assert list(ways) == ["compiled", "eager", "modules"]
        return "eager"

    monkeypatch.setattr(trials, "choose", choose)
    seconds: list[int] = []

    def second(*tensors: Any, **numbers: Any) -> Any:
        seconds.append(1)
        return derivatives.second(*tensors, **numbers)

    watched = partial(blocks._by_passes, Passes(EAGER.forward, EAGER.backward, second))
    monkeypatch.setitem(blocks.WAYS, "eager", watched)
    monkeypatch.setattr(blocks, "_on_kernels", lambda maps: False)
    with torch.set_grad_enabled(graph):
        vmap(block_of(3))(random(2, 5, 3, 6, 6))
    assert asked == [("block", "with derivatives" if graph else "alone", "modules", [None, None])]
    assert len(seconds) == graph


def test_a_gpu_without_triton_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.utils._triton as triton

    for there in (True, False):
        monkeypatch.setattr(triton, "has_triton", lambda there=there: there)
        assert compiled.available(torch.device("cuda")) == there
        assert compiled.available(torch.device("cpu"))


def test_nothing_is_compiled_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "is_capturing", lambda device: True)
    monkeypatch.setattr(torch, "compile", lambda *a, **k: pytest.fail("compiled"))
    given = inputs((1, 2, 7, 7))
    assert torch.equal(ours(COMPILED, 0.01, 2)(*given), ours(EAGER, 0.01, 2)(*given))


@pytest.mark.parametrize(
    ("cause", "raised", "text"),
    [
        (
            RuntimeError("Failed to find C compiler. Please specify.\nMore."),
            UserError,
            r"\(Failed to find .* METAZOO_B",
        ),
        (torch.OutOfMemoryError("CUDA out of memory."), torch.OutOfMemoryError, "out of memory"),
    ],
)
def test_what_cannot_be_compiled_says_so(
    cause: Exception, raised: type[Exception], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*values: Any) -> None:
        raise cause

    monkeypatch.setattr(torch, "compile", lambda *a, **k: refusing)
    with pytest.raises(raised, match=text):
        ours(COMPILED, 0.01, 2)(*inputs((1, 2, 9, 9)))


def kinds_made() -> list[int]:
    functions: Any = COMPILED.forward, COMPILED.backward
    return [len(function._made) for function in functions]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU with g++, which is not here")
def test_compiled() -> None:
    """Once a kind, to the same numbers as uncompiled, to the second derivative; maps are stored in bfloat16."""
    given = [tensor.detach().float().requires_grad_() for tensor in inputs((2, 3, 4, 5, 6))]
    found = []
    for passes in (COMPILED, EAGER):
        function = ours(passes, 0.01, 2)
        found.append(derivatives_of(lambda z, *others, of=function: of(z.bfloat16(), *others), given))
    made = kinds_made()
    for mine, other in zip(*found, strict=True):
        assert mine.dtype == other.dtype and mine.stride() == other.stride()
        torch.testing.assert_close(mine, other, atol=1e-2, rtol=1e-2)
        assert (mine - other).norm() < 1e-3 * other.norm()  # a few values may be rounded to the other side
    with torch.no_grad():
        ours(COMPILED, 0.01, 2)(given[0].bfloat16(), *given[1:])
    assert kinds_made() == made
