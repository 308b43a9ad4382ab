"""The benchmark of an ensemble's passes runs and records every way."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from metazoo.benchmarks.speed import committee


def test_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "committee.json"
    monkeypatch.setitem(committee.CASES, "cifar_fs-5w1s", (committee.conv4, committee.images, 1))
    monkeypatch.setattr(sys, "argv", f"it --methods maml --members 2 --rounds 1 --json {file}".split())
    committee.main()
    found = json.loads(file.read_text())["microseconds"]
    assert found.keys() == {"sinusoid maml", "cifar_fs-5w1s maml"}
    assert all(len(ways) == 4 and min(ways.values()) > 0 for ways in found.values())
