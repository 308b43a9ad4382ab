from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from metazoo.config import describe
from metazoo.errors import UserError
from metazoo.leaderboard import suite as suites
from metazoo.leaderboard.published import Literature, literature
from metazoo.leaderboard.suite import Column, Suite
from metazoo.presets import preset, presets

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
TABLE_1 = {
    *("maml", "cavia", "boil", "mamlpp", "alfa", "modgrad", "l2f", "cxgrad", "matchingnet", "relationnet", "protonet")
}


def values(**changes: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "name": "mine",
        "title": "Mine",
        "protocol": "common",
        "source": "cifar_fs",
        "methods": ["maml", "boil"],
    }
    return {key: value for key, value in {**plain, **changes}.items() if value is not None}


def read(tmp_path: Path, **changes: Any) -> Suite:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values(**changes)))
    return suites.read(path)


@pytest.mark.parametrize("path", sorted(BENCHMARKS.rglob("*.y*ml")), ids=lambda path: str(path.relative_to(BENCHMARKS)))
def test_every_yaml_under_benchmarks_is_valid(path):
    """Recursively: a YAML that is no suite, no presets and not the published numbers has nothing that checks it."""
    if path == BENCHMARKS / "published.yaml":
        assert Literature(path).numbers
    elif path.parent == BENCHMARKS / "presets":
        assert presets(path.stem)
    else:
        assert path.parent == BENCHMARKS / "suites", "nothing checks this file; say here what it is"
        assert suites.read(path).name == path.stem


def test_the_suites_of_the_project_are_found_by_name():
    assert {row.entry.method for row in suites.load("demo").rows} >= {"maml", "anil", "boil", "cxgrad"}
    omniglot = suites.load("omniglot")
    assert (omniglot.ways, omniglot.shots, [row.entry.method for row in omniglot.rows]) == (20, (1,), ["maml"])


def test_boil_as_published_is_what_its_code_runs_on_cifar_fs():
    [row] = [row for row in suites.load("table1_cifar_fs_published").rows if row.entry.method == "boil"]
    config = row.config(5, 0)
    assert config.backbone.model_dump(include={"name", "filters", "conv_bias", "activation"}) == {
        "name": "conv4",
        "filters": 64,
        "conv_bias": True,
        "activation": "relu",
    }
    training = config.training
    assert (training.epochs * training.iterations_per_epoch, training.meta_batch) == (5000, 4)
    assert (config.settings["inner_steps"], config.settings["inner_lr"]) == (1, {"body": 0.5, "norm": 0.5})
    assert (config.size, row.rule) == (32, "last")


@pytest.mark.parametrize("data", ["miniimagenet", "tieredimagenet", "cifar_fs"])
def test_table_1_has_a_suite_in_either_protocol(data):
    common, published = suites.load(f"table1_{data}"), suites.load(f"table1_{data}_published")
    assert {row.entry.method for row in common.rows} >= TABLE_1
    assert (common.protocol, published.protocol) == ("common", "as published")
    assert common.source == published.source and common.shots == published.shots == (1, 5)
    [row] = [row for row in published.rows if row.entry.method == "cxgrad"]
    for shots in (1, 5):  # CxGrad's common protocol is that of its code, so its numbers may be compared in either
        numbers = literature().of("cxgrad", describe(row.config(shots, 0)), common.source)
        assert [literature().departures(n, describe(row.config(shots, 0)), row.rule, 600) for n in numbers] in (
            [],
            [[]],
        )


@pytest.mark.parametrize(
    "table, key, values",
    [
        ("table3", "context", ["step_wise", "step_wise_lagged", "task_wise"]),
        ("table4", "inner_steps", [5, 4, 3, 2, 1]),
        ("table5", "context_lr", [1.0, 0.1, 0.01, 0.0]),
    ],
)
def test_ablations_differ_in_one_setting_and_have_a_quick_variant(table, key, values):
    full, quick = suites.load(table), suites.load(f"{table}_quick")
    assert full.source == "mini_imagenet" and quick.source == "glyphs"
    assert [row.label for row in full.rows] == [row.label for row in quick.rows]
    for suite in (full, quick):
        found = [row.config(5, 0) for row in suite.rows]
        assert [config.settings[key] for config in found] == values
        rest = [{**config.settings, key: None} for config in found]
        assert all(each == rest[0] for each in rest)
        assert len({config.model_copy(update={"settings": {}}).model_dump_json() for config in found}) == 1


@pytest.mark.parametrize("name", sorted(name for name in suites.suites() if name.endswith("_published")))
def test_methods_that_cannot_be_checked_are_not_published(name):
    """What a row runs was read in somebody's code: nothing recalled, of second hand or of our own making."""
    entries = [row.entry for row in suites.load(name).rows]
    assert {"maml", "cxgrad"} <= {entry.method for entry in entries}
    assert not {"anil", "metasgd", "warpmaml", "metagna"} & {entry.method for entry in entries}
    for entry in entries:
        assert preset(entry.method, entry.preset).evidence.startswith("read in "), entry.method


def test_a_rows_own_keys_go_before_its_preset(tmp_path):
    row = {"method": "cxgrad", "preset": "published", "normalisation": "source", "training": {"epochs": 7}}
    made = read(tmp_path, protocol="as published", methods=[row], size=32, settings=None, shots=[5])
    config = made.rows[0].config(5, 0)
    assert (config.size, config.normalisation, config.backbone.filters) == (84, "source", 48)
    assert (config.training.epochs, config.training.iterations_per_epoch, config.training.meta_batch) == (7, 500, 2)
    assert made.rows[0].rule == "ensemble", "the rule its numbers were made with"
    with pytest.raises(UserError, match="has preset and normalisation and training of its own"):
        read(tmp_path, methods=[row])


def test_a_suite_becomes_cells_of_resolved_configs(tmp_path):
    made = read(
        tmp_path,
        targets=["cifar_fs", "omniglot"],
        shots=[1, 5],
        seeds=[0, 1],
        training={"epochs": 7},
        per_shots={5: {"meta_batch": 2}},
        methods=["maml", {"method": "maml", "label": "MAML, 1 step", "settings": {"inner_steps": 1}}],
    )
    assert made.columns == [Column(target, shots) for target in ("cifar_fs", "omniglot") for shots in (1, 5)]
    assert [row.label for row in made.rows] == ["MAML", "MAML, 1 step"]
    config = made.rows[1].config(5, 1)
    assert (config.settings["inner_steps"], config.settings["inner_lr"]) == (1, {"body": 0.01, "head": 0.01})
    assert (config.shots, config.seed, config.size) == (5, 1, 32)
    assert (config.training.epochs, config.training.meta_batch) == (7, 2)
    assert made.rows[1].config(1, 1).training.meta_batch == 4
    # One training serves all its targets.
    assert len(made.trainings) == 2 * 2 * 2
    assert {training.targets for training in made.trainings} == {("cifar_fs", "omniglot")}
    assert made.trainings[0].title == "MAML 1-shot seed 0"


def test_two_rows_with_the_same_config_are_one_training(tmp_path):
    made = read(tmp_path, methods=["maml", {"method": "maml", "label": "Again"}])
    assert len(made.rows) == 2 and len(made.trainings) == 1


def test_the_source_is_the_target_by_default(tmp_path):
    assert read(tmp_path).columns == [Column("cifar_fs", 1)]


def test_as_published_methods_have_their_own(tmp_path):
    made = read(
        tmp_path,
        protocol="as published",
        training={"epochs": 7},
        backbone={"filters": 32},
        per_shots={1: {"meta_batch": 2}},
        methods=[
            {"method": "maml", "backbone": {"conv_bias": True}, "training": {"meta_batch": 8}, "size": 84},
            {"method": "boil", "backbone": {"name": "resnet12"}, "normalisation": "imagenet", "rule": "last"},
        ],
    )
    first, second = (row.config(1, 0) for row in made.rows)
    assert first.backbone.model_dump(include={"filters", "conv_bias"}) == {"filters": 32, "conv_bias": True}
    assert (first.training.epochs, first.training.meta_batch, first.size) == (7, 8, 84)
    assert (second.backbone.name, second.normalisation, second.size) == ("resnet12", "imagenet", 32)
    assert [row.rule for row in made.rows] == ["best", "last"]


@pytest.mark.parametrize(
    "key, value",
    [
        ("size", 84),
        ("normalisation", "none"),
        ("backbone", {"filters": 64}),
        ("training", {"epochs": 1}),
        ("rule", "last"),
    ],
)
def test_in_the_common_protocol_methods_differ_in_their_settings_only(tmp_path, key, value):
    own = {key: value}
    with pytest.raises(UserError, match=f"boil has {key} of its own, and in the common protocol"):
        read(tmp_path, methods=["maml", {"method": "boil", **own}])
    read(tmp_path, methods=["maml", {"method": "boil", **own}], protocol="as published")


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"shot": [1]}, r"mine.yaml: unknown key 'shot'; did you mean 'shots'\?"),
        ({"evaluation": {"episode": 5}}, r"unknown key 'evaluation.episode'; did you mean 'episodes'\?"),
        ({"methods": [{"method": "boil", "lable": "B"}]}, r"unknown key 'methods.0.lable'; did you mean 'label'\?"),
        ({"training": {"epoch": 5}}, r"unknown key 'training.epoch'; did you mean 'epochs'\?"),
        ({"per_shots": {1: {"metabatch": 5}}}, r"unknown key 'training.metabatch'; did you mean 'meta_batch'\?"),
        ({"backbone": {"filter": 5}}, r"unknown key 'backbone.conv4.filter'; did you mean 'filters'\?"),
        ({"methods": [{"method": "boil", "settings": {"inner_step": 5}}]}, r"did you mean 'inner_steps'\?"),
        ({"methods": ["mamel"]}, r"no method called 'mamel'; did you mean 'maml'\?"),
        ({"source": "cifar"}, r"no data set called 'cifar'; did you mean 'cifar_fs'\?"),
        ({"targets": ["omnigloth"]}, r"no data set called 'omnigloth'; did you mean 'omniglot'\?"),
        ({"methods": []}, r"'methods'.*at least 1"),
        ({"protocol": "comon"}, r"'protocol'.*'common' or 'as published'"),
        ({"title": None}, r"'title': Field required"),
        ({"methods": ["maml", "boil", "maml"]}, r"2 rows are called 'MAML'; give each a 'label' of its own"),
        ({"evaluation": {"rules": ["last"]}}, r"'evaluation.printed' is best, which is not among 'evaluation.rules'"),
        ({"evaluation": {"episodes": 1}}, r"'evaluation.episodes'.*greater than or equal to 2"),
        ({"per_shots": {5: {"meta_batch": 2}}}, r"'per_shots' has settings for 5 shots, which 'shots' does not name"),
        ({"shots": [1, 1]}, r"'shots' names the same thing twice"),
        ({"seeds": []}, r"'seeds' is empty; name at least one"),
        ({"name": "a/b"}, r"the name 'a/b' may only have letters, digits, _ and -"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_it(tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        read(tmp_path, **changes)


def test_a_rule_of_a_row_must_be_evaluated(tmp_path):
    with pytest.raises(UserError, match=r"maml is to print ensemble, which is not among 'evaluation.rules'"):
        read(
            tmp_path,
            protocol="as published",
            evaluation={"rules": ["best"]},
            methods=[{"method": "maml", "rule": "ensemble"}],
        )


def test_suites_are_named_or_files(tmp_path):
    assert suites.load("demo").name == "demo"
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values()))
    assert suites.load(str(path)).name == "mine"
    with pytest.raises(UserError, match=r"There is no file absent.yaml"):
        suites.load("absent.yaml")
    with pytest.raises(UserError, match=r"There is no suite called 'dmo'; did you mean 'demo'\?"):
        suites.load("dmo")


def test_the_suite_in_the_docs_is_valid(tmp_path):
    text = (BENCHMARKS.parent / "docs" / "leaderboard.md").read_text()
    [example] = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "my_suite.yaml").write_text(example)
    made = suites.read(tmp_path / "my_suite.yaml")
    assert [row.label for row in made.rows] == ["MAML", "MAML, 1 step"] and len(made.trainings) == 12


def test_rows_are_chosen_by_label_or_method(tmp_path):
    made = read(tmp_path, methods=["maml", {"method": "maml", "label": "Slow", "settings": {"inner_steps": 1}}, "boil"])
    assert [row.label for row in made.restricted(["maml"]).rows] == ["MAML", "Slow"]
    assert [row.label for row in made.restricted(["BOIL", "Slow"]).rows] == ["Slow", "BOIL"]
    assert len(made.restricted(["boil"]).trainings) == 1
    with pytest.raises(UserError, match=r"no row of the suite mine called 'bol'; did you mean 'boil'\?"):
        made.restricted(["bol"])


def test_a_row_whose_label_has_commas_can_be_named(tmp_path):
    labels = ["MAML, 1 step", "MAML, 1 step, fast", "  two\n words "]
    rows = [{"method": "maml", "label": label, "settings": {"inner_steps": i}} for i, label in enumerate(labels, 1)]
    made = read(tmp_path, methods=["maml", *rows, "boil"])
    assert [row.label for row in made.rows] == ["MAML", "MAML, 1 step", "MAML, 1 step, fast", "two words", "BOIL"]
    for text, names in {
        "MAML, 1 step": ["MAML, 1 step"],
        "boil,MAML,1 step,": ["boil", "MAML, 1 step"],
        "MAML, 1 step, fast, MAML, boil": ["MAML, 1 step, fast", "MAML", "boil"],
        "two words, bol": ["two words", "bol"],
        "1 step": ["1 step"],
    }.items():
        assert made.named_in(text) == names
    assert [row.label for row in made.restricted(made.named_in("MAML, 1 step,boil")).rows] == ["MAML, 1 step", "BOIL"]
    with pytest.raises(UserError, match="no row of the suite mine called '1 step'"):
        made.restricted(made.named_in("1 step"))


@pytest.mark.parametrize("name", suites.suites())
def test_every_row_of_the_suites_can_be_named(name):
    suite = suites.load(name)
    labels = [row.label for row in suite.rows]
    assert suite.named_in(", ".join(labels)) == labels


def test_methods_can_be_added_to_a_suite_once():
    suite = suites.load("demo").restricted(["maml", "anil"])
    larger = suite.extended(["protonet", "reptile"])
    assert [row.entry.method for row in larger.rows] == [
        *(row.entry.method for row in suite.rows),
        "protonet",
        "reptile",
    ]
    assert larger.rows[-1].config(1, 0).training == larger.rows[0].config(1, 0).training
    for names in (["maml"], ["protonet", "protonet"]):
        with pytest.raises(UserError, match="has a row called"):
            suite.extended(names)
    with pytest.raises(UserError, match="protonet"):
        suite.extended(["protnet"])
