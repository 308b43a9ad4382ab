"""Packing is all or nothing, when it is killed half-way and when several pack at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from archives import tiny_sheet, tiny_tree, write_tar
from menagerie import empty_home, left_in, tiny_folder  # noqa: F401

from metazoo.data import packer
from metazoo.data.dataset import DataSet
from metazoo.data.packing import pack
from metazoo.data.store import Store, prepared
from metazoo.errors import UserError

INTERRUPTED = """
import os, signal, sys, time
sys.path[:0] = {path!r}
from pathlib import Path
from types import SimpleNamespace
from archives import tiny_sheet
from metazoo.data import packer, rows
from metazoo.data.packing import pack
packer.BATCH = 1
packer.SMALL = {small}
count = 0
put = rows.RowWriter.put
def killed(self, batch):
    global count
    count += len(batch.names)
    if count == 20:
        journal = Path({home!r}) / ".menagerie-8.partial" / "journal.jsonl"
        while {small} == 0 and journal.read_text().count("\\n") < 4:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.{signal})
    return put(self, batch)
rows.RowWriter.put = killed
pack(tiny_sheet(ordered_by='content'), [Path({source!r})], home=Path({home!r}), force={force}, workers=0)
"""


def interrupted(source: Path, home: Path, signal_name: str, force: bool = False, small: int = 4096) -> int:
    """Pack in another process that is sent a signal half-way; its exit status."""
    program = INTERRUPTED.format(
        path=sys.path, signal=signal_name, source=str(source), home=str(home), force=force, small=small
    )
    return subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=120).returncode


def test_a_packing_that_was_killed_leaves_no_store_and_the_next_one_cleans_up(folder, home):
    assert interrupted(folder, home, "SIGKILL") == -signal.SIGKILL
    assert left_in(home) == [".menagerie-8.partial"]
    assert prepared(home) == []
    store = pack(tiny_sheet(), [folder], home=home)
    store.verify()
    assert left_in(home) == ["menagerie-8"]


def test_an_interrupted_packing_leaves_nothing(folder, home):
    assert interrupted(folder, home, "SIGINT") == -signal.SIGINT
    assert left_in(home) == []


@pytest.mark.parametrize("signal_name", ["SIGKILL", "SIGINT"])
def test_packing_again_keeps_the_old_store_until_the_new_one_is_whole(folder, home, signal_name):
    before = pack(tiny_sheet(ordered_by="content"), [folder], home=home).manifest
    assert interrupted(folder, home, signal_name, force=True) == -signal.Signals[signal_name]
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


@pytest.fixture
def written(monkeypatch):
    """The names of the images that this process writes."""
    names: list[str] = []
    put = packer.RowWriter.put
    monkeypatch.setattr(packer, "SMALL", 0)
    monkeypatch.setattr(packer.RowWriter, "put", lambda self, batch: names.extend(batch.names) or put(self, batch))
    return names


@pytest.mark.parametrize("signal_name", ["SIGKILL", "SIGINT"])
def test_a_packing_that_was_stopped_goes_on_where_it_was(folder, home, tmp_path, written, signal_name):
    sheet = tiny_sheet(ordered_by="content")
    assert interrupted(folder, home, signal_name, small=0) == -signal.Signals[signal_name]
    assert left_in(home) == [".menagerie-8.partial"] and prepared(home) == []
    store = pack(sheet, [folder], home=home, workers=0)
    assert len(written) < 28 - 8 and not any(name.startswith("folder/ant") for name in written)
    assert left_in(home) == ["menagerie-8"]
    assert sorted(path.name for path in store.path.iterdir()) == ["manifest.json", "test.bin", "train.bin", "val.bin"]
    store.verify()
    assert store.manifest == pack(sheet, [folder], home=tmp_path / "fresh", workers=0).manifest


def changed_image(folder: Path, sheet: DataSet) -> DataSet:
    (folder / "ant" / "0.png").write_bytes(tiny_tree()["bee/0.png"])
    return sheet


def changed_recipe(folder: Path, sheet: DataSet) -> DataSet:
    return replace(sheet, resample="lanczos")


def another_image(folder: Path, sheet: DataSet) -> DataSet:
    (folder / "ant" / "0.png").rename(folder / "ant" / "7.png")
    return sheet


@pytest.mark.parametrize("change", [changed_image, changed_recipe, another_image])
def test_a_packing_of_something_else_starts_afresh(folder, home, tmp_path, written, change):
    assert interrupted(folder, home, "SIGKILL", small=0) == -signal.SIGKILL
    sheet = change(folder, tiny_sheet(ordered_by="content"))
    store = pack(sheet, [folder], home=home, workers=0)
    assert len(written) == 28
    assert store.manifest == pack(sheet, [folder], home=tmp_path / "fresh", workers=0).manifest


@pytest.mark.parametrize(
    "damage", [lambda text: text[:-9], lambda text: "", lambda text: "{}\n" + text, lambda text: text + "x\n"]
)
def test_a_journal_that_is_damaged_does_no_harm(folder, home, tmp_path, written, damage):
    sheet = tiny_sheet(ordered_by="content")
    assert interrupted(folder, home, "SIGKILL", small=0) == -signal.SIGKILL
    file = home / ".menagerie-8.partial" / "journal.jsonl"
    file.write_text(damage(file.read_text()))
    assert (
        pack(sheet, [folder], home=home, workers=0).manifest
        == pack(sheet, [folder], home=tmp_path / "fresh", workers=0).manifest
    )


def test_processes_end_with_one_that_is_killed(tmp_path):
    program = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "import os, signal\nfrom lethal import Lethal\nfrom metazoo.data.workers import Workers\n"
        "pool = Workers(2, Lethal())\nassert pool.submit('fine', 1).result() == 2\n"
        "print(*(process._popen.pid for process in pool._processes), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert result.returncode == -signal.SIGKILL
    processes = [Path("/proc", pid) for pid in result.stdout.split()]
    assert len(processes) == 2
    deadline = time.monotonic() + 20
    while any(process.exists() for process in processes) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(process.exists() for process in processes)


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
