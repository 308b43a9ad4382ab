"""The table of contents of a tar, in the time that a large one deserves."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

BLOCK = tarfile.BLOCKSIZE
END = bytes(BLOCK)
FILE, OLD_FILE, FOLDER = tarfile.REGTYPE[0], tarfile.AREGTYPE[0], tarfile.DIRTYPE[0]


def plain_members(path: Path) -> list[tuple[str, int, int]] | None:
    """Name, offset and size of the contents of every file in a tar, if it is whole and as simple as a tar can be.

    None for every other one, damaged ones included: `tarfile` reads those, or says what is wrong with them. It takes as
    long for the header of a small image as decoding takes, which is why it is not asked first. Raises OSError.
    """
    found = []
    with open(path, "rb", buffering=0) as file:
        at, end = 0, os.fstat(file.fileno()).st_size
        while (header := file.read(BLOCK)) != END:
            try:
                name = header[:100].rstrip(b"\0").decode()
                size, checksum = (int(header[start:stop].rstrip(b" \0"), 8) for start, stop in ((124, 136), (148, 156)))
                kind, prefix = header[156], header[345]
            except (ValueError, IndexError):
                return None
            if prefix or "\0" in name or size < 0 or checksum != sum(header) - sum(header[148:156]) + 8 * ord(" "):
                return None
            at += BLOCK
            if kind in (FILE, OLD_FILE) and not name.endswith("/"):
                found.append((name, at, size))
            elif kind != FOLDER or size:
                return None
            at += -(-size // BLOCK) * BLOCK
            if at > end:
                return None
            file.seek(at)
    return found
