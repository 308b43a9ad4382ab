"""The two archives that CIFAR-100's authors publish, as a source for the few-shot data sets made of it."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from metazoo.data.dataset import DataSet, Download, Layout
from metazoo.data.pickles import read_pickle, text
from metazoo.data.sources import Source
from metazoo.errors import UserError

ARCHIVE = Download("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", md5="eb9058c3a382ffc7106e4002c42a8d85")
PLANES = (3, 32, 32)  # red, green, blue
RECORD = 2 + 3 * 32 * 32  # of the binary archive: coarse label, fine label, planes

Records = Iterator[tuple[str, int, np.ndarray]]
"""Image name (unique in its file), fine label, values [3072]."""


@dataclass(frozen=True)
class Form:
    """One of the two archives: its files, and how they are read from their contents (and their names, for errors)."""

    title: str
    names_file: str
    parts: tuple[str, ...]
    class_names: Callable[[bytes, str], list[str]]
    records: Callable[[bytes, str], Records]


def python_archive(sheet: DataSet, sources: Sequence[Source]) -> Layout | None:
    """cifar-100-python.tar.gz or its unpacked folder: pickles written by Python 2."""
    return _layout(sheet, sources, PYTHON)


def binary_archive(sheet: DataSet, sources: Sequence[Source]) -> Layout | None:
    """cifar-100-binary.tar.gz or its unpacked folder: records of a fixed length."""
    return _layout(sheet, sources, BINARY)


def _python_class_names(content: bytes, name: str) -> list[str]:
    return [text(label) for label in read_pickle(io.BytesIO(content), name)[b"fine_label_names"]]


def _python_records(content: bytes, name: str) -> Records:
    file = io.BytesIO(content)
    part = read_pickle(file, name)
    rows = zip(part[b"filenames"], part[b"fine_labels"], part[b"data"].rows(file), strict=True)
    for index, (filename, label, values) in enumerate(rows):  # the authors' file names are not unique across classes
        yield f"{index}/{text(filename)}", label, values


def _binary_class_names(content: bytes, name: str) -> list[str]:
    return content.decode().split()


def _binary_records(content: bytes, name: str) -> Records:
    for index, record in enumerate(np.frombuffer(content, np.uint8).reshape(-1, RECORD)):
        yield str(index), int(record[1]), record[2:]


PYTHON = Form("CIFAR-100's Python archive", "meta", ("train", "test"), _python_class_names, _python_records)
BINARY = Form(
    "CIFAR-100's binary archive",
    "fine_label_names.txt",
    ("train.bin", "test.bin"),
    _binary_class_names,
    _binary_records,
)


def _layout(sheet: DataSet, sources: Sequence[Source], form: Form) -> Layout | None:
    found = _find(sources, form)
    if found is None:
        return None
    source, folder = found
    if len(sources) > 1:
        raise UserError(f"{source.path} is {form.title} and holds all of {sheet.title}; give it alone.")
    names_file, parts = f"{folder}{form.names_file}", {f"{folder}{part}" for part in form.parts}
    labels: dict[str, int] = {}
    try:
        for name, content in source.read({names_file, *parts}):
            if name == names_file:
                class_names = form.class_names(content, f"{source.path}/{name}")
            else:
                records = form.records(content, f"{source.path}/{name}")
                labels |= {f"{name}/{image}": label for image, label, _ in records}
        images: dict[str, list[str]] = defaultdict(list)
        for image, label in labels.items():
            images[class_names[label]].append(image)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{source.path} does not hold what {form.title} holds ({error}); get it again.") from error

    def pictures() -> Iterator[tuple[str, np.ndarray]]:
        for name, content in source.read(parts):
            for image, _, values in form.records(content, f"{source.path}/{name}"):
                yield f"{name}/{image}", values.reshape(PLANES).transpose(1, 2, 0)

    return Layout(
        classes={
            split: {name: images[name] for name in names if name in images} for split, names in sheet.splits.items()
        },
        images=pictures,
        form=form.title,
        sources=(source.path,),
    )


def _find(sources: Sequence[Source], form: Form) -> tuple[Source, str] | None:
    """The source that holds the form's files in one folder, and that folder ("" or ending in a slash)."""
    for source in sources:
        names = set(source.names)
        for name in source.names:
            folder = name.removesuffix(form.names_file)
            if PurePosixPath(name).name == form.names_file and all(f"{folder}{part}" in names for part in form.parts):
                return source, folder
    return None
