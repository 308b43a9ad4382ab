"""The timing of packing: real images, no two the same, and a record that says what was measured."""

from __future__ import annotations

import io
import json

import PIL.Image
import pytest

from metazoo.benchmarks.speed import packing


def test_the_images_are_jpegs_no_two_of_which_show_the_same(monkeypatch):
    monkeypatch.setattr(packing, "DISTINCT", 5)
    decoded = {PIL.Image.open(io.BytesIO(content)).convert("RGB").tobytes() for _, content in packing.jpegs(200)}
    assert len(decoded) == 200 and {len(pixels) for pixels in decoded} == {3 * packing.SIZE**2}


@pytest.mark.parametrize("form", ["tar", "folder"])
def test_both_sides_do_the_work_that_is_timed(tmp_path, form, monkeypatch):
    monkeypatch.setattr(packing, "DISTINCT", 20)
    source = packing.write(tmp_path, 200, form)
    found = packing.pack_once(source, 200, 0, tmp_path / "home")  # asserts what it packed
    assert found.seconds > 0 and found.processor_seconds > 0 and found.own_mb > 10
    seconds, processor = packing.time_decoding(source, 200, 1)  # asserts what it decoded
    assert seconds > 0 and processor > 0


def test_the_command_prints_and_writes_what_it_measured(tmp_path, capsys):
    options = ["--images", "100", "--rounds", "2", "--workers", "1", "--home", str(tmp_path)]
    packing.main([*options, "--json", str(tmp_path / "speed.json")])
    record = json.loads((tmp_path / "speed.json").read_text())
    (found,) = record["measurements"]
    assert (found["images"], found["form"], len(found["rounds"]), record["workers"]) == (100, "tar", 2, 1)
    ratios = [each["decoding_seconds"] / each["seconds"] for each in found["rounds"]]
    assert found["packed_to_decoded_of_rounds"] == pytest.approx(ratios)
    assert 50 < found["peak_mb"] < 1000 and record["versions"]["pillow"] and record["hardware"]
    assert "100" in capsys.readouterr().out.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["speed.json"]
