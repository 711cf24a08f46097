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
def lazily_validated(package: str) -> Iterator[None]:
    """Let pydantic build the validators of a package's functions at their first call, for a block of imports.

    LanceDB 0.40 imports lance_namespace_urllib3_client, a client of a REST service. It has 366 functions to validate,
    and a store in a folder or bucket calls none of them: half a second of CPU, 40% of the import. Their calls are
    validated as before. Functions of other packages get their validators at once.
    """
    import pydantic

    with _replacing:
        built_at_once = pydantic.validate_call

        def validate_call(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
            if function is None:
                return lambda function: validate_call(function, **options)
            if function.__module__.partition(".")[0] != package:
                return built_at_once(function, **options)
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
