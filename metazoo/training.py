"""Training: the outer loop of every method, in a run's folder from which it can go on after any interruption."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from metazoo import hardware
from metazoo.config import RunConfig, code_version, identity, resolve, run_name
from metazoo.domains import open_domain
from metazoo.errors import Diverged, Incompatible, OutOfMemory, UserError
from metazoo.outer_loop import Trainer
from metazoo.placement import known_placement
from metazoo.precision import arithmetic, check_trainable
from metazoo.progress import Reporter
from metazoo.run import Provenance, Run, now
from metazoo.stopping import Stopped, StopRequest


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop and did, after saving; the message says how to go on."""


def train(
    config: RunConfig,
    *,
    home: Path,
    device: str = "auto",
    tasks_per_pass: int | None = None,
    command: str = "",
    reporter: Reporter | None = None,
    data_home: Path | None = None,
    record_gradients: bool = False,
    images_on: str = "auto",
    record_graphs: bool = True,
    recompute: bool = False,
) -> Run:
    """Train what the config says, in its folder under `home`; go on where it stopped, return at once when it is done.

    With `record_gradients`, the metrics hold the norms of the gradients, too (`GradientRecord`); the training stays the
    same, bit for bit. What cannot work is refused and leaves no folder behind.

    The rest changes memory and speed, and the result by rounding at most. `tasks_per_pass` tasks are stacked in a pass
    (by default as `metazoo.memory.PassSize` says), `images_on` says where the images lie (`Placement`, or auto),
    `record_graphs` lets a GPU replay passes (`metazoo.graphs`), and `recompute` computes what a derivative needs of an
    inner step anew instead of keeping it (`metazoo.recomputing`).

    Raises:
        UserError: for a config, data set or folder that cannot be used.
        Incompatible: for a method and a backbone that cannot work together.
        Diverged: when the loss is not a number, also on every later call: the run is marked.
        OutOfMemory: when the device's memory does not suffice; the run is marked and can go on with other options.
        Interrupted: on SIGINT or SIGTERM (in the main thread), after saving.
    """
    domain = open_domain(config.source, config.size, home=data_home)
    config = resolve(config, domain.size)
    data, code = domain.identity, code_version(config)
    folder = Path(home) / run_name(config, data, code)
    run = None
    if Run.exists(folder):
        run = Run.open(folder)
        if run.provenance.identity != identity(config, data, code):
            raise UserError(f"{folder} holds another run than the one asked for; move it away, or name another --runs.")
        if run.state == "done":
            if record_gradients and not any("gradient_norms" in line for line in run.metrics):
                (reporter or Reporter()).note(
                    f"{run.name} was trained before without recording gradients; to have them, train it anew in "
                    "another folder (--runs)."
                )
            return run
        if run.state == "diverged":
            raise Diverged(run.reason)
    place = hardware.choose(device)
    precision = config.training.precision
    check_trainable(precision, place)
    # The caller's random numbers and switches are left as they were.
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []), arithmetic(precision, place):
        images = domain.place(["train", "val"], place, known_placement(images_on))
        placement = images.placement if images else None
        trainer = Trainer(
            config,
            domain,
            place,
            tasks_per_pass,
            reporter or Reporter(),
            record_gradients,
            placement,
            record_graphs,
            recompute,
        )
        if images and not images.goes_without_saying:
            (reporter or Reporter()).note(images.text)
        if run is None:
            provenance = Provenance(
                identity=identity(config, data, code),
                data=data,
                code=code,
                inputs=domain.inputs,
                command=command,
                created=now(),
            )
            with _writable(folder):
                run = Run.create(folder, config, provenance)
        try:
            with _writable(folder), run.lock():
                if run.state != "done":
                    _train_marking_state(trainer, run)
        except Incompatible:
            if trainer.iteration == 0:  # some pairs show only on the first episodes that they cannot work
                shutil.rmtree(folder)
            raise
    return run


def _train_marking_state(trainer: Trainer, run: Run) -> None:
    """Train, and leave in the run's folder how it ended."""
    remedy = "lower tasks_per_pass"
    if trainer.pass_size.tasks > 1:
        remedy += f" (now {trainer.pass_size.tasks}; it changes no result)"
    if trainer.model.backbone.recomputing is None:
        remedy += ", or take --recompute"
    remedy += ", then lower meta_batch, queries or the backbone's filters"
    try:
        with StopRequest() as stop, hardware.memory_sentences(trainer.device, f"training {run.name}", remedy):
            trainer.resume(run)
            run.mark("running")
            try:
                trainer.train(stop)
            except Stopped:
                trainer.save()
                raise Interrupted(f"Stopped after iteration {trainer.iteration} and saved; {run.resume_hint}") from None
            finally:
                trainer.log.close()
        run.finish(trainer.summary())
    except Diverged as error:
        run.mark("diverged", str(error))
        raise
    except OutOfMemory as error:
        run.mark("out of memory", str(error))
        raise
    except KeyboardInterrupt as error:
        run.mark("interrupted", str(error) or "stopped before it could save; the last checkpoint holds")
        raise
    except Exception as error:
        run.mark("error", f"{error}" if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
        raise


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """Say in a sentence what is wrong when the run's folder cannot be written: a full disk, a missing permission."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"The run {folder} could not be written ({error.strerror or error}); what was saved before is intact, and "
            "the same command goes on from it once there is room and permission to write."
        ) from error
