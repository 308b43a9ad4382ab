from __future__ import annotations

import csv
import importlib.util
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import metazoo.cli
from metazoo.config import describe
from metazoo.errors import UserError
from metazoo.leaderboard import typesetting
from metazoo.leaderboard.published import Literature
from metazoo.leaderboard.shelf import FAILURES, Identities, Shelf, gather, missing
from metazoo.leaderboard.standings import Leaderboard, build
from metazoo.leaderboard.suite import Column, Suite
from metazoo.leaderboard.tables import Entry, Table, compose
from metazoo.records import Record, append
from metazoo.statistics import episode_interval

GOLDEN = Path(__file__).parent / "golden" / "leaderboard"
NEAR, FAR = Column("cifar_fs", 1), Column("omniglot", 1)


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_leaderboard", GOLDEN / "make.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


golden = load()
IDENTITIES: Identities = golden.IDENTITIES


@pytest.fixture
def suite() -> Suite:
    return golden.suite()


@pytest.fixture
def records() -> list[Record]:
    return golden.made_up_records()


def board(suite: Suite, records: list[Record], rule=None, identities: Identities = IDENTITIES) -> Leaderboard:
    return build(suite, Shelf(records, identities), rule, Literature(GOLDEN / "published.yaml"))


def changed(records: list[Record], which: Callable[[Record], bool], **values) -> list[Record]:
    return [record.model_copy(update=values) if which(record) else record for record in records]


def of(label: str, suite: Suite, target: str = "cifar_fs", seed: int | None = None) -> Callable[[Record], bool]:
    """Picks the records of one row and target."""
    [row] = [row for row in suite.rows if row.label == label]
    configs = [describe(config) for (_, s), config in row.configs.items() if seed in (None, s)]
    return lambda record: record.config in configs and record.target == target


def entry(table: Table, row: str, column: str) -> Entry:
    [found] = [line for line in table.rows if line[0].text == row]
    return found[table.header.index(column)]


@pytest.mark.parametrize("name", ["leaderboard.md", "leaderboard.tex", "leaderboard.csv", "leaderboard.json"])
def test_golden_records_print_byte_for_byte(name):
    """After a change that is meant: run tests/golden/leaderboard/make.py and read the git diff."""
    assert golden.texts(golden.leaderboard())[name] == (GOLDEN / name).read_text(encoding="utf-8")


def test_accuracy_is_the_mean_over_seeds_and_its_interval_that_of_the_episode_means(suite, records):
    cell = board(suite, records).cells["Steady", NEAR]
    counts = np.array([record.evaluations["best"].correct for record in filter(of("Steady", suite), records)])
    assert counts.shape == (2, 40)
    means = counts.mean(axis=0) / 75
    assert cell.result() == (pytest.approx(means.mean()), pytest.approx(episode_interval(means)))
    seeds = counts.mean(axis=1) / 75
    assert cell.over_seeds == pytest.approx(seeds.std(ddof=1))
    # 40 episodes of 75 queries: the second seed is asked the same ones again.
    assert cell.over_queries == pytest.approx(1.96 * np.sqrt(means.mean() * (1 - means.mean()) / 3000))


def test_equal_methods_share_rank_and_bold(suite, records):
    [first] = filter(of("Steady", suite, seed=0), records)
    same = changed(records, of("Steady twice", suite), evaluations=first.evaluations)
    same = changed(same, of("Steady", suite), evaluations=first.evaluations)
    standings = board(suite, same).standings
    assert standings["Steady", NEAR] == standings["Steady twice", NEAR]
    assert standings["Steady", NEAR].best and str(standings["Steady", NEAR].rank) == "1-2"
    assert not standings["Slow & sure", NEAR].best


def test_another_rule_prints_its_own_numbers(suite, records):
    made = board(suite, records, "ensemble")
    assert made.cells["Steady", NEAR].result() == board(suite, records).cells["Steady", NEAR].result("ensemble")
    assert made.cells["Steady", NEAR].result() != board(suite, records).cells["Steady", NEAR].result("best")
    assert "raw outputs averaged" in compose(made).tables[0].title
    # The published protocol was 'best', so nothing is compared any more.
    assert all(beside.difference is None for beside in made.beside["Steady", NEAR])


def test_a_rule_the_suite_does_not_evaluate_is_refused(suite):
    plan = suite.evaluation.model_copy(update={"rules": ("best",)})
    with pytest.raises(UserError, match="does not evaluate the rule 'ensemble'; its rules: best"):
        board(suite.model_copy(update={"evaluation": plan}), [], "ensemble")


def test_a_rule_that_was_not_tested_is_missing_with_the_reason(suite, records):
    only = [
        record.model_copy(update={"evaluations": {"last": record.evaluations["last"]}})
        for record in filter(of("Steady", suite), records)
    ]
    cell = board(suite, only).cells["Steady", NEAR]
    assert cell.result() is None and cell.reasons == ["tested, but not by the rule 'best'"]


def test_published_numbers_are_subtracted_only_in_the_same_protocol(suite, records):
    beside = board(suite, records).beside
    nearest, other = beside["Steady", NEAR]
    assert (nearest.number.accuracy, nearest.departures, other.departures) == (60.0, [], None)
    assert nearest.difference == pytest.approx(100 * board(suite, records).cells["Steady", NEAR].result()[0] - 60.0)
    [differs] = beside["Slow & sure", NEAR]
    assert differs.difference is None and differs.departures == ["training.epochs 2, not 10"]
    table = compose(board(suite, records)).tables[0]
    assert entry(table, "Steady", "published").text.startswith("60.00 (")
    assert entry(table, "Slow & sure", "published").text == "55.00"


def test_intervals_of_different_meaning_never_share_a_column(suite, records):
    """A published number's interval is never printed in a column of measured ones; the binomial has its own."""
    document = compose(board(suite, records))
    titles = [table.title for table in document.tables]
    assert sum("interval over episodes" in title for title in titles) == 2
    [binomial] = [table for table in document.tables if "binomial" in table.title]
    assert all("over queries" in name or "SD o" in name for name in binomial.header[1:])
    for table in document.tables:
        for name, *column in zip(table.header, *table.rows, strict=True):
            if "published" in name or "SD" in name:
                assert not any("±" in cell.text for cell in column)


def test_seeds_of_other_code_are_not_averaged_with_those_of_this_code(suite, records):
    mixed = changed(records, of("Steady", suite, seed=1), code="0.1.0+old")
    cell = board(suite, mixed).cells["Steady", NEAR]
    assert [record.config["seed"] for record in cell.measured] == [0]
    assert cell.departures == ()
    notes = compose(board(suite, mixed)).notes
    assert "Steady: 1 of 2 seeds." in notes


def test_other_code_and_other_data_are_footnoted(suite, records):
    document = compose(board(suite, records))
    number = document.notes.index("Made with other code than is here now.") + 1
    assert entry(document.tables[0], "Slow & sure", "CIFAR-FS 1-shot").notes == (number,)
    other = changed(records, of("Steady", suite), data={"source": "elsewhere", "target": "colour"})
    assert "Made with other training data than is here now." in compose(board(suite, other)).notes


def test_what_was_tested_on_other_images_is_not_ranked(suite, records):
    other = changed(records, of("Steady", suite), data={"source": "colour", "target": "other images"})
    made = board(suite, other)
    assert ("Steady", NEAR) not in made.standings
    assert made.standings["Steady twice", NEAR].best
    place = entry(compose(made).tables[0], "Steady", "CIFAR-FS 1-shot")
    assert not place.bold and len(place.notes) == 2


def test_data_that_is_not_prepared_here_is_not_compared(suite, records):
    nowhere = replace(IDENTITIES, data={})
    other = changed(records, of("Steady", suite), data={"source": "elsewhere", "target": "colour"})
    assert board(suite, other, identities=nowhere).cells["Steady", NEAR].departures == ()


def test_a_record_made_now_goes_before_one_of_other_code(suite, records):
    [old] = filter(of("Steady", suite, seed=0), records)
    worse = old.model_copy(update={"code": "0.1.0+old", "run": "old"})
    for order in ([old, worse], [worse, old]):
        found = Shelf(order, IDENTITIES).find(suite, old.config, "cifar_fs")
        assert found is not None and found.run == old.run


def test_a_record_from_before_a_setting_existed_still_counts(suite, records):
    [record] = filter(of("Steady", suite, seed=0), records)
    config = json.loads(json.dumps(record.config))
    del config["training"]["keep"], config["settings"]["inner_lr"]
    older = record.model_copy(update={"config": config})
    assert Shelf([older], IDENTITIES).find(suite, record.config, "cifar_fs") is not None
    config["training"]["epochs"] = 3
    assert Shelf([older], IDENTITIES).find(suite, record.config, "cifar_fs") is None


def test_other_episodes_are_another_cell(suite, records):
    for values in ({"episodes": 41}, {"episode_seed": 1}, {"split": "val"}):
        other = changed(records, of("Steady", suite), **values)
        assert board(suite, other).cells["Steady", NEAR].status == "missing"


def titles(suite: Suite, records: list[Record]) -> dict[str, tuple[str, ...]]:
    return {training.title: training.targets for training in missing(suite, Shelf(records, IDENTITIES))}


def test_missing_are_the_cells_without_a_settled_record_of_this_code_and_data(suite, records):
    assert titles(suite, records) == {
        "Slow & sure 1-shot seed 0": ("cifar_fs", "omniglot"),  # of other code
        "Slow & sure 1-shot seed 1": ("cifar_fs", "omniglot"),
        "Late 1-shot seed 0": ("cifar_fs", "omniglot"),  # out of memory may end otherwise next time; diverged cannot
        "Late 1-shot seed 1": ("cifar_fs", "omniglot"),
    }
    assert len(titles(suite, [])) == 12
    one = [record for record in records if not of("Steady", suite, "omniglot", seed=1)(record)]
    assert titles(suite, one)["Steady 1-shot seed 1"] == ("omniglot",)


def test_a_record_without_all_rules_is_missing(suite, records):
    [record] = filter(of("Steady", suite, seed=0), records)
    fewer = {"best": record.evaluations["best"]}
    assert "Steady 1-shot seed 0" in titles(suite, changed(records, of("Steady", suite, seed=0), evaluations=fewer))


def test_gather_reads_every_run_and_the_failures_beside_them(tmp_path, records):
    append(tmp_path / "runs" / "one" / "records.jsonl", records[0])
    append(tmp_path / "runs" / FAILURES, records[1])
    append(tmp_path / "elsewhere.jsonl", records[2])
    found = gather(tmp_path / "runs", [tmp_path / "elsewhere.jsonl"])
    assert sorted(record.model_dump_json() for record in found) == sorted(r.model_dump_json() for r in records[:3])
    assert gather(tmp_path / "nothing") == []
    with pytest.raises(UserError, match=r"There is no records file .*absent.jsonl"):
        gather(tmp_path / "runs", [tmp_path / "absent.jsonl"])


def test_saving_writes_every_format_and_records_that_make_the_same_table(tmp_path, suite, records):
    made = board(suite, records)
    paths = typesetting.save(made, tmp_path / "new" / "folder")
    assert {path.name for path in paths} == {
        "leaderboard.md",
        "leaderboard.tex",
        "leaderboard.csv",
        "leaderboard.json",
        "records.jsonl",
    }
    again = board(suite, gather(tmp_path, [tmp_path / "new" / "folder" / "records.jsonl"]))
    assert typesetting.to_json(again) == typesetting.to_json(made)


def test_csv_and_json_hold_the_same_cells(suite, records):
    made = board(suite, records)
    lines = list(csv.DictReader(io.StringIO(typesetting.to_csv(made))))
    cells = json.loads(typesetting.to_json(made))["cells"]
    assert len(lines) == len(cells) == 12
    for line, cell in zip(lines, cells, strict=True):
        assert line["label"] == cell["label"]
        assert line["accuracy"] == ("" if cell["accuracy"] is None else str(cell["accuracy"]))


def test_latex_is_balanced_and_escapes_what_latex_reads(suite, records):
    text = typesetting.latex(compose(board(suite, records)))
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert body.count("\\begin{") == body.count("\\end{") and body.count("{") == body.count("}")
    assert "Slow \\& sure" in body and "Half\\_way" in body and "100 \\% quiet" in body
    assert not re.search(r"(?<!\\)[%_#]", body)
    for tabular in re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end\{tabular\}", body, re.DOTALL):
        for line in tabular[1].splitlines():
            if line.endswith("\\\\"):
                assert len(re.findall(r"(?<!\\)&", line)) == len(tabular[0]) - 1


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="LaTeX is not installed")
def test_latex_compiles_and_no_table_is_wider_than_the_line(tmp_path):
    (tmp_path / "tables.tex").write_text((GOLDEN / "leaderboard.tex").read_text(encoding="utf-8"), encoding="utf-8")
    lines = ["\\documentclass{article}", "\\usepackage{booktabs,graphicx}", "\\begin{document}"]
    (tmp_path / "paper.tex").write_text("\n".join([*lines, "\\input{tables}", "\\end{document}"]))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and (tmp_path / "paper.pdf").is_file(), done.stdout[-2000:]
    assert "Overfull" not in done.stdout and "Warning" not in done.stdout


def test_markdown_rows_have_as_many_cells_as_their_header(suite, records):
    steady = suite.methods[0].model_copy(update={"label": "a|b"})
    text = typesetting.markdown(
        compose(board(suite.model_copy(update={"methods": (steady, *suite.methods[1:])}), records))
    )
    assert "a\\|b" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_terminal_marks_bold_where_there_are_no_styles(suite, records):
    out = io.StringIO()
    typesetting.show(board(suite, records), Console(file=out, width=160))
    text = out.getvalue()
    assert re.search(r"Steady\s+│\s+60.32 ± 2.42\*", text)
    assert "incompatible [" in text and "Loud: incompatible: It needs 100 % quiet." in text


def test_a_suite_without_records_prints_what_is_missing(suite):
    document = compose(board(suite, []))
    assert entry(document.tables[0], "Steady", "CIFAR-FS 1-shot").text == "missing"
    assert [table.title for table in document.tables[1:]] == ["Published numbers", "Settings"]
    assert "Hardware" not in document.facts
    assert typesetting.markdown(document) and typesetting.latex(document)


def invoke(*arguments: str):
    return CliRunner().invoke(metazoo.cli.app, ["leaderboard", *arguments])


def test_show_prints_given_records_and_writes_only_where_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    records, suite = str(GOLDEN / "records.jsonl"), str(GOLDEN / "suite.yaml")
    shown = invoke(suite, "--show", "--records", records, "--methods", "Steady,golden_loud")
    assert shown.exit_code == 0, shown.output
    assert "Steady twice" not in shown.output and "Loud" in shown.output and "60.32 ± 2.42" in shown.output
    assert list(tmp_path.iterdir()) == []
    assert invoke(suite, "--show", "--records", records, "--out", "here").exit_code == 0
    assert (tmp_path / "here" / "leaderboard.md").is_file()


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["demmo"], "There is no suite called 'demmo'; did you mean 'demo'?"),
        (["absent.yaml"], "There is no file absent.yaml"),
        ([str(GOLDEN / "suite.yaml"), "--show", "--methods", "steddy"], "did you mean"),
        ([str(GOLDEN / "suite.yaml"), "--show", "--records", "absent.jsonl"], "There is no records file absent.jsonl"),
        ([str(GOLDEN / "suite.yaml"), "--device", "tpu"], "There is no device 'tpu'"),
    ],
)
def test_bad_input_is_one_sentence(arguments, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    golden.suite()
    result = invoke(*arguments)
    assert isinstance(result.exception, UserError) and sentence in str(result.exception)
    assert not list(tmp_path.glob("runs")) and not list(tmp_path.rglob("leaderboard.*"))


def test_a_folder_that_cannot_be_written_is_found_before_anything_runs(tmp_path, monkeypatch):
    golden.suite()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    result = invoke(str(GOLDEN / "suite.yaml"), "--out", "file")
    assert isinstance(result.exception, FileExistsError)
    assert not (tmp_path / "runs").exists()


def test_records_that_come_with_a_suite_are_shown_without_being_asked_for(tmp_path, monkeypatch, records, suite):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "benchmarks"
    (folder / "suites").mkdir(parents=True)
    (folder / "suites" / "golden.yaml").write_text((GOLDEN / "suite.yaml").read_text())
    for record in records:
        append(folder / "results" / "golden.jsonl", record)
    monkeypatch.setattr("metazoo.leaderboard.suite.suites", lambda: {"golden": folder / "suites" / "golden.yaml"})
    assert "60.32 ± 2.42" in invoke("golden", "--show").output
    assert "60.32 ± 2.42" not in invoke("golden", "--show", "--records", str(GOLDEN / "suite.yaml")).output
