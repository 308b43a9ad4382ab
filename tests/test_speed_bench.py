"""`metazoo bench`: both sides compute the same, and the command says what it measured."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from metazoo import registry
from metazoo.backbones import Conv4
from metazoo.benchmarks.speed import bench, plain
from metazoo.benchmarks.speed.shapes import Shape
from metazoo.cli import app
from metazoo.cost import Arithmetic
from metazoo.episodes import Episodes
from metazoo.errors import UserError
from metazoo.meta_pass import MetaPass, together
from metazoo.outer_step import OuterStep
from metazoo.testing import tiny_episodes

TINY = Shape("tiny", 3, 16, 16, 1, ways=3, queries=2)


@pytest.mark.parametrize("name", sorted(plain.SETTINGS))
def test_the_plain_loop_gives_the_methods_own_meta_gradient(name: str) -> None:
    torch.manual_seed(0)
    with torch.random.fork_rng():
        network = Conv4((3, 16, 16), 3, Conv4.Settings(filters=16))
        algorithm = registry.create(name, network, plain.SETTINGS[name]).double()
    loops = plain.baseline(name, algorithm)
    assert loops is not None
    holder = loops[0].__closure__[0].cell_contents
    holder.double()
    episodes: Episodes = tiny_episodes(2)
    loops[0](episodes)
    passes = MetaPass(algorithm, list(algorithm.parameters()), 1 / len(episodes))
    passes.give_gradients(together(partial(passes, outer=OuterStep()), list(episodes.chunks(1))))
    theirs = {parameter.grad.norm().item() for parameter in holder.parameters() if parameter.grad is not None}
    ours = {parameter.grad.norm().item() for parameter in algorithm.parameters() if parameter.grad is not None}
    torch.testing.assert_close(sorted(ours), sorted(theirs), atol=1e-10, rtol=1e-8)


def test_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench, "SHAPES", (TINY,))
    monkeypatch.setattr(bench, "in_fresh_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(bench, "copy_gigabytes", lambda device: 1.0)
    file = tmp_path / "bench.json"
    options = ["--device", "cpu", "--tasks", "1", "--rounds", "2", "--threads", "1", "--json", str(file)]
    result = CliRunner().invoke(app, ["bench", "maml", "protonet", *options])
    assert result.exit_code == 0, result.output
    record = json.loads(file.read_text())
    rows = {(row["method"], row["work"]): row for row in record["measured"]}
    assert rows.keys() == {(name, work) for name in ("maml", "protonet") for work in ("training", "evaluation")}
    assert rows["maml", "training"]["ratio"] > 0 and rows["protonet", "training"]["ratio"] is None
    assert rows["maml", "training"]["gflop_per_task"] > rows["maml", "evaluation"]["gflop_per_task"] > 0
    assert "tiny-3w1s" in result.output


def test_an_unknown_shape_is_named() -> None:
    result = CliRunner().invoke(app, ["bench", "maml", "--shape", "miniimagenet-5w6s"])
    assert isinstance(result.exception, UserError) and "miniimagenet-5w5s" in str(result.exception)


@pytest.mark.parametrize("name", sorted(plain.SETTINGS))
def test_operations_of_every_plain_loop_can_be_counted(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(bench, "SHAPES", (TINY,))
    _, theirs = bench.sides(name, "tiny-3w1s", "training", "cpu", "float32", 1, None)
    assert theirs is not None
    with Arithmetic() as counted:
        theirs()
    assert counted.flop > 0


def test_operations_of_one_convolution() -> None:
    with Arithmetic() as counted:
        torch.nn.functional.conv2d(torch.rand(2, 3, 8, 8), torch.rand(16, 3, 3, 3), padding=1)
    assert counted.flop == 2 * 2 * 8 * 8 * 16 * 3 * 9
