"""Small data sets in the public forms of the real ones, for trying what the readers do with damaged ones."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image

from metazoo.benchmarks.datasets.mini_imagenet import numbers
from metazoo.data.dataset import Count, DataSet, image_set
from metazoo.data.own import own_set

Files = list[tuple[str, bytes]]
"""Name and contents of every file; a name may occur twice, as it may in a tar."""

Container = Literal["folder", "tar", "tar.gz", "zip", "files"]

CLASSES = {"train": 3, "val": 2, "test": 2}
EACH = 3
SIDE = 12


@dataclass(frozen=True)
class Form:
    """One form of one data set.

    Attributes:
        name: for the tally.
        sheet: the fact sheet of the small data set, given the sources: one's own is made of what they hold.
        files: what it consists of.
        container: what the files lie in; "files" are given one by one.
        checked: whether checksums cover the images, so that no changed byte of one can go unnoticed.
        counted: whether it is known how many images there should be.
    """

    name: str
    sheet: Callable[[Sequence[Path]], DataSet]
    files: Callable[[], Files]
    container: Container
    checked: bool
    counted: bool = True


def write(files: Files, container: Container, folder: Path) -> list[Path]:
    """Write the files into `folder`; returns the sources to give."""
    if container == "zip":
        with zipfile.ZipFile(folder / "data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files:
                archive.writestr(name, content)
        return [folder / "data.zip"]
    if container in ("tar", "tar.gz"):
        path = folder / f"data.{container}"
        with tarfile.open(path, "w:gz" if container == "tar.gz" else "w") as tar:
            for name, content in files:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return [path]
    root = folder / "data"
    for name, content in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return [root] if container == "folder" else sorted(root / name for name in dict(files))


def forms() -> list[Form]:
    """Every form that the readers know, but for ImageNet's own folders, which are too many images."""
    cifar, mini, tiered, fc100, omniglot, cub = (
        small(image_set(name))
        for name in ("cifar_fs", "mini_imagenet", "tiered_imagenet", "fc100", "omniglot", "cub_cropped")
    )
    return [
        _form("class folders", cifar, lambda: class_files(cifar, "PNG"), "folder", True),
        _form("class folders of JPEGs, tar", mini, lambda: class_files(mini, "JPEG"), "tar", False),
        _form("class folders by split, tar.gz", cifar, lambda: class_files(cifar, "PNG", level=True), "tar.gz", True),
        _form("class folders of JPEGs, zip", tiered, lambda: class_files(tiered, "JPEG"), "zip", True),
        _form("character folders, zip", omniglot, lambda: class_files(omniglot, "PNG"), "zip", True),
        _form("CIFAR-100, Python, tar.gz", cifar, lambda: cifar_python(cifar), "tar.gz", True),
        _form("CIFAR-100, Python, folder", fc100, lambda: cifar_python(fc100), "folder", False),
        _form("CIFAR-100, binary, tar", cifar, lambda: cifar_binary(cifar), "tar", False),
        _form("FC100, pickles", fc100, lambda: fc100_pickles(fc100), "files", False),
        _form("miniImageNet, cached pickles", mini, lambda: mini_pickles(mini), "files", False),
        _form("miniImageNet, named images, tar.gz", mini, lambda: mini_listed(mini), "tar.gz", True),
        _form("tieredImageNet, PNG pickles", tiered, lambda: tiered_files(tiered, npz=False), "files", True),
        _form("tieredImageNet, npz", tiered, lambda: tiered_files(tiered, npz=True), "folder", True),
        _form("CUB with boxes, tar.gz", cub, lambda: cub_files(cub), "tar.gz", True),
        Form(
            "one's own, with a JSON",
            _own,
            lambda: [*class_files(cifar, "PNG"), _own_json(cifar)],
            "folder",
            True,
            False,
        ),
    ]


def _form(name: str, sheet: DataSet, files: Callable[[], Files], container: Container, checked: bool) -> Form:
    return Form(name, lambda sources: sheet, files, container, checked)


def small(sheet: DataSet) -> DataSet:
    """The data set with a few of its classes and images."""
    splits = {split: sheet.splits[split][:count] for split, count in CLASSES.items()}
    turns = len(sheet.rotations)
    expected = {split: Count(turns * len(names), turns * EACH * len(names)) for split, names in splits.items()}
    return replace(sheet, splits=splits, expected=expected, digests={}, images_per_class=EACH, size=SIDE)


def pixels(class_name: str, index: int) -> np.ndarray:
    """uint8 [SIDE, SIDE, 3], another one for every class and index."""
    return np.random.default_rng([*class_name.encode(), index]).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def encoded(image: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, kind)
    return file.getvalue()


def of_split(sheet: DataSet, split: str) -> list[tuple[str, np.ndarray]]:
    """Class and image of every image of a split."""
    return [(name, pixels(name, index)) for name in sheet.splits[split] for index in range(EACH)]


def class_files(sheet: DataSet, kind: str, level: bool = False) -> Files:
    return [
        (f"{split + '/' if level else ''}{name}/{index}.{kind.lower()}", encoded(pixels(name, index), kind))
        for split, names in sheet.splits.items()
        for name in names
        for index in range(EACH)
    ]


def cifar_python(sheet: DataSet) -> Files:
    names = sorted(sheet.split_of)
    images = [pair for split in sheet.splits for pair in of_split(sheet, split)]
    files = [("cifar-100-python/meta", _pickle({b"fine_label_names": [name.encode() for name in names]}))]
    for part, chosen in (("train", images[::2]), ("test", images[1::2])):
        content = {
            b"data": np.stack([_planes(image) for _, image in chosen]),
            b"fine_labels": [names.index(name) for name, _ in chosen],
            b"filenames": [b"%d.png" % number for number in range(len(chosen))],
        }
        files.append((f"cifar-100-python/{part}", _pickle(content)))
    return files


def cifar_binary(sheet: DataSet) -> Files:
    names = sorted(sheet.split_of)
    images = [pair for split in sheet.splits for pair in of_split(sheet, split)]
    files = [("cifar-100-binary/fine_label_names.txt", "\n".join([*names, ""]).encode())]
    for part, chosen in (("train", images[::2]), ("test", images[1::2])):
        records = [bytes([0, names.index(name)]) + _planes(image).tobytes() for name, image in chosen]
        files.append((f"cifar-100-binary/{part}.bin", b"".join(records)))
    return files


def _planes(image: np.ndarray) -> np.ndarray:
    large = np.asarray(PIL.Image.fromarray(image).resize((32, 32), PIL.Image.Resampling.NEAREST))
    return large.transpose(2, 0, 1).reshape(-1)


def fc100_pickles(sheet: DataSet) -> Files:
    names = sorted(sheet.split_of)
    return [
        (
            f"FC100_{split}.pickle",
            _pickle(
                {
                    "data": np.stack([image for _, image in of_split(sheet, split)]),
                    "labels": [names.index(name) for name, _ in of_split(sheet, split)],
                }
            ),
        )
        for split in sheet.splits
    ]


def mini_pickles(sheet: DataSet) -> Files:
    files = []
    for split, names in sheet.splits.items():
        images = np.stack([image for _, image in of_split(sheet, split)])
        members = {name: list(range(EACH * place, EACH * (place + 1))) for place, name in enumerate(names)}
        content = {"image_data": images, "class_dict": members}
        files.append((f"mini-imagenet-cache-{split}.pkl", _pickle(content)))
    return files


def mini_listed(sheet: DataSet) -> Files:
    files, lists = [], []
    for split, names in sheet.splits.items():
        rows = ["filename,label"]
        for name in names:
            for index, number in enumerate(sorted(numbers()[name])[:EACH]):
                files.append((f"images/{name}{number:08}.jpg", encoded(pixels(name, index), "PNG")))
                rows.append(f"{name}{number:08}.jpg,{name}")
        lists.append((f"{split}.csv", "\n".join([*rows, ""]).encode()))
    return [*files, *lists]


def tiered_files(sheet: DataSet, npz: bool) -> Files:
    files = []
    for split, names in sheet.splits.items():
        images = [image for _, image in of_split(sheet, split)]
        labels = {
            "label_specific": np.repeat(np.arange(len(names)), EACH),
            "label_specific_str": list(names),
        }
        files.append((f"{split}_labels.pkl", _pickle(labels)))
        if npz:
            file = io.BytesIO()
            np.savez(file, images=np.stack(images)[..., ::-1])
            files.append((f"{split}_images.npz", file.getvalue()))
        else:
            pngs = [np.frombuffer(encoded(image, "PNG"), np.uint8) for image in images]
            files.append((f"{split}_images_png.pkl", _pickle(pngs)))
    return files


def cub_files(sheet: DataSet) -> Files:
    images = [
        (f"{name}/{index}.jpg", encoded(pixels(name, index), "PNG")) for name in sheet.split_of for index in range(EACH)
    ]
    lists = [
        ("images.txt", "".join(f"{number} {name}\n" for number, (name, _) in enumerate(images, 1))),
        ("bounding_boxes.txt", "".join(f"{number} 1.0 2.0 9.0 8.0\n" for number in range(1, len(images) + 1))),
    ]
    folder = "CUB_200_2011"
    return [
        *((f"{folder}/images/{name}", content) for name, content in images),
        *((f"{folder}/{name}", content.encode()) for name, content in lists),
    ]


def _own_json(sheet: DataSet) -> tuple[str, bytes]:
    return "splits.json", json.dumps({split: list(names) for split, names in sheet.splits.items()}).encode()


def _own(sources: Sequence[Path]) -> DataSet:
    return own_set("faults", sources, str(sources[0] / "splits.json"), size=SIDE)


def _pickle(value: Any) -> bytes:
    """As Python 2 and the first programs of Python 3 wrote them."""
    return pickle.dumps(value, protocol=2)
