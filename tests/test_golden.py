"""Golden numbers made with published code (float64): losses, logits and meta-gradients of MAML and its relatives."""

from __future__ import annotations

import pytest
import torch
from goldens import (
    CASES,
    RELU,
    auxiliary,
    backbone_names,
    build,
    check_gradients,
    check_logits,
    check_losses,
    close,
    episodes,
    family_mlp,
)
from torch import Tensor

from metazoo.algorithm import Algorithm
from metazoo.testing import trace

ALL = {"body": 0.5, "norm": 0.5, "head": 0.5}
FAMILY = {"inner_steps": 3, "inner_lr": {"body": 0.05, "head": 0.05}}
AUXILIARY = {"l2f": "attenuator", "cxgrad": "scaler"}


def build_family(name: str, settings: dict, **backbone: object) -> Algorithm:
    algorithm = build(name, FAMILY | settings, **backbone)
    if name in AUXILIARY:
        family_mlp(getattr(algorithm, AUXILIARY[name]))
    return algorithm


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
    algorithm = build_family(name, settings, **backbone)
    result = trace(algorithm, episodes())
    check_losses(result, CASES[case])
    names = backbone_names(algorithm.backbone)
    if name in AUXILIARY:
        own = [parameter for parameter in result.meta_gradients if parameter.startswith(AUXILIARY[name])]
        names |= dict(zip(("mlp.W1", "mlp.b1", "mlp.W2", "mlp.b2"), own, strict=True))
    # The context is a difference of nearly cancelling terms, and W1's gradient is proportional to it.
    loose = {"mlp.W1": 1e-4} if name == "cxgrad" else {}
    check_gradients(result, CASES[case], names, zero=1e-15, loose=loose)


def test_l2f_intermediates() -> None:
    algorithm = build_family("l2f", {})
    seen: list[Tensor] = []
    algorithm.attenuator.register_forward_hook(lambda module, inputs, output: seen.extend((*inputs, output)))
    trace(algorithm, episodes())
    embedding, factors = seen
    golden = CASES["l2f"]["intermediates"]
    close(embedding[0], golden["embedding"], absolute=1e-10)
    close(factors[0], golden["factors"], absolute=1e-10, relative=0)
    assert len(seen) == 2, "the attenuator is called once per task"


def test_cxgrad_intermediates() -> None:
    algorithm = build_family("cxgrad", {"context_size": 5})
    contexts: list[Tensor] = []
    factors: list[Tensor] = []

    def record(module: torch.nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        contexts.append(inputs[0][0])
        factors.append(output[0])

    algorithm.scaler.register_forward_hook(record)
    result = trace(algorithm, episodes())
    golden = CASES["cxgrad"]["intermediates"]
    close(factors[0], golden["factors_before_first_step"], absolute=1e-10, relative=0)
    assert not contexts[0].any(), "the context starts at zero"
    final = result.adapted["context"][0]
    norms = torch.stack([context.norm() for context in (*contexts[1:], final)])
    close(norms, golden["context_norms"], relative=1e-4)
    close(final, golden["final_context"], relative=1e-4)


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


@pytest.mark.parametrize("case", OTHER_CASES)
def test_the_relu_family(case: str) -> None:
    name, settings = OTHER_CASES[case]
    algorithm = build(name, settings, **RELU)
    names = backbone_names(algorithm.backbone)
    if name == "metasgd":
        for k, rates in enumerate(algorithm.rates):
            rates.data.copy_(auxiliary(rates.shape, k, amplitude=0.06, offset=0.04))
        names |= {f"lr.{tensor}": f"rates.{k}" for k, tensor in enumerate(names)}
    result = trace(algorithm, episodes())
    check_losses(result, CASES[case])
    check_logits(result, CASES[case])
    check_gradients(result, CASES[case], names)
