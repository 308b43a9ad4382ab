"""The setting of the golden numbers and how a method is held against them; see `test_golden.py` for use.

Numbers were made with published code in float64: 3-way 1-shot with 2 queries a class on 16-pixel images, four blocks of
4 filters, weights and pixels given by formulas. `CASES` has them by name: `golden/maml_family.json` for the leaky-ReLU
family, `golden/other_methods.json` for the ReLU networks with convolution biases (`RELU`). A case's keys:

* `support_losses`, every support pass in order; `query_loss`; `meta_loss` where it is another number; `query_logits`;
* `gradients`, `{tensor: [norm, sum]}` of the meta-loss (the leaky-ReLU family has norms only), tensors named as in
  `backbone_names`, those of a method's own networks as its case has them;
* `zero`, tensors whose gradient is zero by structure, and `absent`, those that get none. A case with the key `absent`
  accounts for every tensor that has a gradient;
* `intermediates` and whatever else is known of the case (`query_losses_per_step`, `subnet_losses`, `co_only`, ...).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metazoo import registry
from metazoo.algorithm import Algorithm
from metazoo.backbones import Backbone, Conv4
from metazoo.episodes import Episodes
from metazoo.testing import Trace, float64

_FOLDER = Path(__file__).parent / "golden"
_FILES = [json.loads((_FOLDER / f"{name}.json").read_text()) for name in ("maml_family", "other_methods")]
CASES: dict[str, dict[str, Any]] = {name: case for file in _FILES for name, case in file.items()}
_LAYERS = (("conv", "conv"), ("bn", "norm"))
RELU = {"conv_bias": True, "activation": "relu"}
"""Backbone settings of `golden/other_methods.json`."""


def index(shape: tuple[int, ...]) -> Tensor:
    """The flat row-major index of every element of `shape`, float64."""
    return torch.arange(math.prod(shape), dtype=torch.float64).view(shape)


def episodes(size: int = 16) -> Episodes:
    """The one task, of images of `size` pixels; at 48, the pixels' index starts again every 2000."""
    support, query = index((1, 3, 3, size, size)), index((1, 6, 3, size, size))
    if size == 48:
        support, query = support % 2000, query % 2000
    return Episodes(
        0.5 + 0.5 * torch.sin(0.013 * support**2 + 0.1 * support),
        torch.tensor([[0, 1, 2]]),
        0.5 + 0.5 * torch.cos(0.017 * query**2 + 0.2 * query),
        torch.tensor([[0, 0, 1, 1, 2, 2]]),
        ways=3,
    )


def build(name: str, settings: Mapping[str, Any], size: int = 16, **backbone: object) -> Algorithm:
    """The method of that name in float64 on the golden backbone, changed by `backbone`; its own networks not filled."""
    method = registry.algorithm(name)
    with float64():
        algorithm = method(
            Conv4((3, size, size), 3, Conv4.Settings(filters=4, **backbone)), method.Settings(**settings)
        )
    fill_backbone(algorithm.backbone)
    return algorithm


def backbone_names(backbone: Backbone) -> dict[str, str]:
    """Our name of every golden tensor that a Conv4 has, in its order: `conv1.weight`, `bn1.weight`, `head.bias`, ..."""
    places = {f"{ours}{n}": f"body.block{n}.{layer}" for n in range(1, 5) for ours, layer in _LAYERS} | {"head": "head"}
    paths = {f"{place}.{kind}": f"{path}.{kind}" for place, path in places.items() for kind in ("weight", "bias")}
    present = {name for name, _ in backbone.named_parameters()}
    return {tensor: f"backbone.{path}" for tensor, path in paths.items() if path in present}


def fill_backbone(backbone: Backbone) -> None:
    """Give a Conv4, with or without head or convolution biases, its golden values; inserted modules keep theirs.

    Batch norm's tensors may be `[F]` or, with a row for each inner step, `[K, F]`.
    """
    adapted = 0
    for tensor, name in backbone_names(backbone).items():
        parameter = backbone.get_parameter(name.removeprefix("backbone."))
        i = index(parameter.shape)
        if tensor.startswith("bn"):
            block = int(tensor[2]) - 1
            values = 1 + 0.1 * torch.sin(i + block) if tensor.endswith("weight") else 0.1 * torch.cos(i + block)
        else:
            values = 0.3 * torch.sin(0.7 * i + 1.3 * adapted + 0.5)
            adapted += 1
        parameter.data.copy_(values)


def auxiliary(shape: tuple[int, ...], k: int, amplitude: float, offset: float | Tensor = 0.0) -> Tensor:
    """Golden values of the `k`-th tensor that a method of `golden/other_methods.json` has of its own."""
    i = index(shape).long()
    unit = 2 * ((37 * i * i + (101 + 10 * k) * i + 53 * k + 11) % 997).double() / 997 - 1
    return offset + amplitude * unit


def family_mlp(module: nn.Module) -> None:
    """Give a network of two linear layers (parameters in the order W1, b1, W2, b2) the leaky-ReLU family's values."""
    formulas = [(torch.sin, 0.4, 0.9, 0.3), (torch.cos, 0.2, 1.1, 0.1), (torch.cos, 0.4, 0.8, 0.2)]
    formulas.append((torch.sin, 0.1, 1.7, 0.4))
    for parameter, (wave, amplitude, slope, phase) in zip(module.parameters(), formulas, strict=True):
        parameter.data.copy_(amplitude * wave(slope * index(parameter.shape) + phase))


def close(
    found: float | Tensor, expected: Any, absolute: float = 1e-12, relative: float = 1e-8, what: str = "value"
) -> None:
    """Every number of `found` is within the larger of the two tolerances of that of `expected`, a number or list."""
    found = torch.as_tensor(found, dtype=torch.float64).detach()
    wanted = torch.as_tensor(expected, dtype=torch.float64)
    assert found.shape == wanted.shape, f"{what}: {tuple(found.shape)} is not {tuple(wanted.shape)}"
    within = (found - wanted).abs() <= (relative * wanted.abs()).clamp(min=absolute)
    assert within.all(), f"{what}: found {found.tolist()}, expected {wanted.tolist()}"


def check_losses(result: Trace, golden: Mapping[str, Any]) -> None:
    """The support losses, the meta-loss and, where that is another number, the query loss; to 1e-9."""
    close(result.support_losses, [golden["support_losses"]], absolute=1e-9, relative=0, what="support losses")
    close(result.meta_loss, golden.get("meta_loss", golden["query_loss"]), absolute=1e-9, relative=0, what="meta-loss")
    if "meta_loss" in golden:
        close(result.query_losses, [golden["query_loss"]], absolute=1e-9, relative=0, what="query loss")


def check_logits(result: Trace, golden: Mapping[str, Any]) -> None:
    """The query logits, to 1e-9."""
    close(result.query_logits, [golden["query_logits"]], absolute=1e-9, relative=0, what="query logits")


def check_gradients(
    result: Trace,
    golden: Mapping[str, Any],
    names: Mapping[str, str],
    zero: float = 1e-12,
    loose: Mapping[str, float] | None = None,
) -> None:
    """The meta-gradients: norms to a relative 1e-8, sums, structural zeros below `zero`, none that should be absent.

    `names` has our parameter's name for every golden tensor; `loose` has relative tolerances of norms that suffer from
    cancellation. Where the case accounts for every tensor, so must `names`.
    """
    zeros, absent = golden.get("zero", []), golden.get("absent", [])
    for tensor in [*golden["gradients"], *zeros]:
        gradient = result.meta_gradients[names[tensor]]
        assert gradient is not None, f"{tensor} has no gradient"
        if tensor in zeros:
            assert gradient.norm() < zero, f"{tensor}: its gradient's norm is {gradient.norm()}, not 0"
            continue
        norm, *total = golden["gradients"][tensor]
        close(gradient.norm(), norm, relative=(loose or {}).get(tensor, 1e-8), what=f"norm of {tensor}")
        for expected in total:
            close(gradient.sum(), expected, absolute=min(1e-8, max(1e-12, 1e-7 * norm)), what=f"sum of {tensor}")
    for tensor in absent:
        assert result.meta_gradients.get(names.get(tensor, "")) is None, f"{tensor} has a gradient"
    if "absent" in golden:
        known = {names[tensor] for tensor in [*golden["gradients"], *zeros]}
        others = {name for name, gradient in result.meta_gradients.items() if gradient is not None} - known
        assert not others, f"gradients that the golden case does not have: {sorted(others)}"
