# SPDX-License-Identifier: Apache-2.0
"""Generation token by token against the definition: every step recomputed from all tokens so far."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from longmem.backbone.families import FAMILIES
from longmem.config import PAPER_FORM
from longmem.errors import ConfigError, DocumentError, FingerprintError, MissingBlockError
from longmem.memory.view import MemoryView
from longmem.model.longmem import LongMem
from longmem.scoring import generate as generation
from longmem.scoring.generate import Decoder, Sampling, choose, generate
from longmem.store.base import AbstractMemoryStore
from longmem.store.config import MemoryStore
from longmem.store.document import DocumentMemory
from longmem.types import DocumentKey, Segment
from tests.inputs import DEFAULT_FORM, sidenet_input

NaiveView = Callable[..., MemoryView | None]

DOCUMENT = "Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse"
PROMPT = "and nothing particular to interest me on shore, I thought I"  # 59 bytes: 60 tokens, nearly two segments
KEY = DocumentKey("", "")

DEFAULT = {**DEFAULT_FORM, "kv_dtype": "float32"}
"""Default form with float32 keys. A key rounded to half precision may round differently when the segment is read in
pieces, which can change a log-probability by more than float32 does."""
FORMS: dict[str, dict[str, Any]] = {"paper": PAPER_FORM, "default": DEFAULT}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


class NaiveDecoder:
    """Next-token logits by definition: cut all tokens into segments, encode each alone, and let the last one read the
    memory before it in one whole forward."""

    def __init__(self, model: LongMem, naive_view: NaiveView, memory: DocumentMemory | None) -> None:
        self.model, self.naive_view = model, naive_view
        stored = memory.store.read(memory.key, 0, len(memory.segments)) if memory else []
        self.before = stored if model.config.memory_tokens else []
        self.offset = self.before[-1].end_token if self.before else 0

    def logits(self, tokens: list[int]) -> Tensor:
        model, config = self.model, self.model.config
        blocks = list(self.before)
        size = config.segment_tokens
        for index, start in enumerate(range(0, len(tokens), size)):
            part = np.asarray(tokens[start : start + size], dtype=np.int32)
            place = self.offset + start
            if start + size < len(tokens):
                block = model.encode(Segment(KEY, index, start, part, part[1:])).block
                blocks.append(replace(block, start_token=place))
                continue
            batch = torch.tensor(part[None])
            view = self.naive_view(blocks, max(0, place - config.memory_tokens), place, model.key_space)
            with torch.no_grad():
                output = model.sidenet(sidenet_input(model, batch, [view]), model.search)
                logits, copies = model.backbone.logits(output.hidden[0]), output.copies[0]
                return (logits if copies is None else copies.mix_logits(logits))[-1]
        raise AssertionError("no tokens")


def naive_choice(logits: Tensor, sampling: Sampling, random: torch.Generator) -> int:
    if sampling.temperature == 0:
        return max(range(len(logits)), key=lambda token: float(logits[token]))
    probabilities, order = (logits / sampling.temperature).softmax(dim=0).sort(descending=True)
    kept, mass = torch.zeros_like(probabilities), 0.0
    for rank, probability in enumerate(probabilities.tolist()):
        if mass >= sampling.top_p:
            break
        kept[rank] = probability
        mass += probability
    return int(order[torch.multinomial(kept, 1, generator=random)])


def check_against_naive(
    model: LongMem,
    naive_view: NaiveView,
    monkeypatch: pytest.MonkeyPatch,
    memory: DocumentMemory | None,
    sampling: Sampling,
    prompt: str = PROMPT,
    max_new_tokens: int = 6,
) -> None:
    steps: list[tuple[Tensor, int]] = []

    def watched(logits: Tensor, sampling: Sampling, random: torch.Generator) -> int:
        token = choose(logits, sampling, random)
        steps.append((logits, token))
        return token

    monkeypatch.setattr(generation, "choose", watched)
    text = generate(model, prompt, memory, max_new_tokens=max_new_tokens, sampling=sampling)

    naive, random = NaiveDecoder(model, naive_view, memory), torch.Generator().manual_seed(sampling.seed)
    tokens = model.tokenizer.sequence(prompt).tolist()
    new: list[int] = []
    for logits, token in steps:
        expected = naive.logits(tokens + new)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
        assert token == naive_choice(expected, sampling, random)
        new.append(token)
    ended = new[-1] == model.tokenizer.end_token
    assert len(steps) == max_new_tokens or ended
    assert text == model.tokenizer.decode(new[:-1] if ended else new)


@pytest.fixture
def store() -> AbstractMemoryStore:
    return MemoryStore.open("memory://")


def remembered(model: LongMem, store: AbstractMemoryStore, text: str = DOCUMENT) -> DocumentMemory:
    """Return a document of the store that the model has read."""
    memory = store.document("book")
    model.score(text, memory)
    return memory


GREEDY = Sampling()
SAMPLED = Sampling(temperature=1.3, top_p=0.9, seed=7)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize(
    ("form", "with_memory", "sampling"),
    [("paper", True, GREEDY), ("paper", False, SAMPLED), ("default", True, SAMPLED)],
    ids=["paper, memory", "paper, prompt", "default, memory"],
)
def test_every_family_generates_what_full_recomputation_gives(
    family: str,
    form: str,
    with_memory: bool,
    sampling: Sampling,
    small_model: Callable[..., LongMem],
    naive_view: NaiveView,
    store: AbstractMemoryStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = small_model(family, **FORMS[form])
    memory = remembered(model, store) if with_memory else None
    check_against_naive(model, naive_view, monkeypatch, memory, sampling)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"memory_tokens": 0},
        {"memory_tokens": 40, "segment_tokens": 16},  # shorter than document and prompt: old chunks fall out
        {"chunk_tokens": 8, "top_k": 8},
        {"segment_tokens": 8, "chunk_tokens": 1, "top_k": 3, "memory_tokens": 50},
        {"layer_reduction": 1, "kv_dtype": "float32"},
        {"kv_dtype": "int8"},
        {**DEFAULT, "chunk_tokens": 4},  # the document's last chunk is partial, and the prompt's first is its own
        {**DEFAULT, "memory_tokens": 40, "segment_tokens": 16},
        {**DEFAULT, "fusion": False, "copy_match_tokens": 0},
        {**DEFAULT, "keys": "centred", "retrieval": "per_head", "copy_head": False},
        {
            "keys": "unit",
            "copy_head": True,
            "kv_dtype": "float32",
        },  # the newest token can be retrieved, and its continuation copied
    ],
    ids=str,
)
def test_any_settings(
    settings: dict[str, Any],
    small_model: Callable[..., LongMem],
    naive_view: NaiveView,
    store: AbstractMemoryStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = small_model("llama", **settings)
    check_against_naive(
        model, naive_view, monkeypatch, remembered(model, store), SAMPLED, PROMPT[:29], max_new_tokens=4
    )


@pytest.mark.parametrize("length", [0, 30, 31, 62, 63])
@every_form
def test_prompts_that_end_at_the_border_of_a_segment(
    length: int,
    form: dict[str, Any],
    small_model: Callable[..., LongMem],
    naive_view: NaiveView,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompt = (DOCUMENT * 2)[: length + 1]
    check_against_naive(small_model("llama", **form), naive_view, monkeypatch, None, GREEDY, prompt, max_new_tokens=2)


@pytest.mark.parametrize("document", [None, DOCUMENT, DOCUMENT[:9], ""], ids=["none", "long", "short", "empty"])
@every_form
def test_log_probabilities_are_those_of_score(
    document: str | None, form: dict[str, Any], small_model: Callable[..., LongMem], store: AbstractMemoryStore
) -> None:
    model = small_model("qwen2", **form)
    memory = None if document is None else store.document("book")
    if memory and document:
        remembered(model, store, document)
    expected = model.score(PROMPT + PROMPT, memory.as_read_only() if memory else None).logprobs
    tokens = model.tokenizer.sequence(PROMPT + PROMPT).tolist()
    decoder, fed = Decoder(model, memory), 0
    for length in (1, 5, 25, 1, 1, 40, 30, 15):
        logits = decoder.feed(tokens[fed : fed + length])
        fed += length
        found = float(logits.log_softmax(dim=0)[tokens[fed]])
        assert found == pytest.approx(float(expected[fed - 1]), abs=1e-4)


@every_form
def test_memory_matters(form: dict[str, Any], small_model: Callable[..., LongMem], store: AbstractMemoryStore) -> None:
    """Check that the memory has an effect; otherwise every comparison above would pass with a memory that is never
    read."""
    model = small_model("llama", **form)
    memory = remembered(model, store)
    tokens = model.tokenizer.sequence(PROMPT).tolist()
    with_memory, without = (Decoder(model, each).feed(tokens).log_softmax(dim=0) for each in (memory, None))
    assert (with_memory - without).abs().max() > 0.01


def test_memory_is_read_and_not_written(small_model: Callable[..., LongMem], store: AbstractMemoryStore) -> None:
    model = small_model("llama")
    memory = remembered(model, store)
    before = memory.segments
    first = model.generate(PROMPT, memory, max_new_tokens=10)
    assert model.generate(PROMPT, memory, max_new_tokens=10) == first
    assert memory.segments == before
    assert store.documents() == [memory.key]


def test_stops_before_the_end_token(small_model: Callable[..., LongMem]) -> None:
    model = small_model("llama")
    hugging_face = model.tokenizer._tokenizer
    steps: list[int] = []
    decoder, tokens = Decoder(model, None), model.tokenizer.sequence(PROMPT).tolist()
    while len(steps) < 5:
        tokens = [int(decoder.feed(tokens).argmax())]
        steps += tokens
    assert len(set(steps[:3])) == 3
    hugging_face.eos_token = hugging_face.convert_ids_to_tokens(steps[2])
    assert model.tokenizer.end_token == steps[2]
    assert model.generate(PROMPT, max_new_tokens=5) == model.tokenizer.decode(steps[:2])


def test_seeds(small_model: Callable[..., LongMem]) -> None:
    model = small_model("llama")

    def text(seed: int) -> str:
        return model.generate("A", max_new_tokens=4, sampling=Sampling(temperature=1.0, seed=seed))

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(3)}) > 1


# ---- sampling


LOGITS = torch.tensor([0.1, 2.0, 1.0, -1.0, 1.5])


def draws(sampling: Sampling, number: int = 1500) -> Tensor:
    random = torch.Generator().manual_seed(sampling.seed)
    chosen = torch.tensor([choose(LOGITS, sampling, random) for _ in range(number)])
    return torch.bincount(chosen, minlength=5) / number


def test_greedy_takes_the_best() -> None:
    assert draws(Sampling(), 3).tolist() == [0, 1, 0, 0, 0]
    assert draws(Sampling(temperature=1.0, top_p=1e-6), 20).tolist() == [0, 1, 0, 0, 0]
    assert draws(Sampling(temperature=1e-3), 20).tolist() == [0, 1, 0, 0, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampling_draws_from_the_distribution(temperature: float) -> None:
    expected = (LOGITS / temperature).softmax(dim=0)
    # five standard deviations of 1,500 draws
    assert ((draws(Sampling(temperature=temperature)) - expected).abs() < 5 * (expected / 1500).sqrt()).all()


def test_top_p_keeps_the_smallest_set_with_that_mass() -> None:
    # softmax: 1 has 0.45, 4 has 0.27, 2 has 0.16, 0 has 0.07, 3 has 0.02
    for top_p, kept in ((0.4, {1}), (0.5, {1, 4}), (0.7, {1, 4}), (0.8, {1, 4, 2}), (1.0, {0, 1, 2, 3, 4})):
        frequencies = draws(Sampling(temperature=1.0, top_p=top_p))
        assert set(frequencies.nonzero().flatten().tolist()) == kept
        expected = LOGITS.softmax(dim=0) * torch.tensor([float(token in kept) for token in range(5)])
        assert ((frequencies - expected / expected.sum()).abs() < 0.06).all()


@pytest.mark.parametrize(
    "settings",
    [{"temperature": -0.1}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_p": float("nan")}],
    ids=str,
)
def test_sampling_that_cannot_work(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Sampling(**settings)


# ---- invalid input


def test_bad_calls(small_model: Callable[..., LongMem]) -> None:
    model = small_model("llama")
    for number in (0, -1):
        with pytest.raises(ConfigError, match="max_new_tokens"):
            model.generate("A", max_new_tokens=number)
    with pytest.raises(DocumentError, match="no tokens"):
        model.generate("")


def test_memory_of_another_model(small_model: Callable[..., LongMem], store: AbstractMemoryStore) -> None:
    memory = remembered(small_model("llama"), store)
    for other in (small_model("llama", seed=1), small_model("gpt2"), small_model("llama", chunk_tokens=8)):
        with pytest.raises(FingerprintError):
            other.generate("A", memory)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_document_with_a_hole_is_not_read_around_it(
    missing: int, small_model: Callable[..., LongMem], store: AbstractMemoryStore
) -> None:
    """Check segments in any order; a memory that lacks one must not silently be a shorter one."""
    model = small_model("llama")
    whole = remembered(model, store)
    assert len(whole.segments) == 4
    partial = store.document("partial")
    for block in store.read(whole.key, 0, 4):
        if block.segment != missing:
            store.put(replace(block, key=partial.key))
    for read in (lambda: model.generate("A", partial), lambda: model.score("A", partial.as_read_only())):
        with pytest.raises(MissingBlockError, match="partial"):
            read()


def test_a_hole_before_the_window_does_no_harm(small_model: Callable[..., LongMem], store: AbstractMemoryStore) -> None:
    model = small_model("llama", memory_tokens=32)
    whole = remembered(model, store)
    late = store.document("late")
    for block in store.read(whole.key, 1, 4):
        store.put(replace(block, key=late.key))
    tokens = model.tokenizer.sequence(PROMPT).tolist()
    assert torch.equal(Decoder(model, late).feed(tokens), Decoder(model, whole).feed(tokens))


def test_pieces_are_the_text_and_split_no_character(small_model: Callable[..., LongMem]) -> None:
    """A byte tokenizer needs several tokens for one character: no piece may hold a part of it."""
    model = small_model("llama")
    wanted = model.tokenizer.tokens("a — 静か 🐋!").tolist()
    chosen = iter(wanted)

    def feed(tokens: list[int]) -> Tensor:
        logits = torch.zeros(model.backbone.vocab_size)
        logits[next(chosen)] = 1.0
        return logits

    pieces: list[str] = []
    text = generation.decode(feed, [0], model.tokenizer, len(wanted), Sampling(), written=pieces.append)
    assert text == "a — 静か 🐋!"
    assert pieces == list(text)

    # the text ends inside a character: what is there is written at the end
    chosen, cut = iter(wanted), []
    text = generation.decode(feed, [0], model.tokenizer, 3, Sampling(), written=cut.append)
    assert "".join(cut) == text == "a \ufffd"
