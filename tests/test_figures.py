"""`metazoo analyze`: planted truths show in the numbers, equal runs give equal files, and what is missing is said."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import sinusoids
import tiny
import torch

import metazoo.data.dataset
from metazoo import registry, training
from metazoo.algorithm import Algorithm
from metazoo.algorithms.maml import MAML
from metazoo.analysis import cka, embeddings, gradients, trajectory
from metazoo.analysis.sitting import Sitting
from metazoo.analysis.subjects import layers, subjects
from metazoo.backbones import Conv4, Mlp, ResNet12
from metazoo.errors import UserError
from metazoo.evaluation import evaluate
from metazoo.progress import Message, Reporter
from metazoo.run import Run

METHODS: dict[str, dict[str, Any]] = {
    "maml": {"inner_steps": 2, "inner_lr": {"body": 0.1, "head": 0.1}},
    "anil": {"inner_steps": 2, "inner_lr": {"head": 0.1}},
    "boil": {},
    "cxgrad": {"inner_steps": 2, "context_size": 5},
    "alfa": {"inner_steps": 2},
    "protonet": {},
}


@pytest.fixture(scope="module", autouse=True)
def sets() -> Any:
    """The tiny data sets are known to every test here."""
    known = metazoo.data.dataset.published
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metazoo.data.dataset, "published", lambda: {**known(), **tiny.SETS})
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, sets: None) -> dict[str, Path]:
    """A finished run of every method here, by its name."""
    home = tmp_path_factory.mktemp("runs")
    return {
        name: training.train(
            tiny.config(algorithm=name, settings=settings, shots=2, epochs=2), home=home, record_gradients=True
        ).folder
        for name, settings in METHODS.items()
    }


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8") as text:
        return list(csv.DictReader(text))


def sitting(*folders: Path, **options: Any) -> Sitting:
    return Sitting(subjects(folders), device="cpu", **options)


class Noting(Reporter):
    """Keeps the notes and how far each stage came."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []
        self.stages: dict[str, int] = {}

    def send(self, message: Message) -> None:
        if message.kind == "note":
            self.notes.append(message.text)
        elif message.kind == "update":
            self.stages[message.stage] = message.done


def test_anils_body_is_at_exactly_1_and_what_adapts_is_not(runs: dict[str, Path], tmp_path: Path) -> None:
    folders = [runs["maml"], runs["boil"], runs["anil"]]
    written = cka.figure(sitting(*folders), tmp_path, episodes=6)
    assert [file.name for file in written] == ["cka.pdf", "cka.png", "cka.csv"]
    found = {(row["method"], row["layer"]): float(row["cka"]) for row in rows(tmp_path / "cka.csv")}
    blocks = [f"block {number}" for number in (1, 2, 3, 4)]
    assert [layer for method, layer in found if method == "MAML"] == [*blocks, "logits"]
    assert [found["ANIL", block] for block in blocks] == [1.0] * 4 and found["ANIL", "logits"] < 1
    assert all(found[method, "block 4"] < 1 - 1e-6 for method in ("MAML", "BOIL"))
    (anil,) = subjects([runs["anil"]])
    own = cka.similarities(sitting(runs["anil"]), anil, 6)
    assert all(value == 1.0 for block in blocks for value in own[block]), "exactly, in every episode"
    assert {row["episodes"] for row in rows(tmp_path / "cka.csv")} == {"6"}


def test_stacking_episodes_changes_nothing(runs: dict[str, Path]) -> None:
    (subject,) = subjects([runs["cxgrad"]])
    one = cka.similarities(sitting(runs["cxgrad"], tasks_per_pass=1), subject, 5)
    stacked = cka.similarities(sitting(runs["cxgrad"], tasks_per_pass=3), subject, 5)
    assert all(stacked[layer] == pytest.approx(values, rel=1e-4) for layer, values in one.items())


def test_one_run_under_two_names_has_one_curve_twice(runs: dict[str, Path], tmp_path: Path) -> None:
    twins = subjects([runs["maml"], runs["maml"]])
    assert [subject.label for subject in twins] == ["MAML", "MAML #2"]
    first, second = (cka.similarities(Sitting(twins, device="cpu"), subject, 4) for subject in twins)
    assert first == second
    followed = [trajectory.follow(Sitting(twins, device="cpu"), subject, 4, 3) for subject in twins]
    assert all((followed[0].values[name] == followed[1].values[name]).all() for name in ("support", "query"))


class Louder(MAML):
    """MAML that doubles the weights of block 3 before the first step, and carries a tensor of its own along."""

    name = "louder"
    title = "Louder"

    def begin(self, tasks: Any) -> None:
        tasks.weights["body.block3.conv.weight"] = 2 * tasks.weights["body.block3.conv.weight"]
        tasks.weights["volume"] = torch.full((len(tasks), 4), 3.0, requires_grad=True)

    def step(self, tasks: Any, step: int) -> None:
        change = {name: -1e-9 * gradient for name, gradient in tasks.gradients(tasks.support_loss()).items()}
        tasks.update(change)


@pytest.fixture
def louder(monkeypatch: pytest.MonkeyPatch) -> type[Algorithm]:
    known = registry.algorithms()
    monkeypatch.setattr(registry, "algorithms", lambda: {**known, "louder": Louder})
    return Louder


def test_a_layer_that_a_method_scales_shows_it(louder: Any, tmp_path: Path) -> None:
    run = training.train(tiny.config(algorithm="louder", epochs=1), home=tmp_path / "runs")
    written = trajectory.figures(sitting(run.folder), tmp_path, episodes=4, steps=3)
    assert [file.name for file in written if file.suffix == ".csv"] == [
        "trajectory.csv",
        "trajectory_weights.csv",
        "trajectory_context.csv",
    ]
    ratios: dict[str, set[float]] = {}
    for row in rows(tmp_path / "trajectory_weights.csv"):
        for key in ("norm", "low", "high"):
            ratios.setdefault(row["layer"], set()).add(round(float(row[key]) / float(row["learned_norm"]), 4))
    assert ratios == {layer: {2.0 if layer == "block 3" else 1.0} for layer in ratios} and len(ratios) == 5
    context = rows(tmp_path / "trajectory_context.csv")
    assert {row["tensor"] for row in context} == {"volume"} and [row["norm"] for row in context] == ["6"] * 4


def test_cxgrads_first_norms_are_its_factors(runs: dict[str, Path]) -> None:
    (subject,) = subjects([runs["cxgrad"]])
    seat = sitting(runs["cxgrad"])
    followed, model = trajectory.follow(seat, subject, 4, 2), seat.model(subject)
    with torch.no_grad():
        factors = model.scaler(torch.zeros(5))
    for layer, factor in zip(("block 1", "block 2", "block 3", "block 4"), factors.tolist(), strict=True):
        assert followed.norms[layer][0] == pytest.approx(factor, rel=1e-5)
    (context,) = followed.others.values()
    assert (context[0] == 0).all() and (context[2] > 0).all()


def test_a_trajectory_ends_in_the_accuracy_that_evaluation_finds(runs: dict[str, Path], tmp_path: Path) -> None:
    reporter = Noting()
    seat = sitting(runs["maml"], runs["anil"], runs["alfa"], reporter=reporter)
    trajectory.figures(seat, tmp_path, episodes=8, steps=4)
    found = rows(tmp_path / "trajectory.csv")
    for name in ("maml", "anil", "alfa"):
        record = evaluate(Run.open(runs[name]), episodes=8, rules=["best"], device="cpu")
        own = [row for row in found if row["run"] == runs[name].name and row["set"] == "query"]
        assert [int(row["step"]) for row in own] == list(range(3 if name == "alfa" else 5))
        assert float(own[2]["accuracy"]) == pytest.approx(record.evaluations["best"].interval.mean, abs=1e-5)
        assert float(own[2]["half_width"]) == pytest.approx(record.evaluations["best"].interval.over_episodes, rel=1e-4)
    assert reporter.stages == {f"following {label}": 8 for label in ("MAML", "ANIL", "ALFA")}
    (note,) = reporter.notes
    assert note.startswith("ALFA is followed for 2 steps")


def test_support_accuracy_rises_as_a_method_adapts(runs: dict[str, Path]) -> None:
    (subject,) = subjects([runs["maml"]])
    values = trajectory.follow(sitting(runs["maml"]), subject, 8, 8).values["support"].mean(axis=1)
    assert values[-1] > values[0] + 0.1 and values[-1] <= 1


def test_functions_are_followed_by_their_error(tmp_path: Path) -> None:
    run = training.train(sinusoids.config(epochs=1), home=tmp_path / "runs")
    trajectory.figures(sitting(run.folder), tmp_path, episodes=4, steps=2)
    assert "error" in rows(tmp_path / "trajectory.csv")[0]
    (subject,) = subjects([run.folder])
    found = cka.similarities(sitting(run.folder), subject, 4)
    assert list(found) == ["linear 1", "linear 2", "logits"]
    with pytest.raises(UserError, match="have no classes"):
        embeddings.figure([sitting(run.folder)], tmp_path, episode=0, perplexity=2)


def test_gradient_norms_are_those_recorded(runs: dict[str, Path], tmp_path: Path) -> None:
    both = subjects([runs["maml"], runs["anil"]])
    gradients.figure(both, tmp_path)
    shown = rows(tmp_path / "gradients_inner.csv")
    assert {row["layer"] for row in shown if row["method"] == "ANIL"} == {"head"}
    first, _ = (line["gradient_norms"] for line in Run.open(runs["maml"]).metrics)
    own = [row for row in shown if row["method"] == "MAML" and row["layer"] == "block 2"]
    assert [int(row["iteration"]) for row in own] == list(range(1, 9))
    assert [float(row["norm"]) for row in own][:4] == first["inner"]["body.block2.conv.weight"]
    gradients.figure(both, tmp_path, "outer")
    outer = rows(tmp_path / "gradients_outer.csv")
    assert {row["layer"] for row in outer if row["method"] == "ANIL"} == {"head", *(f"block {n}" for n in range(1, 5))}


def test_a_run_that_recorded_nothing_says_how(runs: dict[str, Path], tmp_path: Path) -> None:
    run = training.train(tiny.config(epochs=1), home=tmp_path / "runs")
    with pytest.raises(UserError, match=r"has no gradient norms.*config\.yaml --runs OTHER --record-gradients"):
        gradients.figure(subjects([run.folder]), tmp_path)


def test_before_and_after_share_one_embedding(runs: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    folders = [runs["maml"], runs["anil"]]
    embeddings.figure([sitting(*folders), sitting(*folders, target="tiny")], tmp_path, episode=1, perplexity=4)
    found = rows(tmp_path / "embeddings.csv")
    assert len(found) == 2 * 2 * 2 * 9 and {row["class"] for row in found} == {"1", "2", "3"}
    (anil,) = subjects([runs["anil"]])
    outputs, labels = embeddings.features(sitting(runs["anil"]), anil, 1)
    assert (outputs[0] == outputs[1]).all(), "ANIL's body stays as it is"
    shown = [row for row in found if row["method"] == "ANIL"][:18]
    assert [int(row["class"]) - 1 for row in shown[:9]] == labels.tolist()
    seat = sitting(runs["maml"])
    with pytest.raises(UserError, match=r"perplexity of 6 .*18 points"):
        embeddings.figure([seat], tmp_path, episode=1, perplexity=6)


def test_without_scikit_learn_a_sentence_says_what_to_install(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(UserError, match=r"pip install 'metazoo\[figures\]'"):
        embeddings.figure([sitting(runs["maml"])], tmp_path, episode=0, perplexity=4)


def test_what_cannot_be_compared_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    other = training.train(tiny.config(backbone={"name": "conv4", "filters": 5}, shots=2, epochs=1), home=tmp_path)
    seat = sitting(runs["maml"], other.folder)
    assert [subject.label for subject in seat.subjects][1].startswith("MAML (")
    with pytest.raises(UserError, match=r"has conv4 \(filters 4\).*has conv4 \(filters 5\).*same network"):
        cka.figure(seat, tmp_path, episodes=4)
    one_shot = training.train(tiny.config(epochs=1), home=tmp_path)
    with pytest.raises(UserError, match=r"3-way 2-shot.*3-way 1-shot.*same episodes; make a figure for each"):
        sitting(runs["maml"], one_shot.folder)
    colour = training.train(tiny.config(source="tiny_rgb", shots=2, epochs=1), home=tmp_path)
    with pytest.raises(UserError, match="trained on tiny and tiny_rgb; say with --target"):
        sitting(runs["maml"], colour.folder)
    with pytest.raises(UserError, match="ProtoNet has no inner steps"):
        cka.figure(sitting(runs["protonet"]), tmp_path, episodes=4)
    with pytest.raises(UserError, match="at least 2 episodes, not 1"):
        cka.figure(sitting(runs["maml"]), tmp_path, episodes=1)
    with pytest.raises(UserError, match="at least 1 inner step"):
        trajectory.figures(sitting(runs["maml"]), tmp_path, episodes=4, steps=0)
    with pytest.raises(UserError, match="2 runs need as many different labels, not A, A"):
        subjects([runs["maml"], runs["anil"]], ["A", "A"])
    unfinished = tmp_path / "unfinished"
    shutil.copytree(runs["maml"], unfinished)
    (unfinished / "done").unlink()
    with pytest.raises(UserError, match="is not finished; go on with"):
        subjects([unfinished])


def test_layers_of_every_backbone() -> None:
    conv = layers(Conv4((1, 12, 12), 3, Conv4.Settings(filters=2, conv_bias=True)))
    assert [(layer.name, layer.tap) for layer in conv][2:] == [
        ("block 3", "body.block3"),
        ("block 4", "body.block4"),
        ("head", None),
    ]
    assert conv[0].weights == ("body.block1.conv.weight",)
    assert conv[-1].weights == ("head.weight",)
    resnet = layers(ResNet12((3, 12, 12), 3, ResNet12.Settings()))
    assert [layer.name for layer in resnet] == ["block 1", "block 2", "block 3", "block 4", "head"]
    assert len(resnet[0].weights) == 4
    mlp = layers(Mlp((2,), 1, Mlp.Settings(hidden=(4, 4))))
    assert [layer.tap for layer in mlp] == ["body.activation1", "body.activation2", None]
