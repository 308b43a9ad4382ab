"""Make the golden records and tables anew, after a change that means to change them; then read the git diff."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from metazoo import registry
from metazoo.config import describe
from metazoo.evaluation import interval
from metazoo.files import write_text
from metazoo.leaderboard import page, typesetting
from metazoo.leaderboard.published import Literature
from metazoo.leaderboard.shelf import Identities, Shelf
from metazoo.leaderboard.standings import Leaderboard, build
from metazoo.leaderboard.suite import Suite
from metazoo.leaderboard.suite import read as read_suite
from metazoo.leaderboard.tables import compose
from metazoo.records import Evaluation, Record, read

HERE = Path(__file__).parent
METHODS = ("golden_steady", "golden_slow", "golden_half", "golden_loud", "golden_late")
IDENTITIES = Identities(
    code={(method, ""): "0.1.0+new" for method in METHODS}, data={("cifar_fs", 32): "colour", ("omniglot", 32): "grey"}
)
SKILL = {
    "Steady": 0.60,
    "Steady twice": 0.603,
    "Slow & sure": 0.45,
    "Half_way": 0.55,
}


def suite() -> Suite:
    if METHODS[0] not in registry.algorithms():
        registry.load_plugin(HERE / "methods.py")
    return read_suite(HERE / "suite.yaml")


def leaderboard() -> Leaderboard:
    """The leaderboard of the records that are kept here."""
    shelf = Shelf(read([HERE / "records.jsonl"]), IDENTITIES)
    return build(suite(), shelf, papers=Literature(HERE / "published.yaml"))


def texts(board: Leaderboard) -> dict[str, str]:
    """The tables by file name."""
    document = compose(board)
    return {
        "leaderboard.md": typesetting.markdown(document),
        "leaderboard.tex": typesetting.latex(document),
        "leaderboard.csv": typesetting.to_csv(board),
        "leaderboard.json": typesetting.to_json(board),
        "leaderboard.html": page.html(board, HERE / "runs"),
    }


def made_up_metrics() -> dict[str, list[dict[str, float]]]:
    """What two runs logged, one of which diverged after its first epoch; the others' runs are nowhere."""
    return {
        "golden_steady-0": [
            {"epoch": 1, "train_accuracy": 0.41, "validation_accuracy": 0.52, "validation_interval": 0.021},
            {"epoch": 2, "train_accuracy": 0.55, "validation_accuracy": 0.507, "validation_interval": 0.02},
        ],
        "golden_half-1": [
            {"epoch": 1, "train_accuracy": 0.3, "validation_accuracy": 0.33, "validation_interval": 0.018},
        ],
    }


def made_up_records() -> list[Record]:
    """Rows that are measured, measured with other code, half diverged, incompatible, out of memory, and missing."""
    records = []
    for number, row in enumerate(suite().rows):
        for (_, seed), config in row.configs.items():
            for target, drop, data in (("cifar_fs", 0.0, "colour"), ("omniglot", 0.1, "grey")):
                made = Record(
                    run=f"{row.entry.method}-{seed}",
                    config=dict(describe(config)),
                    data={"source": "colour", "target": data},
                    code="0.1.0+old" if row.label == "Slow & sure" else "0.1.0+new",
                    target=target,
                    episodes=40,
                    queries_per_episode=75,
                    batch_norm="batch statistics",
                    parameters=69_893,
                    command="metazoo leaderboard golden.yaml",
                    versions={"python": "3.11.7", "torch": "2.10.0"},
                    hardware="A machine (1 of 2 cores, 8 GiB)",
                    created="2026-01-02T03:04:05Z",
                    training_seconds=100.0 + 40.0 * number + seed,
                    tasks_per_second=25.0 / (1 + number),
                    peak_memory_mb=512.0 + seed,
                )
                if row.label == "Half_way" and seed == 1:
                    made = _lost(made, "diverged", "The loss is not a number.")
                elif row.label == "Loud":
                    made = _lost(made, "incompatible", "It needs 100 % quiet.")
                elif row.label == "Late":
                    if target == "omniglot":
                        continue
                    made = _lost(made, "out of memory", "Lower tasks_per_pass.")
                else:
                    evaluations = _evaluations(SKILL[row.label] - drop, number, seed)
                    made = made.model_copy(update={"evaluations": evaluations})
                records.append(made)
    return records


def _lost(record: Record, status: str, reason: str) -> Record:
    return record.model_copy(update={"status": status, "reason": reason})


def _evaluations(skill: float, number: int, seed: int) -> dict[str, Evaluation]:
    """Episodes share their difficulty; rules and seeds differ a little."""
    difficulty = np.random.default_rng(0).normal(0.0, 0.08, 40)
    noise = np.random.default_rng([1, number, seed])
    evaluations = {}
    for rule, gain, epochs in (("last", -0.01, [2]), ("best", 0.0, [1]), ("ensemble", 0.02, [1, 2])):
        chance = np.clip(skill + gain + difficulty + noise.normal(0.0, 0.02, 40), 0.05, 0.95)
        correct = noise.binomial(75, chance).tolist()
        evaluations[rule] = Evaluation(accuracy=interval(correct, 75), correct=correct, epochs=epochs)
    return evaluations


if __name__ == "__main__":
    write_text(HERE / "records.jsonl", "".join(record.model_dump_json() + "\n" for record in made_up_records()))
    for run, lines in made_up_metrics().items():
        write_text(HERE / "runs" / run / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    for name, text in texts(leaderboard()).items():
        write_text(HERE / name, text)
