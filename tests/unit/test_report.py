# SPDX-License-Identifier: Apache-2.0
"""Report of a synthetic job: its content, and its resistance to a hostile document id."""

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from longmem.errors import OutputError
from pipelines.html.charts import distance_chart, document_charts, document_curve
from pipelines.job.format import duration, figure, interval, short_count, signed_percent
from pipelines.perplexity.report import verdict, write_report
from pipelines.perplexity.tables import SEGMENT_SCHEMA

HOSTILE = '<script>alert("x")</script> $\\frac{ & "quoted" \' x.txt'


def make_segments(documents: dict[str, int], gain: float = 0.03, memory: bool = True) -> pa.Table:
    """Return a table of segments; `documents` maps names to numbers of segments."""
    generator = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for name, num_segments in documents.items():
        for index in range(num_segments):
            backbone = 1024 * (3.1 + 0.15 * generator.standard_normal())
            read = memory and index > 0
            past = min(index * 1024, 65_536)
            bins = past.bit_length()
            rows.append(
                {
                    "document": name,
                    "segment": index,
                    "start_token": index * 1024,
                    "num_tokens": 1024,
                    "nll_longmem": backbone - (1024 * gain * math.log1p(index) / 3 if read else 0.0),
                    "nll_backbone": backbone,
                    "memory_tokens": past if memory else 0,
                    "gate_mean": 0.31 if read else 0.0,
                    "copy_mean": 0.12 if read else 0.0,
                    "distance_mean": past / 3 if read else 0.0,
                    "empty_slots": 12 if read else 0,
                    "distance_histogram": [int(9 * 1.9**power) for power in range(min(bins, 16))] + [900] * (bins > 16)
                    if read
                    else [],
                    "chunks_digest": "0" * 16,
                }
            )
    return pa.Table.from_pylist(rows, schema=SEGMENT_SCHEMA)


def make_documents(documents: dict[str, int], segments: pa.Table, failed: dict[str, str]) -> pa.Table:
    rows: list[dict[str, Any]] = []
    for name, num_segments in documents.items():
        mine = [row for row in segments.to_pylist() if row["document"] == name]
        rows.append(
            {
                "document": name,
                "source": f"/books/{name}",
                "status": "scored",
                "error": None,
                "num_tokens": 1024 * num_segments + 1,
                "num_unscored_tokens": 1,
                "num_segments": num_segments,
                "num_words": 730 * num_segments,
                "num_bytes": 4300 * num_segments,
                "nll_longmem": math.fsum(row["nll_longmem"] for row in mine),
                "nll_backbone": math.fsum(row["nll_backbone"] for row in mine),
            }
        )
    rows += [{"document": name, "source": name, "status": "failed", "error": error} for name, error in failed.items()]
    texts = ["document", "source", "status", "error"]
    numbers = ["num_tokens", "num_unscored_tokens", "num_segments", "num_words", "num_bytes"]
    columns = ["document", "source", "status", "error", *numbers, "nll_longmem", "nll_backbone"]
    types = {
        name: pa.string() if name in texts else pa.int64() if name in numbers else pa.float64() for name in columns
    }
    return pa.Table.from_pylist(rows, schema=pa.schema(list(types.items())))


NOTHING: dict[str, float | None] = {"value": None, "low": None, "high": None}


def around(value: float, width: float) -> dict[str, float | None]:
    return {"value": value, "low": value - width, "high": value + width}


def make_summary(
    change: float = -0.031, width: float = 0.003, relative: dict[str, float | None] | None = None, **overrides: Any
) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "longmem_version": "0.1.0",
        "command": "longmem perplexity books/ --model gpt2-medium-longmem --out runs/books",
        "created": "2025-06-01T12:30:00+00:00",
        "model": {
            "name": "gpt2-medium-longmem",
            "family": "gpt2",
            "trained": True,
            "num_parameters": 558_213_120,
            "memory_layer": 17,
            "fingerprint": {
                "backbone": "9f2c4e1ab37d805566aa01f2c9d8e7b4",
                "tokenizer": "51aa20bb83c1f20dd4ee6a7790b1c2d3",
                "memory_layer": 17,
                "kv_heads": 16,
                "head_dim": 64,
                "chunk_tokens": 4,
                "segment_tokens": 1024,
                "compute_dtype": "bfloat16",
                "kv_dtype": "float16",
            },
        },
        "settings": {
            "segment_tokens": 1024,
            "chunk_tokens": 4,
            "memory_tokens": 65_536,
            "top_k": 64,
            "copy_head": True,
            "resume": False,
        },
        "executor": {"address": "local", "encoders": 1, "readers": 2, "threads": 1},
        "versions": {"python": "3.11.7", "torch": "2.13.0+cpu", "transformers": "5.0.0", "ray": "2.52.0"},
        "counts": {
            "documents": 3,
            "failed_documents": 1,
            "segments": 310,
            "tokens": 317_440,
            "unscored_tokens": 3,
            "words": 226_300,
            "bytes": 1_333_000,
        },
        "nats": {"longmem": 961_337.25, "backbone": 971_512.5},
        "perplexity": {
            "token": {"longmem": around(20.67, 0.33), "backbone": around(21.34, 0.34)},
            "word": {"longmem": around(69.98, 1.9), "backbone": around(73.2, 2.0)},
            "byte": {"longmem": around(2.057, 0.01), "backbone": around(2.072, 0.01)},
        },
        "bits_per_byte": {"longmem": 1.0405, "backbone": 1.0515},
        "change": relative or around(change, width),
        "wall_s": 1283.4,
        "stages": {
            "encode": {"segments": 310, "tokens": 317_440, "busy_s": 512.25},
            "put": {"segments": 310, "tokens": 317_440, "busy_s": 4.5},
            "score": {"segments": 310, "tokens": 317_440, "busy_s": 1790.0},
        },
        "failures": [
            {"document": HOSTILE, "source": "/books/<b>", "error": "not UTF-8 at byte 812: <i>use --encoding</i>"}
        ],
    }
    # like summary.json: no perplexity, no change of it
    return summary | overrides | ({"change": None} if overrides.get("perplexity", summary) is None else {})


def report(folder: Path, documents: dict[str, int], **options: Any) -> str:
    segments = make_segments(documents, memory=options.pop("memory", True))
    failed = options.pop("failed", {})
    path = write_report(folder, make_summary(**options), make_documents(documents, segments, failed), segments)
    assert [file.name for file in folder.iterdir()] == ["report.html"]
    return path.read_text("utf-8")


class Elements(HTMLParser):
    """Parser that collects start tags, and checks that elements nest."""

    VOID = ("meta", "br", "link", "img", "path", "use")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self._open.pop() == tag

    def attributes(self, name: str) -> list[str]:
        return [str(attributes[name]) for _, attributes in self.tags if name in attributes]


BOOKS = {"emma.txt": 24, "moby-dick.txt": 283, HOSTILE: 3}


def test_one_file_without_scripts_or_requests(tmp_path: Path) -> None:
    html = report(tmp_path, BOOKS)
    elements = Elements(html)
    assert "script" not in [tag for tag, _ in elements.tags]
    assert not {"link", "img", "iframe", "object"} & {tag for tag, _ in elements.tags}
    links = [*elements.attributes("href"), *elements.attributes("xlink:href"), *elements.attributes("src")]
    assert all(link.startswith("#") for link in links)
    assert "http" not in html
    assert "@import" not in html
    assert [use for use in re.findall(r"url\(.", html) if use != "url(#"] == []
    assert [name for _, attributes in elements.tags for name in attributes if name.startswith("on")] == []


def test_hostile_names_are_text(tmp_path: Path) -> None:
    html = report(tmp_path, BOOKS, failed={HOSTILE + "2": "<b>bold</b>"})
    assert "<script" not in html
    assert "<i>use" not in html
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt; $\\frac{" in html


def test_half_a_surrogate_pair_is_no_error(tmp_path: Path) -> None:
    assert "x?y" in report(tmp_path, {"a": 2}, command="x\udcffy")


def test_ids_are_unique_and_every_reference_resolves(tmp_path: Path) -> None:
    html = report(tmp_path, BOOKS)
    elements = Elements(html)
    ids = elements.attributes("id")
    assert len(ids) == len(set(ids))
    references = re.findall(r'(?:href="#|url\(#|aria-labelledby=")([^")]+)', html)
    assert set(references) <= set(ids)


def test_accessible(tmp_path: Path) -> None:
    elements = Elements(report(tmp_path, BOOKS))
    assert ("html", {"lang": "en"}) in elements.tags
    assert [tag for tag, _ in elements.tags if tag == "h1"] == ["h1"]
    assert all("scope" in attributes for tag, attributes in elements.tags if tag == "th")
    pictures = [attributes for _, attributes in elements.tags if attributes.get("role") == "img"]
    assert len(pictures) == 4
    assert all(picture["aria-label"] for picture in pictures)


def test_charts_take_the_colours_of_the_page(tmp_path: Path) -> None:
    html = report(tmp_path, BOOKS)
    assert "stroke: var(--with-memory)" in html
    drawings = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))
    assert re.findall(r"#[0-9a-f]{6}\b", drawings) == []


def test_same_data_same_bytes(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    assert report(folders[0], BOOKS) == report(folders[1], BOOKS)


def test_headline_numbers(tmp_path: Path) -> None:
    html = report(tmp_path, BOOKS)
    assert "20.67<small>20.34–21.00</small>" in html
    assert "21.34<small>21.00–21.68</small>" in html
    assert "−3.1%<small>−3.4% to −2.8%</small>" in html
    assert "317,440 tokens" in html
    assert "21 min 23 s" in html


@pytest.mark.parametrize(
    ("change", "width", "sentence"),
    [
        (-0.031, 0.003, "Memory lowered token perplexity by 3.1% (95% interval 2.8–3.4%)."),
        (0.0123, 0.004, "Memory raised token perplexity by 1.2% (95% interval 0.8–1.6%)."),
        (
            0.001,
            0.003,
            "Memory made no measurable difference to token perplexity (+0.10%, 95% interval −0.20% to +0.40%).",
        ),
        (-0.00042, 0.0001, "Memory lowered token perplexity by 0.042% (95% interval 0.032–0.052%)."),
    ],
)
def test_verdict(change: float, width: float, sentence: str) -> None:
    assert verdict(make_summary(change, width)) == sentence


def test_verdict_of_special_jobs() -> None:
    untrained = make_summary(0.0, 0.0)
    untrained["model"]["trained"] = False
    untrained["settings"]["copy_head"] = False
    assert verdict(untrained) == (
        "The SideNet is untrained, and an untrained SideNet equals its backbone: no difference is expected, "
        "and the measured change is 0.000%."
    )
    copying = make_summary()
    copying["model"]["trained"] = False
    assert verdict(copying) == (
        "Memory lowered token perplexity by 3.1% (95% interval 2.8–3.4%). "
        "The SideNet is untrained: the change comes from its untrained copy head alone."
    )
    copying["settings"]["memory_tokens"] = 0
    assert "equals its backbone" in verdict(copying)
    single = make_summary(relative=NOTHING | {"value": -0.031})
    assert "3.1%, measured on a single segment" in verdict(single)
    off = make_summary()
    off["settings"]["memory_tokens"] = 0
    assert verdict(off).startswith("The SideNet, with its memory off, lowered")


def test_nothing_scored(tmp_path: Path) -> None:
    html = report(
        tmp_path,
        {},
        failed={"bad.txt": "empty"},
        perplexity=None,
        bits_per_byte=None,
        failures=[{"document": "bad.txt", "source": "bad.txt", "error": "empty"}],
    )
    Elements(html)
    assert "No token was scored" in html
    assert "<svg" not in html


def test_figures_that_do_not_exist(tmp_path: Path) -> None:
    """Check one segment of a text without words: no interval and no word perplexity."""
    lone = {"value": 20.0, "low": None, "high": None}
    perplexity = {
        "token": {"longmem": lone, "backbone": lone},
        "word": {"longmem": NOTHING, "backbone": NOTHING},
        "byte": {"longmem": lone, "backbone": lone},
    }
    html = report(tmp_path, {"a": 1}, perplexity=perplexity, relative=lone | {"value": 0.0}, failures=[])
    assert "20.00<small>–</small>" in html
    assert "None" not in html
    assert "nan" not in html


def test_no_memory(tmp_path: Path) -> None:
    html = report(tmp_path, BOOKS, memory=False)
    assert "no segment had a past to read, or memory was off" in html
    assert "Chunks read" not in html


def test_a_job_with_its_memory_off_is_not_said_to_read_one(tmp_path: Path) -> None:
    summary = make_summary()
    settings = summary["settings"] | {"memory_tokens": 0}
    html = report(tmp_path, BOOKS, memory=False, settings=settings)
    assert "with memory" not in html.lower().replace("memory tokens", "")
    for said in ("LongMem, memory off", "Backbone alone", "(LongMem, memory off), from"):
        assert said in html, said


def test_the_reading_model_is_named_in_neutral_words(tmp_path: Path) -> None:
    """Memory at every layer is read by the backbone, which is no SideNet."""
    row = '<tr><th scope="row">reading model</th><td>{}</td></tr>'
    summary = make_summary()
    assert row.format("trained SideNet") in report(tmp_path, BOOKS)
    untrained = summary["model"] | {"trained": False}
    assert row.format("untrained SideNet") in report(tmp_path, BOOKS, model=untrained)
    every_layer = summary["settings"] | {"memory_layers": "all"}
    html = report(tmp_path, BOOKS, model=untrained, settings=every_layer)
    assert row.format("cache reader") in html
    assert "SideNet" not in html


def test_a_count_of_one_has_no_plural(tmp_path: Path) -> None:
    counts = dict.fromkeys(make_summary()["counts"], 1)
    html = report(tmp_path, {"a.txt": 1}, counts=counts | {"failed_documents": 0}, failures=[])
    assert "1 of 1 document scored: 1 segment, 1 token, 1 word, in" in html


def test_failures_are_listed(tmp_path: Path) -> None:
    html = report(tmp_path, BOOKS, failed={"broken.txt": "not UTF-8"})
    assert "not UTF-8 at byte 812: &lt;i&gt;use --encoding&lt;/i&gt;" in html
    assert 'class="worse">failed</td>' in html
    assert 'id="failures"' not in Elements(
        report(tmp_path, BOOKS, failures=[], counts=make_summary()["counts"] | {"failed_documents": 0})
    ).attributes("id")


def test_many_documents_show_the_first_twelve(tmp_path: Path) -> None:
    html = report(tmp_path, {f"book-{index:02}": 2 for index in range(20)})
    assert html.count("<figure>") == 12 + 1
    assert "first 12 of 20 documents" in html
    assert 'scope="row" class="name">book-19' in html


def test_one_document_fills_the_page(tmp_path: Path) -> None:
    html = report(tmp_path, {"moby-dick.txt": 40})
    assert html.count('class="wide"') == 2


def test_curve_is_a_running_mean_of_nats() -> None:
    segments = make_segments({"a": 200, "b": 3})
    curve = document_curve("a", segments)
    assert curve.window == 5
    assert len(curve.positions) == 196
    first = segments.slice(0, 5)
    assert curve.backbone[0] == pytest.approx(math.exp(sum(first["nll_backbone"].to_pylist()) / (5 * 1024)))
    assert curve.positions[0] == pytest.approx(2.5 * 1024)
    assert document_curve("b", segments).window == 1


def test_curve_skips_segments_without_targets() -> None:
    segments = make_segments({"a": 3})
    tokens = [1024, 1024, 0]
    segments = segments.set_column(3, "num_tokens", pa.array(tokens, pa.int64()))
    assert len(document_curve("a", segments).positions) == 2


def test_extreme_perplexities_can_be_drawn() -> None:
    segments = make_segments({"a": 6})
    nats = pa.array([1.0, 1e9, 5e3, 6e3, 7e3, 8e3])
    segments = segments.set_column(4, "nll_longmem", nats)
    assert len(document_charts(["a"], segments, ("with memory", "without memory"))) == 1


def test_distances_are_summed_over_segments() -> None:
    chart = distance_chart(make_segments({"a": 3, "b": 2}))
    assert chart is not None
    assert "1,024 to 2,048 tokens back" in chart.description


def test_folder_that_is_gone(tmp_path: Path) -> None:
    segments = make_segments({"a": 2})
    with pytest.raises(OutputError, match="cannot write"):
        write_report(tmp_path / "gone", make_summary(), make_documents({"a": 2}, segments, {}), segments)


def test_formats() -> None:
    assert [figure(value) for value in (1.23456, 20.671, 1234.56, 43210.9, 1.5e9, None)] == [
        "1.235",
        "20.67",
        "1,234.6",
        "43,211",
        "1.50e+09",
        "–",
    ]
    assert interval({"value": 9.99, "low": 9.5, "high": 10.5}) == "9.500–10.500"
    assert [signed_percent(share) for share in (-0.031, 0.002, 0.0, 1.5, None)] == [
        "−3.1%",
        "+0.20%",
        "0.000%",
        "+150.0%",
        "–",
    ]
    assert [duration(s) for s in (0.04, 59.96, 245, 11_240)] == ["0.0 s", "1 min 00 s", "4 min 05 s", "3 h 07 min"]
    assert [short_count(v) for v in (900, 20_000, 1_500_000)] == ["900", "20k", "1.5M"]
    assert short_count(65_536, 1024) == "64k"


def test_a_model_that_reads_every_layer_says_where_its_change_comes_from() -> None:
    summary = make_summary(-0.1, -0.2)
    summary["model"]["trained"] = False
    summary["settings"] |= {"memory_layers": "all", "trained_steps": 216}
    every_layer = "The frozen backbone reads the memory at every layer"
    assert verdict(summary).endswith(f"{every_layer}, and its fitted copy head copies from it.")
    summary["settings"]["copy_head"] = False
    assert verdict(summary).endswith("Nothing is trained: the frozen backbone reads the memory at every layer.")
    summary["settings"]["memory_tokens"] = 0
    assert verdict(summary).startswith("Without memory, the model is its backbone: no difference is expected")
