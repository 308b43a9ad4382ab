"""What the intervals of a leaderboard speak of, and that ranks speak of the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_leaderboard import FAR, GOLDEN, IDENTITIES, NEAR, board, changed, golden, invoke, of
from tiny import SETS, install

from metazoo.data.packing import pack
from metazoo.domains import ImageDomain, open_domain
from metazoo.episodes import EpisodeSampler
from metazoo.errors import UserError
from metazoo.leaderboard import tested, typesetting
from metazoo.leaderboard.published import Literature
from metazoo.leaderboard.shelf import Shelf
from metazoo.leaderboard.standings import Leaderboard, build
from metazoo.leaderboard.suite import Suite
from metazoo.leaderboard.tables import compose
from metazoo.populations import TRAININGS, Classes, Over
from metazoo.records import Record
from metazoo.statistics import interval


@pytest.fixture
def suite() -> Suite:
    return golden.suite()


@pytest.fixture
def records() -> list[Record]:
    return golden.made_up_records()


def printed(suite: Suite, records: list[Record], over: Over) -> Leaderboard:
    return build(suite, Shelf(records, IDENTITIES), None, Literature(GOLDEN / "published.yaml"), over)


@pytest.fixture
def few_classes(monkeypatch: pytest.MonkeyPatch) -> Classes:
    """The made-up records' episodes get classes: 8, of which each has 5."""
    population = Classes(np.random.default_rng(0).random((40, 8)).argsort(axis=1)[:, :5])
    monkeypatch.setattr(tested, "_classes", lambda *asked: population)
    return population


def test_over_classes_interval_and_ranks_are_those_of_the_classes(suite, records, few_classes):
    made, usual = printed(suite, records, "classes"), board(suite, records)
    values = usual.cells["Steady", NEAR].values("best").mean(axis=0)
    assert made.cells["Steady", NEAR].result() == (values.mean(), interval(values, few_classes))
    assert made.cells["Steady", NEAR].result()[1] > usual.cells["Steady", NEAR].result()[1]
    assert made.standings.keys() == usual.standings.keys()
    widths = [sum(s.rank.last - s.rank.first for s in b.standings.values()) for b in (made, usual)]
    assert widths[0] >= widths[1]


@pytest.mark.parametrize("over, words", [("classes", "over classes and their images"), ("trainings", "over trainings")])
def test_every_table_says_which_interval_it_prints(suite, records, few_classes, over, words):
    made = printed(suite, records, over)
    document = compose(made)
    titles = [table.title for table in document.tables if "half-width" in table.title]
    assert len(titles) == 2 and all(words in title and "over episodes" not in title.split(";")[0] for title in titles)
    assert words in document.facts["±"] and f"over {over}" in document.facts["Bold"]
    cell = json.loads(typesetting.to_json(made))["cells"][0]
    assert f"interval_over_{over}" in cell and "interval_over_episodes" not in cell


def test_over_trainings_one_seed_has_no_interval_and_no_rank(suite, records):
    made = printed(suite, records, "trainings")
    steady = made.cells["Steady", NEAR]
    assert steady.result()[1] == interval(steady.values("best"), TRAININGS)
    half = made.cells["Half_way", NEAR]  # one of its two seeds diverged
    assert half.result() is None and "an interval over trainings needs 2 seeds" in half.reasons
    assert ("Half_way", NEAR) not in made.standings and ("Steady", FAR) in made.standings
    assert typesetting.markdown(compose(made))


def test_over_trainings_a_suite_of_one_seed_is_refused(suite, records):
    with pytest.raises(UserError, match="has one seed, which says nothing of other trainings"):
        printed(suite.model_copy(update={"seeds": (0,)}), records, "trainings")


def test_the_spread_of_training_is_less_than_that_of_the_seeds(suite, records):
    """The seeds of the made-up records differ by chance of their episodes only, and by a fixed step."""
    cell = board(suite, records).cells["Steady", NEAR]
    assert 0.0 <= cell.of_training < cell.over_seeds
    one = changed(records, of("Steady", suite, seed=1), status="diverged", evaluations={})
    assert board(suite, one).cells["Steady", NEAR].of_training is None


def test_the_classes_of_a_record_are_those_its_episodes_drew(tmp_path: Path, records):
    install()
    pack(SETS["tiny"], home=tmp_path)
    domain = ImageDomain.open("tiny", None, tmp_path)
    config = {**records[0].config, "size": 12, "ways": 3, "shots": 1, "queries": 2}
    data = {"target": domain.identity}
    record = records[0].model_copy(
        update={"config": config, "target": "tiny", "data": data, "episodes": 30, "episode_seed": 4}
    )
    values = np.random.default_rng(1).normal(0.5, 0.1, 30)
    sampler = EpisodeSampler(domain.store.split("test"), 3, 1, 2, 4)
    expected = interval(values, Classes(sampler.rows(0, 30).classes))
    assert interval(values, tested.population("classes", record, tmp_path)) == expected
    other = record.model_copy(update={"data": {"target": "other images"}})
    with pytest.raises(UserError, match="is not the one that was tested on"):
        tested.population("classes", other, tmp_path)


def test_functions_have_no_classes(records):
    identity = open_domain("sinusoid").identity
    config = {**records[0].config, "size": None}
    record = records[0].model_copy(update={"target": "sinusoid", "data": {"target": identity}, "config": config})
    with pytest.raises(UserError, match="have no classes"):
        tested.population("classes", record)


def test_the_command_prints_the_interval_asked_for(suite, tmp_path, monkeypatch, few_classes):
    monkeypatch.chdir(tmp_path)
    shown = [str(GOLDEN / "suite.yaml"), "--show", "--records", str(GOLDEN / "records.jsonl")]
    assert "over trainings and episodes" in " ".join(invoke(*shown, "--interval", "trainings").output.split())
    assert "over classes and their images" in " ".join(invoke(*shown, "--interval", "classes").output.split())
