"""Trials between equal ways to compute, with a GPU and its clock played by stand-ins."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from metazoo.errors import UserError
from metazoo.fast import trials

GPU = torch.device("cuda", 0)
MILLISECONDS = {"slow": 3.0, "fast": 1.0, "failing": math.inf}


def never() -> None:
    raise AssertionError("a way was gone that nobody asked for")


WAYS = dict.fromkeys(MILLISECONDS, never)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "metazoo" / "trials.json"


@pytest.fixture
def timed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What was timed, on a GPU called Alpha."""
    seen: list[str] = []

    def milliseconds(way: str, device: torch.device) -> float:
        assert device == GPU
        seen.append(way)
        return MILLISECONDS[way]

    monkeypatch.setattr(trials, "_milliseconds", milliseconds)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    machine(monkeypatch, "Alpha")
    trials.forget()
    yield seen
    trials.forget()


def machine(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(trials, "_machine", lambda device: (name, "1.0"))


def ask(*facts: Any, ways: Any = None, device: torch.device = GPU, default: str = "slow") -> str:
    named: Any = {name: name for name in MILLISECONDS} if ways is None else ways
    return trials.choose("thing", facts, named, default, device)


def test_on_a_cpu_nothing_is_tried() -> None:
    assert trials.choose("thing", (), WAYS, "slow", torch.device("cpu")) == "slow"


def test_the_fastest_is_found_once_and_kept(timed: list[str], cache: Path) -> None:
    assert ask("shape", (1, 2)) == "fast"
    assert timed == ["slow", "fast", "failing"]
    assert ask("shape", (1, 2)) == "fast"
    trials.forget()
    assert ask("shape", (1, 2)) == "fast"
    assert len(timed) == 3
    (kept,) = json.loads(cache.read_text()).items()
    assert json.loads(kept[0]) == ["Alpha", "1.0", "thing", "shape", [1, 2]]
    assert kept[1] == {"chosen": "fast", "milliseconds": {"slow": 3.0, "fast": 1.0, "failing": None}}
    assert ask("shape", (1, 3)) == "fast"
    assert len(timed) == 6 and len(json.loads(cache.read_text())) == 2


def test_another_machine_or_version_tries_anew(timed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ask()
    trials.forget()
    machine(monkeypatch, "Beta")
    ask()
    assert len(timed) == 6


def test_what_a_machine_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    found = trials._machine(torch.device("cuda", 41))
    assert found[:2] == ("card 41", torch.__version__) and len(found) == 4


def test_a_way_that_is_no_more_is_not_chosen(timed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask() == "fast"
    trials.forget()
    assert ask(ways={"slow": "slow"}) == "slow"


def test_where_all_fail_the_default_will_say_why(timed: list[str], cache: Path) -> None:
    for _ in range(2):
        assert ask(ways={"failing": "failing"}, default="failing") == "failing"
    assert len(timed) == 1 and not cache.exists()


def test_while_a_graph_is_captured_nothing_is_tried(timed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert ask("unknown") == "slow"
        assert not timed
    assert ask("unknown") == "fast"  # what was said meanwhile is not remembered
    trials.forget()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert ask("unknown") == "fast"
    assert len(timed) == 3


def test_trials_can_wait(timed: list[str]) -> None:
    with pytest.raises(ZeroDivisionError), trials.postponed():
        assert ask("unknown") == "slow" and not timed
        raise ZeroDivisionError
    assert ask("unknown") == "fast"
    with trials.postponed():
        assert ask("unknown") == "fast"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', "\xff"])
def test_a_damaged_file_is_written_anew(timed: list[str], cache: Path, content: str) -> None:
    cache.parent.mkdir()
    cache.write_text(content, encoding="latin-1")
    assert ask() == "fast"
    assert len(json.loads(cache.read_text())) == 1


def test_an_unwritable_cache_is_no_hindrance(timed: list[str], cache: Path) -> None:
    cache.parent.write_text("a file where the folder should be")
    assert ask() == "fast" and ask() == "fast"
    assert len(timed) == 3


def test_the_environment_fixes_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trials.asked_for("thing", WAYS) is None
    monkeypatch.setenv("METAZOO_THING", "slow")
    assert trials.asked_for("thing", WAYS) == "slow"
    monkeypatch.setenv("METAZOO_THING", "slwo")
    with pytest.raises(UserError, match=r"METAZOO_THING.*'slwo'; did you mean 'slow'"):
        trials.asked_for("thing", WAYS)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are those of the GPU that is asked about, whichever is the process's current one."""
    current = list[torch.device]()

    @contextmanager
    def device(device: torch.device) -> Iterator[None]:
        current.append(device)
        yield
        current.pop()

    def event(enable_timing: bool) -> Event:
        assert current == [GPU]
        return Event(enable_timing)

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "Event", event)


class Event:
    """A CUDA event whose clock is the number of runs, which take 1, 2, 3, ... milliseconds."""

    clock = 0.0

    def __init__(self, enable_timing: bool):
        assert enable_timing

    def record(self) -> None:
        self.at: float | None = Event.clock

    def synchronize(self) -> None:
        assert self.at is not None

    def elapsed_time(self, end: Event) -> float:
        return end.at - self.at


def test_the_median_time_after_a_warm_up(events: None) -> None:
    runs: list[int] = []

    def way() -> None:
        runs.append(1)
        Event.clock += len(runs)

    first = trials.WARM_UP + 1
    assert trials._milliseconds(way, GPU) == (first + first + trials.TIMED - 1) / 2
    assert len(runs) == trials.WARM_UP + trials.TIMED


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), RuntimeError("no such kernel"), ImportError("none")])
def test_a_way_that_fails_takes_forever(error: Exception, events: None) -> None:
    def way() -> None:
        raise error

    assert trials._milliseconds(way, GPU) == math.inf


def test_a_stop_is_no_failure(events: None) -> None:
    def way() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trials._milliseconds(way, GPU)


def test_a_layout_is_shape_and_order() -> None:
    maps = torch.empty(2, 3, 4, 5)
    assert trials.layout(maps) == (2, 3, 4, 5, 0, 1, 2, 3)
    assert trials.layout(maps.contiguous(memory_format=torch.channels_last)) == (2, 3, 4, 5, 0, 2, 3, 1)
