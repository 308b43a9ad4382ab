"""Domains: data sets opened, of whatever kind, ready to give the episodes that runs are trained and tested on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metazoo.augmentation import AugmentedStream
from metazoo.config import RunConfig
from metazoo.data.dataset import DataSet, Kind, Moments, dataset, image_set
from metazoo.data.families import FunctionFamily
from metazoo.data.inputs import ImageInputs, Inputs
from metazoo.data.store import MANIFEST, Manifest, Split, Store, open_store, store_path
from metazoo.episodes import EpisodeSampler, EpisodeStream, ImageTable
from metazoo.errors import UserError
from metazoo.functions import FunctionStream
from metazoo.leaks import without
from metazoo.measures import Measure
from metazoo.placement import Place, Placement, choose
from metazoo.prefetching import Stream

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of each channel of ImageNet, as torchvision's models use them."""


class Domain(ABC):
    """A data set that is ready for use."""

    title: str
    identity: str
    """Hash of what it holds."""
    size: int | None
    """Side of its images in pixels; None where there are none."""
    inputs: Inputs
    """What a network trained on it is fed."""
    measure: Measure
    """What its episodes are judged by."""

    @classmethod
    @abstractmethod
    def open(cls, name: str, size: int | None, home: Path | None) -> Domain:
        """The data set `name`; see `open_domain`."""

    @classmethod
    @abstractmethod
    def identity_here(cls, name: str, size: int | None, home: Path | None) -> str | None:
        """The identity of what is ready for use on this machine, None where nothing is; nothing is built for it."""

    @classmethod
    @abstractmethod
    def baseline(cls, name: str, ways: int, shots: int, episodes: int, seed: int) -> tuple[str, float]:
        """What one reaches on the first test episodes without learning anything: how, and the result."""

    @abstractmethod
    def test_classes(
        self, ways: int, shots: int, queries: int, seed: int, episodes: int, left_out: Collection[str] = ()
    ) -> NDArray[np.int64] | None:
        """The classes [episodes, ways] that the first test episodes draw; None where tasks have no classes."""

    @abstractmethod
    def place(self, splits: Sequence[str], device: torch.device, asked: Placement | None) -> Place | None:
        """Where the images of these splits are to lie for a network on `device`; None where there are none."""

    @abstractmethod
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
        """The episodes of one split for the run of `config`, whose network is fed `inputs`.

        Images lie as `placement` says, by default as `placement.choose` does; classes in `left_out` are never drawn.

        Raises UserError where the split cannot supply such episodes, or the network not take them.
        """


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


class FunctionDomain(Domain):
    """A family of functions."""

    def __init__(self, family: FunctionFamily):
        self.size = None
        self.family, self.title, self.identity = family, family.title, family.identity
        self.inputs, self.measure = family.network_inputs, family.measure

    @classmethod
    def open(cls, name: str, size: int | None, home: Path | None) -> FunctionDomain:
        family = dataset(name)
        assert isinstance(family, FunctionFamily)
        if size is not None:
            raise UserError(f"{family.title} has no images and so no size; leave size out.")
        return cls(family)

    @classmethod
    def identity_here(cls, name: str, size: int | None, home: Path | None) -> str:
        return cls.open(name, size, home).identity

    @classmethod
    def baseline(cls, name: str, ways: int, shots: int, episodes: int, seed: int) -> tuple[str, float]:
        stream = FunctionStream(cls.open(name, None, None).family, "test", shots, 1, seed, "cpu")
        return "predicting 0", float(stream.batch(0, episodes).query_y.double().square().mean())

    def test_classes(
        self, ways: int, shots: int, queries: int, seed: int, episodes: int, left_out: Collection[str] = ()
    ) -> None:
        return None

    def place(self, splits: Sequence[str], device: torch.device, asked: Placement | None) -> None:
        return None

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
        family = self.family
        ways = (config.training.ways if split == "train" else None) or config.ways
        if ways != family.outputs:
            raise UserError(
                f"The functions of {family.title} have no classes; ways is how many numbers they give, "
                f"{family.outputs} and not {ways}."
            )
        if config.normalisation != "none":
            raise UserError(f"{family.title} has no images to normalise; use normalisation 'none'.")
        if config.training.augmentation is not None:
            raise UserError(f"{family.title} has no images to augment; leave training.augmentation out.")
        if inputs != self.inputs:
            raise UserError(
                f"The functions of {family.title} have {len(family.inputs)} inputs and the run was trained on others "
                f"({config.source}); evaluate it on a family of functions like its own."
            )
        return FunctionStream(family, split, config.shots, config.queries, seed, device)


_KINDS: dict[Kind, type[Domain]] = {"images": ImageDomain, "functions": FunctionDomain}


def open_domain(name: str, size: int | None = None, home: Path | None = None) -> Domain:
    """The data set `name` (its images at `size` pixels, from `home`), ready for use.

    Raises UserError for an unknown data set, or one that was not prepared, with the command to run.
    """
    return _KINDS[dataset(name, home).kind].open(name, size, home)


def identity_here(name: str, size: int | None = None, home: Path | None = None) -> str | None:
    """The identity of the data set as it is ready for use on this machine, None where it is not."""
    return _KINDS[dataset(name, home).kind].identity_here(name, size, home)


def baseline(name: str, ways: int, shots: int, episodes: int, seed: int) -> tuple[str, float]:
    """What one reaches on the first test episodes of a data set without learning anything: how, and the result."""
    return _KINDS[dataset(name).kind].baseline(name, ways, shots, episodes, seed)


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
