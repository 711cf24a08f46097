#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# mkdocs 1.6.1: `--quiet` switches `--strict` off, so a build that must fail on warnings ends with 0.
#
# Input: a site of one page, which links to a page that is not there. Such a link is a warning.
#
# Expected: `--quiet` changes what is printed, not the verdict: with and without it, a strict build ends with 1.
# Happens: warnings are counted by a handler of the logger `mkdocs`. `--quiet` raises that logger's level to ERROR, so
#   warnings are dropped before they are counted. The strict build ends with 0.
#
# Output seen:
#   strict: exit 1
#   strict quiet: exit 0
#
# Exits with 0 while this holds, with 1 when it changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check mkdocs==1.6.1
cd "$work"
mkdir docs
printf 'site_name: One page\n' > mkdocs.yml
printf '# One page\n\n[elsewhere](elsewhere.md)\n' > docs/index.md

build() { # NAME OPTION...
    local name=$1 code=0
    shift
    "$work/venv/bin/mkdocs" build "$@" > /dev/null 2>&1 || code=$?
    echo "$name: exit $code"
}

seen=$(build "strict" --strict; build "strict quiet" --strict --quiet)
echo "$seen"
if [ "$seen" != $'strict: exit 1\nstrict quiet: exit 0' ]; then
    echo "changed: see the header of this script"
    exit 1
fi
