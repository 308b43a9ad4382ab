"""Images packed a second, beside what decoding alone does: `python -m metazoo.benchmarks.speed.packing`.

The images are of three kinds (`stand_in.KINDS`), because packing costs much the same beside each and decoding does not.
They lie in a tar (or a folder) and are stored at 84 pixels. Three things take turns, because a shared machine is faster
in one minute than the next:

- packing: all that `metazoo data prepare` does after its start, in a process of its own: finding the images, checking
  them, starting processes, decoding, resizing, ordering, writing, hashing, and seeing that all of it is on the disk;
- decoding: processes that are started already, as many, read the same files and make arrays of them with Pillow
  (`numpy.asarray(PIL.Image.open(file).convert("RGB"))`). The arrays are dropped;
- decoding with the library that packing decodes plain JPEGs with (`simplejpeg.decode_jpeg(content)`), likewise.

Beside the wall-clock time stands the processor time an image takes, of all processes together, which says more on a
machine that others use. The peak memory is that of the packing process and of all those it starts, each at its own
highest. How fast a JPEG is decoded depends on how memory is laid out, which each round changes.
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
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import simplejpeg

from metazoo.benchmarks.speed.stand_in import KINDS, SIZE, jpegs, sheet, write
from metazoo.data.packer import cores
from metazoo.data.packing import pack
from metazoo.data.pictures import Piece, Recipe
from metazoo.data.workers import Workers

LIBRARIES = "Pillow", "simplejpeg"
HANDED_OVER = 512  # files that a decoding process is given at a time
ENVIRONMENT = 8192
"""Bytes, the most by which the environments of two rounds differ in length: it moves all that lies behind it."""


class Decoder:
    """Decodes with a library of this name, and does nothing else."""

    def __init__(self, library: str) -> None:
        self.library = library

    def decode(self, pieces: Sequence[Piece]) -> tuple[int, float]:
        """How many were decoded, and seconds of processor time."""
        begin = time.process_time()
        for piece in pieces:
            with open(piece.path, "rb", buffering=0) as file:
                file.seek(piece.offset)
                content = file.read(-1 if piece.size is None else piece.size)
            if self.library == "Pillow":
                np.asarray(PIL.Image.open(io.BytesIO(content)).convert("RGB"))
            else:
                simplejpeg.decode_jpeg(content)
        return len(pieces), time.process_time() - begin


@dataclass(frozen=True)
class Decoding:
    """One decoding of all images: how long it took, and the processor time of all processes."""

    seconds: float
    processor_seconds: float


def time_decoding(library: str, source: Path, images: int, workers: int) -> Decoding:
    """Decode every image in `workers` processes."""
    from metazoo.benchmarks.speed.packing import Decoder  # not `__main__`'s, which other processes do not know

    pieces = [picture for _, picture in sheet(images).layout([source]).images()]
    assert len(pieces) == images and all(isinstance(piece, Piece) for piece in pieces)
    with Workers(workers, Decoder(library)) as pool:
        for future in [pool.submit("decode", pieces[:64]) for _ in range(4 * workers)]:
            future.result()
        begin = time.perf_counter()
        size = min(HANDED_OVER, -(-images // (8 * workers)))
        batches: list[Future[tuple[int, float]]] = [
            pool.submit("decode", pieces[start : start + size]) for start in range(0, images, size)
        ]
        done = [future.result() for future in batches]
        seconds = time.perf_counter() - begin
    assert sum(decoded for decoded, _ in done) == images
    return Decoding(seconds, sum(taken for _, taken in done))


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


def measure(name: str, images: int, form: str, workers: int, rounds: int, folder: Path) -> dict[str, Any]:
    """All three in turns, on so many images of a kind."""
    source = write(folder, images, form, KINDS[name])
    packings: list[Packing] = []
    decodings: dict[str, list[Decoding]] = {library: [] for library in LIBRARIES}
    for number in range(rounds):
        os.environ["METAZOO_ROUND"] = "x" * (ENVIRONMENT * number // rounds)
        packings.append(time_packing(source, images, workers, folder / "home"))
        for library, of_library in decodings.items():
            of_library.append(time_decoding(library, source, images, workers))
    sizes = [len(content) for _, content in jpegs(min(KINDS[name].distinct, images), KINDS[name])]
    return {
        "kind": name,
        "images": images,
        "form": form,
        "bytes_an_image": round(statistics.mean(sizes)),
        "packed": _rates(packings, images),
        "peak_mb": max(packing.peak_mb for packing in packings),
        "decoded": {
            library: {**_rates(of_library, images), "packed_to_decoded": _ratios(packings, of_library)}
            for library, of_library in decodings.items()
        },
        "rounds": [
            {
                "packing": asdict(packing),
                "decoding": {library: asdict(decodings[library][number]) for library in decodings},
            }
            for number, packing in enumerate(packings)
        ],
    }


def _rates(timed: Sequence[Packing | Decoding], images: int) -> dict[str, float]:
    return {
        "images_a_second": images / statistics.median(each.seconds for each in timed),
        "processor_us_an_image": 1e6 / images * statistics.median(each.processor_seconds for each in timed),
    }


def _ratios(packings: Sequence[Packing], decodings: Sequence[Decoding]) -> dict[str, list[float]]:
    """Of each round, above 1 where packing is faster than decoding alone."""
    pairs = list(zip(packings, decodings, strict=True))
    return {
        "of_seconds": [decoding.seconds / packing.seconds for packing, decoding in pairs],
        "of_processor_seconds": [decoding.processor_seconds / packing.processor_seconds for packing, decoding in pairs],
    }


def _print(found: dict[str, Any]) -> None:
    print(
        f"\n{found['images']:,} images of the kind '{found['kind']}', {found['bytes_an_image']:,} bytes each; "
        f"peak memory {found['peak_mb']:,.0f} MB"
    )
    print(f"{'':<24} {'a second':>10} {'packed to it':>20} {'processor, us':>14} {'packed to it':>20}")
    packed = found["packed"]
    print(f"{'packed':<24} {packed['images_a_second']:>10,.0f} {'':>20} {packed['processor_us_an_image']:>14,.0f}")
    for library, decoded in found["decoded"].items():
        wall, processor = (
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            for ratios in decoded["packed_to_decoded"].values()
        )
        print(
            f"{'only decoded, ' + library:<24} {decoded['images_a_second']:>10,.0f} {wall:>20} "
            f"{decoded['processor_us_an_image']:>14,.0f} {processor:>20}",
            flush=True,
        )


def main(arguments: list[str] | None = None) -> None:
    """The command, for Linux, which tells of its processes; `arguments` are those of this one by default."""
    parser = argparse.ArgumentParser(
        prog="python -m metazoo.benchmarks.speed.packing", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="of which kinds (default: all)")
    parser.add_argument("--images", type=int, nargs="+", help="how many of each kind (default: as many as it has)")
    parser.add_argument("--form", choices=("tar", "folder"), default="tar", help="what they lie in (default tar)")
    parser.add_argument("--workers", type=int, default=cores(), help="processes that decode (default: one a core)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default 5)")
    parser.add_argument("--home", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--once", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if any(images % 100 for images in options.images or []) or options.rounds < 1 or options.workers < 1:
        parser.error("there are 100 classes, so --images takes multiples of 100; rounds and workers are at least 1")
    if options.once:
        print(json.dumps(asdict(pack_once(options.once, options.images[0], options.workers, options.home))))
        return

    from metazoo import files, hardware

    found = []
    versions = {"pillow": PIL.__version__, "simplejpeg": simplejpeg.__version__}
    named = ", ".join(f"{library} {version}" for library, version in versions.items())
    print(f"{hardware.describe(hardware.choose('cpu'))}; {options.workers} processes; {named}")
    for name in options.kinds:
        for images in options.images or KINDS[name].counts:
            with tempfile.TemporaryDirectory(dir=options.home) as folder:
                found.append(measure(name, images, options.form, options.workers, options.rounds, Path(folder)))
            _print(found[-1])
    if options.json:
        record = {
            "command": "python -m metazoo.benchmarks.speed.packing",
            "size": SIZE,
            "workers": options.workers,
            "hardware": hardware.describe(hardware.choose("cpu")),
            "versions": {**hardware.versions(), **versions},
            "measurements": found,
        }
        files.write_text(options.json, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
