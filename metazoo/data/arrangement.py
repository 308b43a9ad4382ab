"""Where every image of a data set goes: which rows of which split's array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from metazoo.data.dataset import DataSet, Layout


@dataclass(frozen=True)
class Place:
    """The rows of a class in a split's array: the first of them, and by how many degrees its images are turned."""

    split: str
    row: int
    degrees: int


@dataclass(frozen=True)
class PlannedClass:
    """A class of the layout: its images, the number of its first one among all images, and where they are stored."""

    split: str
    name: str
    images: Sequence[str]
    first: int
    places: tuple[Place, ...]


@dataclass(frozen=True)
class PlannedSplit:
    """A split's array: the stored classes in order, with their sizes and the class of the layout each comes from."""

    class_names: tuple[str, ...]
    counts: tuple[int, ...]
    origins: tuple[int, ...]

    @property
    def rows(self) -> int:
        return sum(self.counts)


class Arrangement:
    """The classes of a layout and the arrays they are stored in.

    Attributes:
        splits: by name.
        classes: those of the layout, split by split. Images are numbered through in this order.
        class_of: int32 [images], image number -> index in `classes`.
        first_of: int64 [classes], the number of each one's first image.
    """

    def __init__(self, sheet: DataSet, layout: Layout) -> None:
        self.splits: dict[str, PlannedSplit] = {}
        self.classes: list[PlannedClass] = []
        first = 0
        for split, classes in layout.classes.items():
            origins = {name: len(self.classes) + index for index, name in enumerate(classes)}
            derived = {stored: (name, turn) for name in classes for stored, turn in sheet.derive(name).items()}
            names = tuple(sorted(derived))
            counts = tuple(len(classes[derived[stored][0]]) for stored in names)
            self.splits[split] = PlannedSplit(names, counts, tuple(origins[derived[stored][0]] for stored in names))
            places: dict[str, list[Place]] = {name: [] for name in classes}
            row = 0
            for stored, count in zip(names, counts, strict=True):
                name, degrees = derived[stored]
                places[name].append(Place(split, row, degrees))
                row += count
            for name, images in classes.items():
                self.classes.append(PlannedClass(split, name, images, first, tuple(places[name])))
                first += len(images)
        self.class_of = np.repeat(
            np.arange(len(self.classes), dtype=np.int32), [len(planned.images) for planned in self.classes]
        )
        self.first_of = np.array([planned.first for planned in self.classes], np.int64)

    def numbers(self) -> dict[str, int]:
        """The number of every image by its name."""
        return {image: planned.first + i for planned in self.classes for i, image in enumerate(planned.images)}
