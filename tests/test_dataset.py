"""The fact sheets: published lists and counts, and every public form of CIFAR-FS and Omniglot."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from archives import encoded, python2_pickle, write_folder, write_tar, write_zip
from PIL import Image

from metazoo.data.dataset import Count, DataSet, dataset, image_set, published, read_splits
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


# CIFAR-100 in small: all classes, 3 images each.

EACH = 3
SMALL = replace(
    CIFAR_FS,
    images_per_class=EACH,
    expected={split: Count(count.classes, EACH * count.classes) for split, count in CIFAR_FS.expected.items()},
)
CLASSES = sorted(name for names in CIFAR_FS.splits.values() for name in names)


def cifar_images(seed: int = 0) -> list[tuple[int, bytes, np.ndarray]]:
    """Fine label, file name and image of 300 images, shuffled; classes share file names, as CIFAR-100's do."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(np.arange(100), EACH))
    values = generator.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
    names = [b"thing_%d.png" % (index % 7) for index in range(len(labels))]
    return list(zip(labels.tolist(), names, values, strict=True))


def planes(image: np.ndarray) -> np.ndarray:
    return image.transpose(2, 0, 1).reshape(-1)


def python_files(folder: str = "cifar-100-python") -> dict[str, bytes]:
    images = cifar_images()
    labels = {b"fine_label_names": [name.encode() for name in CLASSES], b"coarse_label_names": [b"fish"]}
    files = {f"{folder}/file.txt~": b"", f"{folder}/meta": python2_pickle(labels)}
    for part, chosen in (("train", images[:250]), ("test", images[250:])):
        files[f"{folder}/{part}"] = python2_pickle(
            {
                b"data": np.stack([planes(image) for _, _, image in chosen]),
                b"batch_label": b"a part",
                b"fine_labels": [label for label, _, _ in chosen],
                b"coarse_labels": [0 for _ in chosen],
                b"filenames": [name for _, name, _ in chosen],
            }
        )
    return files


def binary_files(folder: str = "cifar-100-binary") -> dict[str, bytes]:
    images = cifar_images()
    files = {f"{folder}/fine_label_names.txt": "\n".join([*CLASSES, ""]).encode()}
    for part, chosen in (("train", images[:250]), ("test", images[250:])):
        records = [bytes([0, label]) + planes(image).tobytes() for label, _, image in chosen]
        files[f"{folder}/{part}.bin"] = b"".join(records)
    return files


def class_files(level: bool = False) -> dict[str, bytes]:
    split_of = {name: split for split, names in CIFAR_FS.splits.items() for name in names}
    return {
        f"{split_of[CLASSES[label]] + '/' if level else ''}{CLASSES[label]}/{index:05}.png": encoded(image)
        for index, (label, _, image) in enumerate(cifar_images())
    }


def cifar_forms(path: Path) -> dict[str, list[Path]]:
    classes = class_files()
    by_split = {
        split: {name: content for name, content in classes.items() if name.split("/")[0] in names}
        for split, names in CIFAR_FS.splits.items()
    }
    return {
        "python archive": [write_tar(path / "cifar-100-python.tar.gz", python_files(), "w:gz")],
        "python archive, packed otherwise": [write_zip(path / "p.zip", dict(reversed(python_files("data").items())))],
        "python folder": [write_folder(path / "python" / "cifar-100-python", python_files("."))],
        "folder around the python folder": [path / "python"],
        "binary archive": [write_tar(path / "cifar-100-binary.tar.gz", binary_files(), "w:gz")],
        "binary folder": [write_folder(path / "binary", binary_files("."))],
        "class folders": [write_folder(path / "classes", classes)],
        "class folders by split": [write_zip(path / "classes.zip", class_files(level=True))],
        "three tars": [write_tar(path / f"{split}.tar", files) for split, files in by_split.items()],
    }


def test_cifar_fs_is_the_same_from_every_public_form(tmp_path):
    stores = {form: pack(SMALL, paths, home=tmp_path / form) for form, paths in cifar_forms(tmp_path / "in").items()}
    assert len({store.manifest.identity for store in stores.values()}) == 1
    assert {store.manifest.form for store in stores.values()} == {
        "CIFAR-100's Python archive",
        "CIFAR-100's binary archive",
        "class folders",
    }
    split = stores["python archive"].split("val")
    assert split.class_names == tuple(sorted(CIFAR_FS.splits["val"]))
    for number, name in enumerate(split.class_names):
        expected = {planes(image).tobytes() for label, _, image in cifar_images() if CLASSES[label] == name}
        assert {image.tobytes() for image in split.images[EACH * number : EACH * (number + 1)]} == expected


@pytest.fixture(autouse=True)
def _folder_for_sources(tmp_path):
    (tmp_path / "in").mkdir()


def test_cifar_archives_that_are_damaged_inside_are_refused(tmp_path):
    def refused(files, sentence):
        path = write_tar(tmp_path / "in" / "cifar.tar", files)
        with pytest.raises(UserError, match=sentence):
            pack(SMALL, [path], home=tmp_path / "home")
        assert not list((tmp_path / "home").glob("*[!k]"))

    python, binary = python_files(), binary_files()
    train = python["cifar-100-python/train"]
    refused(python | {"cifar-100-python/train": train[:5000]}, r"cifar\.tar/cifar-100-python/train is not a pickle")
    metas: list[object] = [{b"label_names": []}, [1], {b"fine_label_names": [b"ant"]}]
    for meta in metas:
        files = python | {"cifar-100-python/meta": python2_pickle(meta)}
        refused(files, "does not hold what CIFAR-100's Python archive holds")
    refused(python | {"cifar-100-python/test": train}, r"class '\w+' of CIFAR-FS has \d images where 3 are expected")
    train = binary["cifar-100-binary/train.bin"]
    refused(binary | {"cifar-100-binary/train.bin": train[:-1]}, "does not hold what CIFAR-100's binary")
    refused(binary | {"cifar-100-binary/train.bin": train[3074:]}, r"has 2 images where 3 are expected")
    refused(binary | {"cifar-100-binary/train.bin": b"\0\xc8" + train[2:]}, "does not hold what CIFAR-100's binary")
    refused({n: c for n, c in binary.items() if "test" not in n}, "it holds no images")


def test_cifar_100_is_given_alone(tmp_path):
    forms = cifar_forms(tmp_path / "in")
    with pytest.raises(UserError, match="holds all of CIFAR-FS; give it alone"):
        pack(SMALL, [*forms["python archive"], *forms["class folders"]], home=tmp_path / "home")


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
