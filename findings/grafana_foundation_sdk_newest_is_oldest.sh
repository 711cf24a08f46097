#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# grafana-foundation-sdk, as of 2026-11; pip 26.
#
# Input: `pip install 'grafana-foundation-sdk>=11'`, to get the typed models of Grafana 11 or newer.
#
# Expected: a release for Grafana 11 or newer.
# Happens: each release has the Unix time of its build as epoch of its version, and the builds for older Grafanas come
#   last. An epoch outranks all that follows, so `>=11` is met by every release, and pip installs the one with the latest
#   time: that for Grafana 10.1, the oldest one. Without a condition it is the same.
#
# Output seen:
#   >=11: 10.1.0
#   any: 10.1.0
#
# Exits with 0 while this holds, with 1 when it changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"

installed() { # NAME CONDITION
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check --force-reinstall --no-deps "grafana-foundation-sdk$2"
    "$work/venv/bin/python" - "$1" <<'PYTHON'
import sys
from importlib.metadata import version

print(f"{sys.argv[1]}: {version('grafana-foundation-sdk').partition('!')[2]}")
PYTHON
}

seen=$(installed ">=11" ">=11"; installed "any" "")
echo "$seen"
if [ "$seen" != $'>=11: 10.1.0\nany: 10.1.0' ]; then
    echo "changed: see the header of this script"
    exit 1
fi
