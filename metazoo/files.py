"""Writing files so that a kill at any moment leaves either the old file or the new one, and hashing them."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path, mode: str = "wb") -> Iterator[IO]:
    """Open a temporary file beside `path`, which takes its place when the block ends without an error.

    The bytes are on the disk before the name changes; on an error the temporary file goes and `path` is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    encoding = None if "b" in mode else "utf-8"
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Replace the contents of `path` with `text`, atomically."""
    with replacing(path, "w") as file:
        file.write(text)


def cache_folder() -> Path:
    """Where what can be made anew is kept for the next process: `~/.cache/metazoo`, or under XDG_CACHE_HOME."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metazoo"


def sha256_of(path: Path, advance: Callable[[int], None] = lambda count: None) -> str:
    """The SHA-256 of a file's contents, in hex; `advance` is told how many bytes more were hashed."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
