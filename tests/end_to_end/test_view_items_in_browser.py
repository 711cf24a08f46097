# SPDX-License-Identifier: Apache-2.0
"""Items of an in-context-learning job in a real browser: `longmem view` and the report; skipped where there is none."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from benchmarks.browser import CHROMIUM, DRIVER, Browser, opened_browser
from tests.icl_jobs import HOSTILE, ITEMS, finished_icl
from tests.served_pages import served_runs

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="no Chromium and chromedriver here"),
]

CELL = "t=0&c=1&m=20&d=1&s=0&f=0&g=-1&a=-1&p=0"
CHANGE = "const box = document.getElementById(arguments[0]); box.value = arguments[1]; "
CHANGE += "box.dispatchEvent(new Event('change', {bubbles: true}))"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {form: finished_icl(folder, form) for form in ("tokens", "whole")}  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with opened_browser() as browser:
        yield browser


@pytest.fixture
def served(runs: dict[str, Path]) -> Iterator[Callable[[str], str]]:
    """Return a function that serves a run; the command around it is that of `test_view_in_browser.py`."""
    with served_runs(runs) as serve:
        yield serve


def rows(out: Path, name: str) -> list[dict[str, Any]]:
    """Return the rows of the cell that the tests open."""
    cell = {"seed": 1, "shots": 1, "memory_shots": 20}
    return [row for row in pq.read_table(out / f"{name}.parquet").to_pylist() if cell.items() <= row.items()]


def open_page(browser: Browser, url: str, item: int | None = None) -> None:
    browser.look(1280, 860)
    # a new document, not another place of the one before
    browser.open("about:blank")
    browser.open(f"{url}#{CELL}" + ("" if item is None else f"&i={item}"))
    browser.wait("document.querySelectorAll('#items a').length > 0")
    if item is not None:
        wait_for_item(browser, item)


def wait_for_item(browser: Browser, item: int) -> None:
    browser.wait("document.querySelector('#panel .where')?.innerText.startsWith(arguments[0])", f"item {item + 1} ·")


def check_unharmed(browser: Browser) -> None:
    assert browser.errors() == []
    assert browser.run("return document.title").startswith("What each item read: ")
    assert browser.run("return document.querySelectorAll('img, #items b b, main script').length") == 0


@pytest.mark.parametrize("form", ["tokens", "whole"])
def test_an_item_shows_what_it_read(
    browser: Browser, served: Callable[[str], str], runs: dict[str, Path], form: str
) -> None:
    open_page(browser, served(form))
    items, read = rows(runs[form], "items"), rows(runs[form], "demonstrations")
    signs = browser.texts("#items .sign")
    assert signs == ["✓" if row["longmem"] == row["gold"] else "✗" for row in items]
    number = next(
        at
        for at in range(ITEMS)
        if HOSTILE
        in browser.run("return document.querySelectorAll('#items .text')[arguments[0]].textContent", at).replace(
            "⟨U+202E⟩", "\u202e"
        )
    )
    browser.click("#items a", number)
    wait_for_item(browser, number)
    shown = browser.run("return document.querySelector('#panel .passage').textContent")
    assert HOSTILE.replace("\u202e", "⟨U+202E⟩") in shown
    assert shown.endswith(items[number]["gold"])
    demonstrations = browser.texts("#panel > ol .demonstration .about")
    assert len(demonstrations) == len(read[number]["demonstrations"])
    for about, each in zip(demonstrations, read[number]["demonstrations"], strict=True):
        assert each["label"] in about
        assert ("the right label" in about) == (each["label"] == items[number]["gold"])
        if form == "whole":
            assert about.startswith(f"{each['rank']}.") == (each["rank"] is not None)
        elif each["places"] is not None and each["places"] >= 0.01:
            assert about.startswith(f"{100 * each['places']:.0f}%")
    headings = browser.texts("#panel h2")
    assert any(("Read whole" if form == "whole" else "Read where the label") in each for each in headings)
    assert "undefined" not in browser.texts("#panel")[0]
    assert browser.texts("#panel summary") == ["In context: 1"]
    check_unharmed(browser)


def test_the_keyboard_walks_through_items_and_wrong_ones(
    browser: Browser, served: Callable[[str], str], runs: dict[str, Path]
) -> None:
    open_page(browser, served("tokens"))
    items = rows(runs["tokens"], "items")
    wrong = [at for at, row in enumerate(items) if row["longmem"] != row["gold"]]
    assert 2 <= len(wrong) < ITEMS, "else the test shows nothing"
    browser.run("document.getElementById('items').focus()")
    browser.press("down")
    wait_for_item(browser, 0)
    browser.press("down", "down", "up")
    wait_for_item(browser, 1)
    open_page(browser, browser.run("return location.href.split('#')[0]"))
    for expected, key in ((wrong[0], "n"), (wrong[1], "n"), (wrong[0], "p")):
        browser.press(key)
        wait_for_item(browser, expected)
    browser.press("w")
    browser.wait("document.querySelectorAll('#items a').length === arguments[0]", len(wrong))
    browser.back()
    browser.wait("document.querySelectorAll('#items a').length === arguments[0]", ITEMS)
    check_unharmed(browser)


def test_pages_are_turned_by_keys_and_with_the_items(
    browser: Browser, served: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.view.item_answers.PAGE_ITEMS", 3)
    open_page(browser, served("tokens"), 2)
    assert browser.texts("#shown") == [f"1–3 of {ITEMS}"]
    browser.press("down")
    wait_for_item(browser, 3)
    browser.wait("document.querySelector('#shown').innerText.startsWith('4–6')")
    assert browser.run("return document.querySelector('#items .chosen').dataset.item") == "3"
    browser.press("up")
    browser.wait("document.querySelector('#shown').innerText.startsWith('1–3')")
    browser.press("]")
    browser.wait("document.querySelector('#shown').innerText.startsWith('4–6')")
    browser.click("#later")
    browser.wait("document.querySelector('#shown').innerText.startsWith('7–8')")
    assert browser.run("return document.getElementById('later').disabled")
    browser.press("[")
    browser.wait("document.querySelector('#shown').innerText.startsWith('4–6')")
    check_unharmed(browser)


def test_cells_scorings_and_filters_can_be_chosen(
    browser: Browser, served: Callable[[str], str], runs: dict[str, Path]
) -> None:
    open_page(browser, served("whole"))
    items = rows(runs["whole"], "items")
    browser.run(CHANGE, "scoring", 2)
    right = sum(row["longmem_calibrated"] == row["gold"] for row in items)
    browser.wait(
        "document.getElementById('facts').innerText.includes(arguments[0])", f"LongMem right {right} of {ITEMS}"
    )
    browser.run(CHANGE, "gold", 0)
    label = browser.texts("#gold option")[1]
    count = sum(row["gold"] == label for row in items)
    browser.wait("document.querySelectorAll('#items a').length === arguments[0]", count)
    browser.run(CHANGE, "memory", 0)
    browser.wait("document.getElementById('facts').innerText.includes('by mean log-probability without memory')")
    browser.click("#items a")
    browser.wait("document.querySelector('#panel .hint')?.innerText.includes('read no demonstration')")
    browser.run("location.hash = '#t=0&c=9'")
    browser.wait("document.querySelector('#panel .error')?.innerText.includes('no seed 0 with 9 demonstrations')")
    browser.errors()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_of_items_fits_a_phone(browser: Browser, served: Callable[[str], str], scheme: str) -> None:
    open_page(browser, served("whole"), 2)
    browser.look(390, 844, scheme)
    assert browser.run("return [document.documentElement.scrollWidth, innerWidth]") == [390, 390]
    inside = "const box = document.querySelector(arguments[0]).getBoundingClientRect(); "
    inside += "return box.top >= 0 && box.bottom <= 845 && box.left >= 0 && box.right <= 390 && box.height > 100"
    for part in ("#items", "aside"):
        assert browser.run(inside, part), part


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1200, "light")])
def test_the_report_fits_and_shows_wrong_items_alone(
    browser: Browser, runs: dict[str, Path], width: int, scheme: str
) -> None:
    browser.look(width, 900, scheme)
    browser.open((runs["whole"] / "report.html").as_uri())
    # a scroll bar may take its part
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.texts("h1")[0].startswith("colours: 20 demonstrations in memory ")
    shown = "return [...document.querySelectorAll('.items tbody tr')].filter((each) => each.offsetParent).length"
    assert browser.run(shown) == ITEMS
    wrong = browser.run("return document.querySelectorAll('.items tr.wrong').length")
    browser.run("document.querySelector('.show-wrong').click()")
    assert browser.run(shown) == wrong
    # legends and labels of the charts keep apart
    script = """
      const boxes = [...document.querySelectorAll("svg")].filter((each) => each.getBoundingClientRect().width > 100)
        .map((each) => [...each.querySelectorAll("text")].map((text) => text.getBoundingClientRect()));
      return boxes.map((texts) => texts.some((a, at) => texts.slice(at + 1).some(
        (b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1)));
    """
    assert browser.run(script) == [False]
    assert browser.run("return document.querySelectorAll('img, script').length") == 0
    assert browser.errors() == []
