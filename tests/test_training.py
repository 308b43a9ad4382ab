"""The outer loop: what it optimises, what it validates on, and how it ends when it does not end well."""

from __future__ import annotations

import io
import json
import math
import os
import queue
import signal
from pathlib import Path
from typing import Any, get_args

import pytest
import tiny
import torch
from rich.console import Console
from test_checkpoint import assert_same
from tiny import tiny_sets  # noqa: F401

from metazoo import assembly, evaluation, hardware, outer_loop, outer_update, progress, training
from metazoo.algorithms.maml import MAML
from metazoo.config import RunConfig, TrainingSettings, resolve
from metazoo.data.store import Store
from metazoo.domains import open_domain
from metazoo.episodes import EpisodeStream
from metazoo.errors import Diverged, Incompatible, OutOfMemory, UserError
from metazoo.outer_loop import Trainer
from metazoo.outer_step import OuterStep
from metazoo.outer_update import outer_lr
from metazoo.progress import Reporter
from metazoo.run import Run, State

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def sets(tiny_sets: None) -> None:  # noqa: F811
    """The tiny data sets are known to every test here."""


def trainer(tasks_per_pass: int | None = None, **changes: Any) -> Trainer:
    config = resolve(tiny.config(**changes), tiny.SIZE)
    return Trainer(config, open_domain(config.source), CPU, tasks_per_pass, Reporter())


def meta_gradient(tasks_per_pass: int | None = None, **changes: Any) -> list[torch.Tensor]:
    """What Adam was given in the first outer iteration."""
    subject = trainer(tasks_per_pass, meta_batch=4, **changes)
    subject._step(OuterStep(), subject.stream.batch(0, 4))
    gradients = [parameter.grad for parameter in subject.parameters]
    assert all(gradient is not None for gradient in gradients)
    return [gradient.clone() for gradient in gradients if gradient is not None]


def test_a_training_leaves_what_it_promises(tmp_path: Path) -> None:
    run = training.train(tiny.config(), home=tmp_path, command="metazoo train maml")
    assert run.folder.parent == tmp_path and run.state == "done" and run.reason == ""
    assert [line["epoch"] for line in run.metrics] == [1, 2, 3]
    assert [line["iteration"] for line in run.metrics] == [4, 8, 12]
    for line in run.metrics:
        assert 0 < line["train_loss"] < 3 and 0 <= line["train_accuracy"] <= 1
        assert 0 <= line["validation_accuracy"] <= 1 and line["validation_interval"] > 0
        assert line["seconds"] > 0 and line["tasks_per_second"] > 0
    summary = run.summary
    tasks = 12 * 2
    assert summary.tasks_per_second == pytest.approx(tasks / summary.training_seconds, rel=0.02)
    assert summary.peak_memory_mb > 50 and summary.parameters == 515 and "torch" in summary.versions
    assert run.provenance.command == "metazoo train maml"
    assert run.config == resolve(tiny.config(), tiny.SIZE)


def test_a_finished_run_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = training.train(tiny.config(), home=tmp_path)
    monkeypatch.setattr(training, "Trainer", None)
    assert training.train(tiny.config(), home=tmp_path) == run
    with pytest.raises(TypeError):
        training.train(tiny.config(seed=1), home=tmp_path)


def test_it_learns(tmp_path: Path) -> None:
    settings = {"inner_steps": 1, "inner_lr": {"body": 0.1, "head": 0.1}}
    network = {"name": "conv4", "filters": 8}
    config = tiny.config(settings=settings, backbone=network, shots=2, iterations_per_epoch=40, outer_lr=0.01)
    first, _, last = training.train(config, home=tmp_path).metrics
    assert last["train_loss"] < first["train_loss"] - 0.05
    assert last["validation_accuracy"] > 0.5, "chance is one third"


def test_the_sum_over_tasks_is_the_mean_times_their_number() -> None:
    mean, total = meta_gradient(reduction="mean"), meta_gradient(reduction="sum")
    for one, other in zip(mean, total, strict=True):
        torch.testing.assert_close(4 * one, other)


def test_the_meta_gradient_does_not_depend_on_tasks_per_pass() -> None:
    whole = meta_gradient(4)
    for tasks_per_pass in (None, 1, 3):
        for one, other in zip(meta_gradient(tasks_per_pass), whole, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_the_clamp_is_element_wise() -> None:
    free, clamped = meta_gradient(), meta_gradient(gradient_clamp=0.01)
    assert max(gradient.abs().max().item() for gradient in free) > 0.02
    for one, other in zip(free, clamped, strict=True):
        torch.testing.assert_close(one.clamp(-0.01, 0.01), other)


def test_the_cosine_goes_from_the_outer_rate_to_the_least_one(tmp_path: Path) -> None:
    settings = TrainingSettings(epochs=4, schedule="cosine", outer_lr=1e-3, min_outer_lr=1e-5)
    quarter = (1 + math.sqrt(0.5)) / 2
    expected = [1e-3, 1e-5 + 99e-5 * quarter, 1e-5 + 99e-5 / 2, 1e-5 + 99e-5 * (1 - quarter), 1e-5]
    assert [outer_lr(settings, epoch) for epoch in range(5)] == pytest.approx(expected, rel=1e-12)
    constant = TrainingSettings(epochs=4, outer_lr=1e-3, min_outer_lr=1e-5)
    assert {outer_lr(constant, epoch) for epoch in range(4)} == {1e-3}


def test_the_schedule_and_first_order_reach_the_updates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    step, learn = torch.optim.Adam.step, MAML.learn

    def watched_learn(self: MAML, episodes: Any, outer: OuterStep = OuterStep()) -> Any:
        seen.append(outer.first_order)
        return learn(self, episodes, outer)

    def watched_step(self: torch.optim.Adam) -> None:
        seen.append(self.param_groups[0]["lr"])
        step(self)

    monkeypatch.setattr(MAML, "learn", watched_learn)
    monkeypatch.setattr(torch.optim.Adam, "step", watched_step)
    config = tiny.config(iterations_per_epoch=1, meta_batch=1, schedule="cosine", first_order_epochs=2)
    run = training.train(config, home=tmp_path)
    rates = [outer_lr(config.training, epoch) for epoch in range(3)]
    assert seen == [True, rates[0], True, rates[1], False, rates[2]]
    assert rates[0] == 1e-3 and [line["outer_lr"] for line in run.metrics] == rates


def test_training_and_validation_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[tuple[str, int], list[int]] = {}
    batch = EpisodeStream.batch

    def watched(self: EpisodeStream, start: int, count: int) -> Any:
        key = (self.sampler.split.name, self.sampler.seed)
        asked.setdefault(key, []).extend(range(start, start + count))
        return batch(self, start, count)

    monkeypatch.setattr(EpisodeStream, "batch", watched)
    opened = []
    split = Store.split
    monkeypatch.setattr(Store, "split", lambda self, name: (opened.append(name), split(self, name))[1])
    training.train(tiny.config(seed=5), home=tmp_path)
    # No training episode twice, the same validation episodes after each epoch whatever the seed, and no test ones.
    assert asked == {("train", 5): list(range(24)), ("val", 0): 3 * list(range(6))}
    assert set(opened) == {"train", "val"}


def test_all_methods_of_a_seed_begin_with_the_same_weights() -> None:
    config = resolve(tiny.config(), tiny.SIZE)
    inputs = open_domain(config.source).inputs
    weights = {}
    for name in ("maml", "l2f", "metasgd"):
        model = assembly.build(config.model_copy(update={"algorithm": name, "settings": {}}), inputs)
        weights[name] = model.backbone.state_dict()
    assert all(torch.equal(weights["maml"][key], weights["l2f"][key]) for key in weights["maml"])
    assert all(torch.equal(weights["maml"][key], weights["metasgd"][key]) for key in weights["maml"])
    other = assembly.build(config.model_copy(update={"seed": 1}), inputs).backbone.state_dict()
    assert not all(torch.equal(weights["maml"][key], other[key]) for key in other)


def test_the_callers_random_numbers_are_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    training.train(tiny.config(), home=tmp_path)
    assert torch.equal(before, torch.get_rng_state())


def explode(monkeypatch: pytest.MonkeyPatch, from_epoch: int, rate: float) -> None:
    monkeypatch.setattr(outer_update, "outer_lr", lambda settings, epoch: rate if epoch >= from_epoch else 1e-3)


@pytest.mark.parametrize(
    ("rate", "iterations", "save_every"),
    [(1e30, 4, 0.0), (1e30, 4, 60.0), (math.nan, 1, 60.0)],
    ids=["before a save", "before validation", "in the weights after the epoch's last loss"],
)
def test_a_diverged_run_is_marked_and_its_good_checkpoints_stay(
    rate: float, iterations: int, save_every: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explode(monkeypatch, from_epoch=1, rate=rate)
    monkeypatch.setattr(outer_loop, "CHECKPOINT_SECONDS", save_every)
    config = tiny.config(iterations_per_epoch=iterations)
    with pytest.raises(Diverged, match=r"epoch 2.*not a number.*up to epoch 1 are kept.*Lower outer_lr"):
        training.train(config, home=tmp_path)
    run = Run.open(next(tmp_path.iterdir()))
    assert run.state == "diverged" and "not a number" in run.reason and len(run.metrics) == 1
    index = run.checkpoints.index
    assert index.last is not None and [entry.epoch for entry in index.best] == [1]
    for entry in (index.last, *index.best):
        assert all(tensor.isfinite().all() for tensor in run.checkpoints.load(entry)["model"].values())
    monkeypatch.setattr(training, "Trainer", None)
    with pytest.raises(Diverged, match="not a number"):
        training.train(config, home=tmp_path)


def test_a_loss_that_is_not_a_number_is_noticed_inside_a_long_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explode(monkeypatch, from_epoch=0, rate=math.nan)
    monkeypatch.setattr(outer_loop, "LOOK_SECONDS", 0.0)
    with pytest.raises(Diverged, match=r"by iteration 2 .*no epoch was finished"):
        training.train(tiny.config(iterations_per_epoch=1000), home=tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=["gpu", "cpu", "python"],
)
def test_out_of_memory_says_what_to_lower(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: MAML, episodes: Any, outer: OuterStep = OuterStep()) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(MAML, "learn", full)
        with pytest.raises(OutOfMemory, match=r"lower tasks_per_pass \(now 2;.*--recompute.*queries.*filters"):
            training.train(tiny.config(), home=tmp_path, tasks_per_pass=2)
    run = Run.open(next(tmp_path.iterdir()))
    assert run.state == "out of memory" and "tasks_per_pass" in run.reason
    assert training.train(tiny.config(), home=tmp_path).state == "done"


def test_other_errors_are_not_taken_for_a_full_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: MAML, episodes: Any, outer: OuterStep = OuterStep()) -> Any:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(MAML, "learn", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        training.train(tiny.config(), home=tmp_path)
    run = Run.open(next(tmp_path.iterdir()))
    assert (run.state, run.reason) == ("error", "RuntimeError: shapes do not fit")


class Interrupting(Reporter):
    """Sends this process SIGINT when a stage has come so far, as Ctrl-C does."""

    def __init__(self, stage: str, done: int):
        super().__init__()
        self.stage_name, self.done = stage, done

    def send(self, message: progress.Message) -> None:
        if message.kind == "update" and message.stage == self.stage_name and message.done >= self.done:
            self.done = 1 << 30
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(("stage", "done"), [("training", 6), ("validation", 16)])
def test_ctrl_c_leaves_a_run_that_goes_on_bit_for_bit(
    stage: str, done: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outer_loop, "LOOK_SECONDS", 0.0)
    config = tiny.config(validation_episodes=40)
    straight = training.train(config, home=tmp_path / "straight")
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(training.Interrupted, match=r"and saved; go on with: metazoo train --config .*config\.yaml"):
        training.train(config, home=tmp_path / "stopped", reporter=Interrupting(stage, done))
    assert signal.getsignal(signal.SIGINT) is handler
    run = Run.open(tmp_path / "stopped" / straight.name)
    index = run.checkpoints.index
    assert run.state == "interrupted" and "go on with" in run.reason
    assert index.last is not None and index.last.iteration == {"training": 6, "validation": 4}[stage]
    assert_same(straight, training.train(config, home=tmp_path / "stopped"))


def test_tensorboard_gets_each_epoch_once_also_after_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    save = Trainer._write_checkpoint

    def crashing(self: Trainer, validated: int | None = None) -> None:
        if self.epoch == 2:
            raise SystemExit
        save(self, validated)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_write_checkpoint", crashing)
        with pytest.raises(SystemExit):
            training.train(tiny.config(), home=tmp_path)
    run = training.train(tiny.config(), home=tmp_path)
    board = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    for key, name in (("validation_accuracy", "accuracy/validation"), ("train_loss", "loss/train")):
        points = [(event.step, event.value) for event in board.Scalars(name)]
        assert [step for step, _ in points] == [4, 8, 12]
        assert [value for _, value in points] == pytest.approx([line[key] for line in run.metrics])


def test_what_cannot_work_leaves_nothing_behind(tmp_path: Path) -> None:
    for wrong, said in (
        ({"algorithm": "mmal"}, "did you mean 'maml'"),
        ({"source": "tinny"}, "did you mean 'tiny'"),
        ({"settings": {"inner_stepz": 1}}, "did you mean 'inner_steps'"),
        ({"ways": 7}, "val split of tiny has 6 classes"),
        ({"queries": 10}, "10 images"),
        ({"normalisation": "imagenet"}, "grey"),
    ):
        with pytest.raises(UserError, match=said):
            training.train(tiny.config(**wrong), home=tmp_path / "runs")
    with pytest.raises(UserError, match="no device 'gpu'"):
        training.train(tiny.config(), home=tmp_path / "runs", device="gpu")
    with pytest.raises(UserError, match="at least one task"):
        training.train(tiny.config(), home=tmp_path / "runs", tasks_per_pass=0)
    assert not (tmp_path / "runs").exists()


def test_an_incompatible_pair_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: MAML) -> None:
        raise Incompatible("MAML needs something else.")

    monkeypatch.setattr(MAML, "build", refuse)
    with pytest.raises(Incompatible, match="needs something else"):
        training.train(tiny.config(), home=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_run_of_one_config_is_one_run(tmp_path: Path) -> None:
    names = {training.train(tiny.config(**changes), home=tmp_path).name for changes in ({}, {"size": tiny.SIZE})}
    assert len(names) == 1, "a default written out is the same run"


def test_progress_of_a_worker_shows_in_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outer_loop, "LOOK_SECONDS", 0.0)
    screen = io.StringIO()
    messages: queue.Queue[Any] = queue.Queue()

    class Eager(progress.Bars):
        def send(self, message: progress.Message) -> None:
            super().send(message)
            self._progress.refresh()

    with (
        Eager(Console(file=screen, force_terminal=True, width=150)) as bars,
        progress.listening(messages, bars),
    ):
        training.train(tiny.config(), home=tmp_path, reporter=progress.QueueReporter(messages, "maml on tiny"))
        progress.QueueReporter(messages, "maml on tiny").note("a sentence")
    shown = screen.getvalue()
    for part in ("maml on tiny training", "maml on tiny validation", "loss ", "accuracy ", "tasks/s ", "/12"):
        assert part in shown
    assert "maml on tiny: a sentence" in shown


def test_a_training_says_nothing_by_itself(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    training.train(tiny.config(), home=tmp_path)
    with progress.on_terminal() as reporter:
        training.train(tiny.config(seed=1), home=tmp_path, reporter=reporter)
    assert capfd.readouterr() == ("", "")


def test_a_devices_description_has_its_name_and_memory() -> None:
    assert "GiB" in hardware.describe(CPU) and "core" in hardware.describe(CPU)
    assert hardware.choose("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_config_file_is_the_run_again(tmp_path: Path) -> None:
    from metazoo.schema import parse, read_yaml

    run = training.train(tiny.config(outer_lr=3e-4), home=tmp_path)
    again = parse(RunConfig, read_yaml(run.folder / "config.yaml"), "config.yaml")
    assert training.train(again, home=tmp_path).folder == run.folder
    assert json.loads((run.folder / "run.json").read_text())["identity"] == run.name.rpartition("-")[2]


def test_the_docs_name_every_setting_and_every_state() -> None:
    text = (Path(__file__).parent.parent / "docs" / "training.md").read_text(encoding="utf-8")
    keys = {*RunConfig.model_fields} - {"training"} | {f"training.{key}" for key in TrainingSettings.model_fields}
    for key in (*keys, *get_args(State), *evaluation.RULES):
        assert f"`{key}`" in text, key
