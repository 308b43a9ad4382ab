"""Where images come from: folders, tars and zips, read as they are and never unpacked."""

from __future__ import annotations

import gzip
import lzma
import os
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from array import array
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO

from metazoo.data.pictures import Piece
from metazoo.data.tars import COMPRESSIONS, Blocks, plain_members
from metazoo.errors import UserError

PLAIN_SUFFIXES = frozenset((".pkl", ".pickle", ".npz", ".csv", ".json", ".txt"))
"""Files that are given by themselves and are a source of one file each; every other file has to be an archive."""

IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"))

_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, gzip.BadGzipFile, EOFError)


class Source(ABC):
    """Files under one path that the user gave. Names are relative, with forward slashes; hidden files are left out.

    Every method raises UserError when the source is damaged, cut short, or holds links or names that point outside it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def _scan(self) -> Iterator[tuple[str, int, int]]:
        """The files in storage order: name, and where its bytes begin in the source's own file and how many they are.

        Twice -1 where they are not there, or not as they are.
        """

    @abstractmethod
    def read(self, wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
        """The contents of the wanted files, in storage order, one at a time."""

    @abstractmethod
    def open(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """One file, to be read piecemeal. It can seek, which is cheap forwards only where it has to be decompressed."""

    def locate(self, name: str) -> Piece | None:
        """Where the bytes of a file lie on the disk; None if they have to be decompressed."""
        index = self.names.index(name)
        return Piece(str(self.path), self._offsets[index], self._sizes[index]) if self._offsets[index] >= 0 else None

    def pictures(self, wanted: Collection[str]) -> Iterator[tuple[str, bytes | Piece]]:
        """The wanted files in storage order, one at a time: where they lie, or their contents where they are packed."""
        if min(self._offsets, default=-1) < 0:
            yield from self.read(wanted)
            return
        for name, offset, size in zip(self.names, self._offsets, self._sizes, strict=True):
            if name in wanted:
                yield name, Piece(str(self.path), offset, size)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all files, in storage order."""
        return self._index[0]

    @property
    def _offsets(self) -> array[int]:
        return self._index[1]

    @property
    def _sizes(self) -> array[int]:
        return self._index[2]

    @cached_property
    def _index(self) -> tuple[tuple[str, ...], array[int], array[int]]:
        seen: dict[str, None] = {}
        offsets, sizes = array("q"), array("q")
        for name, offset, size in self._scan():
            parts = name.split("/")
            if ".." in parts or name.startswith("/"):
                raise UserError(f"{self.path} holds a file whose name leads out of it, '{name}'; it is not a data set.")
            if "__MACOSX" in parts or any(part.startswith(".") and part != "." for part in parts):
                continue
            if name in seen:
                raise UserError(f"{self.path} holds '{name}' twice; it is damaged or was appended to.")
            seen[name] = None
            offsets.append(offset)
            sizes.append(size)
        return tuple(seen), offsets, sizes

    @property
    def images(self) -> list[str]:
        """The names of the image files."""
        return [name for name in self.names if f".{name.rpartition('.')[2].lower()}" in IMAGE_SUFFIXES]


class Folder(Source):
    """A folder on disk, with everything below it."""

    def _scan(self) -> Iterator[tuple[str, int, int]]:
        with _reading(self.path):
            yield from ((name, -1, -1) for name in self._walk(self.path, ""))

    def _walk(self, folder: Path, prefix: str) -> Iterator[str]:
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.is_symlink() and not self._inside(entry.path):
                raise UserError(f"{entry.path} is a link that leads out of {self.path}; put the file itself there.")
            if entry.is_dir():
                if not entry.is_symlink():
                    yield from self._walk(Path(entry.path), f"{prefix}{entry.name}/")
            else:
                yield f"{prefix}{entry.name}"

    def _inside(self, link: str) -> bool:
        return Path(link).resolve().is_relative_to(self.path.resolve())

    def read(self, wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
        for name in self.names:
            if name in wanted:
                with _reading(self.path / name):
                    yield name, (self.path / name).read_bytes()

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        with _reading(self.path / name), open(self.path / name, "rb") as file:
            yield file

    def locate(self, name: str) -> Piece:
        return Piece(str(self.path / name))

    def pictures(self, wanted: Collection[str]) -> Iterator[tuple[str, Piece]]:
        return ((name, self.locate(name)) for name in self.names if name in wanted)


class File(Source):
    """One file that is no archive and was given by itself."""

    def _scan(self) -> Iterator[tuple[str, int, int]]:
        yield self.path.name, 0, self.path.stat().st_size

    def read(self, wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
        if self.path.name in wanted:
            with _reading(self.path):
                yield self.path.name, self.path.read_bytes()

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        with _reading(self.path), open(self.path, "rb") as file:
            yield file


class Tar(Source):
    """A tar, plain or compressed with gzip, bzip2 or xz, read from front to back."""

    def _members(self) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
        with _reading(self.path), Blocks(self.path) as blocks, tarfile.open(fileobj=blocks, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # else every header seen is kept: a million are a gigabyte
                if member.issym() or member.islnk():
                    raise UserError(f"{self.path} holds a link, '{member.name}', where a file should be.")
                if member.isfile():
                    yield member, tar
            blocks.expect_end()

    def _scan(self) -> Iterator[tuple[str, int, int]]:
        with Blocks(self.path) as blocks:
            plain = not blocks.compressed
        with _reading(self.path):
            members = plain_members(self.path) if plain else None
        if members is not None:
            yield from ((name.removeprefix("./"), offset, size) for name, offset, size in members)
            return
        for member, _ in self._members():
            there = plain and not member.issparse()
            offset, size = (member.offset_data, member.size) if there else (-1, -1)
            yield member.name.removeprefix("./"), offset, size

    def read(self, wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
        for member, tar in self._members():
            name = member.name.removeprefix("./")
            if name in wanted:
                file = tar.extractfile(member)
                assert file is not None
                yield name, file.read()

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        with _reading(self.path):
            for member, tar in self._members():
                if member.name.removeprefix("./") == name:
                    file = tar.extractfile(member)
                    assert file is not None
                    yield file
                    return


class Zip(Source):
    """A zip archive."""

    def _members(self, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
        return sorted((info for info in archive.infolist() if not info.is_dir()), key=lambda info: info.header_offset)

    def _scan(self) -> Iterator[tuple[str, int, int]]:
        with _reading(self.path), zipfile.ZipFile(self.path) as archive:
            yield from ((info.filename, -1, -1) for info in self._members(archive))

    def read(self, wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
        with _reading(self.path), zipfile.ZipFile(self.path) as archive:
            for info in self._members(archive):
                if info.filename in wanted:
                    yield info.filename, archive.read(info)

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        with _reading(self.path), zipfile.ZipFile(self.path) as archive, archive.open(name) as file:
            yield file


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong with a file into a sentence."""
    try:
        yield
    except _DAMAGE as error:
        raise UserError(f"{path} is damaged or cut short ({error}); get it again.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}).") from error
    except (RuntimeError, NotImplementedError) as error:  # zipfile: a password, an unknown compression
        raise UserError(f"{path} cannot be read ({error}).") from error


def is_web_page(head: bytes) -> bool:
    """Whether a file that begins like this is a web page, as comes where a download asks to sign in or is gone."""
    start = head.lstrip().lower()
    return start.startswith((b"<!doctype html", b"<html", b"<?xml")) or b"<html" in start


def open_source(path: Path) -> Source:
    """The source at `path`. Raises UserError if there is none, or it is neither a folder nor an archive."""
    if path.is_dir():
        return Folder(path)
    if not path.exists():
        raise UserError(f"There is no file or folder {path}.")
    with _reading(path), open(path, "rb") as file:
        head = file.read(512)
    if not head:
        raise UserError(f"{path} is empty; get it again.")
    if is_web_page(head):
        raise UserError(f"{path} is a web page and not an archive; open its link in a browser and get the file itself.")
    if path.suffix.lower() in PLAIN_SUFFIXES:
        return File(path)
    if head.startswith(b"PK"):
        return Zip(path)
    if head[257:262] == b"ustar" or any(head.startswith(magic) for magic in COMPRESSIONS) or _is_old_tar(head):
        return Tar(path)
    raise UserError(f"{path} is neither a folder nor a tar or zip archive.")


def _is_old_tar(head: bytes) -> bool:
    """A tar older than POSIX has no magic number, only a header checksum that fits."""
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return True


def open_sources(paths: Sequence[Path]) -> tuple[Source, ...]:
    """All sources, each once. Raises UserError as `open_source` does, or if one was given twice."""
    sources: dict[Path, Source] = {}
    for path in paths:
        if path.resolve() in sources:
            raise UserError(f"{path} was given twice.")
        sources[path.resolve()] = open_source(path)
    return tuple(sources.values())
