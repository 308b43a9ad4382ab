"""The data set glyphs: what is in it, that it is the same everywhere, and that no shape is in two splits."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageFont
import pytest

from metazoo.benchmarks.datasets import glyphs
from metazoo.benchmarks.glyphs.characters import ARROWS, FONTS, MATHEMATICS, Character, read_characters, script_of
from metazoo.benchmarks.glyphs.looks import FULL, choose, correlation, unmatched_ink
from metazoo.benchmarks.glyphs.rendering import coverage, font_folder, on_canvas, read_outlines
from metazoo.data.store import Split, Store, open_store
from metazoo.errors import UserError

SPLITS = ("train", "val", "test")
# Of the arrays at 28 pixels; found alike with matplotlib 3.9.2, 3.10.0 and 3.11.2 and numpy 1.26.4, 2.1.3 and 2.4.
DIGESTS = {
    "train": "719f5765965986fa568488d80e94a24aa04354d6f1ff2d824d3d9e999b104874",
    "val": "91b33457fa4e5205fe803a7872ae7b77fef02e0e2c0948a88641fe3fe638c625",
    "test": "76285d632831c81ba0e29f5381635c060c8836cde1c1f442a16947240cd13519",
}


@pytest.fixture(scope="module")
def store() -> Store:
    return open_store("glyphs")


@pytest.fixture(scope="module")
def candidates() -> dict[int, Character]:
    return {character.code: character for character in read_characters(font_folder())}


def by_class(split: Split) -> np.ndarray:
    """The images as [classes, 20, H, W]."""
    return np.asarray(split.images).reshape(len(split.class_names), glyphs.DRAWINGS, *split.images.shape[2:])


def chosen(candidates: dict[int, Character], text: str, distinguish: bool = True) -> str:
    kept = choose([candidates[ord(letter)] for letter in text], glyphs.SPLIT_OF, distinguish)
    return "".join(chr(character.code) for character in kept)


# What is in it.


def test_a_thousand_classes_of_twenty_drawings_each(store: Store) -> None:
    assert sum(len(store.split(name).class_names) for name in SPLITS) >= 1000
    for name in SPLITS:
        split = store.split(name)
        assert (split.class_sizes == 20).all()
        assert split.images.shape == (20 * len(split.class_names), 1, 28, 28)


def test_classes_have_readable_names(store: Store) -> None:
    for name in SPLITS:
        for class_name in store.split(name).class_names:
            assert re.fullmatch(r"[A-Z ]+/[A-Z0-9 -]+ \(U\+[0-9A-F]{4,5}\)", class_name), class_name
    assert "GREEK/SMALL LETTER XI (U+03BE)" in store.split("train").class_names


def test_no_script_is_in_two_splits(store: Store) -> None:
    scripts = {name: {class_name.split("/")[0] for class_name in store.split(name).class_names} for name in SPLITS}
    assert all(scripts.values())
    for one, other in combinations(SPLITS, 2):
        assert not scripts[one] & scripts[other]


def test_every_drawing_has_ink_and_none_is_a_block(store: Store) -> None:
    for name in SPLITS:
        ink = np.asarray(store.split(name).images).mean(axis=(1, 2, 3)) / 255
        assert ink.min() > 0.02
        assert ink.max() < 0.55


def test_every_drawing_stays_off_the_edge_of_the_canvas(store: Store) -> None:
    for name in SPLITS:
        images = np.asarray(store.split(name).images)[:, 0]
        for edge in (images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]):
            assert edge.max() <= 128  # half a pixel is free


def test_all_drawings_of_a_class_differ(store: Store) -> None:
    for name in SPLITS:
        for images in by_class(store.split(name)):
            assert len({image.tobytes() for image in images}) == glyphs.DRAWINGS


def test_the_nearest_raw_image_is_often_the_wrong_class(store: Store) -> None:
    images = by_class(store.split("val")).astype(np.float64) / 255
    random = np.random.RandomState(0)
    right = 0
    for _ in range(500):
        classes = random.choice(len(images), 5, replace=False)
        support = random.randint(0, 20, 5)
        query = (support + random.randint(1, 20, 5)) % 20
        pairs = images[classes, query][:, None] - images[classes, support]
        right += int((np.square(pairs).sum(axis=(2, 3)).argmin(axis=1) == np.arange(5)).sum())
    assert 0.5 < right / 2500 < 0.75  # 0.616 in 4,000 episodes; chance is 0.2


# It is the same everywhere.


def test_the_images_are_these_and_no_others(store: Store) -> None:
    assert {name: entry.sha256 for name, entry in store.manifest.splits.items()} == DIGESTS
    store.verify()


def test_drawn_again_alone_a_class_is_the_same_bit_for_bit(store: Store, candidates: dict[int, Character]) -> None:
    split = store.split("test")
    images = by_class(split)
    lao = choose([c for c in candidates.values() if c.script == "LAO"], glyphs.SPLIT_OF)
    shared = [character for character in lao if character.name in split.class_names]
    assert len(shared) > 20
    for character in shared:
        again = np.stack([image for _, image in glyphs.drawings([character], 28)])
        assert (again == images[split.class_names.index(character.name)]).all()


def test_another_size_is_drawn_and_not_resized(candidates: dict[int, Character]) -> None:
    characters = [candidates[ord(letter)] for letter in "ξЖ&"]
    small, large = ([image for _, image in glyphs.drawings(characters, size)] for size in (28, 84))
    for one, other in zip(small, large, strict=True):
        assert other.shape == (84, 84)
        mean = other.reshape(28, 3, 28, 3).mean(axis=(1, 3))
        assert np.abs(mean - one).max() < 6  # the same drawing, of which each is a sampling
        resized = np.asarray(PIL.Image.fromarray(one).resize((84, 84), PIL.Image.Resampling.BICUBIC))
        assert np.abs(other.astype(int) - resized).max() > 60  # with edges that no resizing brings back


def test_the_store_of_another_size_has_the_same_classes(
    store: Store, candidates: dict[int, Character], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    some = list("ξЖ&ԴՔლქאשສ")
    monkeypatch.setattr(glyphs, "read_characters", lambda *_: [candidates[ord(letter)] for letter in some])
    monkeypatch.setattr(glyphs.Glyphs, "check", lambda *_: None)
    odd = open_store("glyphs", size=17, home=tmp_path)
    for name in SPLITS:
        assert set(odd.split(name).class_names) <= set(store.split(name).class_names)
        assert odd.split(name).images.shape[1:] == (1, 17, 17)


# No shape is in two splits.


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """The highest correlation between two sets of drawings, cropped to their ink and shrunk to 16 x 16."""
    tables = []
    for images in (one, other):
        pictures = [PIL.Image.fromarray(image) for image in images]
        shrunk = [picture.crop(picture.getbbox()).resize((16, 16), PIL.Image.Resampling.BOX) for picture in pictures]
        table = np.stack([np.asarray(picture, dtype=np.float64).ravel() for picture in shrunk])
        table -= table.mean(axis=1, keepdims=True)
        tables.append(table / np.linalg.norm(table, axis=1, keepdims=True))
    return float((tables[0] @ tables[1].T).max())


@pytest.mark.parametrize(("one", "other"), list(combinations(SPLITS, 2)))
def test_no_look_alikes_in_two_splits(store: Store, one: str, other: str) -> None:
    for drawing in range(4):  # upright and unchanged, so that equal shapes would give equal images
        drawings = [by_class(store.split(name))[:, drawing] for name in (one, other)]
        assert likeness(*drawings) < 0.93


def test_the_check_for_look_alikes_finds_those_that_are_left_in(candidates: dict[int, Character]) -> None:
    train, val = "UhO", "\u054d\u0570\u0555"  # Latin; and Armenian seh, ho, oh
    images = [
        np.stack([next(glyphs.drawings([candidates[ord(letter)]], 28))[1] for letter in text]) for text in (train, val)
    ]
    assert likeness(*images) > 0.93
    assert chosen(candidates, train + val, distinguish=False) == train + val
    assert chosen(candidates, train + val) == train


def test_what_looks_the_same_in_two_scripts_is_one_class(candidates: dict[int, Character]) -> None:
    assert chosen(candidates, "A\u0391\u0410") == "A"  # Latin, Greek, Cyrillic
    assert chosen(candidates, "A\u0391\u0410", distinguish=False) == "A\u0391\u0410"
    assert chosen(candidates, "V\u142f") == "V"  # Canadian pe: wider, but no wider than a stretched drawing
    assert chosen(candidates, "AHΞЖ") == "AHΞЖ"


def test_capitals_that_differ_in_size_only_are_one_class(candidates: dict[int, Character]) -> None:
    assert chosen(candidates, "CScs") == "CS"
    assert chosen(candidates, "AaGg") == "AaGg"


def test_bars_blocks_and_dots_are_no_classes(candidates: dict[int, Character]) -> None:
    assert chosen(candidates, "-/\\_|●■A") == "A"


def test_unmatched_ink_forgives_a_shift_and_not_a_missing_dot() -> None:
    bar = np.zeros((32, 32), dtype=np.uint8)
    bar[6:26, 14:18] = FULL
    shifted = np.roll(bar, 1, axis=1)
    dotted = bar.copy()
    dotted[2:5, 14:17] = FULL
    amounts = unmatched_ink(np.stack([bar, shifted, dotted]))
    assert amounts[0, 1] == 0
    assert amounts[0, 2] == amounts[2, 0] == 9
    assert correlation(np.stack([bar, shifted, dotted])).diagonal() == pytest.approx([1, 1, 1])


# Which characters, and how they are drawn.


@pytest.mark.parametrize(
    ("letter", "script"),
    [
        *[
            ("é", "LATIN"),
            ("Ж", "CYRILLIC"),
            ("ق", "ARABIC"),
            ("ᐁ", "CANADIAN SYLLABICS"),
            ("→", ARROWS),
            ("∀", MATHEMATICS),
        ],
        *[("\u0301", None), ("\u00a0", None), ("\n", None)],  # combining, blank, control
        *[
            ("ʰ", None),
            ("½", None),
            ("ﬁ", None),
            ("\N{MATHEMATICAL BOLD CAPITAL A}", None),
        ],  # copies of other characters
        *[("⠿", None), ("╬", None), ("█", "OTHER SYMBOLS")],  # the last is refused for its shape
    ],
)
def test_script_of(letter: str, script: str | None) -> None:
    assert script_of(ord(letter)) == script


def test_all_sixteen_fonts_are_read(candidates: dict[int, Character]) -> None:
    assert list(candidates[ord("A")].outlines) == list(FONTS)
    assert len(FONTS) == 16


def test_coverage_is_exact() -> None:
    def loop(*points: tuple[float, float]) -> np.ndarray:
        return np.array([[*start, *end] for start, end in zip(points, [*points[1:], points[0]], strict=True)])

    square = loop((1.0, 1.25), (3.0, 1.25), (3.0, 3.0), (1.0, 3.0))
    hole = loop((1.5, 2.0), (1.5, 2.5), (2.5, 2.5), (2.5, 2.0))
    triangle = loop((0.0, 0.0), (4.0, 0.0), (0.0, 4.0))
    images = coverage([square, np.concatenate([square, hole]), triangle], 4)
    expected = np.zeros((4, 4))
    expected[1, 1:3], expected[2, 1:3] = 0.75, 1
    assert images[0] == pytest.approx(expected)
    expected[2, 1:3] -= 0.25
    assert images[1] == pytest.approx(expected)
    assert images[2] == pytest.approx(np.triu(np.ones((4, 4)), 1)[:, ::-1] + np.eye(4)[:, ::-1] / 2)


@pytest.mark.parametrize("font", ["DejaVu Serif Oblique", "STIX"])
def test_outlines_have_the_ink_that_pillow_draws(font: str) -> None:
    file = font_folder() / FONTS[font]
    for letter in "Aag&@ξ8":
        outline = read_outlines(file, [ord(letter)])[ord(letter)].fitted()
        mask = PIL.ImageFont.truetype(str(file), 400).getmask(letter)
        theirs = np.asarray(mask, dtype=np.float64).reshape(mask.size[::-1]) / 255
        longest = max(np.ptp(np.nonzero(theirs), axis=1)) + 1
        ours = coverage([on_canvas(outline, longest + 2, longest)], longest + 2)
        assert ours.sum() == pytest.approx(theirs.sum(), rel=0.03)


def test_a_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="reads no source"):
        glyphs.DATASET.layout([tmp_path])


def test_a_missing_font_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"DejaVuSans\.ttf.*install matplotlib again"):
        read_characters(tmp_path)
