"""What a method costs: what it learns, how often it runs the network for a task, and the arithmetic of that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from metazoo import backbones
from metazoo.algorithm import Algorithm
from metazoo.backbones import Conv4
from metazoo.episodes import Episodes
from metazoo.fast import native


@dataclass(frozen=True)
class Cost:
    """The cost of one method on one backbone and shape of episode."""

    backbone_parameters: int
    """Scalars learned in the network itself, whatever the method made of it."""
    own_parameters: int
    """Scalars learned beside it."""
    support_passes: int
    """Forward passes over a task's support set in training."""
    query_passes: int
    """Forward passes over a task's query set in training; passes over both sets at once are counted here."""
    training_gflop: float
    """Billions of multiplications and additions in convolutions and matrix products for one training task: forward,
    backward and double backward."""
    test_gflop: float
    """The same for predicting one test task."""

    @property
    def parameters(self) -> int:
        """Scalars the outer loop learns."""
        return self.backbone_parameters + self.own_parameters


def measure(
    method: type[Algorithm],
    settings: Algorithm.Settings | None = None,
    backbone: backbones.AnySettings | None = None,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    size: int = 84,
) -> Cost:
    """Count what one task costs, by running one on RGB noise.

    What is counted is the arithmetic of the network as it is written down: what this machine's kernels save is their
    own. Raises Incompatible where the method cannot work on the backbone.
    """
    with torch.random.fork_rng(devices=[]), native.set_aside():
        torch.manual_seed(0)
        network = backbones.create(backbone or Conv4.Settings(), (3, size, size), ways)
        algorithm = method(network, settings)
        episodes = _noise(ways, shots, queries, size)
        with _passes(algorithm.backbone.body) as passes, Arithmetic() as training:
            algorithm.learn(episodes).losses.sum().backward()
        with Arithmetic() as test:
            algorithm.predict(episodes)
    learned = sum(parameter.numel() for parameter in algorithm.parameters() if parameter.requires_grad)
    own = sum(parameter.numel() for parameter in algorithm.own_parameters())
    return Cost(
        backbone_parameters=learned - own,
        own_parameters=own,
        support_passes=passes.count(ways * shots),
        query_passes=len(passes) - passes.count(ways * shots),
        training_gflop=training.flop / 1e9,
        test_gflop=test.flop / 1e9,
    )


class Arithmetic(TorchDispatchMode):
    """Counts the multiplications and additions of convolutions and matrix products while it is entered.

    The formulas are torch's. Its own `FlopCounterMode` cannot stand `autograd.grad` at tensors that are not leaves.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flop = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.flop += formula(*args, **(kwargs or {}), out_val=result)
        return result


def _noise(ways: int, shots: int, queries: int, size: int) -> Episodes:
    def images(each: int) -> tuple[Tensor, Tensor]:
        return torch.rand(1, ways * each, 3, size, size), torch.arange(ways).repeat(each)[None]

    return Episodes(*images(shots), *images(queries), ways, torch.zeros(1, dtype=torch.int64))


@contextmanager
def _passes(body: nn.Module) -> Iterator[list[int]]:
    """Collect the number of images of every pass through the body."""
    sizes: list[int] = []
    hook = body.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    try:
        yield sizes
    finally:
        hook.remove()
