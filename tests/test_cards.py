"""Every method has its card, and the card says what the code says."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from metazoo import registry
from metazoo.algorithm import Algorithm

ROOT = Path(__file__).parent.parent
CARDS = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs" / "methods").glob("*.md"))}
METHODS = {
    name: method
    for name, method in registry.algorithms().items()
    if Path(inspect.getfile(method)).parent == ROOT / "algorithms"
}


def card(method: type[Algorithm]) -> str:
    """The one card that names the method's file in its head."""
    file = f"`algorithms/{Path(inspect.getfile(method)).name}`"
    found = [text for path, text in CARDS.items() if path.name != "README.md" and file in text.split("\n\n")[1]]
    assert len(found) == 1, f"{len(found)} cards name {file} below their title"
    return found[0]


def words(text: str) -> str:
    return re.sub(r"[\s`*]+", " ", text).strip()


@pytest.mark.parametrize("name", METHODS)
def test_the_card_names_paper_settings_and_deviations(name: str) -> None:
    method = METHODS[name]
    text = card(method)
    assert words(method.paper.partition(":")[0]) in words(text), "its authors"
    deviations = text.partition("**Deviations.**")[2].partition("\n\n")[0] if method.deviations else ""
    for number in range(1, len(method.deviations) + 1):
        assert f"{number}. " in deviations, f"deviation {number}"
    for setting in method.Settings.model_fields.keys() - {"first_order", "evaluation_steps", "inner_steps"}:
        assert f"`{setting}`" in text or f"`{setting}:" in text or f"{setting}:" in text, setting


@pytest.mark.parametrize("name", METHODS)
def test_the_list_of_cards_names_the_method(name: str) -> None:
    index = CARDS[ROOT / "docs" / "methods" / "README.md"]
    assert f"`{name}`" in index


def test_the_tests_know_every_method() -> None:
    """Each has golden numbers or a test file of its own."""
    tested = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / "methods").glob("test_*.py")}
    golden = (ROOT / "tests" / "test_golden.py").read_text(encoding="utf-8")
    for name, method in METHODS.items():
        stem = Path(inspect.getfile(method)).stem
        assert stem in tested or f'"{name}"' in golden, name
