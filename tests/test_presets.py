"""Presets: every one of them is a config that can be trained, and mistakes are sentences."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from metazoo import assembly, presets, registry
from metazoo.backbones import Conv4, ResNet12
from metazoo.config import RunConfig, resolve
from metazoo.data.inputs import ImageInputs
from metazoo.errors import UserError
from metazoo.schema import parse

FOLDER = Path(import_module("metazoo.benchmarks").__path__[0]) / "presets"
ALL = [(path.stem, name) for path in sorted(FOLDER.glob("*.yaml")) for name in presets.presets(path.stem)]


def config(method: str, name: str, shots: int, **changes: Any) -> RunConfig:
    values = presets.preset(method, name).values(shots)
    return resolve(
        parse(RunConfig, {"algorithm": method, "source": "any", "shots": shots, **values, **changes}, name), 84
    )


@pytest.mark.parametrize(("method", "name"), ALL)
@pytest.mark.parametrize("shots", [1, 5])
def test_every_preset_is_a_config_whose_method_can_be_built(method: str, name: str, shots: int) -> None:
    found = config(method, name, shots)
    assert isinstance(found.backbone, (Conv4.Settings, ResNet12.Settings))
    if getattr(found.backbone, "filters", 64) <= 64 and not found.settings.get("full_context_embeddings"):
        assembly.build(found, ImageInputs(channels=3, mean=[0.5] * 3, std=[0.2] * 3))
    preset = presets.preset(method, name)
    assert preset.about.endswith(".") and preset.evidence


def test_every_preset_is_of_a_method() -> None:
    assert ALL and {method for method, _ in ALL} <= registry.algorithms().keys()


def test_what_depends_on_the_shots(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "maml.yaml").write_text(
        "mine: {about: 'Mine.', evidence: none, training: {epochs: 7}, per_shots: {5: {meta_batch: 2}}}\n"
    )
    monkeypatch.setattr(presets, "_folder", lambda: tmp_path)
    assert config("maml", "mine", 1).training.meta_batch == 4
    assert config("maml", "mine", 5).training.meta_batch == 2
    assert config("maml", "mine", 5).training.epochs == 7
    with pytest.raises(UserError, match="did you mean 'mine'"):
        presets.preset("maml", "mime")
    with pytest.raises(UserError, match="There are no presets for 'anil'"):
        presets.preset("anil", "mine")
    (tmp_path / "maml.yaml").write_text("mine: {about: 'Mine.', evidence: none, batch: 7}\n")
    with pytest.raises(UserError, match="unknown key 'batch'"):
        presets.presets("maml")
