"""The newcomer's path of the documentation is one that can be walked."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

import metazoo.cli
from metazoo.benchmarks.newcomer import Journey, documented, travel

ROOT = Path(__file__).parents[1]


def test_the_documented_path_is_short_and_ends_with_a_table() -> None:
    journey = documented(ROOT)
    assert list(journey.setup) == ["make setup"]
    assert len(journey.commands) == 2 and all(command.startswith("metazoo ") for command in journey.commands)
    assert f'name = "{Path(journey.file).stem}"' in journey.method
    assert all(journey.file in command for command in journey.commands)
    assert f"--add {Path(journey.file).stem}" in journey.commands[-1]


def test_its_last_command_compares_with_the_committed_records(tmp_path: Path) -> None:
    """All but the training, which takes minutes: the rows of the records are there, and one's own is missing."""
    journey = documented(ROOT)
    plugin = tmp_path / journey.file
    plugin.write_text(journey.method)
    words = journey.commands[-1].split()[1:]
    there = {journey.file: str(plugin), "site": str(tmp_path / "site")}
    words = [str(ROOT / word) if word.startswith("benchmarks/") else there.get(word, word) for word in words]
    done = CliRunner().invoke(metazoo.cli.app, [*words, "--show", "--runs", str(tmp_path / "runs")])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert page.count('<td class="result none"') == 1 and page.count('<td class="result"') == 7
    assert "BOIL, slow head" in page


def test_travelling_times_every_command_and_stops_at_one_that_fails(tmp_path: Path) -> None:
    journey = Journey(["echo set up > setup.txt"], "mine.py", "# mine\n", ["test -f mine.py", "test -f setup.txt"])
    times = travel(journey, tmp_path, with_setup=True)
    assert [each["setup"] for each in times] == [True, False, False]
    assert all(float(str(each["seconds"])) >= 0 for each in times)
    (tmp_path / "setup.txt").unlink()
    with pytest.raises(subprocess.CalledProcessError):
        travel(journey, tmp_path, with_setup=False)
