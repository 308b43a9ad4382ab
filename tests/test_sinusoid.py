"""Sinusoid regression: functions as tasks, from their episodes to their table, through the same code as images."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from scipy import stats
from test_checkpoint import assert_same
from tiny import tiny_sets  # noqa: F401

from metazoo import assembly, backbones, cli, hardware, objectives, outer_loop, records, training
from metazoo.algorithms.maml import MAML
from metazoo.benchmarks import learn2learn_curve
from metazoo.benchmarks.datasets.sinusoid import DATASET
from metazoo.config import RunConfig, code_version, describe, resolve
from metazoo.data import dataset as sheets
from metazoo.data.families import FunctionFamily, Values
from metazoo.domains import baseline, identity_here, open_domain
from metazoo.errors import Diverged, Incompatible, UserError
from metazoo.evaluation import episode_scores, evaluate, evaluation
from metazoo.functions import FunctionStream
from metazoo.leaderboard import suite as suites
from metazoo.leaderboard.published import Literature
from metazoo.leaderboard.standings import Identities, Leaderboard, Shelf, build
from metazoo.leaderboard.tables import compose
from metazoo.leaderboard.typesetting import latex, markdown, to_csv, to_json
from metazoo.measures import SQUARED_ERROR
from metazoo.objectives import task_losses
from metazoo.outer_loop import Trainer
from metazoo.progress import Message, Reporter
from metazoo.run import Provenance, Run
from metazoo.statistics import episode_interval

CPU = torch.device("cpu")
RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"


@pytest.fixture(autouse=True)
def sets(tiny_sets: None) -> None:  # noqa: F811
    """The tiny data sets of images are known beside the sinusoids."""


def config(**changes: Any) -> RunConfig:
    """A config whose training takes about a second: keys of RunConfig, and of its training."""
    training = {"epochs": 3, "iterations_per_epoch": 20, "meta_batch": 5, "validation_episodes": 20, "keep": 2}
    values: dict[str, Any] = {
        "algorithm": "maml",
        "settings": {"inner_steps": 1, "inner_lr": {"body": 0.1, "head": 0.1}},
        "source": "sinusoid",
        "ways": 1,
        "shots": 10,
        "queries": 10,
        "backbone": {"name": "mlp"},
        "training": training,
    }
    for key, value in changes.items():
        (values if key in RunConfig.model_fields else training)[key] = value
    return RunConfig.model_validate(values)


def stream(split: str = "train", shots: int = 10, queries: int = 10, seed: int = 0) -> FunctionStream:
    return FunctionStream(DATASET, split, shots, queries, seed, CPU)


def tensors(episodes: Any) -> list[torch.Tensor]:
    return [episodes.support_x, episodes.support_y, episodes.query_x, episodes.query_y, episodes.numbers]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of three epochs that keeps the two best."""
    return training.train(config(), home=tmp_path_factory.mktemp("runs"))


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


# What goes with what


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ways": 5}, "no classes; ways is how many numbers they give, 1 and not 5"),
        ({"size": 28}, "no images and so no size"),
        ({"normalisation": "source"}, "no images to normalise"),
        ({"backbone": {"name": "conv4"}}, "'conv4' is for images .* use mlp"),
        ({"source": "tiny", "ways": 3, "shots": 1, "queries": 2}, "'mlp' is for vectors .* use conv4"),
    ],
)
def test_what_does_not_fit_is_a_sentence_and_leaves_nothing_behind(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        training.train(config(**changes), home=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_network_is_not_tested_on_the_other_kind(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trained on functions \(sinusoid\) and tiny is a data set of images"):
        evaluate(run, "tiny", episodes=5)
    # Not prepared here, which is not what stands in the way.
    with pytest.raises(UserError, match="cifar_fs is a data set of images"):
        evaluate(run, "cifar_fs", episodes=5, data_home=tmp_path)
    images = training.train(tiny.config(epochs=1), home=tmp_path)
    with pytest.raises(UserError, match=r"trained on images \(tiny\) and sinusoid is a data set of functions"):
        evaluate(images, "sinusoid", episodes=5)


def test_a_suite_of_both_kinds_is_refused(tmp_path: Path) -> None:
    values = {"name": "both", "title": "Both", "protocol": "common", "source": "sinusoid", "ways": 1}
    values |= {"backbone": {"name": "mlp"}, "targets": ["sinusoid", "cifar_fs"], "methods": ["maml"]}
    (tmp_path / "both.yaml").write_text(json.dumps(values))
    with pytest.raises(UserError, match="sinusoid is a data set of functions and the target cifar_fs one of images"):
        suites.read(tmp_path / "both.yaml")


def test_a_method_for_classes_says_so(tmp_path: Path) -> None:
    with pytest.raises(Incompatible, match="tells classes apart"):
        training.train(config(algorithm="protonet", settings={}), home=tmp_path)


def test_sinusoids_are_listed_and_need_no_preparing(capsys: Any, monkeypatch: Any, tmp_path: Path) -> None:
    assert "sinusoid" in sheets.datasets()
    for arguments in (["list"], ["prepare", "sinusoid"]):
        monkeypatch.setattr(sys, "argv", ["metazoo", "data", *arguments, "--home", str(tmp_path)])
        with pytest.raises(SystemExit):
            cli.main()
    said = capsys.readouterr()
    assert "Sinusoids" in said.out and "drawn when used" in said.out
    assert "nothing to prepare" in said.err


# Training


def test_the_log_says_error_and_the_lowest_validation_error_is_the_best(run: Run) -> None:
    lines = run.metrics
    assert len(lines) == 3
    for line in lines:
        assert {"train_loss", "train_error", "validation_error", "validation_interval"} <= line.keys()
        assert not any("accuracy" in key for key in line)
        assert line["train_error"] == pytest.approx(line["train_loss"], rel=1e-6)
    by_error = sorted(lines, key=lambda line: line["validation_error"])
    assert [entry.epoch for entry in run.checkpoints.index.best] == [line["epoch"] for line in by_error[:2]]
    assert lines[-1]["validation_error"] < baseline("sinusoid", 1, 10, 600, 0)[1]


def test_validation_errors_rank_checkpoints_lowest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = iter([3.0, 1.0, 2.0, 1.0])
    monkeypatch.setattr(outer_loop, "episode_scores", lambda *_: {"validation": [next(errors)] * 2 + [0.0] * 2})
    done = training.train(config(epochs=4, iterations_per_epoch=1, keep=3), home=tmp_path)
    assert [entry.epoch for entry in done.checkpoints.index.best] == [2, 4, 3]
    assert [line["validation_error"] for line in done.metrics] == [1.5, 0.5, 1.0, 0.5]


def test_progress_shows_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outer_loop, "LOOK_SECONDS", 0.0)
    seen: list[set[str]] = []

    class Watching(Reporter):
        def send(self, message: Message) -> None:
            seen.append(set(message.figures))

    training.train(config(epochs=1), home=tmp_path, reporter=Watching())
    assert {"loss", "error", "tasks/s"} in seen and not any("accuracy" in figures for figures in seen)


class Stop(Exception):
    """Ends a training from within, as a crash would."""


def test_an_interrupted_training_goes_on_bit_for_bit(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Trainer._step

    def stopping(self: Trainer, outer: Any) -> None:
        if self.iteration == 33:
            self.save()
            raise Stop
        step(self, outer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", stopping)
        with pytest.raises(Stop):
            training.train(config(), home=tmp_path)
    assert_same(run, training.train(config(), home=tmp_path))


def test_errors_that_are_not_numbers_are_a_divergence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wild = {"inner_steps": 60, "inner_lr": {"body": 1e3, "head": 1e3}}
    with pytest.raises(Diverged, match="not a number"):
        training.train(config(settings=wild), home=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(outer_loop, "episode_scores", lambda *_: {"validation": [1.0, math.inf]})
        with pytest.raises(Diverged, match="validation error was not a number"):
            training.train(config(), home=tmp_path)


def test_predictions_that_are_not_numbers_are_no_result(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MAML, "predict", lambda self, episodes: episodes.query_y * math.nan)
    with pytest.raises(Diverged, match="are not numbers"):
        evaluate(run, episodes=7)


def test_a_perceptrons_tasks_are_stacked_on_a_cpu_too_and_convolutions_are_not() -> None:
    mlp = backbones.create(backbones.Mlp.Settings(), (1,), 1)
    conv = backbones.create(backbones.Conv4.Settings(filters=2), (1, 16, 16), 2)
    gpu = torch.device("cuda")
    assert [hardware.tasks_at_once(None, *asked) for asked in ((CPU, 25, mlp), (CPU, 25, conv))] == [25, 1]
    assert hardware.tasks_at_once(None, gpu, 25, conv) == 25
    assert hardware.tasks_at_once(3, CPU, 25, mlp) == hardware.tasks_at_once(3, CPU, 25, conv) == 3


@pytest.mark.parametrize("algorithm", ["maml", "metasgd", "cavia"])
def test_stacking_changes_only_rounding(algorithm: str) -> None:
    weights = []
    for tasks_per_pass in (None, 1, 2):
        asked = resolve(config(algorithm=algorithm, settings={"inner_steps": 1}), None)
        subject = Trainer(asked, open_domain("sinusoid"), CPU, tasks_per_pass, Reporter())
        assert subject.tasks_per_pass == (tasks_per_pass or 5)
        subject._step(outer_loop.OuterStep())
        weights.append(torch.cat([parameter.grad.flatten() for parameter in subject.parameters]))
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=1e-4, atol=1e-5)


def test_the_curve_is_that_of_learn2learns_own_loop(run: Run) -> None:
    plain = learn2learn_curve.learn2learn_curve(run, CPU)
    assert [line["epoch"] for line in plain] == [1, 2, 3]
    for ours, theirs in zip(run.metrics, plain, strict=True):
        for key in ("train_loss", "train_error", "validation_error", "validation_interval"):
            assert theirs[key] == pytest.approx(ours[key], rel=1e-3), key
        assert theirs["tasks_per_second"] > 0


def test_maml_learns_to_adapt() -> None:
    """After 600 iterations the error on the grid is far below that of the best function that all tasks share."""
    torch.manual_seed(0)
    asked = resolve(config(meta_batch=25), None)
    domain = open_domain("sinusoid")
    subject = Trainer(asked, domain, CPU, None, Reporter())
    for subject.iteration in range(600):
        subject._step(outer_loop.OuterStep())
    test = domain.episodes(asked, "test", 0, CPU, domain.inputs)
    errors = episode_scores({"it": [subject.model]}, test, 200, CPU)["it"]
    targets = test.batch(0, 200).query_y
    shared = (targets - targets.mean(dim=0)).square().mean()
    assert np.mean(errors) < 0.8 * float(shared) < baseline("sinusoid", 1, 10, 200, 0)[1]


# Evaluation and records


def test_each_rule_scores_the_checkpoints_that_validation_chose(run: Run) -> None:
    record = evaluate(run, episodes=12, command="metazoo evaluate it")
    assert (record.queries_per_episode, record.episodes, record.batch_norm) == (100, 12, "none")
    assert record.data == {"source": DATASET.identity, "target": DATASET.identity}
    domain = open_domain("sinusoid")
    episodes = domain.episodes(run.config, "test", 0, CPU, domain.inputs).batch(0, 12)
    outputs = {}
    for entry in [run.checkpoints.index.last, *run.checkpoints.index.best]:
        assert entry is not None
        model = assembly.build(run.config, run.provenance.inputs)
        model.load_state_dict(run.checkpoints.load(entry)["model"])
        outputs[entry.epoch] = model.predict(episodes)
    assert len(record.evaluations["ensemble"].epochs) == 2
    for result in record.evaluations.values():
        assert isinstance(result, records.ErrorEvaluation)
        mean = torch.stack([outputs[epoch] for epoch in result.epochs]).mean(dim=0)
        errors = (mean - episodes.query_y).square().mean(dim=(1, 2))
        assert result.errors == pytest.approx(errors.tolist(), rel=1e-4)
        assert result.error.mean == pytest.approx(np.mean(result.errors))
        assert result.error.over_episodes == pytest.approx(episode_interval(result.errors))
        assert result.error.over_queries is None
    assert records.read([run.records])[-1] == record
    assert evaluate(run, episodes=12) == record


def test_another_family_of_the_same_inputs_is_a_target(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    known = sheets.datasets()
    steep = replace(DATASET, name="steep", parameters={"amplitude": (5.0, 10.0), "phase": (0.0, np.pi)})
    plane = replace(DATASET, name="plane", function=lambda x, **_: x.sum(-1, keepdims=True), inputs=((0, 1), (0, 1)))
    monkeypatch.setattr(sheets, "datasets", lambda: {**known, "steep": steep, "plane": plane})
    far, near = (evaluate(run, name, episodes=9).evaluations["best"].interval.mean for name in ("steep", "sinusoid"))
    assert far > near
    with pytest.raises(UserError, match="have 2 inputs and the run was trained on others"):
        evaluate(run, "plane", episodes=9)


def test_every_committed_record_reads_as_it_was_written() -> None:
    lines = [line for path in sorted(RESULTS.glob("*.jsonl")) for line in path.read_text().splitlines() if line]
    found = 0
    for values in map(json.loads, lines):
        if "evaluations" in values:
            found += 1
            record = records.Record.model_validate(values)
            assert record.model_dump(mode="json", exclude_unset=True) == values
    assert found > 10


def test_a_mistake_in_a_record_is_said_of_its_own_kind(tmp_path: Path) -> None:
    values = {"run": "it", "config": {}, "data": {}, "code": "", "target": "sinusoid"}
    values["evaluations"] = {"last": {"error": {"mean": 1.0, "over_episodes": 0.1}, "epochs": [1]}}
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(values) + "\n")
    with pytest.raises(UserError, match=r"'evaluations.last.error.errors': Field required"):
        records.read([path])


def test_runs_and_checkpoints_from_before_can_be_read() -> None:
    from metazoo.checkpoint import Entry

    before = {"identity": "a", "data": "b", "code": "c", "channels": 3, "mean": [0.1] * 3, "std": [0.2] * 3}
    inputs = Provenance.model_validate(before).inputs
    assert inputs.kind == "images" and inputs.shape(84) == (3, 84, 84)
    assert Entry.model_validate({"file": "f", "sha256": "s", "epoch": 1, "iteration": 2, "correct": 7}).rank == 7


# The command line and the table


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
    assert [board.standings[cell.row.label, cell.column].rank for cell in (fast, slow)] == [1, 2]
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
    monkeypatch.setattr(sheets, "datasets", lambda: {"ripples": RIPPLES})
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
    monkeypatch.setattr(sheets, "datasets", lambda: {"damped": names["DATASET"]})
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


def test_the_score_of_a_function_is_its_mean_squared_error() -> None:
    targets = torch.tensor([[[0.0], [2.0]], [[1.0], [1.0]]])
    assert objectives.scores(torch.zeros(2, 2, 1), targets).tolist() == [2.0, 1.0]
    assert task_losses(torch.ones(2, 2, 1), targets).tolist() == [1.0, 0.0]
