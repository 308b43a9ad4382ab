"""Images of one's own: named by their folders, divided by list, by lot or by folder, and known from then on."""

from __future__ import annotations

import json

import pytest
from archives import EACH, SPLITS, tiny_tree, write_folder, write_tar, write_zip
from typer.testing import CliRunner

from metazoo.cli import app
from metazoo.data.dataset import Count, dataset, datasets, image_set
from metazoo.data.own import own_set, remember, remembered
from metazoo.data.packing import pack
from metazoo.data.store import open_store
from metazoo.errors import UserError

CLASSES = sorted(name for names in SPLITS.values() for name in names)


@pytest.fixture
def photographs(tmp_path):
    """The menagerie's seven classes, with what lies about in folders of photographs."""
    clutter = {"Thumbs.db": b"x", "ant/Thumbs.db": b"x", "ant/.DS_Store": b"x", "__MACOSX/ant/._0.png": b"x"}
    return write_folder(tmp_path / "photographs", tiny_tree() | clutter)


def forms(path):
    tree = tiny_tree()
    by_split = tiny_tree(split_level=True)
    return {
        "folder": [write_folder(path / "folder", tree)],
        "below others": [write_folder(path / "outer", {f"a/b/{name}": content for name, content in tree.items()})],
        "zip": [write_zip(path / "mine.zip", {f"mine/{name}": content for name, content in tree.items()})],
        "by split": [write_tar(path / "split.tgz", by_split, "w:gz")],
        "two folders": [
            write_folder(path / part, {n: c for n, c in tree.items() if (n[0] < "d") == (part == "first")})
            for part in ("first", "second")
        ],
    }


def test_every_form_gives_the_same_store(tmp_path):
    lists = tmp_path / "split.json"
    lists.write_text(json.dumps({"train": SPLITS["train"], "valid": SPLITS["val"], "test": SPLITS["test"]}))
    identities = set()
    for form, sources in forms(tmp_path / "in").items():
        sheet = own_set("mine", sources, str(lists), size=8)
        assert sheet.splits == SPLITS, form
        identities.add(pack(sheet, sources, home=tmp_path / form).manifest.identity)
    assert len(identities) == 1


def test_folders_named_train_val_and_test_divide(tmp_path):
    sources = [write_folder(tmp_path / "in", tiny_tree(split_level=True))]
    sheet = own_set("mine", sources, "folders", size=8)
    assert sheet.splits == SPLITS
    assert sheet.expected == {split: Count(len(names), EACH * len(names)) for split, names in SPLITS.items()}


def test_a_lot_is_the_same_everywhere(photographs):
    assert own_set("mine", [photographs], "3/2/2").splits == {
        "train": ("dog", "fox", "gnu"),
        "val": ("ant", "bee"),
        "test": ("cat", "eel"),
    }
    assert own_set("mine", [photographs], "3/2/2", seed=1).splits != own_set("mine", [photographs], "3/2/2").splits
    percents = own_set("mine", [photographs], "50%/20%/30%").splits
    assert {split: len(names) for split, names in percents.items()} == {"train": 4, "val": 1, "test": 2}
    assert own_set("mine", [photographs], "0/0/7").splits == {"test": tuple(CLASSES)}


@pytest.mark.parametrize(
    ("split", "sentence"),
    [
        ("64/16/20", "There are 7 classes, and --split 64/16/20 does not divide them: .* add up to 7"),
        ("50%/20%/20%", "does not divide them"),
        ("3/2/2%", "does not divide them"),
        ("98%/1%/1%", "leaves none for val"),
        ("folders", "Not all class folders lie under train, val or test"),
        ("nowhere.json", "is neither a JSON file that can be read"),
    ],
)
def test_what_does_not_divide_the_classes_is_told(photographs, split, sentence):
    with pytest.raises(UserError, match=sentence):
        own_set("mine", [photographs], split)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is not JSON"),
        ("[]", "has to look like"),
        ('{"train": "ant"}', "has to look like"),
        ('{"train": [1]}', "has to look like"),
        ('{"training": ["ant"]}', "has to look like"),
        ('{"train": ["ant"], "test": ["ant"]}', "lists the class 'ant' under train and under test"),
        ('{"train": ["aunt"]}', "no class folder called 'aunt'; did you mean 'ant'"),
    ],
)
def test_a_list_that_says_nothing_sensible_is_refused(photographs, tmp_path, content, sentence):
    lists = tmp_path / "split.json"
    lists.write_text(content)
    with pytest.raises(UserError, match=sentence):
        own_set("mine", [photographs], str(lists))


def test_a_class_in_two_splits_is_refused(tmp_path):
    tree = {"train/ant/0.png": b"x", "test/ant/1.png": b"x", "test/bee/0.png": b"x"}
    with pytest.raises(UserError, match="The class 'ant' lies under test and train"):
        own_set("mine", [write_folder(tmp_path / "in", tree)], "folders")
    assert own_set("mine", [tmp_path / "in"], "1/0/1").expected["train"].images in (1, 2)


def test_classes_of_the_same_name_in_different_folders_are_different(tmp_path):
    tree = {"old/ant/0.png": b"x", "new/ant/1.png": b"x"}
    assert own_set("mine", [write_folder(tmp_path / "in", tree)], "0/0/2").splits == {"test": ("new/ant", "old/ant")}


@pytest.mark.parametrize(
    ("tree", "sentence"), [({"a.txt": b"x"}, "holds no images"), ({"0.png": b"x"}, "no class folder")]
)
def test_images_have_to_lie_in_class_folders(tmp_path, tree, sentence):
    with pytest.raises(UserError, match=sentence):
        own_set("mine", [write_folder(tmp_path / "in", tree)], "1/0/0")


@pytest.mark.parametrize("name", ["My birds", "../x", "", "cub", "sinusoid"])
def test_a_name_that_cannot_be_used(photographs, name):
    with pytest.raises(UserError, match=r"cannot name a data set|is a data set that metazoo has"):
        own_set(name, [photographs], "3/2/2")


def test_it_is_known_from_then_on(photographs, tmp_path):
    home = tmp_path / "home"
    sheet = own_set("mine", [photographs], "3/2/2", size=8)
    pack(sheet, [photographs], home=home)
    remember(sheet, home)
    assert remembered(home) == {"mine": sheet} and image_set("mine", home) == sheet
    assert "mine" in datasets(home) and "mine" not in datasets(tmp_path)
    assert open_store("mine", home=home).manifest.size == 8
    with pytest.raises(UserError, match=r"at 16 pixels is not prepared .* metazoo data prepare mine"):
        open_store("mine", 16, home=home)
    at_16 = pack(image_set("mine", home), [photographs], size=16, home=home)
    assert at_16.manifest.splits["test"].classes == sheet.splits["test"]
    with pytest.raises(UserError, match="no data set called 'mien'; did you mean 'mine'"):
        dataset("mien", home)


def test_a_damaged_sheet_is_a_warning(tmp_path, capsys):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine.json").write_text("{")
    assert remembered(tmp_path) == {}
    assert "mine.json is damaged; prepare mine again" in capsys.readouterr().err


def test_the_command(photographs, tmp_path, monkeypatch):
    monkeypatch.setenv("METAZOO_DATA", str(tmp_path / "home"))

    def run(*arguments):
        result = CliRunner().invoke(app, ["data", *map(str, arguments)])
        return result.exit_code, result.output + str(result.exception or "")

    code, output = run("prepare", "mine", "--from", photographs, "--split", "3/2/2", "--size", 8)
    assert code == 0 and "mine is prepared at 8 pixels" in output and "divided 3/2/2 by lot, seed 0" in output
    assert "mine" in run("list")[1]
    assert run("verify", "mine")[0] == 0
    assert run("show", "mine", "--ways", 2, "--queries", 1, "--out", tmp_path / "mine.png")[0] == 0
    other = "prepare", "mine", "--from", photographs, "--split", "3/2/2", "--seed", 1, "--size", 8
    assert "its classes are divided otherwise" in run(*other)[1]
    before = open_store("mine").manifest
    assert run(*other, "--force")[0] == 0
    assert open_store("mine").manifest.splits != before.splits
    assert "give --split, too" in run("prepare", "cub", "--from", photographs, "--seed", 1)[1]
    assert run("prepare", "mine", "--from", photographs, "--size", 16)[0] == 0
