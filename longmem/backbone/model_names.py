# SPDX-License-Identifier: Apache-2.0
"""Names of models without an owner: those of packages, and the few of the hub; others are refused without a request."""

from collections.abc import Iterable
from difflib import get_close_matches

from huggingface_hub import try_to_load_from_cache

from longmem.backbone.files import CONFIG_FILE, is_local
from longmem.errors import CheckpointError

HUB_NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")
"""Models of supported families that the hub has kept without an owner, from its first years."""


def check_name(source: str, packaged: Iterable[str]) -> None:
    """Raise CheckpointError for a name without an owner that is neither known nor in the cache of the hub.

    A request for it would end, minutes later where the hub cannot be reached, with less advice. `packaged` are the
    names of this package.
    """
    known = [*packaged, *HUB_NAMES]
    if "/" in source or is_local(source) or source in known or try_to_load_from_cache(source, CONFIG_FILE):
        return
    near = get_close_matches(source.lower(), known, n=1)
    advice = f"did you mean {near[0]}? " if near else ""
    raise CheckpointError(
        f"no model {source}: {advice}Expected a folder, a .gguf file, a hub id OWNER/NAME, or one of {', '.join(known)}"
    )
