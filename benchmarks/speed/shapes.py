"""The shapes of episodes that speed is measured on, and noise in them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metazoo.episodes import Episodes


@dataclass(frozen=True)
class Shape:
    """An episode's shape as the benchmark of that name has it."""

    name: str
    channels: int
    size: int
    filters: int
    shots: int
    ways: int = 5
    queries: int = 15


SHAPES = (
    Shape("omniglot", 1, 28, 64, 1),
    Shape("cifar_fs", 3, 32, 48, 1),
    Shape("cifar_fs", 3, 32, 48, 5),
    Shape("miniimagenet", 3, 84, 48, 1),
    Shape("miniimagenet", 3, 84, 48, 5),
)


def episodes_of(shape: Shape, tasks: int, device: torch.device) -> Episodes:
    """Seeded noise in the shape of real episodes."""
    generator = torch.Generator().manual_seed(0)

    def draw(each: int) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.rand(tasks, shape.ways * each, shape.channels, shape.size, shape.size, generator=generator)
        return images.to(device), torch.arange(shape.ways).repeat(each).expand(tasks, -1).contiguous().to(device)

    support_x, support_y = draw(shape.shots)
    query_x, query_y = draw(shape.queries)
    return Episodes(support_x, support_y, query_x, query_y, shape.ways)
