#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# datasets 5.2.0: a dataset without rows is saved without an error, and cannot be loaded again.
#
# Input: a dataset of two rows, of which `select([])` keeps none; `save_to_disk`, then `load_from_disk` of that folder.
#   Its columns and their types are known, and state.json and dataset_info.json are written.
#
# Expected: a dataset with those columns and no rows, as `select` returns and as every other number of rows gives.
# Happens: `save_to_disk` writes no data file, and `load_from_disk` takes the first of none: IndexError. The message
#   names neither the folder nor the cause.
#
# Output seen:
#   selected: 0 rows, columns ['text']
#   saved: ['dataset_info.json', 'state.json']
#   loaded: IndexError: list index out of range
#
# Exits with 0 while this holds, with 1 when it changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0
cd "$work"
HF_HUB_OFFLINE=1 HF_HOME="$work/cache" "$work/venv/bin/python" - <<'PY'
import os
from datasets import Dataset, disable_progress_bars, load_from_disk

disable_progress_bars()
kept = Dataset.from_dict({"text": ["one", "two"]}).select([])
print(f"selected: {len(kept)} rows, columns {kept.column_names}")
kept.save_to_disk("saved")
print(f"saved: {sorted(os.listdir('saved'))}")
try:
    loaded = f"{len(load_from_disk('saved'))} rows"
except Exception as error:
    loaded = f"{type(error).__name__}: {error}"
print(f"loaded: {loaded}")
raise SystemExit(0 if loaded.startswith("IndexError") else "changed: see the header of this script")
PY
