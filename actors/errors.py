# SPDX-License-Identifier: Apache-2.0
"""Translates Ray's exceptions into LongMemError; errors that a worker returned pass unchanged."""

from collections.abc import Iterator
from contextlib import contextmanager

import ray.exceptions

from longmem.errors import ClusterError, LongMemError


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Raise a worker's LongMemError as itself, and Ray's own failures as ClusterError that names the operation.

    Any other exception of a worker is a bug and keeps Ray's full remote traceback.
    """
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, LongMemError):
            raise error.cause from None
        raise
    except ray.exceptions.GetTimeoutError as error:
        raise ClusterError(f"{doing}: no answer in time; see the Ray dashboard for what the worker is doing") from error
    except ray.exceptions.RayError as error:
        raise ClusterError(f"{doing}: {error}") from error
