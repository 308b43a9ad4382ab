"""What a packing has finished, so that one that was killed goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from metazoo.data.dataset import DataSet, Layout
from metazoo.data.pictures import Recipe

JOURNAL = "journal.jsonl"
REVISION = 1


def identity(sheet: DataSet, layout: Layout, recipe: Recipe) -> str:
    """SHA-256 (hex) of what is being packed: the sources, as their sizes and times tell them, and what becomes of them.

    A journal of another identity is of no use.
    """
    facts: list[Any] = [REVISION, sheet.name, sheet.rotations, sheet.ordered_by, asdict(recipe), layout.form]
    facts += [[str(path.resolve()), *_stamp(path)] for path in layout.sources]
    digest = hashlib.sha256(json.dumps(facts).encode())
    for split, classes in layout.classes.items():
        for name, images in classes.items():
            digest.update("\0".join((split, name, *images, "\1")).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _stamp(path: Path) -> list[Any]:
    """Size and time of a file; of a folder a digest of those of all that is below it."""
    if path.is_file():
        status = path.stat()
        return [status.st_size, status.st_mtime_ns]
    digest = hashlib.sha256()
    folders = [os.fspath(path)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    status = entry.stat()
                    digest.update(f"{entry.path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode(errors="replace"))
    return [digest.hexdigest()]


def belongs(folder: Path, identity: str) -> bool:
    """Whether a folder holds the beginning of a packing of this identity, with something in it that is finished."""
    entries = _entries(folder)
    return len(entries) > 1 and entries[0].get("identity") == identity


def finished(folder: Path) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """The classes that are finished, by index: their images' fingerprints and sums as `RowWriter.put` returns them."""
    return {
        entry["class"]: (
            np.frombuffer(bytes.fromhex(entry["marks"]), np.uint8).reshape(-1, 16),
            np.array(entry["sums"], np.int64),
        )
        for entry in _entries(folder)[1:]
    }


def _entries(folder: Path) -> list[dict[str, Any]]:
    """The lines of the journal, without one that a kill cut short."""
    entries = []
    try:
        with open(folder / JOURNAL, encoding="utf-8") as file:
            for line in file:
                if not line.endswith("\n"):
                    break
                entries.append(json.loads(line))
    except (OSError, ValueError):
        pass
    return entries


class Journal:
    """Notes finished classes in a thread of its own, each when its rows are safely on the disk; a context manager."""

    def __init__(self, folder: Path, identity: str, files: Mapping[str, Path]) -> None:
        self._path, self._files = folder / JOURNAL, files
        self._waiting: queue.SimpleQueue[tuple[int, str, str] | None] = queue.SimpleQueue()
        kept = _entries(folder) or [{"identity": identity}]
        self._path.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")
        self._thread = threading.Thread(target=self._keep, name="metazoo journal", daemon=True)

    def note(self, of_class: int, split: str, marks: np.ndarray, sums: np.ndarray) -> None:
        """The class of this index is complete and in order, and its rows are in the split's file."""
        entry = {"class": of_class, "marks": marks.tobytes().hex(), "sums": sums.tolist()}
        self._waiting.put((of_class, split, json.dumps(entry) + "\n"))

    def _keep(self) -> None:
        while (first := self._waiting.get()) is not None:
            due, last = [first], False
            while not self._waiting.empty() and not last:
                following = self._waiting.get()
                last = following is None
                due += [following] if following is not None else []
            try:
                _to_disk(self._files[split] for split in {split for _, split, _ in due})
                with open(self._path, "a", encoding="utf-8") as file:
                    file.writelines(line for _, _, line in due)
                _to_disk([self._path])
            except OSError:  # a journal that is not kept costs time after a kill, and nothing else
                return
            if last:
                return

    def __enter__(self) -> Journal:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.put(None)
        self._thread.join()

    def remove(self) -> None:
        """The packing is complete."""
        self._path.unlink(missing_ok=True)


def _to_disk(paths: Iterable[Path]) -> None:
    for path in paths:
        handle = os.open(path, os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
