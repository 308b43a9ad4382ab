"""Batches gathered ahead: the next one is on its way while the one before it is in use."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch

from metazoo.episodes import Episodes
from metazoo.placement import Place


class Stream(Protocol):
    """The endless, fixed list of episodes of one split, on a device."""

    queries: int
    """Query examples of an episode."""
    place: Place | None
    """Where its images lie; None where there are none."""

    def batch(self, start: int, count: int) -> Episodes:
        """Episodes `start` to `start + count - 1`."""


def batches(stream: Stream, spans: Iterable[tuple[int, int]]) -> Generator[Episodes, None, None]:
    """`stream.batch(start, count)` for each of the spans, in order.

    Where the images are far from the device, a thread gathers the next batch meanwhile: the same batches, sooner.
    """
    if stream.place is None or not stream.place.is_far:
        for start, count in spans:
            yield stream.batch(start, count)
        return
    courier = _CudaCourier(stream, stream.place.device) if stream.place.device.type == "cuda" else _Courier(stream)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="metazoo images") as thread:
        on_the_way: deque[Future[Episodes]] = deque()
        for span in spans:
            on_the_way.append(thread.submit(courier.fetch, *span))
            if len(on_the_way) > 1:
                yield courier.hand_over(on_the_way.popleft().result())
        while on_the_way:
            yield courier.hand_over(on_the_way.popleft().result())


class _Courier:
    """Fetches batches in a thread of its own and hands them over in another."""

    def __init__(self, stream: Stream):
        self.stream = stream

    def fetch(self, start: int, count: int) -> Episodes:
        """Called in the thread that fetches."""
        return self.stream.batch(start, count)

    def hand_over(self, episodes: Episodes) -> Episodes:
        """Called in the thread that uses the batch."""
        return episodes


class _CudaCourier(_Courier):
    """Copies and normalises on a CUDA stream beside the one that trains; the GPU waits where it must, not the host."""

    def __init__(self, stream: Stream, device: torch.device):
        super().__init__(stream)
        self.device = device
        self.side = torch.cuda.Stream(device)
        self.arrivals: deque[torch.cuda.Event] = deque()
        # What the stream of episodes holds on the GPU was put there by the work queued until now.
        self.side.wait_stream(torch.cuda.current_stream(device))

    def fetch(self, start: int, count: int) -> Episodes:
        with torch.cuda.device(self.device), torch.cuda.stream(self.side):
            episodes = self.stream.batch(start, count)
            self.arrivals.append(self.side.record_event())
        return episodes

    def hand_over(self, episodes: Episodes) -> Episodes:
        user = torch.cuda.current_stream(self.device)
        user.wait_event(self.arrivals.popleft())
        for tensor in (episodes.support_x, episodes.support_y, episodes.query_x, episodes.query_y):
            tensor.record_stream(user)  # its memory is not used again before the user's work on it is done
        return episodes
