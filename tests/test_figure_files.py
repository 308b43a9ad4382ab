"""Figures as files and as commands: equal from day to day, told apart without colour, errors in sentences."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.colors
import pytest
import tiny
from matplotlib.backends.backend_agg import FigureCanvasAgg
from tiny import tiny_sets  # noqa: F401

from metazoo import cli, training
from metazoo.analysis import style


def example(folder: Path) -> list[Path]:
    """A small figure in the house style."""
    rows = [{"method": "A, or B", "step": step, "value": step / 3, "missing": None} for step in range(3)]
    with style.house_style():
        drawing, ((panel, _),) = style.sheet(1, 2, 2.0, 2.0)
        panel.plot([row["step"] for row in rows], [row["value"] for row in rows], **style.look(0), label="A, or B")
        style.key(drawing, panel)
        return style.save(
            drawing, "A caption that is " + "much " * 40 + "too long for one line.", rows, folder, "example"
        )


def test_equal_numbers_give_equal_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = example(tmp_path / "first")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")  # another day
    matplotlib.rcParams["font.size"] = 20  # and another user's taste
    try:
        second = example(tmp_path / "second")
    finally:
        matplotlib.rcdefaults()
    assert [file.name for file in first] == ["example.pdf", "example.png", "example.csv"]
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]
    assert first[0].read_bytes().startswith(b"%PDF") and first[1].read_bytes().startswith(b"\x89PNG")
    assert b"Type3" not in first[0].read_bytes(), "fonts are embedded as TrueType, which publishers accept"


def test_the_numbers_behind_a_figure(tmp_path: Path) -> None:
    *_, file = example(tmp_path)
    assert (
        file.read_text() == 'method,step,value,missing\n"A, or B",0,0,\n"A, or B",1,0.333333,\n"A, or B",2,0.666667,\n'
    )


def test_series_differ_without_their_colours() -> None:
    looks = [style.look(number) for number in range(40)]
    assert len({(entry["marker"], str(entry["linestyle"])) for entry in looks}) == 40
    assert len({tuple(map(str, style.look(number).values())) for number in range(280)}) == 280
    greys = sorted(
        0.299 * red + 0.587 * green + 0.114 * blue
        for red, green, blue in (matplotlib.colors.to_rgb(colour) for colour in style.COLOURS[:4])
    )
    assert greys[-1] < 0.75, "nothing is too pale for white paper"


def test_the_caption_stands_below_what_is_drawn(tmp_path: Path) -> None:
    with style.house_style():
        drawing, ((panel,),) = style.sheet(1, 1, 3.0, 2.0)
        panel.plot([0, 1], [0, 1], label="line")
        panel.set_xlabel("steps")
        style.key(drawing, panel)
        style.save(drawing, "word " * 80, [{"a": 1}], tmp_path, "figure")
        canvas = FigureCanvasAgg(drawing)
        canvas.draw()
        (caption,) = drawing.texts
        renderer = canvas.get_renderer()
        box, key = caption.get_window_extent(renderer), drawing.legends[0].get_window_extent(renderer)
        drawn = panel.get_tightbbox(renderer)
        assert box.y0 >= 0 and box.y1 <= drawn.y0 and drawn.y1 <= key.y0 and key.y1 <= drawing.bbox.height
        assert box.x0 >= 0 and box.x1 <= drawing.bbox.width


@pytest.fixture
def metazoo(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tiny_sets: None,  # noqa: F811
) -> Any:
    """Run a command line in this process, in a folder of its own: exit status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["metazoo", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        said = capsys.readouterr()
        return int(stopped.value.code or 0), said.out, said.err

    return command


def test_from_training_to_figures(metazoo: Any, tmp_path: Path) -> None:
    small = ["--source", "tiny", "--ways", 3, "--queries", 3, "--backbone-set", "filters=4", "--epochs", 1]
    small += ["--iterations-per-epoch", 2, "--meta-batch", 2, "--validation-episodes", 4, "--record-gradients"]
    folders = []
    for method in ("maml", "cxgrad"):
        assert metazoo("train", method, *small)[0] == 0
    folders = sorted((tmp_path / "runs").iterdir(), reverse=True)
    common = [*folders, "--labels", "first, second"]
    status, out, err = metazoo("analyze", "gradients", *common)
    assert (status, err) == (0, "") and "Written: figures/gradients_inner.pdf, figures/gradients_inner.png" in out
    assert metazoo("analyze", "cka", *common, "--episodes", 2, "--out", "here", "--device", "cpu")[0] == 0
    assert metazoo("analyze", "trajectory", *common, "--episodes", 2, "--steps", 2, "--device", "cpu")[0] == 0
    with (tmp_path / "here" / "cka.csv").open() as file:
        assert {row["method"] for row in csv.DictReader(file)} == {"first", "second"}
    made = {file.name for file in (tmp_path / "figures").iterdir()}
    names = ["gradients_inner", "trajectory", "trajectory_weights", "trajectory_context"]
    assert made == {f"{name}.{kind}" for name in names for kind in ("pdf", "png", "csv")}
    again = {file.name: file.read_bytes() for file in (tmp_path / "here").iterdir()}
    assert metazoo("analyze", "cka", *common, "--episodes", 2, "--out", "here", "--device", "cpu")[0] == 0
    assert again == {file.name: file.read_bytes() for file in (tmp_path / "here").iterdir()}


def test_what_is_wrong_is_said_in_a_sentence(metazoo: Any, tmp_path: Path) -> None:
    status, out, err = metazoo("analyze", "cka", "nowhere")
    assert (status, out) == (2, "") and err == (
        "metazoo: nowhere does not exist; name a folder that `metazoo train` has made.\n"
    )
    run = training.train(tiny.config(epochs=1), home=tmp_path)
    status, out, err = metazoo("analyze", "gradients", run.folder)
    assert status == 2 and "has no gradient norms: they are recorded during training" in err
    assert not (tmp_path / "figures").exists()
    status, out, err = metazoo("analyze", "trajectory", run.folder, "--target", "tinny")
    assert status == 2 and "There is no data set called 'tinny'; did you mean 'tiny'?" in err
