"""Packing a data set: from the images a user has to a store, as a stream, and whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from metazoo.data.dataset import DataSet, Layout
from metazoo.data.folders import building, locked
from metazoo.data.pictures import Picture, Recipe, decode, fingerprint, rotated, stored
from metazoo.data.store import MANIFEST, Manifest, SplitEntry, Store, find_store, store_path
from metazoo.errors import UserError
from metazoo.files import sha256_of, write_text
from metazoo.progress import on_terminal

BATCH = 64
LARGEST = 1024


def pack(
    sheet: DataSet,
    sources: Sequence[Path] = (),
    size: int | None = None,
    home: Path | None = None,
    force: bool = False,
) -> Store:
    """Read a data set from the form the user has it in, and pack it; a store of it that is already there is opened.

    Args:
        sheet: the data set.
        sources: files and folders that together hold it; none for an embedded one.
        size: side of the stored images in pixels; the data set's own by default.
        home: see `metazoo.data.store.data_home`.
        force: pack again, and put the new store in the place of the old one.

    Raises UserError if the source is not the data set in full, an image does not decode, or the store cannot be
    written; nothing half-written is left behind. Memory stays flat whatever the size of the data set.
    """
    size = sheet.size if size is None else size
    if not 1 <= size <= LARGEST:
        raise UserError(f"Images cannot be stored at {size} pixels; --size takes 1 to {LARGEST}.")
    path = store_path(sheet.name, size, home)
    if not force and (store := find_store(sheet, size, home)):
        return store
    layout = sheet.layout(sources, size)
    sheet.check(layout)
    with _writing(path), locked(path):
        if not force and (store := find_store(sheet, size, home)):  # another process has packed it meanwhile
            return store
        with building(path) as folder:
            manifest = _Packing(sheet, layout, size, folder).run()
            write_text(folder / MANIFEST, manifest.to_json())
    return Store.open(path)


class _SplitFile:
    """One split's array while it is being written: rows are put in place in whatever order they come."""

    def __init__(self, sheet: DataSet, classes: Mapping[str, Sequence[str]], size: int, path: Path) -> None:
        self.shape = (sheet.channels, size, size)
        self.row_bytes = math.prod(self.shape)
        derived = {stored: (name, degrees) for name in classes for stored, degrees in sheet.derive(name).items()}
        self.class_names = tuple(sorted(derived))
        self.counts = tuple(len(classes[derived[stored][0]]) for stored in self.class_names)
        self.places: dict[str, list[tuple[int, int]]] = {name: [] for name in classes}
        start = 0
        for stored_name, count in zip(self.class_names, self.counts, strict=True):
            name, degrees = derived[stored_name]
            self.places[name].append((start, degrees))
            start += count
        self.fingerprints = np.zeros((start, 16), np.uint8) if sheet.ordered_by == "content" else None
        self.file = open(path, "w+b")
        self.total = np.zeros(sheet.channels, np.uint64)
        self.total_of_squares = np.zeros(sheet.channels, np.uint64)

    @property
    def rows(self) -> int:
        return sum(self.counts)

    def put(self, class_name: str, index: int, planes: np.ndarray, mark: bytes) -> None:
        """Write one image, in every rotation, as the index-th of its class."""
        for start, degrees in self.places[class_name]:
            self._write(start + index, rotated(planes, degrees))
            if self.fingerprints is not None:
                self.fingerprints[start + index] = np.frombuffer(mark, np.uint8)

    def finish(self) -> SplitEntry:
        """Bring each class into its final order, and take the digest and the moments of the whole."""
        if self.fingerprints is not None:
            start = 0
            for count in self.counts:
                order = np.lexsort(self.fingerprints[start : start + count].T[::-1])
                self._write(start, self._read(start, count)[order])
                start += count
        digest = hashlib.sha256()
        for start in range(0, self.rows, BATCH):
            block = self._read(start, min(BATCH, self.rows - start))
            digest.update(block.data)
            self.total += block.sum(axis=(0, 2, 3), dtype=np.uint64)
            self.total_of_squares += np.square(block, dtype=np.uint32).sum(axis=(0, 2, 3), dtype=np.uint64)
        return SplitEntry(self.class_names, self.counts, digest.hexdigest())

    def moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel of values in [0, 1]; exact sums, so the same on every machine."""
        n = self.rows * self.row_bytes // len(self.total)
        sums = [(int(a), int(b)) for a, b in zip(self.total, self.total_of_squares, strict=True)]
        return (
            tuple(a / n / 255 for a, _ in sums),
            tuple(math.sqrt((n * b - a * a) / (n * n)) / 255 for a, b in sums),
        )

    def _read(self, row: int, count: int) -> np.ndarray:
        content = os.pread(self.file.fileno(), count * self.row_bytes, row * self.row_bytes)
        return np.frombuffer(content, np.uint8).reshape(count, *self.shape)

    def _write(self, row: int, values: np.ndarray) -> None:
        # Not through a memory map: a full disk kills a process that writes to one, and here it raises OSError.
        content, offset = values.data.cast("B"), row * self.row_bytes
        while content:
            written = os.pwrite(self.file.fileno(), content, offset)
            content, offset = content[written:], offset + written


class _Packing:
    """One packing, from layout to manifest."""

    def __init__(self, sheet: DataSet, layout: Layout, size: int, folder: Path) -> None:
        self.sheet, self.layout, self.size, self.folder = sheet, layout, size, folder
        self._title = f"packing {sheet.title}"
        self.files = {
            split: _SplitFile(sheet, classes, size, folder / f"{split}.bin")
            for split, classes in layout.classes.items()
        }
        self.slots = {
            image: (split, class_name, index)
            for split, classes in layout.classes.items()
            for class_name, images in classes.items()
            for index, image in enumerate(images)
        }

    def run(self) -> Manifest:
        """Write every image; returns the manifest of what was written."""
        try:
            self._expect_space()
            source = self._write_images()
            entries = {split: file.finish() for split, file in self.files.items()}
        finally:
            for file in self.files.values():
                file.file.close()
        mean, std = self.files["train" if "train" in self.files else next(iter(self.files))].moments()
        return Manifest(
            name=self.sheet.name,
            title=self.sheet.title,
            size=self.size,
            channels=self.sheet.channels,
            resize=self.sheet.resample,
            mean=mean,
            std=std,
            splits=entries,
            form=self.layout.form,
            source=source,
        )

    def _write_images(self) -> tuple[dict[str, Any], ...]:
        total, written = len(self.slots), 0
        with ThreadPoolExecutor(_cores()) as pool, on_terminal() as report, report.stage(self._title, total) as stage:
            hashes = [(path, pool.submit(sha256_of, path) if path.is_file() else None) for path in self.layout.sources]
            try:
                for done in _in_order(pool, self._put, _batches(self._claimed(), BATCH), ahead=4 * _cores()):
                    written += done
                    stage.update(written)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            source = tuple(_provenance(path, digest) for path, digest in hashes)
        if self.slots:
            raise UserError(f"The image '{next(iter(self.slots))}' is gone; was its source changed while it was read?")
        return source

    def _expect_space(self) -> None:
        needed = sum(file.rows * file.row_bytes for file in self.files.values())
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise OSError(errno.ENOSPC, f"{needed / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free")

    def _claimed(self) -> Iterator[tuple[tuple[str, str, int], str, Picture]]:
        for name, picture in self.layout.images():
            slot = self.slots.pop(name, None)
            if slot is not None:
                yield slot, name, picture

    def _put(self, batch: list[tuple[tuple[str, str, int], str, Picture]]) -> int:
        for (split, class_name, index), name, picture in batch:
            image = decode(picture, name, self.sheet.channels)
            pixels = image.tobytes()
            mark = fingerprint(image, pixels)
            self.files[split].put(class_name, index, stored(image, Recipe.of(self.sheet, self.size), pixels), mark)
        return len(batch)


def _provenance(path: Path, digest: Future[str] | None) -> dict[str, Any]:
    if digest is None:
        return {"folder": path.name}
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": digest.result()}


def _in_order(pool: ThreadPoolExecutor, work: Callable[[Any], int], items: Iterable[Any], ahead: int) -> Iterator[int]:
    """The results of `work` on the items, with at most `ahead` of them read and not yet done."""
    pending: deque[Future[int]] = deque()
    for item in items:
        pending.append(pool.submit(work, item))
        if len(pending) >= ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what goes wrong while writing into a sentence."""
    try:
        yield
    except OSError as error:
        reason = f"the disk is full ({error.strerror})" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise UserError(
            f"{path} could not be written: {reason}. Nothing was left behind; make room, or choose another folder with "
            "--home or METAZOO_DATA."
        ) from error
