"""FC100: CIFAR-100's classes again, divided by superclass, so that training and testing have little in common."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from metazoo.benchmarks.datasets import cifar100
from metazoo.data.dataset import Count, DataSet, Layout, read_splits
from metazoo.data.layouts import Part, check_images, class_folders, in_parts, pictures_of
from metazoo.data.pickles import entries, integers, read_pickle, reading
from metazoo.data.sources import Source

PICKLE = re.compile(r"FC100_(train|val|test)\.pickle")


def pickles(sheet: DataSet, sources: Sequence[Source]) -> Layout | None:
    """FC100_{train,val,test}.pickle, as MetaOptNet and learn2learn have them: `data` [n, 32, 32, 3], and `labels`.

    A label is the number of its class among CIFAR-100's, in alphabetical order.
    """
    files = [(source, name) for source in sources for name in source.names if PICKLE.match(PurePosixPath(name).name)]
    parts = [_part(sheet, source, name) for source, name in files]
    return in_parts(sheet, sources, "pickles of images and labels", parts) if parts else None


def _part(sheet: DataSet, source: Source, name: str) -> Part:
    names = sorted(sheet.split_of)
    with reading(f"{source.path}/{name}"), source.open(name) as file:
        content = entries(read_pickle(file, f"{source.path}/{name}"))
        images = check_images(content["data"], sheet.channels)
        classes: dict[str, list[int]] = defaultdict(list)
        for number, label in enumerate(integers(content["labels"], file)):
            if not 0 <= label < len(names):
                raise ValueError(f"it has the label {label}")
            classes[names[label]].append(number)
    return Part(PurePosixPath(name).name, len(images), classes, partial(pictures_of, source, name, images))


DATASET = DataSet(
    name="fc100",
    title="FC100",
    citation=(
        "Oreshkin, Rodriguez Lopez, Lacoste: TADAM: task dependent adaptive metric for improved few-shot learning. "
        "NeurIPS 2018. Images: Krizhevsky: Learning multiple layers of features from tiny images. 2009."
    ),
    terms="CIFAR-100 has no formal licence; cite the report.",
    where=(
        "It is read from cifar-100-python.tar.gz or cifar-100-binary.tar.gz (www.cs.toronto.edu/~kriz/cifar.html), "
        "from folders or archives of its 100 class folders, or from FC100_{train,val,test}.pickle; --download fetches "
        "the first."
    ),
    channels=3,
    size=32,
    splits=read_splits(Path(__file__).with_name("splits") / "fc100.txt"),
    expected={"train": Count(60, 36_000), "val": Count(20, 12_000), "test": Count(20, 12_000)},
    images_per_class=600,
    ordered_by="content",
    classes_of="cifar100",
    recognisers=(cifar100.python_archive, cifar100.binary_archive, pickles, class_folders),
    downloads=(cifar100.ARCHIVE,),
)
