"""Augmentation of training images: random crops, flips and colour jitter of whole batches, on their device."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field, NonNegativeInt, model_validator
from torch import Tensor

from metazoo.episodes import Episodes
from metazoo.placement import sent
from metazoo.prefetching import Stream
from metazoo.schema import Strict

LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in how bright a colour is (ITU-R BT.601)."""


DRAWN = ("down", "right", "mirrored", "brightness", "contrast", "saturation")
"""The random numbers of one image, whether they are all needed or not."""


class Augmentation(Strict):
    """What is done to every training image, support and query alike, each with random numbers of its own."""

    crop: NonNegativeInt = 0
    """Pixels of black border on every side, before a square of the old size is cut out at random."""
    flip: bool = False
    """Every other image is mirrored left to right."""
    jitter: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Brightness, contrast and saturation are multiplied, in this order, by factors in [1 - jitter, 1 + jitter]."""

    @model_validator(mode="after")
    def _does_something(self) -> Augmentation:
        if not (self.crop or self.flip or self.jitter):
            raise ValueError("an augmentation needs a crop, a flip or a jitter; leave it out for none")
        return self


class AugmentedStream:
    """The episodes of a stream of images in [0, 1], augmented and then standardised.

    What is drawn for an image depends on the run's `seed`, on the number of its episode and on its place there, so that
    a training that resumes, or goes on elsewhere, draws the same.
    """

    def __init__(self, stream: Stream, augmentation: Augmentation, seed: int, mean: Tensor, std: Tensor):
        self.stream, self.augmentation, self.seed = stream, augmentation, seed
        self.mean, self.std = mean[:, None, None], std[:, None, None]
        self.queries, self.place = stream.queries, stream.place

    def batch(self, start: int, count: int) -> Episodes:
        """Episodes `start` to `start + count - 1`, with other images than the stream's and the same labels."""
        episodes = self.stream.batch(start, count)
        return replace(
            episodes,
            support_x=self._augmented(episodes, episodes.support_x, "support"),
            query_x=self._augmented(episodes, episodes.query_x, "query"),
        )

    def _augmented(self, episodes: Episodes, images: Tensor, name: str) -> Tensor:
        tasks, each = images.shape[:2]
        purpose = f"augmentation of the {name} set, seed {self.seed}"
        numbers = episodes.uniform(each * len(DRAWN), purpose)
        numbers = sent(numbers, images.device)
        changed = augmented(images.flatten(0, 1), numbers.view(tasks * each, len(DRAWN)), self.augmentation)
        return changed.sub_(self.mean).div_(self.std).view_as(images)


def augmented(images: Tensor, numbers: Tensor, how: Augmentation) -> Tensor:
    """New images [B, C, H, W] in [0, 1] from `images`, by `numbers` in [0, 1) of shape [B, len(DRAWN)], float64."""
    down, right, mirrored, *factors = numbers.unbind(1)
    if how.crop or how.flip:
        images = _moved(images, how.crop, down, right, mirrored < (0.5 if how.flip else 0))
    if how.jitter:
        factors = [(1 + how.jitter * (2 * factor - 1)).to(images.dtype)[:, None, None, None] for factor in factors]
        images = _jittered(images, *factors)
    return images


def _moved(images: Tensor, border: int, down: Tensor, right: Tensor, mirrored: Tensor) -> Tensor:
    """The images shifted by up to `border` pixels in both directions, black where they left; then mirrored or not."""
    channels, height, width = images.shape[1:]
    # Which row and column of the bordered image each pixel comes from.
    rows = torch.arange(height, device=images.device) + (down * (2 * border + 1)).long()[:, None]
    columns = torch.arange(width, device=images.device) + (right * (2 * border + 1)).long()[:, None]
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    bordered = torch.nn.functional.pad(images, (border,) * 4)
    taken = bordered.gather(2, rows[:, None, :, None].expand(-1, channels, -1, bordered.shape[3]))
    return taken.gather(3, columns[:, None, None, :].expand(-1, channels, height, -1))


def _jittered(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Each factor [B, 1, 1, 1] takes its image away from black, from its mean grey, and from its own grey picture."""
    images = (images * brightness).clamp_(0, 1)
    mean = _grey(images).mean(dim=(1, 2, 3), keepdim=True)
    images = torch.lerp(mean, images, contrast).clamp_(0, 1)
    if images.shape[1] == 1:
        return images
    return torch.lerp(_grey(images), images, saturation).clamp_(0, 1)


def _grey(images: Tensor) -> Tensor:
    """How bright each pixel is, [B, 1, H, W]."""
    if images.shape[1] == 1:
        return images
    return torch.einsum("bchw,c->bhw", images, _luma(images.dtype, images.device))[:, None]


@functools.cache
def _luma(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Made once: to send it to a GPU is to wait for it."""
    return torch.tensor(LUMA, dtype=dtype, device=device)
