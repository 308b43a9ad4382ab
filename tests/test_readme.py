"""The README does what it says: its plugin works as printed, its table is the records', its links lead somewhere."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from metazoo.cli import app
from metazoo.leaderboard.suite import load

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str, after: str) -> list[str]:
    """The fenced code blocks of a language in the section with that heading."""
    section = README.split(f"## {after}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(rf"```{language}\n(.*?)```", section, flags=re.DOTALL)


def test_the_method_in_ten_lines(tmp_path: Path) -> None:
    [plugin] = blocks("python", "A method in ten lines")
    [commands] = blocks("sh", "A method in ten lines")
    assert len([line for line in plugin.splitlines() if line.strip()]) <= 10
    (tmp_path / "gentle_boil.py").write_text(plugin)
    printed = []
    for command in commands.strip().splitlines():
        assert command.startswith("metazoo ")
        done = subprocess.run(
            [sys.executable, "-m", *command.split()], cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    assert "FAULT" not in printed[0]
    assert list((tmp_path / "runs").glob("gentle_boil-glyphs-5w1s-s0-*/run.json"))


@pytest.mark.parametrize(
    ("page", "suite"),
    [
        ("README.md", "cifar_fs_small"),
        *(
            ("docs/results.md", suite)
            for suite in ("glyphs", "table3_quick", "table4_quick", "table5_quick", "sinusoid")
        ),
    ],
)
def test_the_table_is_that_of_the_committed_records(page: str, suite: str, tmp_path: Path) -> None:
    out = tmp_path / "tables"
    command = ["leaderboard", suite, "--show", "--runs", str(tmp_path / "none"), "--out", str(out)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    made = (out / "leaderboard.md").read_text(encoding="utf-8").splitlines()
    text = (ROOT / page).read_text(encoding="utf-8")
    shown = text.split(f"<!-- {suite} -->\n", 1)[1].split(f"<!-- /{suite} -->", 1)[0]
    rows = [line for line in shown.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(load(suite).rows) + 1, "the head, a row for each method, and one for learning nothing"
    assert made[made.index(rows[0]) :][: len(rows)] == rows


@pytest.mark.parametrize("page", ["README.md", *(str(p.relative_to(ROOT)) for p in sorted(ROOT.glob("docs/**/*.md")))])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


BENCHES = ("cpu_maml", "cpu_cxgrad", "cpu_bfloat16", "avx2_cpu", "kept_memory_cpu")


def test_the_speed_table_is_that_of_the_records() -> None:
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    row_of_bench = re.compile(r"\| (maml|cxgrad) \| \S+ \| (training|evaluation) \|")
    shown = [line for line in page.splitlines() if row_of_bench.match(line)]
    records = [ROOT / "benchmarks" / "results" / f"bench_{name}.json" for name in BENCHES]
    measured = [row for record in records for row in json.loads(record.read_text())["measured"]]
    assert len(shown) == len(measured) > 0
    for row in measured:
        low, high = row["ratio_quartiles"]
        speeds = [f"{row[f'{side}tasks_per_second']:.2f}" for side in ("", "plain_")]
        memory = [f"{row[f'{side}peak_mb']:.0f}" for side in ("", "plain_")]
        ratio = f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})"
        names = [row[key] for key in ("method", "shape", "work", "precision")]
        assert "| " + " | ".join([*names, *speeds, ratio, *memory]) + " |" in shown
