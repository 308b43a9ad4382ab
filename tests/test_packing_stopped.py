"""Packing is all or nothing, when it is killed half-way and when several pack at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from archives import tiny_sheet, tiny_tree, write_tar
from menagerie import empty_home, left_in, tiny_folder  # noqa: F401

from metazoo.data.packing import pack
from metazoo.data.store import Store, prepared
from metazoo.errors import UserError

INTERRUPTED = """
import os, signal, sys
sys.path[:0] = {path!r}
from pathlib import Path
from types import SimpleNamespace
from archives import tiny_sheet
from metazoo.data import packer, rows
from metazoo.data.packing import pack
packer.BATCH = 1
count = 0
put = rows.RowWriter.put
def killed(self, *arguments):
    global count
    count += 1
    if count == 20:
        os.kill(os.getpid(), signal.{signal})
    return put(self, *arguments)
rows.RowWriter.put = killed
pack(tiny_sheet(), [Path({source!r})], home=Path({home!r}), force={force})
"""


def interrupted(source: Path, home: Path, signal_name: str, force: bool = False) -> int:
    """Pack in another process that is sent a signal half-way; its exit status."""
    program = INTERRUPTED.format(path=sys.path, signal=signal_name, source=str(source), home=str(home), force=force)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=120).returncode


def test_a_packing_that_was_killed_leaves_no_store_and_the_next_one_cleans_up(folder, home):
    assert interrupted(folder, home, "SIGKILL") == -signal.SIGKILL
    assert left_in(home) == [".menagerie-8.partial"]
    assert prepared(home) == []
    store = pack(tiny_sheet(), [folder], home=home)
    store.verify()
    assert left_in(home) == ["menagerie-8"]


def test_an_interrupted_packing_leaves_nothing(folder, home):
    assert interrupted(folder, home, "SIGINT") != 0
    assert left_in(home) == []


@pytest.mark.parametrize("signal_name", ["SIGKILL", "SIGINT"])
def test_packing_again_keeps_the_old_store_until_the_new_one_is_whole(folder, home, signal_name):
    before = pack(tiny_sheet(), [folder], home=home).manifest
    assert interrupted(folder, home, signal_name, force=True) != 0
    store = Store.open(home / "menagerie-8")
    store.verify()
    assert store.manifest == before


def test_a_store_that_was_moved_aside_when_a_kill_came_is_put_back(folder, tmp_path, home):
    store = pack(tiny_sheet(), [folder], home=home)
    store.path.rename(home / ".menagerie-8.former")
    damaged = write_tar(tmp_path / "damaged.tar", tiny_tree() | {"gnu/0.png": b"not an image"})
    with pytest.raises(UserError, match="does not decode"):
        pack(tiny_sheet(), [damaged], home=home)
    assert left_in(home) == ["menagerie-8"]
    assert Store.open(store.path).manifest == store.manifest


def counting(sheet, monkeypatch):
    """How often the images are read."""
    calls = []
    recognise = sheet.recognisers[0]

    def recognised(*arguments):
        layout = recognise(*arguments)
        return replace(layout, images=lambda: calls.append(1) or layout.images())

    return replace(sheet, recognisers=(recognised,)), calls


def test_two_at_once_pack_once(folder, home, monkeypatch):
    sheet, calls = counting(tiny_sheet(), monkeypatch)
    stores = []
    threads = [threading.Thread(target=lambda: stores.append(pack(sheet, [folder], home=home))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == 4 and len(calls) == 1


def test_a_store_that_is_there_is_not_packed_again_unless_forced(folder, home, monkeypatch):
    sheet, calls = counting(tiny_sheet(), monkeypatch)
    pack(sheet, [folder], home=home)
    pack(sheet, [], home=home)
    assert len(calls) == 1
    pack(sheet, [folder], home=home, force=True)
    assert len(calls) == 2
