#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# ray 2.60.0: a token file on disk makes every actor die on a cluster that was started before the file was there.
#
# `ray.init("auto")` turns token authentication on for the driver when it finds ~/.ray/auth_token, whatever the cluster
# has. The cluster accepts the driver. But the GCS calls the driver back to learn whether an actor's handle still exists;
# the driver refuses the call, which carries no token, and the GCS takes the refusal for "all references were removed".
# `ray.init("host:port")` never turns tokens on: there the same program works, and on a cluster *with* tokens it is the
# address that fails, after 20 s, with a message on the address.
#
# Expected: the actor answers, or ray.init refuses. Seen:
#   no token file, auto: answered
#   token file, auto:    ActorDiedError: ... all references to the actor were removed ...
#   token file, address: answered
# Exits with 1 when this changes.
set -euo pipefail
folder=$(mktemp -d)
cleanup() { [ -n "${head:-}" ] && kill "$head" 2>/dev/null && wait "$head" || true; rm -rf "$folder"; }
trap cleanup EXIT
cd "$folder"
unset RAY_ADDRESS RAY_AUTH_MODE RAY_AUTH_TOKEN RAY_AUTH_TOKEN_PATH
export HOME="$folder/home" RAY_USAGE_STATS_ENABLED=0
mkdir -p "$HOME"
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv venv
    venv/bin/pip install --quiet "ray[default]==2.60.0"
    PYTHON=venv/bin/python
fi
port=$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$PYTHON" -m ray.scripts.scripts start --head --block --port="$port" --num-cpus=1 --object-store-memory=100000000 \
    --include-dashboard=false --min-worker-port=0 --max-worker-port=0 --temp-dir="$folder/r" >head.log 2>&1 &
head=$!
# the note that `auto` reads is written after the port opens, and the node joins after that
cat >ready.py <<'PYTHON_END'
import logging, os, sys, time
import ray

folder, address = sys.argv[1:]
for _ in range(240):
    if os.path.exists(folder + "/ray_current_cluster"):
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL, _temp_dir=folder)
            if ray.cluster_resources().get("CPU"):
                sys.exit(0)
        except Exception as error:
            print(error, file=sys.stderr)
        ray.shutdown()
    time.sleep(0.5)
sys.exit("the head did not start")
PYTHON_END
"$PYTHON" ready.py "$folder/r" "127.0.0.1:$port" >ready.log 2>&1 || { cat head.log ready.log; exit 1; }

cat >driver.py <<'PYTHON_END'
import logging, sys
import ray

ray.init(sys.argv[1], log_to_driver=False, logging_level=logging.ERROR, _temp_dir=sys.argv[2])

@ray.remote(num_cpus=0)
class Echo:
    def say(self, text):
        return text

echo = Echo.remote()
try:
    print(ray.get(echo.say.remote("answered"), timeout=60))
except ray.exceptions.ActorDiedError as error:
    print("died:", "all references to the actor were removed" in str(error))
PYTHON_END
run() { "$PYTHON" driver.py "$1" "$folder/r" 2>driver.log >said || { cat driver.log >&2; echo "no answer"; return; }; tail -1 said; }
first=$(run auto)
mkdir -p "$HOME/.ray" && printf 'any-token-0123456789abcdef' >"$HOME/.ray/auth_token"
second=$(run auto)
third=$(run "127.0.0.1:$port")
printf 'no token file, auto: %s\ntoken file, auto:    %s\ntoken file, address: %s\n' "$first" "$second" "$third"
[ "$first" = answered ] && [ "$second" = "died: True" ] && [ "$third" = answered ]
