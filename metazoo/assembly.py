"""Putting together what a config names: the method on its backbone, and the episodes of a split on a device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from metazoo import backbones, registry
from metazoo.algorithm import Algorithm
from metazoo.config import RunConfig
from metazoo.data.store import Split, Store
from metazoo.episodes import EpisodeSampler, EpisodeStream, ImageTable
from metazoo.errors import Incompatible, UserError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of each channel of ImageNet, as torchvision's models use them."""

Moments = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation of each channel, in units of [0, 1]."""


def build(config: RunConfig, channels: int) -> Algorithm:
    """The method of a resolved config, freshly initialised from its seed.

    The backbone comes first from the generator, so all methods of one seed begin with the same weights.
    Raises Incompatible where method and backbone cannot work together.
    """
    assert config.size is not None, "the config is resolved"
    method = registry.algorithm(config.algorithm)
    if method.fixed_ways and config.training.ways not in (None, config.ways):
        raise Incompatible(
            f"{method.title} has one output a class, so it cannot train with {config.training.ways} ways and be tested "
            f"with {config.ways}; leave training.ways out."
        )
    torch.manual_seed(config.seed)
    backbone = backbones.create(config.backbone, (channels, config.size, config.size), config.ways)
    return registry.create(config.algorithm, backbone, config.settings)


def moments(config: RunConfig, channels: int, source: Moments) -> Moments | None:
    """What images are standardised with: those of the source (its training split), ImageNet's, or nothing."""
    if config.normalisation == "source":
        return source
    if config.normalisation == "imagenet":
        if channels != 3:
            raise UserError(
                f"Normalisation 'imagenet' is for RGB images and those of {config.source} are grey; "
                "use normalisation 'source' or 'none'."
            )
        return IMAGENET
    return None


def episodes(
    config: RunConfig,
    store: Store,
    split: str,
    seed: int,
    device: torch.device,
    channels: int,
    standard: Moments | None,
) -> EpisodeStream:
    """The episodes of one split for a network that takes `channels` channels, standardised.

    Grey images are repeated for a network that takes RGB; there is no way back, so RGB images for a network that takes
    grey are a UserError, as is a split that cannot supply such episodes.
    """
    images = store.split(split)
    ways = config.training.ways if split == "train" else None
    sampler = EpisodeSampler(images, ways or config.ways, config.shots, config.queries, seed)
    mean, std = standard or (None, None)
    if store.manifest.channels == channels:
        return EpisodeStream(sampler, ImageTable(images, device, mean=mean, std=std))
    if store.manifest.channels == 1:
        return EpisodeStream(sampler, RepeatedGrey(images, device, channels, mean, std))
    raise UserError(
        f"The run was trained on grey images ({config.source}) and {store.manifest.title} is in colour; "
        "evaluate it on a grey data set."
    )


class RepeatedGrey(ImageTable):
    """A table of grey images `[n, 1, H, W]` that gathers them as `[*, channels, H, W]`, each channel standardised."""

    def __init__(
        self,
        split: Split,
        device: torch.device,
        channels: int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ):
        super().__init__(split, device)
        self._mean = torch.tensor(mean or [0.0] * channels, device=device)[:, None, None]
        self._std = torch.tensor(std or [1.0] * channels, device=device)[:, None, None]

    def gather(self, rows: Tensor | np.ndarray) -> Tensor:
        """The images of `rows` (int64 of any shape [*]) as [*, channels, H, W]."""
        return (super().gather(rows) - self._mean) / self._std
