"""The leaderboard's page as text: what it says, and that nothing in a record can make it say something else."""

from __future__ import annotations

import importlib.util
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import metazoo.cli
from metazoo.config import RunConfig
from metazoo.leaderboard import page
from metazoo.leaderboard.cards import cards
from metazoo.leaderboard.histories import Histories
from metazoo.leaderboard.published import Literature
from metazoo.leaderboard.shelf import Identities, Shelf
from metazoo.leaderboard.standings import Leaderboard, build
from metazoo.leaderboard.suite import load
from metazoo.leaderboard.tables import compose
from metazoo.records import Record, read
from metazoo.schema import parse

GOLDEN = Path(__file__).parent / "golden" / "leaderboard"
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
HOSTILE = "</script><script>document.title='broken'</script><img src=x onerror=alert(1)>\"'&`<!--{{7*7}}"


def golden():
    spec = importlib.util.spec_from_file_location("golden_leaderboard", GOLDEN / "make.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def board(records: list[Record] | None = None, **changes) -> Leaderboard:
    module = golden()
    suite = module.suite().model_copy(update=changes)
    shelf = Shelf(read([GOLDEN / "records.jsonl"]) if records is None else records, module.IDENTITIES)
    return build(suite, shelf, papers=Literature(GOLDEN / "published.yaml"))


class Outline(HTMLParser):
    """Checks that tags are closed in order, and collects ids, links, addresses and visible text."""

    VOID = {"meta", "img", "br", "hr", "input", "link"}
    SHAPES = {"line", "rect", "circle", "polyline", "polygon", "use"}

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if name in ("href", "src", "action")]
        if tag not in self.VOID and tag not in self.SHAPES:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> out of order"

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data


def test_golden_records_make_the_page_byte_for_byte():
    """After a change that is meant: run tests/golden/leaderboard/make.py and read the git diff."""
    assert page.html(board(), GOLDEN / "runs") == (GOLDEN / "leaderboard.html").read_text(encoding="utf-8")


def test_it_is_sound_html_whose_links_stay_inside():
    outline = Outline(page.html(board(), GOLDEN / "runs"))
    assert len(set(outline.ids)) == len(outline.ids)
    assert outline.links and all(link.startswith("#") and link[1:] in outline.ids for link in outline.links)
    assert not any(name == "style" or name.startswith("on") for name, _ in outline.attributes), (
        "its policy forbids them"
    )


def test_every_cell_opens_a_card_that_says_where_its_number_comes_from():
    made = board()
    text = page.html(made, GOLDEN / "runs")
    cards = text.split("<dialog ")[1:]
    assert len(cards) == len(made.cells)
    steady = cards[0]
    for piece in (
        "Steady, CIFAR-FS 1-shot",
        "± half-width of its",
        "best validation epoch",
        "golden_steady-0",
        "metazoo leaderboard golden.yaml",
        "A machine (1 of 2 cores, 8 GiB)",
        "torch 2.10.0",
        "0.1.0+new",
        "inner_lr: 0.01",
        "± over queries (binomial)",
        "standard deviation over seeds",
        "A. Nonymous: On Tables",
    ):
        assert piece in steady, piece
    half, loud = cards[6], cards[8]
    assert "diverged: The loss is not a number." in half and "1 of 2 seeds" in half
    assert "It needs 100 % quiet." in loud and '<p class="headline">incompatible</p>' in loud


def test_the_config_of_a_card_is_the_run_s():
    made = board()
    for key, card in cards(made, compose(made), Histories(None)).items():
        config = made.cells[key].row.config(key[1].shots, 0)
        assert parse(RunConfig, yaml.safe_load(card.config), "card") == config


def test_a_method_s_card_has_its_paper_and_numbered_deviations():
    suite = load("glyphs").restricted(["cxgrad"])
    records = read([RESULTS / "glyphs.jsonl"])
    text = page.html(build(suite, Shelf(records, Identities({}, {}))))
    assert "Contextual Gradient Scaling" in text and "Where it departs from the paper" in text


def test_curves_are_those_of_the_runs_that_are_here():
    with_runs, without = page.html(board(), GOLDEN / "runs"), page.html(board(), GOLDEN / "nowhere")
    assert with_runs.count('<figure class="portrait">') == 6, "two rows share a run, one has its own; each on two cards"
    assert "The runs of these are not here, so they have no curve: Slow &amp; sure; Loud; Late" in with_runs
    assert "portrait" not in without.split("</style>")[1]
    assert "curves are in the folders of the runs" in without


def test_a_run_s_name_is_no_path_to_follow(tmp_path: Path):
    log = {"epoch": 1, "train_accuracy": 0.4, "validation_accuracy": 0.5, "validation_interval": 0.02}
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "metrics.jsonl").write_text(json.dumps(log) + "\n")
    (tmp_path / "runs").mkdir()
    records = [record.model_copy(update={"run": "../secret"}) for record in read([GOLDEN / "records.jsonl"])]
    assert "<polyline" not in page.html(board(records), tmp_path / "runs").split('<section id="cost">')[0]
    named = [record.model_copy(update={"run": "secret"}) for record in records]
    assert "<polyline" in page.html(board(named), tmp_path).split('<section id="cost">')[0]


def test_what_records_and_suites_say_is_text_and_never_markup():
    texts = {"command": HOSTILE, "hardware": HOSTILE, "run": HOSTILE, "batch_norm": HOSTILE, "created": HOSTILE}
    records = [
        record.model_copy(update={**texts, "versions": {HOSTILE: HOSTILE}, "reason": record.reason + HOSTILE})
        for record in read([GOLDEN / "records.jsonl"])
    ]
    suite = golden().suite()
    entries = (suite.methods[0].model_copy(update={"label": HOSTILE}), *suite.methods[1:])
    hostile = page.html(board(records, title=HOSTILE, about=HOSTILE, methods=entries))
    tame = page.html(board())
    wild, usual = Outline(hostile), Outline(tame)
    assert wild.tags.count("script") == usual.tags.count("script") == 1
    assert "img" not in wild.tags
    assert set(wild.tags) == set(usual.tags)
    assert wild.text.count(HOSTILE) > 10, "it is all there, as text"
    assert {name for name, _ in wild.attributes} == {name for name, _ in usual.attributes}


def test_the_policy_admits_its_own_script_and_style_and_nothing_else():
    text = page.html(board())
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None and "default-src &#39;none&#39;" in policy[1].replace("'", "&#39;")
    for tag in ("script", "style"):
        inline = text.split(f"<{tag}>", 1)[1].split(f"</{tag}>", 1)[0]
        assert page.digest(inline) in policy[1]
    assert "unsafe" not in policy[1] and "http" not in re.sub(r'http-equiv="[^"]*"', "", text)


def test_best_first_and_the_missing_last():
    suite, records = load("cifar_fs_small"), read([RESULTS / "cifar_fs_small.jsonl"])
    records = [record for record in records if record.config["algorithm"] != "alfa_l2f"]
    text = page.html(build(suite, Shelf(records, Identities({}, {}))))
    body = text.split("<tbody>")[1].split("</tbody>")[0]
    keys = [float(key) for key in re.findall(r'<td class="result" data-key="([^"]*)"', body)]
    assert keys == sorted(keys, reverse=True) and len(keys) > 5
    assert body.rindex('<td class="result" data-key') < body.index("missing</a>")
    assert len(text) < 1_000_000


def test_of_errors_the_lowest_is_first():
    suite, records = load("sinusoid"), read([RESULTS / "sinusoid.jsonl"])
    text = page.html(build(suite, Shelf(records, Identities({}, {}))))
    body = text.split("<tbody>")[1].split("</tbody>")[0]
    keys = [float(key) for key in re.findall(r'<td class="result" data-key="([^"]*)"', body)]
    assert keys == sorted(keys)
    assert 'aria-sort="ascending"' in text and "predicting 0" in text


def test_nothing_measured_is_a_page_too(tmp_path: Path):
    text = page.html(board([]))
    assert text.count("missing</a>") == 12 and "What a result costs" not in text
    Outline(text)


def test_the_command_writes_it(tmp_path: Path):
    command = ["leaderboard", "glyphs", "--show", "--runs", str(tmp_path / "none"), "--html", str(tmp_path / "site")]
    done = CliRunner().invoke(metazoo.cli.app, command)
    assert done.exit_code == 0, done.output
    assert "index.html" in done.output
    assert (tmp_path / "site" / "index.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_file_in_the_way_is_refused(tmp_path: Path):
    (tmp_path / "site").write_text("")
    done = CliRunner().invoke(metazoo.cli.app, ["leaderboard", "glyphs", "--show", "--html", str(tmp_path / "site")])
    assert done.exit_code == 2 and "--html" in done.output and "Traceback" not in done.output


@pytest.mark.parametrize("text", ["a `b` c", "no code", "one ` alone", "`<b>` <i>"])
def test_code_in_prose_is_set_as_such_and_escaped(text: str):
    made = str(page.prose(text))
    assert re.sub(r"</?code>", "`", made).replace("&lt;", "<").replace("&gt;", ">") == text
    assert "<b>" not in made and "<i>" not in made
