"""`metazoo list`, `metazoo new-algorithm` and `metazoo check`: methods as plugins."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metazoo.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from metazoo.algorithm import Algorithm

PluginFiles = Annotated[list[Path] | None, typer.Option("--plugin", help="A plugin file whose methods to add.")]


def load_plugins(files: list[Path] | None) -> None:
    """Register the methods of plugin files given on the command line."""
    if files:
        from metazoo import registry

        for file in files:
            registry.load_plugin(file)


def list_methods(
    name: Annotated[
        str | None, typer.Argument(help="One method, to see all about it; `algorithms` for all of them.")
    ] = None,
    cost: Annotated[
        bool,
        typer.Option("--cost", help="What each learns and computes for a 5-way task, counted by running one."),
    ] = False,
    size: Annotated[int, typer.Option(help="With --cost: image side in pixels.")] = 84,
    shots: Annotated[int, typer.Option(help="With --cost: support images per class.")] = 1,
    filters: Annotated[int, typer.Option(help="With --cost: filters of the Conv4.")] = 48,
    plugin: PluginFiles = None,
) -> None:
    """List the methods, or show one with its settings, presets and deviations from the paper."""
    from rich.console import Console

    from metazoo import registry

    load_plugins(plugin)
    console = Console()
    if name in (None, "algorithms"):
        methods = registry.algorithms()
        if cost:
            _print_costs(console, methods, size, shots, filters)
        else:
            _print_methods(console, methods)
        return
    method = registry.algorithm(name)
    if cost:
        _print_costs(console, {name: method}, size, shots, filters)
    else:
        _print_method(console, method)


def _print_methods(console: Console, methods: Mapping[str, type[Algorithm]]) -> None:
    from rich.table import Table

    from metazoo import registry

    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("name", "title", "paper"):
        table.add_column(heading, no_wrap=heading == "name")
    for key, method in methods.items():
        table.add_row(key, method.title, method.paper)
    console.print(table)
    for module, failure in registry.failures().items():
        console.print(f"[red]failed[/red] {module}: {failure}", highlight=False)


def _print_method(console: Console, method: type[Algorithm]) -> None:
    from rich.table import Table

    from metazoo.presets import presets

    console.print(f"[bold]{method.title}[/bold] ({method.name})\n{method.paper}\n", highlight=False)
    console.print("Transductive: " + ("yes" if method.transductive else "no"), highlight=False)
    if method.stops_gradient:
        console.print(f"Held constant in its meta-gradient: {method.stops_gradient}", highlight=False)
    settings = Table("setting", "default", box=None, padding=(0, 2, 0, 0))
    for key, value in method.Settings().model_dump().items():
        settings.add_row(key, str(value))
    console.print(settings)
    for key, preset in presets(method.name).items():
        console.print(f"Preset {key}: {preset.about} Evidence: {preset.evidence}.", highlight=False)
    for number, deviation in enumerate(method.deviations, start=1):
        console.print(f"Deviation {number}: {deviation}", highlight=False)


def _print_costs(console: Console, methods: Mapping[str, type[Algorithm]], size: int, shots: int, filters: int) -> None:
    from rich.progress import track
    from rich.table import Table

    from metazoo.backbones import Conv4
    from metazoo.cost import measure
    from metazoo.errors import Incompatible

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("method", no_wrap=True)
    headings = ("learned", "beside the network", "support passes", "query passes", "GFLOP training", "GFLOP test")
    for heading in headings:
        table.add_column(heading, justify="right")
    refusals = []
    for name, method in track(methods.items(), "counting", console=console, transient=True):
        try:
            cost = measure(method, None, Conv4.Settings(filters=filters), shots=shots, size=size)
        except Incompatible as error:
            refusals.append(f"{name}: {error}")
            continue
        table.add_row(
            name,
            f"{cost.parameters:,}",
            f"{cost.own_parameters:,}",
            str(cost.support_passes),
            str(cost.query_passes),
            f"{cost.training_gflop:.1f}",
            f"{cost.test_gflop:.1f}",
        )
    console.print(
        f"One 5-way {shots}-shot task with 15 queries a class, {size} pixels, Conv4 with {filters} filters; passes are "
        "those of training. GFLOP: multiplications and additions of convolutions and matrix products.\n",
        highlight=False,
    )
    console.print(table)
    for refusal in refusals:
        console.print(refusal, highlight=False)


def new_algorithm(
    name: Annotated[str, typer.Argument(help="What the method is called, in lower case: my_method.")],
    folder: Annotated[Path, typer.Option("--dir", help="Where to write the two files.")] = Path(),
) -> None:
    """Write a working plugin file and its test, to start a method of your own from."""
    from metazoo.files import write_text

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"'{name}' cannot name a method; use lower-case letters, digits and underscores: my_method.")
    class_name = "".join(part.capitalize() for part in name.split("_"))
    files = {f"{name}.py": _PLUGIN, f"test_{name}.py": _TEST}
    for file in files:
        if (folder / file).exists():
            raise UserError(f"{folder / file} exists already; choose another name or another --dir.")
    for file, text in files.items():
        write_text(folder / file, text.replace("NAME", name).replace("CLASS", class_name))
    plugin = folder / f"{name}.py"
    print(f"Wrote {plugin} and {folder / f'test_{name}.py'}. Next:")
    print(f"  metazoo check {plugin}")
    print(f"  metazoo train {name} --source glyphs --epochs 5 --plugin {plugin}")


def check(
    plugin: Annotated[Path, typer.Argument(help="A plugin file, or the name of a method that is registered already.")],
) -> None:
    """Run the contract suite: what must hold for any method."""
    from metazoo import registry
    from metazoo.contract import check as run_checks

    known = registry.algorithms()
    methods = [known[str(plugin)]] if str(plugin) in known else registry.load_plugin(plugin)
    faults = 0
    for method in methods:
        print(f"{method.name}:")
        for finding in run_checks(method):
            faults += not finding.passed
            mark = "ok    " if finding.passed else "FAULT "
            print(f"  {mark} {finding.check}{finding.fault and ': '}{finding.fault}")
    if faults:
        raise UserError(f"{faults} of the contract's checks found a fault; each says above what is wrong.")


_PLUGIN = '''"""CLASS: say in one line what it does."""

from __future__ import annotations

from metazoo import TaskBatch
from metazoo.algorithms.maml import MAML


class CLASS(MAML):
    name = "NAME"
    title = "CLASS"
    paper = "Who: what. Where and when."
    deviations = ()

    class Settings(MAML.Settings):
        """Hyper-parameters with their defaults; `--set my_setting=2` changes one."""

        warm_up: float = 1.0

    settings: Settings

    def step(self, tasks: TaskBatch, step: int) -> None:
        """One inner step. This one is MAML's, with another rate for the first step."""
        factor = self.settings.warm_up if step == 0 else 1.0
        rates = {tensor: factor * rate for tensor, rate in self.rates.items()}
        tasks.descend(tasks.support_loss(), rates)
'''

_TEST = '''"""The contract every method keeps, and what is particular to CLASS."""

from __future__ import annotations

from pathlib import Path

import pytest

from metazoo.contract import CHECKS
from metazoo.registry import load_plugin
from metazoo.testing import tiny_algorithm, tiny_episodes, trace

CLASS = load_plugin(Path(__file__).with_name("NAME.py"))[0]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    assert not check(CLASS)


def test_a_smaller_first_step_stays_closer():
    adapted = {}
    for warm_up in (0.0, 1.0):
        algorithm = tiny_algorithm(CLASS, CLASS.Settings(inner_steps=1, warm_up=warm_up))
        moved = trace(algorithm, tiny_episodes()).adapted["head.weight"] - algorithm.backbone.head.weight
        adapted[warm_up] = float(moved.detach().norm())
    assert adapted[0.0] == 0 < adapted[1.0]
'''
