"""What characters look like: which shapes are signs, which fonts draw them differently, and which look the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from metazoo.benchmarks.glyphs.characters import FONTS, PLAIN, Character
from metazoo.benchmarks.glyphs.rendering import Outline, coverage, on_canvas

SIDE = 32  # pixels of the canvas on which looks are compared,
FILLED = 28  # both sides of the shape on it, stretched,
BATCH = 256  # shapes drawn in one go,
FULL = 63  # and the number that stands for a pixel full of ink: small enough for the exact sums below

STYLES = 4  # a class has at least this many fonts that draw it differently,
STIR = 0.02  # which is by more than this share of the ink
SLENDER = 3.0  # a shape more slender than this is a bar or dots in a row, and no class
SOLID = 0.85  # a shape with more ink than this share of its convex hull is a block, disc or slanted bar, and no class


class Likeness(NamedTuple):
    """Two shapes look the same with at most so many pixels of unmatched ink, or with at least such a correlation."""

    unmatched: float
    correlation: float


WITHIN = Likeness(unmatched=6.0, correlation=0.94)
ACROSS = Likeness(unmatched=8.0, correlation=0.90)
"""For characters of different splits, where a look-alike does more harm than a class less."""
ASPECT = 1.5  # unless one is wider for its height by more than this factor, which is what the drawings' stretch reaches


def choose(
    candidates: Sequence[Character],
    split_of: Mapping[str, str],
    distinguish: bool = True,
    advance: Callable[[], object] = lambda: None,
) -> list[Character]:
    """The candidates that become classes: signs, drawn in enough styles, of which no two look the same in any font.

    Of characters that look the same the first in code point order is kept and the others are dropped, so that a shape
    is in one class, and one split, only. What is kept carries the outlines of the fonts that draw it differently.
    `split_of` gives the split of a script. With `distinguish` off, look-alikes stay. `advance` is called twice a font.
    """
    candidates = [c for c in candidates if PLAIN in c.outlines and len(c.outlines) >= STYLES]
    looks = Looks(candidates, advance)
    signs = [
        Character(candidate.code, candidate.script, {font: candidate.outlines[font] for font in fonts})
        for candidate in candidates
        if looks.is_sign(candidate) and len(fonts := looks.styles(candidate)) >= STYLES
    ]
    if not distinguish:
        return signs
    same = looks.same(signs, [split_of[sign.script] for sign in signs], advance)
    dropped = np.zeros(len(signs), dtype=bool)
    kept = []
    for number, sign in enumerate(signs):
        if not dropped[number]:
            kept.append(sign)
            dropped |= same[number]
    return kept


class Looks:
    """Characters drawn in every font that has them and stretched to one square, for comparing their shapes."""

    def __init__(self, characters: Sequence[Character], advance: Callable[[], object] = lambda: None) -> None:
        self._images: dict[str, np.ndarray] = {}
        self._aspects: dict[str, np.ndarray] = {}
        self._rows: dict[str, dict[int, int]] = {}
        for font in FONTS:
            drawn = [character for character in characters if font in character.outlines]
            segments = [_stretched(character.outlines[font]) for character in drawn]
            batches = [coverage(segments[start : start + BATCH], SIDE) for start in range(0, len(segments), BATCH)]
            images = np.concatenate([np.zeros((0, SIDE, SIDE)), *batches])
            self._images[font] = np.rint(images * FULL).astype(np.uint8)
            self._aspects[font] = np.array([_aspect(character.outlines[font]) for character in drawn])
            self._rows[font] = {character.code: row for row, character in enumerate(drawn)}
            advance()

    def image(self, character: Character, font: str) -> np.ndarray:
        """uint8 [SIDE, SIDE] from 0 to FULL; KeyError if the font lacks the character."""
        return self._images[font][self._rows[font][character.code]]

    def is_sign(self, character: Character) -> bool:
        """Whether the shape is neither slender nor solid."""
        from scipy.spatial import ConvexHull

        outline = character.outlines[PLAIN]
        left, bottom, right, top = outline.box()
        ink = int(self.image(character, PLAIN).sum()) / FULL / FILLED**2 * (right - left) * (top - bottom)
        hull = ConvexHull(outline.segments[:, :2]).volume  # in two dimensions, its area
        return 1 / SLENDER <= _aspect(outline) <= SLENDER and ink <= SOLID * hull

    def styles(self, character: Character) -> list[str]:
        """The fonts that draw the character as no font before them does."""
        fonts = list(character.outlines)
        images = np.stack([self.image(character, font) for font in fonts]).reshape(len(fonts), -1).astype(np.int16)
        changes = np.abs(images[:, None] - images).sum(axis=2)
        inks = images.sum(axis=1)
        kept: list[int] = []
        for number, ink in enumerate(inks):
            if (changes[number, kept] > STIR * ink).all():
                kept.append(number)
        return [fonts[number] for number in kept]

    def same(
        self, characters: Sequence[Character], splits: Sequence[str], advance: Callable[[], object] = lambda: None
    ) -> np.ndarray:
        """bool [n, n]: whether two of n characters, of these n splits, look the same in any font that draws both."""
        same = np.zeros((len(characters), len(characters)), dtype=bool)
        split = np.array(splits)
        for font, rows in self._rows.items():
            present = [number for number, character in enumerate(characters) if character.code in rows]
            if present:
                drawn = [rows[characters[number].code] for number in present]
                images, aspects = self._images[font][drawn], self._aspects[font][drawn]
                across = split[present][:, None] != split[present]
                ink = unmatched_ink(images) <= np.where(across, ACROSS.unmatched, WITHIN.unmatched)
                blur = correlation(images) >= np.where(across, ACROSS.correlation, WITHIN.correlation)
                comparable = aspects[:, None] <= ASPECT * aspects
                same[np.ix_(present, present)] |= (ink | blur) & comparable & comparable.T
            advance()
        return same


def _aspect(outline: Outline) -> float:
    """Width over height."""
    left, bottom, right, top = outline.box()
    return (right - left) / (top - bottom)


def _stretched(outline: Outline) -> np.ndarray:
    left, bottom, right, top = outline.box()
    return on_canvas(outline, SIDE, FILLED, (1 / (right - left), 0.0, 0.0, 1 / (top - bottom)))


def unmatched_ink(images: np.ndarray) -> np.ndarray:
    """How much ink of one shape lies more than a pixel away from any ink of the other, or of the other from the one.

    `images`: uint8 [n, S, S] from 0 to FULL. Returns float32 [n, n], in pixels full of ink: the larger of the two
    amounts. A stroke that moves by a pixel costs nothing, and a missing accent or bar costs all of itself. The sums are
    of whole numbers below 2^24, so exact.
    """
    count, side, _ = images.shape
    framed = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    nearby = np.maximum.reduce([framed[:, y : y + side, x : x + side] for y in range(3) for x in range(3)])
    bare = (nearby <= FULL // 4).reshape(count, -1).astype(np.float32)
    unmatched = images.reshape(count, -1).astype(np.float32) @ bare.T
    return np.maximum(unmatched, unmatched.T) / np.float32(FULL)


def correlation(images: np.ndarray) -> np.ndarray:
    """Pearson's correlation of the shapes, blurred over five pixels and sampled at every other.

    `images`: uint8 [n, S, S] from 0 to FULL. Returns float64 [n, n]. Small differences of weight and of place hardly
    lower it. The sums are of whole numbers below 2^53, so exact.
    """
    count, side, _ = images.shape
    framed = np.pad(images, ((0, 0), (2, 2), (2, 2))).astype(np.int32)
    weights = (1, 4, 6, 4, 1)
    rows = np.add.reduce([weight * framed[:, y : y + side : 2] for y, weight in enumerate(weights)])
    blurred = np.add.reduce([weight * rows[:, :, x : x + side : 2] for x, weight in enumerate(weights)])
    values = blurred.reshape(count, -1).astype(np.float64)
    totals = values.sum(axis=1)
    covariance = values.shape[1] * (values @ values.T) - totals[:, None] * totals
    spread = np.sqrt(np.diag(covariance))
    return covariance / (spread[:, None] * spread)
