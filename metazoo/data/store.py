"""Packed data sets on disk: one memory-mapped uint8 array a split, and a manifest that says what is in it."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metazoo.data.dataset import Count, DataSet, image_set
from metazoo.data.twins import Twins, find_twins
from metazoo.errors import UserError
from metazoo.files import sha256_of

FORMAT = 1
MANIFEST = "manifest.json"
ELSEWHERE = frozenset(("title", "form", "source", "twins"))
"""Keys of a manifest that its identity does not depend on."""


def data_home(home: Path | None = None) -> Path:
    """Where packed data sets live: `home` if given, else $METAZOO_DATA, else ~/.cache/metazoo/data."""
    return Path(home or os.environ.get("METAZOO_DATA") or Path.home() / ".cache" / "metazoo" / "data")


def store_path(name: str, size: int, home: Path | None = None) -> Path:
    """The folder of the packed data set `name` at `size` pixels."""
    return data_home(home) / f"{name}-{size}"


@dataclass(frozen=True)
class SplitEntry:
    """One split in the manifest: class names in storage order, images a class, and the SHA-256 of the array's bytes."""

    classes: tuple[str, ...]
    counts: tuple[int, ...]
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a store holds. Mean and standard deviation are per channel, of the train split's values in [0, 1].

    `resize` is how images became squares of `size` pixels: a Pillow filter, after the name of the way to resize where
    that is not straight to the square. `form` and `source` say where it came from: the form that was recognised, and
    the files with their SHA-256. `twins` are the identical images; None in stores of a metazoo that did not look.
    """

    name: str
    title: str
    size: int
    channels: int
    resize: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    splits: Mapping[str, SplitEntry]
    form: str = ""
    source: tuple[Mapping[str, Any], ...] = ()
    twins: Twins | None = None
    format: int = FORMAT

    @property
    def identity(self) -> str:
        """SHA-256 (hex) over what the store holds: not over where it came from, or when, or in what form."""
        content = {key: value for key, value in asdict(self).items() if key not in ELSEWHERE}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "identity": self.identity}, indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest file. Raises UserError if it is missing, damaged or of another format version."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.get("format") != FORMAT:
                raise UserError(
                    f"{path} is in format {content.get('format')} and this metazoo reads format {FORMAT}; "
                    "prepare the data set again with --force."
                )
            identity = content.pop("identity")
            splits = {
                name: SplitEntry(tuple(entry["classes"]), tuple(entry["counts"]), entry["sha256"])
                for name, entry in content.pop("splits").items()
            }
            for key in ("mean", "std", "source"):
                content[key] = tuple(content[key])
            if content.get("twins") is not None:
                content["twins"] = Twins.read(content["twins"])
            manifest = cls(splits=splits, **content)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}).") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged; prepare the data set again with --force.") from error
        if manifest.identity != identity:
            raise UserError(f"{path} was changed after it was written; prepare the data set again with --force.")
        return manifest


@dataclass(frozen=True)
class Split:
    """One split of a packed data set.

    Attributes:
        dataset: the data set's name.
        name: the split's ("train", "val", "test").
        images: read-only memory map, uint8 [n, C, H, W], rows grouped by class.
        class_names: sorted.
        class_starts: int64 [classes]; class c is the rows class_starts[c] .. class_starts[c] + class_sizes[c].
        class_sizes: int64 [classes].
    """

    dataset: str
    name: str
    images: np.ndarray
    class_names: tuple[str, ...]
    class_starts: np.ndarray
    class_sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Store:
    """A packed data set on disk."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path) -> Store:
        """Open the store in `path`. Raises UserError if its manifest is damaged or an array is cut short."""
        store = cls(path, Manifest.read(path / MANIFEST))
        for name in store.manifest.splits:
            file = store.file(name)
            expected = int(np.prod(store.shape(name)))
            found = file.stat().st_size if file.is_file() else None
            if found != expected:
                state = "is missing" if found is None else f"has {found} bytes where {expected} are expected"
                raise UserError(f"{file} {state}; prepare the data set again with --force.")
        return store

    def fits(self, sheet: DataSet) -> bool:
        """Whether the store holds what the data set's fact sheet says; one packed by another metazoo may not."""
        names = {split: {new for name in old for new in sheet.derive(name)} for split, old in sheet.splits.items()}
        found = {split: set(entry.classes) for split, entry in self.manifest.splits.items()}
        counts = {name: Count(len(entry.classes), sum(entry.counts)) for name, entry in self.manifest.splits.items()}
        return (
            counts == (dict(sheet.expected) or counts)
            and found == (names or found)
            and self.manifest.channels == sheet.channels
            and self.manifest.resize.split()[-1] == sheet.resample
        )

    def file(self, split: str) -> Path:
        return self.path / f"{split}.bin"

    def shape(self, split: str) -> tuple[int, int, int, int]:
        """[n, C, H, W] of a split's array."""
        manifest = self.manifest
        return sum(manifest.splits[split].counts), manifest.channels, manifest.size, manifest.size

    def split(self, name: str) -> Split:
        """Map one split into memory. Raises UserError if there is none of that name."""
        if name not in self.manifest.splits:
            raise UserError(f"{self.manifest.title} has no split '{name}'; it has {', '.join(self.manifest.splits)}.")
        entry = self.manifest.splits[name]
        sizes = np.array(entry.counts, dtype=np.int64)
        return Split(
            dataset=self.manifest.name,
            name=name,
            images=np.memmap(self.file(name), dtype=np.uint8, mode="r", shape=self.shape(name)),
            class_names=entry.classes,
            class_starts=np.cumsum(sizes) - sizes,
            class_sizes=sizes,
        )

    @property
    def bytes(self) -> int:
        """Of all arrays."""
        return sum(math.prod(self.shape(split)) for split in self.manifest.splits)

    def verify(self, advance: Callable[[int], None] = lambda count: None) -> None:
        """Hash every array again, and see that no class is in two splits.

        Args:
            advance: called with the number of bytes that were hashed since the last call.

        Raises UserError naming each file whose bytes are not the ones that were packed, or the class.
        """
        home: dict[str, str] = {}
        for split, entry in self.manifest.splits.items():
            for name in entry.classes:
                if home.setdefault(name, split) != split:
                    raise UserError(f"{self.path} holds the class '{name}' in both {home[name]} and {split}.")
        wrong = [
            str(self.file(name))
            for name, entry in self.manifest.splits.items()
            if sha256_of(self.file(name), advance) != entry.sha256
        ]
        if wrong:
            verb = "differs" if len(wrong) == 1 else "differ"
            raise UserError(f"{', '.join(wrong)} {verb} from what was packed; prepare the data set again with --force.")

    def twins(self) -> Twins:
        """The identical images: as found when they were packed, else (in stores from before) of what is stored."""
        if self.manifest.twins is not None:
            return self.manifest.twins
        splits = [self.split(name) for name in self.manifest.splits]
        starts = np.cumsum([0, *(len(split) for split in splits)])
        marks = np.empty((starts[-1], 16), np.uint8)
        for start, split in zip(starts, splits, strict=False):
            for row, image in enumerate(split.images):
                digest = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
                marks[start + row] = np.frombuffer(digest, np.uint8)

        def split_of(image: int) -> int:
            return int(np.searchsorted(starts, image, side="right")) - 1

        def name(image: int) -> str:
            split, row = splits[split_of(image)], image - starts[split_of(image)]
            of_class = int(np.searchsorted(split.class_starts, row, side="right")) - 1
            return f"{split.name}/{split.class_names[of_class]}/{row - split.class_starts[of_class]}"

        return find_twins(marks, lambda image: splits[split_of(image)].name, name)


def open_store(name: str, size: int | None = None, home: Path | None = None) -> Store:
    """Open a packed data set; one that is embedded is built on the spot if it is not there yet.

    Args:
        name: the data set.
        size: side in pixels; the data set's own by default.
        home: see `data_home`.

    Raises UserError for an unknown data set, a damaged store, or one that was not prepared, with the command to run.
    """
    sheet = image_set(name, home)
    size = sheet.size if size is None else size
    if store := find_store(sheet, size, home):
        return store
    if sheet.embedded:
        from metazoo.data.packing import pack

        return pack(sheet, (), size, home)
    path = store_path(name, size, home)
    state = f"is not prepared in {path.parent}"
    if path.exists():
        state = f"was prepared by another version of metazoo ({path})"
    command = f"metazoo data prepare {name} --from PATH" + (f" --size {size}" if size != sheet.size else "")
    raise UserError(f"{sheet.title} at {size} pixels {state}; run: {command}. {sheet.where}")


def find_store(sheet: DataSet, size: int, home: Path | None = None) -> Store | None:
    """The store of a data set at `size` pixels, if there is one and it holds what the fact sheet says today.

    Raises UserError if there is one and it is damaged.
    """
    path = store_path(sheet.name, size, home)
    if not (path / MANIFEST).exists():
        return None
    store = Store.open(path)
    return store if store.fits(sheet) else None


def prepared(home: Path | None = None) -> list[tuple[Path, Store | UserError]]:
    """Every store in `home`, by folder; in place of one that does not open, the reason."""
    found: list[tuple[Path, Store | UserError]] = []
    for manifest in sorted(data_home(home).glob(f"*/{MANIFEST}")):
        path = manifest.parent
        if not path.name.startswith("."):
            try:
                found.append((path, Store.open(path)))
            except UserError as error:
                found.append((path, error))
    return found
