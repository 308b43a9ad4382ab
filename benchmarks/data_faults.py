"""What `metazoo data prepare` does with damaged data: `python -m metazoo.benchmarks.data_faults`.

Small data sets in every public form are damaged at random and given to the packing. Each must end in one of

- refused: a sentence for a person, and nothing left behind;
- the same: the damage was to bytes that say nothing (a time stamp, padding), and the store is that of the whole data;
- undetectable: single bytes of an image were changed in a form that has no checksums, so that the image is another
  one. Only the digest of a published data set as a whole can tell, where it is known.

Anything else is a failure: another exception than the one for users, a store with other contents, half a store or
other rubbish left in the home, or a program that ran because it was hidden in a pickle. The command prints the tally
and exits with status 1 if there was a failure.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from metazoo import files as atomically
from metazoo.benchmarks.data_damages import DAMAGES, Damage
from metazoo.benchmarks.data_forms import Container, Files, Form, forms, write
from metazoo.data.packing import pack
from metazoo.errors import UserError

REFUSED, SAME, UNDETECTABLE, FAILURE = "refused", "the same", "undetectable", "failure"
OUTCOMES = (REFUSED, SAME, UNDETECTABLE, FAILURE)


@dataclass(frozen=True)
class Trial:
    """One damaged input and how it ended; `detail` is the sentence, or what failed."""

    form: str
    damage: str
    outcome: str
    detail: str


def digest(home: Path) -> str:
    """Of the arrays of all stores in a home."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(home.rglob("*.bin")))).hexdigest()


def whole(form: Form, folder: Path) -> str:
    """The digest of what the undamaged form is packed to."""
    sources = write(form.files(), form.container, _made(folder / "source"))
    pack(form.sheet(sources), sources, home=folder / "home", workers=0)
    return digest(folder / "home")


def attempt(form: Form, damage: Damage, rng: random.Random, folder: Path, expected: str) -> Trial | None:
    """Damage a form and have it packed; None if the damage does not apply to it."""
    if damage.of_counts and not form.counted:
        return None
    canary, home = _made(folder / "canary") / "touched", folder / "home"
    files = form.files()
    if damage.to_files:
        changed = damage.to_files(files, rng, canary)
        if changed is None or not _writable(changed, form.container):
            return None
        files = changed
    sources = write(files, form.container, _made(folder / "source"))
    if damage.to_disk and not damage.to_disk(sources, rng, canary):
        return None
    outcome, detail = _outcome(form, damage, sources, home, expected)
    if canary.exists():
        outcome, detail = FAILURE, "a program was run"
    return Trial(form.name, damage.name, outcome, detail)


def _outcome(form: Form, damage: Damage, sources: list[Path], home: Path, expected: str) -> tuple[str, str]:
    try:
        pack(form.sheet(sources), sources, home=home, workers=0)
    except UserError as error:
        left = [path.name for path in home.glob("*") if path.suffix != ".lock"] if home.exists() else []
        if left:
            return FAILURE, f"left behind: {', '.join(left)}"
        sentence = str(error)
        return (
            (REFUSED, sentence) if sentence.strip() and "\n" not in sentence else (FAILURE, f"no sentence: {sentence}")
        )
    except Exception as error:
        return FAILURE, f"{type(error).__name__}: {error}"
    if digest(home) == expected:
        return SAME, ""
    if damage.of_bytes and not form.checked:
        return UNDETECTABLE, "an image is another one"
    return FAILURE, "accepted, with other contents"


def _writable(files: Files, container: Container) -> bool:
    """Whether the container can hold names that occur twice or lead out."""
    if container in ("tar", "tar.gz"):
        return True
    names = [name for name, _ in files]
    return len(set(names)) == len(names) and (container == "zip" or not any(".." in n or n[0] == "/" for n in names))


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def trials(count: int, seed: int) -> list[Trial]:
    """So many damaged inputs; every damage on every form that it applies to first, then at random."""
    rng = random.Random(seed)
    known = forms()
    found: list[Trial] = []
    with tempfile.TemporaryDirectory() as folder:
        expected = {form.name: whole(form, Path(folder, "whole", str(place))) for place, form in enumerate(known)}
        turns = [(form, damage) for damage in DAMAGES for form in known]
        rng.shuffle(turns)
        for number in range(10 * count):
            form, damage = turns[number] if number < len(turns) else rng.choice(turns)
            trial = attempt(form, damage, rng, Path(folder, str(number)), expected[form.name])
            found += [trial] if trial else []
            if len(found) == count:
                break
    return found


def tally(found: list[Trial], by: Callable[[Trial], str]) -> dict[str, dict[str, int]]:
    """How many trials ended how, by form or by damage."""
    counts = Counter((by(trial), trial.outcome) for trial in found)
    return {key: {o: counts[key, o] for o in OUTCOMES} for key in sorted({key for key, _ in counts})}


def main(arguments: list[str] | None = None) -> None:
    """The command; `arguments` are those of the process by default."""
    parser = argparse.ArgumentParser(
        prog="python -m metazoo.benchmarks.data_faults", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--count", type=int, default=1000, help="damaged inputs (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of what is damaged and how (default 0)")
    parser.add_argument("--json", type=Path, help="also write the tally to this file")
    options = parser.parse_args(arguments)
    found = trials(options.count, options.seed)
    by_damage, by_form = tally(found, lambda trial: trial.damage), tally(found, lambda trial: trial.form)
    for title, table in (("damage", by_damage), ("form", by_form)):
        print(f"{title:<36}" + "".join(f"{outcome:>14}" for outcome in OUTCOMES))
        for key, counts in table.items():
            print(f"{key:<36}" + "".join(f"{count:>14}" for count in counts.values()))
        print(f"{'all':<36}" + "".join(f"{sum(row[o] for row in table.values()):>14}" for o in OUTCOMES) + "\n")
    failures = [trial for trial in found if trial.outcome == FAILURE]
    for trial in failures:
        print(f"FAILURE {trial.form}; {trial.damage}: {trial.detail}")
    if options.json:
        command = f"python -m metazoo.benchmarks.data_faults --count {options.count} --seed {options.seed}"
        record = {"command": command, "inputs": len(found), "by_damage": by_damage, "by_form": by_form}
        atomically.write_text(options.json, json.dumps(record, indent=1) + "\n")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
