"""Font outlines as line segments, and their exact area coverage on a grid of pixels.

The outlines come out of the font files in font units, unhinted, so a drawing depends on the files and on nothing else:
no version of FreeType or Pillow changes a pixel. The arithmetic is addition, multiplication and division in a fixed
order, which IEEE 754 makes the same on every machine.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

_MOVE, _LINE, _QUADRATIC, _CUBIC, _CLOSE = 1, 2, 3, 4, 79  # matplotlib.path.Path's codes


@dataclass(frozen=True)
class Outline:
    """The closed contours of one glyph, cut into straight pieces.

    `segments` is float64 [n, 4] with columns x0, y0, x1, y1, y growing upwards. The unit is the font's own times a
    constant, until `fitted` makes it the longest side.
    """

    segments: np.ndarray

    def box(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top of the contours."""
        xs, ys = self.segments[:, 0::2], self.segments[:, 1::2]
        return float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())

    def fitted(self) -> Outline:
        """The same shape with its longest side 1 and its box centred on the origin: no place, no size."""
        left, bottom, right, top = self.box()
        centre = np.array([(left + right) / 2, (bottom + top) / 2] * 2)
        return Outline((self.segments - centre) / max(right - left, top - bottom))


def font_folder() -> Path:
    """The folder of the TrueType fonts that matplotlib ships."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def covered(font: Path) -> set[int]:
    """The code points a font has a glyph for; glyph 0, "not defined", is none."""
    from matplotlib.ft2font import FT2Font

    return {code for code, glyph in FT2Font(str(font)).get_charmap().items() if glyph}


def read_outlines(font: Path, characters: Iterable[int], pieces: int = 5) -> dict[int, Outline]:
    """The outlines of code points that a font covers, every curve cut into `pieces` lines; blanks are left out."""
    ft2font: Any = importlib.import_module("matplotlib.ft2font")
    names: Any = getattr(ft2font, "LoadFlags", None)  # since matplotlib 3.10; numbers of the module before
    flags = names.NO_SCALE | names.IGNORE_TRANSFORM if names else ft2font.LOAD_NO_SCALE | ft2font.LOAD_IGNORE_TRANSFORM
    face = ft2font.FT2Font(str(font))
    outlines = {}
    for code in characters:
        face.load_char(code, flags=flags)
        vertices, kinds = face.get_path()
        segments = _segments(np.asarray(vertices), np.asarray(kinds), pieces)
        if len(segments):
            outlines[code] = Outline(segments)
    return outlines


def _segments(vertices: np.ndarray, codes: np.ndarray, pieces: int) -> np.ndarray:
    if (codes == _CUBIC).any():
        raise ValueError("TrueType outlines have no cubic curves.")
    lines = np.flatnonzero(codes == _LINE)
    straight = np.concatenate([vertices[lines - 1], vertices[lines]], axis=1)
    controls = np.flatnonzero(codes == _QUADRATIC)[::2]  # a curve is its control point and its end, each with this code
    start, control, end = vertices[controls - 1], vertices[controls], vertices[controls + 1]
    t = np.arange(pieces + 1)[:, None, None] / pieces
    points = (1 - t) * ((1 - t) * start + t * control) + t * ((1 - t) * control + t * end)
    curved = np.concatenate([points[:-1], points[1:]], axis=2).reshape(-1, 4)
    closing = np.concatenate([vertices[np.flatnonzero(codes == _CLOSE) - 1], vertices[codes == _MOVE]], axis=1)
    return np.concatenate([straight, curved, closing])


def coverage(outlines: Sequence[np.ndarray], size: int) -> np.ndarray:
    """How much of every pixel each outline covers.

    `outlines`: arrays [n_i, 4] of segments in pixels of a size x size canvas, y growing downwards, wholly inside it.
    Returns float64 [len(outlines), size, size] in [0, 1]. Where contours of one orientation overlap, ink is solid as
    by the non-zero rule; a pixel that each of them covers in part gets the sum of the parts, at most 1.
    """
    segments = np.concatenate(outlines)
    owner = np.repeat(np.arange(len(outlines)), [len(outline) for outline in outlines])
    owner, segments = _cut(owner, segments, axis=1)
    owner, segments = _cut(owner, segments, axis=0)
    x0, y0, x1, y1 = segments.T
    middle = (x0 + x1) / 2
    column = np.clip(np.floor(middle), 0, size - 1)
    row = np.clip(np.floor((y0 + y1) / 2), 0, size - 1)
    height = y1 - y0
    right = height * (middle - column)  # what the piece leaves uncovered of its own pixel, and so gives to the next one
    # One column more than the canvas has, so that what spills over the right edge lands outside it.
    cell = ((owner * size + row) * (size + 1) + column).astype(np.int64)
    length = len(outlines) * size * (size + 1)
    steps = np.bincount(cell, height - right, length)
    steps += np.bincount(cell + 1, right, length + 1)[:length]
    area = np.cumsum(steps.reshape(len(outlines), size, size + 1), axis=2)[:, :, :size]
    return np.minimum(np.abs(area), 1.0)


def _cut(owner: np.ndarray, segments: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut segments where they cross whole x (axis 0) or y (axis 1), so that every piece lies in one column or row."""
    start, end = segments[:, axis], segments[:, axis + 2]
    low, high = np.minimum(start, end), np.maximum(start, end)
    first = np.floor(low)
    count = np.maximum(np.ceil(high) - first, 1).astype(np.int64)
    which = np.repeat(np.arange(len(segments)), count)
    number = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    floor = first[which] + number
    a, b = np.maximum(low[which], floor), np.minimum(high[which], floor + 1)
    rising = end[which] >= start[which]
    a, b = np.where(rising, a, b), np.where(rising, b, a)
    span = (end - start)[which]
    safe = np.where(span == 0, 1.0, span)
    other = 1 - axis
    from_other, run = segments[which, other], (segments[:, other + 2] - segments[:, other])[which]
    pieces = np.empty((len(which), 4))
    pieces[:, axis], pieces[:, axis + 2] = a, b
    pieces[:, other] = from_other + run * ((a - start[which]) / safe)
    pieces[:, other + 2] = np.where(span == 0, from_other + run, from_other + run * ((b - start[which]) / safe))
    return owner[which], pieces


Matrix: TypeAlias = tuple[float, float, float, float]


def on_canvas(outline: Outline, size: int, longest: float, matrix: Matrix = (1.0, 0.0, 0.0, 1.0)) -> np.ndarray:
    """Segments [n, 4] in pixels, y growing downwards, of a fitted outline in the middle of a size x size canvas.

    Its longer side is `longest` pixels before `matrix` (xx, xy, yx, yy, with y growing upwards) is applied.
    """
    xx, xy, yx, yy = matrix
    x, y = outline.segments[:, 0::2], outline.segments[:, 1::2]
    columns, rows = size / 2 + longest * (xx * x + xy * y), size / 2 - longest * (yx * x + yy * y)
    return np.stack([columns, rows], axis=2).reshape(-1, 4)
