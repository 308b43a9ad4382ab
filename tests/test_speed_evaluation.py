"""The benchmark of evaluation: both sides predict the same on the same episodes, and its record says what was timed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from metazoo.benchmarks.speed import bench, evaluation, plain
from metazoo.benchmarks.speed.shapes import Shape

TINY = Shape("tiny", 3, 16, 16, 1, ways=3, queries=2)


@pytest.fixture(autouse=True)
def tiny_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SHAPES", (TINY,))
    monkeypatch.setattr(evaluation, "IMAGES", 5)


@pytest.mark.parametrize("method", sorted(plain.SETTINGS))
def test_both_sides_predict_alike(method: str) -> None:
    found = evaluation.measure(method, "tiny-3w1s", episodes=8, blocks=2)
    assert found.episodes == 8 and found.predictions == 48
    assert found.ours.correct == found.plain.correct and 0 < found.ours.correct < 48
    assert len(found.ours.seconds) == len(found.plain.seconds) == len(found.ratios) == 2
    assert found.ratio == pytest.approx(sum(found.plain.seconds) / sum(found.ours.seconds))


def test_blocks_are_the_stream_in_order() -> None:
    split = evaluation.noise(TINY)
    stream = evaluation.EpisodeStream(
        evaluation.EpisodeSampler(split, 3, 1, 2, seed=0), evaluation.ImageTable(split, "cpu")
    )
    assert torch.equal(evaluation.Block(stream, 3).batch(1, 2).query_x, stream.batch(4, 2).query_x)


def test_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "evaluation.json"
    monkeypatch.setattr(sys, "argv", ["it", "tiny-3w1s", "--episodes", "4", "--blocks", "2", "--json", str(file)])
    evaluation.main()
    record = json.loads(file.read_text())
    assert [row["method"] for row in record["measured"]] == sorted(plain.SETTINGS, key=list(plain.SETTINGS).index)
    assert all(row["images"] == "noise" and len(row["ratio_by_block"]) == 2 for row in record["measured"])
    assert "tiny-3w1s" in capsys.readouterr().out
