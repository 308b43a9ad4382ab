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

CHUNK = 64
"""Rows that are written at once: enough of them to be written quickly, few enough to stay in the processor's cache."""


class Batch(NamedTuple):
    """Pictures on their way: their names, the indices of their classes in the arrangement, their rows in these."""

    pictures: Sequence[Picture]
    names: Sequence[str]
    classes: np.ndarray
    rows: np.ndarray


@dataclass
class RowWriter:
    """Writes images to their rows, in whatever order they come.

    Attributes:
        recipe: what becomes of a picture.
        files: split -> the file that holds its array.
        counts: for each class of the arrangement, how many images it has.
        places: for each class of the arrangement, where its rows are.
        by_content: whether the images of a class are ordered by their fingerprints.
        measured: the split whose sums are taken.
    """

    recipe: Recipe
    files: Mapping[str, Path]
    counts: Sequence[int]
    places: Sequence[tuple[Place, ...]]
    by_content: bool
    measured: str
    _open: dict[str, IO[bytes]] = field(default_factory=dict)
    _reader: PieceReader = field(default_factory=PieceReader)

    @property
    def row_bytes(self) -> int:
        return self.recipe.channels * self.recipe.size**2

    def put(self, batch: Batch) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        """Decode and write a batch; a class that is in it as a whole is written in its final order.

        Returns the fingerprints, uint8 [n, 16], and for each class the sums of its stored values and of their squares,
        int64 [2, C]; those of other splits than the measured one are 0. Raises UserError naming an image that does not
        decode.
        """
        side = self.recipe.size
        block = np.empty((len(batch.names), self.recipe.channels, side, side), np.uint8)
        fingerprints = []
        for values, picture, name in zip(block, batch.pictures, batch.names, strict=True):
            image = decode(picture, name, self.recipe.channels, self._reader)
            fingerprints.append(fingerprint(image))
            values[...] = stored(image, self.recipe)
        marks = np.frombuffer(b"".join(fingerprints), np.uint8).reshape(-1, 16)
        sums = {}
        for index in np.unique(batch.classes).tolist():
            members = np.flatnonzero(batch.classes == index)
            if self.by_content and len(members) == self.counts[index]:
                members, rows = members[content_order(marks[members])], np.arange(len(members))
            else:
                members = members[np.argsort(batch.rows[members])]
                rows = batch.rows[members]
            sums[index] = self._write_class(self.places[index], rows, block, members)
        return marks, sums

    def _write_class(
        self, places: Sequence[Place], rows: np.ndarray, block: np.ndarray, members: np.ndarray
    ) -> np.ndarray:
        """Write these members of the block to these rows of a class, ascending; returns their sums."""
        sums = np.zeros((2, self.recipe.channels), np.int64)
        for start in range(0, len(rows), CHUNK):
            values = block[members[start : start + CHUNK]]
            if places[0].split == self.measured:
                sums += sums_of(values)
            for place in places:
                self._write(place.split, place.row + rows[start : start + CHUNK], rotated(values, place.degrees))
        return sums

    def order(self, of_class: int, marks: np.ndarray) -> None:
        """Bring the rows of a class, whose images have these fingerprints, into their final order."""
        for place in self.places[of_class]:
            for cycle in _cycles(content_order(marks)):
                rows = place.row + np.array(cycle)
                first = self._read(place.split, rows[0])
                for to, source in pairwise(rows):
                    self._write_run(place.split, to, self._read(place.split, source))
                self._write_run(place.split, rows[-1], first)

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

    def _write(self, split: str, rows: np.ndarray, values: np.ndarray) -> None:
        """Write images to ascending rows, each run of rows at once."""
        ends = [*(np.flatnonzero(np.diff(rows) > 1) + 1).tolist(), len(rows)]
        for start, end in pairwise([0, *ends]):
            self._write_run(split, rows[start], values[start:end])

    def _write_run(self, split: str, row: int, values: np.ndarray) -> None:
        # Not through a memory map: a full disk kills a process that writes to one, and here it raises OSError.
        file, content = self._file(split, row), values.data.cast("B")
        while content:
            content = content[file.write(content) :]

    def close(self) -> None:
        """Close the files."""
        self._reader.close()
        while self._open:
            self._open.popitem()[1].close()


def content_order(marks: np.ndarray) -> np.ndarray:
    """Which of the images with these fingerprints, uint8 [n, 16], comes first, second, and so on."""
    return np.lexsort(marks.T[::-1])


def sums_of(values: np.ndarray) -> np.ndarray:
    """Sums of the values of at most 257 images, uint8 [n, C, S, S], and of their squares, int64 [2, C]; exact."""
    pixels = values.sum(axis=0, dtype=np.uint16), np.square(values, dtype=np.uint16).sum(axis=0, dtype=np.uint32)
    return np.stack([each.sum(axis=(1, 2), dtype=np.int64) for each in pixels])


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
