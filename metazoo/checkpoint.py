"""Checkpoints of a run: always a whole, hashed set of them on the disk, whenever the process may be killed.

Each save writes new files, then the index that names them with their hashes, then removes what the index no longer
names. The index changes in one step, so what it names is always there.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import AliasChoices, Field, ValidationError

from metazoo.errors import UserError
from metazoo.files import replacing, write_text
from metazoo.schema import Strict

INDEX = "index.json"


class Entry(Strict):
    """One checkpoint file."""

    file: str
    sha256: str
    epoch: int
    """Finished epochs."""
    iteration: int
    """Finished outer iterations."""
    rank: float | None = Field(default=None, validation_alias=AliasChoices("rank", "correct"))
    """How well it did on the validation episodes, where they were scored: the best is the highest."""


class Index(Strict):
    """What the folder holds: the last state, from which training goes on, and the best weights by validation."""

    format: Literal[1] = 1
    last: Entry | None = None
    best: list[Entry] = []
    """Best first."""
    metrics_bytes: int = 0
    """Length of the metrics file that belongs to `last`."""


class Checkpoints:
    """The checkpoints in one folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def index(self) -> Index:
        """The index; an empty one where nothing was saved yet, a UserError where it is damaged."""
        path = self.folder / INDEX
        try:
            return Index.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return Index()
        except ValidationError:
            raise UserError(f"{path} is damaged; {_REMEDY}.") from None

    def save(
        self,
        state: Mapping[str, Any],
        *,
        epoch: int,
        iteration: int,
        metrics_bytes: int,
        candidate: tuple[Mapping[str, Any], float] | None = None,
        keep: int = 1,
    ) -> None:
        """Save `state` as the last one, and `candidate` (weights, rank) if it is among the `keep` of highest rank.

        Of two equally good epochs the earlier one is the better.
        """
        best = self.index.best
        if candidate is not None:
            weights, rank = candidate
            ahead = [entry for entry in best if entry.rank is not None and entry.rank >= rank]
            if len(ahead) < keep:
                new = self._write("weights", weights, epoch, iteration, rank)
                best = [*ahead, new, *best[len(ahead) :]][:keep]
        last = self._write("last", state, epoch, iteration, None)
        index = Index(last=last, best=best, metrics_bytes=metrics_bytes)
        write_text(self.folder / INDEX, json.dumps(index.model_dump(mode="json"), indent=1) + "\n")
        self.tidy(index)

    def load(self, entry: Entry) -> dict[str, Any]:
        """The contents of a checkpoint, on the CPU; a UserError where the file is not what was saved."""
        path = self.folder / entry.file
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise UserError(f"The checkpoint {path} is missing; {_REMEDY}.") from None
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise UserError(f"The checkpoint {path} is damaged (it is not what was saved); {_REMEDY}.")
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)

    def tidy(self, index: Index | None = None) -> None:
        """Remove what the index does not name: older checkpoints, and what a kill left half written."""
        index = index or self.index
        named = {entry.file for entry in [*index.best, *([index.last] if index.last else [])]}
        for path in self.folder.glob("*"):
            if path.name not in named and _OURS.fullmatch(path.name):
                path.unlink(missing_ok=True)

    def _write(self, kind: str, state: Mapping[str, Any], epoch: int, iteration: int, rank: float | None) -> Entry:
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        content = buffer.getvalue()
        digest = hashlib.sha256(content).hexdigest()
        # Part of the hash in the name: a file that the index names is never written over by other contents.
        name = f"{kind}-{iteration:08d}-{digest[:8]}.pt"
        with replacing(self.folder / name) as file:
            file.write(content)
        return Entry(file=name, sha256=digest, epoch=epoch, iteration=iteration, rank=rank)


_REMEDY = "put the file back, or delete the run's folder to train anew"
_OURS = re.compile(r"(weights|last)-\d+-[0-9a-f]+\.pt|\..*\.tmp")
