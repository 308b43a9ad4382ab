"""Where images lie: chosen by what memory is free, and without any influence on the numbers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tiny import tiny_sets  # noqa: F401

from metazoo import placement, training
from metazoo.config import resolve
from metazoo.domains import Stream, open_domain
from metazoo.episodes import Episodes, EpisodeStream
from metazoo.errors import UserError
from metazoo.evaluation import evaluate
from metazoo.placement import Place, choose, known_placement
from metazoo.prefetching import batches
from metazoo.progress import Message, Reporter
from metazoo.run import Run

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def sets(tiny_sets: None) -> None:  # noqa: F811
    """The tiny data sets are known to every test here."""


@pytest.fixture
def no_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host has none to spare, so that a mapped file is far away even from a CPU."""
    monkeypatch.setattr(placement, "free_host_memory", lambda: 0)


@pytest.fixture
def gathering_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """The names of the threads that gathered batches."""
    names: set[str] = set()
    gather = EpisodeStream.batch

    def watched(self: EpisodeStream, start: int, count: int) -> Episodes:
        names.add(threading.current_thread().name.rpartition("_")[0])
        return gather(self, start, count)

    monkeypatch.setattr(EpisodeStream, "batch", watched)
    yield names


class Listening(Reporter):
    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def send(self, message: Message) -> None:
        if message.kind == "note":
            self.notes.append(message.text)


def outcome(run: Run) -> tuple[Any, dict[str, torch.Tensor]]:
    """The log without times, and the last weights."""
    lines = [{key: value for key, value in line.items() if "second" not in key} for line in run.metrics]
    index = run.checkpoints.index
    assert index.last is not None
    return lines, run.checkpoints.load(index.last)["model"]


def test_a_run_is_the_same_wherever_its_images_lie(
    tmp_path: Path, no_free_memory: None, gathering_threads: set[str]
) -> None:
    results, threads, notes = [], {}, {}
    for where in ("device", "host", "disk"):
        gathering_threads.clear()
        reporter = Listening()
        run = training.train(tiny.config(), home=tmp_path / where, images_on=where, reporter=reporter)
        tested = evaluate(run, episodes=40, images_on=where).evaluations
        results.append((run.name, outcome(run), tested))
        threads[where], notes[where] = set(gathering_threads), reporter.notes
    (name, (log, weights), tested), *others = results
    for other_name, (other_log, other_weights), other_tested in others:
        assert (other_name, other_log, other_tested) == (name, log, tested)
        assert weights.keys() == other_weights.keys()
        assert all(torch.equal(weights[key], other_weights[key]) for key in weights)
    assert threads == {"device": {""}, "host": {""}, "disk": {"metazoo images"}}
    assert notes == {
        "device": ["images: 31.7 kB in memory"],
        "host": ["images: 31.7 kB in memory"],
        "disk": ["images: 31.7 kB mapped from disk, batches fetched ahead"],
    }


def test_an_interrupted_run_goes_on_from_another_place(
    tmp_path: Path, no_free_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Exception):
        pass

    straight = training.train(tiny.config(), home=tmp_path / "straight")
    step = training.Trainer._step

    def stopping(self: training.Trainer, *given: Any) -> None:
        if self.iteration == 6:
            self.save()
            raise Stop
        step(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "_step", stopping)
        with pytest.raises(Stop):
            training.train(tiny.config(), home=tmp_path / "moved", images_on="device")
    moved = training.train(tiny.config(), home=tmp_path / "moved", images_on="disk")
    (log, weights), (other_log, other_weights) = outcome(straight), outcome(moved)
    assert log == other_log and all(torch.equal(weights[key], other_weights[key]) for key in weights)


@pytest.mark.parametrize(
    ("nbytes", "expected"), [(500, "device"), (501, "host"), (2000, "host"), (2001, "disk"), (10**15, "disk")]
)
def test_images_lie_as_near_as_half_of_the_free_memory_allows(
    nbytes: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    monkeypatch.setattr(placement, "free_host_memory", lambda: 4000)
    place = choose(nbytes, GPU)
    assert place.placement == expected and place.is_far == (expected != "device")
    assert not place.goes_without_saying
    assert choose(nbytes, GPU, "disk").placement == "disk"


def test_on_a_cpu_the_file_is_mapped_and_fetched_ahead_only_where_it_does_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(placement, "free_host_memory", lambda: 4000)
    small, large = choose(2000, CPU), choose(2001, CPU)
    assert small.placement == large.placement == "disk"
    assert not small.is_far and small.goes_without_saying
    assert large.is_far and not large.goes_without_saying
    assert not choose(2001, CPU, "host").is_far


@pytest.mark.parametrize(
    ("nbytes", "text"), [(1_240_000_000, "1.2 GB"), (118_000_000, "118.0 MB"), (999, "999 bytes"), (0, "0 bytes")]
)
def test_where_images_lie_is_said_in_a_line(nbytes: int, text: str) -> None:
    assert Place("device", nbytes, GPU).text == f"images: {text} on the GPU"


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    assert placement.free_host_memory() > 0
    assert placement._left_in_container(tmp_path) is None
    (tmp_path / "memory.stat").write_text("anon 50\nactive_file 30\ninactive_file 5\n")
    (tmp_path / "memory.current").write_text("90\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert placement._left_in_container(tmp_path) is None
    (tmp_path / "memory.max").write_text("100\n")
    assert placement._left_in_container(tmp_path) == 100 - 90 + 35


def test_an_unknown_placement_is_a_sentence(tmp_path: Path) -> None:
    assert known_placement("auto") is None and known_placement("host") == "host"
    with pytest.raises(UserError, match=r"disc.*disk"):
        training.train(tiny.config(), home=tmp_path, images_on="disc")
    assert not any(tmp_path.iterdir())


class Counting:
    """A stream far away whose batches are their own starts; `fetched` says which were asked for."""

    queries = 1

    def __init__(self, inner: Stream, broken_at: int = -1):
        self.inner, self.broken_at = inner, broken_at
        self.place: Place | None = Place("disk", 1, CPU)
        self.fetched: list[int] = []

    def batch(self, start: int, count: int) -> Episodes:
        self.fetched.append(start)
        if start == self.broken_at:
            raise MemoryError
        return self.inner.batch(start, count)


def stream() -> Stream:
    config = resolve(tiny.config(), tiny.SIZE)
    domain = open_domain("tiny")
    return domain.episodes(config, "train", 0, CPU, domain.inputs)


def test_the_next_batch_is_gathered_while_one_is_in_use_and_none_beyond_the_last(no_free_memory: None) -> None:
    far = Counting(stream())
    spans = [(start, 2) for start in range(0, 8, 2)]
    found = []
    for batch in batches(far, spans):
        found.append(batch)
        while len(far.fetched) < min(len(found) + 1, len(spans)):  # the thread needs a moment
            pass
        time.sleep(0.02)  # and time enough to go too far
        assert len(far.fetched) == min(len(found) + 1, len(spans))
    assert far.fetched == [start for start, _ in spans]
    for batch, span in zip(found, spans, strict=True):
        assert torch.equal(batch.support_x, stream().batch(*span).support_x)


def test_what_goes_wrong_in_the_thread_is_raised_in_its_turn(no_free_memory: None) -> None:
    coming = batches(Counting(stream(), broken_at=2), [(start, 1) for start in range(5)])
    with closing(coming):
        assert len(next(coming)) == len(next(coming)) == 1
        with pytest.raises(MemoryError):
            next(coming)


def test_a_loop_that_is_left_leaves_no_thread(no_free_memory: None) -> None:
    before = threading.active_count()
    coming = batches(Counting(stream()), ((start, 1) for start in range(10**9)))
    with closing(coming):
        next(coming)
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
