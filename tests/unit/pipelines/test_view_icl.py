# SPDX-License-Identifier: Apache-2.0
"""The data behind `longmem view` of an in-context-learning job, and the tables it comes from: against whole tables."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from longmem.errors import ConfigError
from pipelines.job.output import write_table
from pipelines.view.answers import Answers
from pipelines.view.icl_answers import IclAnswers
from pipelines.view.icl_folder import IclFolder
from pipelines.view.item_answers import KINDS
from pipelines.view.job import open_answers
from pipelines.view.questions import BadRequestError, NoSuchAnswerError
from tests.icl_jobs import HOSTILE, ITEMS, SEEDS, finished_icl

POINT = {"task": 0, "seed": 1, "shots": 1, "memory": 20}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {form: finished_icl(folder, form) for form in ("tokens", "whole")}  # type: ignore[arg-type]


@pytest.fixture(params=["tokens", "whole"])
def out(request: pytest.FixtureRequest, runs: dict[str, Path]) -> Path:
    return runs[request.param]


def rows(out: Path, name: str) -> list[dict[str, Any]]:
    return list(pq.read_table(out / f"{name}.parquet").to_pylist())


def texts(folder: Path, name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text("utf-8").splitlines()]


def test_rows_are_those_of_the_items_and_name_their_demonstrations(out: Path) -> None:
    items, read = rows(out, "items"), rows(out, "demonstrations")
    key = ("task", "seed", "shots", "memory_shots", "item")
    assert [[row[name] for name in key] for row in items] == [[row[name] for name in key] for row in read]
    examples = {(row["kind"], row["number"]): row for row in rows(out, "examples")}
    train = texts(out.parent, "train")
    for row in read:
        assert bool(row["demonstrations"]) == bool(row["memory_shots"])
        for each in row["demonstrations"]:
            found = examples["demonstration", each["example"]]
            line = train[int(found["example"].partition(":")[2]) - 1]
            assert found["label"] == each["label"] == line["colour"]
            assert found["passage"] == f"{line['thing']} is {line['colour']}."
            assert found["passage"][found["start"] :][: found["length"]] == line["colour"]
    # one index in memory is one demonstration, for every item of a seed
    pairs = {(row["seed"], each["index"], each["example"]) for row in read for each in row["demonstrations"]}
    assert len({pair[:2] for pair in pairs}) == len({(seed, example) for seed, _, example in pairs}) == len(pairs)


def test_whole_demonstrations_are_ranked_and_vote(runs: dict[str, Path]) -> None:
    out = runs["whole"]
    labels = list(json.loads((out / "summary.json").read_text())["tasks"]["colours"]["labels"])
    for item, read in zip(rows(out, "items"), rows(out, "demonstrations"), strict=True):
        if not item["memory_shots"]:
            continue
        ranked = [each["index"] for each in read["demonstrations"] if each["rank"]]
        assert ranked == item["demonstrations_read"][::-1]
        assert [each["rank"] for each in read["demonstrations"]][:2] == [1, 2]
        for by in ("idf", "values", "target"):
            weights = [each[by] for each in read["demonstrations"] if each[by] is not None]
            assert 0 < len(weights) <= 16
            assert sum(weights) <= 1 + 1e-4
            for label, share in zip(labels, item[f"{by}_votes"], strict=True):
                voted = sum(each[by] or 0 for each in read["demonstrations"] if each["label"] == label)
                assert voted <= share + 1e-4
        # chosen by shared words: the nearest has the largest vote
        idf = [each["idf"] or 0 for each in read["demonstrations"]]
        assert idf[0] == max(idf)


def test_tokens_vote_from_the_places_of_labels(runs: dict[str, Path]) -> None:
    read = [row for row in rows(runs["tokens"], "demonstrations") if row["memory_shots"]]
    for row in read:
        places = [each["places"] or 0 for each in row["demonstrations"]]
        on_labels = [each["labels"] or 0 for each in row["demonstrations"]]
        assert sum(places) <= 1 + 1e-4
        assert all(label <= place + 1e-5 or place == 0 for label, place in zip(on_labels, places, strict=True))
        assert sum(on_labels) <= sum(row["label_votes"]) + 1e-4
        assert 0 <= row["copy_share"] <= 1
    assert any(sum(row["label_votes"]) > 0.01 for row in read), "else nothing is tested"


def test_the_grid_is_told(out: Path) -> None:
    answers = open_answers(out)
    assert isinstance(answers, IclAnswers)
    [task] = answers.run()["tasks"]
    assert (task["name"], task["labels"]) == ("colours", labels_of(out))
    controls = {control["name"]: control for control in task["controls"]}
    assert {name: [value for value, _ in control["options"]] for name, control in controls.items()} == {
        "shots": [0, 1],
        "memory": [0, 20],
        "seed": list(range(SEEDS)),
        "scoring": list(range(len(scorings_of(answers)))),
    }
    assert (controls["shots"]["initial"], controls["memory"]["initial"]) == (0, 20)
    assert scorings_of(answers)[:2] == ["mean log-probability", "greedy first token"]
    assert ("calibration" in scorings_of(answers)) == ("whole" in out.name)


def labels_of(out: Path) -> list[str]:
    return list(json.loads((out / "summary.json").read_text())["tasks"]["colours"]["labels"])


def scorings_of(answers: IclAnswers) -> list[str]:
    [task] = answers.run()["tasks"]
    return [name for _, name in task["controls"][-1]["options"]]


def listed(answers: IclAnswers, **changed: int) -> dict[str, Any]:
    chosen = {**POINT, "scoring": 0, "show": 0, "gold": -1, "answer": -1, "first": 0, **changed}
    return dict(answers.answer("items", chosen.__getitem__))


def test_lists_hold_the_items_of_their_kind(out: Path) -> None:
    answers = IclAnswers(IclFolder(out))
    [task] = answers.run()["tasks"]
    suffixes = {"mean log-probability": "", "greedy first token": "_greedy", "calibration": "_calibrated"}
    for scoring, name in enumerate(scorings_of(answers)):
        suffix = suffixes[name]
        cell = [row for row in rows(out, "items") if (row["seed"], row["shots"], row["memory_shots"]) == (1, 1, 20)]
        right = [row[f"longmem{suffix}"] == row["gold"] for row in cell]
        theirs = [row[f"backbone{suffix}"] == row["gold"] for row in cell]
        wanted = {
            "all": [True] * ITEMS,
            "wrong": [not each for each in right],
            "right": right,
            "gained": [ours and not other for ours, other in zip(right, theirs, strict=True)],
            "lost": [other and not ours for ours, other in zip(right, theirs, strict=True)],
        }
        for show, kind in enumerate(KINDS):
            found = listed(answers, scoring=scoring, show=show)
            assert (
                found["numbers"] == [item["item"] for item in found["items"]] == np.flatnonzero(wanted[kind]).tolist()
            )
            assert found["counts"] == {kind: sum(each) for kind, each in wanted.items()}
            assert set(found["wrong"]) == {number for number in found["numbers"] if not right[number]}
        golds = [row["gold"] for row in cell]
        for number, label in enumerate(task["labels"]):
            expected = [at for at, gold in enumerate(golds) if gold == label]
            assert listed(answers, scoring=scoring, gold=number)["numbers"] == expected
            expected = [at for at, row in enumerate(cell) if row[f"longmem{suffix}"] == label]
            assert listed(answers, scoring=scoring, answer=number)["numbers"] == expected
    # nothing is calibrated without memory
    last = len(scorings_of(answers)) - 1
    assert bool(listed(answers, scoring=last, memory=0)["note"]) == ("whole" in out.name)
    assert listed(answers, scoring=last)["note"] == ""


def test_an_item_is_shown_with_what_it_read(out: Path) -> None:
    answers = IclAnswers(IclFolder(out))
    test = texts(out.parent, "test")
    read = [
        row for row in rows(out, "demonstrations") if (row["seed"], row["shots"], row["memory_shots"]) == (1, 1, 20)
    ]
    for number in range(ITEMS):
        found = answers.item(**POINT, item=number)
        line = test[int(found["name"].partition(":")[2]) - 1]
        assert found["before"] == f"{line['thing']} is "
        assert (found["target"], found["label"]) == (line["colour"], line["colour"])
        assert [each["index"] for each in found["demonstrations"]] == [
            each["index"] for each in read[number]["demonstrations"]
        ]
        for each in found["demonstrations"]:
            assert each["target"] == each["label"]
            assert each["before"].endswith(" is ")
        assert len(found["in_context"]) == 1
        assert (found["mixture"] is None) == ("tokens" in out.name)
    assert any(HOSTILE in answers.item(**POINT, item=number)["before"] for number in range(ITEMS))
    assert answers.item(**{**POINT, "memory": 0}, item=0)["demonstrations"] == []


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        ("item", {"task": 1, "item": 0}, "tasks 0 to 0, got 1"),
        ("item", {"memory": 7, "item": 0}, "no seed 1 with 1 demonstrations in context and 7 in memory"),
        ("item", {"item": ITEMS}, f"items 0 to {ITEMS - 1}, got {ITEMS}"),
        ("items", {"scoring": 9}, "scorings 0 to"),
        ("items", {"show": -1}, "show must be 0 to 4"),
        ("items", {"gold": 3}, "gold must be -1 to 2"),
    ],
)
def test_a_bad_question_is_told(out: Path, name: str, changed: dict[str, int], words: str) -> None:
    chosen = {**POINT, "scoring": 0, "show": 0, "gold": -1, "answer": -1, "first": 0, **changed}
    answers = IclAnswers(IclFolder(out))
    with pytest.raises(BadRequestError, match=words):
        answers.answer(name, chosen.__getitem__)
    with pytest.raises(NoSuchAnswerError):
        answers.answer("page", chosen.__getitem__)


def copy_of(out: Path, folder: Path, *left_out: str) -> Path:
    folder.mkdir()
    for path in out.iterdir():
        if path.is_file() and path.name not in left_out:
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_folders_that_cannot_be_shown_are_refused(out: Path, tmp_path: Path) -> None:
    def refusal(folder: Path, opened: Callable[[Path], object] = open_answers) -> str:
        with pytest.raises(ConfigError) as refused:
            opened(folder)
        return str(refused.value)

    assert "holds no examples.parquet" in refusal(copy_of(out, tmp_path / "old", "examples.parquet"))
    foreign = copy_of(out, tmp_path / "foreign")
    write_table(foreign / "demonstrations.parquet", pq.read_table(out / "demonstrations.parquet").slice(1))
    assert "not of one job" in refusal(foreign)
    (foreign / "items.parquet").write_bytes(b"PAR1 cut off")
    assert "cannot read the tables" in refusal(foreign)
    (foreign / "summary.json").write_text('{"model": {}, "conditions": []}')
    assert "another kind of job" in refusal(foreign)
    assert Answers.page_kind != IclAnswers.page_kind
