"""Sinusoids and families of functions of one's own: their episodes, and what is known of them."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sinusoids import config

from metazoo import cli, training
from metazoo.benchmarks.datasets.sinusoid import DATASET
from metazoo.data import dataset as sheets
from metazoo.data.families import FunctionFamily, Values
from metazoo.domains import identity_here, open_domain
from metazoo.errors import UserError
from metazoo.evaluation import evaluate
from metazoo.functions import FunctionStream

CPU = torch.device("cpu")


def stream(split: str = "train", shots: int = 10, queries: int = 10, seed: int = 0) -> FunctionStream:
    return FunctionStream(DATASET, split, shots, queries, seed, CPU)


def tensors(episodes: Any) -> list[torch.Tensor]:
    return [episodes.support_x, episodes.support_y, episodes.query_x, episodes.query_y, episodes.numbers]


# Episodes


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_an_episode_depends_on_its_index_alone(split: str) -> None:
    whole = tensors(stream(split).batch(0, 300))
    for size in (1, 7, 128, 250):
        other = stream(split)
        parts = [tensors(other.batch(start, min(size, 300 - start))) for start in range(0, 300, size)]
        for tensor, pieces in zip(whole, zip(*parts, strict=True), strict=True):
            assert torch.equal(tensor, torch.cat(pieces))
    late = tensors(stream(split).batch(299, 1))
    assert all(torch.equal(tensor[299:], one) for tensor, one in zip(whole, late, strict=True))


def test_episodes_are_float32_points_of_the_stated_shapes() -> None:
    episodes = stream("train", shots=5, queries=7).batch(3, 4)
    assert episodes.support_x.shape == episodes.support_y.shape == (4, 5, 1)
    assert episodes.query_x.shape == episodes.query_y.shape == (4, 7, 1)
    assert {tensor.dtype for tensor in tensors(episodes)[:4]} == {torch.float32}
    assert episodes.ways == 1 and episodes.numbers.tolist() == [3, 4, 5, 6]


def test_the_episodes_are_these() -> None:
    """Their numbers stay what they are: a change here is a change of every result."""
    episodes = stream().batch(0, 2)
    seen = torch.cat([episodes.support_x[:, :2], episodes.support_y[:, :2]], dim=2)
    assert seen.flatten().tolist() == pytest.approx(PINNED, abs=2e-6)


def test_every_episode_is_one_sinusoid_of_the_stated_ranges() -> None:
    episodes = stream(shots=6, queries=6).batch(0, 2000)
    amplitudes, phases = [], []
    for x, y in zip(
        torch.cat([episodes.support_x, episodes.query_x], 1).double(),
        torch.cat([episodes.support_y, episodes.query_y], 1).double(),
        strict=True,
    ):
        assert x.abs().max() <= 5
        # A sin(x - phi) = A cos(phi) sin(x) - A sin(phi) cos(x), from which both are read off.
        waves = torch.cat([x.sin(), -x.cos()], dim=1)
        found = torch.linalg.lstsq(waves, y, driver="gelsd").solution
        torch.testing.assert_close(waves @ found, y, atol=1e-5, rtol=0)
        amplitudes.append(float(found.norm()))
        phases.append(math.atan2(float(found[1]), float(found[0])))
    assert stats.kstest(amplitudes, stats.uniform(0.1, 4.9).cdf).pvalue > 0.01
    assert stats.kstest(phases, stats.uniform(0, math.pi).cdf).pvalue > 0.01
    assert stats.kstest(episodes.query_x.flatten(), stats.uniform(-5, 10).cdf).pvalue > 0.01
    assert abs(np.corrcoef(amplitudes, phases)[0, 1]) < 0.06


def test_validation_and_test_ask_a_grid_and_training_random_points() -> None:
    for split in ("val", "test"):
        grid = stream(split).batch(0, 3).query_x
        torch.testing.assert_close(grid, torch.linspace(-5, 5, 100)[None, :, None].expand(3, -1, -1))
        other = stream(split, queries=3)
        assert other.queries == 100
        assert torch.equal(other.batch(0, 3).support_x, stream(split).batch(0, 3).support_x)
    points = stream("train").batch(0, 3).query_x
    assert points.shape == (3, 10, 1) and len(points.unique()) == 30


def test_splits_seeds_and_shots_have_episodes_of_their_own() -> None:
    first = [stream(*asked).batch(0, 1).support_y[0, 0, 0].item() for asked in ASKED]
    assert len(set(first)) == len(ASKED)


ASKED = [("train",), ("val",), ("test",), ("train", 5), ("train", 10, 5), ("train", 10, 10, 1)]
PINNED = [0.182235, -0.216309, -2.520044, -1.160223, 4.065964, 4.738771, -4.047356, -1.864906]


def test_numbers_that_make_no_episode_are_refused() -> None:
    with pytest.raises(UserError, match="shots is 0"):
        stream(shots=0)
    with pytest.raises(UserError, match="count from 0"):
        stream().batch(-1, 2)


# A family of one's own


def ripples(x: Values, size: Values, tilt: Values) -> Values:
    wave = size * np.sin(x.sum(axis=-1, keepdims=True))
    return np.concatenate([wave, tilt * x[..., :1]], axis=-1)


RIPPLES = FunctionFamily(
    name="ripples",
    title="Ripples",
    citation="none",
    terms="none",
    where="It is drawn.",
    function=ripples,
    parameters={"size": (1.0, 2.0), "tilt": (-1.0, 1.0)},
    inputs=((-1.0, 1.0), (0.0, 3.0)),
    outputs=2,
    grid=4,
)


def test_a_family_of_ones_own_is_trained_and_tested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheets, "published", lambda: {"ripples": RIPPLES})
    asked = config(source="ripples", ways=2, shots=6, queries=4, epochs=1)
    domain = open_domain("ripples")
    test = domain.episodes(asked, "test", 0, CPU, domain.inputs)
    episodes = test.batch(0, 3)
    assert episodes.support_x.shape == episodes.support_y.shape == (3, 6, 2)
    assert test.queries == 16 and episodes.query_x[0, :5].tolist()[0] == [-1.0, 0.0]
    assert (episodes.query_x.amin((0, 1)).tolist(), episodes.query_x.amax((0, 1)).tolist()) == ([-1, 0], [1, 3])
    tilts = episodes.query_y[..., 1] / episodes.query_x[..., 0]
    assert torch.allclose(tilts, tilts[:, :1].expand_as(tilts)) and len(tilts[:, 0].unique()) == 3
    record = evaluate(training.train(asked, home=tmp_path), episodes=5)
    assert record.queries_per_episode == 16 and record.evaluations["last"].interval.mean > 0
    with pytest.raises(UserError, match="ways is how many numbers they give, 2 and not 1"):
        training.train(asked.model_copy(update={"ways": 1}), home=tmp_path)


def test_the_family_in_the_docs_works(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parent.parent / "docs" / "regression.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(page.split("```python\n")[1].split("```")[0], names)
    monkeypatch.setattr(sheets, "published", lambda: {"damped": names["DATASET"]})
    domain = open_domain("damped")
    episodes = domain.episodes(config(source="damped"), "test", 0, CPU, domain.inputs).batch(0, 4)
    assert episodes.query_x.amax() == 5 and 0 < episodes.query_y.std() < 1


def test_a_familys_identity_is_what_it_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    assert identity_here("sinusoid") == DATASET.identity == replace(DATASET, title="Waves", terms="other").identity
    others = [
        replace(DATASET, grid=99),
        replace(DATASET, parameters={"amplitude": (0.1, 5.0), "phase": (0.0, 3.0)}),
        replace(DATASET, function=lambda x, amplitude, phase: amplitude * np.sin(x + phase)),
    ]
    assert len({family.identity for family in (DATASET, *others)}) == 4


# Their data set


def test_sinusoids_are_listed_and_need_no_preparing(capsys: Any, monkeypatch: Any, tmp_path: Path) -> None:
    assert "sinusoid" in sheets.published()
    for arguments in (["list"], ["prepare", "sinusoid"]):
        monkeypatch.setattr(sys, "argv", ["metazoo", "data", *arguments, "--home", str(tmp_path)])
        with pytest.raises(SystemExit):
            cli.main()
    said = capsys.readouterr()
    assert "sinusoid" in said.out and "drawn when used" in said.out
    assert "nothing to prepare" in said.err
