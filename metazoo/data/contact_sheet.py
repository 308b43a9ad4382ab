"""A picture of one episode: a row for each way, its support images left of its queries."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from metazoo.data.store import Split

if TYPE_CHECKING:
    from metazoo.episodes import EpisodeRows

THUMBNAIL = 64  # pixels an image is enlarged to at least
GAP = 4
MARGIN = 16
TEXT = 15
BACKGROUND, INK, FAINT = "white", "black", "#666666"
SUPPORT, QUERY = "#1f5fa8", "#a8501f"


def contact_sheet(split: Split, rows: EpisodeRows, title: str) -> Image.Image:
    """Draw the first episode of `rows`: images in the order the episode has them, grouped by label.

    Small images are enlarged by a whole factor, so that every stored pixel is a square.
    """
    font, small = ImageFont.load_default(TEXT), ImageFont.load_default(TEXT - 3)
    ways = len(rows.classes[0])
    size = split.images.shape[-1]
    side = size * -(-THUMBNAIL // size)
    support = [rows.support_rows[0][rows.support_labels[0] == label] for label in range(ways)]
    query = [rows.query_rows[0][rows.query_labels[0] == label] for label in range(ways)]
    names = [_shortened(split.class_names[index]) for index in rows.classes[0]]

    label_width = max(int(font.getlength(f"{label}  {name}")) for label, name in enumerate(names)) + MARGIN
    support_left = MARGIN + label_width
    query_left = support_left + len(support[0]) * (side + GAP) + MARGIN
    top = MARGIN + 3 * TEXT + 2 * GAP
    width = max(query_left + len(query[0]) * (side + GAP), MARGIN + int(font.getlength(title))) + MARGIN
    sheet = Image.new("RGB", (width, top + ways * (side + GAP) + MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN - GAP), title, INK, font)
    for left, heading, colour, images in (
        (support_left, "support", SUPPORT, support),
        (query_left, "query", QUERY, query),
    ):
        draw.text((left, top - 2 * GAP - TEXT), heading, colour, small)
        draw.line((left, top - GAP, left + len(images[0]) * (side + GAP) - GAP - 1, top - GAP), colour, 2)
    for label, name in enumerate(names):
        y = top + label * (side + GAP)
        draw.text((MARGIN, y + side // 2), str(label), FAINT, font, anchor="lm")
        draw.text((MARGIN + font.getlength(f"{label}  "), y + side // 2), name, INK, font, anchor="lm")
        for left, images in ((support_left, support[label]), (query_left, query[label])):
            for column, row in enumerate(images):
                sheet.paste(_thumbnail(split.images[row], side), (left + column * (side + GAP), y))
    return sheet


def _thumbnail(planes: np.ndarray, side: int) -> Image.Image:
    pixels = planes[0] if len(planes) == 1 else planes.transpose(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(pixels)).resize((side, side), Image.Resampling.NEAREST)


def _shortened(name: str, longest: int = 34) -> str:
    return name if len(name) <= longest else f"{name[: longest // 2 - 1]}…{name[-longest // 2 :]}"
