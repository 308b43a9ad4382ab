"""miniImageNet: 100 classes of ImageNet with 600 images each, in the division of Ravi and Larochelle."""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

from metazoo.data.dataset import Count, DataSet, Layout, read_splits
from metazoo.data.layouts import (
    Part,
    check_images,
    chosen,
    class_folders,
    in_parts,
    labelled,
    pictures_of,
    refuse_missing,
)
from metazoo.data.pickles import entries, integers, read_pickle, reading, text
from metazoo.data.sources import Source
from metazoo.errors import UserError

SPLITS = Path(__file__).with_name("splits")
NAME = re.compile(r"(n\d{8})(\d{8})\.\w+")  # as in the CSVs: class, then the image's number
ILSVRC_NAME = re.compile(r"(n\d{8})_(\d+)\.jpe?g", re.IGNORECASE)
NOT_IMAGES = ("bookkeeping", "labelsplit", "train_phase_val", "train_phase_test")
"""What the names of pickles say that are found beside those of the data set, and belong to other programs."""


@cache
def numbers() -> dict[str, frozenset[int]]:
    """Which images of each class are in the data set: the numbers that the authors' CSVs give them, from 1."""
    lines = (SPLITS / "mini_imagenet_images.txt").read_text(encoding="utf-8").splitlines()
    bits = (line.split() for line in lines if not line.startswith("#"))
    return {
        name: frozenset(number for number, bit in enumerate(f"{int(digits, 16):01300b}", start=1) if bit == "1")
        for name, digits in bits
    }


def cached_pickles(sheet: DataSet, sources: Sequence[Source]) -> Layout | None:
    """mini-imagenet-cache-{train,val,test}.pkl, as Ren et al. and learn2learn have them: `image_data`, `class_dict`.

    Also miniImageNet_category_split_*.pickle, as MetaOptNet has them: `data`, `labels`, `catname2label`.
    """
    files = [
        (source, name)
        for source in sources
        for name in source.names
        if name.endswith((".pkl", ".pickle")) and not any(word in name for word in NOT_IMAGES)
    ]
    parts = [_part(sheet, source, name) for source, name in files]
    return in_parts(sheet, sources, "pickles of images and their classes", parts) if parts else None


def _part(sheet: DataSet, source: Source, name: str) -> Part:
    with reading(f"{source.path}/{name}"), source.open(name) as file:
        content = entries(read_pickle(file, f"{source.path}/{name}"))
        if "image_data" in content:
            images = check_images(content["image_data"], sheet.channels)
            classes = {key: integers(members, file) for key, members in entries(content["class_dict"]).items()}
        elif "catname2label" in content:
            images = check_images(content["data"], sheet.channels)
            class_of = {label: text(key) for key, label in content["catname2label"].items()}
            classes = defaultdict(list)
            for number, label in enumerate(integers(content["labels"], file)):
                classes[class_of[label]].append(number)
        else:
            raise ValueError("it has neither image_data nor catname2label")
    return Part(PurePosixPath(name).name, len(images), classes, partial(pictures_of, source, name, images))


def listed_images(sheet: DataSet, sources: Sequence[Source]) -> Layout | None:
    """The authors' own form: one folder of images named as in their CSVs, n0153282900000005.jpg.

    The lists are in metazoo. CSVs that lie beside the images have to agree with them.
    """

    def chosen_images(names: Sequence[str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        for name in names:
            *above, file = name.split("/")
            match = NAME.fullmatch(file)
            if match and above[-1:] != [match[1]] and int(match[2]) in numbers().get(match[1], ()):
                found[match[1]].append(name)
        return found

    layout = _chosen(sheet, sources, "images named as in the CSVs", chosen_images)
    if layout:
        _check_lists(sheet, sources)
    return layout


def ilsvrc_folders(sheet: DataSet, sources: Sequence[Source]) -> Layout | None:
    """ImageNet's own training folders (ILSVRC-2012), n01532829/n01532829_1234.JPEG, whole.

    A CSV's number i stands for the i-th image of the class in the order of ImageNet's own numbers. The authors never
    said so; it is how the public programs that make miniImageNet from ImageNet read them.
    """

    def chosen_images(names: Sequence[str]) -> dict[str, list[str]]:
        numbered: dict[str, dict[int, str]] = defaultdict(dict)
        for name in names:
            match = ILSVRC_NAME.fullmatch(name.rpartition("/")[2])
            if match and match[1] in sheet.split_of:
                numbered[match[1]][int(match[2])] = name
        if max(map(len, numbered.values()), default=0) <= (sheet.images_per_class or 0):
            return {}
        found = {}
        for class_name, images in numbered.items():
            ordered, wanted = [images[number] for number in sorted(images)], sorted(numbers()[class_name])
            if len(ordered) < wanted[-1]:
                raise UserError(
                    f"ImageNet's class '{class_name}' has only {len(ordered)} images here, and {sheet.title} has "
                    f"number {wanted[-1]} of them; the training folders of ILSVRC-2012 have to be whole."
                )
            found[class_name] = [ordered[number - 1] for number in wanted]
        return found

    return _chosen(sheet, sources, "ImageNet's training folders", chosen_images)


def _chosen(sheet: DataSet, sources: Sequence[Source], form: str, choose: Any) -> Layout | None:
    """The layout of those images of the sources that `choose` takes: names -> class name -> names."""
    found: dict[str, list[str]] = defaultdict(list)
    wanted = []
    for label, source in labelled(sources):
        inside = choose(source.images)
        wanted.append((f"{label}/", source, {name for names in inside.values() for name in names}))
        for class_name, names in inside.items():
            found[class_name].extend(f"{label}/{name}" for name in names)
    if not found:
        return None
    refuse_missing(sheet, found)
    return Layout(
        classes={split: {name: found[name] for name in sorted(names)} for split, names in sheet.splits.items()},
        images=lambda: chosen(wanted),
        form=form,
        sources=tuple(source.path for source in sources),
    )


def _check_lists(sheet: DataSet, sources: Sequence[Source]) -> None:
    """Refuse (UserError) CSVs of images and labels that list other images, or divide the classes otherwise."""
    for source in sources:
        for name, content in source.read({name for name in source.names if name.endswith(".csv")}):
            rows = list(csv.reader(io.StringIO(content.decode("utf-8", "replace"))))
            if not rows or rows[0] != ["filename", "label"]:
                continue
            for row in rows[1:]:
                match = NAME.fullmatch(row[0]) if len(row) == 2 else None
                if not match or match[1] != row[1] or int(match[2]) not in numbers().get(row[1], ()):
                    raise UserError(
                        f"{source.path}/{name} lists '{','.join(row)}', which is not in the lists of Ravi and "
                        f"Larochelle: it is of another {sheet.title}."
                    )
            splits = sorted({sheet.split_of[label] for _, label in rows[1:]})
            if len(splits) > 1:
                raise UserError(
                    f"{source.path}/{name} lists classes of {' and '.join(splits)}: it is of another split."
                )


DATASET = DataSet(
    name="mini_imagenet",
    title="miniImageNet",
    citation=(
        "Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra: Matching networks for one shot learning. NeurIPS 2016. "
        "Split: Ravi, Larochelle: Optimization as a model for few-shot learning. ICLR 2017."
    ),
    terms="ImageNet's: for non-commercial research and education only (image-net.org/download).",
    where=(
        "It is read from mini-imagenet-cache-{train,val,test}.pkl (learn2learn's authors keep them at "
        "zenodo.org/record/7978538), from class folders, from a folder of images named as in Ravi and Larochelle's "
        "CSVs (n0153282900000005.jpg), or from the training folders of ILSVRC-2012 (image-net.org)."
    ),
    channels=3,
    size=84,
    splits=read_splits(SPLITS / "mini_imagenet.txt"),
    expected={"train": Count(64, 38_400), "val": Count(16, 9_600), "test": Count(20, 12_000)},
    images_per_class=600,
    ordered_by="content",
    classes_of="imagenet",
    moments=((0.0,) * 3, (1.0,) * 3),  # as they are: CxGrad's data loader does not standardise them
    recognisers=(cached_pickles, listed_images, ilsvrc_folders, class_folders),
)
