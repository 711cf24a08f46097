# SPDX-License-Identifier: Apache-2.0
"""Compiles the C code once for each machine and compiler, and keeps it in the user's cache folder.

The name of the compiled file contains a digest of all C files and of the compiler's predefined macros. The macros
identify the compiler and the instruction sets of the processor, so different machines can share a home folder.
"""

import ctypes
import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import platformdirs
import xxhash

from longmem.errors import ConfigError
from longmem.native.compiler import COMPILERS, find_compiler
from longmem.native.params import declare_functions
from longmem.wording import reason_of

SOURCES = tuple(
    Path(__file__).with_name(name)
    for name in ("top_k.c", "gather.c", "attention.c", "logprobs.c", "elementwise.c", "rotation.c", "layout.c")
)
HEADERS = tuple(sorted(Path(__file__).parent.glob("*.h")))
FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fPIC", "-shared")
TIMEOUT_S = 120.0


@cache
def native_library() -> ctypes.CDLL:
    """Return the compiled library, and build it if this machine has none yet.

    Raises:
        ConfigError: There is no compiler, the compiler fails, or the cache folder cannot be written.
    """
    compiler = find_compiler()
    if compiler is None:
        raise ConfigError(
            f"search=native needs a C compiler ({', '.join(COMPILERS)}), none is on PATH: install one, or use "
            "search=torch"
        )
    path = _library_path(compiler, platformdirs.user_cache_path("longmem"))
    try:
        if not path.exists():
            _compile(compiler, path)
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise ConfigError(
            f"search=native cannot use {path}: {reason_of(error)}; make its folder writable, or use search=torch"
        ) from error
    declare_functions(library)
    return library


def _library_path(compiler: str, folder: Path) -> Path:
    macros = _run([compiler, *FLAGS, "-dM", "-E", "-x", "c", os.devnull])
    sources = b"".join(source.read_bytes() for source in SOURCES + HEADERS)
    return folder / f"native-{xxhash.xxh3_64_hexdigest(sources + macros.encode())}.so"


def _compile(compiler: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # in the target's folder, so that the last step is one atomic rename: other processes may compile at the same time
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / path.name
        _run([compiler, *FLAGS, "-o", str(built), *map(str, SOURCES), "-lm"])
        built.replace(path)


def _run(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S).stdout
    except subprocess.CalledProcessError as error:
        raise ConfigError(
            f"search=native: {command[0]} failed with {error.stderr.strip()[-500:]!r}; use another compiler, or "
            "search=torch"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"search=native: {command[0]} took more than {TIMEOUT_S:g} s; use search=torch") from error
