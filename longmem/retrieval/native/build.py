"""Compile the C part once for each machine and compiler, and keep it in the user's cache folder.

The name of the compiled file holds a digest of the source, of the compiler and of what this processor can do (all in
the compiler's predefined macros), so a home folder that several kinds of machine share serves them all.
"""

import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import platformdirs
import torch
import xxhash

from longmem.errors import ConfigError

SOURCES = tuple(Path(__file__).with_name(name) for name in ("top_k.c", "gather.c"))
HEADERS = tuple(sorted(Path(__file__).parent.glob("*.h")))
FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fPIC", "-shared")
COMPILERS = ("cc", "gcc", "clang")
TIMEOUT_S = 120.0
KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""Types of rows that the C part reads, by its numbers for them (`rows.h`)."""


def find_compiler() -> str | None:
    """Path of the first C compiler on PATH."""
    return next((path for name in COMPILERS if (path := shutil.which(name))), None)


@cache
def native_library() -> ctypes.CDLL:
    """The compiled library, built if this machine has none yet. Raises ConfigError when there is no compiler, it
    fails, or the cache folder cannot be written."""
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
            f"search=native cannot use {path}: {error}; make its folder writable, or use search=torch"
        ) from error
    number, address = ctypes.c_int64, ctypes.c_void_p
    library.longmem_panel_keys.argtypes, library.longmem_panel_keys.restype = [], number
    library.longmem_panel_bytes.argtypes, library.longmem_panel_bytes.restype = [number], number
    rows = address, number, ctypes.c_int
    library.longmem_code_panels.argtypes = [*rows, *(number,) * 4, address, address]
    library.longmem_top_k.argtypes = [
        *(address, address, address, number),
        *(*rows, *rows),
        *(address, address, ctypes.c_float),
        *(number,) * 5,
        *(address, address),
    ]
    library.longmem_top_k_in_cells.argtypes = [
        *(address, address, address, number),
        *(*rows, *rows),
        *(number,) * 4,
        *(address, address, number, address, number),
        *(address, address),
    ]
    for function in (library.longmem_top_k, library.longmem_top_k_in_cells):
        function.restype = ctypes.c_int
    for function in (library.longmem_products, library.longmem_mixtures):
        function.argtypes = [address, address, address, number, number, ctypes.c_int, *(number,) * 5, address]
        function.restype = None
    return library


def _library_path(compiler: str, folder: Path) -> Path:
    macros = _run([compiler, *FLAGS, "-dM", "-E", "-x", "c", os.devnull])
    sources = b"".join(source.read_bytes() for source in SOURCES + HEADERS)
    return folder / f"native-{xxhash.xxh3_64_hexdigest(sources + macros.encode())}.so"


def _compile(compiler: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # beside the target, so that the last step is one rename, whoever else compiles at the same time
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
