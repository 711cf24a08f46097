# SPDX-License-Identifier: Apache-2.0
"""Answers to the page of tokens, as JSON values: the run, pages of tokens, single tokens with what they read, extremes.

Texts of documents are foreign: they are JSON strings here and text nodes in the page, never HTML.
"""

from collections.abc import Callable
from typing import Any

from longmem.errors import ConfigError
from pipelines.view.questions import AbstractAnswers, BadRequestError, NoSuchAnswerError
from pipelines.view.run_folder import RunFolder, ViewedDocument

PAGE_TOKENS = 2000
"""Tokens of one page: about 100 kB, and as many elements as a browser lays out in a few hundredths of a second."""
MOST_TOKENS = 20_000
"""Largest number of tokens of one answer, or of one exported passage."""
OVERVIEW_BINS = 240
EXTREMES = 200
"""Tokens listed as gained most, and as lost most."""
AROUND = 24
"""Tokens shown before and after a place that was read."""
BEFORE = 6
"""Tokens shown before one that is listed."""
BLOCK_TOKENS = 16
"""Tokens shown of the beginning of a block that was read at every layer."""


class Answers(AbstractAnswers):
    """Answers about one job of perplexity. Thread-safe."""

    page_kind = "tokens"

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def answer(self, name: str, number: Callable[[str], int]) -> Any:
        match name:
            case "run":
                return self.run()
            case "overview":
                return self.overview(number("document"))
            case "page":
                return self.page(number("document"), number("first"), number("count"))
            case "token":
                return self.token(number("document"), number("position"))
            case "blocks":
                return self.blocks(number("document"), number("segment"))
            case "extremes":
                return self.extremes(number("document"), 1 if number("sign") > 0 else -1)
        raise NoSuchAnswerError(name)

    def run(self) -> dict[str, Any]:
        """Return what the page shows of the run as a whole."""
        summary, settings = self._folder.summary, self._folder.summary.get("settings", {})
        return {
            "model": summary["model"]["name"],
            "created": summary.get("created"),
            "change": (summary.get("change") or {}).get("value"),
            "baseline": self._folder.has_baseline,
            "copies": bool(settings.get("copy_head")),
            "every_layer": settings.get("memory_layers") == "all",
            "page_tokens": PAGE_TOKENS,
            "documents": [
                {"name": each.name, "first": each.first_position, "end": each.end_position}
                for each in self._folder.documents
            ],
        }

    def overview(self, document: int) -> dict[str, Any]:
        """Return the mean gain along a document, in at most `OVERVIEW_BINS` bins.

        Without a baseline there is the mean log-probability instead.
        """
        bins = self._folder.means(self._document(document), OVERVIEW_BINS)
        name = "gains" if self._folder.has_baseline else "logprobs"
        return {"firsts": [first for first, _ in bins], name: [_short(mean) for _, mean in bins]}

    def page(self, document: int, first: int, count: int) -> dict[str, Any]:
        """Return texts and log-probabilities of at most `count` tokens from position `first` on.

        Log-probabilities without memory are None for a job without a baseline, here and of single tokens.
        """
        found = self._document(document)
        first = min(max(first, found.first_position), found.end_position)
        end = min(first + min(max(count, 0), MOST_TOKENS), found.end_position)
        tokens = self._folder.tokens(found, first, end)
        return {
            "document": document,
            "first": first,
            "gaps": tokens["gaps"],
            "texts": tokens["texts"],
            "with": list(map(_short, tokens["logprob_longmem"])),
            "without": list(map(_short, tokens["logprob_backbone"])) if self._folder.has_baseline else None,
            "rest": self._folder.rest(found) if end == found.end_position else "",
        }

    def token(self, document: int, position: int) -> dict[str, Any]:
        """Return one token, how it was predicted, and the places that it read with the text around them."""
        found = self._document(document)
        if not found.first_position <= position < found.end_position:
            raise BadRequestError(
                f"document {document} has tokens {found.first_position} to {found.end_position - 1}, got {position}"
            )
        columns = self._folder.tokens(found, position, position + 1)
        [token] = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        places = zip(token["places"], token["weights"], token["runs"], strict=True)
        return {
            "position": position,
            "text": token["texts"],
            "start": token["start"],
            "length": token["length"],
            "segment": self._folder.segment_of(found, position),
            "with": _short(token["logprob_longmem"]),
            "without": _short(token["logprob_backbone"]) if self._folder.has_baseline else None,
            "window": _short(token["logprob_window"]) if "logprob_window" in token else None,
            "uncopied": _short(token["logprob_uncopied"]),
            "share": _short(token["copy_share"]),
            "copied": _short(token["copied"]),
            "places": [
                {"position": place, "weight": _short(weight), "run": run, **self._around(found, place)}
                for place, weight, run in places
            ],
        }

    def blocks(self, document: int, segment: int) -> list[dict[str, Any]]:
        """Return the intervals of positions that a segment read at every layer, with the beginnings of their texts."""
        found = self._document(document)
        if not 0 <= segment < len(found.segments):
            raise BadRequestError(f"document {document} has segments 0 to {len(found.segments) - 1}, got {segment}")
        return [
            {"first": first, "end": end, "text": self._folder.text(found, first, min(end, first + BLOCK_TOKENS))}
            for first, end in self._folder.blocks(found, segment)
        ]

    def extremes(self, document: int, sign: int) -> list[dict[str, Any]]:
        """Return the tokens of a document that gained most, or with sign -1 lost most, with their predecessors."""
        found = self._document(document)
        if not self._folder.has_baseline:
            raise BadRequestError("no token has a gain: the backbone alone did not run in one pass")
        positions = self._folder.extremes(found, EXTREMES, sign)
        # in the order of the text, so that each row group is read once
        listed = {position: self._listed(found, position) for position in sorted(positions)}
        return [listed[position] for position in positions]

    def _listed(self, document: ViewedDocument, position: int) -> dict[str, Any]:
        [gain] = self._folder.gains(document.row(position), document.row(position) + 1)
        [gap], [text] = self._folder.pieces(document, position, position + 1)
        before = self._folder.text(document, position - BEFORE, position) + gap
        return {"position": position, "gain": _short(float(gain)), "before": before, "text": text}

    def number_of(self, name: str | None) -> int:
        """Return the number of a named document, or of the only one for None. Raises ConfigError."""
        names = [each.name for each in self._folder.documents]
        if name is None and len(names) == 1:
            return 0
        if name in names:
            return names.index(name)
        some = ", ".join(names[:10]) + (f" and {len(names) - 10:,} more" if len(names) > 10 else "")
        given = "no --document is given" if name is None else f"--document {name} is not among them"
        raise ConfigError(f"the run has the documents {some}; {given}")

    def _document(self, number: int) -> ViewedDocument:
        if not 0 <= number < len(self._folder.documents):
            raise BadRequestError(f"the run has documents 0 to {len(self._folder.documents) - 1}, got {number}")
        return self._folder.documents[number]

    def _around(self, document: ViewedDocument, place: int) -> dict[str, str]:
        text = self._folder.text
        gaps, tokens = self._folder.pieces(document, place, place + 1)
        return {
            "before": text(document, place - AROUND, place) + "".join(gaps),
            # the start token, which is not predicted, has no text
            "text": "".join(tokens),
            "after": text(document, place + 1, place + 1 + AROUND),
        }


def _short(value: float) -> float:
    """Return a number with four decimals, which a page can show, in few characters."""
    return round(value, 4)
