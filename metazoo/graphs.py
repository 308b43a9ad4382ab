"""Passes that are recorded once and replayed: on a GPU, as CUDA graphs.

An adapted task is thousands of small operations, and launching them one by one takes the host longer than the GPU takes
to compute them. A CUDA graph is the same operations on the same memory, launched at once. What may differ from pass to
pass is therefore only what lies in that memory: episodes are copied into the place that was recorded, weights are
updated where they are. Everything else is part of the recording: shapes, the order of derivatives, and what the method
asked the training's clock, so that with other answers it is recorded anew.

Whether a method can be recorded shows when it is tried; a method that cannot runs as ever, and the reason is given.
"""

from __future__ import annotations

import contextlib
import gc
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from metazoo.episodes import Episodes
from metazoo.fast import trials
from metazoo.hardware import is_out_of_memory
from metazoo.meta_pass import Results
from metazoo.outer_step import Clock, OuterStep

WATCHED_RUN = 3
"""In this run of a kind of passes, none may wait for the GPU; the next one is recorded. In the first one nothing is
tried, for some kinds come only once; in the second, libraries load, measure and choose what they will."""

UNSTEADY = 0.01
"""Two equal passes whose results differ by this share of their size are not two equal passes."""


class Unrecordable(Exception):
    """A pass cannot be recorded; the message is a clause that says why."""


class Recording(Protocol):
    def replay(self) -> Results:
        """Make the pass again, with what now lies in the memory that it read. The results are overwritten next time."""

    def drop(self) -> None:
        """Give its memory back."""


class Recorder(Protocol):
    def run(self, work: Callable[[], Results], watched: bool = False) -> Results:
        """Work as ever, where it can be recorded later; `watched`, Unrecordable if the host waits for the GPU in it."""

    def record(self, work: Callable[[], Results]) -> Recording:
        """Record the work; Unrecordable where that cannot be done."""


def recorder(device: torch.device) -> Recorder | None:
    """What records passes on a device; None on a CPU."""
    return CudaGraphs(device) if device.type == "cuda" else None


class CudaGraphs:
    """Records passes on a GPU as CUDA graphs, on a stream of its own that all of them share, and one pool of memory.

    They can share it because they are replayed one after the other and what one has given is used up before the next.
    A pool ends with the last of its recordings: PyTorch does not let it be used again.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self._pool: Any = None
        self._there: weakref.WeakSet[_CudaRecording] = weakref.WeakSet()

    def run(self, work: Callable[[], Results], watched: bool = False) -> Results:
        here = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(here)
        try:
            with torch.cuda.stream(self.stream), _watched() if watched else contextlib.nullcontext():
                return work()
        finally:
            here.wait_stream(self.stream)

    def record(self, work: Callable[[], Results]) -> Recording:
        graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        if self._pool is None or not any(recording.results for recording in self._there):
            self._pool = torch.cuda.graph_pool_handle()
        # While a stream is recorded other threads go on, such as the one that fetches images.
        capture = torch.cuda.graph(graph, pool=self._pool, stream=self.stream, capture_error_mode="thread_local")
        try:
            # In older PyTorch a broken recording leaves its stream behind as the current one.
            with torch.cuda.device(self.device), torch.cuda.stream(here), _nothing_collected(), capture:
                results = work()
        except RuntimeError as error:
            cause = _first_cause(error)
            if not isinstance(cause, Exception):
                raise cause from None  # Ctrl-C, which the end of a broken recording would hide
            if is_out_of_memory(cause):
                raise Unrecordable("the GPU's memory has no room for it") from error
            reason = str(cause).strip().partition("\n")[0].rstrip(".")
            raise Unrecordable(f"CUDA cannot record it ({reason})") from error
        recording = _CudaRecording(graph, results, self.device)
        self._there.add(recording)
        return recording


@dataclass(eq=False)
class _CudaRecording:
    graph: torch.cuda.CUDAGraph
    results: Results
    device: torch.device

    def replay(self) -> Results:
        self.graph.replay()
        return self.results

    def drop(self) -> None:
        torch.cuda.synchronize(self.device)
        self.results = {}
        self.graph.reset()


class Replayed:
    """A pass that is recorded where that can be done, once for each kind of episodes, and replayed from then on.

    Called like the pass itself. Its results may be overwritten by the next call. `what` is its name in the one sentence
    that `note` gets if it cannot be recorded.
    """

    def __init__(
        self,
        work: Callable[[Episodes, OuterStep], Results],
        recorder: Recorder | None,
        what: str = "",
        note: Callable[[str], object] = lambda text: None,
    ):
        self.work, self.what, self.note = work, what, note
        self._recorder = recorder
        self._tracks: dict[tuple[Any, ...], _Track] = {}

    def __call__(self, episodes: Episodes, outer: OuterStep = OuterStep()) -> Results:
        if self._recorder is None:
            return self.work(episodes, outer)
        kind = _kind(episodes)
        track = self._tracks.get(kind)
        if track is None or not track.fits(outer):
            if track is not None:
                track.drop()
            track = self._tracks[kind] = _Track(outer)
        try:
            return track.replay(episodes) if track.is_proven else self._prepare(track, episodes, self._recorder)
        except Unrecordable as error:
            self.forget()
            self._recorder = None
            self.note(f"{self.what} run operation by operation, not as one recorded CUDA graph: {error}.")
        return self.work(episodes, outer)

    def once(self, episodes: Episodes, outer: OuterStep = OuterStep()) -> Results:
        """The pass as ever, and as if it would not come again."""
        run = partial(self.work, episodes, outer)
        with trials.postponed():
            return self._recorder.run(run) if self._recorder else run()

    @property
    def is_replaying(self) -> bool:
        """Whether some kind of episodes is replayed by now."""
        return any(track.is_proven for track in self._tracks.values())

    def forget(self) -> None:
        """Drop all recordings; what is called from here on is recorded anew."""
        for track in self._tracks.values():
            track.drop()
        self._tracks.clear()

    def _prepare(self, track: _Track, episodes: Episodes, recorder: Recorder) -> Results:
        """Make a pass, and come one step nearer to its recording, which is proven on other episodes than recorded."""
        run = partial(self.work, episodes, track.outer)
        track.runs += 1
        if track.runs == 1:
            with trials.postponed():
                return recorder.run(run)
        if track.runs <= WATCHED_RUN:
            found = recorder.run(run, watched=track.runs == WATCHED_RUN)
            if track.runs == WATCHED_RUN:
                track.place = _copied(episodes)
            return found
        assert track.place is not None
        found = _kept(recorder.run(run))
        if not all(bool(tensor.isfinite().all()) for tensor in found.values()):
            return found  # a training that diverges proves nothing
        again = _kept(recorder.run(run))
        track.recording = recorder.record(partial(self.work, track.place, track.outer))
        _prove(found, again, track.replay(episodes))
        track.is_proven = True
        return found


class _Track:
    """What there is of one kind of passes on the way to its recording."""

    def __init__(self, outer: OuterStep):
        self.outer = replace(outer, clock=Clock(outer.clock.epoch, outer.clock.epochs))
        """With a clock of its own, which remembers what this kind of passes asks it."""
        self.runs = 0
        self.place: Episodes | None = None
        """Where a recording reads its episodes."""
        self.recording: Recording | None = None
        self.is_proven = False

    def fits(self, outer: OuterStep) -> bool:
        """Whether passes of this kind are what the step asks for."""
        alike = (self.outer.first_order, self.outer.taps) == (outer.first_order, outer.taps)
        return alike and outer.clock.agrees(self.outer.clock.answers)

    def replay(self, episodes: Episodes) -> Results:
        assert self.place is not None and self.recording is not None
        for place, tensor in zip(_tensors(self.place), _tensors(episodes), strict=True):
            place.copy_(tensor, non_blocking=True)
        return self.recording.replay()

    def drop(self) -> None:
        if self.recording is not None:
            self.recording.drop()


def _tensors(episodes: Episodes) -> tuple[Tensor, ...]:
    return episodes.support_x, episodes.support_y, episodes.query_x, episodes.query_y


def _kind(episodes: Episodes) -> tuple[Any, ...]:
    return episodes.ways, *((tensor.shape, tensor.stride(), tensor.dtype) for tensor in _tensors(episodes))


def _copied(episodes: Episodes) -> Episodes:
    support_x, support_y, query_x, query_y = (tensor.clone() for tensor in _tensors(episodes))
    return Episodes(support_x, support_y, query_x, query_y, episodes.ways, episodes.numbers)


def _kept(results: Results) -> Results:
    return {name: tensor.clone() for name, tensor in results.items()}


def _prove(found: Results, again: Results, replayed: Results) -> None:
    """Raise Unrecordable unless a replayed pass is as near to the same pass made twice as these are to each other.

    Integers are left out: by rounding alone, a prediction that is on the edge can be right once and wrong once.
    """
    if not found.keys() == again.keys() == replayed.keys():
        raise Unrecordable("its passes do not always give the same things")
    sizes = {name: _size(tensor) for name, tensor in found.items() if tensor.is_floating_point()}
    whole = sum(size**2 for size in sizes.values()) ** 0.5
    for name, size in sizes.items():
        unit = size + 1e-3 * whole
        noise = _size(found[name] - again[name])
        if not noise <= UNSTEADY * unit:
            raise Unrecordable("its passes are not the same every time")
        rounding = torch.finfo(found[name].dtype).eps ** 0.5 * unit
        if not _size(found[name] - replayed[name]) <= 10 * noise + rounding:
            raise Unrecordable("replayed on other episodes it gives something else, for it uses numbers from the host")


def _size(tensor: Tensor) -> float:
    return float(tensor.detach().double().norm())


def _first_cause(error: BaseException) -> BaseException:
    """What went wrong first: when a recording fails, so does its end."""
    while error.__context__ is not None:
        error = error.__context__
    return error


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """While the block runs, a call that lets the host wait for the GPU raises Unrecordable."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is a prototype, and recordings are proven whatever it finds
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    except RuntimeError as error:
        if "synchronizing" not in str(error):
            raise
        raise Unrecordable("the host asks the GPU for a value, or copies to it, in the middle of one") from error
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextlib.contextmanager
def _nothing_collected() -> Iterator[None]:
    """While the block runs, no garbage is collected: a CUDA graph in it could not be freed during a recording."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
