"""Images that stand in for miniImageNet where packing is timed: JPEGs in 100 class folders, each of other pixels."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image

from metazoo.data.dataset import Count, DataSet
from metazoo.data.layouts import class_folders

CLASSES = {"train": 64, "val": 16, "test": 20}
STEPS = 10  # of the quantisation table, the coarsest first, that are varied
VARIANTS = 60 * STEPS
SIZE = 84


def _smooth(generator: np.random.Generator) -> np.ndarray:
    """A smooth picture with some noise on it, of SIZE pixels."""
    smooth = PIL.Image.fromarray(generator.integers(0, 256, (14, 14, 3), dtype=np.uint8)).resize((SIZE, SIZE))
    return np.asarray(smooth) + generator.normal(0, 6, (SIZE, SIZE, 3))


def _natural(generator: np.random.Generator, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    """A picture of nothing with the spectrum of photographs: amplitudes fall with the frequency."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = 1  # the mean
    spectrum = np.fft.rfft2(generator.normal(size=(3, height, width))) / frequency
    spectrum[1:] = 0.9 * spectrum[0] + 0.4 * spectrum[1:]  # the colours of a place are alike
    values = np.fft.irfft2(spectrum, (height, width))
    return 128 + 55 * (values / values.std(axis=(1, 2), keepdims=True)).transpose(1, 2, 0)


class Kind(NamedTuple):
    """A kind of JPEG: how one is drawn, float [H, W, 3]; the encoder's quality; how many are encoded, from which the
    others differ in a quantisation step, and so in their pixels; how many images are packed by default."""

    draw: Callable[[np.random.Generator], np.ndarray]
    quality: int
    distinct: int
    counts: tuple[int, ...]


KINDS = {
    "smooth": Kind(_smooth, 50, 1000, (60_000, 100_000)),
    "detailed": Kind(_natural, 90, 1000, (60_000,)),
    "photograph": Kind(partial(_natural, height=375, width=500), 90, 100, (6_000,)),
}


def sheet(images: int) -> DataSet:
    """The fact sheet of a stand-in of so many images."""
    splits = {split: tuple(f"{split}_{number:02}" for number in range(count)) for split, count in CLASSES.items()}
    each = images // sum(CLASSES.values())
    return DataSet(
        name="stand_in",
        title=f"Stand-in of {images:,} images",
        citation="None.",
        terms="None.",
        where="It is made by the benchmark.",
        channels=3,
        size=SIZE,
        splits=splits,
        expected={split: Count(count, count * each) for split, count in CLASSES.items()},
        images_per_class=each,
        ordered_by="content",
        recognisers=(class_folders,),
    )


def jpegs(images: int, kind: Kind) -> Iterator[tuple[str, bytes]]:
    """Name and contents of every image."""
    names = [name for names in sheet(images).splits.values() for name in names]
    encoded = [_encoded(number, kind) for number in range(min(kind.distinct, images))]
    for number in range(images):
        content = bytearray(encoded[number % len(encoded)])
        variant = number // len(encoded)
        if variant >= VARIANTS:
            raise ValueError(f"At most {len(encoded) * VARIANTS} images can be made.")
        content[content.index(b"\xff\xdb") + 6 + variant % STEPS] += 1 + variant // STEPS
        yield f"{names[number % len(names)]}/{number:08}.jpg", bytes(content)


def _encoded(number: int, kind: Kind) -> bytes:
    values = kind.draw(np.random.default_rng(number))
    file = io.BytesIO()
    PIL.Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=kind.quality)
    return file.getvalue()


def write(path: Path, images: int, form: str, kind: Kind) -> Path:
    """Write the stand-in class by class, as a tar or a folder; returns where it is."""
    files = sorted(jpegs(images, kind))
    if form == "tar":
        source = path / "stand_in.tar"
        with tarfile.open(source, "w") as tar:
            for name, content in files:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return source
    source = path / "stand_in"
    for name, content in files:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    return source
