"""The log of a training: one JSON line an epoch, which is the truth, and the same numbers for TensorBoard beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metazoo.errors import UserError

CURVES = {
    "train_loss": "loss/train",
    "train_accuracy": "accuracy/train",
    "validation_accuracy": "accuracy/validation",
    "train_error": "error/train",
    "validation_error": "error/validation",
    "outer_lr": "outer_lr",
    "tasks_per_second": "tasks_per_second",
}
"""What TensorBoard is given, and under which name."""


class MetricsLog:
    """Appends to `metrics.jsonl` and to TensorBoard's event files.

    Args:
        file: the JSON lines.
        board: TensorBoard's folder.
        position: length in bytes that the file had at the checkpoint to go on from; what was written since is cut off.
        step: the iteration of that checkpoint's last finished epoch; TensorBoard forgets what came after it.

    Raises UserError where the file is shorter than `position`.
    """

    def __init__(self, file: Path, board: Path, position: int = 0, step: int = 0):
        self.file = file
        self.position = position
        found = file.stat().st_size if file.exists() else 0
        if found < position:
            raise UserError(
                f"{file} has {found} bytes where the checkpoint knows of {position}: lines were lost; "
                "put the file back, or delete the run's folder to train anew."
            )
        if found > position:
            os.truncate(file, position)
        self._board = _tensorboard(board, step)

    def write(self, line: Mapping[str, Any]) -> None:
        """Add one line, on the disk when this returns; `position` is then the file's new length."""
        with open(self.file, "ab") as file:
            file.write((json.dumps(line) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
            self.position = file.tell()
        for key, curve in CURVES.items():
            if key in line:
                self._board.add_scalar(curve, line[key], line["iteration"])
        self._board.flush()

    def close(self) -> None:
        self._board.close()


def read(file: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, none if it is not there; a last line cut short by a kill is passed over."""
    if not file.exists():
        return []
    text = file.read_text(encoding="utf-8")
    lines = text.split("\n")
    try:
        return [json.loads(line) for line in lines[:-1]]
    except json.JSONDecodeError:
        raise UserError(f"{file} is damaged: one of its lines is not JSON.") from None


def _tensorboard(folder: Path, step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(folder, purge_step=step + 1)
