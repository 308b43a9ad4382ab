"""How long a newcomer takes from a fresh clone to a table with a method of their own in it.

    python -m metazoo.benchmarks.newcomer --out benchmarks/results/newcomer.json

The path is the one that the documentation shows: the ten lines of the README, and the commands of docs/plugins.md under
'From a clone to a table'. All of it takes place in a clone of its own, which is deleted afterwards; the set-up, which
downloads torch, is timed apart.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metazoo import hardware
from metazoo.files import write_text

HERE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Journey:
    """What a newcomer types."""

    setup: Sequence[str]
    """The commands that are needed once."""
    file: str
    """The name of the method's file."""
    method: str
    """What is in it."""
    commands: Sequence[str]
    """The commands from there to the table."""


def documented(root: Path) -> Journey:
    """The path as the documentation of a checkout shows it."""
    [method] = _blocks(root / "README.md", "A method in ten lines", "python")
    setup, commands = _blocks(root / "docs" / "plugins.md", "From a clone to a table", "sh")
    lines = [line.split("#")[0].strip() for line in setup.splitlines()]
    return Journey(
        # The first two are the clone and going there, which `travel` does itself.
        setup=[line for line in lines[1:] if line.startswith("make")],
        file=re.findall(r"\S+\.py", commands)[0],
        method=method,
        commands=[line.strip() for line in commands.splitlines() if line.strip()],
    )


def travel(journey: Journey, clone: Path, with_setup: bool) -> list[dict[str, object]]:
    """Type it all in a clone; returns each command with its seconds. A command that fails raises CalledProcessError."""
    (clone / journey.file).write_text(journey.method, encoding="utf-8")
    environment = dict(os.environ)
    if with_setup:
        environment |= {"PATH": f"{clone / '.venv' / 'bin'}{os.pathsep}{environment['PATH']}"}
    timed = []
    for command in [*(journey.setup if with_setup else ()), *journey.commands]:
        typed = command
        if not with_setup:
            typed = re.sub(r"^metazoo ", f"'{sys.executable}' -m metazoo ", command)
        begun = time.perf_counter()
        subprocess.run(["bash", "-c", typed], cwd=clone, env=environment, check=True)
        timed.append(
            {
                "command": command,
                "setup": command in journey.setup,
                "seconds": round(time.perf_counter() - begun, 1),
            }
        )
    return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where to write the times, as JSON")
    parser.add_argument("--no-setup", action="store_true", help="use the Python that runs this, and do not install")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        clone = Path(place) / "metazoo"
        subprocess.run(["git", "clone", "--quiet", str(HERE), str(clone)], check=True)
        journey = documented(clone)
        timed = travel(journey, clone, not arguments.no_setup)
        assert (clone / "site" / "index.html").is_file()
    result = {
        "commands": len(journey.commands),
        "lines_of_the_method": sum(bool(line.strip()) for line in journey.method.splitlines()),
        "seconds_after_setup": round(sum(float(str(each["seconds"])) for each in timed if not each["setup"]), 1),
        "times": timed,
        "hardware": hardware.describe(hardware.choose("auto")),
        "versions": hardware.versions(),
    }
    print(json.dumps(result, indent=1))
    if arguments.out:
        write_text(arguments.out, json.dumps(result, indent=1) + "\n")


def _blocks(page: Path, title: str, language: str) -> list[str]:
    section = page.read_text(encoding="utf-8").split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(rf"```{language}\n(.*?)```", section, flags=re.DOTALL)


if __name__ == "__main__":
    main()
