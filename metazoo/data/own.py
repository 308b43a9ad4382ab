"""Images of one's own: class folders, divided into splits once and remembered beside the stores made of them."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from metazoo.data.dataset import Count, DataSet, Layout, published
from metazoo.data.layouts import LEVELS, chosen, image_order, labelled, refuse_missing
from metazoo.data.sources import Source, open_sources
from metazoo.data.store import data_home
from metazoo.errors import UserError, unknown
from metazoo.files import write_text

FORMAT = 1
SIZE = 84
NAME = re.compile(r"[a-z0-9][a-z0-9_]*")
LOT = re.compile(r"(\d+)(%?)/(\d+)(%?)/(\d+)(%?)")
SPLITS = ("train", "val", "test")
AS_FOLDERS = "folders"

Splits = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Found:
    """What lies in class folders: class -> image names, the split that folders above say each class belongs to, and
    which files of each source are images, under the prefix their names have in `classes`."""

    classes: Mapping[str, Sequence[str]]
    levels: Mapping[str, set[str]]
    files: Sequence[tuple[str, Source, set[str]]]


def own_set(name: str, sources: Sequence[Path], split: str, seed: int = 0, size: int | None = None) -> DataSet:
    """The fact sheet of images in class folders, divided as `split` says. It is not remembered yet.

    Args:
        name: what to call it: small letters, digits and underscores; not the name of a data set that metazoo has.
        sources: folders and archives. The folder that images lie in is their class.
        split: "folders" (train, val and test are folders above the classes); the path of a JSON file
            {"train": [class, ...], "val": ..., "test": ...}; or "64/16/20", so many classes by lot, which add up to all
            of them, or "64%/16%/20%".
        seed: of the lot. The same classes are divided the same way everywhere.
        size: side in pixels that images have unless another one is asked for.

    Raises UserError if the images do not lie in class folders, or cannot be divided so.
    """
    if not NAME.fullmatch(name):
        raise UserError(
            f"'{name}' cannot name a data set; use small letters, digits and underscores, such as my_birds."
        )
    if name in published():
        raise UserError(f"{name} is a data set that metazoo has, divided as published; give yours another name.")
    if not sources:
        raise UserError(f"{name} needs your images: give --from PATH.")
    found = _class_folders(open_sources(sources))
    splits, how = _divided(found, split, seed)
    return DataSet(
        name=name,
        title=name,
        citation=f"Your own images, {how}.",
        terms="Yours.",
        where="It was made of " + ", ".join(str(source) for source in sources) + ".",
        channels=3,
        size=size or SIZE,
        splits=splits,
        expected={key: Count(len(names), sum(len(found.classes[c]) for c in names)) for key, names in splits.items()},
        classes_of=name,
        recognisers=(own_folders,),
    )


def own_folders(sheet: DataSet, sources: Sequence[Source]) -> Layout:
    """The layout of a data set of one's own. Raises UserError if a class is missing."""
    found = _class_folders(sources)
    refuse_missing(sheet, found.classes)
    return Layout(
        classes={
            split: {name: sorted(found.classes[name], key=image_order) for name in sorted(names)}
            for split, names in sheet.splits.items()
        },
        images=lambda: chosen(found.files),
        form="class folders",
        sources=tuple(source.path for source in sources),
        ignored=tuple(
            image for name, images in found.classes.items() if name not in sheet.split_of for image in images
        ),
    )


def _class_folders(sources: Sequence[Source]) -> Found:
    """Classes are named by the folders that images lie in, less what all have in common and train, val or test."""
    folders: dict[tuple[str, ...], list[str]] = defaultdict(list)
    files = []
    for label, source in labelled(sources):
        images = source.images
        for name in images:
            folders[tuple(name.split("/")[:-1])].append(f"{label}/{name}")
        files.append((f"{label}/", source, set(images)))
    given = ", ".join(str(source.path) for source in sources)
    if not folders:
        raise UserError(f"{given} holds no images.")
    if () in folders:
        raise UserError(f"The image '{folders[()][0]}' lies in no class folder; put the images of each class in one.")
    below = {folder: _below_level(folder) for folder in folders}
    if not all(level for level, _ in below.values()):
        below = {folder: ("", folder) for folder in folders}
    above = [path[:-1] for _, path in below.values()]
    common = sum(1 for _ in takewhile(lambda parts: len(set(parts)) == 1, zip(*above, strict=False)))
    classes: dict[str, list[str]] = defaultdict(list)
    levels: dict[str, set[str]] = defaultdict(set)
    for folder, (level, path) in below.items():
        classes["/".join(path[common:])] += folders[folder]
        levels["/".join(path[common:])].add(level)
    return Found(classes, levels, files)


def _below_level(folder: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The split that a folder above the class says, if any, and what is below it."""
    for index in reversed(range(len(folder) - 1)):
        if folder[index] in LEVELS:
            return LEVELS[folder[index]], folder[index + 1 :]
    return "", folder


def _divided(found: Found, split: str, seed: int) -> tuple[Splits, str]:
    """The splits with their classes, and how that came about, in words."""
    lot = LOT.fullmatch(split)
    if split == AS_FOLDERS:
        splits, how = _by_folders(found), "divided as its folders are"
    elif lot:
        splits, how = _by_lot(sorted(found.classes), lot, seed), f"divided {split} by lot, seed {seed}"
    else:
        splits, how = _by_list(found, Path(split)), f"divided as {Path(split).name} lists them"
    return {name: tuple(sorted(splits[name])) for name in SPLITS if splits.get(name)}, how


def _by_folders(found: Found) -> Mapping[str, Sequence[str]]:
    splits: dict[str, list[str]] = defaultdict(list)
    for name, levels in found.levels.items():
        if len(levels) > 1:
            raise UserError(
                f"The class '{name}' lies under {' and '.join(sorted(levels))}; a class has to be in one split as a "
                "whole. Give --split 64%/16%/20% to divide the classes by lot."
            )
        splits[next(iter(levels))].append(name)
    if "" in splits:
        raise UserError(
            "Not all class folders lie under train, val or test; say which classes are in which split with --split "
            "SPLIT.json, or give --split 64%/16%/20% to divide them by lot."
        )
    return splits


def _by_lot(names: Sequence[str], lot: re.Match[str], seed: int) -> Mapping[str, Sequence[str]]:
    shares, percents = [int(share) for share in lot.group(1, 3, 5)], set(lot.group(2, 4, 6))
    if len(percents) > 1 or sum(shares) != (100 if percents == {"%"} else len(names)):
        example = "64%/16%/20%"
        raise UserError(
            f"There are {len(names)} classes, and --split {lot.group()} does not divide them: give three numbers that "
            f"add up to {len(names)}, or three percentages that add up to 100, such as {example}."
        )
    drawn = sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    # Bounds are rounded half up in whole numbers, so that they are the same everywhere.
    bounds = [0] + [(2 * len(names) * sum(shares[: i + 1]) + sum(shares)) // (2 * sum(shares)) for i in range(3)]
    splits = {split: drawn[bounds[i] : bounds[i + 1]] for i, split in enumerate(SPLITS)}
    empty = [split for split, share in zip(SPLITS, shares, strict=True) if share and not splits[split]]
    if empty:
        raise UserError(f"{lot.group()} of {len(names)} classes leaves none for {empty[0]}; choose other numbers.")
    return splits


def _by_list(found: Found, path: Path) -> Mapping[str, Sequence[str]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"--split {path} is neither a JSON file that can be read ({error.strerror}), nor three numbers as in "
            f"64/16/20, nor '{AS_FOLDERS}'."
        ) from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}).") from error
    lists = content.items() if isinstance(content, dict) else ()
    if not lists or not all(
        key in LEVELS and isinstance(names, list) and all(isinstance(name, str) for name in names)
        for key, names in lists
    ):
        raise UserError(f'{path} has to look like {{"train": ["ant", "bee"], "val": ["cat"], "test": ["dog"]}}.')
    splits: dict[str, list[str]] = defaultdict(list)
    home: dict[str, str] = {}
    for key, names in lists:
        for name in names:
            if name not in found.classes:
                raise unknown("class folder", name, found.classes)
            if name in home:
                raise UserError(f"{path} lists the class '{name}' under {home[name]} and under {key}.")
            home[name] = key
            splits[LEVELS[key]].append(name)
    return splits


def _sheet_path(name: str, home: Path | None) -> Path:
    return data_home(home) / "own" / f"{name}.json"


def refuse_other_division(sheet: DataSet, home: Path | None = None) -> None:
    """Raise UserError if a data set of the same name is remembered whose classes are divided otherwise."""
    former = remembered(home).get(sheet.name)
    if former and former.splits != sheet.splits:
        raise UserError(
            f"There is a data set {sheet.name} already, and its classes are divided otherwise. Choose another name, or "
            "give --force to put this one in its place."
        )


def remember(sheet: DataSet, home: Path | None = None) -> None:
    """Keep the sheet in the data home, where `dataset` and `datasets` find it from now on.

    One that is divided as before keeps the size it had.
    """
    former = remembered(home).get(sheet.name)
    facts = {
        "format": FORMAT,
        "citation": sheet.citation,
        "where": sheet.where,
        "channels": sheet.channels,
        "size": former.size if former and former.splits == sheet.splits else sheet.size,
        "expected": {split: [count.classes, count.images] for split, count in sheet.expected.items()},
        "splits": {split: list(names) for split, names in sheet.splits.items()},
    }
    write_text(_sheet_path(sheet.name, home), json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def remembered(home: Path | None = None) -> dict[str, DataSet]:
    """The data sets of one's own in the data home, by name. One that is damaged is left out with a warning."""
    found = {}
    for path in sorted((data_home(home) / "own").glob("*.json")):
        try:
            found[path.stem] = _read(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            print(f"metazoo: warning: {path} is damaged; prepare {path.stem} again with --force.", file=sys.stderr)
    return found


def _read(path: Path) -> DataSet:
    facts = json.loads(path.read_text(encoding="utf-8"))
    if facts["format"] != FORMAT or not NAME.fullmatch(path.stem):
        raise ValueError(path)
    return DataSet(
        name=path.stem,
        title=path.stem,
        citation=str(facts["citation"]),
        terms="Yours.",
        where=str(facts["where"]),
        channels=int(facts["channels"]),
        size=int(facts["size"]),
        splits={split: tuple(map(str, names)) for split, names in facts["splits"].items()},
        expected={split: Count(*map(int, count)) for split, count in facts["expected"].items()},
        classes_of=path.stem,
        recognisers=(own_folders,),
    )
