"""What a method is said to cost, against counts made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from metazoo import registry
from metazoo.backbones import Conv4
from metazoo.cli import app
from metazoo.cost import measure


def forward_gflop(size: int, filters: int, images: int) -> float:
    """One pass through a Conv4 and its head of five outputs: two operations a weight and position."""
    operations, channels = 0, 3
    for _ in range(4):
        operations += 2 * 9 * channels * filters * size * size
        channels, size = filters, size // 2
    return images * (operations + 2 * 5 * filters * size * size) / 1e9


def test_passes_parameters_and_arithmetic() -> None:
    network = Conv4.Settings(filters=8)
    anil = measure(registry.algorithm("anil"), None, network, size=32)
    maml = measure(registry.algorithm("maml"), None, network, size=32)
    metasgd = measure(registry.algorithm("metasgd"), None, network, size=32)
    cxgrad = measure(registry.algorithm("cxgrad"), None, network, size=32)
    assert (maml.support_passes, maml.query_passes) == (5, 1)
    assert (anil.support_passes, anil.query_passes) == (1, 1), "ANIL's body is forwarded once for all steps"
    assert (cxgrad.support_passes, cxgrad.query_passes) == (6, 1)
    assert maml.own_parameters == 0 and metasgd.own_parameters == metasgd.backbone_parameters == maml.parameters
    assert cxgrad.own_parameters == 10_504, "the scaler of section 7.1"
    # The head's steps are small change: a body forwarded over 5 + 75 images.
    assert anil.test_gflop == pytest.approx(forward_gflop(32, 8, 80), rel=0.01)
    assert maml.test_gflop > forward_gflop(32, 8, 75) + 5 * 2 * forward_gflop(32, 8, 5)
    assert maml.training_gflop > measure(registry.algorithm("fomaml"), None, network, size=32).training_gflop


def test_the_command_lists_what_one_method_costs() -> None:
    result = CliRunner().invoke(app, ["list", "maml", "--cost", "--size", "16", "--filters", "4"])
    assert result.exit_code == 0 and "maml" in result.output and "GFLOP" in result.output


def test_a_method_that_cannot_work_is_listed_with_its_reason(tmp_path: Path) -> None:
    file = tmp_path / "unfit.py"
    file.write_text(
        "from metazoo import Incompatible\nfrom metazoo.algorithms.maml import MAML\n\n"
        "class Unfit(MAML):\n    name, title, paper = 'unfit', 'Unfit', 'None.'\n\n"
        "    def build(self):\n        raise Incompatible('It needs another network.')\n"
    )
    result = CliRunner().invoke(app, ["list", "unfit", "--cost", "--plugin", str(file)])
    assert result.exit_code == 0 and "It needs another" in result.output


@pytest.mark.parametrize("name", ["boil", "protonet", "cavia"])
def test_the_table_in_the_docs_is_what_the_code_counts(name: str) -> None:
    text = (Path(__file__).parent.parent / "docs" / "methods" / "README.md").read_text(encoding="utf-8")
    [line] = [line for line in text.splitlines() if line.startswith(f"| `{name}` | ")]
    cost = measure(registry.algorithm(name))
    passes = f"{cost.support_passes} | {cost.query_passes} | {cost.training_gflop:.1f} | {cost.test_gflop:.1f}"
    assert line == f"| `{name}` | {cost.parameters:,} | {cost.own_parameters:,} | {passes} |"
