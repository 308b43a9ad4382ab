"""`metazoo list`, `metazoo new-algorithm` and `metazoo check`: methods as plugins."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from metazoo.errors import UserError

PluginFiles = Annotated[list[Path] | None, typer.Option("--plugin", help="A plugin file whose methods to add.")]


def load_plugins(files: list[Path] | None) -> None:
    """Register the methods of plugin files given on the command line."""
    if files:
        from metazoo import registry

        for file in files:
            registry.load_plugin(file)


def list_methods(
    name: Annotated[str | None, typer.Argument(help="One method, to see all about it.")] = None,
    plugin: PluginFiles = None,
) -> None:
    """List the methods, or show one with its settings and its deviations from the paper."""
    from rich.console import Console
    from rich.table import Table

    from metazoo import registry

    load_plugins(plugin)
    console = Console()
    if name is not None:
        method = registry.algorithm(name)
        console.print(f"[bold]{method.title}[/bold] ({method.name})\n{method.paper}\n", highlight=False)
        console.print("Transductive: " + ("yes" if method.transductive else "no"), highlight=False)
        settings = Table("setting", "default", box=None, padding=(0, 2, 0, 0))
        for key, field in method.Settings.model_fields.items():
            settings.add_row(key, str(field.default))
        console.print(settings)
        for number, deviation in enumerate(method.deviations, start=1):
            console.print(f"Deviation {number}: {deviation}", highlight=False)
        return
    table = Table("name", "title", "paper", box=None, padding=(0, 2, 0, 0))
    for key, method in registry.algorithms().items():
        table.add_row(key, method.title, method.paper)
    console.print(table)
    for module, failure in registry.failures().items():
        console.print(f"[red]failed[/red] {module}: {failure}", highlight=False)


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
