"""What a suite asks for, and how long that takes here, before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tiny import SETS, install
from typer.testing import CliRunner

import metazoo.cli
from metazoo.data.packing import pack
from metazoo.leaderboard import budget
from metazoo.leaderboard.budget import Estimate, Pace, budget_text, estimates, together
from metazoo.leaderboard.jobs import Plan
from metazoo.leaderboard.shelf import Identities
from metazoo.leaderboard.suite import EvaluationPlan, Suite, Training, read

VALUES = {
    "name": "small",
    "title": "Small",
    "protocol": "common",
    "source": "tiny",
    "ways": 3,
    "seeds": [0, 1],
    "queries": 2,
    "backbone": {"name": "conv4", "filters": 4, "conv_bias": False},
    "training": {"epochs": 7, "iterations_per_epoch": 30, "meta_batch": 2, "validation_episodes": 20, "keep": 3},
    "evaluation": {"episodes": 50, "printed": "best"},
    "methods": ["maml", "boil"],
}


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Suite:
    install()
    monkeypatch.setenv("METAZOO_DATA", str(tmp_path / "data"))
    pack(SETS["tiny"])
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(VALUES))
    return read(tmp_path / "small.yaml")


def plan(suite: Suite, folder: Path) -> Plan:
    return Plan(folder, suite.evaluation, Identities({}, {}), device="cpu", threads=1)


def test_the_budget_counts_every_training_once(suite):
    # 4 trainings of 7 * 30 * 2 tasks and 7 * 20 episodes; last, and the three best.
    assert budget_text(suite) == (
        "4 trainings, 1,680 training tasks and 560 validation episodes in all; 4 tests of 50 episodes, by up to "
        "4 networks each"
    )


def test_networks_are_those_of_the_rules_each_once(suite):
    settings = suite.trainings[0].config.training
    for rules, count in ((("last",), 1), (("best",), 1), (("last", "best"), 2), (("best", "ensemble"), 3)):
        assert budget._networks(settings, EvaluationPlan(rules=rules, printed=rules[0])) == count
    assert budget._networks(settings.model_copy(update={"epochs": 2}), EvaluationPlan()) == 2


def test_an_estimate_is_the_pace_times_what_is_asked_for(suite, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(budget, "pace", lambda config, plan: asked.append(config) or Pace(step=0.5, episode=0.01))
    found = list(estimates(suite.trainings, plan(suite, tmp_path)))
    assert [each.training.title for each in found] == [training.title for training in suite.trainings]
    assert all((each.learning, each.validation) == (0.5 * 210, pytest.approx(0.01 * 140)) for each in found)
    assert all(each.test == pytest.approx(0.01 * 50 * 4) for each in found)
    assert len(asked) == 2, "seeds take the same time"


def test_a_trial_trains_and_leaves_nothing_behind(suite, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    found = budget.pace(suite.trainings[0].config, plan(suite, tmp_path))
    assert 0 < found.step < 5 and 0 < found.episode < 5
    assert sorted(tmp_path.rglob("*")) == before


def test_what_cannot_be_trained_says_so_and_the_others_go_on(suite, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "TRIAL_SECONDS", 0.01)
    bad = suite.trainings[0].config.model_copy(update={"queries": 500})
    trainings = [Training("Greedy", bad, ("tiny",)), suite.trainings[0]]
    greedy, fine = estimates(trainings, plan(suite, tmp_path))
    assert "lower shots or queries" in greedy.reason and greedy.seconds == 0
    assert fine.reason == "" and fine.seconds > 0


def test_trainings_at_a_time_end_with_the_last_of_them(suite):
    found = [Estimate(suite.trainings[0], learning=seconds) for seconds in (5.0, 3.0, 3.0, 1.0)]
    assert together(found, 1) == 12.0
    assert together(found, 2) == 6.0
    assert together(found, 8) == 5.0


def test_the_command_prints_it_and_trains_nothing(suite, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(budget, "pace", lambda config, plan: Pace(step=0.5, episode=0.01))
    result = CliRunner().invoke(metazoo.cli.app, ["leaderboard", "small.yaml", "--estimate", "--jobs", "2"])
    assert result.exit_code == 0, result.output
    assert "4 trainings, 1,680 training tasks" in result.output
    assert "MAML 1-shot seed 0" in result.output and "1 min 45 s" in result.output
    assert "About 3 min 37 s for all of it, 2 at a time (--jobs)." in result.output
    assert not (tmp_path / "runs").exists() and not (tmp_path / "leaderboards").exists()
