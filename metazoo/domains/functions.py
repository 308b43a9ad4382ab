"""Families of functions as domains."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from metazoo.config import RunConfig
from metazoo.data.dataset import dataset
from metazoo.data.families import FunctionFamily
from metazoo.data.inputs import Inputs
from metazoo.domains.domain import Domain
from metazoo.errors import UserError
from metazoo.functions import FunctionStream
from metazoo.placement import Placement
from metazoo.prefetching import Stream


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
