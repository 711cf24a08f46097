# SPDX-License-Identifier: Apache-2.0
"""The report rendered by a browser; skipped where no Chromium is installed."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(120)

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

FRAME = """<!doctype html><title>waiting</title>
<iframe id="f" src="report.html" style="width:{width}px;height:900px;border:0"></iframe>
<script>
document.getElementById("f").onload = (event) => {{
  const page = event.target.contentDocument.documentElement;
  const drawn = [...page.querySelectorAll("svg")].filter((each) => each.getBoundingClientRect().width > 100).length;
  document.title = `${{page.scrollWidth}} ${{page.clientWidth}} ${{drawn}}`;
}};
</script>"""


def browse(page: Path, profile: Path) -> str:
    assert BROWSER is not None
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--allow-file-access-from-files",
        "--virtual-time-budget=5000",
        f"--user-data-dir={profile}",
    ]
    return subprocess.run(
        [BROWSER, *flags, "--dump-dom", page.as_uri()], capture_output=True, text=True, check=True, timeout=100
    ).stdout


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [400, 1200])
def test_the_report_fits_a_phone_and_a_desk(finished_job: Path, tmp_path: Path, width: int) -> None:
    shutil.copy(finished_job / "report.html", tmp_path)
    (tmp_path / "frame.html").write_text(FRAME.format(width=width))
    page = browse(tmp_path / "frame.html", tmp_path / "profile")
    found = re.search(r"<title>(\d+) (\d+) (\d+)</title>", page)
    assert found, page[:500]
    scroll_width, client_width, charts = map(int, found.groups())
    assert scroll_width <= client_width, "the page scrolls sideways"
    assert charts >= 2, "perplexity along the document and retrieval distances"


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_the_report_says_what_the_summary_says(finished_job: Path, tmp_path: Path) -> None:
    page = browse(finished_job / "report.html", tmp_path / "profile")
    assert "LongMem perplexity report" in page
    assert "Where the time went" in page
