#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# ray 2.60.0: when the GCS dies, the driver works on for a while and then is ended by Ray from within: exit code 1, no
# exception, no `finally`, no `atexit`.
#
# Actor calls need no GCS, so a driver in the middle of its work sees nothing. After gcs_rpc_server_reconnect_timeout_s
# (60 s by default; 5 s here, to be quick) a thread of the core worker ends the process.
#
# Expected: a Python exception in the driver, as for every other lost part of a cluster. Seen:
#   calls after the GCS was killed: many
#   exit code 1, finally ran: no, atexit ran: no
# Exits with 1 when this changes.
set -euo pipefail
folder=$(mktemp -d)
cleanup() { [ -s "$folder/raylet" ] && kill -9 "$(cat "$folder/raylet")" 2>/dev/null || true; sleep 1; rm -rf "$folder"; }
trap cleanup EXIT
cd "$folder"
unset RAY_ADDRESS RAY_AUTH_TOKEN RAY_AUTH_TOKEN_PATH
export HOME="$folder/home" RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=disabled RAY_gcs_rpc_server_reconnect_timeout_s=5
mkdir -p "$HOME"
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv venv
    venv/bin/pip install --quiet "ray[default]==2.60.0" psutil==7.2.2
    PYTHON=venv/bin/python
fi
cat >driver.py <<'PYTHON_END'
import atexit, logging, os, signal, sys, time
import psutil, ray

folder = sys.argv[1]
ray.init("local", num_cpus=1, object_store_memory=10**8, include_dashboard=False, log_to_driver=False,
         logging_level=logging.ERROR, _temp_dir=folder + "/r")

@ray.remote(num_cpus=0)
class Echo:
    def say(self, text):
        return text

def process(name):
    return next(each for each in psutil.Process().children(recursive=True) if each.cmdline()[:1]
                and each.cmdline()[0].endswith(name))

echo = Echo.remote()
ray.get(echo.say.remote(""))
open(folder + "/raylet", "w").write(str(process("/raylet").pid))
atexit.register(lambda: print("atexit", flush=True))
process("gcs_server").send_signal(signal.SIGKILL)
try:
    for _ in range(600):
        ray.get(echo.say.remote(""))
        print("call", flush=True)
        time.sleep(0.1)
finally:
    print("finally", flush=True)
PYTHON_END
code=0
"$PYTHON" driver.py "$folder" >out 2>err || code=$?
grep -q '^call$' out || { cat err >&2; exit 1; }
calls=$(grep -c '^call$' out || true)
ran() { grep -q "^$1\$" out && echo yes || echo no; }
echo "calls after the GCS was killed: $calls"
echo "exit code $code, finally ran: $(ran finally), atexit ran: $(ran atexit)"
[ "$calls" -gt 10 ] && [ "$code" = 1 ] && [ "$(ran finally)" = no ] && [ "$(ran atexit)" = no ]
