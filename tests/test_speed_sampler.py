"""The timing of the sampler: both sides do the work that is timed, and the record says what was measured."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
import torch

from metazoo.benchmarks.speed import sampler

SMALL = ["--classes=7", "--images=12", "--size=4", "--queries=3", "--rounds=2", "--tasks=4", "--threads=1"]


def test_learn2learns_side_draws_the_same_kind_of_episode() -> None:
    shape = sampler.Shape(classes=7, images=12, size=4, shots=2, queries=3)
    pixels = torch.from_numpy(sampler.random_split(shape).images)
    x, y = sampler.task_set(pixels, shape).sample()
    assert x.shape == (25, 3, 4, 4) and x.dtype == torch.uint8
    by_class = y.view(5, 5)
    assert (by_class == by_class[:, :1]).all() and sorted(by_class[:, 0].tolist()) == [0, 1, 2, 3, 4]
    assert len(sampler.task_set(pixels, shape, load=False).sample_task_description()) == 25


def test_a_ratio_is_that_of_one_round_and_the_first_round_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    # Ours takes 2 s for 4 episodes (10 s when cold), theirs 3, 6, 9, ... s for 2.
    clock = [0.0]
    monkeypatch.setattr(sampler.time, "perf_counter", lambda: clock[0])
    firsts: list[tuple[str, int]] = []

    def ours(first: int) -> None:
        firsts.append(("ours", first))
        clock[0] += 2 if first else 10

    def theirs(first: int) -> None:
        firsts.append(("theirs", first))
        clock[0] += 3 + 3 * (first // 2)

    found = sampler.compare("toy", ours, 4, theirs, 2, rounds=3)
    assert firsts[:4] == [("ours", 0), ("theirs", 0), ("ours", 4), ("theirs", 2)]
    assert found.ratios == (6, 9, 12) and found.metazoo == 2 and found.learn2learn == pytest.approx(2 / 9)
    assert "9.0x" in found.line() and "(6.0 to 12.0)" in found.line()


def test_the_command_prints_and_writes_what_it_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    sampler.main([*SMALL, f"--json={tmp_path / 'speed.json'}"])
    record = json.loads((tmp_path / "speed.json").read_text())
    assert [c["name"] for c in record["comparisons"]] == [
        "images",
        "images, collector off",
        "images, float store",
        "images, tasks drawn before",
        "rows only",
    ]
    for comparison in record["comparisons"]:
        assert len(comparison["ratios"]) == 2 and comparison["median_ratio"] == statistics.median(comparison["ratios"])
    assert record["shape"]["queries"] == 3 and record["versions"]["learn2learn"] and record["hardware"]
    printed = capsys.readouterr().out
    assert "5-way 1-shot, 3 queries, from 7 classes of 12 images of 3x4x4" in printed and record["hardware"] in printed
