"""Reading the pickles that old data sets are published as, without running anything they say."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from typing import IO, Any

import numpy as np

from metazoo.errors import UserError


def _dtype(spec: Any, align: object = False, copy: object = False) -> np.dtype:
    return np.dtype(spec, bool(align), bool(copy))


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """How protocol 2 writes bytes. The real `_codecs.encode` would also decompress."""
    if encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise pickle.UnpicklingError(f"it asks for the codec '{encoding}'")
    return text.encode(encoding)


_RECONSTRUCT = np.empty(0, np.uint8).__reduce__()[0]
_FROMBUFFER = np.empty(1, np.uint8).__reduce_ex__(5)[0]
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy.core.numeric", "_frombuffer"): _FROMBUFFER,
    ("numpy._core.numeric", "_frombuffer"): _FROMBUFFER,
    ("_codecs", "encode"): _encode,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("collections", "OrderedDict"): OrderedDict,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Admits numpy arrays and plain containers; a pickle that names anything else is refused before it is called."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def read_arrays(file: IO[bytes], name: str) -> Any:
    """Read a pickle of arrays, numbers, bytes and strings in dicts, lists and tuples, of Python 2 or 3.

    Python 2's strings come back as bytes. Raises UserError, naming `name`, if it is damaged or holds anything else.
    """
    try:
        return _ArrayUnpickler(file, encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise anything at all
        raise UserError(f"{name} is not a pickle of plain arrays ({error}); get the file again.") from error
