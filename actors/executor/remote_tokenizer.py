# SPDX-License-Identifier: Apache-2.0
"""Calls the tokenizer of encoders from a driver.

The driver then imports neither torch nor transformers, which takes as long as a worker's start, and needs none of the
model's files.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import count
from threading import Event
from typing import Any

import numpy as np
import ray
import ray.exceptions
from jaxtyping import Int32

from actors.errors import failure_of, translated
from actors.result import TaskResult
from actors.workers.encoder import TokenizedText
from actors.workers.pools import ActorPool
from longmem.errors import ClusterError, DocumentError
from longmem.model.source import ModelDescription
from longmem.text.tokenizer import AbstractTokenizer
from longmem.wording import counted

POLL_S = 0.2
"""Seconds between checks whether a waiting call was stopped or the cluster lost."""


class RemoteTokenizer(AbstractTokenizer):
    """Tokenizer in encoder processes, which tokenise next to their other tasks.

    Its owner must check the workers meanwhile: a hanging encoder is killed by that, and its next process is asked. The
    death of an encoder counts as a try of the segment that it encoded, too, because its record names that task alone.
    """

    def __init__(
        self,
        encoders: ActorPool,
        model: ModelDescription,
        explaining: Callable[[], AbstractContextManager[None]],
        deaths: int,
    ) -> None:
        """`explaining` returns a context that replaces errors of calls when the cluster is lost.

        A text is tried on the next encoder after `deaths` of one encoder. They must be more than the tries of a
        segment, which may be what ends the encoder.
        """
        self._encoders = encoders
        self._model = model
        self._explaining = explaining
        self._deaths = deaths
        self._turns = count()
        self._stopped = Event()

    @property
    def start_token(self) -> int | None:
        return self._model.start_token

    @property
    def gives_spans(self) -> bool:
        return self._model.gives_spans

    def sequence(self, text: str) -> Int32[np.ndarray, " tokens"]:
        return self._tokenized(text, with_spans=False).sequence

    def sequence_with_spans(self, text: str) -> tuple[Int32[np.ndarray, " tokens"], Int32[np.ndarray, "tokens 2"]]:
        assert self.gives_spans, "this tokenizer gives no character offsets"
        tokenized = self._tokenized(text, with_spans=True)
        assert tokenized.spans is not None, "an encoder ignored with_spans"
        return tokenized.sequence, tokenized.spans

    def stop(self) -> None:
        self._stopped.set()

    def _tokenized(self, text: str, with_spans: bool) -> TokenizedText:
        """Raise the tokenizer's own errors, DocumentError for a text whose calls end every encoder, and ClusterError
        when no encoder is left."""
        workers = self._encoders.usable or self._encoders.workers
        turn = next(self._turns)
        ended: ray.exceptions.RayError | None = None
        with translated("tokenising a document"):
            for offset in range(len(workers)):
                answer = self._ask(workers[(turn + offset) % len(workers)].actor, text, with_spans)
                if isinstance(answer, TokenizedText):
                    return answer
                ended = answer or ended
        if ended is None:
            raise ClusterError(
                "no encoder is left to tokenise a document; see `ray status`, then continue with --resume"
            )
        raise DocumentError(
            f"each encoder ended {counted(self._deaths, 'time')} while it tokenised this text of "
            f"{counted(len(text), 'character')}; divide the text, or give the encoders more memory"
        ) from ended

    def _ask(self, actor: Any, text: str, with_spans: bool) -> TokenizedText | ray.exceptions.RayError | None:
        """Return one encoder's tokens; the last error if it ended at every call, and None if it ended for good."""
        ended: ray.exceptions.RayError | None = None
        for _ in range(self._deaths):
            # no retries of Ray's own: while an actor restarts, it spends four in 3 s (Ray 2.60)
            call = actor.tokenize.options(max_task_retries=0)
            try:
                outcome = self._result(call.remote(text, with_spans))
            except ray.exceptions.RayError as error:
                if failure_of(error) not in ("lost worker", "lost objects"):
                    raise
                if not self._restarts(actor):
                    return None
                ended = error
                continue
            if outcome.error is not None:
                raise outcome.error
            tokenized: TokenizedText = outcome.result
            return tokenized
        return ended

    def _restarts(self, actor: Any) -> bool:
        """Block until an encoder that was lost is back, and return True; return False if it ended for good."""
        try:
            self._result(actor.ready.remote())
        except ray.exceptions.RayError:
            return False
        return True

    def _result(self, ref: ray.ObjectRef) -> TaskResult:
        while True:
            with self._explaining():
                if ray.wait([ref], timeout=POLL_S)[0]:
                    result: TaskResult = ray.get(ref)
                    return result
            if self._stopped.is_set():
                raise ClusterError("tokenising was stopped, because its job has ended")
