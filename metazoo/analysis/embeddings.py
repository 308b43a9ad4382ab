"""Where the last block puts the images of one episode before and after adaptation, in the plane by t-SNE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from metazoo.analysis.cka import layer_outputs
from metazoo.analysis.sitting import Sitting
from metazoo.analysis.style import house_style, key, look, save, sheet
from metazoo.analysis.subjects import Subject, common_facts, layers
from metazoo.episodes import Episodes
from metazoo.errors import UserError

TIMES = ("before", "after")
SEED = 0


@dataclass(frozen=True)
class Embedding:
    """The query images of one episode in the plane, before and after a run adapted to it."""

    points: NDArray[np.float64]
    """`[2, n, 2]`: before and after, placed together, so that positions can be compared."""
    labels: NDArray[np.int64]
    """`[n]`, in [0, ways)."""


def embed(sitting: Sitting, subject: Subject, episode: int, perplexity: float) -> Embedding:
    """t-SNE of the last block's outputs for the query images of one test episode.

    Outputs before and after adaptation are points of one embedding, with distances between them as between any others.
    Raises UserError where scikit-learn is missing, for tasks without classes, or too high a perplexity.
    """
    outputs, labels = features(sitting, subject, episode)
    count = outputs.shape[0] * outputs.shape[1]
    if not 1 <= perplexity < count / 3:
        raise UserError(
            f"A perplexity of {perplexity:g} does not suit {count} points (before and after); "
            f"choose one from 1 to below {count / 3:.0f}."
        )
    placed = _tsne(outputs.reshape(count, -1), perplexity)
    return Embedding(placed.reshape(2, -1, 2), labels)


def features(sitting: Sitting, subject: Subject, episode: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The last block's outputs for the query images before and after adaptation, `[2, n, D]`; their labels `[n]`."""
    model = sitting.model(subject)
    *_, last = (layer for layer in layers(model.backbone) if layer.tap is not None)

    def look(batch: Episodes) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        if batch.query_y.dtype.is_floating_point:
            raise UserError(f"The tasks of {sitting.title} have no classes for a figure to tell apart.")
        *_, tasks = model.adaptation(batch)
        assert tasks.first_network is not None
        with torch.no_grad():
            both = torch.cat(
                [
                    layer_outputs(network.tapped, batch.query_x, [last])[last.name].flatten(2)
                    for network in (tasks.first_network, tasks.network)
                ]
            )
        return both.double().cpu().numpy(), batch.query_y[0].cpu().numpy()

    (found,) = sitting.watch(subject, model, 1, look, "embedding the images of", first=episode)
    return found


def _tsne(points: NDArray[np.float64], perplexity: float) -> NDArray[np.float64]:
    """Points `[n, D]` in the plane, `[n, 2]`; always the same for the same points, on one thread."""
    try:
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits
    except ImportError:
        raise UserError(
            "t-SNE is scikit-learn's, which is not installed here; install it with: pip install 'metazoo[figures]'"
        ) from None
    with threadpool_limits(1):
        tsne = TSNE(perplexity=perplexity, init="pca", method="exact", random_state=SEED, n_jobs=1)
        return np.asarray(tsne.fit_transform(points), dtype=np.float64)


def figure(sittings: Sequence[Sitting], folder: Path, episode: int, perplexity: float) -> list[Path]:
    """Draw a row of panels a data set, two a run (before, after), and write them; the files."""
    subjects = sittings[0].subjects
    shown = [[embed(sitting, subject, episode, perplexity) for subject in subjects] for sitting in sittings]
    with house_style():
        drawing, panels = sheet(len(sittings), 2 * len(subjects), 1.7, 1.7)
        for sitting, line, found in zip(sittings, panels, shown, strict=True):
            for number, (subject, embedding) in enumerate(zip(subjects, found, strict=True)):
                pair = line[2 * number : 2 * number + 2]
                for panel, time, points in zip(pair, TIMES, embedding.points, strict=True):
                    for label in np.unique(embedding.labels):
                        style = look(int(label)) | {"linestyle": "none", "alpha": 0.8}
                        of_class = points[embedding.labels == label]
                        panel.plot(of_class[:, 0], of_class[:, 1], **style, label=f"class {label + 1}", markersize=3)
                    panel.set_title(f"{subject.label}, {time}")
                    panel.set(xticks=[], yticks=[])
                    panel.spines[["top", "right"]].set_visible(True)
                for axis in ("x", "y"):
                    limits = np.array([getattr(panel, f"get_{axis}lim")() for panel in pair])
                    for panel in pair:
                        getattr(panel, f"set_{axis}lim")(limits[:, 0].min(), limits[:, 1].max())
            line[0].set_ylabel(sitting.title)
        key(drawing, panels[0][0])
        facts = common_facts(subjects, "source", "episode", "backbone", "budget", "seed")
        caption = (
            f"t-SNE of the last block's outputs for the query images of test episode {episode} (perplexity "
            f"{perplexity:g}, PCA start, seed {SEED}); before and after adaptation in one embedding, so their "
            f"positions can be compared, those of two methods or data sets cannot; axes have no unit; {facts}; "
            f"{', '.join(sitting.tested for sitting in sittings)}."
        )
        return save(drawing, caption, rows(sittings, shown), folder, "embeddings")


def rows(sittings: Sequence[Sitting], shown: Sequence[Sequence[Embedding]]) -> list[dict[str, Any]]:
    """Every point of the figure; `image` counts an episode's query images."""
    return [
        {"method": subject.label, "run": subject.run.name, "target": sitting.target, "time": time}
        | {"image": image, "class": int(label) + 1, "x": float(x), "y": float(y)}
        for sitting, found in zip(sittings, shown, strict=True)
        for subject, embedding in zip(sitting.subjects, found, strict=True)
        for time, points in zip(TIMES, embedding.points, strict=True)
        for image, (label, (x, y)) in enumerate(zip(embedding.labels, points, strict=True))
    ]
