"""What a training records of its gradients: the norms themselves, and that nothing else changes for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from test_checkpoint import assert_same, crashing_at, flatten, results
from tiny import tiny_sets  # noqa: F401
from torch.func import functional_call
from torch.nn import functional as F

from metazoo import training
from metazoo.algorithms.anil import ANIL
from metazoo.algorithms.cxgrad import CxGrad
from metazoo.algorithms.maml import MAML
from metazoo.algorithms.modgrad import ModGrad
from metazoo.gradient_norms import GradientRecord, NormSums
from metazoo.outer_step import OuterStep
from metazoo.progress import Message, Reporter
from metazoo.run import Run
from metazoo.testing import tiny_algorithm, tiny_episodes


@pytest.fixture(autouse=True)
def sets(tiny_sets: None) -> None:  # noqa: F811
    """The tiny data sets are known to every test here."""


def recorded(algorithm: Any, tasks: int = 2) -> dict[str, float | None]:
    """The mean norms of one meta-step's inner gradients, by tensor."""
    norms = NormSums()
    algorithm.learn(tiny_episodes(tasks), OuterStep(gradient_norms=norms))
    return {name: float(total[0] / total[1]) for name, total in norms.totals.items()}


def descent(algorithm: Any, weights: dict[str, torch.Tensor], lr: float, steps: int, task: int) -> list[dict[str, Any]]:
    """The norms at each step of plain gradient descent on a task's support set, by torch alone."""
    episodes, norms = tiny_episodes(2), []
    everything = {**dict(algorithm.backbone.named_parameters())}
    for _ in range(steps):
        leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        outputs = functional_call(algorithm.backbone, {**everything, **leaves}, (episodes.support_x[task],))
        loss = F.cross_entropy(outputs, episodes.support_y[task])
        gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        norms.append({name: float(gradient.norm()) for name, gradient in gradients.items()})
        weights = {name: leaves[name] - lr * gradients[name] for name in leaves}
    return norms


def mean(norms: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(step[name] for step in norms) / len(norms) for name in norms[0]}


def test_the_norms_are_those_of_the_support_gradients_over_steps_and_tasks() -> None:
    algorithm = tiny_algorithm(MAML, MAML.Settings(inner_steps=3, inner_lr={"body": 0.1, "head": 0.1}))
    weights = {
        name: algorithm.backbone.get_parameter(name)
        for name, role in algorithm.backbone.roles().items()
        if role in ("body", "head")
    }
    expected = mean([step for task in (0, 1) for step in descent(algorithm, weights, 0.1, 3, task)])
    assert recorded(algorithm) == pytest.approx(expected, rel=1e-5)


def test_cxgrads_gradients_are_at_the_rescaled_weights_and_its_first_look_is_not_counted() -> None:
    algorithm = tiny_algorithm(CxGrad, CxGrad.Settings(inner_steps=1, context_lr=0.0, context_size=5))
    assert isinstance(algorithm, CxGrad)
    factors = algorithm.scaler(torch.zeros(5, dtype=torch.float64))
    weights = {name: algorithm.backbone.get_parameter(name) for name in ("head.weight", "head.bias")}
    for factor, name in zip(factors, algorithm.scaled, strict=True):
        weight = algorithm.backbone.get_parameter(name)
        weights[name] = factor * weight / weight.norm()
    expected = mean([step for task in (0, 1) for step in descent(algorithm, weights, 0.0, 1, task)])
    assert recorded(algorithm) == pytest.approx(expected, rel=1e-5)
    norms = NormSums()
    algorithm.learn(tiny_episodes(2), OuterStep(gradient_norms=norms))
    assert {int(total[1]) for total in norms.totals.values()} == {2}


def test_only_tensors_that_move_are_counted() -> None:
    assert recorded(tiny_algorithm(ANIL)).keys() == {"head.weight", "head.bias"}
    assert recorded(tiny_algorithm(ModGrad)).keys() == {"body.block3.conv.weight", "body.block4.conv.weight"}


METHODS: dict[str, dict[str, Any]] = {
    "maml": {"inner_steps": 2},
    "fomaml": {"inner_steps": 2},
    "boil": {},
    "cxgrad": {"inner_steps": 2, "context_size": 5},
    "metagna": {"inner_steps": 1},
    "reptile": {"inner_steps": 2},
    "mgaug": {},
}


@pytest.mark.parametrize("name", METHODS)
def test_recording_changes_no_number_of_a_training(name: str, tmp_path: Path) -> None:
    config = tiny.config(algorithm=name, settings=METHODS[name], epochs=2, iterations_per_epoch=2)
    plain = training.train(config, home=tmp_path / "plain")
    run = training.train(config, home=tmp_path / "recorded", record_gradients=True)
    assert run.name == plain.name, "recording is no part of what a run is"
    (best, log, last), (plain_best, plain_log, plain_last) = results(run), results(plain)
    for line in log:
        norms = line.pop("gradient_norms")
        assert len(norms["iterations"]) == 2 and norms["inner"] and norms["outer"]
    assert last.pop("gradient_norms")
    assert (best, log) == (plain_best, plain_log)
    for value, other in zip(flatten(last), flatten(plain_last), strict=True):
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other


def test_the_meta_gradient_is_that_of_the_whole_meta_batch(tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []
    step = torch.optim.Adam.step

    def watched(self: torch.optim.Adam) -> None:
        seen.append([float(p.grad.norm()) for group in self.param_groups for p in group["params"]])
        step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", watched)
        config = tiny.config(epochs=1, iterations_per_epoch=2, meta_batch=3)
        run = training.train(config, home=tmp_path, record_gradients=True, tasks_per_pass=2)
    (line,) = run.metrics
    outer = line["gradient_norms"]["outer"]
    for part in (0, 1):
        assert [values[part] for values in outer.values()] == pytest.approx(seen[part], rel=1e-5)


def test_a_stopped_training_goes_on_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny.config()
    straight = training.train(config, home=tmp_path / "straight", record_gradients=True)
    with crashing_at(6, monkeypatch):
        training.train(config, home=tmp_path / "stopped", record_gradients=True)
    assert_same(straight, training.train(config, home=tmp_path / "stopped"))


def test_a_finished_run_says_that_it_did_not_record(tmp_path: Path) -> None:
    notes: list[str] = []

    class Noting(Reporter):
        def send(self, message: Message) -> None:
            if message.kind == "note":
                notes.append(message.text)

    run = training.train(tiny.config(), home=tmp_path)
    before = (run.folder / "metrics.jsonl").read_bytes()
    training.train(tiny.config(), home=tmp_path, record_gradients=True, reporter=Noting())
    (note,) = notes
    assert "without recording gradients" in note and (run.folder / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("iterations", [1, 4, 10, 13, 500])
def test_the_parts_of_an_epoch_cover_it(iterations: int) -> None:
    record, parts = GradientRecord(iterations), []
    for iteration in range(2 * iterations, 3 * iterations):
        record.enter(iteration)
        parts.append(record.inner.part)
        norms = NormSums()
        norms.add({"w": torch.full((2, 3), float(iteration))})
        record.inner.add(norms.totals)
    closed = record.close_epoch(3 * iterations)
    assert parts == sorted(parts) and set(parts) == set(range(min(10, iterations)))
    ends = [
        2 * iterations + last
        for last in range(1, iterations + 1)
        if last == iterations or parts[last] != parts[last - 1]
    ]
    assert closed["iterations"] == ends
    lasts = [3**0.5 * (end - 1) for end in ends]
    assert all(value <= last * (1 + 1e-5) for value, last in zip(closed["inner"]["w"], lasts, strict=True))
    assert record.close_epoch(3 * iterations)["inner"] == {}, "an epoch begins with nothing"


def test_what_is_recorded_is_json(tmp_path: Path) -> None:
    run: Run = training.train(tiny.config(epochs=1), home=tmp_path, record_gradients=True)
    text = (run.folder / "metrics.jsonl").read_text(encoding="utf-8")
    norms = json.loads(text, parse_constant=lambda word: pytest.fail(word))["gradient_norms"]
    assert norms["iterations"] == [1, 2, 3, 4] and norms["inner"].keys() == {
        *(f"body.block{block}.conv.weight" for block in (1, 2, 3, 4)),
        *("head.weight", "head.bias"),
    }
