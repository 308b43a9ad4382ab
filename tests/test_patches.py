"""The first block on constant images, computed from their patches, against torch's own modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.nn import functional as F

from metazoo.backbones import Conv4
from metazoo.fast import blocks, native, patches

pytestmark = pytest.mark.skipif(native.kernels(torch.float64) is None, reason="there is no C compiler here")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain(images: Tensor, weight: Tensor, bias: Any, gamma: Tensor, beta: Tensor, **options: Any) -> Tensor:
    z = F.conv2d(images, weight, padding=options["padding"])
    z = torch.batch_norm(z, gamma, beta, None, None, True, 0.0, options["eps"], False)
    z = F.leaky_relu(z, options["slope"])
    return F.max_pool2d(z, 2) if options["side"] == 2 else z


def parameters(filters: int, channels: int) -> list[Tensor]:
    """Scales of both signs, one of them zero, so that all of its values tie."""
    gamma = random(filters, seed=2) * (torch.arange(filters) != 1)
    leaves = random(filters, channels, 3, 3, seed=1), gamma, random(filters, seed=3)
    return [tensor.requires_grad_() for tensor in leaves]


def options(padding: int = 1, slope: float = 0.01, side: int = 2) -> dict[str, Any]:
    return {"padding": padding, "eps": 1e-3, "slope": slope, "side": side, "dtype": torch.float64}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the kernels were asked for."""
    names: list[str] = []
    original = native.run
    monkeypatch.setattr(native, "run", lambda name, *rest: names.append(name) or original(name, *rest))
    return names


@pytest.mark.parametrize("filters", [16, 32, 48, 64, 80])
@pytest.mark.parametrize(
    ("shape", "padding", "slope", "side"),
    [((3, 3, 8, 8), 1, 0.01, 2), ((2, 1, 7, 9), 1, 0.0, 2), ((4, 5, 5, 3), 0, 0.01, 1), ((2, 3, 6, 7), 0, 0.01, 2)],
)
def test_to_the_second_derivative(
    calls: list[str], filters: int, shape: tuple[int, ...], padding: int, slope: float, side: int
) -> None:
    images, (weight, gamma, beta) = random(*shape), parameters(filters, shape[1])
    found = []
    for function in (blocks.block, plain):
        outputs = function(images, weight, None, gamma, beta, **options(padding, slope, side))
        given = random(*outputs.shape, seed=4).requires_grad_()
        first = grad((outputs.sin() * given).sum(), (weight, gamma, beta), create_graph=True)
        loss = sum((g * random(*g.shape, seed=5)).sum() for g in first)
        second = grad(loss, (weight, gamma, beta, given), materialize_grads=True)
        found.append((outputs, *first, *second))
    assert set(calls) == {"patches_moments", "patches_forward", "patches_backward", "patches_second"}
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)


def test_gradcheck() -> None:
    images, leaves = random(2, 2, 4, 5), parameters(16, 2)
    leaves[1].data[1] = 0.5  # a scale of zero has no derivative: its values tie

    def forward(weight: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return patches.block(images, weight, gamma, beta, **options())

    assert gradcheck(forward, leaves, fast_mode=True)
    assert gradgradcheck(forward, leaves, fast_mode=True)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_gradient_that_nobody_asks_for_has_no_cotangent(which: int) -> None:
    images, leaves = random(2, 3, 6, 6), parameters(16, 3)
    found = []
    for function in (blocks.block, plain):
        outputs = function(images, leaves[0], None, *leaves[1:], **options())
        (first,) = grad(outputs.sin().sum(), leaves[which], create_graph=True)
        found.append(grad((first * random(*first.shape, seed=5)).sum(), leaves, materialize_grads=True))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)


def test_a_third_derivative_is_refused() -> None:
    weight, gamma, beta = parameters(16, 3)
    outputs = blocks.block(random(2, 3, 6, 6), weight, None, gamma, beta, **options())
    (first,) = grad(outputs.pow(3).sum(), weight, create_graph=True)
    (second,) = grad(first.pow(2).sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="third derivative"):
        grad(second.sum(), weight)


def test_images_in_bfloat16_are_left_to_the_general_block() -> None:
    images, leaves = random(2, 3, 6, 6).bfloat16(), [leaf.detach().float() for leaf in parameters(16, 3)]
    outputs = blocks.block(images, leaves[0], None, *leaves[1:], **options() | {"dtype": torch.bfloat16})
    expected = plain(images.float(), leaves[0], None, *leaves[1:], **options())
    torch.testing.assert_close(outputs.float(), expected, atol=0.05, rtol=0.05)


def test_the_moments_are_those_of_the_unfolded_images() -> None:
    for channels in (1, 2, 3, 5):
        images = random(3, channels, 6, 7)
        unfolded = F.unfold(images, 3, padding=1).unflatten(1, (channels, 9)).transpose(1, 2).flatten(1, 2)
        each = unfolded.transpose(1, 2).flatten(0, 1)
        found = patches.patches_of(images, 1)
        mean = each.mean(dim=0) - images.mean(dim=(0, 2, 3)).repeat(9)
        torch.testing.assert_close(found.mean, mean, atol=1e-12, rtol=0)
        torch.testing.assert_close(found.covariance, each.T.cov(correction=0), atol=1e-12, rtol=0)


def test_float32_is_as_exact_as_torchs_modules() -> None:
    """On smooth images with a large mean, whose patches are nearly all alike (and no two pixels of a window tie)."""
    ramp = torch.linspace(0, 1, 32, dtype=torch.float64)
    images = 0.6 + 0.3 * ramp * ramp[:, None] + 0.01 * random(4, 3, 32, 32, seed=1)
    errors = []
    for function in (blocks.block, plain):
        gradients = []
        for dtype in (torch.float64, torch.float32):
            leaves = [leaf.detach().to(dtype).requires_grad_() for leaf in parameters(16, 3)]
            outputs = function(images.to(dtype), leaves[0], None, *leaves[1:], **options() | {"dtype": dtype})
            gradients.append(grad(outputs.square().sum(), leaves))
        errors.append(max((a - b).norm() / a.norm() for a, b in zip(*gradients, strict=True)))
    assert errors[0] <= errors[1]


def test_images_are_looked_at_once(calls: list[str]) -> None:
    images, (weight, gamma, beta) = random(2, 3, 6, 6), parameters(16, 3)

    def outputs(images: Tensor) -> Tensor:
        return blocks.block(images, weight, None, gamma, beta, **options())

    first = outputs(images)
    assert torch.equal(outputs(images[:]), first)  # another view of the same
    assert calls.count("patches_moments") == 1
    assert not torch.equal(outputs(images[:1]), first[:1])
    assert calls.count("patches_moments") == 2
    images.mul_(2).add_(1)
    torch.testing.assert_close(outputs(images), plain(images, weight, None, gamma, beta, **options()))
    assert calls.count("patches_moments") == 3
    with torch.inference_mode():
        outputs(images + 0)
        outputs(images + 1)
    assert calls.count("patches_moments") == 5


def test_images_that_are_gone_are_forgotten() -> None:
    weight, gamma, beta = parameters(16, 3)
    for seed in range(20):  # new images are likely to lie where old ones were
        images = random(2, 3, 6, 6, seed=seed)
        found = blocks.block(images, weight, None, gamma, beta, **options())
        torch.testing.assert_close(found, plain(images, weight, None, gamma, beta, **options()), atol=1e-10, rtol=0)
        del images


def test_only_a_networks_first_block_on_constant_images(calls: list[str]) -> None:
    network, images = Conv4((3, 16, 16), 3, Conv4.Settings(filters=16)).double(), random(2, 3, 16, 16)
    expected = network(images)
    assert calls.count("patches_forward") == 1 and calls.count("normalise_pool") == 3
    images.requires_grad_()
    torch.testing.assert_close(network(images), expected, atol=1e-10, rtol=0)
    assert calls.count("patches_forward") == 1 and calls.count("normalise_pool") == 7
