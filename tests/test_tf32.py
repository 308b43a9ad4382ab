"""What `float32` and `tf32` mean on a GPU, and where tf32 can be trained and evaluated. No test needs a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tiny import tiny_sets  # noqa: F401

from metazoo import evaluation, outer_loop, precision, training
from metazoo.backbones import Mlp, create
from metazoo.benchmarks.speed import bench
from metazoo.config import RunConfig, TrainingSettings, identity
from metazoo.errors import UserError
from metazoo.precision import arithmetic
from metazoo.progress import Message, Reporter
from metazoo.run import Run

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


def switches() -> tuple[str, ...]:
    """torch's own, which are there on every machine."""
    cudnn: Any = torch.backends.cudnn
    return cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, torch.backends.cuda.matmul.fp32_precision


class Notes(Reporter):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def send(self, message: Message) -> None:
        if message.kind == "note":
            self.texts.append(message.text)


@pytest.mark.parametrize(("asked", "set_to"), [("float32", "ieee"), ("bfloat16", "ieee"), ("tf32", "tf32")])
def test_the_switches_are_set_and_put_back(asked: Any, set_to: str) -> None:
    before = switches()
    assert before[:2] == ("tf32", "tf32")  # torch's defaults: what it calls float32 is not
    with arithmetic(asked, GPU):
        assert set(switches()) == {set_to} and torch.backends.cudnn.deterministic
        with arithmetic("float32", GPU):
            assert set(switches()) == {"ieee"}
        assert set(switches()) == {set_to}
    assert switches() == before and not torch.backends.cudnn.deterministic
    with pytest.raises(ZeroDivisionError), arithmetic(asked, GPU):
        raise ZeroDivisionError
    assert switches() == before
    with arithmetic(asked, CPU):
        assert switches() == before


@pytest.mark.parametrize(
    ("capability", "cuda", "there"), [((7, 5), "13.0", False), ((8, 0), "13.0", True), ((9, 0), None, False)]
)
def test_which_gpus_have_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], cuda: str | None, there: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert precision.has_tf32(GPU) == there
    assert not precision.has_tf32(CPU)


def test_it_is_part_of_a_run() -> None:
    plain = RunConfig(algorithm="maml", source="glyphs")
    changed = plain.model_copy(update={"training": TrainingSettings(precision="tf32")})
    assert changed.model_dump(mode="json")["training"]["precision"] == "tf32"
    assert identity(plain, "data", "code") != identity(changed, "data", "code")


def test_any_network_can() -> None:
    create(Mlp.Settings(), (2,), 1).compute_in("tf32")


def test_a_training_on_a_cpu_is_refused(tiny_sets: None, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(UserError, match=r"tf32 is an arithmetic of NVIDIA's GPUs.*cpu has not; train with --precision"):
        training.train(tiny.config(precision="tf32"), home=tmp_path / "runs", device="cpu")
    assert not (tmp_path / "runs").exists()


def test_a_measurement_on_a_cpu_is_refused() -> None:
    with pytest.raises(UserError, match="tf32 is an arithmetic of NVIDIA's GPUs"):
        bench.measure("maml", "omniglot-5w1s", "training", CPU, "tf32")


def test_training_and_evaluation_are_inside(
    tiny_sets: None,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the CPU taken for such a GPU: every outer step, validation and test computes with the switches set."""
    seen: list[tuple[str, ...]] = []

    def watch(module: Any, name: str, what: str) -> None:
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: seen.append((what, *switches())) or original(*a, **k))

    class Anywhere:
        type = "cuda"

    for module in (training, evaluation):
        monkeypatch.setattr(module, "arithmetic", lambda asked, device: arithmetic(asked, Anywhere()))
    watch(outer_loop.Trainer, "_step", "training")
    watch(outer_loop, "episode_scores", "validation")
    watch(evaluation, "episode_scores", "test")
    before, notes = switches(), Notes()
    with monkeypatch.context() as patch:
        patch.setattr(precision, "has_tf32", lambda device: True)
        run = training.train(tiny.config(precision="tf32"), home=tmp_path, device="cpu")
        evaluation.evaluate(run, episodes=2, device="cpu", rules=["last"], reporter=notes)
    assert {what for what, *_ in seen} == {"training", "validation", "test"}
    assert {switch for _, *both in seen for switch in both} == {"tf32"}
    assert switches() == before and not notes.texts
    notes = Notes()
    evaluation.evaluate(Run.open(run.folder), episodes=3, device="cpu", rules=["last"], reporter=notes)
    assert notes.texts == ["This run was trained in tf32, which cpu has not; it is evaluated in float32."]
