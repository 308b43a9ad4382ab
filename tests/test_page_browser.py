"""The leaderboard's page in a real browser: sorting, cards, phones, print. Skipped where there is no chromium."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from metazoo.benchmarks.browser import Page, browser, executable

GOLDEN = Path(__file__).parent / "golden" / "leaderboard" / "leaderboard.html"

pytestmark = pytest.mark.skipif(
    executable() is None, reason="no chromium here (Debian and Ubuntu: apt install chromium)"
)

LABELS = "[...document.querySelectorAll('table.main tbody th')].map(cell => cell.textContent)"
HEADERS = "[...document.querySelectorAll('table.main thead th')]"
SHOWN = "[...document.querySelectorAll('dialog')].filter(card => card.checkVisibility()).map(card => card.id)"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(chromium: Page) -> Iterator[Page]:
    """The golden page on a wide screen; whatever the test does, the browser must have nothing to complain about."""
    chromium.resize(1280, 900)
    chromium.open(GOLDEN)
    chromium.complaints.clear()
    yield chromium
    chromium.evaluate("0")
    assert chromium.complaints == []


def test_it_asks_for_no_other_file(page: Page) -> None:
    page.requests.clear()
    page.open(GOLDEN)
    assert {url.split("#")[0] for url in page.requests} == {GOLDEN.resolve().as_uri()}


def test_a_header_sorts_by_its_column_and_says_so(page: Page) -> None:
    [method, near, _, _, far, *_] = page.evaluate(f"{HEADERS}.map(header => header.getAttribute('aria-sort'))")
    assert (method, near, far) == (None, "descending", None), "best first, by the first column"
    first = page.evaluate(LABELS)
    page.evaluate(f"{HEADERS}[4].querySelector('button').click()")
    assert page.evaluate(f"{HEADERS}.map(header => header.getAttribute('aria-sort'))")[1:5:3] == [None, "descending"]
    keys = "[...document.querySelectorAll('table.main tbody tr')].map(row => row.cells[4].dataset.key ?? null)"
    descending = page.evaluate(keys)
    numbers = [float(key) for key in descending if key]
    assert numbers == sorted(numbers, reverse=True) and len(numbers) == 4 and descending[4:] == [None, None]
    assert page.evaluate(LABELS) != first
    page.evaluate(f"{HEADERS}[4].querySelector('button').click()")
    ascending = page.evaluate(keys)
    assert [float(key) for key in ascending if key] == sorted(numbers) and ascending[4:] == [None, None]
    assert page.evaluate(f"{HEADERS}[4].getAttribute('aria-sort')") == "ascending"


def test_the_baseline_stays_below_the_methods(page: Page) -> None:
    for index in range(7):
        page.evaluate(f"{HEADERS}[{index}].querySelector('button').click()")
        assert page.evaluate("document.querySelector('table.main').rows[7].cells[0].textContent.trim()") == "chance"


def test_a_keyboard_sorts_and_opens_and_closes(page: Page) -> None:
    page.evaluate(f"{HEADERS}[0].querySelector('button').focus()")
    page.press("Enter", 13, "\r")
    assert page.evaluate(LABELS) == sorted(page.evaluate(LABELS)), "by name"
    page.evaluate("document.querySelector('a.open').focus()")
    page.press("Enter", 13, "\r")
    page.wait_for(f"{SHOWN}.length === 1")
    assert page.evaluate("document.querySelector('dialog[open]').contains(document.activeElement)")
    page.press("Escape", 27)
    page.wait_for(f"{SHOWN}.length === 0")
    assert page.evaluate("document.activeElement.className").startswith("open"), "back where one was"


def test_each_result_opens_its_own_card(page: Page) -> None:
    links = page.evaluate(
        "[...document.querySelectorAll('a.open')].map(a => [a.hash.slice(1), a.getAttribute('aria-label')])"
    )
    assert len(links) == 12
    for name, label in links:
        page.evaluate(f"document.querySelector('a.open[href=\"#{name}\"]').click()")
        page.wait_for(f"{SHOWN}.length === 1")
        assert page.evaluate(SHOWN) == [name]
        assert label.startswith(page.evaluate(f"document.getElementById('{name}-title').textContent"))
        page.evaluate("document.querySelector('dialog[open] button').click()")
        page.wait_for(f"{SHOWN}.length === 0")
        page.wait_for("location.hash === ''")


def test_an_address_opens_a_card_and_going_back_closes_it(page: Page) -> None:
    page.evaluate("document.querySelector('a.open').click()")
    page.wait_for(f"{SHOWN}.length === 1")
    page.evaluate("history.back()")
    page.wait_for(f"{SHOWN}.length === 0")
    page.open(GOLDEN, "cell-2-1")
    page.wait_for(f"{SHOWN}[0] === 'cell-2-1'")


@pytest.mark.parametrize("fragment", ["", "cell-1-1"])
def test_nothing_is_wider_than_a_phone(page: Page, fragment: str) -> None:
    page.resize(390, 844, phone=True)
    page.open(GOLDEN, fragment)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    if fragment:
        assert page.evaluate("document.querySelector('dialog[open]').scrollWidth <= innerWidth")
    inside = (
        "[...document.querySelectorAll('h1, h2, p, figure, .panels, dl, .scroll')].filter(e => e.checkVisibility())"
    )
    assert page.evaluate(f"{inside}.every(e => e.getBoundingClientRect().right <= 391)")


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(page: Page, mode: str) -> None:
    """WCAG's contrast of 4.5 for text, 3 for what is drawn; bars differ in lightness, so that grey print tells them."""
    page.scheme(mode)
    try:
        names = ("--paper", "--ink", "--soft", "--link", "--best", "--other", "--whisker")
        style = "getComputedStyle(document.documentElement)"
        shown = {name: luminance(page.evaluate(f"{style}.getPropertyValue('{name}')")) for name in names}
    finally:
        page.scheme("light")
    for name in ("--ink", "--soft", "--link"):
        assert contrast(shown["--paper"], shown[name]) >= 4.5, name
    assert contrast(shown["--paper"], shown["--best"]) >= 3
    assert contrast(shown["--best"], shown["--other"]) >= 2.5, "the best bars and the others, in grey"


def test_it_prints_whole_and_an_open_card_alone(page: Page) -> None:
    whole = pages(page.pdf())
    assert 2 <= whole <= 8
    page.evaluate("location.hash = 'cell-1-1'")
    page.wait_for(f"{SHOWN}.length === 1")
    assert 1 <= pages(page.pdf()) <= 3


def pages(pdf: bytes) -> int:
    assert pdf.startswith(b"%PDF-")
    return len(re.findall(rb"/Type\s*/Page\b", pdf))


def luminance(colour: str) -> float:
    channels = [int(colour.strip()[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return sum(share * value for share, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)
