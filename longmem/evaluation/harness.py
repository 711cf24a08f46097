# SPDX-License-Identifier: Apache-2.0
"""The model `longmem` of the LM Evaluation Harness: its three request types, answered with memory or without.

Start and end tokens follow the harness's own Hugging Face model. So with `memory=off` the numbers are those of the
plain backbone wherever the context fits.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from longmem.config import Dtype
from longmem.errors import ConfigError
from longmem.memory.context import read_blocks
from longmem.memory.sliding_window import SlidingWindow
from longmem.model.source import REFERENCE_MODEL, ModelSource
from longmem.scoring.batch import BATCH_TOKENS
from longmem.scoring.generate import BackboneDecoder, Decoder, Sampling, decode
from longmem.scoring.loglikelihood import Continuation, ContinuationScorer
from longmem.scoring.text import score_sequence
from longmem.store.base import check_fingerprint
from longmem.store.config import MemoryStore
from longmem.store.document import DocumentMemory
from longmem.types import DEFAULT_NAMESPACE

MAX_GEN_TOKS = 256
"""Default number of new tokens, equal to that of the harness's other models."""


@register_model("longmem")
class HarnessModel(TemplateLM):  # type: ignore[misc]
    """A LongMem, or a plain backbone with a new SideNet.

    `loglikelihood` and `generate_until` read a request's own context; the part before the last segment is read through
    memory. `loglikelihood_rolling` keeps a document's memory across its segments; documents do not share memory. With
    `store` and `document` every request also reads that stored document (demonstrations, a manual). Nothing is written
    to the store.
    """

    def __init__(
        self,
        pretrained: str = str(REFERENCE_MODEL),
        memory: str = "on",
        store: str | None = None,
        document: str | None = None,
        namespace: str = DEFAULT_NAMESPACE,
        batch_size: int | str = "auto",
        max_batch_size: int | None = None,
        dtype: Dtype = "float32",
        device: str | None = None,
        search: str = "auto",
        add_bos_token: bool | None = None,
        adapter: str | None = None,
        **settings: Any,
    ) -> None:
        """Open the model.

        Args:
            pretrained: LongMem folder, Hugging Face folder or hub id.
            adapter: folder of a PEFT adapter to merge into a Hugging Face folder.
            memory: `on`, or `off` for the backbone's own numbers.
            batch_size: number of full segments computed together.
            add_bos_token: overrides the tokenizer's own default.
            settings: fields of LongMemConfig.

        Raises ConfigError, ModelError and its kinds, StoreError and its kinds.
        """
        super().__init__()
        if memory not in ("on", "off"):
            raise ConfigError(f"memory must be on or off, got {memory!r}")
        if (store is None) != (document is None):
            raise ConfigError(f"store and document belong together, got store={store!r} and document={document!r}")
        if memory == "off" and store is not None:
            raise ConfigError("memory=off reads no document; leave store and document out")
        self.model = ModelSource(
            str(pretrained), dtype=dtype, device=device or "cpu", search=search, settings=settings, adapter=adapter
        ).open()
        self._name = str(pretrained)
        self._memory = memory == "on"
        self._add_bos_token = add_bos_token
        self._document = None if store is None or document is None else self._open(store, namespace, document)
        self._scorer = ContinuationScorer(
            self.model,
            memory=self._memory,
            document=[] if self._document is None else read_blocks(self._document, SlidingWindow.of(self.model.config)),
            batch_tokens=_batch_tokens(batch_size, max_batch_size, self.model.config.segment_tokens),
        )

    def _open(self, uri: str, namespace: str, name: str) -> DocumentMemory:
        store = MemoryStore.open(uri)
        check_fingerprint(store.fingerprint(), self.model.fingerprint)
        memory = store.document(name, namespace).as_read_only()
        if not memory.segments:
            held = ", ".join(map(str, store.documents()[:5])) or "none"
            raise ConfigError(f"{uri} holds no document {memory.key}; it holds {held}")
        return memory

    @property
    def tokenizer_name(self) -> str:
        """Key that separates the harness's caches of tokenised requests."""
        return self._name.replace("/", "__")

    @property
    def eot_token_id(self) -> int:
        end = self.model.tokenizer.end_token
        return self.prefix_token_id if end is None else end

    @property
    def prefix_token_id(self) -> int:
        """Token that replaces an empty context. Raises ConfigError when the tokenizer has none."""
        start = self.model.tokenizer.start_token
        if start is None:
            raise ConfigError(f"the tokenizer of {self._name} has no start and no end token to begin a text with")
        return start

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_other: Any) -> list[int]:
        return self.model.tokenizer.encode(
            string, self._add_bos_token if add_special_tokens is None else add_special_tokens
        )

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Score continuations. Raises DocumentError for an empty continuation, NumericError."""
        pairs = []
        for context, continuation in (request.args for request in requests):
            context_tokens, targets = (
                self._encode_pair(context, continuation) if context else ([], self.tok_encode(continuation, False))
            )
            # a continuation that begins with the start token needs no second one
            if not context_tokens and targets[:1] == [self.prefix_token_id]:
                context_tokens, targets = targets[:1], targets[1:]
            pairs.append(((context, continuation), context_tokens or [self.prefix_token_id], targets))
        return self._loglikelihood_tokens(pairs, disable_tqdm)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        **_other: Any,
    ) -> list[tuple[float, bool]]:
        """Score token requests. A request without texts is part of a longer one and does not enter the harness's
        cache."""
        given = [
            Continuation(f"request {index}", _tokens(context), _tokens(targets))
            for index, (_, context, targets) in enumerate(requests)
        ]
        results: dict[int, tuple[float, bool]] = {}
        with tqdm(total=len(given), desc="loglikelihood", disable=disable_tqdm) as progress:
            for index, score in self._scorer.score(given):
                results[index] = score.logprob, score.greedy
                if (texts := requests[index][0]) is not None:
                    self.cache_hook.add_partial("loglikelihood", texts, results[index])
                progress.update()
        return [results[index] for index in range(len(given))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Score whole documents. Raises NumericError."""
        totals = []
        for request in tqdm(requests, desc="loglikelihood_rolling", disable=disable_tqdm):
            (text,) = request.args
            totals.append(self._rolling(self.tok_encode(text)))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), totals[-1])
        return totals

    def _rolling(self, tokens: list[int]) -> float:
        """Return the log-probability of a whole document, each token predicted once; 0 for a document without
        tokens."""
        # a text that begins with the start token needs no second one
        if tokens[:1] == [self.prefix_token_id]:
            tokens = tokens[1:]
        if not tokens:
            return 0.0
        if self._memory:
            scores = score_sequence(self.model, _tokens([self.prefix_token_id, *tokens]), self._document)
            return float(scores.logprobs.sum(dtype=np.float64))
        windows = get_rolling_token_windows(tokens, self.prefix_token_id, self.model.config.segment_tokens, 1)
        pairs = [(None, *make_disjoint_window(window)) for window in windows]
        return sum(total for total, _ in self._loglikelihood_tokens(pairs, disable_tqdm=True))

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate continuations. Raises ConfigError for unsupported generation options."""
        texts = []
        for request in tqdm(requests, desc="generate_until", disable=disable_tqdm):
            context, arguments = request.args
            texts.append(self._generate(context, dict(normalize_gen_kwargs(arguments, MAX_GEN_TOKS))))
            self.cache_hook.add_partial("generate_until", request.args, texts[-1])
        return texts

    def _generate(self, context: str, arguments: dict[str, Any]) -> str:
        until, max_new = arguments.pop("until"), arguments.pop("max_gen_toks")
        sampled, temperature = arguments.pop("do_sample"), arguments.pop("temperature", 1.0)
        sampling = Sampling(
            temperature=temperature if sampled else 0.0,
            top_p=arguments.pop("top_p", 1.0),
            seed=arguments.pop("seed", 0),
        )
        if arguments:
            raise ConfigError(
                f"generation knows until, max_gen_toks, do_sample, temperature, top_p and seed; got {sorted(arguments)}"
            )
        tokens = self.tok_encode(context) or [self.prefix_token_id]
        feed = Decoder(self.model, self._document, prompt=True).feed
        if not self._memory:
            room = self.model.config.segment_tokens - max_new
            if room < 1:
                raise ConfigError(
                    f"max_gen_toks={max_new} leaves no room for a prompt in {self.model.config.segment_tokens} tokens"
                )
            feed, tokens = BackboneDecoder(self.model).feed, tokens[-room:]
        return decode(feed, tokens, self.model.tokenizer, max_new, sampling, [stop for stop in until if stop])


def _tokens(ids: list[int]) -> np.ndarray:
    return np.asarray(ids, dtype=np.int32)


def _batch_tokens(batch_size: int | str, max_batch_size: int | None, segment_tokens: int) -> int:
    if batch_size == "auto":
        return BATCH_TOKENS if max_batch_size is None else min(BATCH_TOKENS, max_batch_size * segment_tokens)
    try:
        rows = int(batch_size)
    except ValueError:
        rows = 0
    if rows < 1:
        raise ConfigError(f"batch_size must be auto or a whole number of at least 1, got {batch_size!r}")
    return rows * segment_tokens
