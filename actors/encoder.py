"""The encoder pool: actors that hold a model and turn segments into blocks and taps, with no state between segments."""

import ray
import torch

from actors.outcome import Outcome, attempt
from actors.worker import HEALTH, UNTIL_DONE, opened
from longmem.executor import EncodeReceipt
from longmem.model import LongMem
from longmem.model_source import ModelSource, describe
from longmem.types import EncodedSegment, KVBlock, Segment


@ray.remote(concurrency_groups=HEALTH)
class EncoderActor:
    """One replica of the encoder pool."""

    def __init__(self, source: ModelSource, rank: int, threads: int) -> None:
        torch.set_num_threads(threads)
        self._source = source
        self._rank = rank
        self._threads = threads
        self._model: LongMem | None = None

    def __repr__(self) -> str:
        return f"Encoder(rank={self._rank}, model={self._source.source}, threads={self._threads})"

    def _loaded(self) -> LongMem:
        # at first use, not in __init__: an error then reaches the caller with its type, and a restarted actor loads
        # its model again by itself
        if self._model is None:
            self._model = self._source.open()
        return self._model

    @ray.method(max_task_retries=UNTIL_DONE)
    def ready(self) -> Outcome:
        """Load the model; the result is a WorkerInfo with the ModelDescription."""
        return opened(lambda: describe(self._loaded()))

    @ray.method(concurrency_group="health")
    def alive(self) -> None:
        """Answers unless the process is stopped or gone."""

    def encode(self, segment: Segment) -> tuple[Outcome, KVBlock | None, object]:
        """Returned as three objects: the receipt goes to the driver, block and taps only to who needs them."""
        outcome = attempt(lambda: self._loaded().encode(segment))
        encoded: EncodedSegment | None = outcome.result
        if encoded is None:
            return outcome, None, None
        receipt = EncodeReceipt(encoded.backbone_logprobs, encoded.num_bytes)
        return Outcome(receipt, None, outcome.busy_s), encoded.block, encoded.taps
