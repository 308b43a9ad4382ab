"""The timing of packing: real images, no two the same, and a record that says what was measured."""

from __future__ import annotations

import io
import json
import statistics
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from metazoo.benchmarks.speed import packing, stand_in


@pytest.mark.parametrize(("name", "sides"), [("smooth", 84 * 84), ("detailed", 84 * 84), ("photograph", 500 * 375)])
def test_the_images_are_jpegs_no_two_of_which_show_the_same(name, sides):
    kind = stand_in.KINDS[name]._replace(distinct=2)
    decoded = {PIL.Image.open(io.BytesIO(content)).convert("RGB").tobytes() for _, content in stand_in.jpegs(100, kind)}
    assert len(decoded) == 100 and {len(pixels) for pixels in decoded} == {3 * sides}


@pytest.mark.parametrize("form", ["tar", "folder"])
def test_both_sides_do_the_work_that_is_timed(tmp_path, form):
    source = stand_in.write(tmp_path, 200, form, stand_in.KINDS["smooth"]._replace(distinct=20))
    found = packing.pack_once(source, 200, 0, tmp_path / "home")  # asserts what it packed
    assert found.seconds > 0 and found.processor_seconds > 0 and found.own_mb > 10
    for library in packing.LIBRARIES:
        decoding = packing.time_decoding(library, source, 200, 1)  # asserts what it decoded
        assert decoding.seconds > 0 and decoding.processor_seconds > 0


def test_the_command_prints_and_writes_what_it_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("METAZOO_ROUND", "")  # it is changed
    options = ["--kinds", "smooth", "--images", "100", "--rounds", "2", "--workers", "1", "--home", str(tmp_path)]
    packing.main([*options, "--json", str(tmp_path / "speed.json")])
    record = json.loads((tmp_path / "speed.json").read_text())
    (found,) = record["measurements"]
    assert (found["kind"], found["images"], found["form"]) == ("smooth", 100, "tar")
    assert (len(found["rounds"]), record["workers"]) == (2, 1)
    for library in ("Pillow", "simplejpeg"):
        for of, key in (("of_seconds", "seconds"), ("of_processor_seconds", "processor_seconds")):
            ratios = [each["decoding"][library][key] / each["packing"][key] for each in found["rounds"]]
            assert found["decoded"][library]["packed_to_decoded"][of] == pytest.approx(ratios)
    seconds = statistics.median(each["packing"]["seconds"] for each in found["rounds"])
    assert found["packed"]["images_a_second"] == pytest.approx(100 / seconds)
    assert 50 < found["peak_mb"] < 1000 and record["versions"]["pillow"] and record["hardware"]
    assert capsys.readouterr().out.splitlines()[-1].startswith("only decoded, simplejpeg")
    assert [path.name for path in tmp_path.iterdir()] == ["speed.json"]


def test_the_table_of_the_docs_is_that_of_the_record() -> None:
    root = Path(__file__).parents[1]
    page = (root / "docs" / "data.md").read_text(encoding="utf-8")
    record = json.loads((root / "benchmarks" / "results" / "speed_packing_cpu.json").read_text())
    table = page.split("<!-- speed_packing -->\n")[1].split("<!-- /speed_packing -->")[0].splitlines()
    assert table[2:] == [row(found) for found in record["measurements"]]


def row(found: dict[str, Any]) -> str:
    pillow, simplejpeg = (found["decoded"][library] for library in packing.LIBRARIES)
    ratios = pillow["packed_to_decoded"]["of_seconds"]
    each = (found["packed"], pillow, simplejpeg)
    cells = [
        found["kind"],
        f"{found['bytes_an_image']:,}",
        f"{found['images']:,}",
        f"{found['packed']['images_a_second']:,.0f}",
        f"{pillow['images_a_second']:,.0f}",
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        f"{simplejpeg['images_a_second']:,.0f}",
        " / ".join(f"{timed['processor_us_an_image']:,.0f}" for timed in each) + " us",
        f"{found['peak_mb']:.0f} MB",
    ]
    return "| " + " | ".join(cells) + " |"
