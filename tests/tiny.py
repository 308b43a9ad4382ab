"""Data sets that are generated in an instant, so that whole trainings fit into a test.

`install()` makes them known: `tiny` (grey) and `tiny_rgb`, 12 pixels wide, with classes that a small network can tell
apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import metazoo.data.dataset
from metazoo.config import RunConfig
from metazoo.data.dataset import DataSet, Layout

SIZE = 12
CLASSES = {"train": 16, "val": 6, "test": 6}
IMAGES = 10


class Tiny(DataSet):
    """One coarse random pattern a class, and noise."""

    def layout(self, sources: Sequence[Path] = (), size: int | None = None) -> Layout:
        side = size or self.size
        classes = {
            split: {
                f"{split}{number:02d}": [f"{split}{number:02d}/{image}" for image in range(IMAGES)]
                for number in range(count)
            }
            for split, count in CLASSES.items()
        }

        def images() -> Iterator[tuple[str, Any]]:
            noise = np.random.default_rng(0)
            for names in (names for split in classes.values() for names in split.values()):
                pattern = noise.integers(0, 200, (4, 4, self.channels))
                steps = np.arange(side) * 4 // side
                for name in names:
                    pixels = pattern[steps][:, steps] + noise.integers(0, 56, (side, side, self.channels))
                    yield name, pixels.astype(np.uint8).squeeze()

        return Layout(classes=classes, images=images, form="generated")


def _sheet(name: str, channels: int) -> DataSet:
    facts = {"title": name, "citation": "none", "terms": "none", "where": "It is generated."}
    return Tiny(name=name, channels=channels, size=SIZE, embedded=True, **facts)


SETS = {sheet.name: sheet for sheet in (_sheet("tiny", 1), _sheet("tiny_rgb", 3))}


def install() -> None:
    """Make the tiny data sets known to this process, for good; tests use the fixture `tiny_sets` of their module."""
    known = metazoo.data.dataset.published
    metazoo.data.dataset.published = lambda: {**known(), **SETS}


@pytest.fixture
def tiny_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny data sets are known during the test."""
    known = metazoo.data.dataset.published
    monkeypatch.setattr(metazoo.data.dataset, "published", lambda: {**known(), **SETS})


def config(**changes: Any) -> RunConfig:
    """A config whose training takes about a second: keys of RunConfig, and of its training."""
    training = {"epochs": 3, "iterations_per_epoch": 4, "meta_batch": 2, "validation_episodes": 6, "keep": 2}
    values: dict[str, Any] = {
        "algorithm": "maml",
        "settings": {"inner_steps": 2},
        "source": "tiny",
        "ways": 3,
        "shots": 1,
        "queries": 3,
        "backbone": {"name": "conv4", "filters": 4},
        "training": training,
    }
    for key, value in changes.items():
        (values if key in RunConfig.model_fields else training)[key] = value
    return RunConfig.model_validate(values)
