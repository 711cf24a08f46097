# SPDX-License-Identifier: Apache-2.0
"""Imports of large libraries without the garbage collector, which would search all loaded modules again and again."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


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
