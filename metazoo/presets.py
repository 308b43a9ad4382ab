"""Presets: the settings a paper or its official code trained a method with, from `benchmarks/presets/METHOD.yaml`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from metazoo.config import Normalisation
from metazoo.errors import UserError, unknown
from metazoo.records import Rule
from metazoo.schema import Strict, parse, read_yaml


class Preset(Strict):
    """One set of settings of one method; what its source does not say is left out and takes our defaults."""

    about: str
    """Whose settings they are, and for which data."""
    evidence: str
    """How we know: read in the official code, recalled, our reading."""
    size: PositiveInt | None = None
    normalisation: Normalisation | None = None
    ways: PositiveInt | None = None
    shots: PositiveInt | None = None
    queries: PositiveInt | None = None
    backbone: dict[str, Any] = {}
    training: dict[str, Any] = {}
    per_shots: dict[PositiveInt, dict[str, Any]] = {}
    """Training settings that depend on the shots."""
    settings: dict[str, Any] = {}
    rule: Rule | None = None
    """The selection rule its numbers were made with."""
    episodes: PositiveInt | None = None
    """Test episodes its numbers were made with."""

    def values(self, shots: int) -> dict[str, Any]:
        """What it says of a run with so many shots, in the words of a RunConfig."""
        named = {key: getattr(self, key) for key in ("size", "normalisation", "ways", "queries")}
        values: dict[str, Any] = {key: value for key, value in named.items() if value is not None}
        for key, held in (
            ("backbone", self.backbone),
            ("training", {**self.training, **self.per_shots.get(shots, {})}),
            ("settings", self.settings),
        ):
            if held:
                values[key] = dict(held)
        return values


def presets(method: str) -> dict[str, Preset]:
    """The presets of a method by name; none where there is no file of them."""
    path = _folder() / f"{method}.yaml"
    if not path.is_file():
        return {}
    return {name: parse(Preset, values, f"{path}, {name}") for name, values in read_yaml(path).items()}


def preset(method: str, name: str) -> Preset:
    """The preset of that name; an unknown one is a UserError that names the nearest."""
    known = presets(method)
    if not known:
        raise UserError(f"There are no presets for '{method}'; leave the preset out, or name settings one by one.")
    if name not in known:
        raise unknown(f"preset of {method}", name, known)
    return known[name]


def _folder() -> Path:
    package = importlib.import_module("metazoo.benchmarks")
    return Path(package.__path__[0]) / "presets"
