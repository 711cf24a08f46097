# SPDX-License-Identifier: Apache-2.0
"""The harness model against the harness's own Hugging Face model, against `score`, and against single requests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="needs the extra `eval`: pip install 'longmem[eval]'")

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from longmem.errors import ConfigError, DocumentError, FingerprintError
from longmem.evaluation import HarnessModel, local_task
from longmem.model.longmem import LongMem
from longmem.model.source import REFERENCE_MODEL
from longmem.scoring.generate import Decoder, Sampling, decode
from longmem.scoring.loglikelihood import Continuation, ContinuationScorer
from longmem.scoring.text import score_sequence
from longmem.sidenet.block_choice import Asking
from longmem.store.config import MemoryStore
from longmem.testing import small_longmem
from longmem.text.language_reference import language_reference
from longmem.types import Segment
from tests.inputs import ALL_LAYERS

SEGMENT_TOKENS = 32
LONG = "Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse"
PAIRS = [
    ("Call me", " Ishmael"),
    ("Call me ", "Ishmael"),
    ("", "having little money"),
    ("x", "y"),
    ("Some years ago,", " never mind"),
]
LONG_PAIRS = [(LONG, " I thought"), (LONG, " and nothing"), (LONG[:50], LONG[50:]), ("Call", LONG), ("", LONG)]
TOLERANCE = 1e-4
"""Tolerance in nats of a whole request."""

Make = Callable[..., HarnessModel]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a saved LongMem whose memory moves every result, and `backbone` inside it."""
    folder = tmp_path_factory.mktemp("harness")
    small_longmem(folder, segment_tokens=SEGMENT_TOKENS).save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture
def make(folder: Path) -> Make:
    return lambda **options: HarnessModel(str(folder), **options)


@pytest.fixture(scope="module")
def plain(folder: Path) -> HFLM:
    return HFLM(pretrained=str(folder / "backbone"), device="cpu", dtype="float32", max_length=SEGMENT_TOKENS)


def requests(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, each, index) for index, each in enumerate(arguments)]


def asked(model: Any, kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    return getattr(model, kind)(requests(kind, arguments), disable_tqdm=True)


def assert_same(ours: list[tuple[float, bool]], theirs: list[tuple[float, bool]]) -> None:
    np.testing.assert_allclose([each[0] for each in ours], [each[0] for each in theirs], atol=TOLERANCE)
    assert [each[1] for each in ours] == [each[1] for each in theirs]


# --- without memory: a plain Hugging Face model ----------------------------------------------------------------------


@pytest.mark.parametrize("bos", [None, True, False])
def test_loglikelihood_is_that_of_the_plain_model(make: Make, folder: Path, bos: bool | None) -> None:
    plain = HFLM(str(folder / "backbone"), device="cpu", dtype="float32", max_length=SEGMENT_TOKENS, add_bos_token=bos)
    # beyond the segment both drop the oldest tokens
    pairs = PAIRS + LONG_PAIRS[:2]
    ours = asked(make(memory="off", add_bos_token=bos), "loglikelihood", pairs)
    assert_same(ours, asked(plain, "loglikelihood", pairs))
    assert {type(each) for pair in ours for each in pair} == {float, bool}


def test_rolling_is_that_of_the_plain_model(make: Make, plain: HFLM) -> None:
    texts = [("Call me",), (LONG,), (LONG[:31],), (LONG[:32],), (LONG[:33],), (LONG * 3,)]
    ours = asked(make(memory="off"), "loglikelihood_rolling", texts)
    np.testing.assert_allclose(ours, asked(plain, "loglikelihood_rolling", texts), atol=TOLERANCE)


@pytest.mark.parametrize("memory", ["on", "off"])
def test_answers_to_a_text_that_spells_the_start_token_have_one(make: Make, memory: str) -> None:
    model, start = make(memory=memory), "<|endoftext|>"
    for text in (LONG, "Call me"):
        (plain,), (spelled,) = (asked(model, "loglikelihood_rolling", [(each,)]) for each in (text, start + text))
        assert spelled == plain
        # a start token spelled in a continuation is the start token itself
        (plain,), (spelled,) = (asked(model, "loglikelihood", [("", each)]) for each in (text, start + text))
        assert spelled == plain
        arguments = {"until": [], "max_gen_toks": 8, "do_sample": False}
        bos = make(memory=memory, add_bos_token=True)
        expected = asked(bos, "generate_until", [(text, arguments)])
        assert asked(bos, "generate_until", [(start + text, arguments)]) == expected
        assert asked(model, "generate_until", [(start + text, arguments)]) == expected


def test_special_tokens_as_text_are_characters(make: Make) -> None:
    model, start = make(special_tokens="text"), "<|endoftext|>"
    assert len(model.tok_encode(start + "ab")) == len(start) + 2
    assert len(make().tok_encode(start + "ab")) == 3


@pytest.mark.parametrize("until", [[], [" "], ["e", "a"]])
def test_generation_is_that_of_the_plain_model(make: Make, plain: HFLM, until: list[str]) -> None:
    arguments = [(text, {"until": until, "max_gen_toks": 12, "do_sample": False}) for text in ("Call me", LONG)]
    assert asked(make(memory="off"), "generate_until", arguments) == asked(plain, "generate_until", arguments)


@pytest.mark.slow
def test_the_reference_model_is_its_backbone_without_memory() -> None:
    text = language_reference().text
    pairs = [(text[:700], text[700:760]), ("", text[1000:1200]), (text[:9000], text[9000:9100])]
    texts = [(text[:800],), (text[2000:9000],)]
    model = HarnessModel(memory="off")
    size = model.model.config.segment_tokens
    plain = HFLM(str(REFERENCE_MODEL / "backbone"), device="cpu", dtype="float32", max_length=size)
    ours, theirs = (asked(each, "loglikelihood", pairs) for each in (model, plain))
    np.testing.assert_allclose([each[0] for each in ours], [each[0] for each in theirs], atol=1e-2)
    assert [each[1] for each in ours] == [each[1] for each in theirs]
    ours, theirs = (asked(each, "loglikelihood_rolling", texts) for each in (model, plain))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


# --- with memory: LongMem's own numbers ------------------------------------------------------------------------------


def test_rolling_carries_memory_through_a_document_and_no_further(make: Make) -> None:
    model = make()
    texts = [LONG, "another one", LONG * 2]
    together = asked(model, "loglikelihood_rolling", [(text,) for text in texts])
    for text, total in zip(texts, together, strict=True):
        scores = model.model.score(text)
        assert total == pytest.approx(scores.logprobs.sum(), abs=TOLERANCE)
        assert len(scores.logprobs) == len(text.encode()), "every token is predicted once"
    off = asked(make(memory="off"), "loglikelihood_rolling", [(LONG,)])
    assert abs(off[0] - together[0]) > 0.1, "memory must move the result, or the test says nothing"


def test_loglikelihood_reads_what_lies_before_the_segment(make: Make) -> None:
    on, off = make(), make(memory="off")
    with_memory, without = (asked(each, "loglikelihood", LONG_PAIRS) for each in (on, off))
    assert all(abs(a[0] - b[0]) > 1e-3 for a, b in zip(with_memory[:2], without[:2], strict=True))


def test_long_continuations_are_scored_once_each(make: Make) -> None:
    """Check the chain rule: pieces are scored in turn, each with all preceding tokens as its context."""
    model = make()
    context, targets = model.tok_encode("Call"), model.tok_encode(LONG, False)
    ((whole, _),) = model._loglikelihood_tokens([(None, context, targets)], True)
    pieces = [
        (None, context + targets[:first], targets[first : first + SEGMENT_TOKENS])
        for first in range(0, len(targets), SEGMENT_TOKENS)
    ]
    assert len(pieces) == 4
    assert whole == pytest.approx(sum(total for total, _ in model._loglikelihood_tokens(pieces, True)), abs=TOLERANCE)


def test_answers_of_almost_equal_length_share_the_memory_of_their_context(make: Make) -> None:
    """Check that three answers to one long context encode it once, and that each has the score that it has alone."""
    # segments of 32 begin at every second token: one start for answers of four and of five tokens
    context, answers = LONG[:80], ["oars", "sail.", "boat"]
    alone = [_encoded(make(), [(context, answer)]) for answer in answers]
    together, num_encoded = _encoded(make(), [(context, answer) for answer in answers])
    assert num_encoded == alone[0][1] > 0
    assert_same(together, [scores[0] for scores, _ in alone])


@pytest.mark.parametrize("num_targets", range(25, SEGMENT_TOKENS + 1))
def test_a_long_answer_keeps_a_step_of_context_or_what_fits(make: Make, num_targets: int) -> None:
    """Check segments of 32 that begin at every second token: a rounded start leaves two tokens of context, not one."""
    scorer = ContinuationScorer(make().model, memory=True)
    request = Continuation("x", np.arange(81, dtype=np.int32), np.arange(num_targets, dtype=np.int32))
    [piece] = scorer._pieces(0, request)
    assert piece.item.first_target >= min(2, SEGMENT_TOKENS + 1 - num_targets)
    assert piece.item.num_targets == num_targets
    assert piece.item.num_read <= SEGMENT_TOKENS


def _encoded(model: HarnessModel, pairs: list[tuple[str, str]]) -> tuple[list[Any], int]:
    """Return the answers, and how many segments of memory were encoded for them."""
    calls: list[Segment] = []
    encode = model.model.encode

    def counted(segment: Segment) -> Any:
        calls.append(segment)
        return encode(segment)

    model.model.encode = counted  # type: ignore[method-assign, assignment]
    return asked(model, "loglikelihood", pairs), len(calls)


def test_batches_and_order_change_nothing(make: Make) -> None:
    pairs = PAIRS + LONG_PAIRS
    alone = [asked(make(batch_size=1), "loglikelihood", [pair])[0] for pair in pairs]
    order = np.random.default_rng(0).permutation(len(pairs))
    mixed = asked(make(batch_size=8), "loglikelihood", [pairs[i] for i in order])
    assert_same(mixed, [alone[i] for i in order])


# --- a document in memory --------------------------------------------------------------------------------------------


@pytest.fixture
def store(folder: Path, tmp_path: Path) -> str:
    uri = str(tmp_path / "memory.lance")
    with MemoryStore.open(uri) as store:
        LongMem.from_pretrained(folder).score(LONG, store.document("book"))
    return uri


def test_requests_follow_the_document(make: Make, store: str) -> None:
    model = make(store=store, document="book")
    with MemoryStore.open(store) as opened:
        memory = opened.document("book").as_read_only()
        before = memory.segments
        text = "having little or no money"
        tokens = np.asarray([model.prefix_token_id, *model.tok_encode(text, False)], dtype=np.int32)
        expected = score_sequence(model.model, tokens, memory).logprobs.sum()
        assert asked(model, "loglikelihood", [("", text)])[0][0] == pytest.approx(expected, abs=TOLERANCE)
        assert asked(model, "loglikelihood_rolling", [(text,)])[0] == pytest.approx(expected, abs=TOLERANCE)
        prompt = "Call me"
        generated = asked(model, "generate_until", [(prompt, {"until": [], "max_gen_toks": 8})])
        tokens_of_prompt = model.tok_encode(prompt)
        feed = Decoder(model.model, memory).feed
        assert generated == [decode(feed, tokens_of_prompt, model.model.tokenizer, 8, Sampling())]
        # a context that does not fit also follows the document
        long = asked(model, "loglikelihood", [(LONG, " I thought")])[0][0]
        assert abs(long - asked(make(), "loglikelihood", [(LONG, " I thought")])[0][0]) > 1e-4
        assert memory.segments == before, "nothing is written"


def test_a_long_context_after_a_document_is_what_score_reads(make: Make, store: str) -> None:
    """Check a context that ends with a whole segment: the harness's pieces are the segments of `score`."""
    model = make(store=store, document="book", memory_tokens=256)
    tokens = model.tok_encode(LONG[: 2 * SEGMENT_TOKENS + 1], False)
    with MemoryStore.open(store) as opened:
        memory = opened.document("book").as_read_only()
        expected = score_sequence(model.model, np.asarray(tokens, dtype=np.int32), memory).segments
    last = expected[1].logprobs.sum()
    ours = model._loglikelihood_tokens([(None, tokens[: SEGMENT_TOKENS + 1], tokens[SEGMENT_TOKENS + 1 :])], True)
    assert ours[0][0] == pytest.approx(last, abs=TOLERANCE)


@pytest.mark.parametrize("bos", [True, False])
def test_a_prompt_continues_the_memory_only_where_it_was_cut_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bos: bool
) -> None:
    """Check the choice of blocks: prompts that fit a segment, with a start token and without one, and longer ones."""
    sizes = {"segment_tokens": SEGMENT_TOKENS, "memory_tokens": 256}
    small_longmem(tmp_path, **ALL_LAYERS, **sizes).save_pretrained(tmp_path / "model")
    with MemoryStore.open(str(tmp_path / "memory.lance")) as store:
        LongMem.from_pretrained(tmp_path / "model").score(LONG, store.document("book"))
    seen: list[bool] = []
    prompt = Asking.prompt

    def watched(*given: Any, continues: bool) -> Asking:
        seen.append(continues)
        return prompt(*given, continues=continues)

    monkeypatch.setattr(Asking, "prompt", watched)
    model = HarnessModel(
        str(tmp_path / "model"), store=str(tmp_path / "memory.lance"), document="book", add_bos_token=bos
    )
    arguments = {"until": [], "max_gen_toks": 2}
    for context, cut in (("Call me", False), (LONG, True)):
        for kind, request in (("loglikelihood", (context, " x")), ("generate_until", (context, arguments))):
            asked(model, kind, [request])
            assert set(seen) == {cut}, (kind, context)
            seen.clear()
    # a whole text follows the document, whose end asks: before its first token nothing else is known
    asked(model, "loglikelihood_rolling", [(LONG,)])
    assert seen == []


# --- the harness around it -------------------------------------------------------------------------------------------


def test_it_is_registered_by_its_name() -> None:
    assert get_model("longmem") is HarnessModel


def test_answers_are_kept_by_the_harness_cache(make: Make, tmp_path: Path) -> None:
    model = make()
    cached = CachingLM(model, str(tmp_path / "cache.db"))
    arguments = {"loglikelihood": PAIRS[:2], "loglikelihood_rolling": [("Call me",)]}
    first = {kind: getattr(cached, kind)(requests(kind, each)) for kind, each in arguments.items()}
    for kind, each in arguments.items():
        setattr(model, kind, lambda *_: pytest.fail("asked again"))
        assert getattr(cached, kind)(requests(kind, each)) == first[kind]
    cached.dbdict.close()


@pytest.fixture
def suffix_file(tmp_path: Path) -> Path:
    path = tmp_path / "suffix.jsonl"
    rows = [
        {"prefix": LONG, "candidates": [" I thought", " money", "xxxxxxx"], "label": label} for label in (0, 1, 2, 0)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("memory", ["on", "off"])
def test_simple_evaluate_on_local_files(
    folder: Path, suffix_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: str
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("it went to the network"))
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in (LONG, "Call me Ishmael")))
    results = lm_eval.simple_evaluate(
        "longmem",
        model_args={"pretrained": str(folder), "memory": memory},
        tasks=[local_task("longmem_perplexity", texts), local_task("longmem_suffix", suffix_file)],
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
    )
    model = HarnessModel(str(folder), memory=memory)
    nats = -sum(asked(model, "loglikelihood_rolling", [(LONG,), ("Call me Ishmael",)]))
    num_bytes = len((LONG + "Call me Ishmael").encode())
    found = results["results"]
    assert found["longmem_perplexity"]["byte_perplexity,none"] == pytest.approx(np.exp(nats / num_bytes), rel=1e-5)
    candidates = json.loads(suffix_file.read_text().splitlines()[0])["candidates"]
    totals = [each[0] for each in asked(model, "loglikelihood", [(LONG, "\n\n" + text) for text in candidates])]
    expected = np.mean([label == int(np.argmax(totals)) for label in (0, 1, 2, 0)])
    assert found["longmem_suffix"]["acc,none"] == pytest.approx(expected)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": "maybe"}, "memory must be on or off, got 'maybe'"),
        ({"store": "somewhere"}, "store and document belong together"),
        ({"document": "book"}, "store and document belong together"),
        ({"memory": "off", "store": "s", "document": "d"}, "memory=off reads no document"),
        ({"batch_size": 0}, "batch_size must be auto or a whole number of at least 1, got 0"),
        ({"batch_size": "many"}, "batch_size must be auto"),
        ({"top_kk": 3}, r"unknown settings \['top_kk'\]"),
    ],
)
def test_bad_arguments(make: Make, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**options)


def test_bad_documents(make: Make, store: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no document default/none; it holds default/book"):
        make(store=store, document="none")
    with pytest.raises(FingerprintError, match="segment_tokens"):
        make(store=store, document="book", segment_tokens=16)


def test_bad_requests(make: Make, tmp_path: Path) -> None:
    model = make()
    with pytest.raises(DocumentError, match="at least one token of context and one to score, got 1 and 0"):
        asked(model, "loglikelihood", [("", "")])
    with pytest.raises(ConfigError, match=r"generation knows .*; got \['num_beams'\]"):
        asked(model, "generate_until", [("a", {"num_beams": 3})])
    with pytest.raises(ConfigError, match="max_gen_toks=32 leaves no room"):
        asked(make(memory="off"), "generate_until", [("a", {"max_gen_toks": 32})])
    with pytest.raises(ConfigError, match="there is no task 'other'; known are longmem_perplexity, longmem_suffix"):
        local_task("other", tmp_path)
    with pytest.raises(ConfigError, match="data of longmem_suffix not found"):
        local_task("longmem_suffix", tmp_path / "none.jsonl")
    rows = {"longmem_perplexity": [{"text": None}, {}, {"text": 3}], "longmem_suffix": [{"prefix": "a", "label": 0}]}
    for name, bad in rows.items():
        for row in bad:
            (tmp_path / "bad.jsonl").write_text("\n" + json.dumps(row))
            with pytest.raises(DocumentError, match=r"bad.jsonl line 2: (text|candidates) is"):
                local_task(name, tmp_path / "bad.jsonl")
