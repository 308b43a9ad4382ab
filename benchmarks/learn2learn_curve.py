"""A run's training curve beside learn2learn's own loop on the same episodes from the same first weights.

    python -m metazoo.benchmarks.learn2learn_curve RUN --out CURVE.jsonl
    python -m metazoo.benchmarks.learn2learn_curve RUN --out CURVE.jsonl --figure CURVE.png

RUN is the folder of a finished MAML run, of images or of functions. learn2learn's side is its published recipe: one
clone a task, `adapt` on the support loss, one backward pass a task, Adam. It shares no code with the run but the
network, the episodes and the loss. It adapts every parameter, batch norm's scale and shift too, which a MAML run does
only where its `inner_lr` says so. The curve has the keys of a run's `metrics.jsonl`; after each epoch it is validated
as the run was. Epochs that the curve's file holds already are not trained again unless some are missing.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from metazoo import assembly, hardware
from metazoo.data.dataset import dataset
from metazoo.domains import open_domain
from metazoo.episodes import Episodes
from metazoo.errors import UserError
from metazoo.evaluation import interval
from metazoo.files import replacing, write_text
from metazoo.learner import learn2learn
from metazoo.objectives import scores, task_losses
from metazoo.run import Run


def learn2learn_curve(run: Run, device: torch.device) -> list[dict[str, float]]:
    """Train learn2learn's loop with the run's settings; one entry an epoch, with keys as in `metrics.jsonl`."""
    config, settings, inputs = run.config, run.config.training, run.provenance.inputs
    domain = open_domain(config.source, config.size)
    measure = domain.measure
    stream = domain.episodes(config, "train", config.seed, device, inputs)
    validation = domain.episodes(config, "val", 0, device, inputs)
    backbone = assembly.build(config, inputs).backbone.to(device)
    maml = learn2learn.algorithms.MAML(backbone, lr=max(config.settings["inner_lr"].values()))
    optimizer = torch.optim.Adam(maml.parameters(), lr=settings.outer_lr)
    steps = config.settings["inner_steps"]
    curve = []
    iterations = settings.iterations_per_epoch
    for epoch in range(settings.epochs):
        begun = time.perf_counter()
        loss_sum = score_sum = torch.zeros((), dtype=torch.float64, device=device)
        for iteration in track(range(epoch * iterations, (epoch + 1) * iterations), f"epoch {epoch + 1}"):
            batch = stream.batch(iteration * settings.meta_batch, settings.meta_batch)
            optimizer.zero_grad()
            for task in batch.chunks(1):
                outputs = adapted(maml, task, steps)
                loss = task_losses(outputs, task.query_y)[0]
                (loss / settings.meta_batch).backward()
                loss_sum = loss_sum + loss.detach()
                score_sum = score_sum + scores(outputs.detach(), task.query_y)[0]
            optimizer.step()
        seconds = time.perf_counter() - begun
        tasks = iterations * settings.meta_batch
        validated = []
        for episode in range(settings.validation_episodes):
            task = validation.batch(episode, 1)
            validated.append(scores(adapted(maml, task, steps).detach(), task.query_y).item())
        scored = interval(validated, validation.queries, measure)
        curve.append(
            {
                "epoch": epoch + 1,
                "iteration": (epoch + 1) * iterations,
                "train_loss": loss_sum.item() / tasks,
                f"train_{measure.name}": measure.mean(score_sum.item(), tasks, stream.queries),
                f"validation_{measure.name}": scored.mean,
                "validation_interval": scored.over_episodes,
                "tasks_per_second": round(tasks / seconds, 3),
            }
        )
    return curve


def adapted(maml: Any, task: Episodes, steps: int) -> Tensor:
    """The query outputs [1, Q, N] of a clone that made inner steps on the support set of one task."""
    clone = maml.clone()
    for _ in range(steps):
        clone.adapt(task_losses(clone(task.support_x[0])[None], task.support_y)[0])
    return clone(task.query_x[0])[None]


def draw(run: Run, curve: list[dict[str, float]], path: Path) -> None:
    """Both curves in one picture: query loss and accuracy, or error, on the training episodes, by task."""
    from matplotlib.figure import Figure

    measure = dataset(run.config.source).measure.name
    ours = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    tasks_per_epoch = run.config.training.iterations_per_epoch * run.config.training.meta_batch
    figure = Figure(figsize=(7.5, 3.2), layout="constrained")
    for axes, key, label in zip(
        figure.subplots(1, 2), ("train_loss", f"train_{measure}"), ("query loss", f"query {measure}"), strict=True
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
