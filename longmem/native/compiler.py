# SPDX-License-Identifier: Apache-2.0
"""Finds the C compiler. Does not import torch, so that a command line can choose a search engine without it."""

import shutil

COMPILERS = ("cc", "gcc", "clang")


def find_compiler() -> str | None:
    """Return the path of the first C compiler on PATH, or None if there is none."""
    return next((path for name in COMPILERS if (path := shutil.which(name))), None)
