# SPDX-License-Identifier: Apache-2.0
"""Texts to sequences: the start token first, nothing lost, nothing added; and a digest of all settings that matter."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from longmem.backbone.families import FAMILIES
from longmem.backbone.small import byte_tokenizer
from longmem.backbone.tokenizer import LONG_TOKENS, Tokenizer
from longmem.config import SpecialTokens
from longmem.errors import CheckpointError, DocumentError


def save(folder: Path, extra: dict[str, int] | None = None, **special: str) -> Path:
    """Save a byte-level tokenizer with special tokens chosen by the test; `extra` entries go to the vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)} | {"<s>": 256, "</s>": 257} | (extra or {})
    tokenizer = RawTokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    # like Llama's: adds its own start and end tokens when special tokens are enabled
    tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", 256), ("</s>", 257)]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def small(small_backbone: Callable[[str], Path]) -> Tokenizer:
    return Tokenizer(small_backbone("llama"), 257)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_sequence_of_every_family(family: str, small_backbone: Callable[[str], Path]) -> None:
    tokenizer = Tokenizer(small_backbone(family), 257)
    sequence = tokenizer.sequence("a b\n")
    assert sequence.dtype == np.int32
    assert sequence[0] == tokenizer.start_token == tokenizer.end_token == 256
    assert len(sequence) == 5
    assert tokenizer.decode(sequence.tolist()) == "a b\n"


@pytest.mark.parametrize(
    ("text", "num_tokens", "kept"),
    [
        ("abc", 2, "ab"),
        ("abc", 3, "abc"),
        ("abc", 9, "abc"),
        ("aé!", 2, "a"),  # a character of two tokens is kept whole, or not at all
        ("aé!", 3, "aé"),
        ("😀😀", 1, "😀"),  # at least one character
        ("<s>abc", 1, "<s>a"),  # a spelled start token does not count
    ],
)
def test_beginning_of_a_text_has_at_most_so_many_tokens(
    small: Tokenizer, text: str, num_tokens: int, kept: str
) -> None:
    text, kept = (each.replace("<s>", small.decode([256])) for each in (text, kept))
    assert small.beginning(text, num_tokens) == kept


@given(text=st.text(min_size=1, max_size=50))
def test_any_text_is_start_and_bytes_and_comes_back(small: Tokenizer, text: str) -> None:
    sequence = small.sequence(text)
    assert sequence[0] == 256
    assert len(sequence) == 1 + len(text.encode("utf-8"))
    assert small.decode(sequence.tolist()) == text


@given(text=st.text(min_size=1, max_size=50))
def test_spans_are_the_characters_of_each_byte(small: Tokenizer, text: str) -> None:
    sequence, spans = small.sequence_with_spans(text)
    assert sequence.tolist() == small.sequence(text).tolist()
    expected = [(0, 0)]
    for place, character in enumerate(text):
        expected += [(place, place + 1)] * len(character.encode("utf-8"))
    assert list(map(tuple, spans.tolist())) == expected


def test_spans_of_a_text_that_spells_its_start(tmp_path: Path) -> None:
    tokenizer = Tokenizer(save(tmp_path, bos_token="<s>", eos_token="</s>"), 300)
    sequence, spans = tokenizer.sequence_with_spans("<s>ab")
    assert sequence.tolist() == tokenizer.sequence("<s>ab").tolist()
    assert spans.tolist() == [[0, 3], [3, 4], [4, 5]]
    with pytest.raises(DocumentError, match="no tokens but the start token"):
        tokenizer.sequence_with_spans("<s>")


def test_spans_without_a_start_token_begin_with_the_text(tmp_path: Path) -> None:
    sequence, spans = Tokenizer(save(tmp_path), 300).sequence_with_spans("ab")
    assert len(sequence) == 2
    assert spans.tolist() == [[0, 1], [1, 2]]


def test_special_tokens_of_the_tokenizer_are_not_added_twice(tmp_path: Path) -> None:
    tokenizer = Tokenizer(save(tmp_path, bos_token="<s>", eos_token="</s>"), 300)
    sequence = tokenizer.sequence("ab").tolist()
    assert sequence[0] == 256
    assert len(sequence) == 3
    assert 257 not in sequence
    assert (tokenizer.start_token, tokenizer.end_token) == (256, 257)


def test_end_of_text_starts_where_there_is_no_beginning(tmp_path: Path) -> None:
    tokenizer = Tokenizer(save(tmp_path, eos_token="</s>"), 300)
    assert tokenizer.start_token == tokenizer.end_token == 257
    assert tokenizer.sequence("ab")[0] == 257
    assert len(tokenizer.sequence("ab")) == 3


def test_sequence_without_start_or_end_token_is_text_alone(tmp_path: Path) -> None:
    tokenizer = Tokenizer(save(tmp_path), 300)
    assert tokenizer.start_token is None
    assert tokenizer.end_token is None
    assert len(tokenizer.sequence("ab")) == 2


def test_empty_text(small: Tokenizer) -> None:
    with pytest.raises(DocumentError, match="no tokens"):
        small.sequence("")


def test_a_long_document_is_no_reason_to_warn(tmp_path: Path) -> None:
    folder = save(tmp_path, bos_token="<s>")
    values = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**values, "model_max_length": 16}))
    assert len(Tokenizer(folder, 300).sequence("word " * 1000)) == 5001


def test_digest_is_that_of_what_makes_ids(tmp_path: Path, small_backbone: Callable[[str], Path]) -> None:
    digests = {
        "plain": Tokenizer(save(tmp_path / "plain", bos_token="<s>"), 400).digest(),
        "one more entry": Tokenizer(save(tmp_path / "more", {"xyz": 258}, bos_token="<s>"), 400).digest(),
        "another id": Tokenizer(save(tmp_path / "other", {"xyz": 259}, bos_token="<s>"), 400).digest(),
        "another start": Tokenizer(save(tmp_path / "start", bos_token="</s>"), 400).digest(),
        "no start": Tokenizer(save(tmp_path / "none"), 400).digest(),
        "small": Tokenizer(small_backbone("llama"), 400).digest(),
    }
    assert len(set(digests.values())) == len(digests)
    assert Tokenizer(save(tmp_path / "again", bos_token="<s>"), 999).digest() == digests["plain"]


def test_digest_of_merges(tmp_path: Path) -> None:
    for name, merges in (("one", [("a", "b")]), ("other", [("b", "a")])):
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {symbol: index for index, symbol in enumerate([*alphabet, "ab", "ba"])}
        raw = RawTokenizer(models.BPE(vocab=vocabulary, merges=merges))
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        PreTrainedTokenizerFast(tokenizer_object=raw).save_pretrained(tmp_path / name)
    assert Tokenizer(tmp_path / "one", 300).digest() != Tokenizer(tmp_path / "other", 300).digest()


def test_digest_does_not_change_when_the_tokenizer_is_used_or_saved(small: Tokenizer, tmp_path: Path) -> None:
    before = small.digest()
    small.sequence("some text")
    small.save(tmp_path)
    assert small.digest() == before == Tokenizer(tmp_path, 257).digest()


@pytest.mark.parametrize(("vocab_size", "fits"), [(256, False), (257, True), (300, True)])
def test_vocabulary_larger_than_the_backbone_s(
    vocab_size: int, fits: bool, small_backbone: Callable[[str], Path]
) -> None:
    folder = small_backbone("llama")
    if fits:
        Tokenizer(folder, vocab_size)
        return
    with pytest.raises(CheckpointError, match=r"up to 256.*only 256") as caught:
        Tokenizer(folder, vocab_size)
    assert str(folder) in str(caught.value)


DAMAGED = ["", "{", "[]", '{"version": "1.0"}', '{"version": "1.0", "added_tokens": [], "model": {"type": "none"}}']


@pytest.mark.parametrize("text", [None, *DAMAGED])
def test_no_tokenizer_there(text: str | None, tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    if text is None:
        (tmp_path / "tokenizer.json").unlink()
        (tmp_path / "tokenizer_config.json").unlink()
    else:
        (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match="tokenizer") as caught:
        Tokenizer(tmp_path, 257)
    assert str(tmp_path) in str(caught.value)


def test_what_a_long_text_took_goes_back_to_the_system(small: Tokenizer) -> None:
    """Check peak memory: the tokens stay, and the temporary memory, about a hundred times as much, is released."""
    process = psutil.Process()
    small.sequence("warm")
    before = process.memory_info().rss
    sequence = small.sequence("The mill stood by the river. " * 20_000)
    assert len(sequence) > LONG_TOKENS
    assert process.memory_info().rss - before < 5 * sequence.nbytes


# --- special tokens that a text spells ------------------------------------------------------------------------------

SPELLED = [
    "ab",
    "<s>ab",
    "  <s>ab",
    "a<s>b</s>\n<s>c",
    "<s><s>ab",
    "</s>ab</s>",
    "<s",
    "ab <|im_start|>x",
]


@pytest.fixture(scope="module", params=["bos", "eos alone", "neither"])
def spelling(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    special = {"bos": {"bos_token": "<s>", "eos_token": "</s>"}, "eos alone": {"eos_token": "</s>"}, "neither": {}}
    return save(tmp_path_factory.mktemp("spelling"), **special[request.param])


@pytest.mark.parametrize("text", SPELLED)
@pytest.mark.parametrize("rule", ["parse", "text"])
def test_sequence_of_spelled_special_tokens_is_that_of_plain_transformers(
    spelling: Path, rule: SpecialTokens, text: str
) -> None:
    plain = AutoTokenizer.from_pretrained(str(spelling))
    ids = plain(text, add_special_tokens=False, split_special_tokens=rule == "text")["input_ids"]
    tokenizer = Tokenizer(spelling, 300, special_tokens=rule)
    start = [] if tokenizer.start_token in (None, ids[0]) else [tokenizer.start_token]
    assert tokenizer.tokens(text).tolist() == ids
    assert tokenizer.sequence(text).tolist() == start + ids
    assert tokenizer.encode(text, start=True) == start + ids
    assert tokenizer.encode(text, start=False) == ids


@pytest.mark.parametrize("text", SPELLED)
@pytest.mark.parametrize("rule", ["parse", "text"])
def test_encode_of_spelled_start_tokens_adds_no_second_one(tmp_path: Path, rule: SpecialTokens, text: str) -> None:
    tokenizer = Tokenizer(save(tmp_path, bos_token="<s>", eos_token="</s>"), 300, special_tokens=rule)
    ids = tokenizer.tokens(text).tolist()
    # this tokenizer adds both by itself, like Llama's
    assert tokenizer.encode(text) == (ids if ids[0] == 256 else [256, *ids, 257])


def test_sequence_of_a_start_token_alone_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer(save(tmp_path, bos_token="<s>"), 300)
    with pytest.raises(DocumentError, match="no tokens but the start token"):
        tokenizer.sequence("<s>")
    assert len(Tokenizer(tmp_path, 300, special_tokens="text").sequence("<s>")) == 4


def test_digest_of_either_rule_is_the_same(tmp_path: Path) -> None:
    parse, text = (Tokenizer(save(tmp_path, bos_token="<s>"), 300, special_tokens=rule) for rule in ("parse", "text"))
    before = parse.digest()
    text.sequence("<s>ab")
    assert text.digest() == before == parse.digest()
