#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# lancedb 0.40.0 with ray 2.60.0, Python 3.11 or later, Linux.
#
# Input: a program imports lancedb, does nothing with it, and calls ray.init(). Ray starts its daemons as new programs.
#
# Expected: nothing is printed. Neither library is used with multiprocessing, and a new program has none of its parent's
#   threads or locks.
# Happens: a RuntimeWarning about LanceDB's "fork support" and possible deadlocks, once for each daemon. Ray starts them with
#   a `preexec_fn`, and then Python runs the hooks of os.register_at_fork in the child, before it becomes the daemon. The
#   hook of lancedb starts an event loop in a thread there, and warns. The same child without a `preexec_fn` is silent.
#
# Output seen:
#   a child of subprocess: 0 warnings
#   a child of subprocess with a preexec_fn: 1 warning
#   ray.init(): more than 2 warnings
#   ray.init() without lancedb: 0 warnings
#
# Exits with 0 while this holds, with 1 when it changed, and with 2 where it cannot be tried.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check lancedb==0.40.0 ray==2.60.0 || exit 2
unset RAY_ADDRESS PYTHONWARNINGS
warnings_of() {
    "$work/venv/bin/python" -c "$1" > "$work/output" 2>&1 || { cat "$work/output" >&2; exit 2; }
    grep -c "RuntimeWarning: lancedb fork support" "$work/output" || true
}
in_child='import lancedb, subprocess, sys; subprocess.run([sys.executable, "-c", "pass"], check=True'
on_ray='import ray; ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="ERROR"); ray.shutdown()'
plain=$(warnings_of "$in_child)")
hooked=$(warnings_of "$in_child, preexec_fn=int)")
ray=$(warnings_of "import lancedb; $on_ray")
alone=$(warnings_of "$on_ray")
[ "$ray" -gt 2 ] && ray="more than 2"
seen="a child of subprocess: $plain warnings
a child of subprocess with a preexec_fn: $hooked warning
ray.init(): $ray warnings
ray.init() without lancedb: $alone warnings"
echo "$seen"
expected='a child of subprocess: 0 warnings
a child of subprocess with a preexec_fn: 1 warning
ray.init(): more than 2 warnings
ray.init() without lancedb: 0 warnings'
if [ "$seen" != "$expected" ]; then
    echo "changed: see the header of this script"
    exit 1
fi
