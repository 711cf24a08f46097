# SPDX-License-Identifier: Apache-2.0
"""Checks that all workers hold the same model, and that this model wrote the store."""

from typing import Any

from longmem.errors import ClusterError
from longmem.model.source import ModelDescription
from longmem.runtime.executor import PUT_SEGMENTS, Stage
from longmem.store.base import check_fingerprint
from longmem.stored_format import blocks_at_once
from longmem.types import Fingerprint


class ModelCheck:
    """Compares the fingerprints that workers report when they are ready, and keeps the model's description."""

    def __init__(self) -> None:
        self._description: ModelDescription | None = None
        self._model: Fingerprint | None = None
        self._stored: Fingerprint | None = None

    def __call__(self, stage: Stage, opened: Any) -> None:
        """Raise ClusterError if a worker holds another model, FingerprintError if another model wrote the store."""
        fingerprint: Fingerprint | None = opened.fingerprint if stage == "encode" else opened
        if stage == "encode":
            self._description = self._description or opened
        if stage == "put":
            self._stored = fingerprint
        elif self._model is None:
            self._model = fingerprint
        elif fingerprint is not None and fingerprint != self._model:
            raise ClusterError(
                "the workers hold different models (one worker != another): "
                f"{self._model.differences(fingerprint)}; put the same model on every node"
            )
        if self._model is not None:
            check_fingerprint(self._stored, self._model)

    @property
    def put_segments(self) -> int:
        """Return how many blocks of this model a store commits together: fewer where they are large."""
        return PUT_SEGMENTS if self._model is None else blocks_at_once(self._model.block_bytes, PUT_SEGMENTS)

    @property
    def one_pass(self) -> bool:
        """True if the next segment of a document is encoded once the one before is stored."""
        return self._model is not None and bool(self._model.encoded_behind)

    def describe(self) -> ModelDescription:
        assert self._description is not None, "no encoder was ever ready"
        return self._description
