# SPDX-License-Identifier: Apache-2.0
"""All errors for users, as one tree.

LongMemError (a ValueError: the user can fix it)
├── ConfigError            a setting is invalid, by itself or together with another one
├── DocumentError          one input document cannot be used; the job continues with the others
│   └── QuarantineError        tasks of the document failed too often; it is quarantined
├── ModelError             a model folder cannot be loaded
│   ├── UnknownFamilyError     the backbone's architecture is not supported
│   └── CheckpointError        weights are missing, corrupt, or belong to another model
├── NumericError           NaN or infinity instead of a finite number
├── StoreError             an operation of the memory store failed
│   ├── FingerprintError       the store was written by another model or with other settings
│   ├── ConflictError          the document already holds other tokens at that position
│   ├── MissingBlockError      a requested block is not stored
│   ├── QuotaError             the byte limit of the store is reached
│   └── CorruptionError        stored bytes fail their checksum, or tables are damaged
├── OutputError            the output folder cannot be used or written
└── ClusterError           Ray cannot be reached, or cannot hold the job
    ├── LostClusterError       the connected cluster has ended, or does not respond
    └── RequestTimeoutError    a service did not answer a request in time

Broken invariants of this project are `assert`s with a message, never one of these. Exceptions of other libraries are
translated in the one file that imports the library.
"""

from longmem.system.redaction import redacted

__all__ = [
    "CheckpointError",
    "ClusterError",
    "ConfigError",
    "ConflictError",
    "CorruptionError",
    "DocumentError",
    "FingerprintError",
    "LongMemError",
    "LostClusterError",
    "MissingBlockError",
    "ModelError",
    "NumericError",
    "OutputError",
    "QuarantineError",
    "QuotaError",
    "RequestTimeoutError",
    "StoreError",
    "UnknownFamilyError",
]


class LongMemError(ValueError):
    """Base of all errors that a user can fix. The message names the expected value, the actual value, and the remedy.

    Its text is redacted, so that no command, log, notebook or Ray message shows secrets.
    """

    def __str__(self) -> str:
        return redacted(super().__str__())


class ConfigError(LongMemError):
    """A setting is invalid, by itself or together with another one."""


class DocumentError(LongMemError):
    """One input document cannot be used. A job reports it and continues with the others."""


class QuarantineError(DocumentError):
    """Tasks of the document failed too often (the worker died or raised a bug); it is quarantined."""


class ModelError(LongMemError):
    """A model folder cannot be loaded."""


class UnknownFamilyError(ModelError):
    """The backbone's architecture is not one of the supported families."""


class CheckpointError(ModelError):
    """Weights or tokenizer are missing, corrupt, or do not belong to this checkpoint."""


class NumericError(LongMemError):
    """A number is NaN or infinite, but must be finite."""


class StoreError(LongMemError):
    """An operation of the memory store failed (closed, full, read-only, ...)."""


class FingerprintError(StoreError):
    """The store was written by another model or with other settings; the message names both."""


class ConflictError(StoreError):
    """The document already holds other tokens at that position; stored blocks are immutable."""


class MissingBlockError(StoreError):
    """A requested block is not stored (never written, or deleted)."""


class QuotaError(StoreError):
    """The byte limit of the store is reached; the message names the limit and the remedy."""


class CorruptionError(StoreError):
    """Stored bytes fail their checksum, or a table is damaged. Damaged data never enters a result."""


class OutputError(LongMemError):
    """The output folder cannot be used: it belongs to another job, is read-only, or the disk is full."""


class ClusterError(LongMemError):
    """Ray cannot be reached, or the cluster cannot hold the requested pools."""


class LostClusterError(ClusterError):
    """The cluster of this process has ended, or does not respond."""


class RequestTimeoutError(ClusterError, TimeoutError):
    """A service did not answer a request in time; the request is cancelled."""
