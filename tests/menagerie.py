"""The menagerie of `archives.py` in a folder, and an empty home to pack it into."""

from __future__ import annotations

from pathlib import Path

import pytest
from archives import SPLITS, tiny_tree, write_folder

NAMES = [name for names in SPLITS.values() for name in names]


@pytest.fixture(name="folder")
def tiny_folder(tmp_path):
    return write_folder(tmp_path / "folder", tiny_tree())


@pytest.fixture(name="home")
def empty_home(tmp_path):
    return tmp_path / "home"


def left_in(home: Path) -> list[str]:
    """What lies in the home, lock files aside."""
    return sorted(path.name for path in home.glob("*") if path.suffix != ".lock") if home.exists() else []


def by_split(tree):
    return {split: {n: c for n, c in tree.items() if n.split("/")[0] in names} for split, names in SPLITS.items()}
