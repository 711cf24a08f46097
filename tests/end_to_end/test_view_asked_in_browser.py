# SPDX-License-Identifier: Apache-2.0
"""Questions of a probe and examples of suffix identification in a real browser; skipped where there is none."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from benchmarks.browser import CHROMIUM, DRIVER, Browser, opened_browser
from tests.asked_jobs import EXAMPLES, HOSTILE, finished_probe, finished_suffix
from tests.served_pages import served_runs

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="no Chromium and chromedriver here"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {"probe": finished_probe(folder, "all layers"), "suffix": finished_suffix(folder, "default")}


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
    return list(pq.read_table(out / f"{name}.parquet").to_pylist())


def open_page(browser: Browser, url: str, unit: str, item: int | None = None) -> None:
    browser.look(1280, 860)
    # a new document, not another place of the one before
    browser.open("about:blank")
    browser.open(url + ("" if item is None else f"#i={item}"))
    browser.wait("document.querySelectorAll('#items a').length > 0")
    if item is not None:
        wait_for_item(browser, unit, item)


def wait_for_item(browser: Browser, unit: str, item: int) -> None:
    browser.wait("document.querySelector('#panel .where')?.innerText.startsWith(arguments[0])", f"{unit} {item + 1} ·")


def wait_for_token(browser: Browser, number: int, all_: int) -> None:
    said = f"token {number} of {all_}"
    browser.wait("document.querySelector('.reading .where')?.innerText === arguments[0]", said)


def check_unharmed(browser: Browser) -> None:
    assert browser.errors() == []
    assert browser.run("return document.querySelectorAll('img, #items b b, main script').length") == 0
    assert "undefined" not in browser.texts("body")[0]


def test_a_question_shows_its_answers_and_what_their_tokens_read(
    browser: Browser, served: Callable[[str], str], runs: dict[str, Path]
) -> None:
    trials, readings = rows(runs["probe"], "trials"), rows(runs["probe"], "readings")
    open_page(browser, served("probe"), "question")
    assert browser.texts("h1") == ["What did this question read?"]
    own = [trial for trial in trials if trial["subject"] == "passkey"]
    assert browser.texts("#items .sign") == ["✓" if trial["chosen"] else "✗" for trial in own]
    browser.click("#items a", 3)
    wait_for_item(browser, "question", 3)
    trial, read = trials[3], readings[3]
    offered = browser.texts("#panel .offered")
    assert offered == [f"{trial['answer']} ✓", *read["answers"][1:]]
    nats = [text.removeprefix("→ ") for text in browser.texts("#panel .offered + td")]
    assert nats == [f"−{each:.1f}" for each in read["nats"]]
    assert trial["answer"] in browser.texts("#panel .quote mark")[0]
    standing = browser.texts("#panel .standing")[0]
    missed = sum(not token["read"] for token in read["tokens"])
    assert ("was retrieved for all" in standing) == (missed == 0)
    begin = read["place"]["position"]
    in_blocks = any(first <= begin < end for first, end in read["blocks"])
    assert ("a passage that holds the answer" in standing) == in_blocks
    # the token with the least probability is shown at once, another one after a click
    tokens = read["tokens"]
    worst = min(range(len(tokens)), key=lambda at: tokens[at]["logprob"])
    wait_for_token(browser, worst + 1, len(tokens))
    other = 0 if worst else 1
    browser.click(".heat [data-at]", other)
    wait_for_token(browser, other + 1, len(tokens))
    marked = browser.run(
        "return [...document.querySelectorAll('.place')].map((each) => each.innerText.includes('the right place'))"
    )
    assert marked == [place["position"] == tokens[other]["right"] for place in tokens[other]["places"]]
    check_unharmed(browser)


def test_the_keyboard_walks_through_questions_and_tokens(browser: Browser, served: Callable[[str], str]) -> None:
    open_page(browser, served("probe"), "question", 1)
    browser.wait("document.querySelector('.heat .chosen')")
    count = browser.run("return document.querySelectorAll('.heat [data-at]').length")
    browser.run("document.querySelector('.heat').focus()")
    browser.click(".heat [data-at]", 0)
    wait_for_token(browser, 1, count)
    browser.press("right", "right", "left")
    wait_for_token(browser, 2, count)
    browser.run("document.getElementById('items').focus()")
    browser.press("down")
    wait_for_item(browser, "question", 2)
    # another subject has controls of its own, and the keyboard stays where it was
    browser.run("document.getElementById('task').focus()")
    browser.run("const box = document.getElementById('task'); box.value = 1; box.dispatchEvent(new Event('change'))")
    browser.wait("document.getElementById('shots') !== null")
    assert browser.run("return document.activeElement.id") == "task"
    assert browser.run("return document.getElementById('depth')") is None
    check_unharmed(browser)


def test_an_example_shows_its_candidates_as_heat_maps(
    browser: Browser, served: Callable[[str], str], runs: dict[str, Path]
) -> None:
    open_page(browser, served("suffix"), "example", 0)
    own = [row for row in rows(runs["suffix"], "items") if row["context_tokens"] == 128]
    assert browser.texts("#items .sign") == ["✓" if row["correct_memory"] else "✗" for row in own]
    assert len(own) == EXAMPLES
    assert browser.texts("#panel .offered")[0].endswith("✓")
    assert browser.run("return document.querySelectorAll('#panel .heat').length") == 3
    # the context and the candidates hold what would harm a page
    assert HOSTILE[:10] in browser.run("return document.querySelector('#panel .prompt').textContent")
    browser.click("#panel details[open] .heat [data-at]", 4)
    wait_for_token(browser, 5, 20)
    assert len(browser.texts("#panel .reading .place")) == 4
    assert browser.run("return getComputedStyle(document.getElementById('gold').parentElement).display") == "none"
    browser.run(
        "const box = document.getElementById('context'); box.value = 12; box.dispatchEvent(new Event('change'))"
    )
    browser.wait("document.querySelector('#panel .hint')?.innerText.includes('0 tokens before them in memory')")
    browser.click("#panel details[open] .heat [data-at]", 4)
    browser.wait("document.querySelector('.reading')?.innerText.includes('It read nothing')")
    check_unharmed(browser)


@pytest.mark.parametrize(("job", "unit"), [("probe", "question"), ("suffix", "example")])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_pages_fit_a_phone(
    browser: Browser, served: Callable[[str], str], job: str, unit: str, scheme: str
) -> None:
    open_page(browser, served(job), unit, 0)
    browser.look(390, 844, scheme)
    assert browser.run("return [document.documentElement.scrollWidth, innerWidth]") == [390, 390]
    inside = "const box = document.querySelector(arguments[0]).getBoundingClientRect(); "
    inside += "return box.top >= 0 && box.bottom <= 845 && box.left >= 0 && box.right <= 390 && box.height > 100"
    for part in ("#items", "aside"):
        assert browser.run(inside, part), part
    # nothing of the panel is wider than the panel
    assert browser.run("const panel = document.getElementById('panel'); return panel.scrollWidth <= panel.clientWidth")
