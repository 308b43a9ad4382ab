"""What every domain can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from metazoo.config import RunConfig
from metazoo.data.inputs import Inputs
from metazoo.measures import Measure
from metazoo.placement import Place, Placement
from metazoo.prefetching import Stream


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
