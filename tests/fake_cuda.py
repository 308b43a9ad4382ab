"""A CUDA that is not there: what `metazoo.graphs` says to PyTorch's, written down in order.

Its graphs compute nothing; a test says what goes wrong while one is recorded.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch


class FakeCuda:
    def __init__(self) -> None:
        self.log: list[str] = []
        self.sync_mode: Any = 0
        self.failure: Exception | None = None
        """What the end of a recording raises after what went wrong in it."""
        self.leaves_its_stream = False
        """Whether a recording that fails leaves its stream current, as PyTorch 2.10 does."""
        self.streams = ["default"]
        self.pools, self.has_warned = 0, False

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for name in ("synchronize", "set_sync_debug_mode", "get_sync_debug_mode", "graph_pool_handle"):
            patch.setattr(torch.cuda, name, getattr(self, name))
        patch.setattr(torch.cuda, "Stream", lambda device: FakeStream(self, "side"))
        patch.setattr(torch.cuda, "current_stream", lambda device: FakeStream(self, self.streams[-1]))
        patch.setattr(torch.cuda, "stream", self.on)
        patch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
        patch.setattr(torch.cuda, "CUDAGraph", lambda: FakeGraph(self))
        patch.setattr(torch.cuda, "graph", self.graph)

    def synchronize(self, device: Any = None) -> None:
        self.log.append("synchronize")

    def set_sync_debug_mode(self, mode: Any) -> None:
        if not self.has_warned:  # as PyTorch does
            self.has_warned = True
            warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=2)
        self.sync_mode = mode

    def get_sync_debug_mode(self) -> Any:
        return self.sync_mode

    def graph_pool_handle(self) -> str:
        self.pools += 1
        return f"pool {self.pools}"

    @contextlib.contextmanager
    def on(self, stream: FakeStream) -> Iterator[None]:
        before = list(self.streams)
        self.streams.append(stream.name)
        try:
            yield
        finally:
            self.streams[:] = before

    @contextlib.contextmanager
    def graph(self, graph: FakeGraph, *, pool: str, stream: FakeStream, capture_error_mode: str) -> Iterator[None]:
        self.log.append(f"record from {pool} on {stream.name}, {capture_error_mode}")
        with contextlib.ExitStack() as on:
            on.enter_context(self.on(stream))
            try:
                yield
            finally:
                self.log.append("recorded")
                if self.failure is not None:
                    if self.leaves_its_stream:
                        self.left = on.pop_all()  # kept, for otherwise it would end
                    raise self.failure


class FakeStream:
    def __init__(self, cuda: FakeCuda, name: str):
        self.cuda, self.name = cuda, name

    def wait_stream(self, other: FakeStream) -> None:
        self.cuda.log.append(f"{self.name} waits for {other.name}")


class FakeGraph:
    def __init__(self, cuda: FakeCuda):
        self.cuda = cuda

    def replay(self) -> None:
        self.cuda.log.append("replay")

    def reset(self) -> None:
        self.cuda.log.append("reset")
