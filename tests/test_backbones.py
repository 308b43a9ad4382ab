"""Parameter counts, tensor order and batch-norm behaviour of the networks."""

from __future__ import annotations

import pytest
import torch

from metazoo.backbones import Conv4, ResNet12, create, parameter_count

COUNTS = [  # filters, conv bias, all trainable, adapted (body and head) at 84 pixels, 5-way
    (32, True, 32_901, 32_645),
    (48, False, 69_893, 69_509),
    (48, True, 70_085, 69_701),
    (64, False, 120_837, 120_325),
    (64, True, 121_093, 120_581),
    (128, True, 463_365, None),
    (512, True, 7_161_861, None),
]


@pytest.mark.parametrize(("filters", "bias", "total", "adapted"), COUNTS)
def test_conv4_counts(filters: int, bias: bool, total: int, adapted: int | None) -> None:
    network = create(Conv4.Settings(filters=filters, conv_bias=bias), (3, 84, 84), 5)
    assert parameter_count(network) == total
    assert network.head.in_features == 25 * filters
    if adapted is not None:
        roles = network.roles()
        sizes = dict.fromkeys(("body", "norm", "head"), 0)
        for name, parameter in network.named_parameters():
            sizes[roles[name]] += parameter.numel()
        assert sizes["body"] + sizes["head"] == adapted
        assert sizes["norm"] == 8 * filters


def test_resnet12_counts() -> None:
    network = create(ResNet12.Settings(), (3, 84, 84), 5)
    roles = network.roles()
    assert parameter_count(network) == 7_999_365
    assert sum(network.get_parameter(name).numel() for name, role in roles.items() if role == "body") == 7_989_120
    assert sum(network.get_parameter(name).numel() for name, role in roles.items() if role == "norm") == 7_680
    assert sum(role != "norm" for role in roles.values()) == 18
    assert [network.body[:n](torch.randn(2, 3, 84, 84)).shape[-1] for n in range(1, 5)] == [42, 21, 11, 11]


@pytest.mark.parametrize(("bias", "tensors"), [(False, 6), (True, 10)])
def test_tensor_order(bias: bool, tensors: int) -> None:
    roles = Conv4((3, 16, 16), 3, Conv4.Settings(filters=4, conv_bias=bias)).roles()
    adapted = [name for name, role in roles.items() if role != "norm"]
    kinds = ("weight", "bias") if bias else ("weight",)
    blocks = [f"body.block{n}.conv.{kind}" for n in range(1, 5) for kind in kinds]
    assert adapted == [*blocks, "head.weight", "head.bias"]
    assert len(adapted) == tensors


@pytest.mark.parametrize(("size", "features"), [(8, 1), (16, 1), (28, 1), (32, 4), (84, 25), (105, 36)])
def test_any_input_size(size: int, features: int) -> None:
    network = create(Conv4.Settings(filters=2), (1, size, size), 3)
    assert network.head.in_features == 2 * features
    assert network(torch.randn(4, 1, size, size)).shape == (4, 3)


def test_batch_statistics_whatever_the_mode() -> None:
    torch.manual_seed(0)
    for settings in (Conv4.Settings(filters=4), ResNet12.Settings()):
        network, images = create(settings, (3, 16, 16), 3), torch.randn(6, 3, 16, 16)
        training = network.train()(images)
        assert torch.equal(network.eval()(images), training)
        changed = torch.cat([images[:1], 2 * images[1:] + 1])
        assert not torch.allclose(network(changed)[0], training[0])
        assert not list(network.buffers())


def test_activation_after_pooling_equals_before() -> None:
    """The block pools before its increasing activation; the published order is the other way round."""
    torch.manual_seed(0)
    for activation in ("relu", "leaky_relu"):
        block = Conv4((3, 8, 8), 3, Conv4.Settings(filters=4, activation=activation)).body.block1.double()
        images = torch.randn(5, 3, 8, 8, dtype=torch.float64, requires_grad=True)
        results = [block(images), block.pool(block.activation(block.norm(block.conv(images))))]
        assert torch.equal(*results)
        first, second = (torch.autograd.grad(result.square().sum(), images)[0] for result in results)
        torch.testing.assert_close(first, second, atol=1e-14, rtol=0)


def test_initialisation() -> None:
    network = create(Conv4.Settings(filters=16, conv_bias=True), (3, 32, 32), 5)
    assert not network.body.block1.conv.bias.any() and not network.head.bias.any()
    assert (network.body.block2.norm.weight == 1).all() and not network.body.block2.norm.bias.any()
    bound = (6 / (16 * 9 + 16 * 9)) ** 0.5  # Xavier-uniform, gain 1
    largest = network.body.block2.conv.weight.abs().max().item()
    assert 0.95 * bound < largest <= bound


def test_slope() -> None:
    assert Conv4.activations["leaky_relu"]().negative_slope == 0.01
