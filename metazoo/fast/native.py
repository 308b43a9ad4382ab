"""The kernels, in C: compiled once by the machine's own C compiler, cached, and called on tensors.

Without a compiler there are none, and the modules fall back on torch's operations. The environment variable
`METAZOO_NATIVE` asks for that (`off`), or for another processor's kernels by its name for `-march` (`x86-64-v3`).
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metazoo.errors import UserError
from metazoo.files import cache_folder, replacing

GROUP = 16
"""Channels come in groups of so many: their number must be a multiple of it."""

_SOURCES = sorted(Path(__file__).with_name("kernels").glob("*.[ch]"))
_TYPES = {
    torch.float32: ("-DREAL=float", "-DINTEGER=int32_t"),
    torch.float64: ("-DREAL=double", "-DINTEGER=int64_t"),
    torch.bfloat16: ("-DREAL=float", "-DINTEGER=int32_t", "-DBFLOAT16"),
}
_BASIC = ("-std=gnu11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi", "-shared", "-fPIC")
_WIDE = ("-mprefer-vector-width=512",) if platform.machine() in ("x86_64", "AMD64") else ()
_ATTEMPTS = (("-march=native", *_WIDE, "-fopenmp"), ("-march=native", "-fopenmp"), ("-march=native",), ())
"""Flags by falling ambition: not every compiler knows all."""


Count = ctypes.c_int64


class Shape(ctypes.Structure):
    """Maps `[images, channels, height, width]` whose windows have `side` times `side` pixels."""

    _fields_ = [(name, ctypes.c_int64) for name in ("images", "height", "width", "channels", "side")] + [
        ("threads", ctypes.c_int32)
    ]


def shape_of(maps: Tensor, side: int) -> Shape:
    images, channels, height, width = maps.shape
    return Shape(images, height, width, channels, side, torch.get_num_threads())


class Kernels:
    """The functions of `kernels/` for one type of map; tensors are passed as they lie in memory."""

    def __init__(self, path: Path):
        self._library = ctypes.CDLL(str(path))
        self._library.normalise_pool  # noqa: B018 -- an AttributeError if the file is another one

    def __call__(self, name: str, *arguments: Argument) -> None:
        """Run a function; raises MemoryError where it finds none."""
        if getattr(self._library, name)(*map(_argument, arguments)):
            raise MemoryError("not enough memory for the sums of a batch's maps")


Argument = Tensor | float | ctypes.Structure | Count | None


def run(name: str, dtype: torch.dtype, *arguments: Argument) -> None:
    """Run the function `name` of the kernels for maps of a type, which must be there."""
    found = kernels(dtype)
    assert found is not None, f"there are no kernels for {dtype}"
    found(name, *arguments)


_set_aside = False


@contextmanager
def set_aside() -> Iterator[None]:
    """While the block runs, the modules compute with torch's operations, as they do where there is no compiler."""
    global _set_aside
    before, _set_aside = _set_aside, True
    try:
        yield
    finally:
        _set_aside = before


def usable(dtype: torch.dtype) -> bool:
    """Whether the kernels for maps of a type are there and not set aside."""
    return not _set_aside and kernels(dtype) is not None


@functools.cache
def kernels(dtype: torch.dtype) -> Kernels | None:
    """The kernels for maps of a type, compiled if they are not yet in the user's cache; None where there are none.

    Raises UserError where the environment asks for those of a processor that the compiler does not know.
    """
    processor = os.environ.get("METAZOO_NATIVE", "")
    if dtype not in _TYPES or processor == "off":
        return None
    compiler = next(filter(None, map(shutil.which, filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")))), None)
    if compiler is None:
        return None
    for flags in ((f"-march={processor}", "-fopenmp"), (f"-march={processor}",)) if processor else _ATTEMPTS:
        try:
            return _kernels(compiler, (*_BASIC, *_TYPES[dtype], *flags))
        except (OSError, AttributeError, subprocess.SubprocessError):
            continue
    if processor:
        raise UserError(
            f"{compiler} compiles no kernels for the processor '{processor}' that METAZOO_NATIVE names; unset it, or "
            "set it to off."
        )
    return None


def _kernels(compiler: str, flags: tuple[str, ...]) -> Kernels:
    """Those compiled with `flags`, from the cache if they are there and whole."""
    text = "\0".join([*(source.read_text() for source in _SOURCES), compiler, *flags, _processor()])
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    cached = cache_folder() / f"native-{key}.so"
    if cached.exists():
        try:
            return Kernels(cached)
        except (OSError, AttributeError):
            pass  # damaged: compile anew
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder, "native.so")
        written = [str(source) for source in _SOURCES if source.suffix == ".c"]
        command = [compiler, *flags, "-o", str(fresh), *written, "-lm"]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        compiled = Kernels(fresh)
        try:
            with replacing(cached) as file:
                file.write(fresh.read_bytes())
        except OSError:
            pass  # no room or no right to write: the next process compiles again
        return compiled


def _processor() -> str:
    """What `-march=native` depends on."""
    information = Path("/proc/cpuinfo")
    if not information.exists():
        return f"{platform.machine()} {platform.processor()}"
    return information.read_text().split("\n\n")[0].partition("flags")[2].partition("\n")[0]


def _argument(value: Any) -> Any:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_double(value) if isinstance(value, float) else value
