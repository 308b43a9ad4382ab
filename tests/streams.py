"""Streams that compute nothing, and who has waited for whom: work that meets in a tensor without that is refused.

Each stream knows how far every other one is at least, from its waits; the host knows it from its own. A tensor's memory
remembers who wrote and who read it last.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

Known = dict[int, int]
"""How many operations of each stream are known to be done."""


class Streams:
    def __init__(self) -> None:
        self.known: dict[int, Known] = {0: {}}
        """By stream; 0 is the default one."""
        self.host: Known = {}
        self._lock = threading.Lock()
        self._local = threading.local()

    @property
    def current(self) -> int:
        """That of this thread."""
        return self._stack[-1]

    @property
    def _stack(self) -> list[int]:
        if not hasattr(self._local, "stack"):
            self._local.stack = [0]
        return self._local.stack

    def new(self) -> int:
        with self._lock:
            self.known[len(self.known)] = {}
            return len(self.known) - 1

    @contextmanager
    def on(self, stream: int) -> Any:
        depth = len(self._stack)
        self._stack.append(stream)
        try:
            yield
        finally:
            del self._stack[depth:]

    def ran(self, reads: Iterable[Tensor], writes: Iterable[Tensor], what: str = "") -> None:
        """An operation was launched on the current stream. RuntimeError if it may meet one that is still under way."""
        here, reads, writes = self.current, list(reads), list(writes)
        known = self.known[here]
        for tensor in (*reads, *writes):
            self._check(getattr(tensor.untyped_storage(), "written", {}), here, what)
        for tensor in writes:
            self._check(getattr(tensor.untyped_storage(), "read", {}), here, what)
        now = known[here] = known.get(here, 0) + 1
        for tensor in writes:
            storage: Any = tensor.untyped_storage()
            storage.written, storage.read = {here: now}, {}
        for tensor in reads:
            storage = tensor.untyped_storage()
            storage.read = {**getattr(storage, "read", {}), here: now}

    def _check(self, earlier: Mapping[int, int], here: int, what: str) -> None:
        for stream, time in list(earlier.items()):
            if stream != here and max(self.known[here].get(stream, 0), self.host.get(stream, 0)) < time:
                raise RuntimeError(
                    f"stream {here} does not wait for stream {stream}, with which it shares a tensor {what}"
                )

    def wait(self, stream: int, known: Known) -> None:
        """What was known at some point is done before the next operation of the stream."""
        _merge(self.known[stream], known)

    def synchronize(self, stream: int | None = None) -> None:
        """The host waits for a stream, or for all."""
        for known in self.known.values() if stream is None else (self.known[stream],):
            _merge(self.host, known)


def _merge(into: Known, known: Known) -> None:
    for stream, time in list(known.items()):
        into[stream] = max(into.get(stream, 0), time)
