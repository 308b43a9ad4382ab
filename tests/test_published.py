from __future__ import annotations

import math
from pathlib import Path

import pytest

from metazoo.config import RunConfig, describe, resolve
from metazoo.data.dataset import published as published_sets
from metazoo.errors import UserError
from metazoo.leaderboard import published
from metazoo.leaderboard.published import Literature, literature
from metazoo.leaderboard.suite import load
from metazoo.registry import algorithms
from metazoo.schema import parse


def config(**values) -> dict:
    return dict(describe(resolve(RunConfig(source="mini_imagenet", size=84, **values), default_size=84)))


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "published.yaml"
    path.write_text(text)
    return path


def test_every_number_names_its_source_and_what_its_interval_means():
    numbers = literature().numbers
    assert len(numbers) > 50
    for number in numbers:
        assert number.cited and 10 < number.accuracy < 100
        assert number.interval is None or number.interval < 5
        assert number.meaning in published.MEANINGS


@pytest.mark.parametrize("shots, accuracy, half_width", [(1, 51.80, 0.46), (5, 69.82, 0.42)])
def test_cxgrads_intervals_are_the_binomial_ones(shots, accuracy, half_width):
    [number] = literature().of("cxgrad", config(algorithm="cxgrad", shots=shots), "mini_imagenet")
    assert (number.accuracy, number.interval, number.meaning) == (accuracy, half_width, "queries")


def test_numbers_said_to_be_binomial_follow_the_formula_to_the_printed_digit():
    binomial = [number for number in literature().numbers if number.meaning == "queries"]
    assert len(binomial) >= 8
    for number in binomial:
        p = number.accuracy / 100
        assert number.interval is not None
        assert number.interval == pytest.approx(196 * math.sqrt(p * (1 - p) / 45_000), abs=0.0051), number


def test_no_number_is_listed_twice():
    keys = [
        (n.label, n.backbone, n.source, n.target, n.ways, n.shots, n.accuracy, n.cited) for n in literature().numbers
    ]
    assert len(keys) == len(set(keys))


def test_protocols_use_keys_that_a_run_config_has():
    """A protocol key that no config has could never agree, and would silence a comparison for good."""
    for name, protocol in literature().protocols.items():
        method = name.split("_")[0]
        values = protocol.model_dump(include={"queries", "size", "normalisation", "backbone", "training", "settings"})
        made = parse(RunConfig, {"algorithm": method, "source": "mini_imagenet", **values}, name)
        departures = protocol.departures(describe(resolve(made, 84)), protocol.rule or "best", protocol.episodes or 600)
        assert departures == []


def test_the_default_config_of_cxgrad_is_the_one_of_its_table():
    """Defaults are the reproducing ones: nothing but the algorithm needs naming to get the paper's 1-shot run."""
    [number] = literature().of("cxgrad", config(algorithm="cxgrad"), "mini_imagenet")
    assert literature().departures(number, config(algorithm="cxgrad"), "ensemble", 600) == []


def test_table_2s_cub_column_is_in_the_protocol_of_its_suite():
    [row] = [row for row in load("table2_published").rows if row.entry.method == "cxgrad"]
    made = dict(describe(row.config(5, 0)))
    [number] = literature().of("cxgrad", made, "cub")
    assert literature().departures(number, made, row.rule, 600) == []
    # Which normalisation its CIFAR-FS column was made with cannot be known from the code that is there.
    [number] = literature().of("cxgrad", made, "cifar_fs")
    assert literature().departures(number, made, row.rule, 600) is None


def test_departures_name_what_differs():
    [number] = literature().of("cxgrad", config(algorithm="cxgrad"), "mini_imagenet")
    other = config(algorithm="cxgrad", settings={"inner_steps": 1}, training={"epochs": 10})
    assert literature().departures(number, other, "best", 600) == [
        "training.epochs 10, not 100",
        "settings.inner_steps 1, not 5",
        "rule best, not ensemble",
    ]


def test_a_number_without_protocol_cannot_be_compared():
    numbers = literature().of("maml", config(algorithm="maml"), "mini_imagenet")
    assert numbers
    assert all(literature().departures(number, config(algorithm="maml"), "best", 600) is None for number in numbers)


def test_numbers_are_found_by_source_target_ways_shots_and_backbone():
    found = literature().of
    assert {number.accuracy for number in found("cxgrad", config(algorithm="cxgrad", shots=5), "cub")} == {63.92}
    assert found("cxgrad", config(algorithm="cxgrad", shots=1), "cub") == []
    assert found("cxgrad", config(algorithm="cxgrad", ways=20), "mini_imagenet") == []
    resnet = found("maml", config(algorithm="maml", backbone={"name": "resnet12"}), "mini_imagenet")
    assert {number.accuracy for number in resnet} == {51.03, 58.37}


def test_an_ablations_number_is_that_of_its_setting_only():
    found = literature().of
    for steps, accuracy in ((1, 69.12), (4, 69.53), (5, 69.82)):
        made = config(algorithm="cxgrad", shots=5, settings={"inner_steps": steps}, training={"meta_batch": 2})
        [number] = found("cxgrad", made, "mini_imagenet")
        assert number.accuracy == accuracy
        assert literature().departures(number, made, "ensemble", 600) == []
    [number] = found("cxgrad", config(algorithm="cxgrad", settings={"context_lr": 0.1}), "mini_imagenet")
    assert (number.accuracy, number.cited[-7:]) == (51.29, "Table 5")
    # No code of the step-wise context is published, so nobody's row can be said to be the same.
    stepwise = config(algorithm="cxgrad", shots=5, settings={"context": "step_wise"})
    [number] = found("cxgrad", stepwise, "mini_imagenet")
    assert number.accuracy == 68.83 and literature().departures(number, stepwise, "ensemble", 600) is None


def test_tables_1_and_2_of_the_cxgrad_paper_are_complete():
    """Both tables as printed: methods, in each of the columns (1 shot and 5) that the paper has for them."""
    of = {
        (n.method, n.source, n.target, n.shots) for n in literature().numbers if n.cited.endswith("WACV 2022, Table 1")
    }
    everywhere = {"maml", "boil", "alfa", "l2f", "cxgrad"}
    on_mini = everywhere | {"matchingnet", "relationnet", "protonet", "cavia", "mamlpp", "modgrad"}
    assert of == {
        (method, source, "", shots)
        for source, methods in (("mini_imagenet", on_mini), ("tiered_imagenet", everywhere))
        for method in methods
        for shots in (1, 5)
    }
    crossed = {(n.method, n.target) for n in literature().numbers if n.cited.endswith("WACV 2022, Table 2")}
    assert crossed == {(method, target) for method in everywhere for target in ("cub", "cifar_fs")}


def test_every_number_is_of_data_and_methods_that_are_here():
    """A misspelt name would never be printed beside anything."""
    for number in literature().numbers:
        assert {number.source, number.target or number.source} <= set(published_sets()), number
        assert number.method in algorithms(), number


def test_a_number_prints_with_what_its_interval_means():
    [number] = literature().of("cxgrad", config(algorithm="cxgrad"), "mini_imagenet")
    assert number.printed == "51.80 ± 0.46 (binomial interval over query predictions)"
    [number] = literature().of("anil", describe(RunConfig(algorithm="anil", source="cifar_fs", shots=5)), "cifar_fs")
    assert number.printed == "68.30 (no interval)"


def test_a_misspelt_key_names_the_nearest(tmp_path):
    path = write(
        tmp_path, "tables: [{cited: A, meaning: episodes, numbers: [{method: maml, label: M, source: a, shot: 1}]}]"
    )
    with pytest.raises(UserError, match=r"number 1 of A.*unknown key 'shot'; did you mean 'shots'\?"):
        Literature(path)


def test_an_unknown_protocol_is_refused(tmp_path):
    path = write(
        tmp_path,
        "tables: [{cited: A, meaning: episodes, numbers: "
        "[{method: maml, label: M, source: a, shots: 1, accuracy: 50, protocol: absent}]}]",
    )
    with pytest.raises(UserError, match="names the protocol 'absent', which is not there"):
        Literature(path)
