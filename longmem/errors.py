"""Every error a user can meet, as one tree.

LongMemError (a ValueError: the user can fix it)
├── ConfigError            a setting that cannot work, alone or with another one
├── DocumentError          one input document cannot be used; the other documents go on
│   └── QuarantineError        work on the document failed again and again; it is set aside
├── ModelError             a model folder cannot be loaded
│   ├── UnknownFamilyError     the backbone's architecture is not supported
│   └── CheckpointError        weights are missing, corrupt, or belong to something else
├── NumericError           NaN or infinity where a finite number is needed
├── StoreError             the memory store cannot do what was asked
│   ├── FingerprintError       the store was written by another model or with other settings
│   ├── ConflictError          the document already holds other tokens at that place
│   ├── MissingBlockError      a block was asked for that the store does not hold
│   ├── QuotaError             the store holds as many bytes as it may
│   └── CorruptionError        stored bytes fail their checksum, or tables are damaged
├── OutputError            the output folder cannot be used or written
└── ClusterError           Ray cannot be reached, or cannot hold the job
    ├── LostClusterError       the cluster was there and has ended, or says nothing any more
    └── RequestTimeoutError    a service did not answer a request in time

Broken invariants of our own are `assert`s with a message, never one of these. Exceptions of other
libraries are translated in the one file that imports the library.
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
    """Base of every error that the user can act on. The message says what was expected, what came, what to do.

    Secrets in it are never shown, wherever it is printed: by a command, in a log, in a notebook, by Ray.
    """

    def __str__(self) -> str:
        return redacted(super().__str__())


class ConfigError(LongMemError):
    """A setting that cannot work, alone or together with another one."""


class DocumentError(LongMemError):
    """One input document cannot be used. A job reports it and goes on with the others."""


class QuarantineError(DocumentError):
    """Work on the document failed again and again (its worker died, or met a bug); it is set aside."""


class ModelError(LongMemError):
    """A model folder cannot be loaded."""


class UnknownFamilyError(ModelError):
    """The backbone's architecture is not one of the supported families."""


class CheckpointError(ModelError):
    """Weights or tokenizer are missing, corrupt, or do not belong to this checkpoint."""


class NumericError(LongMemError):
    """NaN or infinity where a finite number is needed."""


class StoreError(LongMemError):
    """The memory store cannot do what was asked (closed, full, read-only, ...)."""


class FingerprintError(StoreError):
    """The store was written by another model or with other settings; both sides are in the message."""


class ConflictError(StoreError):
    """The document already holds other tokens at that place; blocks are immutable once accepted."""


class MissingBlockError(StoreError):
    """A block was asked for that the store does not hold (never written, or deleted)."""


class QuotaError(StoreError):
    """The store holds as many bytes as its limit allows; the message says how many and what to do."""


class CorruptionError(StoreError):
    """Stored bytes fail their checksum, or a table is damaged. Never answered with a number."""


class OutputError(LongMemError):
    """The output folder cannot be used: it belongs to another job, is read-only, or the disk is full."""


class ClusterError(LongMemError):
    """Ray cannot be reached, or the cluster cannot hold the requested pools."""


class LostClusterError(ClusterError):
    """A cluster that this process was connected to has ended, or does not answer any more."""


class RequestTimeoutError(ClusterError, TimeoutError):
    """A service did not answer a request in time; what it had begun of it is given up."""
