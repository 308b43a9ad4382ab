"""Methods on a tiny network in float64, and how their traces are compared."""

from __future__ import annotations

import torch

from metazoo import registry
from metazoo.algorithm import Algorithm
from metazoo.backbones import Conv4
from metazoo.testing import Trace, tiny_algorithm

SCALE_FREE = Conv4.Settings(filters=4, norm_eps=1e-30)
CONVS = [f"body.block{n}.conv.weight" for n in range(1, 5)]


def make(name: str, backbone: Conv4.Settings | None = None, **settings: object) -> Algorithm:
    method = registry.algorithm(name)
    return tiny_algorithm(method, method.Settings(**settings), backbone)


def assert_same(first: Trace, second: Trace, gradients: bool = True, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(first.query_losses, second.query_losses, atol=tolerance, rtol=0)
    if gradients:
        for name, gradient in second.meta_gradients.items():
            torch.testing.assert_close(first.meta_gradients[name], gradient, atol=tolerance, rtol=0)


def set_weights(algorithm: Algorithm, factors: dict[str, float]) -> None:
    with torch.no_grad():
        for name, factor in factors.items():
            algorithm.backbone.get_parameter(name).mul_(factor)
