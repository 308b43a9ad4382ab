"""The pictures of a leaderboard's page in README and gallery, taken of committed records by a headless chromium.

    python -m metazoo.benchmarks.pictures docs/images

They are of the suite cifar_fs_small; the fonts are those of the machine.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from dataclasses import dataclass
from pathlib import Path

from metazoo.benchmarks.browser import Page, browser
from metazoo.errors import UserError
from metazoo.files import replacing
from metazoo.leaderboard import page
from metazoo.leaderboard.shelf import Identities, Shelf
from metazoo.leaderboard.standings import build
from metazoo.leaderboard.suite import load, suites
from metazoo.records import read

SUITE = "cifar_fs_small"
COLOURS = 96
"""What a picture of text and flat bars needs; it makes the file a third as large."""


@dataclass(frozen=True)
class Shot:
    """One picture: its name, what of the page is opened, the window in pixels, and the element that is shown of it."""

    name: str
    fragment: str
    width: int
    height: int
    element: str = ""


SHOTS = (
    Shot("leaderboard_page", "", 1180, 1040),
    Shot("leaderboard_card", "cell-10-1", 1180, 900),
    Shot("leaderboard_cost", "", 1180, 600, "#cost"),
    Shot("leaderboard_phone", "", 390, 760),
)


def take(shot: Shot, html: Path, page: Page) -> bytes:
    """One picture of a page, as a PNG of few colours."""
    from PIL import Image

    page.resize(shot.width, shot.height, phone=shot.width < 500)
    page.open(html, shot.fragment)
    packed = io.BytesIO()
    Image.open(io.BytesIO(page.picture(shot.element))).convert("RGB").quantize(COLOURS).save(
        packed, "PNG", optimize=True
    )
    return packed.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder that the pictures are written to")
    arguments = parser.parse_args()
    suite, records = load(SUITE), read([suites()[SUITE].parents[1] / "results" / f"{SUITE}.jsonl"])
    try:
        with tempfile.TemporaryDirectory() as place, browser(Path(place) / "profile") as chromium:
            html = page.save(build(suite, Shelf(records, Identities.of(suite))), Path(place))
            for shot in SHOTS:
                path = arguments.out / f"{shot.name}.png"
                with replacing(path) as file:
                    file.write(take(shot, html, chromium))
                print(path)
    except UserError as error:
        parser.exit(2, f"metazoo: {error}\n")


if __name__ == "__main__":
    main()
