"""Putting pictures into the arrays of a store, in this process or in any number of others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from metazoo.data.arrangement import Place
from metazoo.data.pictures import Picture, PieceReader, Recipe, decode, fingerprint, rotated, stored
from metazoo.files import sha256_of


class Item(NamedTuple):
    """A picture on its way: its name, the index of its class in the arrangement, and its row in that class."""

    picture: Picture
    name: str
    of_class: int
    row: int


@dataclass
class RowWriter:
    """Writes images to their rows, in whatever order they come.

    Attributes:
        recipe: what becomes of a picture.
        files: split -> the file that holds its array.
        places: for each class of the arrangement, where its rows are.
        measured: the split whose sums are taken.
    """

    recipe: Recipe
    files: Mapping[str, Path]
    places: Sequence[tuple[Place, ...]]
    measured: str
    _open: dict[str, IO[bytes]] = field(default_factory=dict)
    _reader: PieceReader = field(default_factory=PieceReader)

    @property
    def row_bytes(self) -> int:
        return self.recipe.channels * self.recipe.size**2

    def put(self, batch: Sequence[Item]) -> tuple[np.ndarray, np.ndarray]:
        """Decode and write a batch.

        Returns the fingerprints, uint8 [n, 16], and for images of the measured split the sum of the stored values and
        of their squares per channel, int64 [n, 2, C]. Raises UserError naming an image that does not decode.
        """
        marks = np.empty((len(batch), 16), np.uint8)
        sums = np.zeros((len(batch), 2, self.recipe.channels), np.int64)
        for number, (picture, name, of_class, row) in enumerate(batch):
            image = decode(picture, name, self.recipe.channels, self._reader)
            pixels = image.tobytes()
            marks[number] = np.frombuffer(fingerprint(image, pixels), np.uint8)
            planes = stored(image, self.recipe, pixels)
            places = self.places[of_class]
            for place in places:
                self._write(place.split, place.row + row, rotated(planes, place.degrees))
            if places[0].split == self.measured:
                sums[number] = _sums(planes)
        return marks, sums

    def order(self, of_class: int, order: np.ndarray) -> None:
        """Bring the rows of a class into their final order: row i is what row `order[i]` is now."""
        for place in self.places[of_class]:
            for cycle in _cycles(order):
                first = self._read(place.split, place.row + cycle[0])
                for to, source in pairwise(cycle):
                    self._write(place.split, place.row + to, self._read(place.split, place.row + source))
                self._write(place.split, place.row + cycle[-1], first)

    def hash(self, path: Path) -> str:
        """The SHA-256 of a source."""
        return sha256_of(path)

    def _file(self, split: str, row: int) -> IO[bytes]:
        file = self._open.get(split)
        if file is None:
            file = self._open[split] = open(self.files[split], "r+b", buffering=0)
        file.seek(row * self.row_bytes)
        return file

    def _read(self, split: str, row: int) -> np.ndarray:
        values = np.empty(self.row_bytes, np.uint8)
        self._file(split, row).readinto(values)  # type: ignore[attr-defined]
        return values

    def _write(self, split: str, row: int, values: np.ndarray) -> None:
        # Not through a memory map: a full disk kills a process that writes to one, and here it raises OSError.
        file, content = self._file(split, row), values.data.cast("B")
        while content:
            content = content[file.write(content) :]

    def close(self) -> None:
        """Close the files."""
        self._reader.close()
        while self._open:
            self._open.popitem()[1].close()


def _sums(planes: np.ndarray) -> np.ndarray:
    """Sum of the values and of their squares, int64 [2, C]; exact, because all the numbers on the way are whole."""
    values = planes.reshape(len(planes), -1).astype(np.float64)
    return np.array([values.sum(axis=1), [channel.dot(channel) for channel in values]]).astype(np.int64)


def _cycles(order: np.ndarray) -> list[list[int]]:
    """The cycles of a permutation that are longer than 1: each element is followed by the one that takes its place."""
    cycles, seen = [], np.zeros(len(order), bool)
    for start in range(len(order)):
        cycle, at = [], start
        while not seen[at]:
            seen[at] = True
            cycle.append(at)
            at = int(order[at])
        if len(cycle) > 1:
            cycles.append(cycle)
    return cycles


def moments(sums: np.ndarray, values: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, of values in [0, 1].

    Args:
        sums: int64 [2, C], of `values` values a channel and of their squares. Whole numbers, so the result is the same
            on every machine.
    """
    pairs = [(int(a), int(b)) for a, b in sums.T]
    return (
        tuple(a / values / 255 for a, _ in pairs),
        tuple(math.sqrt((values * b - a * a) / (values * values)) / 255 for a, b in pairs),
    )
