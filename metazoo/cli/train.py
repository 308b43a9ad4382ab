"""`metazoo train`: one run, from options, a config file, or both."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from metazoo.cli.plugins import PluginFiles, load_plugins
from metazoo.errors import UserError

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
TasksPerPass = Annotated[
    int | None,
    typer.Option(
        help="Tasks stacked in one pass: lower for less memory. By default all, or on a GPU as many as fit; 1 for "
        "convolutions on a CPU."
    ),
]
RecordGraphs = Annotated[
    bool,
    typer.Option(
        "--graphs/--no-graphs", help="On a GPU, replay passes as CUDA graphs where that can be done. Changes no result."
    ),
]
Recompute = Annotated[
    bool,
    typer.Option(
        "--recompute",
        help="Compute inner steps anew for the meta-gradient instead of keeping them: less memory, more time. Changes "
        "no result.",
    ),
]
ImagesOn = Annotated[
    Literal["auto", "device", "host", "disk"],
    typer.Option("--images-on", help="Where the images lie; auto: as near as free memory allows. Changes no result."),
]
RecordGradients = Annotated[
    bool,
    typer.Option(
        "--record-gradients", help="Record gradient norms for `metazoo analyze gradients`; changes no result."
    ),
]

_EPISODES, _OUTER = "Episodes", "Outer loop"


def train(
    method: Annotated[str | None, typer.Argument(help="The method; `metazoo list` shows them.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="A YAML file with a run's config; options given beside it come first.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Settings as a paper or its code has them; `metazoo list METHOD` shows them.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method, as YAML.")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="The data set to train on; `metazoo data list` shows them.")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Image side in pixels.")] = None,
    normalisation: Annotated[Literal["none", "imagenet", "source", "per_data_set"] | None, typer.Option()] = None,
    ways: Annotated[int | None, typer.Option(rich_help_panel=_EPISODES)] = None,
    shots: Annotated[int | None, typer.Option(rich_help_panel=_EPISODES)] = None,
    queries: Annotated[int | None, typer.Option(help="Query images per class.", rich_help_panel=_EPISODES)] = None,
    backbone: Annotated[Literal["conv4", "resnet12", "mlp"] | None, typer.Option()] = None,
    backbone_settings: Annotated[
        list[str] | None, typer.Option("--backbone-set", metavar="KEY=VALUE", help="Such as filters=32.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the first weights and the training episodes.")] = None,
    epochs: Annotated[int | None, typer.Option(rich_help_panel=_OUTER)] = None,
    iterations_per_epoch: Annotated[int | None, typer.Option(rich_help_panel=_OUTER)] = None,
    meta_batch: Annotated[int | None, typer.Option(help="Tasks per outer update.", rich_help_panel=_OUTER)] = None,
    outer_lr: Annotated[float | None, typer.Option(rich_help_panel=_OUTER)] = None,
    schedule: Annotated[Literal["constant", "cosine", "steps"] | None, typer.Option(rich_help_panel=_OUTER)] = None,
    min_outer_lr: Annotated[float | None, typer.Option(help="Where cosine ends.", rich_help_panel=_OUTER)] = None,
    first_order_epochs: Annotated[int | None, typer.Option(rich_help_panel=_OUTER)] = None,
    gradient_clamp: Annotated[float | None, typer.Option(rich_help_panel=_OUTER)] = None,
    reduction: Annotated[Literal["mean", "sum"] | None, typer.Option(rich_help_panel=_OUTER)] = None,
    validation_episodes: Annotated[int | None, typer.Option(rich_help_panel=_OUTER)] = None,
    keep: Annotated[int | None, typer.Option(help="Best checkpoints to keep.", rich_help_panel=_OUTER)] = None,
    training_settings: Annotated[
        list[str] | None,
        typer.Option("--training-set", metavar="KEY=VALUE", help="Such as milestones=[20,40].", rich_help_panel=_OUTER),
    ] = None,
    precision: Annotated[
        Literal["float32", "tf32", "bfloat16"] | None,
        typer.Option(
            help="What convolutions multiply in; tf32 is for NVIDIA's GPUs. It changes results.",
            rich_help_panel=_OUTER,
        ),
    ] = None,
    runs: Annotated[Path, typer.Option(help="The folder of runs.")] = Path("runs"),
    device: Device = "auto",
    tasks_per_pass: TasksPerPass = None,
    images_on: ImagesOn = "auto",
    record_graphs: RecordGraphs = True,
    recompute: Recompute = False,
    record_gradients: RecordGradients = False,
    plugin: PluginFiles = None,
) -> None:
    """Train a method, or go on with a training that was interrupted: the same command does both."""
    from metazoo import allocator, registry, training
    from metazoo.config import RunConfig
    from metazoo.data.dataset import dataset
    from metazoo.progress import on_terminal
    from metazoo.schema import parse, read_yaml

    load_plugins(plugin)
    given = {
        "algorithm": method,
        "source": source,
        "size": size,
        "normalisation": normalisation,
        "ways": ways,
        "shots": shots,
        "queries": queries,
        "backbone": {"name": backbone},
        "seed": seed,
        "training": {
            "epochs": epochs,
            "iterations_per_epoch": iterations_per_epoch,
            "meta_batch": meta_batch,
            "outer_lr": outer_lr,
            "schedule": schedule,
            "min_outer_lr": min_outer_lr,
            "first_order_epochs": first_order_epochs,
            "gradient_clamp": gradient_clamp,
            "reduction": reduction,
            "validation_episodes": validation_episodes,
            "keep": keep,
            "precision": precision,
        },
    }
    values = merged(read_yaml(config) if config else {}, given)
    usual = dataset(values["source"]).defaults if isinstance(values.get("source"), str) else {}
    if preset is not None:
        from metazoo.presets import preset as named

        if "algorithm" not in values:
            raise UserError("A preset is one of a method's; name the method, as in `metazoo train maml --preset NAME`.")
        shots = merged(usual, values).get("shots", 1)
        values = merged(named(values["algorithm"], preset).values(shots), values)
    values = merged(usual, values)
    for key, how in (("algorithm", "a method, as in `metazoo train maml`"), ("source", "a data set: --source NAME")):
        if key not in values:
            raise UserError(f"Name {how}, or a --config that says it.")
    for pair in settings or ():
        fields = registry.algorithm(values["algorithm"]).Settings.model_fields
        own = values.setdefault("settings", {})
        assign(own, pair, "--set", {key: field.default for key, field in fields.items()})
    for pair in backbone_settings or ():
        assign(values.setdefault("backbone", {"name": "conv4"}), pair, "--backbone-set")
    for pair in training_settings or ():
        assign(values.setdefault("training", {}), pair, "--training-set")
    wanted = parse(RunConfig, values, str(config) if config else "the command line")
    allocator.keep_freed_memory()
    try:
        with on_terminal() as reporter:
            run = training.train(
                wanted,
                home=runs,
                device=device,
                tasks_per_pass=tasks_per_pass,
                command=typed(),
                reporter=reporter,
                record_gradients=record_gradients,
                images_on=images_on,
                record_graphs=record_graphs,
                recompute=recompute,
            )
    except KeyboardInterrupt as stop:
        said = f"{stop}{_plugins(plugin)}" if str(stop) else "Stopped; the same command goes on."
        typer.echo(f"metazoo: {said}", err=True)
        raise typer.Exit(130) from None
    measure = dataset(run.config.source).measure
    found = [line[f"validation_{measure.name}"] for line in run.metrics]
    best = max(found, key=lambda value: measure.sign * value)
    typer.echo(
        f"{run.folder}: {len(found)} epochs done, validation {measure.name} {measure.text(found[-1])} at the end, "
        f"{measure.text(best)} at best.\nNext: metazoo evaluate {shlex.quote(str(run.folder))}{_plugins(plugin)}"
    )


def typed() -> str:
    """The command line of this process, as it would be typed."""
    return shlex.join(["metazoo", *sys.argv[1:]])


def assign(values: dict[str, Any], pair: str, option: str, defaults: Mapping[str, Any] | None = None) -> None:
    """Do what one `KEY=VALUE` says, the value read as YAML; `a.b=1` changes `b` alone in the mapping `a`.

    A mapping that `values` does not have yet is taken from the `defaults`, so that `b` is all that changes.
    """
    import yaml

    key, equals, text = pair.partition("=")
    if not equals or not key:
        raise UserError(f"{option} takes KEY=VALUE, not '{pair}'.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"{option} {pair}: the value is not valid YAML.") from None
    *path, name = key.split(".")
    place: Mapping[str, Any] = defaults or {}
    for part in path:
        below = values.get(part, place.get(part))
        values[part] = dict(below) if isinstance(below, Mapping) else {}
        values, place = values[part], {}
    values[name] = value


def merged(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with what was `given` in its place, mapping by mapping; None means not given."""
    values = dict(base)
    for key, value in given.items():
        if isinstance(value, Mapping):
            below = values.get(key)
            inner = merged(below if isinstance(below, Mapping) else {}, value)
            if inner:
                values[key] = inner
        elif value is not None:
            values[key] = value
    return values


def _plugins(files: list[Path] | None) -> str:
    return "".join(f" --plugin {shlex.quote(str(file))}" for file in files or ())
