"""The characters of matplotlib's fonts that could be a class of `glyphs`: the script of each, and its outlines."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from metazoo.benchmarks.glyphs.rendering import Outline, covered, read_outlines
from metazoo.errors import UserError

FAMILIES = {
    "DejaVu Sans": ("DejaVuSans", "-Bold", "-Oblique", "-BoldOblique"),
    "DejaVu Serif": ("DejaVuSerif", "-Bold", "-Italic", "-BoldItalic"),
    "DejaVu Sans Mono": ("DejaVuSansMono", "-Bold", "-Oblique", "-BoldOblique"),
    "STIX": ("STIXGeneral", "Bol", "Italic", "BolIta"),
}
STYLES = ("", " Bold", " Oblique", " Bold Oblique")
FONTS = {
    family + style: stem + ("", *endings)[number] + ".ttf"
    for number, style in enumerate(STYLES)
    for family, (stem, *endings) in FAMILIES.items()
}
"""Name of a font -> its file; every family upright, then every family bold, and so on."""
PLAIN = "DejaVu Sans"
"""The font with the widest coverage; what it lacks is no candidate."""

DIGITS, MATHEMATICS, ARROWS, SYMBOLS = "DIGITS AND PUNCTUATION", "MATHEMATICAL SYMBOLS", "ARROWS", "OTHER SYMBOLS"
LETTERED = (
    *("LATIN", "GREEK", "COPTIC", "CYRILLIC", "OLD ITALIC", "LISU", "ARMENIAN", "GEORGIAN"),
    *("ARABIC", "HEBREW", "LAO", "CANADIAN SYLLABICS"),
)
_LETTERED = re.compile(r"\b(" + "|".join(LETTERED) + r")\b")
# Patterns in a cell, told apart by where in the cell the ink is, which a drawing fitted to its canvas does not show.
_CELLS = re.compile(r"BRAILLE|BOX DRAWINGS|QUADRANT|TETRAGRAM|HEXAGRAM|TRIGRAM|DIGRAM|DOMINO TILE")
# Marked so are the forms of one letter in a word. Any other compatibility character restyles one or more characters.
_JOINED = re.compile(r"<(initial|medial|final|isolated)> [0-9A-F]+")


@dataclass(frozen=True)
class Character:
    """A candidate class: its code point, its script, and its outlines by font, fitted, in the order of `FONTS`."""

    code: int
    script: str
    outlines: Mapping[str, Outline]

    @property
    def name(self) -> str:
        """Unicode's name under the script's, and the code point: `GREEK/SMALL LETTER XI (U+03BE)`."""
        return f"{self.script}/{unicodedata.name(chr(self.code)).removeprefix(self.script).strip()} (U+{self.code:04X})"


def script_of(code: int) -> str | None:
    """The script a code point is filed under; None for what is no candidate.

    No candidates: controls, spaces, combining marks, modifiers (raised and lowered copies), compatibility characters
    (ligatures, fractions, circled digits, mathematical alphabets), patterns in a cell, and letters of scripts that are
    not `LETTERED`, none of which the fonts draw in four styles.
    """
    character = chr(code)
    name, category = unicodedata.name(character, ""), unicodedata.category(character)
    origin = unicodedata.decomposition(character)
    if category[0] not in "LNPS" or category in ("Lm", "Sk") or _CELLS.match(name):
        return None
    if origin.startswith("<") and not _JOINED.fullmatch(origin):
        return None
    if found := _LETTERED.search(name):
        return found[1]
    if 0x2190 <= code <= 0x21FF or 0x27F0 <= code <= 0x27FF or 0x2900 <= code <= 0x297F:
        return ARROWS
    if category == "Sm":
        return MATHEMATICS
    return {"S": SYMBOLS, "P": DIGITS, "N": DIGITS}.get(category[0])


def read_characters(folder: Path, advance: Callable[[], object] = lambda: None) -> list[Character]:
    """The candidates in code point order, each with its outlines in those of the `FONTS` that cover it.

    `folder` holds the font files; `advance` is called once a font. Raises UserError if a font is missing.
    """
    files = {font: folder / file for font, file in FONTS.items()}
    if missing := [file.name for file in files.values() if not file.is_file()]:
        raise UserError(
            f"{folder} lacks {', '.join(missing)}, from which the data set glyphs is drawn; install matplotlib again "
            "from its own wheel, which has these fonts."
        )
    scripts = {code: script for code in sorted(covered(files[PLAIN])) if (script := script_of(code)) is not None}
    shapes: dict[int, dict[str, Outline]] = {code: {} for code in scripts}
    for font, file in files.items():
        for code, outline in read_outlines(file, covered(file) & scripts.keys()).items():
            shapes[code][font] = outline.fitted()
        advance()
    return [Character(code, script, shapes[code]) for code, script in scripts.items()]
