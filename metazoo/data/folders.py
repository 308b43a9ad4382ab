"""Folders that are built whole or not at all, by one process at a time, whenever that process may be killed."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: two processes that build the same folder at once are not kept apart
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the right to build `path`; the lock goes with the process, however it ends. Waits for another holder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "a") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"metazoo: waiting for another process that is building {path}", file=sys.stderr)
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def building(path: Path, worth_keeping: Callable[[Path], bool] = lambda attempt: False) -> Iterator[Path]:
    """A folder that takes the place of `path` when the block ends without an error; hold `locked(path)`.

    What a killed process left of its attempt is what the folder begins with if it is `worth_keeping`, and is removed
    if not. On an error the attempt is removed and `path` untouched; on Ctrl-C an attempt that is worth keeping stays.
    """
    attempt, former = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.former")
    if former.exists() and not path.exists():  # killed between the two renames below
        former.rename(path)
    if former.exists():
        shutil.rmtree(former)
    if attempt.exists() and not worth_keeping(attempt):
        shutil.rmtree(attempt)
    attempt.mkdir(exist_ok=True)
    try:
        yield attempt
        _flush(attempt)
        if path.exists():
            path.rename(former)
        attempt.rename(path)
    except BaseException as error:
        if isinstance(error, Exception) or not worth_keeping(attempt):
            shutil.rmtree(attempt, ignore_errors=True)
        elif isinstance(error, KeyboardInterrupt):
            print("metazoo: stopped; what is finished is kept, and the same command goes on.", file=sys.stderr)
        raise
    shutil.rmtree(former, ignore_errors=True)


def _flush(folder: Path) -> None:
    for file in folder.iterdir():
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
