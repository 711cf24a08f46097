#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# transformers 5.23.0, Python 3.11 or later, Linux.
#
# Input: a program uses AutoTokenizer, or any model, of transformers.
#
# Expected: the imports read the few modules that are used. Lists of what a package holds are part of it, or are made once:
#   the function that makes them has an lru_cache.
# Happens: `import transformers` opens every source file of its models, some 1,600 of them in 548 folders, and searches
#   them for `__all__` and `@requires`. `transformers.models`, which AutoTokenizer imports, does all of it again. The cache
#   has no effect: it holds 128 entries, the function calls itself for 548 folders one after the other, and the two imports
#   name their common folder differently, once as a folder and once as the file `__init__.py` in it. Each time costs some
#   0.3 s of CPU, a tenth of the imports of a process with a model.
#
# Output seen:
#   import transformers: more than 1,500 files are read, none twice
#   then AutoTokenizer: more than 1,500 files were read twice
#   entries of the cache: 128
#
# Exits with 0 while this holds, with 1 when it changed, and with 2 where it cannot be tried.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 || exit 2
cat > "$work/count.py" << 'END'
import sys
from collections import Counter

opened = Counter()


def count(event, arguments):
    if event == "open" and arguments[1] == "r" and "/transformers/models/" in str(arguments[0]):
        opened[str(arguments[0])] += 1


def share(times):
    found = sum(count >= times for count in opened.values())
    return "more than 1,500 files" if found > 1500 else "none" if found == 0 else f"{found} files"


sys.addaudithook(count)
import transformers  # noqa: E402

print(f"import transformers: {share(1)} are read, {share(2)} twice")
transformers.AutoTokenizer  # noqa: B018
print(f"then AutoTokenizer: {share(2)} were read twice")
from transformers.utils.import_utils import create_import_structure_from_path  # noqa: E402

print(f"entries of the cache: {create_import_structure_from_path.cache_info().maxsize}")
END
seen=$("$work/venv/bin/python" "$work/count.py" 2> "$work/log") || { cat "$work/log" >&2; exit 2; }
echo "$seen"
expected='import transformers: more than 1,500 files are read, none twice
then AutoTokenizer: more than 1,500 files were read twice
entries of the cache: 128'
if [ "$seen" != "$expected" ]; then
    echo "changed: see the header of this script"
    exit 1
fi
