"""The public forms that data sets share: folders of images, one a class, and files of many images with labels."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from metazoo.data.arrays import FileArray
from metazoo.data.dataset import DataSet, Layout
from metazoo.data.pickles import reading
from metazoo.data.pictures import Picture
from metazoo.data.sources import Source
from metazoo.errors import UserError

LEVELS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""What folders above the classes are called -> the split that they hold."""


def class_folders(sheet: DataSet, sources: Sequence[Source]) -> Layout:
    """`CLASS/image.png`, at any depth and spread over any number of folders and archives.

    CLASS is a name of the sheet's class lists (`Alphabet/character01` for Omniglot). There may be a train, val or test
    level above it; if there is, it must be the split the class belongs to, unless it divides the images of every class.

    Raises UserError if a class is missing, or is under a split other than its own.
    """
    split_of = sheet.split_of
    depth = 1 + next(iter(split_of)).count("/")
    found: dict[str, list[str]] = defaultdict(list)
    levels: dict[str, set[str]] = defaultdict(set)
    ignored: list[str] = []
    wanted: list[tuple[str, Source, set[str]]] = []
    for label, source in labelled(sources):
        inside: set[str] = set()
        for name in source.images:
            *above, _ = name.split("/")
            class_name = "/".join(above[-depth:])
            if class_name not in split_of:
                ignored.append(f"{label}/{name}")
                continue
            inside.add(name)
            found[class_name].append(f"{label}/{name}")
            levels[class_name].add(LEVELS.get(above[-depth - 1], "") if len(above) > depth else "")
        wanted.append((f"{label}/", source, inside))
    _refuse_strangers(sheet, sources, found, ignored)
    refuse_missing(sheet, found)
    _refuse_other_split(sheet, levels)
    return Layout(
        classes={
            split: {name: sorted(found[name], key=image_order) for name in sorted(names)}
            for split, names in sheet.splits.items()
        },
        images=lambda: chosen(wanted),
        form="class folders",
        sources=tuple(source.path for source in sources),
        ignored=tuple(ignored),
    )


def labelled(sources: Sequence[Source]) -> list[tuple[str, Source]]:
    """Each source with what its images' names begin with: its file name, or its path where two share a file name."""
    names = Counter(source.path.name for source in sources)
    return [(source.path.name if names[source.path.name] == 1 else str(source.path), source) for source in sources]


def image_order(name: str) -> tuple[str, str]:
    """Images of a class are ordered by their own names, wherever the class lies."""
    return name.rpartition("/")[2], name


def chosen(wanted: Sequence[tuple[str, Source, set[str]]]) -> Iterator[tuple[str, Picture]]:
    """The images that are wanted of each source, under their names with a prefix."""
    for prefix, source, inside in wanted:
        for name, picture in source.pictures(inside):
            yield prefix + name, picture


@dataclass(frozen=True)
class Part:
    """Many images that lie one after the other in one file.

    Attributes:
        label: what the names of its images begin with.
        count: how many images there are.
        classes: class name -> the numbers of its images.
        images: called without arguments, yields every picture in order.
    """

    label: str
    count: int
    classes: Mapping[str, Sequence[int]]
    images: Callable[[], Iterator[Picture]]


def in_parts(sheet: DataSet, sources: Sequence[Source], form: str, parts: Sequence[Part]) -> Layout:
    """The layout of files that hold many images each. The classes in a file tell its split, not its name.

    Raises UserError if a class is missing or unknown, or a label points at no image.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for part in parts:
        for class_name, numbers in part.classes.items():
            if class_name not in sheet.split_of:
                raise UserError(f"{part.label} holds a class '{class_name}', which {sheet.title} does not have.")
            outside = [number for number in numbers if not 0 <= number < part.count]
            if outside:
                raise UserError(f"{part.label} has {part.count} images, and '{class_name}' has number {outside[0]}.")
            found[class_name].extend(f"{part.label}/{number}" for number in numbers)
    refuse_missing(sheet, found)

    def images() -> Iterator[tuple[str, Picture]]:
        for part in parts:
            for number, picture in enumerate(part.images()):
                yield f"{part.label}/{number}", picture

    return Layout(
        classes={split: {name: found[name] for name in sorted(names)} for split, names in sheet.splits.items()},
        images=images,
        form=form,
        sources=tuple(source.path for source in sources),
    )


def pictures_of(source: Source, name: str, array: FileArray) -> Iterator[Picture]:
    """The images of an array uint8 [n, H, W, C] that lies in a file of the source; UserError if it is cut short."""
    place = source.locate(name)
    pieces = None if place is None else array.pieces(place)
    if pieces is not None:
        yield from pieces
        return
    with reading(f"{source.path}/{name}"), source.open(name) as file:
        yield from array.rows(file)


def check_images(array: object, channels: int) -> FileArray:
    """An array of uint8 images [n, H, W, channels]; ValueError saying what it is instead."""
    if not isinstance(array, FileArray):
        raise ValueError("its images are no array")
    if array.dtype != np.uint8 or len(array.shape) != 4 or array.shape[3] != channels or min(array.shape[1:3]) < 1:
        raise ValueError(f"its images are an array of {array.dtype} {array.shape}, not of uint8 [n, H, W, {channels}]")
    return array


def refuse_missing(sheet: DataSet, found: Mapping[str, Sequence[str]]) -> None:
    """Raise UserError if a class of the sheet has not been found."""
    missing = sorted(name for name in sheet.split_of if not found.get(name))
    if missing:
        names = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        splits = ", ".join(split for split in sheet.splits if any(sheet.split_of[name] == split for name in missing))
        raise UserError(
            f"{len(missing)} of the {len(sheet.split_of)} classes of {sheet.title} are missing ({splits}: {names}); "
            "give every file, folder or archive that it consists of."
        )


def _refuse_strangers(sheet: DataSet, sources: Sequence[Source], found: dict, ignored: list[str]) -> None:
    if found:
        return
    given = ", ".join(str(source.path) for source in sources)
    archives = [name for source in sources for name in source.names if name.endswith((".tar", ".gz", ".tgz", ".zip"))]
    if ignored:
        example = PurePosixPath(ignored[0])
        held = f"its images are in folders such as '{example.parent.name}', which {sheet.title} does not have"
    elif archives:
        held = f"it holds no images but archives ({', '.join(archives[:6])}): give those"
    else:
        held = "it holds no images"
    raise UserError(f"This is not {sheet.title} ({given}): {held}. {sheet.where}")


def _refuse_other_split(sheet: DataSet, levels: dict[str, set[str]]) -> None:
    for class_name, above in sorted(levels.items()):
        split = sheet.split_of[class_name]
        if len(above) == 1 and not above <= {"", split}:
            raise UserError(
                f"The class '{class_name}' lies under '{min(above)}' and belongs to the {split} split of "
                f"{sheet.title}; these folders follow another split. Give the class folders without that level."
            )
