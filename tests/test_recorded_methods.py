"""Recorded committees and whole trainings are what they are without a recording; methods are in test_pretended_gpu."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tape
import tiny
import torch
from tape import Tapes, episodes
from test_checkpoint import assert_same, crashing_at
from tiny import tiny_sets  # noqa: F401

from metazoo import graphs, registry, training
from metazoo.algorithm import Algorithm
from metazoo.backbones import Conv4
from metazoo.committee import Committee
from metazoo.errors import Diverged
from metazoo.fast import native
from metazoo.testing import tiny_algorithm

DRAWS_ON_THE_HOST = {"mgaug"}


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU is not asked whether labels are in range, and runs none of the kernels for CPUs, which no tape can see."""
    monkeypatch.setattr(torch.nn.functional, "one_hot", tape.one_hot)
    with native.set_aside():
        yield


def make(name: str) -> Algorithm:
    method = registry.algorithm(name)
    settings: dict[str, Any] = {}
    if "inner_steps" in method.Settings.model_fields:
        settings = {"inner_steps": 2}
    elif "base_settings" in method.Settings.model_fields:
        settings = {"base_settings": {"inner_steps": 2}}
    return tiny_algorithm(method, method.Settings.model_validate(settings), Conv4.Settings(filters=4))


@pytest.mark.parametrize(("name", "stacked"), [("maml", True), ("cxgrad", True), ("mamlpp", False)])
def test_a_recorded_committee_predicts_as_ever(name: str, stacked: bool) -> None:
    members = [make(name), make(name)]
    with torch.no_grad():
        for parameter in members[1].parameters():
            parameter.mul_(1.1)
    tapes, plain = Tapes(), Committee(members)
    recorded = Committee(members, tapes)
    for seed in range(6):
        batch = episodes(seed, tasks=3)
        for found, expected in zip(recorded.predict(batch, 4), plain.predict(batch, 4), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert recorded.is_stacked is stacked
    assert tapes.records == 2, "stacked passes of two episodes and of one, or a pass of each member"


def trained(home: Path, monkeypatch: pytest.MonkeyPatch, tapes: Tapes | None, **changes: Any) -> Any:
    with monkeypatch.context() as patch:
        if tapes is not None:
            patch.setattr(graphs, "recorder", lambda device: tapes)
        record_gradients = changes.pop("record_gradients", False)
        tasks_per_pass = changes.pop("tasks_per_pass", None)
        short = {"epochs": 2, "iterations_per_epoch": 6, "settings": {"inner_steps": 1}}
        config = tiny.config(**{**short, **changes})
        return training.train(config, home=home, record_gradients=record_gradients, tasks_per_pass=tasks_per_pass)


CASES: dict[str, dict[str, Any]] = {
    "maml": {},
    "parts": {"meta_batch": 5, "tasks_per_pass": 2, "record_gradients": True, "first_order_epochs": 1},
    "schedules": {"algorithm": "mamlpp", "settings": {"inner_steps": 2}, "epochs": 3, "gradient_clamp": 0.1},
    "restarts": {"algorithm": "l2f", "legacy_restart_every": 4},
    "cannot": {"algorithm": "mgaug", "settings": {"base_settings": {"inner_steps": 1}}, "iterations_per_epoch": 3},
}


@pytest.mark.usefixtures("tiny_sets")
@pytest.mark.parametrize("case", CASES)
def test_a_recorded_training_is_the_training(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tapes = Tapes()
    run = trained(tmp_path / "recorded", monkeypatch, tapes, **CASES[case])
    assert_same(trained(tmp_path / "plain", monkeypatch, None, **CASES[case]), run)
    assert tapes.records >= 1


@pytest.mark.usefixtures("tiny_sets")
def test_a_recorded_training_goes_on_from_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = trained(tmp_path / "straight", monkeypatch, Tapes())
    with crashing_at(9, monkeypatch):
        trained(tmp_path / "stopped", monkeypatch, Tapes())
    assert_same(straight, trained(tmp_path / "stopped", monkeypatch, None))


@pytest.mark.usefixtures("tiny_sets")
def test_a_recorded_training_that_diverges_ends_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"inner_steps": 2, "inner_lr": {"body": 1e30, "head": 1e30}}
    with pytest.raises(Diverged):
        trained(tmp_path, monkeypatch, Tapes(), settings=settings)
