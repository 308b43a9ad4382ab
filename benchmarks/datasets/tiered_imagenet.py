"""tieredImageNet: 608 classes of ImageNet, divided so that training and testing share no branch of WordNet."""

from __future__ import annotations

import re
import zipfile
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import IO

from metazoo.data.arrays import FileArray, Span, read_npy
from metazoo.data.dataset import Count, DataSet, Layout, read_splits
from metazoo.data.layouts import Part, check_images, class_folders, in_parts
from metazoo.data.pickles import entries, integers, read_pickle, reading, text
from metazoo.data.pictures import Picture, Piece
from metazoo.data.sources import Source
from metazoo.errors import UserError

SPLITS = Path(__file__).with_name("splits")
IMAGES = re.compile(r"((?:.*/)?[^/]*(?:train|val|test))_images(_png\.pkl|\.npz)")


@cache
def class_names() -> dict[str, str]:
    """What WordNet calls the classes -> their WordNet ids: all names of a class, its first one, or the id itself."""
    lines = (SPLITS / "tiered_imagenet_names.txt").read_text(encoding="utf-8").splitlines()
    called = dict(line.split(" ", 1) for line in lines if not line.startswith("#"))
    uses = Counter(names.split(",")[0] for names in called.values())
    known = {names.split(",")[0]: name for name, names in called.items() if uses[names.split(",")[0]] == 1}
    return known | {names: name for name, names in called.items()} | {name: name for name in called}


def authors_files(sheet: DataSet, sources: Sequence[Source]) -> Layout | None:
    """{train,val,test}_images_png.pkl, or _images.npz, each with its _labels.pkl, as Ren et al. have them.

    The pickles hold a list of PNG files. The npz hold arrays [n, 84, 84, 3] as OpenCV has images: blue first.
    """
    found: dict[str, tuple[Source, str]] = {}
    for source in sources:
        for name in source.names:
            match = IMAGES.fullmatch(name)
            if match and (match[2] != ".npz" or match[1] not in found):  # the authors' programs make one of the other
                found[match[1]] = source, name
    if not found:
        return None
    known = class_names() | _given_names(sources)
    parts = []
    for stem, (source, name) in found.items():
        count, images = _images(sheet, source, name)
        members = _members(*_labels(sources, source, stem), count, known)
        parts.append(Part(name.rpartition("/")[2], count, members, images))
    return in_parts(sheet, sources, "arrays of images and their labels", parts)


def _labels(sources: Sequence[Source], beside: Source, stem: str) -> tuple[Source, str]:
    """The labels of the images `stem`: in the same folder, or anywhere if the files were given one by one."""
    wanted = f"{stem}_labels.pkl"
    for source in (beside, *sources):
        if wanted in source.names:
            return source, wanted
    raise UserError(f"{beside.path} holds {stem}_images and not {wanted}, which says what is on them; give both.")


def _given_names(sources: Sequence[Source]) -> dict[str, str]:
    """The authors' own list, if it is there: the lines of class_names.txt are those of synsets.txt."""
    lists: dict[str, list[str]] = {}
    for source in sources:
        wanted = {name for name in source.names if name.endswith(("class_names.txt", "synsets.txt"))}
        for name, content in source.read(wanted):
            lists[name.rpartition("/")[2].removeprefix("tiered-imagenet-")] = content.decode("utf-8").splitlines()
    names, ids = lists.get("class_names.txt", []), lists.get("synsets.txt", [])
    pairs = zip(names, ids, strict=True) if len(names) == len(ids) else ()
    return {name.strip(): wnid.strip() for name, wnid in pairs}


def _images(sheet: DataSet, source: Source, name: str) -> tuple[int, Callable[[], Iterator[Picture]]]:
    """How many images there are in a file, and what yields them."""
    if name.endswith(".npz"):
        with _npy(source, name) as file:
            return len(check_images(read_npy(file), sheet.channels)), partial(_blue_first, source, name)
    with reading(f"{source.path}/{name}"), source.open(name) as file:
        files = _Files(read_pickle(file, f"{source.path}/{name}"))
        return len(files.offsets), partial(_encoded, source, name, files)


def _members(source: Source, name: str, count: int, known: Mapping[str, str]) -> dict[str, list[int]]:
    """Class -> the numbers of its images, of `count` in all."""
    with reading(f"{source.path}/{name}"), source.open(name) as file:
        content = entries(read_pickle(file, f"{source.path}/{name}"))
        titles = [text(title) for title in content["label_specific_str"]]
        labels = integers(content["label_specific"], file)
        classes = [titles[label] for label in labels if label >= 0]
    if len(classes) != count:
        raise UserError(
            f"{source.path}/{name} has {len(classes)} labels, and there are {count} images; get both again."
        )
    strangers = [title for title in titles if title not in known]
    if strangers:
        raise UserError(
            f"{source.path}/{name} calls a class '{strangers[0]}', which WordNet does not; give the authors' "
            "class_names.txt and synsets.txt, too."
        )
    members: dict[str, list[int]] = defaultdict(list)
    for number, title in enumerate(classes):
        members[known[title]].append(number)
    return members


class _Files:
    """Where the PNG files of a pickle begin and end in it, in a few bytes each; small ones lie here."""

    def __init__(self, items: Sequence[object]) -> None:
        self.offsets, self.sizes, self.coded = array("q"), array("q"), False
        self.held: dict[int, bytes] = {}
        for number, item in enumerate(items):
            content = item.data if isinstance(item, FileArray) else item
            if not isinstance(content, (Span, bytes)):
                raise ValueError("it holds something that is no PNG file")
            if isinstance(content, bytes):
                self.held[number] = content
                content = Span(0, 0)
            self.coded |= content.coded
            self.offsets.append(content.offset)
            self.sizes.append(content.size)


def _encoded(source: Source, name: str, files: _Files) -> Iterator[Picture]:
    place = source.locate(name)
    with reading(f"{source.path}/{name}"), source.open(name) as file:
        for number, (offset, size) in enumerate(zip(files.offsets, files.sizes, strict=True)):
            if number in files.held:
                yield files.held[number]
            elif place is None or files.coded:
                yield Span(offset, size, files.coded).read(file)
            else:
                yield Piece(place.path, place.offset + offset, size)


def _blue_first(source: Source, name: str) -> Iterator[Picture]:
    with _npy(source, name) as file:
        for image in read_npy(file).rows(file):
            yield image[..., ::-1]


@contextmanager
def _npy(source: Source, name: str) -> Iterator[IO[bytes]]:
    """The array `images` of an npz, open for reading."""
    with (
        reading(f"{source.path}/{name}", "an npz of images"),
        source.open(name) as file,
        zipfile.ZipFile(file) as archive,
        archive.open("images.npy") as inside,
    ):
        yield inside


DATASET = DataSet(
    name="tiered_imagenet",
    title="tieredImageNet",
    citation=(
        "Ren, Triantafillou, Ravi, Snell, Swersky, Tenenbaum, Larochelle, Zemel: Meta-learning for semi-supervised "
        "few-shot classification. ICLR 2018."
    ),
    terms="ImageNet's: for non-commercial research and education only (image-net.org/download).",
    where=(
        "It is read from the files of github.com/renmengye/few-shot-ssl-public, {train,val,test}_images_png.pkl and "
        "_labels.pkl (learn2learn's authors keep them at zenodo.org/record/7978538), from class folders, or from the "
        "training folders of ILSVRC-2012 (image-net.org)."
    ),
    channels=3,
    size=84,
    splits=read_splits(SPLITS / "tiered_imagenet.txt"),
    expected={"train": Count(351, 448_695), "val": Count(97, 124_261), "test": Count(160, 206_209)},
    ordered_by="content",
    classes_of="imagenet",
    moments=((0.0,) * 3, (1.0,) * 3),  # as they are: CxGrad's data loader does not standardise them
    recognisers=(authors_files, class_folders),
)
