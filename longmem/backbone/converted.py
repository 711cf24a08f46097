# SPDX-License-Identifier: Apache-2.0
"""Model folders made from GGUF files, once for each file, in the user's cache folder.

The name of a folder contains the digest of the file. One process at a time writes a folder under another
name and renames it. Its manifest has the digest of every file, and each process compares them before its first use.
"""

import fcntl
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs
import xxhash

from longmem.backbone.model_names import gguf_file
from longmem.errors import CheckpointError

logger = logging.getLogger(__name__)

FORMAT = 1
"""Number of the conversion; another one makes new folders."""
MANIFEST = "manifest"
"""File of a folder with the digests of the others; without a suffix, so that a saved model does not take it along."""
_BYTES_PER_READ = 2**22


_verified: dict[tuple[str, int, int], Path] = {}
"""Folders that this process has compared with their manifest, by path, size and modification time of the GGUF file."""


def model_folder(source: str | Path) -> str | Path:
    """Return the folder to load a model from: for a GGUF file the converted one, else the source itself.

    The first use of a file converts it. Raises ConfigError and CheckpointError.
    """
    file = gguf_file(source)
    if file is None:
        return source
    try:
        status = file.stat()
        key = (str(file.absolute()), status.st_size, status.st_mtime_ns)
        if key not in _verified or not _verified[key].is_dir():
            _verified[key] = _converted(file)
    except OSError as error:
        raise CheckpointError(
            f"cannot convert {file}: {error}; expected a readable file and a writable cache folder "
            f"{_cache()} (XDG_CACHE_HOME selects another)"
        ) from error
    return _verified[key]


def _cache() -> Path:
    return platformdirs.user_cache_path("longmem") / "models"


def _converted(file: Path) -> Path:
    folder = _cache() / f"{_digest(file)}-{FORMAT}"
    # without the lock, so that a cache may be read-only
    if _is_intact(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f"{folder.name}.lock")):
        if not _is_intact(folder):
            if folder.exists():
                logger.warning("%s is damaged and is made again", folder)
                shutil.rmtree(folder)
            for left in folder.parent.glob(f".{folder.name}-*"):
                shutil.rmtree(left)
            _convert(file, folder)
    return folder


def _convert(file: Path, folder: Path) -> None:
    logger.warning("converting %s to %s (once; later runs read the folder)", file, folder)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as made:
        part = Path(made) / "model"
        part.mkdir()
        from longmem.backbone.gguf import convert_gguf

        convert_gguf(file, part)
        digests = {each.name: _digest(each) for each in sorted(part.iterdir())}
        (part / MANIFEST).write_text(json.dumps({"source": file.name, "digests": digests}, indent=2), encoding="utf-8")
        part.rename(folder)


def _is_intact(folder: Path) -> bool:
    """Return True if a folder has exactly the files of its manifest, unchanged."""
    try:
        digests = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["digests"]
        found = {each.name: _digest(each) for each in folder.iterdir() if each.name != MANIFEST}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(digests == found)


def _digest(file: Path) -> str:
    digest = xxhash.xxh3_128()
    with file.open("rb") as opened:
        while part := opened.read(_BYTES_PER_READ):
            digest.update(part)
    return digest.hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock of the machine, which ends with the process."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
