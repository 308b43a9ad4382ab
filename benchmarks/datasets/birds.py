"""CUB-200-2011 as its authors publish it: the source of the data sets that divide its 200 species of birds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from metazoo.data.dataset import Count, DataSet, Download, Layout, read_splits
from metazoo.data.layouts import class_folders
from metazoo.data.pictures import Cropped, Picture, Piece
from metazoo.data.sources import Source
from metazoo.errors import UserError

Box = tuple[int, int, int, int]

NAMES, BOXES = "images.txt", "bounding_boxes.txt"
ARCHIVE = Download(
    "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz", md5="97eceeb196236b17998738112f37df78"
)


def cropped_folders(sheet: DataSet, sources: Sequence[Source]) -> Layout:
    """Class folders whose images are cut to the authors' bounding boxes, which images.txt and bounding_boxes.txt tell.

    Corners are rounded towards the upper left, as learn2learn does; a box ends where its image does.
    """
    boxes = _boxes(sheet, sources)
    layout = class_folders(sheet, sources)
    unboxed = [
        image
        for classes in layout.classes.values()
        for images in classes.values()
        for image in images
        if _key(image) not in boxes
    ]
    if unboxed:
        raise UserError(f"{BOXES} has no box for {len(unboxed)} images of {sheet.title}, '{unboxed[0]}' among them.")

    def images() -> Iterator[tuple[str, Picture]]:
        for name, picture in layout.images():
            assert isinstance(picture, (bytes, Piece))
            yield name, Cropped(picture, boxes[_key(name)])

    return Layout(layout.classes, images, f"{layout.form} and bounding boxes", layout.sources, layout.ignored)


def _key(name: str) -> str:
    """An image as images.txt has it: class and file."""
    return "/".join(name.split("/")[-2:])


def _boxes(sheet: DataSet, sources: Sequence[Source]) -> dict[str, Box]:
    """Image -> left, upper, right, lower in pixels."""
    lists: dict[str, str] = {}
    for source in sources:
        wanted = {name for name in source.names if name.rpartition("/")[2] in (NAMES, BOXES)}
        for name, content in source.read(wanted):
            lists[name.rpartition("/")[2]] = content.decode("utf-8", "replace")
    missing = [name for name in (NAMES, BOXES) if name not in lists]
    if missing:
        raise UserError(
            f"{sheet.title} needs {' and '.join(missing)}, which lie beside the authors' images; give the whole "
            "archive or folder CUB_200_2011."
        )
    try:
        names = dict(line.split() for line in lists[NAMES].splitlines() if line.strip())
        boxes = {}
        for line in lists[BOXES].splitlines():
            if line.strip():
                number, *corners = line.split()
                left, upper, width, height = (int(float(value)) for value in corners)
                boxes[names[number]] = left, upper, left + width, upper + height
    except (ValueError, KeyError, OverflowError) as error:
        raise UserError(f"{NAMES} and {BOXES} are not those of CUB-200-2011 ({error}); get them again.") from error
    return boxes


def bird_set(name: str, title: str, split: str, split_from: str, counts: Sequence[Count], cropped: bool) -> DataSet:
    """The fact sheet of one division of CUB-200-2011.

    Args:
        name, title: the data set's.
        split: the file of its class lists, without its suffix.
        split_from: whose division it is, for the citation.
        counts: of train, val and test.
        cropped: whether images are cut to their bounding boxes.
    """
    return DataSet(
        name=name,
        title=title,
        citation=(
            "Wah, Branson, Welinder, Perona, Belongie: The Caltech-UCSD Birds-200-2011 dataset. CNS-TR-2011-001, "
            f"Caltech 2011. Split: {split_from}."
        ),
        terms="For non-commercial research and education only; the photographs belong to those who took them.",
        where=(
            f"It is read from {ARCHIVE.filename} (data.caltech.edu/records/65de6-vp158)"
            + (", or its unpacked folder" if cropped else ", or from folders or archives of its 200 class folders")
            + "; --download fetches it."
        ),
        channels=3,
        size=84,
        splits=read_splits(Path(__file__).with_name("splits") / f"{split}.txt"),
        expected=dict(zip(("train", "val", "test"), counts, strict=True)),
        classes_of="cub",
        moments=((0.0,) * 3, (1.0,) * 3),  # as they are: CxGrad's data loader does not standardise them
        recognisers=(cropped_folders if cropped else class_folders,),
        downloads=(ARCHIVE,),
    )
