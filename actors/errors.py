# SPDX-License-Identifier: Apache-2.0
"""Meaning of Ray's exceptions, and their translation into LongMemError; errors that a worker returned pass
unchanged."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import ray.exceptions

from longmem.errors import ClusterError, LongMemError

WORKER_LOST = (
    ray.exceptions.RayActorError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.LocalRayletDiedError,
    ray.exceptions.OutOfMemoryError,
)


def failure_of(error: ray.exceptions.RayError) -> Literal["lost objects", "lost worker", "bug"] | None:
    """Return what ended a task: its input was lost, its process was lost, or it raised. None if it is none of these."""
    if isinstance(error, ray.exceptions.ObjectLostError):
        return "lost objects"
    if isinstance(getattr(error, "cause", None), ray.exceptions.ObjectLostError):
        return "lost objects"
    if isinstance(error, WORKER_LOST):
        return "lost worker"
    return "bug" if isinstance(error, ray.exceptions.RayTaskError) else None


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
