"""Checkpoints and runs' folders: whole after every kill, and a sentence where they are damaged."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from killed_training import CONFIG
from tiny import tiny_sets  # noqa: F401

from metazoo import checkpoint, outer_loop, registry, training
from metazoo.checkpoint import Checkpoints
from metazoo.config import identity
from metazoo.episodes import Episodes
from metazoo.errors import UserError
from metazoo.outer_step import OuterStep
from metazoo.run import Run

TIMES = {"seconds", "validation_seconds", "tasks_per_second"}


@pytest.fixture(autouse=True)
def sets(tiny_sets: None) -> None:  # noqa: F811
    """The tiny data sets are known to every test here."""


def results(run: Run) -> tuple[list[Any], list[dict[str, Any]], dict[str, Any]]:
    """What two runs that are the same have in common, bit for bit: best checkpoints, log, and last state."""
    index = run.checkpoints.index
    assert index.last is not None
    last = run.checkpoints.load(index.last)
    log = [{key: value for key, value in line.items() if key not in TIMES} for line in run.metrics]
    for key in ("seconds", "peak_memory_mb"):
        del last[key]
    return [entry.model_dump() for entry in index.best], log, last


def assert_same(one: Run, other: Run) -> None:
    (best, log, last), (other_best, other_log, other_last) = results(one), results(other)
    assert best == other_best, "the best weights differ"
    assert log == other_log
    flat, other_flat = list(flatten(last)), list(flatten(other_last))
    assert len(flat) == len(other_flat) > 10
    for value, other_value in zip(flat, other_flat, strict=True):
        same = torch.equal(value, other_value) if isinstance(value, torch.Tensor) else value == other_value
        assert same


def flatten(value: Any) -> Any:
    if isinstance(value, dict):
        for key in value:
            yield from flatten(value[key])
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from flatten(part)
    else:
        yield value


class StopAt(Exception):
    """Stands for a crash."""


@contextmanager
def crashing_at(iteration: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The training in the block saves after every iteration, and must crash in the middle of this one."""
    step = outer_loop.Trainer._step

    def crashing(self: outer_loop.Trainer, outer: OuterStep, batch: Episodes) -> None:
        if self.iteration == iteration:
            raise StopAt
        step(self, outer, batch)

    with monkeypatch.context() as patch:
        patch.setattr(outer_loop, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(outer_loop.Trainer, "_step", crashing)
        with pytest.raises(StopAt):
            yield


def interrupt_at(iteration: int, monkeypatch: pytest.MonkeyPatch, home: Path, **changes: Any) -> Run:
    """A run that saves after every iteration and crashed in the middle of one."""
    with crashing_at(iteration, monkeypatch):
        training.train(tiny.config(**changes), home=home)
    (folder,) = home.iterdir()
    return Run.open(folder)


def test_a_run_killed_at_any_moment_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry._catalogue(), "methods", registry.algorithms())  # the plugin is for this test only
    registry.load_plugin(Path(__file__).with_name("noisy.py"))
    straight = training.train(CONFIG, home=tmp_path / "straight")
    script = Path(__file__).with_name("killed_training.py")
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    kills = [int(count) for count in re.findall(r"survived (\d+) kills", done.stdout)]
    assert len(kills) == 2 and min(kills) >= 3, done.stdout
    for way in ("operations", "clock"):
        killed = Run.open(tmp_path / way / straight.name)
        assert killed.state == "done"
        assert_same(straight, killed)
        left = {path.name for path in killed.checkpoints.folder.iterdir()}
        index = killed.checkpoints.index
        assert index.last is not None
        assert left == {"index.json", index.last.file, *(entry.file for entry in index.best)}


def test_a_run_that_crashed_inside_an_epoch_goes_on_as_if_it_had_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = training.train(tiny.config(), home=tmp_path / "straight")
    crashed = interrupt_at(6, monkeypatch, tmp_path / "crashed")
    assert (crashed.state, crashed.reason) == ("error", "StopAt: ")
    index = crashed.checkpoints.index
    assert index.last is not None and index.last.iteration == 6 and len(crashed.metrics) == 1
    steps = []
    step = outer_loop.Trainer._step
    monkeypatch.setattr(
        outer_loop.Trainer, "_step", lambda self, *given: (steps.append(self.iteration), step(self, *given))
    )
    again = training.train(tiny.config(), home=tmp_path / "crashed")
    assert steps == list(range(6, 12)) and again.state == "done"
    assert_same(straight, again)


def test_lines_logged_after_the_checkpoint_are_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = training.train(tiny.config(), home=tmp_path / "straight")
    crashed = interrupt_at(6, monkeypatch, tmp_path / "crashed")
    with open(crashed.folder / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 2, "iteration": 8}\n{"epoch": 3, "iter')
    training.train(tiny.config(), home=tmp_path / "crashed")
    assert_same(straight, crashed)


def test_a_log_that_lost_lines_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crashed = interrupt_at(6, monkeypatch, tmp_path)
    (crashed.folder / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match=r"metrics\.jsonl has 0 bytes .* lines were lost"):
        training.train(tiny.config(), home=tmp_path)


def test_the_best_are_kept_and_of_equals_the_earlier(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for epoch, correct in enumerate([5, 7, 7, 6, 7, 8], start=1):
        weights = {"model": torch.full((2,), float(epoch))}
        checkpoints.save({}, epoch=epoch, iteration=10 * epoch, metrics_bytes=0, candidate=(weights, correct), keep=3)
        best = [entry.epoch for entry in checkpoints.index.best]
        assert best == {1: [1], 2: [2, 1], 3: [2, 3, 1], 4: [2, 3, 4], 5: [2, 3, 5], 6: [6, 2, 3]}[epoch]
    loaded = [checkpoints.load(entry)["model"][0].item() for entry in checkpoints.index.best]
    assert loaded == [6.0, 2.0, 3.0]
    assert len(list(tmp_path.glob("*.pt"))) == 4


def damage_flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def damage_remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [damage_flip, damage_cut, damage_remove])
def test_a_damaged_checkpoint_is_named_in_one_sentence_and_nothing_is_lost(
    damage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = interrupt_at(6, monkeypatch, tmp_path)
    index = run.checkpoints.index
    assert index.last is not None
    path = run.checkpoints.folder / index.last.file
    whole = path.read_bytes()
    damage(path)
    before = {file: file.read_bytes() for file in run.checkpoints.folder.iterdir()}
    with pytest.raises(UserError) as caught:
        training.train(tiny.config(), home=tmp_path)
    said = str(caught.value)
    assert str(path) in said and "delete the run's folder" in said and "\n" not in said
    assert run.state == "error" and run.reason == said
    assert before == {file: file.read_bytes() for file in run.checkpoints.folder.iterdir()}
    path.write_bytes(whole)
    assert training.train(tiny.config(), home=tmp_path).state == "done"


@pytest.mark.parametrize("name", ["run.json", "state.json", "config.yaml", "checkpoints/index.json"])
def test_other_damaged_files_are_named_too(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = interrupt_at(2, monkeypatch, tmp_path)
    (run.folder / name).write_text("{ not")
    with pytest.raises(UserError, match=re.escape(name)):
        training.train(tiny.config(), home=tmp_path)


def test_a_config_that_is_not_the_runs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = interrupt_at(2, monkeypatch, tmp_path)
    path = run.folder / "config.yaml"
    path.write_text(path.read_text().replace("outer_lr: 0.001", "outer_lr: 0.002"))
    with pytest.raises(UserError, match="is not the config that was run"):
        Run.open(run.folder)
    with pytest.raises(UserError, match="is not the config that was run"):
        training.train(tiny.config(), home=tmp_path)


def test_a_run_from_before_a_setting_existed_still_opens(tmp_path: Path) -> None:
    """Its identity is that of the config as it was written; what configs have gained since takes its default."""
    run = training.train(tiny.config(), home=tmp_path)
    values = yaml.safe_load((run.folder / "config.yaml").read_text())
    del values["training"]["milestones"]
    (run.folder / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    provenance = json.loads((run.folder / "run.json").read_text())
    provenance["identity"] = identity(values, provenance["data"], provenance["code"])
    (run.folder / "run.json").write_text(json.dumps(provenance))
    assert Run.open(run.folder).config == run.config


def test_a_folder_that_holds_another_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_at(2, monkeypatch, tmp_path / "one")
    other = interrupt_at(2, monkeypatch, tmp_path / "other", seed=1)
    (folder,) = (tmp_path / "one").iterdir()
    for path in ("config.yaml", "run.json"):
        (folder / path).write_bytes((other.folder / path).read_bytes())
    with pytest.raises(UserError, match="holds another run than the one asked for"):
        training.train(tiny.config(), home=tmp_path / "one")


def test_two_processes_cannot_train_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = interrupt_at(2, monkeypatch, tmp_path)
    run.mark("running")
    assert run.state == "interrupted", "a run that nobody trains does not run"
    with run.lock():
        assert run.state == "running"
        with pytest.raises(UserError, match=r"is being trained by process \d+"):
            training.train(tiny.config(), home=tmp_path)
    assert training.train(tiny.config(), home=tmp_path).state == "done"


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = training.train(tiny.config(), home=tmp_path / "straight")
    write, calls = checkpoint.replacing, []

    def full(path: Path, mode: str = "wb") -> Any:
        calls.append(path)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, mode)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "replacing", full)
        with pytest.raises(UserError, match=r"No space left on device.*saved before is intact"):
            training.train(tiny.config(), home=tmp_path / "full")
    run = Run.open(tmp_path / "full" / straight.name)
    assert run.state == "error" and "No space left" in run.reason
    assert_same(straight, training.train(tiny.config(), home=tmp_path / "full"))


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file where the runs should be")
    with pytest.raises(UserError, match="could not be written"):
        training.train(tiny.config(), home=tmp_path / "home")


def test_no_run_is_opened_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        Run.open(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"holds no run\.json"):
        Run.open(tmp_path)
