"""What a data set is: a fact sheet (`DataSet`), and what was found where the user keeps its images (`Layout`).

What holds for data sets of every kind is in `FactSheet`; functions that are drawn and not stored have theirs in
`metazoo.data.families`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from metazoo.data.sources import Source, open_sources
from metazoo.errors import UserError, unknown
from metazoo.measures import ACCURACY, Measure

if TYPE_CHECKING:
    from metazoo.data.pictures import Picture

PACKAGE = "metazoo.benchmarks.datasets"

Kind = Literal["images", "functions"]

Moments: TypeAlias = "tuple[Sequence[float], Sequence[float]]"
"""Mean and standard deviation of each channel, in units of [0, 1]."""


@dataclass(frozen=True)
class Layout:
    """The images of one data set, found in one of its public forms.

    Attributes:
        classes: split -> class name -> the names of its images. An image's name is unique in the layout.
        images: called without arguments, yields every `(image name, picture)` once, in whatever order is cheapest to
            read (an archive's own); nothing is unpacked and only one picture need be in memory at a time. It yields the
            same pictures in the same order every time, so that a packing that was killed can go on.
        form: what was recognised, for a person ("class folders").
        sources: the files and folders that are read; none for an embedded data set.
        ignored: image files that were found and belong to no class of the data set.
    """

    classes: Mapping[str, Mapping[str, Sequence[str]]]
    images: Callable[[], Iterator[tuple[str, Picture]]]
    form: str
    sources: tuple[Path, ...] = ()
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Count:
    """How many classes and images a split holds, rotations counted as the classes they become."""

    classes: int
    images: int


@dataclass(frozen=True)
class Download:
    """A file that its authors publish: address and MD5 as they (or torchvision) state them."""

    url: str
    md5: str

    @property
    def filename(self) -> str:
        return self.url.rsplit("/", 1)[-1]


Recogniser: TypeAlias = "Callable[[DataSet, Sequence[Source]], Layout | None]"
"""Looks at the sources: the layout if they are in the form it knows, None if they are in another."""


@dataclass(frozen=True, kw_only=True)
class FactSheet:
    """What every data set says of itself. One `DATASET` in each module of `metazoo.benchmarks.datasets`.

    Attributes:
        name: what the command line calls it; the name of its module.
        title, citation, terms: for a person.
        where: how to get it, in one sentence.
        kind: of what its tasks are made; a network trained on one kind cannot be tested on another.
        measure: what its episodes are judged by.
    """

    kind: ClassVar[Kind]
    measure: ClassVar[Measure]

    name: str
    title: str
    citation: str
    terms: str
    where: str

    @property
    def pixels(self) -> int | None:
        """Side of its images unless another one is asked for; None where there are no images."""
        return None

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Keys of a run's config that differ from the usual defaults on the command line."""
        return {}

    def ways_text(self, ways: int) -> str:
        """How many classes an episode tells apart; empty where there are no classes."""
        return f"{ways}-way"

    def episode_text(self, ways: int, queries: int) -> str:
        """What an episode asks, in words."""
        return f"{ways}-way with {queries} queries a class"


@dataclass(frozen=True, kw_only=True)
class DataSet(FactSheet):
    """The fact sheet of a data set of images with class labels.

    Attributes:
        channels: 1 (grey) or 3 (RGB); images of any other kind are converted.
        size: side in pixels of the stored images unless another one is asked for.
        splits: the published class lists, split -> class names, before rotation. Embedded sets may leave it empty.
        expected: split -> how many classes and images the packed split holds; anything else is refused.
        digests: split -> SHA-256 of the packed array at `size`, where it is the same on every machine: what shows that
            images were altered (saved as JPEG, say) on their way.
        images_per_class: where it is the same for all classes: makes a refusal say which class is wrong.
        resample: the Pillow filter ("bicubic", "lanczos", ...) that images are resized with.
        inverted: store 255 - v (Omniglot: white ink on black).
        rotations: degrees; each makes a class of its own, named `class@degrees` when there is more than one.
        ordered_by: "name" or "content": the order of the images in a class. By content where the public forms of the
            set name its images differently, or not at all; it makes the stores of all forms identical.
        embedded: built without a source.
        classes_of: whose classes its class names name, such as "imagenet" (WordNet ids): data sets that say the same
            share a class where they share a name (`plain_class_name`). By default its classes are its own.
        moments: what its pixels are standardised with under the normalisation `per_data_set`; that of a data set
            without them is not laid down.
        recognisers: the public forms the set is read from, tried in turn.
        downloads: what `metazoo data prepare NAME --download` fetches.
    """

    kind = "images"
    measure = ACCURACY

    channels: int
    size: int
    splits: Mapping[str, Sequence[str]] = field(default_factory=dict)
    expected: Mapping[str, Count] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    images_per_class: int | None = None
    resample: str = "bicubic"
    inverted: bool = False
    rotations: tuple[int, ...] = (0,)
    ordered_by: str = "name"
    embedded: bool = False
    classes_of: str = ""
    moments: Moments | None = None
    recognisers: tuple[Recogniser, ...] = ()
    downloads: tuple[Download, ...] = ()

    @property
    def pixels(self) -> int:
        return self.size

    @cached_property
    def split_of(self) -> Mapping[str, str]:
        """Class name -> the split it belongs to."""
        return {name: split for split, names in self.splits.items() for name in names}

    def layout(self, sources: Sequence[Path] = (), size: int | None = None) -> Layout:
        """Recognise the form in which the user has the images.

        Embedded sets override this: they take no sources and may draw their images at `size` (pixels) directly.
        Raises UserError if the sources are in none of the known forms, or damaged.
        """
        if not sources:
            raise UserError(f"{self.title} needs a source: give --from PATH. {self.where}")
        opened = open_sources(sources)
        for recognise in self.recognisers:
            if found := recognise(self, opened):
                return found
        given = ", ".join(str(source) for source in sources)
        raise UserError(f"{given} does not hold {self.title} in any form metazoo reads. {self.where}")

    def derive(self, class_name: str) -> dict[str, int]:
        """The classes that a class of the layout becomes in the store: name -> degrees, counter-clockwise."""
        if self.rotations == (0,):
            return {class_name: 0}
        return {f"{class_name}@{degrees}": degrees for degrees in self.rotations}

    def plain_class_name(self, class_name: str) -> str:
        """What the world of `classes_of` calls a class of the store: its name without what `derive` added to it."""
        return class_name if self.rotations == (0,) else class_name.rpartition("@")[0]

    def check(self, layout: Layout) -> None:
        """Refuse (UserError) a layout whose splits share a class or whose counts are not the published ones."""
        self._check_disjoint(layout)
        for classes in layout.classes.values():
            for class_name, images in classes.items():
                if len(images) != (self.images_per_class or len(images)):
                    raise UserError(
                        f"The class '{class_name}' of {self.title} has {len(images)} images where "
                        f"{self.images_per_class} are expected; the source is incomplete or not the published one."
                    )
        for split, expected in self.expected.items():
            classes = layout.classes.get(split, {})
            turns = len(self.rotations)
            found = Count(turns * len(classes), turns * sum(map(len, classes.values())))
            if found != expected:
                raise UserError(
                    f"The {split} split of {self.title} has {found.classes} classes with {found.images} images where "
                    f"{expected.classes} with {expected.images} are expected; the source is incomplete or not the "
                    "published one."
                )

    def _check_disjoint(self, layout: Layout) -> None:
        home: dict[str, str] = {}
        seen: set[str] = set()
        for split, classes in layout.classes.items():
            for class_name, images in classes.items():
                if class_name in home:
                    raise UserError(
                        f"The class '{class_name}' of {self.title} is in both {home[class_name]} and {split}; "
                        "the classes of the splits must be disjoint."
                    )
                home[class_name] = split
                for image in images:
                    if image in seen:
                        raise UserError(f"The image '{image}' of {self.title} occurs twice; the source is damaged.")
                    seen.add(image)


def published() -> dict[str, FactSheet]:
    """The data sets that metazoo has, by name: the modules of `metazoo.benchmarks.datasets` that define `DATASET`."""
    package = importlib.import_module(PACKAGE)
    found: dict[str, FactSheet] = {}
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda module: module.name):
        sheet: Any = getattr(importlib.import_module(f"{PACKAGE}.{module.name}"), "DATASET", None)
        if isinstance(sheet, FactSheet):
            found[sheet.name] = sheet
    return found


def datasets(home: Path | None = None) -> dict[str, FactSheet]:
    """Every data set metazoo knows, by name: those it has, and the user's own, which `home` remembers.

    Args:
        home: see `metazoo.data.store.data_home`.
    """
    from metazoo.data.own import remembered  # makes sheets, and so stands on this module

    return {**remembered(home), **published()}


def dataset(name: str, home: Path | None = None) -> FactSheet:
    """The data set called `name`; UserError naming the nearest known one if there is none."""
    known = published()
    if name not in known:
        known = datasets(home)
    if name not in known:
        raise unknown("data set", name, known)
    return known[name]


def image_set(name: str, home: Path | None = None) -> DataSet:
    """The data set of images called `name`; UserError if there is none, or if it holds no images."""
    sheet = dataset(name, home)
    if not isinstance(sheet, DataSet):
        raise UserError(f"{sheet.title} holds no images, so there is nothing to prepare, verify or show. {sheet.where}")
    return sheet


def read_splits(path: Path) -> dict[str, tuple[str, ...]]:
    """Read a class list: `[split]` headings, then class names between blanks.

    `Latin/character{01-20,22}` stands for 21 names; numbers keep the width of their run's first. A # begins a comment.
    """
    splits: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            current = splits.setdefault(line.strip().strip("[]"), [])
        elif not line.startswith("#"):
            for word in line.split():
                current.extend(_expand(word))
    return {split: tuple(names) for split, names in splits.items()}


def _expand(word: str) -> Iterable[str]:
    if "{" not in word:
        return [word]
    stem, _, runs = word.removesuffix("}").partition("{")
    names: list[str] = []
    for run in runs.split(","):
        first, _, last = run.partition("-")
        names.extend(f"{stem}{number:0{len(first)}}" for number in range(int(first), int(last or first) + 1))
    return names
