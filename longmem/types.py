# SPDX-License-Identifier: Apache-2.0
"""Data types that pass between the stages.

    text → Document → Segment → EncodedSegment(KVBlock, state) → [store] → MemoryView → SegmentScore

Axis names, used in every shape of the project:

    tokens      positions of one segment, or of one query batch
    chunks      chunks of a memory view, oldest first
    chunk       positions inside one chunk (`chunk_tokens` of them)
    heads       query heads of the backbone's attention
    kv_heads    key/value heads (fewer than heads in grouped-query attention)
    stored_heads  key/value heads of all stored layers, by layer: kv_heads where one layer is stored
    head_dim    width of one head
    slots       retrieved chunks per token and head (`top_k / chunk_tokens`)
    hidden      width of the residual stream

Arrays sent between processes are NumPy, which Ray transfers without a copy. Tensors are torch.

Positions count the tokens of the document's *sequence*. It is `[bos] + tokens of the text` if the tokenizer has a
beginning- or end-of-text token, otherwise only the tokens of the text. All intervals are half-open.
"""

from dataclasses import dataclass

import numpy as np
import xxhash
from jaxtyping import Float32, Int32, Int64, Shaped, UInt8

from longmem.config import KvDtype
from longmem.stored_format import token_bytes

DEFAULT_NAMESPACE = "default"
PLACES = 4
"""Places kept of what one token read, the heaviest ones."""

KVArray = Shaped[np.ndarray, "tokens stored_heads width"]
"""Stored keys or values (`longmem.kv_format`): float16, float32, bfloat16 as uint16 bits, or int8, whose rows are
wider than `head_dim` by their scale."""


@dataclass(frozen=True, order=True)
class DocumentKey:
    """Name of one document's memory. Both parts are free text: they are never used in a path or query."""

    namespace: str
    document: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.document}"


@dataclass(frozen=True, repr=False)
class Document:
    """Input text with its id and source."""

    id: str
    text: str
    source: str

    def __repr__(self) -> str:
        # a text may be a whole book
        return f"Document({self.id!r}, {len(self.text):,} characters of {self.source})"

    @property
    def num_bytes(self) -> int:
        """Length of the text in UTF-8 bytes."""
        return len(self.text.encode("utf-8"))

    @property
    def digest(self) -> str:
        """XXH3-128 of the text."""
        return xxhash.xxh3_128_hexdigest(self.text.encode("utf-8"))

    @property
    def num_words(self) -> int:
        """Number of whitespace-separated words, the denominator of word-level perplexity (PG-19 convention)."""
        return len(self.text.split())


@dataclass(frozen=True)
class Segment:
    """One window of a document's sequence: the model reads `tokens` and predicts `targets`.

    `targets[i]` is the token after `tokens[i]`. The last position therefore predicts the first token of the *next*
    segment, and every token of a document is predicted exactly once. Only the last segment of a document has one target
    fewer than tokens. Segments that are only stored have no targets, and cost no logits.
    """

    key: DocumentKey
    index: int
    start_token: int
    tokens: Int32[np.ndarray, " tokens"]
    targets: Int32[np.ndarray, " targets"]
    keep_readings: bool = False
    """True where the score also tells what each target read (`SegmentScore.readings`)."""

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def end_token(self) -> int:
        return self.start_token + len(self.tokens)

    def tokens_checksum(self) -> str:
        """Return the checksum that `KVBlock.tokens_checksum` gives for the encoded segment."""
        return _tokens_checksum(self.index, self.start_token, self.tokens)


@dataclass(frozen=True)
class Fingerprint:
    """Identity of a store's content: keys and values are comparable only if all fields are equal."""

    backbone: str
    """Hash of the backbone's weights as loaded."""
    tokenizer: str
    """Hash of the tokenizer."""
    memory_layer: int
    kv_heads: int
    head_dim: int
    chunk_tokens: int
    segment_tokens: int
    """Length of the local context, on which keys depend."""
    compute_dtype: str
    kv_dtype: KvDtype
    num_layers: int = 1
    """Number of stored layers: the memory layer alone, or all layers of the backbone."""
    sink: bool = False
    """True where the start token was put in front of every segment."""
    encoded_behind: str = ""
    """Memory that segments were encoded behind, in one pass; empty where each was encoded alone."""

    @property
    def stored_heads(self) -> int:
        """Heads of one stored token: those of all stored layers, by layer."""
        return self.num_layers * self.kv_heads

    @property
    def block_bytes(self) -> int:
        """Bytes of the keys and values of a full segment as stored."""
        return self.segment_tokens * token_bytes(self.stored_heads, self.head_dim, self.kv_dtype)

    def differences(self, other: "Fingerprint") -> str:
        """Return the fields that differ, as `name: ours != theirs; ...` (empty if none)."""
        return "; ".join(
            f"{name}: {mine!r} != {theirs!r}"
            for name, mine in vars(self).items()
            if mine != (theirs := getattr(other, name))
        )


@dataclass(frozen=True)
class KVBlock:
    """Keys and values of one segment at the stored layers, before position encoding, with their token ids."""

    key: DocumentKey
    segment: int
    start_token: int
    tokens: Int32[np.ndarray, " tokens"]
    keys: KVArray
    values: KVArray
    fingerprint: Fingerprint

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def end_token(self) -> int:
        return self.start_token + len(self.tokens)

    @property
    def num_bytes(self) -> int:
        return self.tokens.nbytes + self.keys.nbytes + self.values.nbytes

    def checksum(self) -> str:
        """Return the XXH3-128 of position, token ids, keys and values."""
        digest = xxhash.xxh3_128()
        digest.update(f"{self.segment},{self.start_token},{self.keys.dtype},{self.keys.shape}".encode())
        for array in (self.tokens, self.keys, self.values):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def tokens_checksum(self) -> str:
        """Return the XXH3-128 of position and token ids, which must be equal when a block is written again."""
        return _tokens_checksum(self.segment, self.start_token, self.tokens)


@dataclass(frozen=True)
class PutReceipt:
    """Acknowledgement of a write."""

    key: DocumentKey
    segment: int
    num_bytes: int
    duplicate: bool
    """True if the store already held this block and kept the first one."""


@dataclass(frozen=True)
class EncodedSegment:
    """Output of encoding: the block to store, the state that scoring begins with, and the backbone's scores."""

    block: KVBlock
    state: Shaped[np.ndarray, "parts tokens hidden"]
    """State of the SideNet (float32, or bfloat16 as uint16)."""
    backbone_logprobs: Float32[np.ndarray, " targets"]
    """Natural-log probability of every target under the frozen backbone: alone, or in one pass behind its memory."""
    read_memory: bool = False
    """True where the backbone read the memory while it encoded (`one_pass`)."""

    @property
    def baseline(self) -> Float32[np.ndarray, " targets"] | None:
        """Return `backbone_logprobs` where they are those of the backbone alone; None in one pass."""
        return None if self.read_memory else self.backbone_logprobs

    @property
    def num_bytes(self) -> int:
        """Bytes held until the segment is stored and scored."""
        return self.block.num_bytes + self.state.nbytes


@dataclass(frozen=True)
class RetrievalStats:
    """Retrieval statistics of one segment; means are over (token, head, filled slot)."""

    memory_tokens: int
    """Number of memory tokens visible to the segment."""
    gate_mean: float
    """Mean over heads of g_h; 0.0 if the memory was empty and the gate was not used."""
    copy_mean: float
    """Mean over tokens of λ, the copy head's share of the output; 0.0 without memory or copy head."""
    distance_mean: float
    """Mean distance in tokens from the reading token back to the start of a retrieved chunk; 0.0 if none."""
    empty_slots: int
    """Number of slots without a chunk."""
    distance_histogram: Int64[np.ndarray, " bins"]
    """Retrieved chunks by distance; bin b counts distances in [2^b, 2^(b+1)), bin 0 also distance 1 and below."""
    chunks_digest: str
    """XXH3-64 of all retrieved chunk positions, in order: equal digests mean equal retrieval."""


@dataclass(frozen=True)
class TokenReadings:
    """Places in memory that the prediction of each target of a segment read, heaviest first, and how far they were
    trusted.

    A place is the position of a token whose content was taken: the copied token, or without a copy head the one whose
    value was attended to. A place that several heads found is one place with the sum of their weights.
    """

    copy_share: Float32[np.ndarray, " targets"]
    """Share λ of the copy head in the output; 0 without memory or copy head."""
    uncopied: Float32[np.ndarray, " targets"]
    """Natural-log probability of each target before copies are mixed in."""
    copied: Float32[np.ndarray, " targets"]
    """Summed weight of all places that hold the target: its probability under the copy distribution."""
    places: Int32[np.ndarray, "targets places"]
    """Positions in the document; -1 where fewer places were read."""
    weights: Float32[np.ndarray, "targets places"]
    """Weights in the copy distribution, or mean attention weights over heads; all places together weigh 1."""
    runs: UInt8[np.ndarray, "targets places"]
    """Number of equal tokens before the place and before the target, counted up to 16."""
    blocks: Int32[np.ndarray, "blocks 2"]
    """Half-open intervals of positions that the segment read at every layer; empty for a SideNet."""


@dataclass(frozen=True)
class SegmentScore:
    """Per-token log-probabilities of one segment with memory, and its retrieval statistics."""

    key: DocumentKey
    segment: int
    logprobs: Float32[np.ndarray, " targets"]
    retrieval: RetrievalStats
    readings: TokenReadings | None = None
    """Readings of the targets; None unless the segment asks for it (`Segment.keep_readings`)."""


@dataclass(frozen=True)
class SegmentInfo:
    """Catalogue entry of one stored block."""

    key: DocumentKey
    segment: int
    start_token: int
    num_tokens: int
    checksum: str
    tokens_checksum: str
    num_bytes: int

    @property
    def end_token(self) -> int:
        return self.start_token + self.num_tokens


def _tokens_checksum(segment: int, start_token: int, tokens: np.ndarray) -> str:
    digest = xxhash.xxh3_128(f"{segment},{start_token}".encode())
    digest.update(np.ascontiguousarray(tokens).data)
    return digest.hexdigest()
