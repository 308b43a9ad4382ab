"""Golden numbers made with published code (float64): losses, logits and meta-gradients of every method.

The setting is 3-way 1-shot with 2 queries a class on 16-pixel images, four blocks of 4 filters, weights and pixels
given by formulas. `golden/maml_family.json` holds the leaky-ReLU family (MAML, L2F, CxGrad),
`golden/other_methods.json` the ReLU one (ANIL, BOIL, Meta-SGD), where batch norm's scale and shift are adapted too.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metazoo import registry
from metazoo.algorithm import Algorithm
from metazoo.backbones import Conv4
from metazoo.episodes import Episodes
from metazoo.testing import Trace, trace

GOLDEN = Path(__file__).parent / "golden"
FAMILY = json.loads((GOLDEN / "maml_family.json").read_text())
OTHERS = json.loads((GOLDEN / "other_methods.json").read_text())
ALL = {"body": 0.5, "norm": 0.5, "head": 0.5}


def index(shape: torch.Size | tuple[int, ...]) -> Tensor:
    """The flat row-major index of every element."""
    return torch.arange(math.prod(shape), dtype=torch.float64).view(shape)


def episodes() -> Episodes:
    support, query = index((1, 3, 3, 16, 16)), index((1, 6, 3, 16, 16))
    return Episodes(
        0.5 + 0.5 * torch.sin(0.013 * support**2 + 0.1 * support),
        torch.tensor([[0, 1, 2]]),
        0.5 + 0.5 * torch.cos(0.017 * query**2 + 0.2 * query),
        torch.tensor([[0, 0, 1, 1, 2, 2]]),
        ways=3,
    )


def fill(algorithm: Algorithm) -> None:
    """Give the backbone and any auxiliary network the values of the golden setting."""
    backbone = algorithm.backbone
    roles = backbone.roles()
    adapted = [backbone.get_parameter(name) for name, role in roles.items() if role != "norm"]
    for number, parameter in enumerate(adapted):
        parameter.data.copy_(0.3 * torch.sin(0.7 * index(parameter.shape) + 1.3 * number + 0.5))
    norms = [backbone.get_parameter(name) for name, role in roles.items() if role == "norm"]
    for block in range(4):
        scale, shift = norms[2 * block : 2 * block + 2]
        scale.data.copy_(1 + 0.1 * torch.sin(index(scale.shape) + block))
        shift.data.copy_(0.1 * torch.cos(index(shift.shape) + block))
    formulas = [(torch.sin, 0.4, 0.9, 0.3), (torch.cos, 0.2, 1.1, 0.1), (torch.cos, 0.4, 0.8, 0.2)]
    formulas.append((torch.sin, 0.1, 1.7, 0.4))
    auxiliary = getattr(algorithm, "attenuator", getattr(algorithm, "scaler", None))
    if auxiliary is not None:
        for parameter, (wave, amplitude, slope, phase) in zip(auxiliary.parameters(), formulas, strict=True):
            parameter.data.copy_(amplitude * wave(slope * index(parameter.shape) + phase))
    for k, rates in enumerate(getattr(algorithm, "rates", []) if algorithm.name == "metasgd" else []):
        i = index(rates.shape).long()
        unit = 2 * ((37 * i * i + (101 + 10 * k) * i + 53 * k + 11) % 997).double() / 997 - 1
        rates.data.copy_(0.04 + 0.06 * unit)


def build(name: str, settings: dict, **backbone: object) -> Algorithm:
    method = registry.algorithm(name)
    network = Conv4((3, 16, 16), 3, Conv4.Settings(filters=4, **backbone)).double()
    algorithm = method(network, method.Settings(**settings)).double()
    fill(algorithm)
    return algorithm


def close(found: float | Tensor, expected: float, absolute: float = 1e-12, relative: float = 1e-8) -> None:
    assert float(torch.as_tensor(found).detach()) == pytest.approx(expected, abs=absolute, rel=relative)


def check_losses(result: Trace, golden: dict) -> None:
    assert result.support_losses.shape == (1, len(golden["support_losses"]))
    for found, expected in zip(result.support_losses[0], golden["support_losses"], strict=True):
        close(found, expected, absolute=1e-9, relative=0)
    close(result.meta_loss, golden["query_loss"], absolute=1e-9, relative=0)


FAMILY_CASES: dict[str, tuple[str, dict, dict]] = {
    "maml_no_bias": ("maml", {}, {}),
    "maml_no_bias_first_order": ("maml", {"first_order": True}, {}),
    "maml_bias": ("maml", {}, {"conv_bias": True}),
    "l2f": ("l2f", {}, {}),
    "cxgrad": ("cxgrad", {"context_size": 5}, {}),
    "cxgrad_first_order": ("cxgrad", {"context_size": 5, "first_order": True}, {}),
    "cxgrad_tiny_eps": ("cxgrad", {"context_size": 5}, {"norm_eps": 1e-30}),
}


@pytest.mark.parametrize("case", FAMILY_CASES)
def test_the_leaky_family(case: str) -> None:
    name, settings, backbone = FAMILY_CASES[case]
    shared = {"inner_steps": 3, "inner_lr": {"body": 0.05, "head": 0.05}}
    result = trace(build(name, shared | settings, **backbone), episodes())
    check_losses(result, FAMILY[case])
    auxiliary = "attenuator" if name == "l2f" else "scaler"
    names = {f"conv{n}.W": f"backbone.body.block{n}.conv.weight" for n in range(1, 5)}
    names |= {"head.W": "backbone.head.weight", "head.b": "backbone.head.bias"}
    names |= {"bn4.W": "backbone.body.block4.norm.weight"}
    names |= {
        f"mlp.{k}{n}": f"{auxiliary}.{2 * n - 2}.{w}" for n in (1, 2) for k, w in (("W", "weight"), ("b", "bias"))
    }
    for tensor, expected in FAMILY[case]["gradients"].items():
        gradient = result.meta_gradients[names[tensor]]
        assert gradient is not None
        # The context is a difference of nearly cancelling terms, and W1's gradient is proportional to it.
        cancels = tensor == "mlp.W1" and name == "cxgrad"
        close(gradient.norm(), expected, relative=1e-4 if cancels else 1e-8)
    if backbone.get("conv_bias"):
        for block in range(1, 5):
            bias = result.meta_gradients[f"backbone.body.block{block}.conv.bias"]
            assert bias is not None and bias.norm() < 1e-15


def test_l2f_intermediates() -> None:
    algorithm = build("l2f", {"inner_steps": 3, "inner_lr": {"body": 0.05, "head": 0.05}})
    seen: list[Tensor] = []
    algorithm.attenuator.register_forward_hook(lambda module, inputs, output: seen.extend((*inputs, output)))
    trace(algorithm, episodes())
    embedding, factors = seen
    expected = (3.31831377e-2, 1.11927944e-3, -1.40351827e-2, 1.07640646e-3, 0.0, 0.0)
    for found, value in zip(embedding[0], expected, strict=True):
        close(found, value, absolute=1e-10)
    expected = (0.5241140602, 0.5170810976, 0.4695577524, 0.4842021574, 0.5352876254, 0.5134001959)
    for found, value in zip(factors[0], expected, strict=True):
        close(found, value, absolute=1e-10, relative=0)
    assert len(seen) == 2, "the attenuator is called once per task"


def test_cxgrad_intermediates() -> None:
    algorithm = build("cxgrad", {"inner_steps": 3, "inner_lr": {"body": 0.05, "head": 0.05}, "context_size": 5})
    contexts: list[Tensor] = []
    factors: list[Tensor] = []

    def record(module: torch.nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        contexts.append(inputs[0][0])
        factors.append(output[0])

    algorithm.scaler.register_forward_hook(record)
    result = trace(algorithm, episodes())
    for found, value in zip(factors[0], (0.7616530552, 0.7212919195, 0.6374902669, 0.7082947689), strict=True):
        close(found, value, absolute=1e-10, relative=0)
    assert not contexts[0].any(), "the context starts at zero"
    final = result.adapted["context"][0]
    for context, norm in zip((*contexts[1:], final), (1.7926e-6, 3.5852e-6, 2.8604e-7, 2.7290e-6), strict=True):
        close(context.norm(), norm, relative=1e-4)
    for found, value in zip(final, (-9.60748e-7, 7.23736e-7, 1.860511e-6, 1.589288e-6, 1.15324e-7), strict=True):
        close(found, value, relative=1e-4)


OTHER_CASES = {
    "maml_all_tensors": ("maml", {"inner_steps": 1, "inner_lr": ALL}),
    "maml_all_tensors_fo": ("fomaml", {"inner_steps": 1, "inner_lr": ALL}),
    "anil": ("anil", {"inner_steps": 3, "inner_lr": {"head": 0.1}}),
    "anil_fo": ("anil", {"inner_steps": 3, "inner_lr": {"head": 0.1}, "first_order": True}),
    "anil_joint_bn": ("anil", {"inner_steps": 3, "inner_lr": {"head": 0.1}, "joint_batch_norm": True}),
    "boil": ("boil", {}),
    "boil_fo": ("boil", {"first_order": True}),
    "boil_multistep": ("boil", {"inner_steps": 3, "inner_lr": {"body": 0.2, "norm": 0.2}}),
    "metasgd": ("metasgd", {}),
    "metasgd_fo": ("metasgd", {"first_order": True}),
}


def parameter_name(tensor: str, order: list[str]) -> str:
    """`conv1.weight`, `bn1.bias`, `head.weight`, `lr.conv1.weight` in the names of our modules."""
    prefix, path = ("rates", tensor[3:]) if tensor.startswith("lr.") else ("backbone", tensor)
    module, kind = path.split(".")
    if module != "head":
        path = f"body.block{module[-1]}.{'norm' if module.startswith('bn') else 'conv'}.{kind}"
    return f"rates.{order.index(path)}" if prefix == "rates" else f"backbone.{path}"


@pytest.mark.parametrize("case", OTHER_CASES)
def test_the_relu_family(case: str) -> None:
    name, settings = OTHER_CASES[case]
    golden = OTHERS[case]
    algorithm = build(name, settings, conv_bias=True, activation="relu")
    result = trace(algorithm, episodes())
    check_losses(result, golden)
    torch.testing.assert_close(
        result.query_logits[0], torch.tensor(golden["query_logits"], dtype=torch.float64), atol=1e-9, rtol=0
    )
    order = list(algorithm.backbone.roles())
    for tensor, (norm, total) in golden["gradients"].items():
        gradient = result.meta_gradients[parameter_name(tensor, order)]
        assert gradient is not None, tensor
        if tensor in golden["zero"]:
            assert gradient.norm() < 1e-12
            continue
        close(gradient.norm(), norm)
        close(gradient.sum(), total, absolute=1e-8)
    expected = {parameter_name(tensor, order) for tensor in golden["gradients"]}
    assert {name for name, gradient in result.meta_gradients.items() if gradient is not None} == expected
