"""A run's training curve beside learn2learn's own loop on the same episodes from the same first weights.

    python -m metazoo.benchmarks.learn2learn_curve RUN --out CURVE.jsonl
    python -m metazoo.benchmarks.learn2learn_curve RUN --out CURVE.jsonl --figure CURVE.png

RUN is the folder of a finished MAML run. learn2learn's side is its published recipe: one clone a task, `adapt` on the
support loss, one backward pass a task, Adam. It shares no code with the run but the network and the episodes. It adapts
every parameter, batch norm's scale and shift too, which a MAML run does only where its `inner_lr` says so. Epochs that
the curve's file holds already are not trained again unless some are missing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from rich.progress import track
from torch.nn import functional as F

from metazoo import assembly, hardware
from metazoo.data.store import open_store
from metazoo.errors import UserError
from metazoo.files import replacing, write_text
from metazoo.learner import learn2learn
from metazoo.run import Run


def learn2learn_curve(run: Run, device: torch.device) -> list[dict[str, float]]:
    """Train learn2learn's loop with the run's settings; one entry an epoch: `epoch`, `train_loss`, `train_accuracy`."""
    config, settings = run.config, run.config.training
    store = open_store(config.source, config.size)
    channels = run.provenance.channels
    standard = assembly.moments(config, channels, (run.provenance.mean, run.provenance.std))
    stream = assembly.episodes(config, store, "train", config.seed, device, channels, standard)
    backbone = assembly.build(config, channels).backbone.to(device)
    maml = learn2learn.algorithms.MAML(backbone, lr=max(config.settings["inner_lr"].values()))
    optimizer = torch.optim.Adam(maml.parameters(), lr=settings.outer_lr)
    curve = []
    iterations = settings.iterations_per_epoch
    for epoch in range(settings.epochs):
        loss_sum = correct = torch.zeros((), dtype=torch.float64, device=device)
        for iteration in track(range(epoch * iterations, (epoch + 1) * iterations), f"epoch {epoch + 1}"):
            batch = stream.batch(iteration * settings.meta_batch, settings.meta_batch)
            optimizer.zero_grad()
            for task in range(len(batch)):
                clone = maml.clone()
                for _ in range(config.settings["inner_steps"]):
                    clone.adapt(F.cross_entropy(clone(batch.support_x[task]), batch.support_y[task]))
                logits = clone(batch.query_x[task])
                loss = F.cross_entropy(logits, batch.query_y[task])
                (loss / settings.meta_batch).backward()
                loss_sum = loss_sum + loss.detach()
                correct = correct + (logits.detach().argmax(dim=-1) == batch.query_y[task]).sum()
            optimizer.step()
        tasks = iterations * settings.meta_batch
        accuracy = correct.item() / (tasks * config.ways * config.queries)
        curve.append({"epoch": epoch + 1, "train_loss": loss_sum.item() / tasks, "train_accuracy": accuracy})
    return curve


def draw(run: Run, curve: list[dict[str, float]], path: Path) -> None:
    """Both curves in one picture: query loss and accuracy on the training episodes, by task."""
    from matplotlib.figure import Figure

    ours = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    tasks_per_epoch = run.config.training.iterations_per_epoch * run.config.training.meta_batch
    figure = Figure(figsize=(7.5, 3.2), layout="constrained")
    for axes, key, label in zip(
        figure.subplots(1, 2), ("train_loss", "train_accuracy"), ("query loss", "query accuracy"), strict=True
    ):
        for entries, style, name in ((ours, "o-", "metazoo"), (curve, "s--", "learn2learn's loop")):
            tasks = [entry["epoch"] * tasks_per_epoch for entry in entries]
            axes.plot(tasks, [entry[key] for entry in entries], style, markersize=4, label=name)
        axes.set_xlabel("training tasks")
        axes.set_ylabel(f"{label} (epoch mean)")
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    with replacing(path) as file:
        figure.savefig(file, dpi=150, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="the curve, as JSON lines")
    parser.add_argument("--figure", type=Path, help="both curves as a PNG")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    try:
        run = Run.open(arguments.run)
        if run.config.algorithm != "maml":
            raise UserError(f"learn2learn's loop is MAML; {arguments.run} is a run of {run.config.algorithm}.")
        lines = arguments.out.read_text().splitlines() if arguments.out.exists() else []
        curve = [json.loads(line) for line in lines]
        if len(curve) < run.config.training.epochs:
            curve = learn2learn_curve(run, hardware.choose(arguments.device))
            write_text(arguments.out, "".join(json.dumps(entry) + "\n" for entry in curve))
        if arguments.figure:
            draw(run, curve, arguments.figure)
    except UserError as error:
        parser.exit(2, f"metazoo: {error}\n")


if __name__ == "__main__":
    main()
