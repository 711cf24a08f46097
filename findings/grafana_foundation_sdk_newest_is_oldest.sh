#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# grafana-foundation-sdk 1769699998!10.1.0 and 1769699379!11.6.0, pip 26.0.1.
#
# Input: a folder with the wheels of these two releases, those for Grafana 10.1 and 11.6, and
#   `pip install 'grafana-foundation-sdk>=11'`, to get the typed models of Grafana 11 or newer.
#
# Expected: the release for Grafana 11.6.
# Happens: each release has the Unix time of its build as epoch of its version. An epoch outranks all that follows it, so
#   both meet `>=11`, and pip installs the one that was built last: that for Grafana 10.1. In one round of builds, those
#   for older Grafanas come last, so in the whole index the newest release is that for the oldest Grafana, too.
#
# Output seen:
#   >=11: 1769699998!10.1.0
#   any: 1769699998!10.1.0
#
# Exits with 0 while this holds, with 1 when it changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip() { "$work/venv/bin/pip" "$@" --quiet --disable-pip-version-check; }
pip install pip==26.0.1
for version in '1769699998!10.1.0' '1769699379!11.6.0'; do
    pip download --no-deps --dest "$work/wheels" "grafana-foundation-sdk==$version"
done

installed() { # NAME CONDITION
    pip install --force-reinstall --no-deps --no-index --find-links "$work/wheels" "grafana-foundation-sdk$2"
    "$work/venv/bin/python" - "$1" <<'PYTHON'
import sys
from importlib.metadata import version

print(f"{sys.argv[1]}: {version('grafana-foundation-sdk')}")
PYTHON
}

seen=$(installed ">=11" ">=11"; installed "any" "")
echo "$seen"
if [ "$seen" != $'>=11: 1769699998!10.1.0\nany: 1769699998!10.1.0' ]; then
    echo "changed: see the header of this script"
    exit 1
fi
