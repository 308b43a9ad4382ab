"""`metazoo compare`: pairs of methods on the episodes they share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import metazoo.cli
from metazoo.errors import UserError
from metazoo.evaluation import interval
from metazoo.leaderboard.comparison import fields, gathered
from metazoo.records import Evaluation, Record, append
from metazoo.statistics import compare, episode_interval, episodes_needed


def record(algorithm: str, correct: np.ndarray, seed: int = 0, **changes) -> Record:
    """A test of `correct` [E] out of 75 queries an episode."""
    settings = {"inner_steps": changes.pop("steps", 5)}
    config = {"algorithm": algorithm, "settings": settings, "source": "glyphs", "size": 28, "seed": seed}
    config |= {"ways": 5, "shots": 1, "queries": 15}
    counts = [int(count) for count in correct]
    evaluation = Evaluation(accuracy=interval(counts, 75), correct=counts, epochs=[1])
    values = {
        "run": f"{algorithm}-{seed}",
        "config": config,
        "data": {"source": "a", "target": "a"},
        "code": "1",
        "target": "glyphs",
        "episodes": len(counts),
        "queries_per_episode": 75,
        "evaluations": {"best": evaluation},
    }
    return Record(**{**values, **changes})


def answers(rng: np.random.Generator, difficulty: np.ndarray, skill: float) -> np.ndarray:
    """Correct answers of a method whose chance varies with the episodes' difficulty."""
    return rng.binomial(75, np.clip(skill + difficulty, 0.0, 1.0))


def test_a_point_at_2000_shared_episodes_is_told_apart_while_the_intervals_overlap():
    rng = np.random.default_rng(0)
    difficulty = rng.normal(0.0, 0.12, 2000)
    better, worse = answers(rng, difficulty, 0.61), answers(rng, difficulty, 0.60)
    [field] = fields([record("maml", worse), record("boil", better)], "best")
    [pair] = field.pairs
    assert [each.label for each in field.contenders] == ["BOIL", "MAML"] and (pair.first, pair.second) == (
        "BOIL",
        "MAML",
    )
    assert pair.p_value < 0.001 and pair.difference - pair.half_width > 0.005
    overlap = episode_interval(better / 75) + episode_interval(worse / 75)
    assert pair.difference < overlap
    expected = compare(better / 75, worse / 75)
    assert (pair.difference, pair.half_width, pair.p_value) == pytest.approx(
        (expected.difference, expected.half_width, expected.p_value)
    )
    deviation = ((better - worse) / 75).std(ddof=1)
    assert pair.needed == episodes_needed(pair.difference, deviation) and pair.needed < 2000
    assert pair.detectable < pair.difference


def test_identical_results_under_two_names_are_never_told_apart():
    correct = np.random.default_rng(1).binomial(75, 0.5, 100)
    [field] = fields([record("maml", correct), record("boil", correct)], "best")
    assert (field.pairs[0].p_value, field.pairs[0].needed, field.pairs[0].difference) == (1.0, None, 0.0)


def test_only_tests_on_the_same_episodes_are_compared():
    rng = np.random.default_rng(2)
    one = [record("maml", rng.binomial(75, 0.5, 50)), record("boil", rng.binomial(75, 0.6, 50))]
    other = [
        record("maml", rng.binomial(75, 0.5, 50), episode_seed=1),
        record("anil", rng.binomial(75, 0.5, 50), data={"target": "other images"}),
        record("anil", rng.binomial(75, 0.5, 40)),
        record("anil", rng.binomial(75, 0.5, 50), evaluations={}),
        record("anil", rng.binomial(75, 0.5, 50), status="diverged"),
    ]
    [field] = fields([*one, *other], "best")
    assert {each.label for each in field.contenders} == {"MAML", "BOIL"}
    with pytest.raises(UserError, match="no two records with a result by the rule 'last'"):
        fields(one, "last")


def test_settings_tell_rows_of_one_method_apart():
    rng = np.random.default_rng(3)
    made = [record("maml", rng.binomial(75, 0.5, 50), steps=steps) for steps in (1, 5)]
    [field] = fields([*made, record("boil", rng.binomial(75, 0.5, 50))], "best")
    assert {each.label for each in field.contenders} == {"MAML (inner_steps 1)", "MAML (inner_steps 5)", "BOIL"}
    [field] = fields([*made, record("boil", rng.binomial(75, 0.5, 50))], "best", ["maml"])
    assert len(field.pairs) == 1


def test_over_trainings_seeds_that_both_have_are_compared():
    rng = np.random.default_rng(4)
    difficulty = rng.normal(0.0, 0.1, 60)
    made = [record("maml", answers(rng, difficulty, 0.5 + 0.01 * seed), seed) for seed in (0, 1, 2)]
    made += [record("boil", answers(rng, difficulty, 0.6), seed) for seed in (2, 1)]
    [usual], [over] = fields(made, "best"), fields(made, "best", over="trainings")
    values = {
        each.label: {seed: r.evaluations["best"].correct for seed, r in each.records.items()}
        for each in over.contenders
    }
    differences = np.array([np.array(values["BOIL"][seed]) - values["MAML"][seed] for seed in (1, 2)]) / 75
    assert over.pairs[0].difference == pytest.approx(differences.mean())
    assert over.pairs[0].half_width > usual.pairs[0].half_width
    with pytest.raises(UserError, match="1 seeds in common"):
        fields([each for each in made if each.config["seed"] != 1], "best", over="trainings")


def test_the_command_reads_runs_and_records(tmp_path: Path):
    rng = np.random.default_rng(5)
    append(tmp_path / "run" / "records.jsonl", record("maml", rng.binomial(75, 0.5, 80)))
    append(tmp_path / "other.jsonl", record("boil", rng.binomial(75, 0.7, 80)))
    result = CliRunner().invoke(metazoo.cli.app, ["compare", str(tmp_path / "run"), str(tmp_path / "other.jsonl")])
    assert result.exit_code == 0, result.output
    printed = " ".join(result.output.split())
    assert "BOIL MAML +" in printed and "yes" in printed and "95 % interval over episodes" in printed
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no records.jsonl; test the run with: metazoo evaluate"):
        gathered([tmp_path / "empty"])


def test_a_setting_that_only_one_of_two_namesakes_names_tells_them_apart():
    rng = np.random.default_rng(0)
    plain, other = (record("maml", answers(rng, np.zeros(50), 0.6)) for _ in range(2))
    other = other.model_copy(update={"config": {**other.config, "training": {"precision": "bfloat16"}}})
    [field] = fields([plain, other], "best")
    assert {each.label for each in field.contenders} == {
        "MAML (training.precision default)",
        "MAML (training.precision bfloat16)",
    }
