# SPDX-License-Identifier: Apache-2.0
"""Imports transformers so that it lists its models once. Import this module before anything else of transformers.

transformers 5.23 reads the 1,600 files of its models to list their classes, when it is imported and again when
`transformers.models` is: 0.3 s each. Its cache of the list knows the folder by two names, and so has no effect. The
package of a model that is used still lists its few files once more.
"""

from pathlib import Path
from typing import Any

from transformers.utils import import_utils

_LISTING = "create_import_structure_from_path"


def _list_folders_by_one_name() -> None:
    """Let the cached function of transformers find a package's listing by its folder; another version is unchanged."""
    listing = getattr(import_utils, _LISTING, None)
    if listing is None:
        return

    def listed(module_path: str | Path) -> Any:
        path = Path(module_path)
        return listing(path.parent if path.is_file() else path)

    setattr(import_utils, _LISTING, listed)


_list_folders_by_one_name()
