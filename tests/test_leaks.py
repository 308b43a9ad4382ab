"""Leaks: test classes that a run was trained on are found, named, marked wherever their results show, and left out."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from tiny import tiny_sets  # noqa: F401
from toys import split_of
from typer.testing import CliRunner

import metazoo.cli
import metazoo.data.dataset
from metazoo import evaluation, records, training
from metazoo.config import describe
from metazoo.data.dataset import Layout, dataset
from metazoo.data.store import open_store
from metazoo.episodes import EpisodeRows, EpisodeSampler
from metazoo.errors import UserError
from metazoo.evaluation import evaluate
from metazoo.files import write_text
from metazoo.leaderboard import page, typesetting
from metazoo.leaderboard.published import Literature
from metazoo.leaderboard.shelf import Identities, Shelf, missing
from metazoo.leaderboard.standings import Leaderboard, build
from metazoo.leaderboard.suite import Suite
from metazoo.leaderboard.tables import compose
from metazoo.leaks import Leak, find_leak, leak_text, without
from metazoo.run import Run
from metazoo.schema import parse


class Redivided(tiny.Tiny):
    """The classes of `tiny` under their names, divided otherwise."""

    def layout(self, sources: Any = (), size: int | None = None) -> Layout:
        found = super().layout(sources, size)
        moved = {"train00": "test", "train07": "test", "val03": "test", "test02": "train", "test05": "train"}
        classes: dict[str, dict[str, Any]] = {"train": {}, "val": {}, "test": {}}
        for split, names in found.classes.items():
            for name, images in names.items():
                classes[moved.get(name, split)][name] = images
        return Layout(classes, found.images, found.form)


WORLD = {
    "tiny": replace(tiny.SETS["tiny"], classes_of="shapes"),
    "other": Redivided(**{**vars(tiny.SETS["tiny"]), "name": "other", "title": "Other", "classes_of": "shapes"}),
    "alien": replace(tiny.SETS["tiny"], name="alien", classes_of="sounds"),
    "turned": replace(tiny.SETS["tiny"], name="turned", classes_of="shapes", rotations=(0, 90)),
}
PROTOCOL = Path(__file__).parent.parent / "docs" / "protocol.md"
LEAKING, CHOSEN_BY, TEST = ("train00", "train07"), ("val03",), 7


@pytest.fixture(autouse=True)
def sets(tiny_sets: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Data sets of the same classes are known to every test here."""
    known = metazoo.data.dataset.published()
    monkeypatch.setattr(metazoo.data.dataset, "published", lambda: {**known, **WORLD})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return training.train(tiny.config(ways=3), home=tmp_path / "runs")


def drawn(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Will hold the names of all test classes that episodes have from now on."""
    names: set[str] = set()
    rows = EpisodeSampler.rows

    def watched(self: EpisodeSampler, start: int, count: int) -> EpisodeRows:
        found = rows(self, start, count)
        names.update(self.split.class_names[index] for index in found.classes.flat)
        return found

    monkeypatch.setattr(EpisodeSampler, "rows", watched)
    return names


@pytest.mark.parametrize(
    ("source", "target", "trained", "validated", "classes"),
    [
        ("mini_imagenet", "tiered_imagenet", 13, 2, 160),
        ("tiered_imagenet", "mini_imagenet", 5, 1, 20),
        ("cifar_fs", "fc100", 11, 4, 20),
        ("fc100", "cifar_fs", 11, 4, 20),
        ("cub", "cub_140_30_30", 14, 9, 30),
        ("cub_140_30_30", "cub", 29, 14, 50),
    ],
)
def test_the_published_divisions_leak_as_is_known(
    source: str, target: str, trained: int, validated: int, classes: int
) -> None:
    leak = find_leak(source, target, 84)
    assert leak is not None
    assert (len(leak.trained), len(leak.validated), leak.classes) == (trained, validated, classes)
    one: Any = dataset(source)
    other: Any = dataset(target)
    assert set(leak.trained) == set(one.splits["train"]) & set(other.splits["test"])
    row = rf"\| {classes} \| {trained} \| {validated} \|"
    assert len(re.findall(row, PROTOCOL.read_text(encoding="utf-8"))) >= 1, "docs/protocol.md says otherwise"


def test_the_lists_of_wordnet_ids_say_the_same(real_data: Path) -> None:
    lists = {
        name: json.loads((real_data / "splits" / f"{file}.json").read_text())
        for name, file in (("mini_imagenet", "miniimagenet"), ("tiered_imagenet", "tieredimagenet"))
    }
    for source, target in (("mini_imagenet", "tiered_imagenet"), ("tiered_imagenet", "mini_imagenet")):
        leak = find_leak(source, target, 84)
        assert leak is not None
        assert set(leak.trained) == set(lists[source]["train"]) & set(lists[target]["test"])
        assert set(leak.validated) == set(lists[source]["val"]) & set(lists[target]["test"])


def test_data_sets_of_different_worlds_share_nothing_and_none_leaks_into_itself() -> None:
    assert find_leak("tiny", "tiny") is None and find_leak("tiny", "alien") is None
    assert find_leak("cifar_fs", "omniglot") is None and find_leak("mini_imagenet", "cub") is None
    assert find_leak("sinusoid", "tiny") is None and find_leak("cub", "cub_cropped", 84) is None


def test_classes_are_compared_by_their_plain_names() -> None:
    open_store("turned")
    open_store("other")
    leak = find_leak("other", "turned")
    assert leak is not None
    assert leak.trained == ("test02@0", "test02@90", "test05@0", "test05@90") and leak.classes == 12
    back = find_leak("turned", "other")
    assert back is not None and back.trained == LEAKING and back.validated == CHOSEN_BY


def test_without_a_class_list_it_cannot_be_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be told which test classes were trained on"):
        find_leak("tiny", "other", home=tmp_path)


def test_a_split_without_classes_keeps_the_others_where_they_are() -> None:
    split = split_of([3, 4, 5])
    kept = without(split, {"class1"})
    assert kept.class_names == ("class0", "class2")
    assert kept.class_starts.tolist() == [0, 7] and kept.class_sizes.tolist() == [3, 5]
    assert kept.images is split.images and without(split, ()).class_names == split.class_names


def test_the_sentence_names_every_class() -> None:
    leak = Leak(classes=9, trained=("a", "b"), validated=("c",))
    first = "2 of Other's 9 test classes are trained on in tiny: a, b. "
    second = "1 of Other's 9 test classes are validation classes of tiny, which chose the epochs: c."
    assert leak_text(leak, "tiny", "other") == first + second
    dropped = leak_text(leak.model_copy(update={"dropped": True, "validated": ()}), "tiny", "other")
    assert dropped == "2 of Other's 9 test classes are left out, because tiny trains on them: a, b."


def test_a_record_names_the_leak_and_can_do_without_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    names = drawn(monkeypatch)
    whole = evaluate(run, "other", episodes=40)
    assert whole.leak == Leak(classes=TEST, trained=LEAKING, validated=CHOSEN_BY) and not whole.left_out
    assert names >= set(LEAKING)
    names.clear()
    clean = evaluate(run, "other", episodes=40, drop_leaking=True)
    assert clean.leak == Leak(classes=TEST, trained=LEAKING, validated=CHOSEN_BY, dropped=True)
    assert clean.left_out == LEAKING and names and not names & set(LEAKING)
    assert clean.evaluations != whole.evaluations
    # Each question is answered from its own record.
    monkeypatch.setattr(evaluation, "episode_scores", None)
    assert evaluate(run, "other", episodes=40) == whole
    assert evaluate(run, "other", episodes=40, drop_leaking=True) == clean
    assert records.read([run.records]) == [whole, clean]


def test_where_nothing_leaks_there_is_nothing_to_drop(run: Run) -> None:
    plain = evaluate(run, episodes=5)
    assert plain.leak is None and evaluate(run, episodes=5, drop_leaking=True) == plain
    assert len(records.read([run.records])) == 1


def test_too_few_classes_left_is_a_sentence(tmp_path: Path) -> None:
    run = training.train(tiny.config(ways=6), home=tmp_path)
    with pytest.raises(UserError, match="Without the 2 leaking classes Other has 5 test classes left, and 6-way"):
        evaluate(run, "other", episodes=5, drop_leaking=True)


def test_the_command_names_the_classes_and_leaves_them_out(run: Run) -> None:
    command = ["evaluate", str(run.folder), "--target", "other", "--episodes", "5", "--rule", "last"]
    said = CliRunner().invoke(metazoo.cli.app, command)
    assert said.exit_code == 0, said.output
    assert "2 of Other's 7 test classes are trained on in tiny: train00, train07." in said.stdout
    assert "--drop-leaking leaves them out" in said.stdout and "trained on in tiny" in said.stderr
    said = CliRunner().invoke(metazoo.cli.app, [*command, "--drop-leaking"])
    assert "are left out, because tiny trains on them" in said.stdout and "not the usual ones" in said.stdout


def suite(drop: bool) -> Suite:
    config = tiny.config(ways=3)
    values = {
        "name": "leaky",
        "title": "Leaky",
        "protocol": "common",
        "source": "tiny",
        "targets": ["tiny", "other"],
        "ways": 3,
        "queries": 3,
        "backbone": {"name": "conv4", "filters": 4},
        "training": config.training.model_dump(mode="json"),
        "evaluation": {"episodes": 8, "drop_leaking": drop},
        "methods": [{"method": "maml", "settings": {"inner_steps": 2}}],
    }
    return parse(Suite, values, "suite")


def papers(folder: Path) -> Literature:
    """A published number in just the protocol of the suite."""
    number = {"method": "maml", "label": "MAML", "source": "tiny", "target": "other", "ways": 3, "shots": 1}
    table = {"cited": "A paper", "meaning": "episodes", "numbers": [{**number, "accuracy": 50.0, "protocol": "same"}]}
    text = json.dumps({"protocols": {"same": {"about": "same", "episodes": 8}}, "tables": [table]})
    write_text(folder / "published.yaml", text)
    return Literature(folder / "published.yaml")


@pytest.fixture
def shelf(run: Run) -> Shelf:
    """Records of all that both suites ask for, and nothing else."""
    assert describe(run.config) == describe(suite(False).trainings[0].config)
    for target, drop in (("tiny", False), ("other", False), ("other", True)):
        evaluate(run, target, episodes=8, drop_leaking=drop)
    return Shelf(records.read([run.records]), Identities.of(suite(False)))


def board(drop: bool, shelf: Shelf, folder: Path) -> Leaderboard:
    return build(suite(drop), shelf, papers=papers(folder))


def test_a_table_marks_leaking_cells_in_every_format(shelf: Shelf, tmp_path: Path) -> None:
    table = board(False, shelf, tmp_path)
    note = "2 of Other's 7 test classes are trained on in tiny: train00, train07."
    document = compose(table)
    [own, crossed] = [entry for entry in document.tables[0].rows[0] if "±" in entry.text]
    assert not own.notes and document.notes[crossed.notes[0] - 1].startswith(note)
    assert note in typesetting.markdown(document) and note in typesetting.latex(document)
    assert note in html.unescape(page.html(table))
    cells = {cell["target"]: cell for cell in json.loads(typesetting.to_json(table))["cells"]}
    assert cells["other"]["leaking"] == list(LEAKING) and cells["other"]["left_out"] == []
    assert cells["tiny"]["leaking"] == []
    assert "train00; train07" in typesetting.to_csv(table)


def test_a_suite_that_drops_leaking_classes_takes_only_such_records_and_says_so(shelf: Shelf, tmp_path: Path) -> None:
    assert not missing(suite(False), shelf) and not missing(suite(True), shelf)
    whole, clean = (board(drop, shelf, tmp_path) for drop in (False, True))
    for table, left_out in ((whole, ()), (clean, LEAKING)):
        for (_, column), cell in table.cells.items():
            assert [record.left_out for record in cell.measured] == [left_out if column.target == "other" else ()]
    markdown = typesetting.markdown(compose(clean))
    assert "2 of Other's 7 test classes are left out, because tiny trains on them" in markdown
    assert "without test classes that the source trains on" in markdown
    cells = {cell["target"]: cell for cell in json.loads(typesetting.to_json(clean))["cells"]}
    assert cells["other"]["left_out"] == list(LEAKING) == cells["other"]["leaking"]


def test_results_without_the_leaking_classes_are_not_subtracted_from_published_ones(
    shelf: Shelf, tmp_path: Path
) -> None:
    for drop in (False, True):
        [beside] = [found for found in board(drop, shelf, tmp_path).beside.values() if found]
        assert beside[0].departures == (["2 test classes left out"] if drop else [])
        assert (beside[0].difference is None) == drop


def test_records_with_and_without_the_classes_do_not_answer_for_each_other(run: Run) -> None:
    evaluate(run, "tiny", episodes=8)
    evaluate(run, "other", episodes=8)
    shelf = Shelf(records.read([run.records]), Identities.of(suite(False)))
    assert not missing(suite(False), shelf)
    [lacking] = missing(suite(True), shelf)
    assert lacking.targets == ("other",)
