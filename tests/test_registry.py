"""Finding methods: built in, plugin files, and what goes wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from metazoo import registry
from metazoo.backbones import Conv4
from metazoo.errors import UserError

PLUGIN = """
from metazoo.algorithms.boil import BOIL

class Mine(BOIL):
    name = "{name}"
    title = "Mine"
    paper = "Nobody: nothing."
"""


@pytest.fixture(autouse=True)
def fresh_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    catalogue = registry.Catalogue()
    catalogue.discover()
    monkeypatch.setattr(registry, "_catalogue", lambda: catalogue)


def test_the_six_methods_are_there() -> None:
    assert {"maml", "fomaml", "anil", "boil", "metasgd", "l2f", "cxgrad"} <= registry.algorithms().keys()
    assert not registry.failures()


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UserError, match="no method called 'mmal'; did you mean 'maml'"):
        registry.algorithm("mmal")


def test_an_unknown_setting_names_the_nearest() -> None:
    network = Conv4((1, 16, 16), 3, Conv4.Settings(filters=2))
    with pytest.raises(UserError, match=r"settings of cxgrad: unknown key 'context_sise'; did you mean 'context_size'"):
        registry.create("cxgrad", network, {"context_sise": 3})


def test_a_plugin_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(PLUGIN.format(name="mine"))
    assert [method.name for method in registry.load_plugin(file)] == ["mine"]
    assert registry.algorithm("mine").title == "Mine"
    registry.load_plugin(file)  # the same file again is no conflict


def test_a_name_that_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(PLUGIN.format(name="maml"))
    with pytest.raises(UserError, match="Two methods are called 'maml'"):
        registry.load_plugin(file)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("import nowhere_to_be_found", "could not be imported: ModuleNotFoundError"), ("x = 1", "defines no method")],
)
def test_plugins_that_do_not_work(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "broken.py"
    file.write_text(text)
    with pytest.raises(UserError, match=sentence):
        registry.load_plugin(file)


def test_a_plugin_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no plugin file"):
        registry.load_plugin(tmp_path / "none.py")


def test_a_failing_module_is_listed_and_the_others_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken_method.py").write_text("raise ValueError('half written')")
    import metazoo.algorithms

    monkeypatch.setattr(metazoo.algorithms, "__path__", [*metazoo.algorithms.__path__, str(tmp_path)])
    catalogue = registry.Catalogue()
    catalogue.discover()
    assert catalogue.failures == {"metazoo.algorithms.broken_method": "ValueError: half written"}
    assert "maml" in catalogue.methods


def test_entry_points(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "installed_method.py"
    file.write_text(PLUGIN.format(name="installed"))
    monkeypatch.syspath_prepend(str(tmp_path))
    from importlib.metadata import EntryPoint

    points = [
        EntryPoint("installed", "installed_method:Mine", registry.GROUP),
        EntryPoint("gone", "not_installed_anywhere", registry.GROUP),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    catalogue = registry.Catalogue()
    catalogue.discover()
    assert catalogue.methods["installed"].title == "Mine"
    assert "No module named 'not_installed_anywhere'" in catalogue.failures["entry point gone"]
