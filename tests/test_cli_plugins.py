"""`metazoo list`, `new-algorithm` and `check` as their user meets them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from metazoo import registry
from metazoo.cli import app
from metazoo.errors import UserError


@pytest.fixture(autouse=True)
def fresh_catalogue(monkeypatch: pytest.MonkeyPatch) -> registry.Catalogue:
    """What a test registers is gone after it."""
    catalogue = registry.Catalogue()
    catalogue.discover()
    monkeypatch.setattr(registry, "_catalogue", lambda: catalogue)
    return catalogue


def run(*arguments: object) -> str:
    """What the command prints; its UserError is raised."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception:
        raise result.exception
    return result.output


def test_list_shows_every_method_and_what_failed(fresh_catalogue: registry.Catalogue) -> None:
    fresh_catalogue.failures["metazoo.algorithms.half_written"] = "SyntaxError: invalid syntax"
    output = run("list")
    for name in registry.algorithms():
        assert f"\n{name} " in output or output.startswith(name)
    assert "failed metazoo.algorithms.half_written: SyntaxError" in output


def test_list_shows_one_with_its_settings_and_deviations() -> None:
    output = " ".join(run("list", "cxgrad").split())
    assert "context_size 100" in output
    assert "Deviation 1: The context's update before the first step" in output
    with pytest.raises(UserError, match="did you mean 'cxgrad'"):
        run("list", "cxgrat")


def test_the_skeleton_passes_its_own_test_and_the_contract(tmp_path: Path) -> None:
    output = run("new-algorithm", "my_method", "--dir", tmp_path)
    assert f"metazoo check {tmp_path / 'my_method.py'}" in output
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_method.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "ok     A task gets the same result alone" in run("check", tmp_path / "my_method.py")
    assert "my_method" in run("list", "--plugin", tmp_path / "my_method.py")


@pytest.mark.parametrize("name", ["MyMethod", "my-method", "1st", "a b"])
def test_names_that_cannot_be(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot name a method"):
        run("new-algorithm", name, "--dir", tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text("precious")
    with pytest.raises(UserError, match="exists already"):
        run("new-algorithm", "mine", "--dir", tmp_path)
    assert (tmp_path / "test_mine.py").read_text() == "precious"
    assert not (tmp_path / "mine.py").exists()


def test_check_ends_with_an_error_on_a_fault(tmp_path: Path) -> None:
    plugin = tmp_path / "cheat.py"
    plugin.write_text(
        """
from metazoo.algorithms.maml import MAML

class Cheat(MAML):
    name, title, paper = "cheat", "Cheat", "None."

    def begin(self, tasks):
        tasks.weights["head.bias"] = tasks.weights["head.bias"] + tasks.episodes.query_y[:, :3]
"""
    )
    result = CliRunner().invoke(app, ["check", str(plugin)])
    assert isinstance(result.exception, UserError)
    assert "FAULT  Does not read the query labels" in result.output


def test_check_takes_the_name_of_a_method() -> None:
    assert run("check", "maml").count("  ok ") == 11
