"""Small data sets in the public forms of the real ones, written by the tests themselves."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from metazoo.data.dataset import Count, DataSet
from metazoo.data.layouts import class_folders

TarMode = Literal["w", "w:gz", "w:bz2", "w:xz"]
Tree = dict[str, bytes]
"""File name -> contents."""

SPLITS = {"train": ("ant", "bee", "cat"), "val": ("dog", "eel"), "test": ("fox", "gnu")}
EACH = 4
SIDE = 8


def tiny_sheet(**changes) -> DataSet:
    """The fact sheet of 7 classes of 4 images, 8 pixels wide."""
    facts = {
        "name": "menagerie",
        "title": "Menagerie",
        "citation": "Nobody.",
        "terms": "None.",
        "where": "Ask the tests.",
        "channels": 3,
        "size": SIDE,
        "splits": SPLITS,
        "expected": {split: Count(len(names), EACH * len(names)) for split, names in SPLITS.items()},
        "images_per_class": EACH,
        "recognisers": (class_folders,),
    }
    return DataSet(**(facts | changes))


def pixels(class_name: str, index: int, side: int = SIDE) -> np.ndarray:
    """uint8 [side, side, 3], another one for every class and index."""
    return np.random.default_rng([*class_name.encode(), index]).integers(0, 256, (side, side, 3), dtype=np.uint8)


def encoded(image: np.ndarray | Image.Image, form: str = "PNG") -> bytes:
    """The file contents of an image."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, format=form)
    return file.getvalue()


def tiny_tree(split_level: bool = False) -> Tree:
    """CLASS/INDEX.png of every image, with train, val or test above it if asked for."""
    return {
        f"{split + '/' if split_level else ''}{name}/{index}.png": encoded(pixels(name, index))
        for split, names in SPLITS.items()
        for name in names
        for index in range(EACH)
    }


def write_folder(path: Path, tree: Mapping[str, bytes]) -> Path:
    """Write the tree as a folder."""
    for name, content in tree.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def write_tar(path: Path, tree: Mapping[str, bytes] | Iterable[tuple[str, bytes]], mode: TarMode = "w") -> Path:
    """Write the tree as a tar, in its order; mode "w:gz" compresses it."""
    with tarfile.open(path, mode) as tar:
        for name, content in tree.items() if isinstance(tree, Mapping) else tree:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_zip(path: Path, tree: Mapping[str, bytes]) -> Path:
    """Write the tree as a zip."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in tree.items():
            archive.writestr(name, content)
    return path


def python2_pickle(value: object) -> bytes:
    """Pickle as Python 2 did, protocol 2: its strings are byte strings, and numpy lives in numpy.core."""
    return pickle.PROTO + b"\x02" + _python2(value) + pickle.STOP


def _python2(value: object) -> bytes:
    if value is None:
        return pickle.NONE
    if isinstance(value, int):
        return pickle.BININT + struct.pack("<i", value)
    if isinstance(value, bytes):
        return pickle.BINSTRING + struct.pack("<i", len(value)) + value
    if isinstance(value, list):
        return pickle.EMPTY_LIST + pickle.MARK + b"".join(map(_python2, value)) + pickle.APPENDS
    if isinstance(value, tuple):
        return pickle.MARK + b"".join(map(_python2, value)) + pickle.TUPLE
    if isinstance(value, dict):
        items = b"".join(_python2(key) + _python2(item) for key, item in value.items())
        return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
    assert isinstance(value, np.ndarray) and value.dtype == np.uint8
    ndarray = pickle.GLOBAL + b"numpy\nndarray\n"
    array = _call("numpy.core.multiarray", "_reconstruct", ndarray, _python2((0,)), _python2(b"b"))
    kind = _call("numpy", "dtype", _python2(b"u1"), _python2(0), _python2(1))
    kind += _python2((3, b"|", None, None, None, -1, -1, 0)) + pickle.BUILD
    state = pickle.MARK + _python2(1) + _python2(value.shape) + kind + pickle.NEWFALSE + _python2(value.tobytes())
    return array + state + pickle.TUPLE + pickle.BUILD


def _call(module: str, name: str, *arguments: bytes) -> bytes:
    function = pickle.GLOBAL + f"{module}\n{name}\n".encode()
    return function + pickle.MARK + b"".join(arguments) + pickle.TUPLE + pickle.REDUCE
