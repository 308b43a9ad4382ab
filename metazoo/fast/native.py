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
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

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
_NATIVE, _WIDE, _THREADS = "-march=native", "-mprefer-vector-width=512", "-fopenmp"
_ON_X86 = ((_NATIVE, _WIDE, _THREADS), (_NATIVE, _WIDE)) if platform.machine() in ("x86_64", "AMD64") else ()
_ATTEMPTS: tuple[tuple[str, ...], ...] = (*_ON_X86, (_NATIVE, _THREADS), (_NATIVE,), (_THREADS,), ())
"""Flags by falling ambition: not every compiler knows all."""


class Shape(ctypes.Structure):
    """Maps `[images, channels, height, width]` whose windows have `side` times `side` pixels."""

    _fields_ = [(name, ctypes.c_int64) for name in ("images", "height", "width", "channels", "side")] + [
        ("threads", ctypes.c_int32)
    ]


def shape_of(maps: Tensor, side: int) -> Shape:
    images, channels, height, width = maps.shape
    return Shape(images, height, width, channels, side, torch.get_num_threads())


class Maps(ctypes.Structure):
    """Maps `[images, channels, height, width]` that are convolved with so many filters and so much padding."""

    _fields_ = [(name, ctypes.c_int64) for name in ("images", "height", "width", "channels", "filters", "padding")] + [
        ("threads", ctypes.c_int32)
    ]


Argument: TypeAlias = Tensor | float | ctypes.Structure | None
"""Of a function of the kernels; a tensor is passed as it lies in memory."""

_MANY, _INT, _REAL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
_FUNCTIONS: dict[str, list[Any]] = {
    "normalise_pool": [*[_MANY] * 3, _REAL, _REAL, Shape, *[_MANY] * 4],
    "normalise_pool_backward": [*[_MANY] * 6, _REAL, Shape, *[_MANY] * 3],
    "normalise_pool_second": [*[_MANY] * 11, _REAL, Shape, *[_MANY] * 3],
    "patches_moments": [_MANY, _INT, Shape, *[_MANY] * 2],
    "patches_forward": [_MANY, _INT, *[_MANY] * 5, _REAL, _REAL, Shape, *[_MANY] * 3],
    "patches_backward": [_MANY, _INT, *[_MANY] * 5, _REAL, Shape, *[_MANY] * 4],
    "patches_second": [_MANY, _INT, *[_MANY] * 9, _REAL, Shape, *[_MANY] * 3],
    "winograd_convolve": [_MANY, _MANY, Maps, ctypes.c_int32, _MANY],
    "winograd_weight": [_MANY, _MANY, Maps, _MANY],
}
"""What the functions of `kernels/` take."""


class Kernels:
    """The functions of `kernels/` for one type of map."""

    def __init__(self, path: Path):
        library = ctypes.CDLL(str(path))
        self._functions = {name: getattr(library, name) for name in _FUNCTIONS}  # AttributeError: another file
        for name, types in _FUNCTIONS.items():
            self._functions[name].argtypes = types

    def __call__(self, name: str, *arguments: Argument) -> None:
        """Run a function; raises MemoryError where it finds none."""
        if self._functions[name](*[each.data_ptr() if isinstance(each, Tensor) else each for each in arguments]):
            raise MemoryError("not enough memory for the sums of a batch's maps")


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
    attempts = ((f"-march={processor}", _THREADS), (f"-march={processor}",)) if processor else _ATTEMPTS
    every = [(*_BASIC, *_TYPES[dtype], *flags) for flags in attempts]
    files = [_cached(compiler, flags) for flags in every]
    for file in files:
        if found := _opened(file):
            return found
    for flags, file in zip(every, files, strict=True):
        try:
            return _compiled(compiler, flags, file)
        except (OSError, AttributeError, subprocess.SubprocessError):
            continue
    if processor:
        raise UserError(
            f"{compiler} compiles no kernels for the processor '{processor}' that METAZOO_NATIVE names; unset it, or "
            "set it to off."
        )
    return None


def _cached(compiler: str, flags: tuple[str, ...]) -> Path:
    """Where the kernels compiled with `flags` are kept."""
    text = "\0".join([*(source.read_text() for source in _SOURCES), compiler, *flags, _processor()])
    return cache_folder() / f"native-{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"


def _opened(path: Path) -> Kernels | None:
    """Those in a file; None where it is missing or damaged."""
    try:
        return Kernels(path) if path.exists() else None
    except (OSError, AttributeError):
        return None


def _compiled(compiler: str, flags: tuple[str, ...], cached: Path) -> Kernels:
    """Those compiled now, and kept for other processes."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder, "native.so")
        written = [str(source) for source in _SOURCES if source.suffix == ".c"]
        command = [compiler, *flags, "-o", str(fresh), *written, "-lm"]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        found = Kernels(fresh)
        try:
            with replacing(cached) as file:
                file.write(fresh.read_bytes())
        except OSError:
            pass  # no room or no right to write: the next process compiles again
        return found


def _processor() -> str:
    """What `-march=native` depends on."""
    information = Path("/proc/cpuinfo")
    text = information.read_text() if information.exists() else ""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)  # the latter on an Arm processor
    return found[1].strip() if found else f"{platform.machine()} {platform.processor()}"
