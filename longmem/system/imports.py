# SPDX-License-Identifier: Apache-2.0
"""Imports of large libraries without work that they do not need: garbage collection, and validators of functions."""

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from threading import Lock
from typing import Any

_replacing = Lock()


@contextmanager
def uncollected() -> Iterator[None]:
    """Pause the garbage collector for a block of imports, and leave out what was loaded from then on.

    Modules stay, and the search through them takes a fifth of the imports of torch and transformers. If nothing is
    imported, or the collector is off, nothing changes.
    """
    if not gc.isenabled():
        yield
        return
    before = len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > before:
            gc.freeze()
        gc.enable()


@contextmanager
def lazily_validated() -> Iterator[None]:
    """Let pydantic build the validator of a function at its first call, for functions defined in a block of imports.

    LanceDB 0.40 imports a client for a REST service, with 366 functions to validate, and calls none of them for a
    folder or a bucket: half a second of CPU, 40% of its import. A call is validated as before.
    """
    import pydantic

    with _replacing:
        built_at_once = pydantic.validate_call

        def validate_call(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
            if function is None:
                return lambda function: validate_call(function, **options)
            validated = cache(lambda: built_at_once(function, **options))

            @wraps(function)
            def call(*args: Any, **kwargs: Any) -> Any:
                return validated()(*args, **kwargs)

            return call

        pydantic.validate_call = validate_call
        try:
            yield
        finally:
            pydantic.validate_call = built_at_once
