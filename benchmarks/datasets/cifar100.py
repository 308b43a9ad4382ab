"""The two archives that CIFAR-100's authors publish, as a source for the few-shot data sets made of it."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath

import numpy as np

from metazoo.dataset import DataSet, Download, Layout
from metazoo.errors import UserError
from metazoo.pickles import read_arrays
from metazoo.sources import Source

ARCHIVE = Download("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", md5="eb9058c3a382ffc7106e4002c42a8d85")
PLANES = (3, 32, 32)  # red, green, blue, each row by row
RECORD = 2 + 3 * 32 * 32  # of the binary archive: coarse label, fine label, pixels

Records = Iterator[tuple[str, str, np.ndarray]]
"""Image name, class name, picture [32, 32, 3]."""


def python_archive(sheet: DataSet, sources: Sequence[Source]) -> Layout | None:
    """cifar-100-python.tar.gz or its unpacked folder: the pickles `meta`, `train` and `test`, written by Python 2."""
    return _layout(sheet, sources, ("meta", "train", "test"), _python_records, "CIFAR-100's Python archive")


def binary_archive(sheet: DataSet, sources: Sequence[Source]) -> Layout | None:
    """cifar-100-binary.tar.gz or its unpacked folder: fixed-length records in `train.bin` and `test.bin`."""
    files = ("fine_label_names.txt", "train.bin", "test.bin")
    return _layout(sheet, sources, files, _binary_records, "CIFAR-100's binary archive")


def _python_records(source: Source, folder: str) -> Records:
    class_names = [name.decode() for name in _unpickle(source, f"{folder}meta")[b"fine_label_names"]]
    for part in ("train", "test"):
        content = _unpickle(source, f"{folder}{part}")
        rows = zip(content[b"filenames"], content[b"fine_labels"], content[b"data"], strict=True)
        for filename, label, values in rows:
            yield f"{folder}{part}/{filename.decode()}", class_names[label], values.reshape(PLANES).transpose(1, 2, 0)


def _unpickle(source: Source, name: str) -> dict:
    return read_arrays(io.BytesIO(_content(source, name)), f"{source.path}/{name}")


def _binary_records(source: Source, folder: str) -> Records:
    class_names = _content(source, f"{folder}fine_label_names.txt").decode().split()
    for part in ("train.bin", "test.bin"):
        content = np.frombuffer(_content(source, f"{folder}{part}"), dtype=np.uint8)
        for index, record in enumerate(content.reshape(-1, RECORD)):
            yield f"{folder}{part}/{index}", class_names[record[1]], record[2:].reshape(PLANES).transpose(1, 2, 0)


def _content(source: Source, name: str) -> bytes:
    return next(content for _, content in source.read({name}))


def _layout(
    sheet: DataSet,
    sources: Sequence[Source],
    files: tuple[str, ...],
    records: Callable[[Source, str], Records],
    form: str,
) -> Layout | None:
    found = _find(sources, files)
    if found is None:
        return None
    if len(sources) > 1:
        raise UserError(f"{found[0].path} is {form} and holds all of {sheet.title}; give it alone.")
    source, folder = found
    images: dict[str, list[str]] = defaultdict(list)
    try:
        for name, class_name, _ in records(source, folder):
            images[class_name].append(name)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{source.path} does not hold what {form} holds ({error}); get it again.") from error
    return Layout(
        classes={
            split: {name: images[name] for name in names if name in images} for split, names in sheet.splits.items()
        },
        images=lambda: ((name, picture) for name, _, picture in records(source, folder)),
        form=form,
        sources=(source.path,),
    )


def _find(sources: Sequence[Source], files: tuple[str, ...]) -> tuple[Source, str] | None:
    """The source that holds all these files in one folder, and that folder ("" or ending in a slash)."""
    for source in sources:
        names = set(source.names)
        for name in source.names:
            folder = name.removesuffix(files[0])
            if PurePosixPath(name).name == files[0] and all(f"{folder}{file}" in names for file in files):
                return source, folder
    return None
