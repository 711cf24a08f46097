# SPDX-License-Identifier: Apache-2.0
"""Answers to the page of examples of `longmem suffix --tokens`: each context, its candidates and what they read."""

from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from threading import RLock
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from longmem.errors import ConfigError
from longmem.wording import counted
from pipelines.view.item_answers import Control, ItemAnswers, short, shortened
from pipelines.view.questions import BadRequestError
from pipelines.view.tables import GroupedTable, read_summary, written_anew

WAYS = {"memory": "with memory", "no_memory": "without memory", "backbone": "backbone alone"}
SCORINGS = {"correct": "probability", "correct_information": "information"}
"""Columns of right answers in items.parquet, with what chooses an answer."""
MEASURES = ("Log-probability, nats", "Nats that the context adds")
AROUND = 24
"""Tokens shown before and after a place that was read."""
BLOCK_TOKENS = 16
"""Tokens shown of the beginning of a block that was read at every layer."""
NAMED_CHARACTERS = 60
"""Characters of a candidate in a list."""
READINGS = (
    *(f"logprobs_{way}" for way in WAYS),
    *("copy_share", "uncopied", "copied", "places", "weights", "runs", "block_starts", "block_ends"),
)
KEPT_CONTEXTS = 8


class SuffixFolder:
    """Tables of one finished job that kept its tokens. Thread-safe. Raises ConfigError for a folder without them."""

    def __init__(self, path: Path) -> None:
        self.summary = read_summary(path)
        for name in ("items", "readings", "texts"):
            if not (path / f"{name}.parquet").is_file():
                raise ConfigError(
                    f"{path} holds no {name}.parquet: the job kept no tokens, or the table was removed; score the "
                    f"examples again with `longmem suffix … --tokens` and another --out, or {written_anew(path)}"
                )
        self._lock = RLock()
        try:
            items: list[dict[str, Any]] = pq.read_table(path / "items.parquet").to_pylist()
            self._readings = GroupedTable(path / "readings.parquet", READINGS)
            self._tokens = GroupedTable(path / "texts.parquet", ("first", "tokens"))
            passages = pq.read_table(path / "texts.parquet", columns=["passage"])["passage"].to_pylist()
            lengths = list(dict.fromkeys(row["context_tokens"] for row in items))
            counts = [len(row["suffix_tokens"]) for row in items]
        except (OSError, pa.ArrowException, KeyError) as error:
            raise ConfigError(f"cannot read the tables in {path}: {error}; {written_anew(path)}") from error
        if "nll_alone" not in items[0]:
            raise ConfigError(
                f"{path} is of an earlier version of longmem, which did not score candidates without a context: score "
                "the examples again with `longmem suffix … --tokens` and another --out"
            )
        per_example = counts[:: len(lengths)]
        if self._readings.num_rows != sum(counts) or len(passages) != sum(per_example) + len(per_example):
            raise ConfigError(f"the tables in {path} are not of one job; {written_anew(path)}")
        self.lengths = lengths
        """Context lengths, ascending."""
        self.items = {length: items[at :: len(lengths)] for at, length in enumerate(lengths)}
        """Rows of items.parquet at each length, by example."""
        self._first_reading = [0, *accumulate(counts)]
        self._first_text = [0, *accumulate(1 + count for count in per_example)]
        self.passages = [
            passages[first:end] for first, end in zip(self._first_text, self._first_text[1:], strict=False)
        ]
        """End of the context of each example, and its candidates."""
        self.context: Callable[[int], tuple[int, list[str]]] = lru_cache(KEPT_CONTEXTS)(self._context)
        """First position of the context of an example that was read, and the texts of its tokens from there on."""

    def candidate(self, example: int, candidate: int) -> list[str]:
        """Return the texts of the scored tokens of a candidate."""
        return self._text_row(self._first_text[example] + 1 + candidate)[1]

    def readings(self, example: int, length: int, candidate: int) -> dict[str, Any]:
        """Return a row of readings.parquet."""
        item = example * len(self.lengths) + self.lengths.index(length)
        row = self._first_reading[item] + candidate
        with self._lock:
            [found] = self._readings.rows(row, row + 1).to_pylist()
        return dict(found)

    def _context(self, example: int) -> tuple[int, list[str]]:
        return self._text_row(self._first_text[example])

    def _text_row(self, row: int) -> tuple[int, list[str]]:
        with self._lock:
            [found] = self._tokens.rows(row, row + 1).to_pylist()
        return found["first"], found["tokens"]


class SuffixAnswers(ItemAnswers):
    """Answers about one job of suffix identification. Thread-safe."""

    def __init__(self, folder: SuffixFolder) -> None:
        self._folder = folder

    @property
    def _names(self) -> list[str]:
        summary = self._folder.summary
        return [f"{summary['input']}, {summary['split']}" if summary["split"] else str(summary["input"])]

    def run(self) -> dict[str, Any]:
        summary = self._folder.summary
        return {
            **self._described(),
            "panel": "answers",
            "unit": "example",
            "other": "without memory",
            "none": "a tie",
            "model": summary["model"]["name"],
            "created": summary.get("created"),
            "copies": bool(summary["settings"].get("copy_head")),
            "ways": list(WAYS.values()),
        }

    def _labels(self, task: int) -> list[str]:  # noqa: ARG002
        return []

    def _controls(self, task: int) -> list[Control]:  # noqa: ARG002
        lengths = self._folder.lengths
        return [
            Control("context", "c", "Context", [(each, counted(each, "token")) for each in lengths], lengths[-1]),
            Control("scoring", "s", "Answer by", list(enumerate(SCORINGS.values())), 0),
        ]

    def _rows(self, task: int, cell: dict[str, int]) -> list[dict[str, Any]]:  # noqa: ARG002
        rows, right = [], list(SCORINGS)[_scoring(cell)]
        for example, row in enumerate(self._at(cell)):
            chosen = [self._chosen(example, row, way, cell) for way in ("memory", "no_memory")]
            rows.append(
                {
                    "item": example,
                    "gold": self._named(example, row["label"]),
                    "longmem": chosen[0],
                    "right": row[f"{right}_memory"],
                    "backbone": chosen[1],
                    "backbone_right": row[f"{right}_no_memory"],
                }
            )
        return rows

    def _listed(self, task: int, item: int) -> dict[str, str]:  # noqa: ARG002
        row = self._folder.items[self._folder.lengths[-1]][item]
        return {"text": shortened(self._folder.passages[item][0]), "about": row["work"]}

    def _item(self, task: int, cell: dict[str, int], item: int) -> dict[str, Any]:  # noqa: ARG002
        row = self._row(cell, item)
        scores = {way: _scores(row, way, cell) for way in WAYS}
        best = {way: _best(scores[way]) for way in WAYS}
        answers = [
            {
                "number": number,
                "text": text,
                "right": number == row["label"],
                "chosen": [best[way] == number for way in WAYS],
                "logprobs": [short(scores[way][number]) for way in WAYS],
                "heat": self._heat(item, cell["context"], number),
            }
            for number, text in enumerate(self._folder.passages[item][1:])
        ]
        blocks = self._folder.readings(item, cell["context"], row["label"])
        context = self._folder.passages[item][0]
        memory, local = (counted(row[f"{name}_tokens"], "token") for name in ("memory", "local"))
        return {
            "item": item,
            "name": f"{row['example']}, {row['work']}" if row["work"] else row["example"],
            "prompt": f"…{context}",
            "held": f"The context is {local} in the segment of every suffix, and {memory} before them in memory.",
            "label": self._named(item, row["label"]),
            "measure": MEASURES[_scoring(cell)],
            # the right one first, then the most probable
            "answers": sorted(answers, key=lambda each: (not each["right"], -each["logprobs"][0])),
            "greedy": [],
            "place": None,
            "found": [],
            "blocks": [
                {"first": first, "end": end, "text": self._text(item, first, min(end, first + BLOCK_TOKENS))}
                for first, end in zip(blocks["block_starts"], blocks["block_ends"], strict=True)
            ],
            "worst": None,
        }

    def _token(self, task: int, cell: dict[str, int], item: int, answer: int, token: int) -> dict[str, Any]:  # noqa: ARG002
        row = self._row(cell, item)
        counts = row["suffix_tokens"]
        if not 0 <= answer < len(counts) or not 0 <= token < counts[answer]:
            raise BadRequestError(f"example {item} has no token {token} of candidate {answer}")
        read = self._folder.readings(item, cell["context"], answer)
        first, tokens = self._folder.context(item)
        return {
            "position": first + len(tokens) + token,
            "text": self._folder.candidate(item, answer)[token],
            "with": short(read["logprobs_memory"][token]),
            "without": short(read["logprobs_no_memory"][token]),
            "uncopied": short(read["uncopied"][token]),
            "share": short(read["copy_share"][token]),
            "copied": short(read["copied"][token]),
            "window": None,
            "places": [
                {
                    "position": place,
                    "weight": short(weight),
                    "run": run,
                    "before": self._text(item, place - AROUND, place),
                    "text": self._text(item, place, place + 1),
                    "after": self._text(item, place + 1, place + 1 + AROUND),
                }
                for place, weight, run in zip(
                    *(read[name][token] for name in ("places", "weights", "runs")), strict=True
                )
            ],
        }

    def _at(self, cell: dict[str, int]) -> list[dict[str, Any]]:
        if cell["context"] not in self._folder.items:
            lengths = ", ".join(map(str, self._folder.lengths))
            raise BadRequestError(f"the run has contexts of {lengths} tokens, got {cell['context']}")
        return self._folder.items[cell["context"]]

    def _row(self, cell: dict[str, int], item: int) -> dict[str, Any]:
        rows = self._at(cell)
        if not 0 <= item < len(rows):
            raise BadRequestError(f"the run has examples 0 to {len(rows) - 1}, got {item}")
        return rows[item]

    def _chosen(self, example: int, row: dict[str, Any], way: str, cell: dict[str, int]) -> str | None:
        best = _best(_scores(row, way, cell))
        return None if best is None else self._named(example, best)

    def _named(self, example: int, candidate: int) -> str:
        text = " ".join(self._folder.passages[example][1 + candidate].split())
        return f"{candidate + 1} “{text[:NAMED_CHARACTERS]}{'…' if len(text) > NAMED_CHARACTERS else ''}”"

    def _heat(self, example: int, length: int, candidate: int) -> dict[str, Any]:
        """Return the tokens of a candidate as a page of `Answers.page`."""
        read, texts = self._folder.readings(example, length, candidate), self._folder.candidate(example, candidate)
        return {
            "first": 0,
            "gaps": [""] * len(texts),
            "texts": texts,
            "with": list(map(short, read["logprobs_memory"])),
            "without": list(map(short, read["logprobs_no_memory"])),
            "rest": "",
        }

    def _text(self, example: int, begin: int, end: int) -> str:
        """Return the text of the context's tokens at positions `begin` to `end`."""
        first, tokens = self._folder.context(example)
        return "".join(tokens[max(begin - first, 0) : max(end - first, 0)])


def _scoring(cell: dict[str, int]) -> int:
    if cell["scoring"] not in range(len(SCORINGS)):
        raise BadRequestError(f"scoring must be 0 to {len(SCORINGS) - 1}, got {cell['scoring']}")
    return cell["scoring"]


def _scores(row: dict[str, Any], way: str, cell: dict[str, int]) -> list[float]:
    """Return the score of each candidate in nats, the higher the better."""
    without = row["nll_alone"] if _scoring(cell) else [0.0] * len(row["suffix_tokens"])
    return [alone - nats for alone, nats in zip(without, row[f"nll_{way}"], strict=True)]


def _best(scores: list[float]) -> int | None:
    """Return the candidate with the highest score; None for a tie."""
    most = max(scores)
    return scores.index(most) if scores.count(most) == 1 else None
