"""Arrays that stay in their file: what they are is known, and their values are read a row at a time."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np

from metazoo.data.pictures import Piece

CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Span:
    """A long byte string that was left where it is: `size` bytes of a file from `offset` on.

    With `coded`, the file holds its bytes as UTF-8 of the Latin-1 characters with these numbers.
    """

    offset: int
    size: int
    coded: bool = False

    def chunks(self, file: IO[bytes]) -> Iterator[bytes]:
        """The byte string, about a megabyte at a time. Raises EOFError if the file ends within it."""
        file.seek(self.offset)
        left, decoder = self.size, codecs.getincrementaldecoder("utf-8")()
        while left:
            block = file.read(min(left, CHUNK))
            if not block:
                raise EOFError("the file is cut short")
            left -= len(block)
            yield decoder.decode(block, final=not left).encode("latin-1") if self.coded else block

    def read(self, file: IO[bytes]) -> bytes:
        return b"".join(self.chunks(file))


@dataclass(slots=True)
class FileArray:
    """An array whose values lie in a file, if there are more than a few of them.

    Every method takes the file that the array was found in, open for reading, and raises ValueError or EOFError where
    the file does not hold what it should.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    data: Span | bytes
    fortran: bool = False

    def __post_init__(self) -> None:
        self.dtype, self.shape = np.dtype(self.dtype), tuple(int(length) for length in self.shape)
        if self.dtype.hasobject:
            raise ValueError("it holds an array of objects")
        if min(self.shape, default=0) < 0 or not isinstance(self.data, (Span, bytes)):
            raise ValueError("it holds an array without values")
        held = len(self.data) if isinstance(self.data, bytes) else self.data.size
        coded = isinstance(self.data, Span) and self.data.coded
        if held < self.size if coded else held != self.size:
            raise ValueError(f"it holds an array of shape {self.shape} with {held} bytes of values")

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def size(self) -> int:
        """Of its values, in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, file: IO[bytes]) -> np.ndarray:
        """All of it, in memory."""
        content = self.data if isinstance(self.data, bytes) else self.data.read(file)
        return np.frombuffer(content, self.dtype).reshape(self.shape, order="F" if self.fortran else "C")

    def rows(self, file: IO[bytes]) -> Iterator[np.ndarray]:
        """Its rows in order, read as they are asked for."""
        if isinstance(self.data, bytes) or (self.fortran and self.size <= CHUNK):
            yield from self.read(file)
            return
        self._refuse_columns()
        row, waiting = self.size // max(1, len(self)), bytearray()
        for chunk in self.data.chunks(file):
            waiting += chunk
            whole = len(waiting) // row
            for index in range(whole):
                values = np.frombuffer(bytes(waiting[index * row : (index + 1) * row]), self.dtype)
                yield values.reshape(self.shape[1:])
            del waiting[: whole * row]

    def pieces(self, file: Piece) -> Iterator[Piece] | None:
        """Its rows where they lie in `file`; None where they have to be read in order. For images [n, H, W, C]."""
        if not isinstance(self.data, Span) or self.data.coded:
            return None
        self._refuse_columns()
        start, row = file.offset + self.data.offset, self.size // max(1, len(self))
        return (Piece(file.path, start + index * row, row, self.shape[1:]) for index in range(len(self)))

    def _refuse_columns(self) -> None:
        if self.fortran and len(self.shape) > 1:
            raise ValueError("its images are stored column by column")


def read_npy(file: IO[bytes]) -> FileArray:
    """The array of an .npy file, from where the file stands. Raises ValueError if it is none, or one of objects."""
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(file)
    array = FileArray(
        dtype, shape, b"" if not math.prod(shape) else Span(file.tell(), math.prod(shape) * dtype.itemsize)
    )
    array.fortran = fortran
    return array
