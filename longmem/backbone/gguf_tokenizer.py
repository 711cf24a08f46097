# SPDX-License-Identifier: Apache-2.0
"""The tokenizer inside a GGUF file, as a Hugging Face tokenizer with the ids of the original.

A GGUF file has the vocabulary and the merges, but only the name of the rule that cuts a text before merging.
transformers cuts by GPT-2's rule where it does not know the name, without a warning, and then ids differ. The rules
here are those of the `tokenizer.json` of each family. Any other name is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from longmem.errors import CheckpointError

CONTROL, USER_DEFINED, UNUSED = 3, 4, 5
"""Token types of the format. Unused tokens fill the vocabulary up to the width of the embedding."""

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class TokenizerRule:
    """Settings of a byte-level BPE tokenizer that its GGUF file only names."""

    pre_tokenizer: pre_tokenizers.PreTokenizer
    normalizer: normalizers.Normalizer | None = None
    ignore_merges: bool = False
    """True where a word that is in the vocabulary is one token, whatever its merges give."""
    adds_bos: bool = False
    """True where the tokenizer itself puts the beginning-of-text token in front."""
    start: str | None = None
    """Token in front of every document of the pretraining; None: the beginning-of-text token of the file."""


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)

TOKENIZER_RULES: dict[str, TokenizerRule] = {
    "gpt-2": TokenizerRule(_GPT2),
    "llama-bpe": TokenizerRule(
        _split(rf"{_CONTRACTION}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"), ignore_merges=True, adds_bos=True
    ),
    "qwen2": TokenizerRule(_split(rf"{_CONTRACTION}|{_WORDS}|\p{{N}}|{_REST}"), normalizer=normalizers.NFC()),
    # instruction-tuned files name <|im_start|>, which begins a turn of a chat, as beginning of text
    "smollm": TokenizerRule(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _GPT2]), start="<|endoftext|>"
    ),
}
"""Rules by the name in `tokenizer.ggml.pre`."""


def gguf_tokenizer(source: object, metadata: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """Return the tokenizer that the metadata of a GGUF file describes.

    Raises CheckpointError, naming `source`, for a kind or a rule that is not known, and for a damaged vocabulary.
    """
    rule = _rule(source, metadata)
    tokens, merges = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.merges")
    types = metadata.get("tokenizer.ggml.token_type")
    if not tokens or merges is None or types is None or not len(types) == len(tokens) == len(set(tokens)):
        raise CheckpointError(
            f"the tokenizer of {source} is incomplete: expected distinct tokens, as many token types, and merges; "
            "download the file again"
        )
    kinds = dict(zip(tokens, types, strict=True))
    vocabulary = {token: index for index, token in enumerate(tokens) if kinds[token] != UNUSED}
    model = models.BPE(
        vocab=vocabulary, merges=[tuple(merge.split(" ")) for merge in merges], ignore_merges=rule.ignore_merges
    )
    backend = Tokenizer(model)
    backend.pre_tokenizer = rule.pre_tokenizer
    if rule.normalizer is not None:
        backend.normalizer = rule.normalizer
    backend.decoder = decoders.ByteLevel()
    for kind, special in ((CONTROL, True), (USER_DEFINED, False)):
        added = [AddedToken(token, normalized=False, special=special) for token in tokens if kinds[token] == kind]
        (backend.add_special_tokens if special else backend.add_tokens)(added)

    def named(name: str) -> str | None:
        index = metadata.get(f"tokenizer.ggml.{name}_token_id")
        return None if index is None else tokens[index]

    bos = named("bos") if rule.start is None else rule.start
    if bos is not None and bos not in vocabulary:
        raise CheckpointError(
            f"the tokenizer of {source} lacks the token {bos!r} that starts a document; download the file again"
        )
    if bos is not None and metadata.get("tokenizer.ggml.add_bos_token", rule.adds_bos):
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, vocabulary[bos])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token=named("eos"),
        pad_token=named("padding"),
        chat_template=metadata.get("tokenizer.chat_template"),
    )


def _rule(source: object, metadata: Mapping[str, Any]) -> TokenizerRule:
    kind, name = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind == "gpt2" and name in TOKENIZER_RULES:
        return TOKENIZER_RULES[name]
    raise CheckpointError(
        f"the tokenizer of {source} (model {kind!r}, pre {name!r}) is not supported, because its ids could differ from "
        f"those that the model was trained with: expected model 'gpt2' (byte-level BPE) and pre "
        f"{', '.join(TOKENIZER_RULES)}; give a folder of the same model with *.safetensors and tokenizer.json"
    )
