"""For tests of methods: everything one meta-step does, by name, and small episodes to do it on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metazoo.algorithm import Algorithm
from metazoo.backbones import Conv4
from metazoo.episodes import Episodes
from metazoo.objectives import task_losses
from metazoo.outer_step import OuterStep


@dataclass(frozen=True)
class Trace:
    """One meta-step of T tasks, as values without a graph."""

    support_losses: Tensor
    """`[T, passes]`, every support pass in order; `[T, 0]` for a method without any."""
    query_losses: Tensor
    """`[T]`, the query loss of each task after adaptation."""
    query_logits: Tensor
    """`[T, Q, N]`."""
    meta_loss: Tensor
    """Mean of the meta-losses over tasks, a scalar; the query losses' mean unless the method has others beside it."""
    meta_gradients: dict[str, Tensor | None]
    """Gradient of the meta-loss w.r.t. every meta-parameter by name; None where none arrives."""
    adapted: dict[str, Tensor]
    """The adapted tensors by name, `[T, ...]`."""


def trace(algorithm: Algorithm, episodes: Episodes, second_order: bool = True, outer: OuterStep | None = None) -> Trace:
    """Run one meta-step of `algorithm` on `episodes` and return all it computed; the algorithm is left as it was.

    `outer` says where in a training the step is; by default all schedules have run out.
    """
    outer = outer or OuterStep()
    outcome = algorithm.learn(episodes, outer if second_order else replace(outer, first_order=True))
    meta_loss = outcome.losses.mean()
    learned = {name: parameter for name, parameter in algorithm.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(meta_loss, list(learned.values()), allow_unused=True)
    losses = task_losses(outcome.logits.detach(), episodes.query_y)
    return Trace(
        support_losses=torch.stack(list(outcome.support_losses), dim=1)
        if len(outcome.support_losses)
        else losses.new_empty(len(losses), 0),
        query_losses=losses,
        query_logits=outcome.logits.detach(),
        meta_loss=meta_loss.detach(),
        meta_gradients=dict(zip(learned, gradients, strict=True)),
        adapted={name: weight.detach() for name, weight in outcome.adapted.items()},
    )


@contextmanager
def float64() -> Iterator[None]:
    """Make new tensors in float64: a rate of 0.05 made in float32 and converted later is off by 1e-9."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def tiny_episodes(
    tasks: int = 3, ways: int = 3, shots: int = 2, queries: int = 2, size: int = 16, seed: int = 0
) -> Episodes:
    """Seeded float64 episodes of RGB noise around one pattern per class, in an order that says nothing about labels."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    patterns = noise(tasks, ways, 3, size, size)

    def draw(each: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(ways).repeat(each)
        orders = torch.stack([labels[torch.randperm(len(labels), generator=generator)] for _ in range(tasks)])
        images = patterns.gather(1, orders[:, :, None, None, None].expand(-1, -1, 3, size, size))
        return images + noise(*images.shape), orders

    support_x, support_y = draw(shots)
    query_x, query_y = draw(queries)
    return Episodes(support_x, support_y, query_x, query_y, ways, torch.arange(tasks))


def tiny_algorithm(
    method: type[Algorithm],
    settings: Algorithm.Settings | None = None,
    backbone: Conv4.Settings | None = None,
    ways: int = 3,
    size: int = 16,
    seed: int = 0,
) -> Algorithm:
    """`method` in float64 on a Conv4 of 4 filters (or `backbone`) for `tiny_episodes`, seeded.

    Batch norm's scale and shift are moved off their initial values, so that no test passes because they are 1 and 0.
    """
    with torch.random.fork_rng(devices=[]), float64():
        torch.manual_seed(seed)
        network = Conv4((3, size, size), ways, backbone or Conv4.Settings(filters=4))
        for name, role in network.roles().items():
            if role == "norm":
                network.get_parameter(name).data.add_(0.2 * torch.rand_like(network.get_parameter(name)))
        return method(network, settings)
