"""glyphs: the characters of the fonts that matplotlib ships, split by script. It needs no download."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metazoo.benchmarks.glyphs.characters import ARROWS, DIGITS, FONTS, MATHEMATICS, SYMBOLS, Character, read_characters
from metazoo.benchmarks.glyphs.looks import choose
from metazoo.benchmarks.glyphs.rendering import coverage, font_folder, on_canvas
from metazoo.data.dataset import Count, DataSet, Layout
from metazoo.errors import UserError
from metazoo.progress import on_terminal

SCRIPTS = {
    # The alphabets of Europe and those made of their letters, and the signs that are printed with them.
    "train": ("LATIN", "GREEK", "COPTIC", "CYRILLIC", "OLD ITALIC", "LISU", DIGITS, MATHEMATICS, ARROWS, SYMBOLS),
    # The alphabets of the Caucasus.
    "val": ("ARMENIAN", "GEORGIAN"),
    # The scripts of Asia and of the Americas.
    "test": ("ARABIC", "HEBREW", "LAO", "CANADIAN SYLLABICS"),
}
SPLIT_OF = {script: split for split, scripts in SCRIPTS.items() for script in scripts}
DRAWINGS = 20
SEED = 2001
BATCH = 16 * 28**2  # characters drawn in one go, times the pixels of a drawing

LONGEST = 0.72  # longer side of an unchanged drawing, as a share of the canvas
# The largest changes: tangent of half the angle of rotation (so 20 degrees), slant, stretch in x and y, and shift as a
# share of the canvas.
TURN, SLANT, STRETCH, SHIFT = 0.175, 0.25, 0.2, 0.08
RIM = 1 / 56  # share of the canvas that stays free at each edge


@dataclass(frozen=True, kw_only=True)
class Glyphs(DataSet):
    """A data set drawn from fonts. With `distinguish` off, characters that look like others stay in (`choose`)."""

    distinguish: bool = True

    def layout(self, sources: Sequence[Path] = (), size: int | None = None) -> Layout:
        """The classes, drawn at `size` pixels. Raises UserError if sources are given or a font is missing."""
        if sources:
            raise UserError("glyphs is drawn from matplotlib's fonts and reads no source; leave --from out.")
        with on_terminal(self.name) as reporter, reporter.stage("comparing characters", 3 * len(FONTS)) as stage:
            steps = iter(range(1, 3 * len(FONTS) + 1))

            def advance() -> None:
                stage.update(next(steps))

            characters = choose(read_characters(font_folder(), advance), SPLIT_OF, self.distinguish, advance)
        classes = {
            split: {
                character.name: _drawing_names(character)
                for character in sorted(characters, key=lambda character: character.name)
                if SPLIT_OF[character.script] == split
            }
            for split in SCRIPTS
        }
        return Layout(
            classes=classes,
            images=lambda: drawings(characters, size or self.size),
            form="drawn from matplotlib's fonts",
        )


def drawings(characters: Sequence[Character], size: int) -> Iterator[tuple[str, np.ndarray]]:
    """Every drawing of the characters: its name, and its image as uint8 [size, size], ink 255 on 0."""
    count = max(1, BATCH // size**2)
    for start in range(0, len(characters), count):
        batch = characters[start : start + count]
        images = coverage([outline for character in batch for outline in _drawn(character, size)], size)
        names = [name for character in batch for name in _drawing_names(character)]
        yield from zip(names, np.rint(images * 255).astype(np.uint8), strict=True)


def _drawing_names(character: Character) -> list[str]:
    fonts = list(character.outlines)
    return [f"{character.name}/{number:02d} {fonts[number % len(fonts)]}" for number in range(DRAWINGS)]


def _drawn(character: Character, size: int) -> Iterator[np.ndarray]:
    """The outlines of a character's drawings in pixels: every font as it is, then in turn with random changes."""
    outlines = list(character.outlines.values())
    # RandomState, whose stream numpy promises never to change.
    changes = 2 * np.random.RandomState([SEED, character.code]).random_sample((DRAWINGS, 6)) - 1
    for number in range(DRAWINGS):
        outline = outlines[number % len(outlines)]
        if number < len(outlines):
            yield on_canvas(outline, size, LONGEST * size)
        else:
            turn, slant, wide, high, *shift = (float(change) for change in changes[number])
            matrix = _matrix(TURN * turn, SLANT * slant, 1 + STRETCH * wide, 1 + STRETCH * high)
            segments = on_canvas(outline, size, LONGEST * size, matrix)
            yield _placed(segments, size, SHIFT * size * np.array(shift))


def _matrix(turn: float, slant: float, wide: float, high: float) -> tuple[float, float, float, float]:
    """Stretch and slant, then rotation: by the tangent of the half-angle and by hand, to round alike everywhere."""
    cosine, sine = (1 - turn * turn) / (1 + turn * turn), 2 * turn / (1 + turn * turn)
    return cosine * wide, cosine * slant - sine * high, sine * wide, sine * slant + cosine * high


def _placed(segments: np.ndarray, size: int, shift: np.ndarray) -> np.ndarray:
    """Shift segments, as far as they stay on the canvas; smaller if they would not fit there at all."""
    points = segments.reshape(-1, 2)
    extent = (points.max(axis=0) - points.min(axis=0)).max()
    room = size * (1 - 2 * RIM)
    points = (points - size / 2) * min(1.0, room / extent) + size / 2
    low, high = points.min(axis=0), points.max(axis=0)
    return (points + np.clip(shift, size * RIM - low, size * (1 - RIM) - high)).reshape(-1, 4)


DATASET = Glyphs(
    name="glyphs",
    title="glyphs",
    citation="Drawn by metazoo from DejaVu (dejavu-fonts.github.io) and STIX (stixfonts.org) as matplotlib ships them.",
    terms="Drawings may be used freely; the fonts' own licences lie beside them, in matplotlib's mpl-data/fonts/ttf.",
    where="Nothing to get: it is drawn on the spot from the fonts that matplotlib ships.",
    channels=1,
    size=28,
    expected={"train": Count(1_022, 20_440), "val": Count(113, 2_260), "test": Count(459, 9_180)},
    images_per_class=DRAWINGS,
    embedded=True,
)
