"""Images packed a second, beside what decoding alone does: `python -m metazoo.benchmarks.speed.packing`.

The images are a stand-in for miniImageNet: JPEGs of 84 pixels in 100 class folders, no two of which decode to the same
pixels, in a tar (or a folder). Two things take turns, because a shared machine is faster in one minute than the next:

- packing: all that `metazoo data prepare` does after its start, in a process of its own: finding the images, checking
  them, starting processes, decoding, ordering, writing, hashing, and seeing that all of it is on the disk;
- decoding: processes that are started already, as many, read the same files and make arrays of them with Pillow
  (`numpy.asarray(PIL.Image.open(file).convert("RGB"))`). The arrays are dropped.

Beside the wall-clock time stands the processor time an image takes, of all processes together. The peak memory is that
of the packing process and of all those it starts, each at its own highest.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from metazoo.data.dataset import Count, DataSet
from metazoo.data.layouts import class_folders
from metazoo.data.packer import BATCH, cores
from metazoo.data.packing import pack
from metazoo.data.pictures import Piece, Recipe
from metazoo.data.workers import Workers

CLASSES = {"train": 64, "val": 16, "test": 20}
DISTINCT = 1000  # pictures that are encoded
STEPS = 10  # of the quantisation table, the coarsest first, that are varied
VARIANTS = 60 * STEPS
SIZE = 84


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


def jpegs(images: int) -> Iterator[tuple[str, bytes]]:
    """Name and contents of every image. A few hundred are encoded; the others differ from them in a quantisation step,
    and so in their pixels."""
    names = [name for names in sheet(images).splits.values() for name in names]
    encoded = [_encoded(number) for number in range(min(DISTINCT, images))]
    for number in range(images):
        content = bytearray(encoded[number % len(encoded)])
        variant = number // len(encoded)
        if variant >= VARIANTS:
            raise ValueError(f"At most {len(encoded) * VARIANTS} images can be made.")
        content[content.index(b"\xff\xdb") + 6 + variant % STEPS] += 1 + variant // STEPS
        yield f"{names[number % len(names)]}/{number:08}.jpg", bytes(content)


def _encoded(number: int) -> bytes:
    """A smooth picture with some noise on it; its file is about as long as one of miniImageNet's."""
    generator = np.random.default_rng(number)
    smooth = PIL.Image.fromarray(generator.integers(0, 256, (14, 14, 3), dtype=np.uint8)).resize((SIZE, SIZE))
    noisy = np.asarray(smooth) + generator.normal(0, 6, (SIZE, SIZE, 3))
    file = io.BytesIO()
    PIL.Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=50)
    return file.getvalue()


def write(path: Path, images: int, form: str) -> Path:
    """Write the stand-in class by class, as a tar or a folder; returns where it is."""
    files = sorted(jpegs(images))
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


class Decoder:
    """Decodes as everybody does, and nothing else."""

    def decode(self, pieces: Sequence[Piece]) -> tuple[int, float]:
        """Bytes of the arrays, and seconds of processor time."""
        begin, total = time.process_time(), 0
        for piece in pieces:
            with open(piece.path, "rb", buffering=0) as file:
                file.seek(piece.offset)
                content = file.read(-1 if piece.size is None else piece.size)
            total += np.asarray(PIL.Image.open(io.BytesIO(content)).convert("RGB")).nbytes
        return total, time.process_time() - begin


def time_decoding(source: Path, images: int, workers: int) -> tuple[float, float]:
    """Seconds that `workers` processes take to decode every image, and of how much processor time."""
    from metazoo.benchmarks.speed.packing import Decoder  # not `__main__`'s, which other processes do not know

    pieces = [picture for _, picture in sheet(images).layout([source]).images()]
    assert len(pieces) == images and all(isinstance(piece, Piece) for piece in pieces)
    with Workers(workers, Decoder()) as pool:
        for future in [pool.submit("decode", pieces[:BATCH]) for _ in range(4 * workers)]:
            future.result()
        begin = time.perf_counter()
        batches: list[Future[tuple[int, float]]] = [
            pool.submit("decode", pieces[start : start + BATCH]) for start in range(0, images, BATCH)
        ]
        done = [future.result() for future in batches]
        seconds = time.perf_counter() - begin
    assert sum(decoded for decoded, _ in done) == images * 3 * SIZE**2
    return seconds, sum(taken for _, taken in done)


@dataclass(frozen=True)
class Packing:
    """One packing: how long it took; the processor time of its own process and of all it started; and the peak memory
    of its own process and of all it started, in MB."""

    seconds: float
    processor_seconds: float
    own_mb: float
    others_mb: float

    @property
    def peak_mb(self) -> float:
        return self.own_mb + self.others_mb


def time_packing(source: Path, images: int, workers: int, home: Path) -> Packing:
    """Pack in a process of its own."""
    shutil.rmtree(home, ignore_errors=True)
    command = [sys.executable, "-m", "metazoo.benchmarks.speed.packing", "--once", str(source), "--home", str(home)]
    command += ["--images", str(images), "--workers", str(workers)]
    result = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return Packing(**json.loads(result.stdout))


def pack_once(source: Path, images: int, workers: int, home: Path) -> Packing:
    """Pack in this process."""
    watch = _Watch()
    watch.start()
    begin, processor = time.perf_counter(), _processor_seconds()
    store = pack(sheet(images), [source], home=home, workers=workers)
    seconds, processor = time.perf_counter() - begin, _processor_seconds() - processor
    assert store.manifest.resize == Recipe.of(sheet(images), SIZE).resizing and store.twins().total == 0
    watch.stop()
    return Packing(seconds, processor, _peak_mb("self"), sum(watch.peaks.values()))


def _processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _peak_mb(process: str) -> float:
    """Of a process that lives. Not its `ru_maxrss`, which begins with what the process that started it needed."""
    lines = Path("/proc", process, "status").read_text().splitlines()
    return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM")), 0.0)


class _Watch(threading.Thread):
    """Looks at the processes that this one started, as long as they live."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peaks: dict[str, float] = {}
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.05):
            for process in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                with suppress(OSError):  # it is gone
                    self.peaks[process] = _peak_mb(process) or self.peaks.get(process, 0.0)

    def stop(self) -> None:
        self._over.set()
        self.join()


def measure(images: int, form: str, workers: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Both in turns, on a stand-in of so many images."""
    source = write(folder, images, form)
    pairs = []
    for _ in range(rounds):
        packing = time_packing(source, images, workers, folder / "home")
        pairs.append((packing, time_decoding(source, images, workers)))
    ratios = [decoding / packing.seconds for packing, (decoding, _) in pairs]
    return {
        "images": images,
        "form": form,
        "bytes_an_image": round(
            sum(len(content) for _, content in jpegs(min(DISTINCT, images))) / min(DISTINCT, images)
        ),
        "packed_per_second": images / statistics.median(packing.seconds for packing, _ in pairs),
        "decoded_per_second": images / statistics.median(decoding for _, (decoding, _) in pairs),
        "packing_processor_us": 1e6 / images * statistics.median(packing.processor_seconds for packing, _ in pairs),
        "decoding_processor_us": 1e6 / images * statistics.median(taken for _, (_, taken) in pairs),
        "packed_to_decoded": statistics.median(ratios),
        "packed_to_decoded_of_rounds": ratios,
        "peak_mb": max(packing.peak_mb for packing, _ in pairs),
        "rounds": [{**asdict(packing), "decoding_seconds": decoding} for packing, (decoding, _) in pairs],
    }


def main(arguments: list[str] | None = None) -> None:
    """The command, for Linux, which tells of its processes; `arguments` are those of this one by default."""
    parser = argparse.ArgumentParser(
        prog="python -m metazoo.benchmarks.speed.packing", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--images", type=int, nargs="+", default=[60_000, 100_000], help="how many (default 60000 100000)"
    )
    parser.add_argument("--form", choices=("tar", "folder"), default="tar", help="what they lie in (default tar)")
    parser.add_argument("--workers", type=int, default=cores(), help="processes that decode (default: one a core)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default 5)")
    parser.add_argument("--home", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--once", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if any(images % 100 for images in options.images) or options.rounds < 1 or options.workers < 1:
        parser.error("there are 100 classes, so --images takes multiples of 100; rounds and workers are at least 1")
    if options.once:
        print(json.dumps(asdict(pack_once(options.once, options.images[0], options.workers, options.home))))
        return

    from metazoo import files, hardware

    found = []
    print(f"{hardware.describe(hardware.choose('cpu'))}; {options.workers} processes; Pillow {PIL.__version__}")
    print(f"\n{'':>9} {'packed':>9} {'decoded':>9} {'':>6} {'processor time an image':>24} {'peak':>10}")
    print(f"{'images':>9} {'a second':>9} {'a second':>9} {'ratio':>6} {'packed':>12}{'decoded':>12} {'memory':>10}")
    for images in options.images:
        with tempfile.TemporaryDirectory(dir=options.home) as folder:
            result = measure(images, options.form, options.workers, options.rounds, Path(folder))
        found.append(result)
        print(
            f"{images:>9,} {result['packed_per_second']:>9,.0f} {result['decoded_per_second']:>9,.0f} "
            f"{result['packed_to_decoded']:>6.2f} {result['packing_processor_us']:>9.0f} us"
            f"{result['decoding_processor_us']:>9.0f} us {result['peak_mb']:>7,.0f} MB",
            flush=True,
        )
    if options.json:
        record = {
            "command": "python -m metazoo.benchmarks.speed.packing",
            "size": SIZE,
            "workers": options.workers,
            "hardware": hardware.describe(hardware.choose("cpu")),
            "versions": {**hardware.versions(), "pillow": PIL.__version__},
            "measurements": found,
        }
        files.write_text(options.json, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
