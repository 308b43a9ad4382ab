"""Regression from the command line to the table: errors where images have accuracies."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metazoo import assembly, backbones, cli, records
from metazoo.benchmarks.datasets.sinusoid import DATASET
from metazoo.config import code_version, describe
from metazoo.domains import baseline, open_domain
from metazoo.errors import UserError
from metazoo.evaluation import evaluation
from metazoo.leaderboard import suite as suites
from metazoo.leaderboard.published import Literature
from metazoo.leaderboard.shelf import Identities, Shelf
from metazoo.leaderboard.standings import Leaderboard, build
from metazoo.leaderboard.tables import compose
from metazoo.leaderboard.typesetting import latex, markdown, to_csv, to_json
from metazoo.measures import SQUARED_ERROR
from metazoo.run import Run
from metazoo.statistics import episode_interval


def test_from_the_command_line_to_a_table(capsys: Any, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)

    def metazoo(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["metazoo", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert not stopped.value.code
        return capsys.readouterr().out

    small = ["--epochs", "2", "--iterations-per-epoch", "5", "--validation-episodes", "4"]
    out = metazoo("train", "maml", "--source", "sinusoid", *small)
    (folder,) = Path("runs").iterdir()
    asked = Run.open(folder).config
    assert (asked.ways, asked.shots, asked.queries, asked.backbone.name) == (1, 10, 10, "mlp")
    first, last = (line["validation_error"] for line in Run.open(folder).metrics)
    assert f"2 epochs done, validation error {last:.3f} at the end, {min(first, last):.3f} at best" in out
    out = metazoo("evaluate", str(folder), "--episodes", "5")
    assert "maml, 10-shot, trained on sinusoid" in out and "mean squared error" in out
    assert "queries each" in out and "over queries" not in out and "%" not in out.replace("95 %", "")


PUBLISHED = """
protocols: {theirs: {about: as here, queries: 10}}
tables:
  - cited: A paper
    meaning: episodes
    numbers:
      - {method: maml, label: MAML, source: sinusoid, ways: 1, shots: 10, backbone: mlp, error: 0.33, protocol: theirs}
"""


@pytest.fixture
def measured(tmp_path: Path) -> tuple[suites.Suite, Shelf]:
    """Two rows with made-up errors, of two seeds each, the second row's the lower ones, and one without records."""
    values = {"name": "waves", "title": "Waves", "protocol": "common", "source": "sinusoid", "ways": 1, "shots": [10]}
    values |= {"queries": 10, "backbone": {"name": "mlp"}, "seeds": [0, 1]}
    values["evaluation"] = {"episodes": 60, "printed": "best"}
    slow = {"inner_steps": 1, "inner_lr": {"head": 0.001}}
    values["methods"] = [{"method": "maml", "label": "slow", "settings": slow}, {"method": "maml"}, "metasgd"]
    path = tmp_path / "waves.yaml"
    path.write_text(json.dumps(values))
    suite = suites.read(path)
    found, noise = [], np.random.default_rng(0)
    difficulty = noise.gamma(2.0, 0.5, 60)
    for job in suite.trainings:
        if job.label == "Meta-SGD":
            continue
        level = 1.5 if job.label == "slow" else 1.0
        rules = {
            rule: evaluation(SQUARED_ERROR, level * difficulty * noise.uniform(0.8, 1.2, 60), 100, [1])
            for rule in suite.evaluation.rules
        }
        made = {"run": job.title, "config": describe(job.config), "code": code_version(job.config)}
        made |= {"data": {"source": DATASET.identity, "target": DATASET.identity}, "target": "sinusoid"}
        found.append(records.Record(**made, episodes=60, queries_per_episode=100, evaluations=rules))
    return suite, Shelf(found, Identities.of(suite))


@pytest.fixture
def board(measured: tuple[suites.Suite, Shelf]) -> Leaderboard:
    return build(*measured)


def test_a_published_error_is_subtracted_as_it_is(measured: tuple[suites.Suite, Shelf], tmp_path: Path) -> None:
    (tmp_path / "published.yaml").write_text(PUBLISHED)
    board = build(*measured, papers=Literature(tmp_path / "published.yaml"))
    place = ("MAML", board.suite.columns[0])
    result, [beside] = board.cells[place].result(), board.beside[place]
    assert result is not None and beside.difference is not None
    assert beside.difference == pytest.approx(result[0] - 0.33)
    assert compose(board).tables[0].rows[1][-1].text == f"0.33 ({beside.difference:+.2f})"
    published = json.loads(to_json(board))["cells"][1]["published"]
    assert published[0]["error"] == 0.33 and published[0]["difference"] == pytest.approx(result[0] - 0.33, abs=1e-6)
    for values in ("error: 0.33, accuracy: 50", "interval: 1"):
        (tmp_path / "other.yaml").write_text(PUBLISHED.replace("error: 0.33", values))
        with pytest.raises(UserError, match="either an accuracy or an error"):
            Literature(tmp_path / "other.yaml")


def test_in_a_table_the_lowest_error_is_the_best(board: Leaderboard) -> None:
    slow, fast = (board.cells[label, board.suite.columns[0]] for label in ("slow", "MAML"))
    assert fast.result() < slow.result() and fast.departures == ()
    assert [str(board.standings[cell.row.label, cell.column].rank) for cell in (fast, slow)] == ["1", "2"]
    assert [board.standings[cell.row.label, cell.column].best for cell in (fast, slow)] == [True, False]
    assert fast.over_queries is None and fast.over_seeds is not None
    errors = np.mean([record.evaluations["best"].scores for record in fast.measured], axis=0)
    assert fast.result() == (pytest.approx(errors.mean()), pytest.approx(episode_interval(errors)))


def test_the_table_says_squared_error_in_every_format(board: Leaderboard) -> None:
    document = compose(board)
    main, by_rule, spread = document.tables[:3]
    assert main.title.startswith("Mean squared error (lower is better), ± half-width of its 95 % interval")
    assert by_rule.title.startswith("Mean squared error (lower is better) by selection rule")
    assert spread.title == "Standard deviation over seeds of the mean squared error"
    result = board.cells["MAML", board.suite.columns[0]].result()
    assert result is not None
    value, half_width = result
    assert [entry.text for entry in main.rows[1]] == ["MAML", f"{value:.3f} ± {half_width:.3f}", "1"]
    assert main.rows[1][1].bold and not main.rows[0][1].bold
    assert main.rows[-1][0].text == "predicting 0"
    zero = baseline("sinusoid", 1, 10, 60, 0)[1]
    assert main.rows[-1][1].text == f"{zero:.3f}" and 3.5 < zero < 5
    assert "Pixels" not in document.facts
    assert document.facts["Episodes"].startswith("10 random query points in training, a grid of 100")
    for text in (markdown(document), latex(document)):
        assert "accura" not in text.lower() and "-way" not in text and "Mean squared error" in text
    parsed = json.loads(to_json(board))
    cell = parsed["cells"][1]
    assert cell["error"] == pytest.approx(value, abs=1e-6) and "accuracy" not in cell and cell["rank"] == 1
    assert cell["interval_over_queries"] is None and cell["by_rule"]["last"]["error"] > 0
    assert parsed["without_learning"][0]["how"] == "predicting 0"
    header, *rows = to_csv(board).splitlines()
    assert ",error," in header and "accuracy" not in header and len(rows) == 3


def test_the_suites_are_those_of_the_literature() -> None:
    for name, iterations in (("sinusoid", 50_000), ("sinusoid_small", 8_000)):
        suite = suites.load(name)
        assert {"maml", "metasgd", "cavia", "cml"} == {row.entry.method for row in suite.rows}
        for training_ in suite.trainings:
            asked = training_.config
            assert asked.training.epochs * asked.training.iterations_per_epoch == iterations
            assert (asked.training.meta_batch, asked.shots, asked.queries, asked.ways) == (25, 10, 10, 1)
            model = assembly.build(asked, open_domain("sinusoid").inputs)
            own = backbones.parameter_count(model.backbone)
            assert own == (1961 if asked.algorithm == "cavia" else 1761)
