# SPDX-License-Identifier: Apache-2.0
"""`longmem probe` from a user's point of view, on a small random model."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from longmem.backbone.small import save_small_backbone
from longmem.model.longmem import LongMem
from pipelines.cli import app
from pipelines.probe.job import share
from tests.folders import snapshot
from tests.inputs import ALL_LAYERS

SMALL = ["--lengths", "256,512", "--depths", "0,0.5", "--trials", "2", "--choices", "4", "--examples", "20,40"]
SMALL += ["--shots", "0,1", "--questions", "3", "--threads", "1"]


@pytest.fixture(scope="module")
def model(small_model: Callable[..., LongMem], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe") / "model"
    small_model(segment_tokens=128).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model_of_all_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe")
    save_small_backbone(folder / "llama", "llama", max_position_embeddings=512)
    sizes = {"segment_tokens": 128, "memory_tokens": 512, "top_k": 16}
    LongMem.from_backbone(folder / "llama", **ALL_LAYERS, **sizes).save_pretrained(folder / "model")
    return folder / "model"


@pytest.mark.parametrize("fixture", ["model", "model_of_all_layers"])
def test_all_subjects_leave_a_folder_that_agrees_with_itself(
    fixture: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(fixture)
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["probe", "--model", str(model), "--out", str(out), *SMALL])
    assert result.exit_code == 0, result.output
    before = snapshot(out)
    again = CliRunner().invoke(app, ["probe", "--model", str(model), "--out", str(out), *SMALL, "--resume"])
    assert (again.exit_code, again.output.count("finished before")) == (0, 1), again.output
    assert snapshot(out) == before
    summary = json.loads((out / "summary.json").read_text())
    trials = pq.read_table(out / "trials.parquet").to_pylist()
    assert len(trials) == summary["num_trials"] == 2 * 2 * 2 + 2 * (2 * 2 * 3)
    for row in summary["conditions"]:
        same = [
            trial
            for trial in trials
            if all(trial[name] == row[name] for name in ("subject", "examples", "shots", "memory_tokens"))
            and row["depth"] in (None, trial["depth"])
        ]
        assert len(same) == row["trials"]
        for name in ("greedy", "chosen", "read", "greedy_without", "chosen_without"):
            assert row[name]["value"] == sum(trial[name] for trial in same) / len(same)
            assert 0 <= row[name]["low"] <= row[name]["value"] <= row[name]["high"] <= 1
    report = (out / "report.html").read_text()
    assert report.count("<svg") == 6
    assert "<script" not in report
    chosen = sum(trial["chosen"] for trial in trials)
    which = "All 32 answers are" if chosen == 32 else f"{chosen} of 32 answers {'are' if chosen > 1 else 'is'}"
    assert f"{which} chosen right with memory (95% interval" in report
    shown = re.findall(r'<td class="named" data-name="right">([^<]*)</td>', report)
    ranked = sorted(trials, key=lambda trial: (trial["chosen"], trial["greedy"], trial["read"]))
    assert shown == [trial["answer"] for trial in ranked], "wrong answers first"
    assert summary["overall"]["chosen"]["value"] == chosen / len(trials)
    for word in ("pass key", "lookup", "random labels"):
        assert word in result.output


def test_a_filler_of_ones_own_and_one_subject(model: Path, tmp_path: Path) -> None:
    filler = tmp_path / "filler.txt"
    filler.write_text("Once upon a time there was a lonely king who counted every golden coin twice. " * 20)
    arguments = ["probe", "passkey", "--model", str(model), "--filler", str(filler), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*arguments, *SMALL])
    assert result.exit_code == 0, result.output
    subjects = pq.read_table(tmp_path / "out" / "trials.parquet")["subject"].to_pylist()
    assert set(subjects) == {"passkey"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["riddles"], "riddles"),
        (["passkey", "--depths", "0,2"], "depths must lie between 0"),
        (["passkey", "--depths", "deep"], "--depths needs numbers"),
        (["passkey", "--lengths", "1k"], "--lengths needs whole numbers"),
        (["passkey", "--lengths", "16"], "does not fit a memory of 16"),
        (["labels", "--examples", "2"], "examples must be at least"),
        (["labels", "--shots", "0", "--examples", "100000"], "different words"),
        (["lookup", "--choices", "1"], "choices must be at least 2"),
        (["--threads", "0"], "--threads must be at least 1"),
        (["--filler", "no-such-file.txt"], "no-such-file.txt: No such file"),
        (["--model", "no-such-model"], "no-such-model"),
    ],
)
def test_bad_input_is_a_sentence_and_exit_code_2(
    model: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = CliRunner().invoke(
        app, ["probe", "--model", str(model), "--out", str(tmp_path / "out"), "--threads", "1", *arguments]
    )
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_a_folder_in_use_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    result = CliRunner().invoke(app, ["probe", "--model", str(model), "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "other files" in result.output


@pytest.mark.parametrize(
    ("right", "count", "low", "high"), [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (100, 100, 0.9630, 1.0)]
)
def test_intervals_are_those_of_wilson(right: int, count: int, low: float, high: float) -> None:
    found = share([True] * right + [False] * (count - right))
    assert (found["low"], found["high"]) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
