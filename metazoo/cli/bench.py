"""`metazoo bench`: how fast a method trains and is evaluated here, beside a plain loop on learn2learn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from metazoo.cli.plugins import PluginFiles, load_plugins
from metazoo.cli.train import Device, TasksPerPass


def bench(
    methods: Annotated[list[str] | None, typer.Argument(help="Methods; maml and cxgrad by default.")] = None,
    shape: Annotated[
        list[str] | None, typer.Option(help="Of the episodes, such as miniimagenet-5w5s; all by default.")
    ] = None,
    precision: Annotated[
        Literal["float32", "tf32", "bfloat16"],
        typer.Option(help="Of our side; the other's is float32, or tf32 where ours is."),
    ] = "float32",
    device: Device = "auto",
    tasks: Annotated[int, typer.Option(min=1, help="Tasks in one round.")] = 2,
    tasks_per_pass: TasksPerPass = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, in which both sides alternate.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; PyTorch's choice by default.")] = None,
    keep_freed_memory: Annotated[
        bool, typer.Option("--keep-freed-memory", help="Let the C library (glibc) keep freed memory, for both sides.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write what was measured to this file.")] = None,
    plugin: PluginFiles = None,
) -> None:
    """Time training and evaluation of methods on noise in the shape of real episodes.

    Methods with a plain loop to compare with (maml, cxgrad) are timed beside it in the same process, on the same
    tensors and from the same weights; a ratio above 1 says how many times faster metazoo is.
    """
    import importlib
    import json
    from dataclasses import asdict

    import torch

    from metazoo import hardware, registry
    from metazoo.files import write_text

    speed = importlib.import_module("metazoo.benchmarks.speed.bench")
    load_plugins(plugin)
    names, shapes = methods or ["maml", "cxgrad"], shape or list(speed.shapes())
    for name in names:
        registry.algorithm(name)
    for name in shapes:
        speed.shape_called(name)
    if threads:
        torch.set_num_threads(threads)
    place = hardware.choose(device)
    if keep_freed_memory:
        speed.keep_freed_memory()
    record: dict[str, Any] = {
        "hardware": hardware.describe(place),
        "versions": hardware.versions(),
        "matrix_gflops": speed.matrix_gflops(place),
        "copy_gigabytes_per_second": speed.copy_gigabytes(place),
        "arguments": {
            "tasks": tasks,
            "tasks_per_pass": tasks_per_pass,
            "rounds": rounds,
            "threads": threads,
            "keep_freed_memory": keep_freed_memory,
        },
        "measured": [],
    }
    print(f"{record['hardware']}; matrix product {record['matrix_gflops']:.0f} Gflop/s (float32)")
    print(f"{'':44}{'tasks/s':>10}{'plain':>10}{'ratio':>8}  {'quartiles':14}{'MB':>7}{'plain':>7}{'of peak':>9}")
    for name in names:
        for kind in shapes:
            for work in ("training", "evaluation"):
                found = speed.measure(name, kind, work, place, precision, tasks, tasks_per_pass, rounds)
                record["measured"].append(asdict(found))
                print(_line(found), flush=True)
                if json_file:
                    write_text(json_file, json.dumps(record, indent=1) + "\n")


def _line(row: Any) -> str:
    line = f"{row.method:10}{row.shape:20}{row.work:14}{row.tasks_per_second:10.2f}"
    if row.ratio is None:
        return f"{line}{'':42}{row.peak_mb:7.0f}"
    low, high = row.ratio_quartiles
    return (
        f"{line}{row.plain_tasks_per_second:10.2f}{row.ratio:8.2f}  {f'{low:.2f} to {high:.2f}':14}"
        f"{row.peak_mb:7.0f}{row.plain_peak_mb:7.0f}{row.share_of_peak:9.0%}"
    )
