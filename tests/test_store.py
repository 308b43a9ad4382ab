"""Stores: reading them back, noticing damage, and finding the right one."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from archives import EACH, SPLITS, pixels, tiny_sheet, tiny_tree, write_tar
from menagerie import NAMES, by_split, empty_home, tiny_folder  # noqa: F401

import metazoo.data.dataset
from metazoo.data.dataset import Layout, image_set
from metazoo.data.packing import pack
from metazoo.data.store import Manifest, Store, data_home, open_store, prepared
from metazoo.errors import UserError


def test_verify_names_the_file_whose_bytes_changed(folder, home):
    store = pack(tiny_sheet(), [folder], home=home)
    store.verify()
    content = bytearray(store.file("val").read_bytes())
    content[100] ^= 1
    store.file("val").write_bytes(content)
    with pytest.raises(UserError, match=r"menagerie-8/val\.bin differs from what was packed") as caught:
        store.verify()
    assert "train.bin" not in str(caught.value)


def test_a_store_with_a_file_cut_short_or_missing_does_not_open(folder, home):
    store = pack(tiny_sheet(), [folder], home=home)
    os.truncate(store.file("test"), 100)
    with pytest.raises(UserError, match=r"test\.bin has 100 bytes where 1536 are expected"):
        Store.open(store.path)
    store.file("test").unlink()
    with pytest.raises(UserError, match=r"test\.bin is missing"):
        Store.open(store.path)


def test_a_damaged_manifest_is_a_sentence(folder, home):
    store = pack(tiny_sheet(), [folder], home=home)
    path = store.path / "manifest.json"
    whole = path.read_text()
    for length in range(0, len(whole) - 2, 7):
        path.write_text(whole[:length])
        with pytest.raises(UserError, match="is damaged"):
            Manifest.read(path)
    for text in ("[]", "null", "{}", '"manifest"', '{"format": 1}'):
        path.write_text(text)
        with pytest.raises(UserError, match=r"manifest\.json is (damaged|in format)"):
            Manifest.read(path)
    path.write_text(whole.replace('"format": 1', '"format": 2'))
    with pytest.raises(UserError, match="is in format 2"):
        Manifest.read(path)
    path.write_text(whole.replace("dog", "cow"))
    with pytest.raises(UserError, match="was changed after it was written"):
        Manifest.read(path)


def test_the_identity_is_of_what_is_held_and_not_of_where_it_came_from(folder, home):
    manifest = pack(tiny_sheet(), [folder], home=home).manifest
    assert replace(manifest, source=(), form="elsewhere", title="Zoo").identity == manifest.identity
    changed = [{"size": 9}, {"mean": (0.0, 0.0, 0.0)}, {"resize": "nearest"}, {"name": "zoo"}, {"splits": {}}]
    assert len({replace(manifest, **change).identity for change in changed} | {manifest.identity}) == 6


def test_the_manifest_says_what_was_read(tmp_path, home):
    sources = [write_tar(tmp_path / f"{split}.tar", part) for split, part in by_split(tiny_tree()).items()]
    manifest = pack(tiny_sheet(), sources, home=home).manifest
    assert manifest.form == "class folders"
    for path, entry in zip(sources, manifest.source, strict=True):
        content = path.read_bytes()
        assert entry == {"file": path.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert json.loads((home / "menagerie-8" / "manifest.json").read_text())["identity"] == manifest.identity


@pytest.fixture
def known(monkeypatch):
    """Make metazoo know the menagerie, and an embedded relative of it."""

    class Embedded(metazoo.data.dataset.DataSet):
        def layout(self, sources=(), size=None):
            classes = {split: {n: [f"{n}/{i}" for i in range(EACH)] for n in names} for split, names in SPLITS.items()}
            images = [(f"{n}/{i}", pixels(n, i, size)) for n in NAMES for i in range(EACH)]
            return Layout(classes, lambda: iter(images), "drawn")

    facts = vars(tiny_sheet(name="drawn", embedded=True, recognisers=()))
    sheets = {"menagerie": tiny_sheet(), "drawn": Embedded(**facts)}
    monkeypatch.setattr("metazoo.data.dataset.published", lambda: sheets)


def test_what_is_not_prepared_says_how_to(known, home):
    with pytest.raises(UserError, match=r"run: metazoo data prepare menagerie --from PATH\. Ask the tests\."):
        open_store("menagerie", home=home)
    with pytest.raises(UserError, match="prepare menagerie --from PATH --size 84"):
        open_store("menagerie", 84, home)


def test_an_unknown_data_set_names_the_nearest(known, home):
    with pytest.raises(UserError, match="no data set called 'managerie'; did you mean 'menagerie'"):
        open_store("managerie", home=home)


def test_an_embedded_data_set_is_built_when_it_is_opened(known, home):
    store = open_store("drawn", 11, home)
    np.testing.assert_array_equal(store.split("train").images[1], pixels("ant", 1, 11).transpose(2, 0, 1))
    modified = store.file("train").stat().st_mtime_ns
    assert open_store("drawn", 11, home).file("train").stat().st_mtime_ns == modified
    assert [path.name for path, _ in prepared(home)] == ["drawn-11"]


def test_a_store_of_another_version_is_not_taken_for_today_s(known, folder, home, monkeypatch):
    pack(image_set("menagerie"), [folder], home=home)
    drawn = open_store("drawn", home=home).split("train").images.shape
    now = {
        "menagerie": replace(image_set("menagerie"), resample="lanczos"),
        "drawn": replace(image_set("drawn"), channels=1),
    }
    monkeypatch.setattr("metazoo.data.dataset.published", lambda: now)
    with pytest.raises(UserError, match=r"at 8 pixels was prepared by another version .*prepare menagerie --from PATH"):
        open_store("menagerie", home=home)
    assert pack(now["menagerie"], [folder], home=home).manifest.resize == "lanczos"
    assert (drawn[1], open_store("drawn", home=home).split("train").images.shape[1]) == (3, 1)


def test_a_split_that_does_not_exist(folder, home):
    with pytest.raises(UserError, match="Menagerie has no split 'dev'; it has train, val, test"):
        pack(tiny_sheet(), [folder], home=home).split("dev")


def test_home_is_the_argument_then_the_variable_then_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("METAZOO_DATA", str(tmp_path / "variable"))
    assert data_home(tmp_path / "argument") == tmp_path / "argument"
    assert data_home() == tmp_path / "variable"
    monkeypatch.delenv("METAZOO_DATA")
    assert data_home() == Path.home() / ".cache" / "metazoo" / "data"
