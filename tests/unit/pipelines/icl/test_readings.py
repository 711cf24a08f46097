# SPDX-License-Identifier: Apache-2.0
"""Places of a memory as demonstrations that vote, against a loop over places."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longmem.model.longmem import LongMem
from longmem.scoring.batch import TakenPlaces
from pipelines.icl.records import BatchRecord, IclJournal, ItemResult, Voters
from pipelines.icl.requests import NUM_VOTERS, taken_demonstrations
from pipelines.icl.task import IclTask
from pipelines.icl.task_data import GridPoint, Memory, PreparedTask


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, small_model: Callable[..., LongMem]) -> PreparedTask:
    folder = tmp_path_factory.mktemp("task")
    for name, count in (("train", 30), ("test", 2)):
        lines = [{"text": f"t{number}", "label": "yes" if number % 3 else "no"} for number in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = {name: folder / f"{name}.jsonl" for name in ("train", "test")}
    task = IclTask(
        name="toy", **files, template="Q {text} A {label}. ", target="label", words={"no": "no", "yes": "yes"}
    )
    return PreparedTask(task, small_model().tokenizer, 64, None, 4)


@pytest.fixture(scope="module")
def memory(prepared: PreparedTask) -> Memory:
    found = prepared.memory(0, 24)
    assert found is not None
    return found


def test_demonstrations_get_the_weights_of_their_places(prepared: PreparedTask, memory: Memory) -> None:
    end = memory.segments[-1].end_token
    random = np.random.default_rng(0)
    positions = np.arange(end + 1)
    weights = random.random(end + 1).astype(np.float32)
    weights /= weights.sum()
    found = taken_demonstrations(prepared, TakenPlaces(positions, weights, 0.25), memory)
    units = memory.units
    text = {segment.start_token + at: token for segment in memory.segments for at, token in enumerate(segment.tokens)}
    by_place: Counter[int] = Counter()
    by_label: Counter[int] = Counter()
    for index, (start, length) in enumerate(zip(units.starts.tolist(), units.lengths.tolist(), strict=True)):
        example = prepared.demonstrations[prepared.numbers_in_memory(0, 24)[index]]
        assert [text[start + at] for at in range(length)] == example.demonstration.tolist()
        target = start + len(example.prompt)
        by_place[index] = sum(weights[place] for place in range(start, start + length))
        by_label[index] = weights[target]
    for kind, expected in (("places", by_place), ("labels", by_label)):
        voters = found["voters"][kind]
        heaviest = expected.most_common(NUM_VOTERS)
        assert voters.demonstrations == [index for index, _ in heaviest]
        assert voters.weights == pytest.approx([weight for _, weight in heaviest], abs=1e-5)
    votes = [sum(by_label[at] for at, own in enumerate(memory.labels) if own == label) for label in ("no", "yes")]
    assert found["votes"]["labels"] == pytest.approx(votes, abs=1e-5)
    assert found["copy_share"] == 0.25


def test_nothing_read_is_no_vote(prepared: PreparedTask, memory: Memory) -> None:
    none = Voters([], [])
    assert taken_demonstrations(prepared, None, memory) == {
        "votes": {"labels": [0.0, 0.0]},
        "voters": {"places": none, "labels": none},
        "copy_share": 0.0,
    }
    # a start token, and the end of the memory
    outside = np.array([0, memory.segments[-1].end_token])
    found = taken_demonstrations(prepared, TakenPlaces(outside, np.full(2, 0.5, dtype=np.float32), 0.5), memory)
    assert found["voters"]["places"] == none


class EarlierJournal(IclJournal):
    """Journal of a version that kept no voters."""

    def _encode(self, record: BatchRecord) -> dict[str, Any]:
        values = super()._encode(record)
        for result in values["results"]:
            del result["voters"], result["copy_share"]
        return values


def test_a_journal_keeps_voters_and_reads_lines_without_them(tmp_path: Path) -> None:
    point = GridPoint("toy", 0, 0, 4)
    voters = {"places": Voters([3, 1], [0.5, 0.125])}
    results = [
        ItemResult(0, 0, 3, votes={"labels": [0.25, 0.5]}, voters=voters, copy_share=1.0),
        ItemResult(1, 0, 3),
    ]
    earlier = [replace(each, voters=None, copy_share=None) for each in results]
    for kind, kept in ((IclJournal, results), (EarlierJournal, earlier)):
        path = tmp_path / f"{kind.__name__}.jsonl"
        with kind(path) as journal:
            journal.add(BatchRecord(point, results, 0.5))
        with IclJournal(path) as journal:
            assert journal.results[point] == dict(enumerate(kept))
