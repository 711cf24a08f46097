# SPDX-License-Identifier: Apache-2.0
"""The page of `longmem view` in a real browser: by mouse, by keyboard, on a phone; skipped where there is none."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from benchmarks.browser import CHROMIUM, DRIVER, Browser, opened_browser
from longmem.model.longmem import LongMem
from longmem.model.source import ModelSource
from longmem.runtime.scheduler import Limits
from pipelines.perplexity.job import PerplexityJob, run_job
from tests.inputs import EVERY_FORM

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="no Chromium and chromedriver here"),
]

LONGMEM = [sys.executable, "-c", "from pipelines.cli import main; main()"]
HOSTILE = (
    "<img src=x onerror=\"document.title='stolen'\">\u202e</script><script>document.title='stolen'</script>&amp;\n"
)
TEXT = HOSTILE + "It was the best of times, it was the worst of times,\nnaïve 中 😀. " * 60
NUM_TOKENS = len(TEXT.encode())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, small_model: Callable[..., LongMem]) -> dict[str, Path]:
    """Return the folders of finished jobs: one of each form, over two documents."""
    folder = tmp_path_factory.mktemp("runs")
    books = folder / "books"
    books.mkdir()
    (books / "a hostile <b>.txt").write_text(TEXT, "utf-8")
    (books / "short.txt").write_text("Call me Ishmael.", "utf-8")
    for form in ("default", "all layers"):
        small_model("llama", **EVERY_FORM[form]).save_pretrained(folder / form)
        job = PerplexityJob(
            inputs=(str(books),),
            out=folder / f"out of {form}",
            model=ModelSource(str(folder / form)),
            cluster=None,
            threads=1,
            limits=Limits(8, 2**30),
            keep_tokens=True,
        )
        assert run_job(job, Console(file=StringIO()))["failures"] == []
    return {form: folder / f"out of {form}" for form in ("default", "all layers")}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with opened_browser() as browser:
        yield browser


class Served:
    """`longmem view` as a process."""

    def __init__(self, out: Path) -> None:
        self._process = subprocess.Popen(
            [*LONGMEM, "view", str(out), "--no-open"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()

    def end(self) -> tuple[int, str]:
        self._process.send_signal(signal.SIGINT)
        _, said = self._process.communicate(timeout=30)
        return self._process.returncode, said


@pytest.fixture
def served(runs: dict[str, Path]) -> Iterator[Callable[[str], str]]:
    started: list[Served] = []

    def serve(form: str) -> str:
        started.append(Served(runs[form]))
        return started[-1].url

    yield serve
    for each in started:
        code, said = each.end()
        assert (code, "Traceback" in said) == (0, False), said


def row_of(out: Path, position: int) -> dict[str, Any]:
    tables = [pq.read_table(out / f"{name}.parquet") for name in ("tokens", "readings")]
    return {name: value for table in tables for name, value in table.slice(position - 1, 1).to_pylist()[0].items()}


def open_page(browser: Browser, url: str, position: int | None = None) -> None:
    browser.look(1280, 860)
    browser.open(url if position is None else f"{url}#d=0&t={position}")
    browser.wait("document.querySelectorAll('#text [data-at]').length > 0")
    if position is not None:
        wait_for_token(browser, position)


def go_to(browser: Browser, position: int) -> None:
    browser.run("location.hash = arguments[0]", f"#d=0&t={position}")
    wait_for_token(browser, position)


def wait_for_token(browser: Browser, position: int) -> None:
    shown = f"position {position:,} ·"
    browser.wait("document.querySelector('#panel .where')?.innerText.includes(arguments[0])", shown)


def check_unharmed(browser: Browser) -> None:
    assert browser.errors() == []
    assert browser.run("return document.title").startswith("What each token read: ")
    assert browser.run("return document.querySelectorAll('img, b img, #text script').length") == 0


def test_the_text_is_shown_as_it_is(browser: Browser, served: Callable[[str], str]) -> None:
    open_page(browser, served("default"))
    shown = browser.run("return document.getElementById('text').textContent")
    expected = TEXT.encode()[:2000].decode("utf-8", "ignore")
    # line breaks are marked, later bytes of a character have a sign, and what turns the direction has a name
    assert shown.replace("↵", "").replace("·", "") == expected.replace("\u202e", "⟨U+202E⟩")
    assert browser.texts("#document option") == ["a hostile <b>", "short"]
    assert browser.texts("#shown") == [f"1–2,000 of {NUM_TOKENS:,}"]
    check_unharmed(browser)


def test_a_click_shows_what_the_token_read(
    browser: Browser, served: Callable[[str], str], runs: dict[str, Path]
) -> None:
    open_page(browser, served("default"))
    position = 1500
    browser.click("#text [data-at]", position - 1)
    wait_for_token(browser, position)
    assert browser.run("return location.hash") == f"#d=0&t={position}"
    row = row_of(runs["default"], position)
    nats = browser.texts("#panel td small")
    columns = ("logprob_longmem", "logprob_uncopied", "logprob_backbone")
    assert nats == [f"{row[name]:.2f} nats".replace("-", "−") for name in columns]
    assert f"Copies from memory had {100 * row['copy_share']:.0f}%" in browser.texts("#panel .verdict")[0]
    places = browser.texts("#panel li.place .about")
    assert len(places) == len(row["places"]) == 4
    for shown, place, weight in zip(places, row["places"], row["weights"], strict=True):
        assert (f"{100 * weight:.0f}%" if weight >= 0.01 else "below 1%") in shown
        assert f"{position - place:,} tokens back" in shown
        same = TEXT.encode()[place - 1] == TEXT.encode()[position - 1]
        assert ("✓ this token" if same else "✗ another token") in shown
    link = browser.run("return document.querySelector('#panel li.place a').hash")
    assert link == f"#d=0&t={row['places'][0]}"
    browser.click("#panel li.place a")
    wait_for_token(browser, row["places"][0])
    browser.back()
    wait_for_token(browser, position)
    check_unharmed(browser)


def test_the_keyboard_reaches_everything(browser: Browser, served: Callable[[str], str], runs: dict[str, Path]) -> None:
    open_page(browser, served("default"), 2100)
    browser.press("right")
    wait_for_token(browser, 2101)
    browser.press("left", "left")
    wait_for_token(browser, 2099)
    # past the end of the page
    go_to(browser, 2001)
    browser.press("left")
    wait_for_token(browser, 2000)
    assert browser.texts("#shown") == [f"1–2,000 of {NUM_TOKENS:,}"]
    top = "return document.querySelector('#text .chosen').getBoundingClientRect().top"
    before = browser.run(top)
    browser.press("up")
    browser.wait("document.querySelector('#panel .where')?.innerText.includes('position 2,000') === false")
    assert browser.run(top) != before
    # what it read
    go_to(browser, 1500)
    second = row_of(runs["default"], 1500)["places"][1]
    browser.press("2")
    wait_for_token(browser, second)
    # the tokens that gained most, and back
    gains = pq.read_table(runs["default"] / "tokens.parquet").slice(0, NUM_TOKENS)
    gain = gains["logprob_longmem"].to_numpy() - gains["logprob_backbone"].to_numpy()
    browser.press("n")
    wait_for_token(browser, int(gain.argmax()) + 1)
    browser.press("p")
    browser.wait(
        "!document.querySelector('#panel .where').innerText.includes(arguments[0])", f"{gain.argmax() + 1:,} ·"
    )
    go_to(browser, 1500)
    browser.press("]")
    browser.wait("document.querySelector('#shown').innerText.startsWith('2,001')")
    browser.press("[")
    browser.wait("document.querySelector('#shown').innerText.startsWith('1–')")
    # tabs of the side panel: focus comes to them after the text
    browser.run("document.getElementById('tab-token').focus()")
    browser.press("right")
    browser.wait("document.querySelectorAll('#panel li a').length > 10")
    assert browser.run("return document.activeElement.id") == "tab-gained"
    assert browser.run("return document.querySelector('[role=tab][aria-selected=true]').id") == "tab-gained"
    browser.press("tab", "tab", "enter")
    wait_for_token(browser, int(gain.argmax()) + 1)
    check_unharmed(browser)


def test_the_lists_lead_through_the_document(
    browser: Browser, served: Callable[[str], str], runs: dict[str, Path]
) -> None:
    open_page(browser, served("default"))
    table = pq.read_table(runs["default"] / "tokens.parquet").slice(0, NUM_TOKENS)
    gain = table["logprob_longmem"].to_numpy() - table["logprob_backbone"].to_numpy()
    for tab, expected in (("gained", gain.argmax()), ("lost", gain.argmin())):
        browser.click(f"#tab-{tab}")
        browser.wait("document.querySelector('#panel .hint')?.innerText.includes(arguments[0])", tab)
        signs = gain > 0 if tab == "gained" else gain < 0
        assert len(browser.texts("#panel li")) == min(200, signs.sum())
        browser.click("#panel li a")
        wait_for_token(browser, int(expected) + 1)
        assert browser.run("return document.querySelector('#text .chosen') !== null")
    check_unharmed(browser)


def test_another_document_and_any_position_can_be_chosen(browser: Browser, served: Callable[[str], str]) -> None:
    open_page(browser, served("default"))
    script = "const box = document.getElementById(arguments[0]); box.value = arguments[1]; "
    script += "box.dispatchEvent(new Event('change', {bubbles: true}))"
    browser.run(script, "position", 3000)
    wait_for_token(browser, 3000)
    browser.run(script, "document", 1)
    browser.wait("document.getElementById('text').textContent === 'Call me Ishmael.'")
    # the text is shown before its panel
    browser.wait("document.querySelector('#panel .verdict')?.innerText.includes('It read nothing')")
    browser.back()
    wait_for_token(browser, 3000)
    check_unharmed(browser)


def test_a_cache_reader_shows_what_every_layer_read(
    browser: Browser, served: Callable[[str], str], runs: dict[str, Path]
) -> None:
    open_page(browser, served("all layers"), 1500)
    browser.wait("[...document.querySelectorAll('#panel h2')].some((each) => each.innerText.includes('every layer'))")
    segments = pq.read_table(runs["all layers"] / "passages.parquet").to_pylist()
    read = next(each for each in segments if each["segment"] == (1500 - 1) // 32)
    shown = browser.texts("#panel li:not(.place) .about")
    assert len(shown) == len(read["block_starts"]) > 1
    assert f"positions {read['block_starts'][0]:,} to {read['block_ends'][0] - 1:,}" in shown[0]
    check_unharmed(browser)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_in_light_and_dark(browser: Browser, served: Callable[[str], str], scheme: str) -> None:
    open_page(browser, served("default"), 1500)
    browser.look(390, 844, scheme)
    assert browser.run("return [document.documentElement.scrollWidth, innerWidth]") == [390, 390]
    inside = "const box = document.querySelector(arguments[0]).getBoundingClientRect(); "
    inside += "return box.top >= 0 && box.bottom <= 845 && box.left >= 0 && box.right <= 390 && box.height > 100"
    for part in ("#text", "aside"):
        assert browser.run(inside, part), part
    for text, background in contrasts(browser):
        assert ratio(text, background) >= 4.5, (text, background)
    browser.click("#tab-lost")
    browser.wait("document.querySelectorAll('#panel li').length > 10")
    assert browser.run("return document.documentElement.scrollWidth") == 390


def contrasts(browser: Browser) -> list[tuple[str, str]]:
    """Return the colours of text and background of each level of the heat map."""
    script = """
      const made = document.getElementById("text").appendChild(document.createElement("span"));
      const found = ["g1", "g2", "g3", "g4", "l1", "l2", "l3", "l4"].map((name) => {
        made.className = name;
        const style = getComputedStyle(made);
        return [style.color, style.backgroundColor];
      });
      made.remove();
      return found;
    """
    found: list[tuple[str, str]] = browser.run(script)
    assert len({background for _, background in found}) == 8
    return found


def ratio(first: str, second: str) -> float:
    """Return the contrast of two colours as WCAG 2.2 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(each) / 255 for each in re.findall(r"\d+", colour)[:3]]
        linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted([luminance(first), luminance(second)])
    return (lighter + 0.05) / (darker + 0.05)


def test_an_exported_passage_works_from_its_file(browser: Browser, runs: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "a passage.html"
    command = [*LONGMEM, "view", str(runs["default"])]
    options = ["--export", str(path), "--document", "a hostile <b>", "--from", "1490", "--to", "1520"]
    subprocess.run([*command, *options], check=True, capture_output=True, timeout=60)
    browser.look(1280, 860)
    browser.open(path.as_uri())
    browser.wait("document.querySelectorAll('#text [data-at]').length === 30")
    browser.click("#text [data-at]", 10)
    wait_for_token(browser, 1500)
    places = row_of(runs["default"], 1500)["places"]
    assert len(browser.texts("#panel li.place")) == len(places)
    # only what the passage holds can be gone to
    linked = browser.run("return document.querySelectorAll('#panel li.place a').length")
    assert linked == sum(1490 <= place < 1520 for place in places)
    browser.press("n")
    browser.wait("document.querySelector('#panel .where')?.innerText.startsWith('position 1,')")
    browser.click("#tab-gained")
    browser.wait("document.querySelector('#panel .hint')?.innerText.includes('in this passage')")
    # the passage is shown whole: there is nothing to slide or to turn
    for name in ("along", "position", "earlier", "later"):
        assert not browser.run(f"return document.getElementById('{name}').checkVisibility()"), name
    check_unharmed(browser)


def test_the_end_of_the_server_is_told(browser: Browser, runs: dict[str, Path]) -> None:
    served = Served(runs["default"])
    open_page(browser, served.url, 1500)
    assert served.end()[0] == 0
    browser.press("right")
    assert "Does longmem view still run?" in browser.wait("document.querySelector('#panel .error')?.innerText")
    browser.errors()
