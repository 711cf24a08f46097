#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# ray 2.60.0, Python 3.11, Linux.
#
# Input: an actor with max_restarts=-1 needs 10 s to start again. Its process is killed once, by SIGKILL. A method with
#   max_task_retries=4 is called right after that, or was running at that moment.
#
# Expected: with RAY_task_retry_delay_ms=5000 four retries last for 20 s, longer than the restart. The guide, "Actor fault
#   tolerance", recommends that variable for actors with slow constructors, because each retry that meets a restarting actor
#   is spent (section "Unavailable actors").
# Happens: the variable changes nothing for these calls, though it delays retries of plain tasks. The call is retried after
#   100 ms, 200 ms, 400 ms and so on (5 s at most), rounded up by a timer of 1 s, with the variable and without. All four
#   retries are spent in about 3 s. The call ends after 5 to 6 s with ActorUnavailableError, 4 s before the actor is back.
#   RAY_task_actor_unavailable_retry_delay_base_ms does change the delays; the guide does not mention it. With
#   max_task_retries=-1 the call returns, but about 5 s after the actor is back.
#   Known in part: ray-project/ray issue 44719 (retries are spent), pull request 62330 (the delays).
#
# Output seen, without the lines of seconds (runs: how often the method started to run):
#   4 retries, sent after the death: ActorUnavailableError while the actor restarts, 0 runs, retries after 100 200 400 800 ms
#   4 retries, running at the death: ActorUnavailableError while the actor restarts, 1 runs, retries after 100 200 400 800 ms
#   no limit, sent after the death: returned, 1 runs, more than 4 retries
#   4 retries, RAY_task_retry_delay_ms=5000: as in the first line
#   4 retries, RAY_task_actor_unavailable_retry_delay_base_ms=5000: returned, 1 runs, each retry after 5000 ms
#
# Exits with 0 while this holds, with 1 when it changed, and with 2 where it cannot be tried.
set -euo pipefail
work=$(mktemp -d)
trap 'sleep 1; rm -rf "$work"' EXIT
cd "$work"
unset RAY_ADDRESS RAY_AUTH_TOKEN RAY_AUTH_TOKEN_PATH RAY_task_retry_delay_ms
unset RAY_task_actor_unavailable_retry_delay_base_ms RAY_task_actor_unavailable_retry_max_delay_ms
export HOME="$work/home" RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=disabled
mkdir -p "$HOME"
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv venv
    venv/bin/pip install --quiet --disable-pip-version-check ray==2.60.0 || exit 2
    PYTHON=venv/bin/python
fi
cat >driver.py <<'PYTHON_END'
import logging, os, re, signal, sys, time
from pathlib import Path
import ray

folder, title, retries, moment = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
ray.init("local", num_cpus=1, object_store_memory=10**8, include_dashboard=False, log_to_driver=False,
         logging_level=logging.CRITICAL, _temp_dir=str(folder / "r"))
log = Path(ray._private.worker._global_node.get_logs_dir_path())

@ray.remote(num_cpus=0, max_restarts=-1)
class Slow:
    def __init__(self, notes):
        self.notes = notes
        if ray.get_runtime_context().was_current_actor_reconstructed:
            time.sleep(10)
        self.note("back")

    def note(self, word):
        with open(self.notes, "a") as notes:
            notes.write(f"{word} {time.time()}\n")

    def process(self):
        return os.getpid()

    def work(self, seconds):
        self.note("run")
        time.sleep(seconds)

notes = folder / "notes"
notes.unlink(missing_ok=True)
actor = Slow.remote(str(notes))
process = ray.get(actor.process.remote(), timeout=120)
if moment == "running":
    call = actor.work.options(max_task_retries=retries).remote(3)
    while "run" not in notes.read_text():
        time.sleep(0.1)
os.kill(process, signal.SIGKILL)
killed = time.time()
if moment == "after":
    call = actor.work.options(max_task_retries=retries).remote(0)
try:
    ray.get(call, timeout=120)
    result = "returned"
except ray.exceptions.RayError as error:
    result = type(error).__name__
ended = time.time()
runs = notes.read_text().count("run")
ray.get(actor.process.options(max_task_retries=-1).remote(), timeout=120)
back = [float(line.split()[1]) for line in notes.read_text().splitlines() if line.startswith("back")]
ray.shutdown()
if len(back) != 2:
    sys.exit(f"the actor started {len(back)} times, not 2")
if result != "returned":
    result += " while the actor restarts" if ended < back[1] else " after the actor was back"
text = "".join(path.read_text() for path in log.glob("python-core-driver-*.log"))
delays = re.findall(r"Will resubmit task after a (\d+)ms delay: .* task_name=Slow\.work,", text)
if result != "returned":
    spent = f"retries after {' '.join(delays)} ms"
else:
    spent = "more than 4 retries" if len(delays) > 4 else f"each retry after {' or '.join(sorted(set(delays)))} ms"
print(f"seconds after the death: the call ended {ended - killed:.1f}, the actor was back {back[1] - killed:.1f}")
print(f"{title}: {result}, {runs} runs, {spent}")
PYTHON_END
run() {
    "$PYTHON" driver.py "$work" "$@" >output 2>&1 || { cat output >&2; exit 2; }
    tail -2 output
    tail -1 output >>seen
}
delay=RAY_task_retry_delay_ms=5000
base=RAY_task_actor_unavailable_retry_delay_base_ms=5000
run "4 retries, sent after the death" 4 after
run "4 retries, running at the death" 4 running
run "no limit, sent after the death" -1 after
(export "$delay" && run "4 retries, $delay" 4 after)
(export "$base" && run "4 retries, $base" 4 after)
failed="ActorUnavailableError while the actor restarts"
cat >expected <<END
4 retries, sent after the death: $failed, 0 runs, retries after 100 200 400 800 ms
4 retries, running at the death: $failed, 1 runs, retries after 100 200 400 800 ms
no limit, sent after the death: returned, 1 runs, more than 4 retries
4 retries, $delay: $failed, 0 runs, retries after 100 200 400 800 ms
4 retries, $base: returned, 1 runs, each retry after 5000 ms
END
if ! cmp -s seen expected; then
    echo "changed: see the header of this script"
    exit 1
fi
