"""Reading the pickles of old data sets: nothing that they say is run, and their images stay on disk."""

from __future__ import annotations

import io
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, ClassVar

import numpy as np

from metazoo.data.arrays import FileArray, Span
from metazoo.errors import UserError

LONG = 1 << 10  # bytes; strings from this length on are left in the file
LONGEST_LINE = 1 << 26  # bytes; of the text that protocol 0 consists of, and that has to be read to be understood
BUFFER = 1 << 18


def read_pickle(file: IO[bytes], name: str) -> Any:
    """Read a pickle of arrays, numbers, bytes and strings in dicts, lists and tuples, of Python 2 or 3.

    Whatever the size of the file, memory is needed for its small parts only: arrays come back as `FileArray`, other
    byte strings of a kilobyte or more as `Span`, to be read from the same file. Python 2's strings come back as bytes.

    Args:
        file: open for reading, and able to seek.
        name: for errors.

    Raises UserError, naming `name`, if it is damaged or holds anything else.
    """
    with reading(name):
        return _Unpickler(file).load()


@contextmanager
def reading(name: str, what: str = "a pickle of plain arrays") -> Iterator[None]:
    """Turn whatever a damaged file raises into a sentence about `name`, which should be `what`."""
    try:
        yield
    except (UserError, GeneratorExit):
        raise
    except Exception as error:
        raise UserError(f"{name} is not {what} ({error}); get the file again.") from error


def text(value: object) -> str:
    """A string that may be Python 2's."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.60} is where a string should be")
    return value


def entries(value: object) -> dict[str, Any]:
    """A dict whose keys may be Python 2's strings. Raises ValueError if it is none."""
    if not isinstance(value, Mapping):
        raise ValueError("it holds no dict")
    return {text(key): item for key, item in value.items()}


def integers(values: object, file: IO[bytes]) -> list[int]:
    """A list of whole numbers, or an array of them in `file`. Raises ValueError if it is none."""
    found = values.read(file).ravel().tolist() if isinstance(values, FileArray) else values
    if not isinstance(found, (list, tuple)) or not all(type(value) is int for value in found):
        raise ValueError("something else is where whole numbers should be")
    return list(found)


def _reconstruct(*_: object) -> FileArray:
    """numpy's way to begin an array, filled by what follows."""
    return FileArray(np.dtype(np.uint8), (0,), b"")


def _frombuffer(data: Any, dtype: Any, shape: Any, order: object = "C") -> FileArray:
    """numpy's array in protocol 5."""
    return FileArray(dtype, shape, data if isinstance(data, Span) else bytes(data), fortran=order == "F")


def _scalar(dtype: Any, data: bytes = b"") -> Any:
    return np.frombuffer(data, np.dtype(dtype), count=1)[0].item()


def _dtype(spec: Any, align: object = False, copy: object = False) -> np.dtype:
    return np.dtype(spec, bool(align), bool(copy))


def _encode(characters: str | Span, encoding: str | bytes = "latin1") -> bytes | Span:
    """How protocol 2 writes bytes. The real `_codecs.encode` would also decompress."""
    if text(encoding) not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise pickle.UnpicklingError(f"it asks for the codec '{text(encoding)}'")
    if isinstance(characters, Span):
        if text(encoding) not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError("it holds a very long text")
        return Span(characters.offset, characters.size, coded=True)
    return characters.encode(text(encoding))


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): "ndarray",  # named by every array, and never called
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): lambda factory=None: {},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
    **{(builtins, "set"): set for builtins in ("builtins", "__builtin__")},
    **{(builtins, "list"): list for builtins in ("builtins", "__builtin__")},
    **{(builtins, "bytes"): lambda: b"" for builtins in ("builtins", "__builtin__")},  # protocol 2 of Python 3: b""
}


class _Unpickler(pickle._Unpickler):  # the one in Python: the one in C cannot leave a string unread
    """Admits numpy arrays and plain containers; a pickle that names anything else is refused before it is called."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    read: Callable[[int], bytes]
    append: Callable[[object], None]
    stack: list[Any]

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file if isinstance(file, io.BytesIO) else io.BufferedReader(file, BUFFER)  # type: ignore[type-var]
        super().__init__(self._file, encoding="bytes")
        self._file_readline = self._line

    def load(self) -> Any:
        try:
            return super().load()
        finally:
            if isinstance(self._file, io.BufferedReader):
                self._file.detach()  # else it would close what is not its own

    def find_class(self, module: str | bytes, name: str | bytes) -> Any:
        try:
            return _ADMITTED[text(module), text(name)]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {text(module)}.{text(name)}") from None

    def _line(self) -> bytes:
        line = self._file.readline(LONGEST_LINE)
        if len(line) == LONGEST_LINE:
            raise pickle.UnpicklingError("it is written as text, protocol 0, and too long for that")
        return line

    def _string(self, size: int, kind: Callable[[bytes], Any]) -> None:
        """Push a string: as it is, or, if it is long, where it is."""
        if size < LONG:
            content = self.read(size)
            if len(content) < size:
                raise EOFError("cut short")
            self.append(kind(content))
            return
        offset = self._file.tell()
        self._file.seek(size - 1, io.SEEK_CUR)
        if not self._file.read(1):
            raise EOFError("cut short")
        self.append(Span(offset, size))

    def _size(self, form: str) -> int:
        (size,) = struct.unpack(form, self.read(struct.calcsize(form)))
        if size < 0:
            raise pickle.UnpicklingError("it holds a string of negative length")
        return size

    def load_frame(self) -> None:
        self.read(8)  # a frame's length helps to read ahead, and means nothing

    def load_binstring(self) -> None:
        self._string(self._size("<i"), bytes)

    def load_binbytes(self) -> None:
        self._string(self._size("<I"), bytes)

    def load_binbytes8(self) -> None:
        self._string(self._size("<Q"), bytes)

    def load_binunicode(self) -> None:
        self._string(self._size("<I"), _characters)

    def load_binunicode8(self) -> None:
        self._string(self._size("<Q"), _characters)

    def load_long4(self) -> None:
        raise pickle.UnpicklingError("it holds a number of more than 255 bytes")

    def load_build(self) -> None:
        array = self.stack[-2]
        if isinstance(array, np.dtype):
            super().load_build()  # type: ignore[misc]
        elif isinstance(array, FileArray):
            _, shape, dtype, fortran, data = self.stack.pop()
            array.__init__(dtype, shape, data, bool(fortran))  # type: ignore[misc]
        else:
            raise pickle.UnpicklingError(f"it fills in a {type(array).__name__}")


_Unpickler.dispatch |= {
    pickle.FRAME[0]: _Unpickler.load_frame,
    pickle.BINSTRING[0]: _Unpickler.load_binstring,
    pickle.BINBYTES[0]: _Unpickler.load_binbytes,
    pickle.BINBYTES8[0]: _Unpickler.load_binbytes8,
    pickle.BYTEARRAY8[0]: _Unpickler.load_binbytes8,
    pickle.BINUNICODE[0]: _Unpickler.load_binunicode,
    pickle.BINUNICODE8[0]: _Unpickler.load_binunicode8,
    pickle.LONG4[0]: _Unpickler.load_long4,
    pickle.BUILD[0]: _Unpickler.load_build,
}


def _characters(content: bytes) -> str:
    return content.decode("utf-8", "surrogatepass")
