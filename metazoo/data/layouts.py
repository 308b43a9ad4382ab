"""The public form that most data sets share: folders of images, one a class."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from metazoo.data.dataset import DataSet, Layout
from metazoo.data.pictures import Piece
from metazoo.data.sources import Source
from metazoo.errors import UserError

_LEVELS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def class_folders(sheet: DataSet, sources: Sequence[Source]) -> Layout:
    """`CLASS/image.png`, at any depth and spread over any number of folders and archives.

    CLASS is a name of the sheet's class lists (`Alphabet/character01` for Omniglot). There may be a train, val or test
    level above it; if there is, it must be the split the class belongs to, unless it divides the images of every class.

    Raises UserError if a class is missing, or is under a split other than its own.
    """
    split_of = {name: split for split, names in sheet.splits.items() for name in names}
    depth = 1 + next(iter(split_of)).count("/")
    found: dict[str, list[str]] = defaultdict(list)
    levels: dict[str, set[str]] = defaultdict(set)
    ignored: list[str] = []
    for label, source in labelled(sources):
        for name in source.images:
            *above, _ = PurePosixPath(name).parts
            class_name = "/".join(above[-depth:])
            if class_name not in split_of:
                ignored.append(f"{label}/{name}")
                continue
            found[class_name].append(f"{label}/{name}")
            levels[class_name].add(_LEVELS.get(above[-depth - 1], "") if len(above) > depth else "")
    _refuse_strangers(sheet, sources, found, ignored)
    _refuse_missing(sheet, split_of, found)
    _refuse_other_split(sheet, split_of, levels)
    return Layout(
        classes={
            split: {name: sorted(found[name], key=_image_order) for name in sorted(names)}
            for split, names in sheet.splits.items()
        },
        images=lambda: _pictures(sources, found),
        form="class folders",
        sources=tuple(source.path for source in sources),
        ignored=tuple(ignored),
    )


def labelled(sources: Sequence[Source]) -> list[tuple[str, Source]]:
    """Each source with what its images' names begin with: its file name, or its path where two share a file name."""
    names = Counter(source.path.name for source in sources)
    return [(source.path.name if names[source.path.name] == 1 else str(source.path), source) for source in sources]


def _image_order(name: str) -> tuple[str, str]:
    return PurePosixPath(name).name, name


def _pictures(sources: Sequence[Source], found: dict[str, list[str]]) -> Iterator[tuple[str, bytes | Piece]]:
    wanted = {name for names in found.values() for name in names}
    for label, source in labelled(sources):
        prefix = f"{label}/"
        inside = {name.removeprefix(prefix) for name in wanted if name.startswith(prefix)}
        for name, picture in source.pictures(inside):
            yield prefix + name, picture


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


def _refuse_missing(sheet: DataSet, split_of: dict[str, str], found: dict) -> None:
    missing = sorted(set(split_of) - set(found))
    if missing:
        names = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        splits = ", ".join(split for split in sheet.splits if any(split_of[name] == split for name in missing))
        raise UserError(
            f"{len(missing)} of the {len(split_of)} classes of {sheet.title} are missing ({splits}: {names}); "
            "give every folder or archive that it consists of."
        )


def _refuse_other_split(sheet: DataSet, split_of: dict[str, str], levels: dict[str, set[str]]) -> None:
    for class_name, above in sorted(levels.items()):
        split = split_of[class_name]
        if len(above) == 1 and not above <= {"", split}:
            raise UserError(
                f"The class '{class_name}' lies under '{min(above)}' and belongs to the {split} split of "
                f"{sheet.title}; these folders follow another split. Give the class folders without that level."
            )
