"""Data sets of images as domains: standardised and, in training, augmented as a run's config says."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metazoo.augmentation import AugmentedStream
from metazoo.config import RunConfig
from metazoo.data.dataset import DataSet, Moments, dataset, image_set
from metazoo.data.inputs import ImageInputs, Inputs
from metazoo.data.store import MANIFEST, Manifest, Split, Store, open_store, store_path
from metazoo.domains.domain import Domain
from metazoo.episodes import EpisodeSampler, EpisodeStream, ImageTable
from metazoo.errors import UserError
from metazoo.leaks import without
from metazoo.placement import Place, Placement, choose
from metazoo.prefetching import Stream

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of each channel of ImageNet, as torchvision's models use them."""


class ImageDomain(Domain):
    """A packed data set of images."""

    def __init__(self, sheet: DataSet, store: Store):
        manifest = store.manifest
        self.sheet, self.store, self.measure = sheet, store, sheet.measure
        self.title, self.identity, self.size = manifest.title, manifest.identity, manifest.size
        self.inputs: ImageInputs = ImageInputs(
            channels=manifest.channels, mean=list(manifest.mean), std=list(manifest.std)
        )

    @classmethod
    def open(cls, name: str, size: int | None, home: Path | None) -> ImageDomain:
        return cls(image_set(name, home), open_store(name, size, home=home))

    @classmethod
    def identity_here(cls, name: str, size: int | None, home: Path | None) -> str | None:
        size = dataset(name, home).pixels if size is None else size
        path = store_path(name, size or 0, home) / MANIFEST
        return Manifest.read(path).identity if path.is_file() else None

    @classmethod
    def baseline(cls, name: str, ways: int, shots: int, episodes: int, seed: int) -> tuple[str, float]:
        return "chance", 1 / ways

    def test_classes(
        self, ways: int, shots: int, queries: int, seed: int, episodes: int, left_out: Collection[str] = ()
    ) -> NDArray[np.int64]:
        images = without(self.store.split("test"), left_out)
        return EpisodeSampler(images, ways, shots, queries, seed).rows(0, episodes).classes

    def place(self, splits: Sequence[str], device: torch.device, asked: Placement | None) -> Place:
        return choose(sum(self.store.split(split).images.nbytes for split in splits), device, asked)

    def episodes(
        self,
        config: RunConfig,
        split: str,
        seed: int,
        device: torch.device,
        inputs: Inputs,
        placement: Placement | None = None,
        left_out: Collection[str] = (),
    ) -> Stream:
        """Standardised and, in training, augmented as the run's config says.

        Grey images are repeated for a network that takes RGB; there is no way back, so RGB images for a network that
        takes grey are a UserError.
        """
        assert isinstance(inputs, ImageInputs)
        ways = (config.training.ways if split == "train" else None) or config.ways
        images = without(self.store.split(split), left_out)
        if left_out and len(images.class_names) < ways:
            raise UserError(
                f"Without the {len(left_out)} leaking classes {self.title} has {len(images.class_names)} {split} "
                f"classes left, and {ways}-way episodes need {ways}; test with all classes, or on another data set."
            )
        sampler = EpisodeSampler(images, ways, config.shots, config.queries, seed)
        mean, std = moments(config, inputs, self.sheet) or (None, None)
        if split == "train" and config.training.augmentation is not None:
            return self._augmented(sampler, config, device, placement, mean, std)
        if self.inputs.channels == inputs.channels:
            return EpisodeStream(sampler, ImageTable(images, device, mean=mean, std=std, placement=placement))
        if self.inputs.channels == 1:
            return EpisodeStream(sampler, RepeatedGrey(images, device, inputs.channels, mean, std, placement))
        raise UserError(
            f"The run was trained on grey images ({config.source}) and {self.title} is in colour; "
            "evaluate it on a grey data set."
        )

    def _augmented(
        self,
        sampler: EpisodeSampler,
        config: RunConfig,
        device: torch.device,
        placement: Placement | None,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
    ) -> Stream:
        augmentation = config.training.augmentation
        assert augmentation is not None
        if augmentation.crop >= self.store.manifest.size:
            raise UserError(
                f"training.augmentation.crop is {augmentation.crop} and the images of {self.title} have "
                f"{self.store.manifest.size} pixels, so a crop could be all border; lower it."
            )
        plain = EpisodeStream(sampler, ImageTable(sampler.split, device, placement=placement))
        channels = self.inputs.channels
        standardised = (
            torch.tensor(values, device=device) for values in (mean or [0.0] * channels, std or [1.0] * channels)
        )
        return AugmentedStream(plain, augmentation, sampler.seed, *standardised)


def moments(config: RunConfig, inputs: ImageInputs, sheet: DataSet) -> Moments | None:
    """What images of the data set `sheet` are standardised with in a run: the moments of its source (its training
    split), ImageNet's, those that each data set has by itself, or nothing."""
    if config.normalisation == "source":
        return inputs.mean, inputs.std
    if config.normalisation == "imagenet":
        if inputs.channels != 3:
            raise UserError(
                f"Normalisation 'imagenet' is for RGB images and those of {config.source} are grey; "
                "use normalisation 'source' or 'none'."
            )
        return IMAGENET
    if config.normalisation == "per_data_set":
        if sheet.moments is None:
            raise UserError(
                f"Normalisation 'per_data_set' is not laid down for {sheet.title}; use 'source', 'imagenet' or 'none'."
            )
        return sheet.moments
    return None


class RepeatedGrey(ImageTable):
    """A table of grey images `[n, 1, H, W]` that gathers them as `[*, channels, H, W]`, each channel standardised."""

    def __init__(
        self,
        split: Split,
        device: torch.device,
        channels: int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        placement: Placement | None = None,
    ):
        super().__init__(split, device, placement=placement)
        self._mean = torch.tensor(mean or [0.0] * channels, device=device)[:, None, None]
        self._std = torch.tensor(std or [1.0] * channels, device=device)[:, None, None]

    def gather(self, rows: Tensor | np.ndarray) -> Tensor:
        """The images of `rows` (int64 of any shape [*]) as [*, channels, H, W]."""
        return (super().gather(rows) - self._mean) / self._std
