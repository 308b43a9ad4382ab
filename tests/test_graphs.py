"""Recorded passes: when they are recorded, what is replayed, and what is said where that cannot be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tape import TapeRecording, Tapes, assert_equal, episodes, kept

from metazoo.episodes import Episodes
from metazoo.graphs import Replayed
from metazoo.meta_pass import Results
from metazoo.outer_step import OuterStep


class Passes:
    """A pass of one number, made of the episodes and of whatever a test puts into it."""

    def __init__(self, make: Callable[[Episodes, OuterStep], torch.Tensor]):
        self.make, self.calls = make, 0

    def __call__(self, part: Episodes, outer: OuterStep) -> Results:
        self.calls += 1
        return {"loss": part.support_x.square().sum() + self.make(part, outer)}


def test_it_is_recorded_after_it_was_watched_and_proven_on_other_episodes() -> None:
    work, tapes = Passes(lambda part, outer: part.query_x.sum()), Tapes()
    passes = Replayed(work, tapes)
    runs = []
    for seed in range(6):
        expected = kept(work(episodes(seed), OuterStep()))
        before = work.calls
        assert_equal(passes(episodes(seed)), expected)
        runs.append(work.calls - before)
    # As ever, the third time watched; then twice, and once for the recording; then replayed.
    assert runs == [1, 1, 1, 3, 0, 0] and tapes.records == 1
    assert passes.is_replaying


def test_each_kind_of_episodes_has_a_recording() -> None:
    work, tapes = Passes(lambda part, outer: part.query_x.sum()), Tapes()
    passes = Replayed(work, tapes)
    for seed in range(6):
        for tasks in (2, 1):
            assert_equal(passes(episodes(seed, tasks)), work(episodes(seed, tasks), OuterStep()))
    assert tapes.records == 2
    passes(episodes(9, 2, shots=1))
    assert tapes.records == 2, "what comes once is not recorded"
    passes.forget()
    assert tapes.drops == 2 and not passes.is_replaying


DRAWS = torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("asking", "reason"),
    [
        (lambda part, outer: part.query_x * part.query_x.sum().item(), "asks for a value"),
        (lambda part, outer: part.query_x[part.query_x > 0].sum(), "asks for a value"),
        (lambda part, outer: torch.rand((), generator=DRAWS, dtype=torch.float64) * 1e4, "not the same every time"),
        (lambda part, outer: 1e3 * part.uniform(1, "test").sum(), "uses numbers from the host"),
    ],
)
def test_what_cannot_be_recorded_runs_as_ever_and_says_why(asking: Any, reason: str) -> None:
    notes = list[str]()
    work = Passes(lambda part, outer: asking(part, outer).sum())
    passes = Replayed(work, Tapes(), "Passes", notes.append)
    for seed in range(6):
        found = passes(episodes(seed))
        if "every time" not in reason:
            assert_equal(found, work(episodes(seed), OuterStep()))
    (note,) = notes
    assert reason in note and not passes.is_replaying


def test_a_recording_that_fails_where_watching_did_not_is_given_up_too() -> None:
    notes = list[str]()
    work = Passes(lambda part, outer: part.query_x * part.query_x.sum().item())
    passes = Replayed(lambda part, outer: {"loss": work(part, outer)["loss"].sum()}, Tapes(False), "They", notes.append)
    for seed in range(5):
        assert_equal(passes(episodes(seed)), {"loss": work(episodes(seed), OuterStep())["loss"].sum()})
    assert len(notes) == 1


def test_a_recording_that_is_wrong_is_found_out() -> None:
    class Forgetful(Tapes):
        def record(self, work: Callable[[], Results]) -> TapeRecording:
            recording = super().record(work)
            recording.tape.operations.pop()
            return recording

    notes = list[str]()
    work = Passes(lambda part, outer: part.query_x.sum())
    passes = Replayed(work, Forgetful(), "They", notes.append)
    for seed in range(5):
        assert_equal(passes(episodes(seed)), work(episodes(seed), OuterStep()))
    assert len(notes) == 1 and not passes.is_replaying


def test_a_pass_that_is_not_a_number_proves_nothing() -> None:
    scale, tapes = torch.tensor(torch.nan, dtype=torch.float64), Tapes()
    passes = Replayed(Passes(lambda part, outer: scale * part.query_x.sum()), tapes)
    for seed in range(5):
        assert passes(episodes(seed))["loss"].isnan()
    assert tapes.records == 0
    scale.fill_(1.0)
    passes(episodes(4))
    assert passes.is_replaying


def test_no_memory_in_an_ordinary_run_is_the_callers_business() -> None:
    def full(part: Episodes, outer: OuterStep) -> Results:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        Replayed(full, Tapes())(episodes(0))


def recordings(work: Passes, steps: list[OuterStep]) -> list[int]:
    """How many recordings there are after each step, and that each result is right."""
    tapes, counts = Tapes(), []
    passes = Replayed(work, tapes)
    for seed, outer in enumerate(steps):
        assert_equal(passes(episodes(seed), outer), work(episodes(seed), outer))
        counts.append(tapes.records)
    return counts


def test_it_is_recorded_anew_where_the_clock_answers_otherwise() -> None:
    epochs = [OuterStep(epoch=epoch, epochs=4) for epoch in range(4) for _ in range(5)]
    blind = Passes(lambda part, outer: part.query_x.sum())
    assert recordings(blind, epochs)[-1] == 1
    shares = Passes(lambda part, outer: part.query_x.sum() * (2.0 if outer.within(0.5) else 1.0))
    assert [recordings(shares, epochs)[5 * epoch + 4] for epoch in range(4)] == [1, 1, 2, 2]
    reading = Passes(lambda part, outer: part.query_x.sum() * float(outer.epoch))
    assert [recordings(reading, epochs)[5 * epoch + 4] for epoch in range(4)] == [1, 2, 3, 4]
    through = Passes(lambda part, outer: part.query_x.sum() * replace(outer, first_order=True).epoch)
    assert recordings(through, epochs)[-1] == 4, "a copy of the step asks the same clock"
    replacing = Passes(lambda part, outer: part.query_x.sum() * (not replace(outer, taps=("a",)).first_order))
    assert recordings(replacing, epochs)[-1] == 1, "copying asks nothing"
    orders = [OuterStep(first_order=order) for order in (True, False) for _ in range(5)]
    assert recordings(Passes(lambda part, outer: part.query_x.sum() * (2 - outer.first_order)), orders)[-1] == 2
