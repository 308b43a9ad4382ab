"""The documentation builds without a warning, a broken link among them, and describes what there is."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import metazoo
from metazoo.config import RunConfig, TrainingSettings

DOCS = Path(__file__).parents[1] / "docs"
TOOLS = ("sphinx", "furo", "myst_parser")


@pytest.mark.skipif(
    any(importlib.util.find_spec(tool) is None for tool in TOOLS), reason="no Sphinx here (pip install 'metazoo[docs]')"
)
def test_it_builds_strictly_and_fetches_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", str(tmp_path / "cache")]
    done = subprocess.run([*command, str(DOCS), str(tmp_path / "site")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r'<(?:script|img|iframe|link rel="stylesheet")\b[^>]*(?:src|href)="(https?:[^"]*)"', text)
        assert fetched == [], f"{page.name} needs the network"


def test_every_public_name_is_on_the_page_of_the_public_face() -> None:
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    described = re.findall(r"^\.\. auto\w+:: (\w+)$", text, flags=re.MULTILINE) + re.findall(r"^`(\w+)` is", text, re.M)
    assert sorted(described) == sorted(metazoo.__all__)


def test_every_setting_of_a_run_is_described() -> None:
    """In the table of `What each setting does`, with its default where that is a plain value."""
    section = (
        (DOCS / "training.md").read_text(encoding="utf-8").split("## What each setting does\n")[1].split("\n## ")[0]
    )
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| `")]
    described = {key: row for row in rows for key in re.findall(r"`([^`]+)`", row[0])}
    wanted = {name for name in RunConfig.model_fields if name != "training"}
    wanted |= {f"training.{name}" for name in TrainingSettings.model_fields}
    assert wanted - described.keys() == set(), "settings that no row describes"
    configurable = {key for key in described if not key.startswith("--")}
    assert configurable - wanted == set(), "rows of settings that there are not"
    for model, prefix in ((RunConfig, ""), (TrainingSettings, "training.")):
        for name, field in model.model_fields.items():
            row = described.get(prefix + name)
            if row and isinstance(field.default, int | float) and not isinstance(field.default, bool):
                numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", row[2])]
                assert float(field.default) in numbers, f"the default of {prefix}{name}, {field.default}"
