"""miniImageNet and tieredImageNet in each of their public forms, of the same small images: one store comes of all."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from archives import encoded, pixels, python2_pickle, write_folder, write_tar, write_zip
from PIL import Image

from metazoo.benchmarks.datasets import mini_imagenet, tiered_imagenet
from metazoo.data.dataset import Count, DataSet, image_set
from metazoo.data.packing import pack
from metazoo.errors import UserError

SIDE = 20  # pixels; an image is 1,200 bytes, and so stays in its file
EACH = 3


def reduced(sheet: DataSet, each: int, classes: int) -> DataSet:
    """The sheet with the first classes of each split, and as many images a class."""
    splits = {split: names[:classes] for split, names in sheet.splits.items()}
    expected = {split: Count(classes, classes * each) for split in splits}
    return replace(sheet, size=SIDE, splits=splits, expected=expected, images_per_class=each)


def identities(sheet: DataSet, forms: Mapping[str, list[Path]], home: Path) -> dict[str, str]:
    return {form: pack(sheet, paths, home=home / form).manifest.identity for form, paths in forms.items()}


@pytest.fixture
def listed(monkeypatch):
    """miniImageNet with two classes a split and three images each: those that the authors' lists begin with."""
    sheet = reduced(image_set("mini_imagenet"), EACH, 2)
    first = {name: frozenset(sorted(numbers)[:EACH]) for name, numbers in mini_imagenet.numbers().items()}
    monkeypatch.setattr(mini_imagenet, "numbers", lambda: first)
    return sheet, {name: sorted(first[name]) for name in sheet.split_of}


def split_files(sheet: DataSet, content: Callable[[str, tuple[str, ...]], bytes], name: str) -> dict[str, bytes]:
    return {name.format(split): content(split, tuple(names)) for split, names in sheet.splits.items()}


def stacked(names: tuple[str, ...]) -> np.ndarray:
    return np.stack([pixels(name, index, SIDE) for name in names for index in range(EACH)])


def mini_forms(path: Path, sheet: DataSet, numbers: Mapping[str, list[int]]) -> dict[str, list[Path]]:
    def members(names):
        return {name: [EACH * place + index for index in range(EACH)] for place, name in enumerate(names)}

    def python_2(_, names):
        return python2_pickle(
            {
                b"image_data": stacked(names),
                b"class_dict": {name.encode(): indices for name, indices in members(names).items()},
            }
        )

    def python_3(protocol):
        return lambda _, names: pickle.dumps(
            {"image_data": stacked(names), "class_dict": members(names)}, protocol=protocol
        )

    def metaoptnet(_, names):
        labels = [place for place in range(len(names)) for _ in range(EACH)]
        catnames = {name.encode(): place for place, name in enumerate(names)}
        return python2_pickle({b"data": stacked(names), b"labels": labels, b"catname2label": catnames})

    def ravi(prefix=""):
        return {
            f"{prefix}{name}{number:08}.jpg": encoded(pixels(name, index, SIDE))
            for name, chosen in numbers.items()
            for index, number in enumerate(chosen)
        }

    def csv(_, names):
        rows = [f"{name}{number:08}.jpg,{name}" for name in names for number in numbers[name]]
        return "\n".join(["filename,label", *rows, ""]).encode()

    tree = {
        f"{split}/{name}/{index}.png": encoded(pixels(name, index, SIDE))
        for split, names in sheet.splits.items()
        for name in names
        for index in range(EACH)
    }
    cache, category = "mini-imagenet-cache-{}.pkl", "miniImageNet_category_split_{}.pickle"
    csvs = split_files(sheet, csv, "{}.csv")
    caches = split_files(sheet, python_2, cache)
    learn2learn = {n.replace("-val", "-validation"): c for n, c in split_files(sheet, python_3(4), cache).items()}
    bookkeeping = {"mini-imagenet-bookkeeping-train.pkl": b"another program's"}
    pickled = {
        f"protocol {protocol}": [write_folder(path / f"p{protocol}", split_files(sheet, python_3(protocol), cache))]
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    }
    return {
        "the authors' images": [write_folder(path / "ravi", ravi("images/") | csvs | {"images/Thumbs.db": b"x"})],
        "the authors' images and lists": [
            write_tar(path / "images.tar", ravi("images/")),
            *(write_folder(path / "csv", csvs) / name for name in csvs),
        ],
        "class folders by split": [write_folder(path / "folders", tree)],
        "class folders, zipped": [write_zip(path / "all.zip", {n.partition("/")[2]: c for n, c in tree.items()})],
        "Python 2": [write_folder(path / "python2", caches)],
        "Python 2, in a tar": [write_tar(path / "cache.tar", caches)],
        "Python 2, in a tgz": [write_tar(path / "cache.tgz", caches, "w:gz")],
        "Python 2, in a zip": [write_zip(path / "cache.zip", {f"archive/{n}": c for n, c in caches.items()})],
        "Python 2, one by one": [path / "python2" / name for name in reversed(caches)],
        "learn2learn": [write_folder(path / "l2l", learn2learn | bookkeeping)],
        "MetaOptNet": [write_folder(path / "metaoptnet", split_files(sheet, metaoptnet, category))],
        **pickled,
    }


def test_mini_imagenet_is_the_same_from_every_form(listed, tmp_path):
    sheet, numbers = listed
    found = identities(sheet, mini_forms(tmp_path / "in", sheet, numbers), tmp_path)
    assert len(set(found.values())) == 1, found
    split = pack(sheet, [tmp_path / "in" / "python2"], home=tmp_path / "store").split("test")
    assert split.class_names == sheet.splits["test"]
    for place, name in enumerate(split.class_names):
        stored = {image.tobytes() for image in split.images[EACH * place : EACH * (place + 1)]}
        assert stored == {pixels(name, index, SIDE).transpose(2, 0, 1).tobytes() for index in range(EACH)}


def test_learn2learn_reads_what_these_tests_write(listed, tmp_path):
    from learn2learn.vision.datasets import MiniImagenet, TieredImagenet

    sheet, numbers = listed
    mini_forms(tmp_path, sheet, numbers)
    theirs = MiniImagenet(str(tmp_path / "l2l"), mode="validation").x.numpy()
    np.testing.assert_array_equal(theirs, stacked(sheet.splits["val"]).transpose(0, 3, 1, 2))
    tiered_forms(tmp_path / "tiered")
    (tmp_path / "tiered" / "tiered-imagenet").symlink_to(tmp_path / "tiered" / "p32")
    tiered = TieredImagenet(str(tmp_path / "tiered"), mode="validation")
    image, label = tiered[0]
    assert {np.asarray(image).tobytes()} <= {
        pixels(TIERED.splits["val"][label], index, SIDE).tobytes() for index in range(EACH)
    }


def test_600_images_a_class_are_those_of_the_lists(tmp_path):
    """The real list of one class: the whole training folder of ImageNet, against the authors' images."""
    sheet = reduced(image_set("mini_imagenet"), 600, 1)
    sheet = replace(sheet, splits={"val": sheet.splits["val"]}, expected={"val": sheet.expected["val"]})
    ilsvrc: dict[str, bytes] = {}
    ravi: dict[str, bytes] = {}
    lists: dict[str, bytes] = {}
    for split, (name,) in sheet.splits.items():
        names = [f"{name}_{7 * rank}.JPEG" for rank in range(1, 1301)]  # in numerical order, which is not that of text
        coded = [
            encoded(np.full((2, 2, 3), [rank % 256, rank // 256, len(split)], np.uint8)) for rank in range(1, 1301)
        ]
        ilsvrc |= {f"train/{name}/{file}": content for file, content in zip(names, coded, strict=True)}
        ravi |= {f"{name}{rank:08}.jpg": coded[rank - 1] for rank in mini_imagenet.numbers()[name]}
        rows = [f"{name}{rank:08}.jpg,{name}" for rank in sorted(mini_imagenet.numbers()[name])]
        lists[f"{split}.csv"] = "\n".join(["filename,label", *rows]).encode()
    ilsvrc["train/n00000001/n00000001_1.JPEG"] = b"of a class that is not in it"
    forms = {
        "ImageNet": [write_tar(tmp_path / "ilsvrc.tar", ilsvrc)],
        "authors": [write_tar(tmp_path / "ravi.tar", ravi | lists)],
    }
    assert len(set(identities(sheet, forms, tmp_path).values())) == 1
    cut = dict(list(ilsvrc.items())[:1200])
    with pytest.raises(UserError, match=r"has only 1200 images here.* have to be whole"):
        pack(sheet, [write_tar(tmp_path / "cut.tar", cut)], home=tmp_path / "cut")


def test_the_authors_lists_are_in_metazoo_to_the_image(real_data):
    for split, names in image_set("mini_imagenet").splits.items():
        rows = (real_data / "splits" / f"miniimagenet_{split}.csv").read_text().split()[1:]
        assert set(rows) == {f"{name}{i:08}.jpg,{name}" for name in names for i in mini_imagenet.numbers()[name]}


def test_lists_of_another_split_are_refused(listed, tmp_path):
    sheet, numbers = listed
    mini_forms(tmp_path, sheet, numbers)
    images, (train, val) = tmp_path / "images.tar", (sheet.splits["train"][0], sheet.splits["val"][0])
    lists = tmp_path / "train.csv"
    lists.write_text(
        f"filename,label\n{train}{numbers[train][0]:08}.jpg,{train}\n{val}{numbers[val][0]:08}.jpg,{val}\n"
    )
    with pytest.raises(UserError, match="lists classes of train and val: it is of another split"):
        sheet.layout([images, lists])
    lists.write_text(f"filename,label\n{train}99999999.jpg,{train}\n")
    with pytest.raises(UserError, match="which is not in the lists of Ravi and Larochelle"):
        sheet.layout([images, lists])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"image_data": np.zeros((2, 4, 4, 3))}, r"an array of float64 \(2, 4, 4, 3\), not of uint8 \[n, H, W, 3\]"),
        ({"image_data": np.zeros((2, 4, 4), np.uint8)}, "not of uint8"),
        ({"image_data": [1]}, "its images are no array"),
        ({"image_data": np.zeros((2, 4, 4, 3), np.uint8)}, "class_dict"),
        ({"image_data": np.zeros((2, 4, 4, 3), np.uint8), "class_dict": [1]}, "holds no dict"),
        ({"image_data": np.zeros((2, 4, 4, 3), np.uint8), "class_dict": {"a": "b"}}, "where whole numbers should be"),
        ({"image_data": np.zeros((2, 4, 4, 3), np.uint8), "class_dict": {"a": [0]}}, "holds a class 'a', which mini"),
        ({"image_data": np.zeros((2, 4, 4, 3), np.uint8), "class_dict": {"n01532829": [2]}}, "has 2 images, and 'n0"),
        ({"image_data": np.zeros((2, 4, 4, 3), np.uint8), "class_dict": {"n01532829": [0]}}, "99 of the 100 classes"),
        ({"data": 1}, "neither image_data nor catname2label"),
        ([1, 2], "holds no dict"),
    ],
)
def test_a_pickle_of_something_else_is_told(tmp_path, content, sentence):
    path = tmp_path / "mini-imagenet-cache-train.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=sentence):
        image_set("mini_imagenet").layout([path])


# tieredImageNet


TIERED = reduced(image_set("tiered_imagenet"), EACH, 2)


def called(name: str) -> str:
    return next(text for text, wnid in tiered_imagenet.class_names().items() if wnid == name and text != name)


def png_pickle(content: list[bytes], writer: str) -> bytes:
    files = [np.frombuffer(png, np.uint8)[:, None] for png in content]  # [bytes, 1], as OpenCV encodes
    return python2_pickle(files) if writer == "2" else pickle.dumps(files, int(writer))


def tiered_forms(path: Path) -> dict[str, list[Path]]:
    """Every form, with the images of a split in an order of its own."""

    def files(writer="2", text=str.encode, form="pkl", prefix=""):
        tree = {}
        for split, names in TIERED.splits.items():
            order = np.random.default_rng(len(split)).permutation(len(names) * EACH).tolist()
            labels = [number // EACH for number in order]
            images = [pixels(names[number // EACH], number % EACH, SIDE) for number in order]
            if form == "pkl":
                tree[f"{prefix}{split}_images_png.pkl"] = png_pickle([encoded(image) for image in images], writer)
            if form.startswith("npz"):
                file = io.BytesIO()
                save = np.savez_compressed if form == "npz, compressed" else np.savez
                save(file, images=np.stack(images)[..., ::-1])  # blue first, as OpenCV decodes
                tree[f"{prefix}{split}_images.npz"] = file.getvalue()
            facts = {
                text("label_specific"): np.array(labels, np.int32 if writer != "2" else np.uint8),
                text("label_specific_str"): [text(called(name)) for name in names],
                text("label_general"): labels,
            }
            written = python2_pickle(facts) if writer == "2" else pickle.dumps(facts, int(writer))
            tree[f"{prefix}{split}_labels.pkl"] = written
        return tree

    folders = {
        f"{name}/{name}_{index}.JPEG": encoded(pixels(name, index, SIDE))
        for names in TIERED.splits.values()
        for name in names
        for index in range(EACH)
    }
    stray = {"n00000001/n00000001_1.JPEG": b"of a class that is not in it", "n01530575/Thumbs.db": b"x"}
    pickles = files()
    return {
        "Python 2": [write_folder(path / "python2", pickles | {"class_names.txt": b"", "synsets.txt": b""})],
        "Python 2, in a tar": [write_tar(path / "t.tar", files(prefix="tiered-imagenet/"))],
        "Python 2, in a tgz": [write_tar(path / "t.tgz", pickles, "w:gz")],
        "one by one": [path / "python2" / name for name in pickles],
        "learn2learn": [write_folder(path / "l2l", files("4", str, prefix="tiered-imagenet-"))],
        "protocol 2 of Python 3": [write_folder(path / "p32", files("2") | files("3", str))],
        "npz": [write_folder(path / "npz", files("2", form="npz"))],
        "npz, compressed, in a zip": [write_zip(path / "npz.zip", files("4", str, "npz, compressed"))],
        "npz beside the pickle it is made of": [write_folder(path / "both", pickles | files("2", form="npz"))],
        "class folders": [write_folder(path / "folders", folders)],
        "class folders of ImageNet": [write_tar(path / "ilsvrc.tar", folders | stray)],
    }


def test_tiered_imagenet_is_the_same_from_every_form(tmp_path):
    found = identities(TIERED, tiered_forms(tmp_path / "in"), tmp_path)
    assert len(set(found.values())) == 1, found
    split = pack(TIERED, [tmp_path / "in" / "npz"], home=tmp_path / "store").split("val")
    stored = {image.tobytes() for image in split.images}
    assert stored == {
        pixels(name, index, SIDE).transpose(2, 0, 1).tobytes() for name in TIERED.splits["val"] for index in range(EACH)
    }


def test_every_class_has_a_name_of_its_own():
    names = tiered_imagenet.class_names()
    assert set(names.values()) == set(image_set("tiered_imagenet").split_of)
    assert names["house finch, linnet, Carpodacus mexicanus"] == names["house finch"] == "n01532829"


def tiered_refusal(path: Path, changes: Mapping[str, bytes | None]) -> str:
    tiered_forms(path / "in")
    for name, content in changes.items():
        if content is None:
            (path / "in" / "python2" / name).unlink()
        else:
            (path / "in" / "python2" / name).write_bytes(content)
    with pytest.raises(UserError) as refusal:
        pack(TIERED, [path / "in" / "python2"], home=path / "home")
    assert not list((path / "home").glob("tiered*"))
    return str(refusal.value)


def test_what_is_wrong_with_tiered_files_is_told(tmp_path):
    png = encoded(Image.new("RGB", (SIDE, SIDE)))
    names = [called(name) for name in TIERED.splits["val"]]

    def labels(numbers, names):
        return {"val_labels.pkl": pickle.dumps({"label_specific": np.array(numbers), "label_specific_str": names})}

    said = [
        tiered_refusal(tmp_path / str(number), changes)
        for number, changes in enumerate(
            [
                {"val_labels.pkl": None},
                labels([0, 1], names),
                labels([0, 0, 0, 1, 1, 9], names),
                labels([0] * 6, ["no such bird", names[0]]),
                labels([0] * 6, names),
                labels([0, 0, 1, 1, 1, 1], names),
                {"val_images_png.pkl": png_pickle([png] * 5 + [png[:60]], "2")},
                {"val_images_png.pkl": pickle.dumps([1] * 6)},
                {"val_images_png.pkl": None},
            ]
        )
    ]
    for sentence, expected in zip(
        said,
        [
            "holds val_images and not val_labels.pkl",
            "has 2 labels, and there are 6 images",
            "val_labels.pkl is not a pickle of plain arrays (list index out of range)",
            "calls a class 'no such bird', which WordNet does not; give the authors' class_names.txt",
            "1 of the 6 classes of tieredImageNet are missing (val",
            "has 2 images where 3 are expected",
            "does not decode",
            "holds something that is no PNG file",
            "2 of the 6 classes of tieredImageNet are missing (val",
        ],
        strict=True,
    ):
        assert expected in sentence, sentence


def test_the_authors_own_names_are_taken_where_wordnet_has_others(tmp_path):
    tiered_forms(tmp_path)
    names = {name: f"bird number {place}" for place, name in enumerate(TIERED.split_of)}
    for split, classes in TIERED.splits.items():
        path = tmp_path / "python2" / f"{split}_labels.pkl"
        numbers = [place for place in range(len(classes)) for _ in range(EACH)]
        facts = {"label_specific": np.array(numbers), "label_specific_str": [names[name] for name in classes]}
        path.write_bytes(pickle.dumps(facts, 2))
    (tmp_path / "python2" / "synsets.txt").write_text("\n".join(names))
    (tmp_path / "python2" / "class_names.txt").write_text("\n".join(names.values()))
    layout = TIERED.layout([tmp_path / "python2"])
    assert {split: tuple(classes) for split, classes in layout.classes.items()} == TIERED.splits
