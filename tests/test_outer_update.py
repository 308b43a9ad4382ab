"""The outer update: its state goes from device to device, and nothing in a step waits for the device."""

from __future__ import annotations

from typing import Any

import pytest
import tape
import tiny
import torch
from tape import Watch
from tiny import tiny_sets  # noqa: F401
from torch import nn

from metazoo.algorithm import OuterGroup
from metazoo.config import TrainingSettings, resolve
from metazoo.domains import open_domain
from metazoo.fast import native
from metazoo.outer_loop import Trainer
from metazoo.outer_step import OuterStep
from metazoo.outer_update import OuterUpdate
from metazoo.progress import Reporter

CPU = torch.device("cpu")


def update(parameter: nn.Parameter, fused: bool) -> OuterUpdate:
    made = OuterUpdate([OuterGroup([parameter])], TrainingSettings(outer_lr=0.1), CPU)
    made._fused = fused or None
    made.restart()
    return made


def moved(parameter: nn.Parameter, made: OuterUpdate, steps: int) -> None:
    for step in range(steps):
        parameter.grad = torch.full_like(parameter, 1.0 + step)
        made.step()


@pytest.mark.parametrize("fused", [True, False])
def test_a_state_can_be_taken_up_by_another_kind_of_adam(fused: bool) -> None:
    straight, first = (nn.Parameter(torch.ones(3)) for _ in range(2))
    whole = update(straight, fused=False)
    moved(straight, whole, 3)
    before = update(first, fused)
    moved(first, before, 3)
    after = update(first, not fused)
    after.load_state_dict(before.state_dict())
    assert [group["fused"] for group in after._adam.param_groups] == [(not fused) or None]
    moved(straight, whole, 2)
    moved(first, after, 2)
    torch.testing.assert_close(first, straight)
    assert after._adam.state[first]["step"] == 5


CASES: dict[str, dict[str, Any]] = {
    "clamp": {"gradient_clamp": 0.1, "legacy_restart_every": 2},
    "norm": {"algorithm": "relationnet", "settings": {}},
    "two parts": {"algorithm": "cxgrad", "meta_batch": 3},
    "groups": {"algorithm": "mamlpp"},
}


@pytest.mark.usefixtures("tiny_sets")
@pytest.mark.parametrize("case", CASES)
def test_nothing_in_a_step_waits_for_the_device(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.functional, "one_hot", tape.one_hot)
    config = resolve(tiny.config(**CASES[case]), tiny.SIZE)
    subject = Trainer(config, open_domain(config.source), CPU, 2, Reporter(), record_gradients=True)
    subject.update._fused = True  # as on a GPU
    subject.update.restart()
    size = config.training.meta_batch
    batches = [subject.stream.batch(size * number, size) for number in range(3)]
    with native.set_aside(), Watch():
        for batch in batches:
            subject._step(OuterStep(), batch)
            subject.iteration += 1
    assert float(subject.loss_sum) > 0
