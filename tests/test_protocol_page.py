"""The figures on docs/protocol.md are those that the committed simulation measured."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
MEASURED = json.loads((ROOT / "benchmarks" / "results" / "statistics_coverage.json").read_text(encoding="utf-8"))


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def row(first: str) -> list[str]:
    """The other cells of the row that begins so, in any table of the page."""
    [line] = [line for line in PAGE.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_coverage_is_that_of_the_simulation_and_within_its_band():
    for world in MEASURED["intervals"]:
        held, width = world["coverage"], world["half_width"]
        same, usual, over, _ = row(world["world"]["title"])
        assert same == f"{percent(held['episodes, of the same classes'])} (± {width['episodes, of new classes']:.2f})"
        assert usual == percent(held["episodes, of new classes"])
        assert over == f"{percent(held['classes, of new classes'])} (± {width['classes, of new classes']:.2f})"
        assert 0.94 <= held["episodes, of the same classes"] <= 0.96
        differ = world["world"]["of_class"] > 0
        assert 0.94 <= held["classes, of new classes"] <= (0.961 if differ else 1.0)
        assert not differ or held["episodes, of new classes"] < 0.85


def test_trainings_equal_methods_and_power_are_those_of_the_simulation():
    tables = PAGE.split("## What bold and rank mean")
    for found in MEASURED["trainings"]:
        cells = [found["coverage"]["episodes"], found["coverage"]["trainings"]]
        assert (
            f"| {found['seeds']} | {percent(cells[0])} | {percent(cells[1])} | {found['half_width']:.2f} |" in tables[0]
        )
    for found in MEASURED["equal_methods"]:
        naive = found["told_with_correction_over_pairs_with_the_best"]
        assert f"| {found['methods']} | {percent(found['told_apart'])} | {percent(naive)} |" in tables[1]
        assert found["told_apart"] <= 0.06
    for found in MEASURED["power"]:
        assert row(f"{100 * found['difference']:.1f} points")[:2] == [
            f"{found['episodes_needed']:,}",
            percent(found["told_apart"]),
        ]
        assert 0.78 <= found["told_apart"] <= 0.83
