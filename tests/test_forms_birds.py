"""CUB-200-2011 as its authors publish it and in class folders, whole and cut to the bounding boxes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from archives import encoded, write_folder, write_tar, write_zip
from PIL import Image

from metazoo.data.dataset import Count, DataSet, image_set
from metazoo.data.packing import pack
from metazoo.errors import UserError

NAMES = ("cub", "cub_cropped", "cub_140_30_30", "cub_140_30_30_cropped")
EACH = 2
BOXES = {0: (3.0, 4.0, 10.0, 8.0), 1: (0.9, 1.2, 20.7, 30.0)}  # the second reaches beyond its image
CUTS = {0: (3, 4, 13, 12), 1: (0, 1, 20, 16)}


def small(name: str) -> DataSet:
    """The sheet with two classes a split, of two images each."""
    sheet = image_set(name)
    splits = {split: names[:2] for split, names in sheet.splits.items()}
    return replace(sheet, size=12, splits=splits, expected={split: Count(2, 2 * EACH) for split in splits})


def image(class_name: str, index: int) -> np.ndarray:
    """uint8 [16, 24, 3], or [16, 20, 3] for the second image of a class."""
    width = 20 if index else 24
    return np.random.default_rng([int(class_name[:3]), index]).integers(0, 256, (16, width, 3), dtype=np.uint8)


def archive(sheet: DataSet, prefix: str = "CUB_200_2011/") -> dict[str, bytes]:
    """What the authors' archive holds; its text files have a line an image, numbered from 1."""
    files = [
        (name, index, f"{name}/{name[4:]}_{index:04}_796111.jpg") for name in sheet.split_of for index in range(EACH)
    ]
    listed = [f"{number} {path}" for number, (_, _, path) in enumerate(files, start=1)]
    boxes = [" ".join(map(str, (number, *BOXES[index]))) for number, (_, index, _) in enumerate(files, start=1)]
    classes = [f"{number} {name}" for number, name in enumerate(sheet.split_of, start=1)]
    texts = {"images.txt": listed, "bounding_boxes.txt": boxes, "classes.txt": classes}
    return (
        {"attributes.txt": b"1 has_bill_shape::curved\n"}
        | {f"{prefix}{name}": ("\n".join(lines) + "\n").encode() for name, lines in texts.items()}
        | {f"{prefix}images/{path}": encoded(image(name, index)) for name, index, path in files}
    )


def folders(sheet: DataSet) -> dict[str, bytes]:
    return {n.partition("images/")[2]: c for n, c in archive(sheet).items() if "images/" in n}


@pytest.mark.parametrize("name", NAMES)
def test_every_form_gives_the_same_store(name, tmp_path):
    sheet = small(name)
    forms: dict[str, list[Path]] = {
        "archive": [write_tar(tmp_path / "CUB_200_2011.tgz", archive(sheet), "w:gz")],
        "unpacked": [write_folder(tmp_path / "unpacked", archive(sheet))],
        "its folder": [tmp_path / "unpacked" / "CUB_200_2011"],
        "zipped": [write_zip(tmp_path / "cub.zip", archive(sheet, "data/CUB_200_2011/"))],
    }
    classes = write_folder(tmp_path / "classes", folders(sheet))
    if sheet.name.endswith("cropped"):
        texts = tmp_path / "unpacked" / "CUB_200_2011"
        forms["class folders and lists"] = [classes, texts / "images.txt", texts / "bounding_boxes.txt"]
        with pytest.raises(UserError, match=r"needs images\.txt and bounding_boxes\.txt"):
            sheet.layout([classes])
    else:
        forms["class folders"] = [classes]
    stores = {form: pack(sheet, paths, home=tmp_path / form) for form, paths in forms.items()}
    assert len({store.manifest.identity for store in stores.values()}) == 1
    split = stores["archive"].split("test")
    for place, class_name in enumerate(split.class_names):
        for index in range(EACH):
            whole = Image.fromarray(image(class_name, index))
            cut = whole.crop(CUTS[index]) if sheet.name.endswith("cropped") else whole
            expected = np.asarray(cut.resize((12, 12), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
            np.testing.assert_array_equal(split.images[EACH * place + index], expected)


def test_the_two_divisions_are_told_apart():
    sheets = {name: image_set(name) for name in NAMES}
    assert [len(sheets["cub"].splits[split]) for split in ("train", "val", "test")] == [100, 50, 50]
    assert [len(sheets["cub_140_30_30"].splits[split]) for split in ("train", "val", "test")] == [140, 30, 30]
    assert {sum(count.images for count in sheet.expected.values()) for sheet in sheets.values()} == {11_788}
    assert set(sheets["cub"].split_of) == set(sheets["cub_140_30_30"].split_of)
    classes = sorted(sheets["cub"].split_of)
    assert sheets["cub"].splits["train"] == tuple(classes[::2])
    assert sheets["cub"].splits["val"] == tuple(classes[1::4])
    assert len({sheet.title for sheet in sheets.values()}) == len(NAMES)


def test_the_whole_and_the_cropped_are_different_data(tmp_path):
    path = write_tar(tmp_path / "CUB_200_2011.tgz", archive(small("cub")), "w:gz")
    stores = [pack(small(name), [path], home=tmp_path) for name in NAMES[:2]]
    assert stores[0].manifest.identity != stores[1].manifest.identity
    assert len({store.path for store in stores}) == 2


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("bounding_boxes.txt", b"1 3.0 4.0 10.0\n", "are not those of CUB-200-2011"),
        ("bounding_boxes.txt", b"99 3.0 4.0 10.0 8.0\n", "are not those of CUB-200-2011"),
        ("bounding_boxes.txt", b"1 nan 4.0 10.0 8.0\n", "are not those of CUB-200-2011"),
        ("bounding_boxes.txt", b"1 1e999 4.0 10.0 8.0\n", "are not those of CUB-200-2011"),
        ("bounding_boxes.txt", b"1 3.0 4.0 10.0 8.0\n", "has no box for 11 images"),
        ("bounding_boxes.txt", b"\n".join(b"%d 90.0 4.0 10.0 8.0" % n for n in range(1, 13)), "is not inside its"),
        ("images.txt", b"one two three\n", "are not those of CUB-200-2011"),
    ],
)
def test_lists_that_are_damaged_are_refused(tmp_path, name, content, sentence):
    sheet = small("cub_cropped")
    path = write_folder(tmp_path / "in", archive(sheet) | {f"CUB_200_2011/{name}": content})
    with pytest.raises(UserError, match=sentence):
        pack(sheet, [path], home=tmp_path / "home")


def test_an_image_too_few_is_refused_with_what_was_expected(tmp_path):
    sheet = small("cub")
    tree = folders(sheet)
    tree.pop(max(name for name in tree if name.startswith(sheet.splits["train"][0])))
    with pytest.raises(UserError, match=r"train split of CUB .* 2 classes with 3 images where 2 with 4 are expected"):
        pack(sheet, [write_folder(tmp_path / "in", tree)], home=tmp_path / "home")
