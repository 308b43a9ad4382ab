"""A run: one training, in a folder of its own.

config.yaml       the resolved configuration; `metazoo train --config` on it is the same run again
run.json          what else identifies the run (data, code), and what evaluation needs to know of the source
state.json        how it stands, and why
metrics.jsonl     one line an epoch, with tensorboard/ beside it
checkpoints/      the last state and the best weights
records.jsonl     what was evaluated, one record a line
done              written last: totals of a finished training
"""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from metazoo import metrics
from metazoo.checkpoint import Checkpoints
from metazoo.config import RunConfig, identity
from metazoo.data.inputs import Inputs
from metazoo.errors import UserError
from metazoo.files import write_text
from metazoo.schema import Model, Strict, parse, read_yaml

State = Literal["done", "diverged", "out of memory", "error", "interrupted", "running"]


class Provenance(Strict):
    """What identifies a run beside its config, and what cross-domain evaluation needs to know of its source."""

    format: Literal[1] = 1
    identity: str
    data: str
    """Identity of the source's manifest."""
    code: str
    inputs: Inputs = Field(discriminator="kind")
    """What its network is fed."""
    command: str = ""
    created: str = ""
    """UTC, ISO 8601."""

    @model_validator(mode="before")
    @classmethod
    def _images_were_all_there_was(cls, values: Any) -> Any:
        """Runs from before there were other inputs say what their images are like on the first level."""
        if isinstance(values, dict) and "channels" in values:
            images = {"kind": "images"} | {key: values.get(key) for key in ("channels", "mean", "std")}
            values = {key: value for key, value in values.items() if key not in images} | {"inputs": images}
        return values


class Standing(Strict):
    """How a run stands."""

    state: State
    reason: str = ""


class Summary(Strict):
    """Totals of a finished training. Versions, hardware and device are those of its last session."""

    training_seconds: float
    """Outer iterations only."""
    validation_seconds: float
    tasks_per_second: float
    """Training tasks, validation left out."""
    peak_memory_mb: float
    parameters: int
    versions: dict[str, str]
    hardware: str


@dataclass(frozen=True)
class Run:
    """A run's folder and what it says of itself. Build one with `Run.open` or `Run.create`."""

    folder: Path
    config: RunConfig
    provenance: Provenance

    @classmethod
    def create(cls, folder: Path, config: RunConfig, provenance: Provenance) -> Run:
        """Write a new run's folder. `config` must be resolved."""
        folder.mkdir(parents=True, exist_ok=True)
        values = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
        write_text(folder / "config.yaml", values)
        run = cls(folder, config, provenance)
        run.mark("interrupted", "no iteration is finished yet")
        # Last, so that a folder with a run.json is a whole run.
        write_text(folder / "run.json", provenance.model_dump_json(indent=1) + "\n")
        return run

    @classmethod
    def exists(cls, folder: Path) -> bool:
        """Whether there is a run in this folder."""
        return (folder / "run.json").is_file()

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Read a run's folder.

        Raises UserError where there is no run, a file is damaged, or config.yaml is not the config that was run.
        """
        folder = Path(folder)
        if not cls.exists(folder):
            what = "is no run's folder: it holds no run.json" if folder.is_dir() else "does not exist"
            raise UserError(f"{folder} {what}; name a folder that `metazoo train` has made.")
        provenance = _read(Provenance, folder / "run.json")
        stored = read_yaml(folder / "config.yaml")
        config = parse(RunConfig, stored, str(folder / "config.yaml"))
        if identity(stored, provenance.data, provenance.code) != provenance.identity:
            raise UserError(
                f"{folder / 'config.yaml'} is not the config that was run in {folder}; put it back as it was; "
                "another config is another run (`metazoo train --config FILE`)."
            )
        return cls(folder, config, provenance)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def data(self) -> str:
        """Identity of the source's manifest."""
        return self.provenance.data

    @property
    def code(self) -> str:
        """The code version it was trained with."""
        return self.provenance.code

    @property
    def state(self) -> State:
        """How the run stands now, read from the disk."""
        return self.standing.state

    @property
    def reason(self) -> str:
        """Why it stands so, where there is a reason; else empty."""
        return self.standing.reason

    @property
    def standing(self) -> Standing:
        """State and reason. A run that says it is running while nobody trains it was killed."""
        if (self.folder / "done").is_file():
            return Standing(state="done")
        standing = _read(Standing, self.folder / "state.json")
        if standing.state == "running" and not self._is_locked():
            return Standing(state="interrupted", reason="the process was killed")
        return standing

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, one an epoch."""
        return metrics.read(self.folder / "metrics.jsonl")

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.folder / "checkpoints")

    @property
    def summary(self) -> Summary:
        """Totals of a finished training; a UserError before that."""
        if not (self.folder / "done").is_file():
            raise UserError(f"The run {self.folder} is not finished; {self.resume_hint}.")
        return _read(Summary, self.folder / "done")

    @property
    def records(self) -> Path:
        """The file that evaluations are written to."""
        return self.folder / "records.jsonl"

    @property
    def resume_hint(self) -> str:
        """The command that goes on with this run, as the end of a sentence."""
        return f"go on with: metazoo train --config {self.folder / 'config.yaml'} --runs {self.folder.parent}"

    def mark(self, state: State, reason: str = "") -> None:
        """Write down how the run stands."""
        write_text(self.folder / "state.json", Standing(state=state, reason=reason).model_dump_json() + "\n")

    def finish(self, summary: Summary) -> None:
        """Write the `done` file, after everything else."""
        self.mark("done")
        write_text(self.folder / "done", summary.model_dump_json(indent=1) + "\n")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep every other process from training this run; a UserError where one already is. A kill releases it."""
        with open(self.folder / "lock", "a+") as file:
            if not _try_lock(file.fileno()):
                file.seek(0)
                owner = file.read().strip() or "another process"
                raise UserError(f"{self.folder} is being trained by {owner}; wait until it ends, or stop it.")
            file.truncate(0)
            file.write(f"process {os.getpid()}")
            file.flush()
            for leftover in self.folder.glob(".*.tmp"):
                leftover.unlink(missing_ok=True)
            yield

    def _is_locked(self) -> bool:
        try:
            with open(self.folder / "lock") as file:
                fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False


def now() -> str:
    """The time, UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _try_lock(file: int) -> bool:
    for _ in range(5):  # somebody who only looks whether it is locked holds it for an instant
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.05)
    return False


def _read(model: type[Model], path: Path) -> Model:
    try:
        return model.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; put it back, or delete the run's folder to train anew.") from None
    except ValueError:
        raise UserError(f"{path} is damaged; put it back, or delete the run's folder to train anew.") from None
