"""Regression on sinusoids through the same code as images: training, resuming, evaluation and records."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from sinusoids import config
from test_checkpoint import assert_same
from tiny import tiny_sets  # noqa: F401

from metazoo import assembly, backbones, hardware, objectives, outer_loop, records, training
from metazoo.algorithms.maml import MAML
from metazoo.benchmarks import learn2learn_curve
from metazoo.benchmarks.datasets.sinusoid import DATASET
from metazoo.config import resolve
from metazoo.data import dataset as sheets
from metazoo.domains import baseline, open_domain
from metazoo.errors import Diverged, Incompatible, UserError
from metazoo.evaluation import episode_scores, evaluate
from metazoo.leaderboard import suite as suites
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


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of three epochs that keeps the two best."""
    return training.train(config(), home=tmp_path_factory.mktemp("runs"))


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
    assert not list(tmp_path.iterdir()), "it was refused on its first episodes, and left its folder behind"


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

    def stopping(self: Trainer, *given: Any) -> None:
        if self.iteration == 33:
            self.save()
            raise Stop
        step(self, *given)

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
        assert subject.pass_size.tasks == (tasks_per_pass or 5)
        subject._step(outer_loop.OuterStep(), subject.stream.batch(0, 5))
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
        subject._step(outer_loop.OuterStep(), subject.stream.batch(25 * subject.iteration, 25))
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
    known = sheets.published()
    steep = replace(DATASET, name="steep", parameters={"amplitude": (5.0, 10.0), "phase": (0.0, np.pi)})
    plane = replace(DATASET, name="plane", function=lambda x, **_: x.sum(-1, keepdims=True), inputs=((0, 1), (0, 1)))
    monkeypatch.setattr(sheets, "published", lambda: {**known, "steep": steep, "plane": plane})
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


def test_the_score_of_a_function_is_its_mean_squared_error() -> None:
    targets = torch.tensor([[[0.0], [2.0]], [[1.0], [1.0]]])
    assert objectives.scores(torch.zeros(2, 2, 1), targets).tolist() == [2.0, 1.0]
    assert task_losses(torch.ones(2, 2, 1), targets).tolist() == [1.0, 0.0]
