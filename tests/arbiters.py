"""Meta-GNA with an Arbiter that has left its start, and how its numbers are compared."""

from __future__ import annotations

from typing import Any

import torch
from goldens import auxiliary
from torch import Tensor

from metazoo.algorithms.metagna import MetaGNA
from metazoo.backbones import Conv4
from metazoo.testing import tiny_algorithm


def make(backbone: Conv4.Settings | None = None, **settings: Any) -> MetaGNA:
    """With a head's bias and an Arbiter's last layer that are not zero any more; a norm has a kink at zero."""
    algorithm = tiny_algorithm(MetaGNA, MetaGNA.Settings(**settings), backbone)
    assert isinstance(algorithm, MetaGNA)
    algorithm.backbone.head.bias.data.copy_(auxiliary((3,), 0, amplitude=0.1))
    for k, parameter in enumerate(algorithm.arbiter.parameters()):
        parameter.data.copy_(auxiliary(parameter.shape, k, amplitude=0.2))
    return algorithm


def assert_same(found: Tensor | None, expected: Tensor | None, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
