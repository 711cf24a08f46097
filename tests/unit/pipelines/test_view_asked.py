# SPDX-License-Identifier: Apache-2.0
"""The data behind `longmem view` of probes and of suffix identification, against whole tables and the texts."""

import fcntl
import json
import math
from pathlib import Path
from shutil import copytree
from time import time
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from longmem.errors import ConfigError
from longmem.model.source import ModelSource
from pipelines.job.folder import LOCK_FILE, STATUS_FILE
from pipelines.job.output import write_table
from pipelines.suffix.data import read_examples
from pipelines.view.item_answers import KINDS, ItemAnswers
from pipelines.view.job import open_answers
from pipelines.view.probe_answers import ProbeAnswers
from pipelines.view.questions import BadRequestError
from pipelines.view.suffix_answers import WAYS, SuffixAnswers
from tests.asked_jobs import EXAMPLES, FORMS, HOSTILE, LENGTHS, finished_probe, finished_suffix


@pytest.fixture(scope="module", params=FORMS)
def probe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_probe(tmp_path_factory.mktemp("probe"), request.param)


@pytest.fixture(scope="module", params=FORMS)
def suffix(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_suffix(tmp_path_factory.mktemp("suffix"), request.param)


def rows(out: Path, name: str) -> list[dict[str, Any]]:
    return list(pq.read_table(out / f"{name}.parquet").to_pylist())


def asked(answers: ItemAnswers, name: str, task: int = 0, **fields: int) -> Any:
    """Return an answer, with the initial choices of the task where none are given."""
    controls = answers.run()["tasks"][task]["controls"]
    chosen = {"task": task, "show": 0, "gold": -1, "answer": -1, "first": 0}
    chosen |= {control["name"]: control["initial"] for control in controls}
    return answers.answer(name, (chosen | fields).__getitem__)


def test_probe_tables_agree_and_mix_to_the_probability(probe: Path) -> None:
    trials, readings = rows(probe, "trials"), rows(probe, "readings")
    assert len(trials) == len(readings) == 8
    every_layer = json.loads((probe / "summary.json").read_text())["settings"]["memory_layers"] == "all"
    for trial, read in zip(trials, readings, strict=True):
        assert (read["nats"][0], read["nats_without"][0]) == (trial["nats"], trial["nats_without"])
        assert read["answers"][0] == trial["answer"]
        order = np.argsort(read["nats"], kind="stable")
        assert trial["longmem"] == read["answers"][order[0]]
        assert trial["chosen"] == (trial["longmem"] == trial["answer"])
        assert "".join(token["passage"] for token in read["tokens"]) == f" {trial['answer']}"
        place = read["place"]
        assert place["passage"][place["start"] :][: place["length"]] == f" {trial['answer']}"
        # what stands before the answer is the end of the question
        end = trial["question"][-10:]
        assert place["passage"][: place["start"]].endswith(end)
        assert trial["read"] == all(token["read"] for token in read["tokens"])
        assert sum(token["logprob"] for token in read["tokens"]) == pytest.approx(-trial["nats"], abs=1e-4)
        assert bool(read["blocks"]) == every_layer
        for number, token in enumerate(read["tokens"]):
            share, copied = token["copy_share"], token["copied"]
            mixed = (1 - share) * math.exp(token["uncopied"]) + share * copied
            assert math.exp(token["logprob"]) == pytest.approx(mixed, abs=1e-5)
            assert token["right"] == place["position"] + number, "the copied token, with a copy head"
            weights = [each["weight"] for each in token["places"]]
            assert weights == sorted(weights, reverse=True)
            assert 0 < sum(weights) <= 1 + 1e-5
            same = sum(each["weight"] for each in token["places"] if each["same"])
            assert same <= copied + 1e-5
            for each in token["places"]:
                if each["position"] == token["right"]:
                    assert token["read"]
                    assert each["same"]
                assert each["position"] < read["asked"]
                shown = each["passage"][each["start"] :][: each["length"]]
                assert not each["same"] or shown == token["passage"]
    assert any(
        each["position"] == token["right"] for read in readings for token in read["tokens"] for each in token["places"]
    )


def test_probe_lists_hold_the_questions_of_their_kind(probe: Path) -> None:
    answers, trials = open_answers(probe), rows(probe, "trials")
    assert isinstance(answers, ProbeAnswers)
    run = answers.run()
    assert [task["name"] for task in run["tasks"]] == ["pass key", "random labels"]
    passkey, labels = ({each["name"]: each for each in task["controls"]} for task in run["tasks"])
    assert passkey["depth"]["options"] == [(-1, "any"), (0, "0%"), (1, "100%")]
    assert passkey["memory"]["options"] == [(160, "160 tokens")]
    assert labels["shots"]["options"] == [(-1, "any"), (0, "0"), (1, "1")]
    for task, subject in enumerate(("passkey", "labels")):
        own = [at for at, trial in enumerate(trials) if trial["subject"] == subject]
        for scoring, measure in enumerate(("chosen", "greedy")):
            right = {at for at in own if trials[at][measure]}
            without = {at for at in own if trials[at][f"{measure}_without"]}
            unread = {at for at in own if not trials[at]["read"]}
            sets = {"all": set(own), "right": right, "wrong": set(own) - right}
            sets |= {"gained": right - without, "lost": without - right, "unread": unread}
            for show, kind in enumerate((*KINDS, "unread")):
                assert asked(answers, "items", task, scoring=scoring, show=show)["numbers"] == sorted(sets[kind])
    deep = [at for at, trial in enumerate(trials) if trial["subject"] == "passkey" and trial["depth"] == 1]
    assert asked(answers, "items", depth=1)["numbers"] == deep
    shots = [at for at, trial in enumerate(trials) if trial["shots"] == 1]
    assert asked(answers, "items", 1, shots=1)["numbers"] == shots


def test_a_question_is_shown_with_its_answers_and_what_they_read(probe: Path) -> None:
    answers, trials, readings = open_answers(probe), rows(probe, "trials"), rows(probe, "readings")
    assert isinstance(answers, ProbeAnswers)
    for item, (trial, read) in enumerate(zip(trials, readings, strict=True)):
        task = ["passkey", "labels"].index(trial["subject"])
        found = asked(answers, "item", task, item=item)
        right, *others = found["answers"]
        assert (right["text"], right["right"], right["logprobs"][0]) == (trial["answer"], True, -trial["nats"])
        assert right["chosen"] == [trial["chosen"], trial["chosen_without"]]
        assert not any(other["right"] or other["heat"] for other in others)
        assert found["found"] == [token["read"] for token in read["tokens"]]
        assert found["place"]["text"].strip() == trial["answer"]
        assert found["place"]["distance"] == read["asked"] - read["place"]["position"]
        worst = min(token["logprob"] for token in read["tokens"])
        assert read["tokens"][found["worst"]]["logprob"] == worst
        for number, token in enumerate(read["tokens"]):
            shown = asked(answers, "token", task, item=item, answer=0, token=number)
            assert shown["position"] == read["asked"] + number
            for each, place in zip(shown["places"], token["places"], strict=True):
                assert each["before"] + each["text"] + each["after"] == place["passage"]
                assert each["right"] == (place["position"] == token["right"])


def test_suffix_tables_agree_and_mix_to_the_probability(suffix: Path) -> None:
    items, readings, texts = (rows(suffix, name) for name in ("items", "readings", "texts"))
    examples = read_examples(suffix.parent / "examples.jsonl")
    assert len(items) == EXAMPLES * len(LENGTHS)
    assert len(readings) == len(items) * 3
    for example in examples:
        context, *candidates = (row for row in texts if row["example"] == example.id)
        assert example.context.endswith("".join(context["tokens"]))
        for text, row in zip(example.candidates, candidates, strict=True):
            assert text.startswith("".join(row["tokens"]))
            assert row["passage"] == "".join(row["tokens"])
    for item in items:
        own = [row for row in readings if all(row[name] == item[name] for name in ("example", "context_tokens"))]
        for candidate, row in enumerate(own):
            assert row["candidate"] == candidate
            for way in WAYS:
                assert len(row[f"logprobs_{way}"]) == item["suffix_tokens"][candidate]
                assert -sum(row[f"logprobs_{way}"]) == pytest.approx(item[f"nll_{way}"][candidate], abs=1e-3)
            parts = zip(row["logprobs_memory"], row["copy_share"], row["uncopied"], row["copied"], strict=True)
            for logprob, share, uncopied, copied in parts:
                mixed = (1 - share) * math.exp(uncopied) + share * copied
                assert math.exp(logprob) == pytest.approx(mixed, abs=1e-5)
            assert all(bool(places) == bool(item["memory_tokens"]) for places in row["places"])


def test_an_example_is_shown_with_its_candidates_and_the_places_they_read(suffix: Path) -> None:
    answers, items, readings = open_answers(suffix), rows(suffix, "items"), rows(suffix, "readings")
    assert isinstance(answers, SuffixAnswers)
    [task] = answers.run()["tasks"]
    assert task["controls"][0]["options"] == [(length, f"{length} tokens") for length in LENGTHS]
    examples = read_examples(suffix.parent / "examples.jsonl")
    tokenizer = ModelSource(str(next(suffix.parent.glob("identifying *")))).open_tokenizer()
    firsts = {row["example"]: row["first"] for row in rows(suffix, "texts") if row["kind"] == "context"}
    read_from_memory = 0
    assert task["controls"][1]["options"] == [(0, "probability"), (1, "information")]
    for length in LENGTHS:
        own = [row for row in items if row["context_tokens"] == length]
        informed = asked(answers, "items", context=length, scoring=1)["items"]
        assert [each["right"] for each in informed] == [row["correct_information_memory"] for row in own]
        assert [each["backbone_right"] for each in informed] == [row["correct_information_no_memory"] for row in own]
        for number, row in enumerate(own):
            found = asked(answers, "item", context=length, item=number, scoring=1)
            assert found["measure"] == "Nats that the context adds"
            for each in found["answers"]:
                gains = [row["nll_alone"][each["number"]] - row[f"nll_{way}"][each["number"]] for way in WAYS]
                assert each["logprobs"] == pytest.approx(gains, abs=1e-4)
        listed = asked(answers, "items", context=length)
        own = [row for row in items if row["context_tokens"] == length]
        assert [each["right"] for each in listed["items"]] == [row["correct_memory"] for row in own]
        assert [each["backbone_right"] for each in listed["items"]] == [row["correct_no_memory"] for row in own]
        for number, (example, row) in enumerate(zip(examples, own, strict=True)):
            found = asked(answers, "item", context=length, item=number)
            assert example.context.endswith(found["prompt"].removeprefix("…"))
            assert found["answers"][0]["number"] == row["label"]
            others = [each["logprobs"][0] for each in found["answers"][1:]]
            assert others == sorted(others, reverse=True)
            sequence = tokenizer.cut_sequence(example.context)
            for each in found["answers"]:
                scores = [-row[f"nll_{way}"][each["number"]] for way in WAYS]
                assert each["logprobs"] == pytest.approx(scores, abs=1e-4)
                least = [min(row[f"nll_{way}"]) for way in WAYS]
                assert each["chosen"] == [-score == best for score, best in zip(scores, least, strict=True)]
                [kept] = [
                    reading
                    for reading in readings
                    if (reading["example"], reading["context_tokens"], reading["candidate"])
                    == (example.id, length, each["number"])
                ]
                for at in range(len(each["heat"]["texts"])):
                    token = asked(answers, "token", context=length, item=number, answer=each["number"], token=at)
                    assert token["text"] == each["heat"]["texts"][at]
                    assert [place["position"] for place in token["places"]] == kept["places"][at]
                    for place in token["places"]:
                        # the text of the place, from the part of the context that is kept
                        around = slice(max(place["position"] - 24, firsts[example.id]), place["position"] + 25)
                        assert place["before"] + place["text"] + place["after"] == "".join(sequence[around])
                        assert place["text"] == sequence[place["position"]]
                        # before the local context, and not before the requested length
                        distance = token["position"] - at - place["position"]
                        assert row["local_tokens"] < distance + 1 <= length + 1
                        read_from_memory += 1
    assert read_from_memory > 100, "else nothing is tested"
    assert HOSTILE[:11] in asked(answers, "items")["items"][0]["gold"]


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("item", {"item": 99}, "task 0 has no item 99"),
        ("token", {"item": 0, "answer": 1, "token": 0}, "of answer 0, got token 0 of answer 1"),
        ("token", {"item": 0, "answer": 0, "token": 999}, "got token 999"),
        ("items", {"scoring": 2}, "scoring must be 0 to 1, got 2"),
        ("items", {"show": 6}, "show must be 0 to 5"),
    ],
)
def test_a_bad_question_about_a_probe_is_told(probe: Path, name: str, fields: dict[str, int], words: str) -> None:
    answers = open_answers(probe)
    assert isinstance(answers, ItemAnswers)
    with pytest.raises(BadRequestError, match=words):
        asked(answers, name, **fields)


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("items", {"context": 13}, "contexts of 12, 128 tokens, got 13"),
        ("items", {"scoring": 2}, "scoring must be 0 to 1, got 2"),
        ("item", {"item": EXAMPLES}, f"examples 0 to {EXAMPLES - 1}, got {EXAMPLES}"),
        ("token", {"item": 0, "answer": 3, "token": 0}, "no token 0 of candidate 3"),
    ],
)
def test_a_bad_question_about_examples_is_told(suffix: Path, name: str, fields: dict[str, int], words: str) -> None:
    answers = open_answers(suffix)
    assert isinstance(answers, ItemAnswers)
    with pytest.raises(BadRequestError, match=words):
        asked(answers, name, **fields)


def test_folders_of_probes_that_cannot_be_shown_are_refused(probe: Path, tmp_path: Path) -> None:
    check_refusals(probe, tmp_path, "longmem probe")


def test_folders_of_examples_that_cannot_be_shown_are_refused(suffix: Path, tmp_path: Path) -> None:
    check_refusals(suffix, tmp_path, "longmem suffix")


def test_examples_of_an_earlier_version_are_to_be_scored_again(suffix: Path, tmp_path: Path) -> None:
    folder = copytree(suffix, tmp_path / "old")
    items = pq.read_table(folder / "items.parquet")
    write_table(folder / "items.parquet", items.drop_columns(["nll_alone"]))
    with pytest.raises(ConfigError, match=r"of an earlier version of longmem.*another --out"):
        open_answers(folder)


def check_refusals(out: Path, folder: Path, command: str) -> None:
    for path in out.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    write_table(folder / "readings.parquet", pq.read_table(folder / "readings.parquet").slice(1))
    with pytest.raises(ConfigError, match="not of one job"):
        open_answers(folder)
    (folder / "readings.parquet").unlink()
    with pytest.raises(ConfigError, match=f"no readings.parquet: the job kept no tokens.*{command} … --tokens"):
        open_answers(folder)


def refused(folder: Path) -> str:
    with pytest.raises(ConfigError) as error:
        open_answers(folder)
    return str(error.value)


def test_a_folder_without_a_finished_job_says_what_it_is_and_what_to_do(probe: Path, tmp_path: Path) -> None:
    for name in ("empty", "begun"):
        (tmp_path / name).mkdir()
    # the lock alone: the job ended before its folder had an identity
    (tmp_path / "begun" / LOCK_FILE).touch()
    for name in ("empty", "begun"):
        said = "is not the output folder of a job: it holds no job.json; name the --out folder of one"
        assert refused(tmp_path / name) == f"{tmp_path / name} {said}"
    ended = tmp_path / "ended"
    copytree(probe, ended)
    (ended / "summary.json").unlink()
    head = f"{ended} holds a job that is not finished"
    resume = f"continue it with: longmem resume {ended}"
    assert refused(ended) == f"{head} (finished, questions 8 of 8 done); {resume}"
    status = json.loads((ended / STATUS_FILE).read_text())
    (ended / STATUS_FILE).write_text(json.dumps({**status, "state": "running", "updated": time()}))
    with (ended / LOCK_FILE).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        wait = f"wait until it ends; it is shown by: longmem status --out {ended}"
        assert refused(ended) == f"{head} (running, questions 8 of 8 done); {wait}"
    assert refused(ended) == f"{head} (killed, questions 8 of 8 done); {resume}"
