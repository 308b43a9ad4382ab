"""The 3x3 convolution by Winograd's algorithm: its numbers and gradients; and kernels with vectors of every width."""

from __future__ import annotations

import platform

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from metazoo.errors import UserError
from metazoo.fast import native, winograd
from metazoo.fast.convolution import convolve

SHAPES = [
    (2, 16, 32, 5, 7, 1),
    (3, 48, 48, 16, 16, 1),
    (1, 32, 16, 6, 9, 0),
    (5, 64, 64, 3, 3, 1),
    (7, 80, 112, 1, 2, 1),
]
"""Images, channels, filters, height, width, padding."""

pytestmark = pytest.mark.skipif(native.kernels(torch.float32) is None, reason="there is no C compiler here")

_BACKWARD = torch.ops.aten.convolution_backward.default


def _drawn(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, int]:
    images, channels, filters, height, width, padding = shape
    generator = torch.Generator().manual_seed(0)
    sizes = [(images, channels, height, width), (filters, channels, 3, 3)]
    sizes.append((images, filters, height + 2 * padding - 2, width + 2 * padding - 2))
    x, weight, g = (torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes)
    last = torch.channels_last
    return x.contiguous(memory_format=last), weight, g.contiguous(memory_format=last), padding


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-14), (torch.float32, 1.5e-6)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_convolution_and_both_gradients_are_those_of_torch(
    shape: tuple[int, ...], dtype: torch.dtype, bound: float
) -> None:
    x, weight, g, padding = _drawn(shape, dtype)
    assert winograd.fits(x, weight)
    exact = x.double(), weight.double(), g.double()
    options = None, [1, 1], [padding, padding], [1, 1], False, [0, 0], 1, [True, True, False]
    dx, dw, _ = _BACKWARD(exact[2], exact[0], exact[1], *options)
    assert _error(winograd.convolve(x, weight, padding), torch.conv2d(exact[0], exact[1], None, 1, padding)) < bound
    assert _error(winograd.gradient_at_maps(g, weight, padding), dx) < bound
    assert _error(winograd.gradient_at_weight(g, x, padding), dw) < bound


def test_maps_in_bfloat16_are_multiplied_in_float32() -> None:
    """Off by no more than what storing the maps takes away; a gradient at the weight by nothing of that kind."""
    x, weight, g, padding = _drawn(SHAPES[1], torch.float32)
    x, g = x.bfloat16(), g.bfloat16()
    wide = x.float(), g.float()
    assert winograd.fits(x, weight)
    assert torch.equal(winograd.convolve(x, weight, padding), winograd.convolve(wide[0], weight, padding).bfloat16())
    turned = winograd.gradient_at_maps(wide[1], weight, padding).bfloat16()
    assert torch.equal(winograd.gradient_at_maps(g, weight, padding), turned)
    assert torch.equal(
        winograd.gradient_at_weight(g, x, padding), winograd.gradient_at_weight(wide[1], wide[0], padding)
    )


def test_derivatives_of_first_and_second_order_are_right() -> None:
    x, weight, _, _ = _drawn((1, 16, 16, 3, 4, 1), torch.float64)
    x.requires_grad_(), weight.requires_grad_()
    some = torch.arange(0, weight.numel(), 97)

    def function(x: Tensor, of_weight: Tensor) -> Tensor:
        return convolve(x, weight.detach().flatten().index_add(0, some, of_weight).view_as(weight), 1).tanh()

    inputs = x, torch.zeros(len(some), dtype=torch.float64, requires_grad=True)
    assert gradcheck(function, inputs, fast_mode=True)
    assert gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("shape", [(75, 48, 48, 16, 16, 1), (3, 16, 16, 4, 4, 1)], ids=str)
def test_the_number_of_threads_changes_no_bit(shape: tuple[int, ...]) -> None:
    x, weight, g, padding = _drawn(shape, torch.float32)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append((winograd.convolve(x, weight, padding), winograd.gradient_at_weight(g, x, padding)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, three) for one, three in zip(*found, strict=True))


def test_what_it_is_not_made_for_is_left_to_torch() -> None:
    x, weight, _, _ = _drawn((2, 16, 16, 5, 5, 1), torch.float32)
    assert winograd.fits(x, weight)
    assert not winograd.fits(x, weight[:, :, :1, :1])
    assert not winograd.fits(x, weight[:10])
    assert not winograd.fits(x.bfloat16(), weight.bfloat16())
    assert not winograd.fits(x, weight.double())
    assert not winograd.fits(x.to("meta"), weight.to("meta"))
    assert not winograd.fits(x, torch.empty(512, 512, 3, 3))
    with native.set_aside():
        assert not winograd.fits(x, weight)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have one width")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("march", ["x86-64", "x86-64-v3"])
def test_narrower_vectors_give_the_same_numbers(
    march: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all kernels: those for processors with vectors of 16 and 32 bytes, which run on this one, too."""
    if march == "x86-64-v3" and "avx2" not in native._processor().split():
        pytest.skip("this processor has no AVX2")
    monkeypatch.setenv("METAZOO_NATIVE", march)
    narrow = native.kernels.__wrapped__(dtype)
    assert narrow is not None
    wide = _of_a_network(dtype)
    monkeypatch.setattr(native, "kernels", lambda dtype: narrow)
    found = _of_a_network(dtype)
    assert all(
        _error(a, b.double()) < (1e-13 if dtype == torch.float64 else 1e-4) for a, b in zip(found, wide, strict=True)
    )


def test_a_processor_that_the_compiler_does_not_know_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAZOO_NATIVE", "z80")
    with pytest.raises(UserError, match="no kernels for the processor 'z80'"):
        native.kernels.__wrapped__(torch.float32)


def _of_a_network(dtype: torch.dtype) -> list[Tensor]:
    """Outputs, gradients and second derivatives of two blocks, the first on images."""
    from metazoo.fast.blocks import block

    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    images, first, second = drawn(3, 3, 9, 9), drawn(32, 3, 3, 3), drawn(16, 32, 3, 3) / 9
    weights = [first, second, 1 + drawn(32) / 9, drawn(32), 1 + drawn(16) / 9, drawn(16)]
    for weight in weights:
        weight.requires_grad_()
    options = {"padding": 1, "eps": 1e-5, "slope": 0.01, "side": 2, "dtype": dtype}
    maps = block(images, weights[0], None, weights[2], weights[3], **options)
    maps = block(maps, weights[1], None, weights[4], weights[5], **options)
    gradients = torch.autograd.grad((maps * drawn(*maps.shape)).sum(), weights, create_graph=True)
    again = torch.autograd.grad(sum((g * drawn(*g.shape)).sum() for g in gradients), weights[:-1])
    return [maps.detach(), *(g.detach() for g in gradients), *again]
