"""CIFAR-FS and FC100 from every public form of CIFAR-100: one store comes of all."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from archives import encoded, python2_pickle, write_folder, write_tar, write_zip

from metazoo.data.dataset import Count, DataSet, image_set
from metazoo.data.packing import pack
from metazoo.errors import UserError

CIFAR_FS = image_set("cifar_fs")

# CIFAR-100 in small: all classes, 3 images each.

EACH = 3


def small(sheet: DataSet) -> DataSet:
    expected = {split: Count(count.classes, EACH * count.classes) for split, count in sheet.expected.items()}
    return replace(sheet, images_per_class=EACH, expected=expected)


SMALL, SMALL_FC100 = small(CIFAR_FS), small(image_set("fc100"))
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


@pytest.fixture(autouse=True)
def _folder_for_sources(tmp_path):
    (tmp_path / "in").mkdir()


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


# FC100, which is CIFAR-100's images, too.

IMAGE = np.zeros((1, 32, 32, 3), np.uint8)


def fc100_files(writer: str = "2") -> dict[str, bytes]:
    """FC100_{train,val,test}.pickle: labels are numbers of CIFAR-100's classes."""
    files = {}
    for split, names in SMALL_FC100.splits.items():
        chosen = [(label, image) for label, _, image in cifar_images() if CLASSES[label] in names]
        labels: list[int] = [label for label, _ in chosen]
        images = np.stack([image for _, image in chosen])
        if writer == "2":
            content = python2_pickle({b"data": images, b"labels": labels})
        else:
            content = pickle.dumps({"data": images, "labels": np.array(labels)}, int(writer))
        files[f"FC100_{split}.pickle"] = content
    return files


def test_fc100_is_the_same_from_every_public_form(tmp_path):
    forms = cifar_forms(tmp_path / "in") | {
        "pickles": [write_folder(tmp_path / "in" / "fc100", fc100_files())],
        "pickles, as learn2learn fetches them": [write_zip(tmp_path / "in" / "fc100.zip", fc100_files())],
        "pickles of Python 3": [write_folder(tmp_path / "in" / "fc100-3", fc100_files("4"))],
    }
    forms = {form: paths for form, paths in forms.items() if "three" not in form and "by split" not in form}
    stores = {form: pack(SMALL_FC100, paths, home=tmp_path / form) for form, paths in forms.items()}
    assert len({store.manifest.identity for store in stores.values()}) == 1
    assert stores["pickles"].split("test").class_names == tuple(sorted(SMALL_FC100.splits["test"]))


def test_learn2learn_reads_these_pickles(tmp_path):
    from learn2learn.vision.datasets import FC100

    write_folder(tmp_path, fc100_files())
    theirs = FC100(str(tmp_path), mode="validation")
    expected = {(label, image.tobytes()) for label, _, image in cifar_images()}
    assert {(theirs[i][1], np.asarray(theirs[i][0]).tobytes()) for i in range(len(theirs))} <= expected


def test_fc100s_classes_are_whole_superclasses_of_cifar_100():
    splits = image_set("fc100").splits
    assert {split: len(names) for split, names in splits.items()} == {"train": 60, "val": 20, "test": 20}
    assert sorted(name for names in splits.values() for name in names) == CLASSES
    superclasses = {"fish": "train", "trees": "train", "bears": "val", "people": "test", "insects": "test"}
    members = {
        "fish": "aquarium_fish flatfish ray shark trout",
        "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
        "bears": "bear leopard lion tiger wolf",
        "people": "baby boy girl man woman",
        "insects": "bee beetle butterfly caterpillar cockroach",
    }
    for name, split in superclasses.items():
        assert set(members[name].split()) <= set(splits[split])


@pytest.mark.parametrize(
    ("val", "sentence"),
    [
        (pickle.dumps({"data": IMAGE, "labels": [100]}), "it has the label 100"),
        (pickle.dumps({"data": IMAGE, "labels": ["a"]}), "where whole numbers should be"),
        (pickle.dumps({"labels": [0]}), "not a pickle of plain arrays"),
        (fc100_files()["FC100_train.pickle"], "20 of the 100 classes of FC100 are missing"),
    ],
)
def test_pickles_of_something_else_are_refused(tmp_path, val, sentence):
    with pytest.raises(UserError, match=sentence):
        pack(SMALL_FC100, [write_folder(tmp_path / "in", fc100_files() | {"FC100_val.pickle": val})], home=tmp_path)
