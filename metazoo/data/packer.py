"""The packing itself: images go to processes that decode and write them; classes are settled one after the other."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from metazoo.data import journal
from metazoo.data.arrangement import Arrangement, PlannedSplit
from metazoo.data.dataset import DataSet, Layout
from metazoo.data.pictures import Picture, Recipe, weight
from metazoo.data.rows import Batch, RowWriter, moments
from metazoo.data.store import Manifest, SplitEntry
from metazoo.data.twins import Twins, find_twins
from metazoo.data.workers import Workers
from metazoo.errors import UserError
from metazoo.progress import on_terminal

BATCH = 64  # images that a process is given at a time, and then all that follow of their classes, but no more than
BATCH_BYTES = 4 << 20  # of pictures that have to be sent,
BLOCK_BYTES = 32 << 20  # of arrays that are made of them (any class of ImageNet at 84 pixels has room), and
SHARE = 8  # part of what each process has to do
SMALL = 4096
"""A data set of fewer images is packed by this process alone, without a journal: others take longer to start."""
MOST_WORKERS = 8  # each takes some 40 MB beside its arrays, and all together with this process less than 1 GB
BLOCK = 1 << 20


class Packer:
    """One packing, from layout to manifest. Classes, images and rows are numbered as its `Arrangement` has them.

    Images are handed over class by class, as far as they come like that, and a class that is handed over as a whole is
    written in its final order. One that came in parts is written in the layout's order, and sorted when it is complete.
    Then it is settled: noted in the journal, and hashed once all before it are.

    Args:
        sheet, layout: what is packed; the layout is a sound one (`DataSet.check`).
        recipe: what becomes of every image.
        folder: where the arrays go; may hold the beginning of the same packing.
        identity: of this packing (`journal.identity`).
        workers: what decodes and writes; they end with the packing.
    """

    def __init__(
        self, sheet: DataSet, layout: Layout, recipe: Recipe, folder: Path, identity: str, workers: Workers
    ) -> None:
        self.sheet, self.layout, self.recipe, self.folder, self.identity = sheet, layout, recipe, folder, identity
        self.workers, self.ahead = workers, 2 * max(1, workers.count)
        self.arranged = Arrangement(sheet, layout)
        self.files = {split: folder / f"{split}.bin" for split in self.arranged.splits}
        self.measured = "train" if "train" in self.files else next(iter(self.files))
        self.row_bytes = recipe.channels * recipe.size**2
        self.by_content = sheet.ordered_by == "content"
        self.images = len(self.arranged.class_of)
        self.marks = np.zeros((self.images, 16), np.uint8)
        self.sums = np.zeros((len(self.arranged.classes), 2, recipe.channels), np.int64)
        self.missing = [len(planned.images) for planned in self.arranged.classes]
        self.settled = [False] * len(self.arranged.classes)
        self.written = 0
        self.pending: deque[tuple[Future[Any], Callable[[Any], None]]] = deque()
        self.journal: journal.Journal | None = None

    def run(self) -> Manifest:
        """Write every image; returns the manifest of what was written."""
        for file in self.files.values():
            file.touch()
        self._expect_space()
        with ExitStack() as stack:
            if self.images >= SMALL:
                self.journal = stack.enter_context(journal.Journal(self.folder, self.identity, self.files))
            self.digests = {
                split: stack.enter_context(_Digest(self.files[split], planned, self.row_bytes))
                for split, planned in self.arranged.splits.items()
            }
            self.workers.target = writer = RowWriter(
                recipe=self.recipe,
                files=self.files,
                counts=[len(planned.images) for planned in self.arranged.classes],
                places=[planned.places for planned in self.arranged.classes],
                by_content=self.by_content,
                measured=self.measured,
            )
            stack.callback(writer.close)
            stack.push(self.workers)
            self.report = stack.enter_context(on_terminal())
            self.stage = stack.enter_context(self.report.stage(f"packing {self.sheet.title}", self.images))
            source = self._write_images()
            digests = {split: digest.hexdigest() for split, digest in self.digests.items()}
        if self.journal is not None:
            self.journal.remove()
        return self._manifest(source, digests)

    def _expect_space(self) -> None:
        rows = sum(planned.rows for planned in self.arranged.splits.values())
        there = sum(file.stat().st_size for file in self.files.values())
        needed, free = rows * self.row_bytes - there, shutil.disk_usage(self.folder).free
        if needed > free:
            raise OSError(errno.ENOSPC, f"{needed / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free")

    def _write_images(self) -> tuple[dict[str, Any], ...]:
        numbers = self.arranged.numbers()
        self._go_on(numbers)
        for index, planned in enumerate(self.arranged.classes):
            if not planned.images:
                self._settle(index, note=False)
        hashes = [(path, self.workers.submit("hash", path) if path.is_file() else None) for path in self.layout.sources]
        for of_batch, batch in self._batches(numbers):
            self._submit(partial(self._put, of_batch), "put", batch)
            while len(self.pending) >= self.ahead:
                self._await()
        while self.pending:
            self._await()
        if numbers:
            raise UserError(f"The image '{next(iter(numbers))}' is gone; was its source changed while it was read?")
        return tuple(_provenance(path, digest) for path, digest in hashes)

    def _go_on(self, numbers: dict[str, int]) -> None:
        """Take over what an earlier packing finished, and strike it off the images to be written."""
        for index, (marks, sums) in journal.finished(self.folder).items():
            self._marks_of(index)[:] = marks
            self.sums[index] = sums
            for image in self.arranged.classes[index].images:
                del numbers[image]
            self._settle(index, note=False)
        if before := self.images - len(numbers):
            self.report.note(f"{before:,} of {self.images:,} images were packed before it was stopped; going on.")
            self._wrote(before)

    def _batches(self, numbers: dict[str, int]) -> Iterator[tuple[np.ndarray, Batch]]:
        """The pictures that are wanted, with their numbers, which are struck off."""
        share = self.images // (SHARE * max(1, self.workers.count))
        most = max(1, min(BLOCK_BYTES // self.row_bytes, max(BATCH, share)))
        missing = self.missing[:]
        found: list[tuple[int, str, Picture]] = []
        size = 0
        for name, picture in self.layout.images():
            number = numbers.pop(name, None)
            if number is None:
                continue
            found.append((number, name, picture))
            size += weight(picture)
            index = self.arranged.class_of[number]
            missing[index] -= 1
            if len(found) == most or size > BATCH_BYTES or (not missing[index] and len(found) >= BATCH):
                yield self._batch(found)
                found, size = [], 0
        if found:
            yield self._batch(found)

    def _batch(self, found: Sequence[tuple[int, str, Picture]]) -> tuple[np.ndarray, Batch]:
        of_batch, names, pictures = zip(*found, strict=True)
        numbers = np.array(of_batch)
        classes = self.arranged.class_of[numbers]
        return numbers, Batch(pictures, names, classes, numbers - self.arranged.first_of[classes])

    def _submit(self, then: Callable[[Any], None], method: str, *arguments: Any) -> None:
        self.pending.append((self.workers.submit(method, *arguments), then))

    def _await(self) -> None:
        future, then = self.pending.popleft()
        then(future.result())

    def _put(self, numbers: np.ndarray, result: tuple[np.ndarray, dict[int, np.ndarray]]) -> None:
        """A batch was written."""
        marks, sums = result
        self.marks[numbers] = marks
        self._wrote(len(numbers))
        for index, count in Counter(self.arranged.class_of[numbers].tolist()).items():
            self.sums[index] += sums[index]
            self.missing[index] -= count
            if not self.missing[index]:
                self._complete(index, whole=count == len(self.arranged.classes[index].images))

    def _complete(self, index: int, whole: bool) -> None:
        """A class is written, as a whole or in parts."""
        if whole or not self.by_content:
            self._settle(index)
        else:
            self._submit(lambda _: self._settle(index), "order", index, self._marks_of(index))

    def _wrote(self, images: int) -> None:
        self.written += images
        self.stage.update(self.written)

    def _marks_of(self, index: int) -> np.ndarray:
        planned = self.arranged.classes[index]
        return self.marks[planned.first : planned.first + len(planned.images)]

    def _settle(self, index: int, note: bool = True) -> None:
        planned = self.arranged.classes[index]
        self.settled[index] = True
        if note and self.journal is not None:
            self.journal.note(index, planned.split, self._marks_of(index), self.sums[index])
        self.digests[planned.split].advance(self.settled)

    def _manifest(self, source: tuple[dict[str, Any], ...], digests: dict[str, str]) -> Manifest:
        measured = [planned.split == self.measured for planned in self.arranged.classes]
        sums = self.sums[measured].sum(axis=0) * len(self.sheet.rotations)
        mean, std = moments(sums, self.arranged.splits[self.measured].rows * self.recipe.size**2)
        return Manifest(
            name=self.sheet.name,
            title=self.sheet.title,
            size=self.recipe.size,
            channels=self.recipe.channels,
            resize=self.recipe.resizing,
            mean=mean,
            std=std,
            splits={
                split: SplitEntry(planned.class_names, planned.counts, digests[split])
                for split, planned in self.arranged.splits.items()
            },
            form=self.layout.form,
            source=source,
            twins=self._twins(),
        )

    def _twins(self) -> Twins:
        classes = self.arranged.classes

        def name(number: int) -> str:
            planned = classes[self.arranged.class_of[number]]
            return planned.images[number - planned.first]

        return find_twins(self.marks, lambda number: classes[self.arranged.class_of[number]].split, name)


class _Digest:
    """The SHA-256 of a split's array, taken in a thread of its own as far as classes are settled; a context manager."""

    def __init__(self, path: Path, planned: PlannedSplit, row_bytes: int) -> None:
        self._path, self._planned, self._row_bytes = path, planned, row_bytes
        self._digest, self._classes, self._rows = hashlib.sha256(), 0, 0
        self._thread = ThreadPoolExecutor(1, f"metazoo {path.name}")
        self._done: Future[None] | None = None

    def advance(self, settled: Sequence[bool]) -> None:
        """Hash the classes that follow in the array, as far as those of the layout they come from are settled."""
        origins, rows = self._planned.origins, self._rows
        while self._classes < len(origins) and settled[origins[self._classes]]:
            rows += self._planned.counts[self._classes]
            self._classes += 1
        if rows > self._rows:
            self._done = self._thread.submit(self._hash, self._rows * self._row_bytes, rows * self._row_bytes)
            self._rows = rows

    def _hash(self, start: int, end: int) -> None:
        block = memoryview(bytearray(BLOCK))
        with open(self._path, "rb", buffering=0) as file:
            file.seek(start)
            while start < end:
                count = file.readinto(block[: end - start])
                if not count:
                    raise OSError(errno.EIO, f"{self._path} ends too early")
                self._digest.update(block[:count])
                start += count

    def hexdigest(self) -> str:
        """The digest, once all classes are settled."""
        if self._done is not None:
            self._done.result()
        return self._digest.hexdigest()

    def __enter__(self) -> _Digest:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)


def _provenance(path: Path, digest: Future[str] | None) -> dict[str, Any]:
    if digest is None:
        return {"folder": path.name}
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": digest.result()}


def worker_count(sheet: DataSet) -> int:
    """How many processes a data set is worth, by the images that it says it has; 0 if this one does it alone."""
    small = sheet.expected and sum(count.images for count in sheet.expected.values()) < SMALL
    return 0 if sheet.embedded or small or cores() == 1 else min(cores(), MOST_WORKERS)


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
