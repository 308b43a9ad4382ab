"""The fact sheets: published lists and counts, and every public form of CIFAR-FS and Omniglot."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from archives import encoded, write_tar, write_zip
from PIL import Image

from metazoo.data.dataset import DataSet, dataset, image_set, published, read_splits
from metazoo.data.families import FunctionFamily
from metazoo.data.packing import pack
from metazoo.errors import UserError

CIFAR_FS, OMNIGLOT = image_set("cifar_fs"), image_set("omniglot")


def test_the_data_sets_are_found():
    found = published()
    assert {"cifar_fs", "omniglot"} <= set(found)
    assert all(name == sheet.name for name, sheet in found.items())


def test_an_unknown_data_set_names_the_nearest():
    with pytest.raises(UserError, match="no data set called 'cifarfs'; did you mean 'cifar_fs'"):
        dataset("cifarfs")


@pytest.mark.parametrize("sheet", published().values(), ids=lambda sheet: sheet.name)
def test_a_fact_sheet_is_complete_and_agrees_with_itself(sheet):
    for fact in (sheet.title, sheet.citation, sheet.terms, sheet.where):
        assert fact.strip()
    if isinstance(sheet, FunctionFamily):
        assert all(low < high for low, high in (*sheet.parameters.values(), *sheet.inputs))
        values = sheet.values(np.zeros((2, 3, len(sheet.inputs))), np.ones((2, len(sheet.parameters))))
        assert values.shape == (2, 3, sheet.outputs)
        return
    assert isinstance(sheet, DataSet) and sheet.channels in (1, 3) and sheet.ordered_by in ("name", "content")
    assert sheet.embedded or (sheet.recognisers and sheet.splits and sheet.expected)
    assert Image.Resampling[sheet.resample.upper()]
    names = [name for names in sheet.splits.values() for name in names]
    assert len(names) == len(set(names))
    for split, classes in sheet.splits.items():
        expected, turns = sheet.expected[split], len(sheet.rotations)
        assert expected.classes == turns * len(classes)
        if sheet.images_per_class:
            assert expected.images == expected.classes * sheet.images_per_class


def test_the_published_counts():
    counts = {split: count.classes for split, count in CIFAR_FS.expected.items()}
    assert counts == {"train": 64, "val": 16, "test": 20}
    counts = {split: count.classes for split, count in OMNIGLOT.expected.items()}
    assert counts == {"train": 4112, "val": 688, "test": 1692}
    assert {split: len(names) for split, names in OMNIGLOT.splits.items()} == {"train": 1028, "val": 172, "test": 423}
    assert sum(count.images for count in image_set("tiered_imagenet").expected.values()) == 779_165


PUBLISHED_LISTS = {
    "cifar_fs": "cifar_fs",
    "cub": "cub",
    "cub_cropped": "cub",
    "cub_140_30_30": "cub_metadataset_140_30_30",
    "cub_140_30_30_cropped": "cub_metadataset_140_30_30",
    "mini_imagenet": "miniimagenet",
    "omniglot": "omniglot",
    "tiered_imagenet": "tieredimagenet",
}


@pytest.mark.parametrize("name", PUBLISHED_LISTS)
def test_the_class_lists_are_the_published_ones(name, real_data):
    sheet = image_set(name)
    published = json.loads((real_data / "splits" / f"{PUBLISHED_LISTS[name]}.json").read_text())
    assert {split: sorted(names) for split, names in sheet.splits.items()} == {
        split: sorted(names) for split, names in published.items()
    }


def test_class_lists_are_written_in_short(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("# Of nothing.\n\n[train]\nant bee\n  Latin/character{01-03,11}\n[test]\nn{0998-1001}\n")
    latin = [f"Latin/character{number}" for number in ("01", "02", "03", "11")]
    assert read_splits(path) == {"train": ("ant", "bee", *latin), "test": ("n0998", "n0999", "n1000", "n1001")}


# Omniglot's forms: every character 20 times the same drawing is enough to be counted.


def omniglot_files(alphabets: set[str] | None = None, prefix: str = "") -> dict[str, bytes]:
    drawing = encoded(Image.new("1", (105, 105), 1))
    return {
        f"{prefix}{name}/{number:04}_{index:02}.png": drawing
        for number, name in enumerate(sorted(name for names in OMNIGLOT.splits.values() for name in names), start=1)
        if alphabets is None or name.split("/")[0] in alphabets
        for index in range(1, 21)
    }


def omniglot_halves() -> tuple[set[str], set[str]]:
    alphabets = sorted({name.split("/")[0] for names in OMNIGLOT.splits.values() for name in names})
    return set(alphabets[:30]), set(alphabets[30:])


def test_omniglot_is_recognised_as_its_authors_and_torchvision_have_it(tmp_path):
    background, evaluation = omniglot_halves()
    files = omniglot_files(background, "images_background/"), omniglot_files(evaluation, "images_evaluation/")
    zips = [write_zip(tmp_path / f"{number}.zip", half) for number, half in enumerate(files)]
    tars = [
        write_tar(tmp_path / f"{number}.tar.gz", omniglot_files(half), "w:gz")
        for number, half in enumerate((background, evaluation))
    ]
    layouts = [OMNIGLOT.layout(zips), OMNIGLOT.layout(list(reversed(tars)))]
    for layout in layouts:
        OMNIGLOT.check(layout)
        assert [len(layout.classes[split]) for split in ("train", "val", "test")] == [1028, 172, 423]
    with pytest.raises(UserError, match=r"of the 1623 classes of Omniglot are missing"):
        OMNIGLOT.layout(zips[:1])


# The real images, where they are.


def test_real_cifar_fs_test_split(real_data, tmp_path):
    sheet = replace(CIFAR_FS, splits={"test": CIFAR_FS.splits["test"]}, expected={"test": CIFAR_FS.expected["test"]})
    store = pack(sheet, [real_data / "cifar_fs_test.tar"], home=tmp_path)
    assert store.manifest.splits["test"].sha256 == CIFAR_FS.digests["test"]
    images = store.split("test").images.reshape(12_000, -1)
    assert len({image.tobytes() for image in images}) == 12_000  # no two of the test images are the same


def test_real_omniglot_val_split(real_data, tmp_path):
    sheet = replace(OMNIGLOT, splits={"val": OMNIGLOT.splits["val"]}, expected={"val": OMNIGLOT.expected["val"]})
    split = pack(sheet, [real_data / "omniglot_background.tar.gz"], home=tmp_path).split("val")
    assert split.images.shape == (13_760, 1, 28, 28) and len(split.class_names) == 688
    assert split.class_names[:2] == ("Armenian/character01@0", "Armenian/character01@180")
    np.testing.assert_array_equal(split.images[20:40], split.images[:20, :, ::-1, ::-1])
    assert 0.03 < (split.images > 127).mean() < 0.2  # white ink on black, a thin line
