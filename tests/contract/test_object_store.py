# SPDX-License-Identifier: Apache-2.0
"""Contract of the durable store in a bucket: a real S3-compatible server on loopback.

`gs://` uses the same server. The XML API of Google Cloud Storage is that of S3 with other names of headers; the front
renames those that the clients send (https://cloud.google.com/storage/docs/migrating). Two emulators of Google Cloud
Storage lack calls of that API; see docs/log.md.
"""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from longmem.errors import CorruptionError, MissingBlockError, StoreError
from longmem.store.config import MemoryStore
from longmem.store.lance.repair import recover
from longmem.store.lance.store import LanceMemoryStore
from longmem.types import DocumentKey
from tests.blocks import KEY, assert_same, make_block
from tests.racing import Racers, check_receipts, contested, put_groups, put_other_tokens, racers

pytestmark = pytest.mark.thorough

NUMBERS = count()


class Quiet(WSGIRequestHandler):
    def log(self, *args: object) -> None:
        pass


SIGNED = "AWS4-HMAC-SHA256 Credential=someone/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=none"
"""Header of a request that may read private objects; the server does not check signatures."""


class Front:
    """Proxy between clients and the server that can inject faults. Translates requests of the Google client."""

    def __init__(self) -> None:
        self.app = DomainDispatcherApplication(create_backend_app)
        self.ignores_conditions = False
        self.refuses_reads = False

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        if not environ.get("HTTP_AUTHORIZATION", "").startswith("AWS4"):
            environ["HTTP_AUTHORIZATION"] = SIGNED
            if environ.pop("HTTP_X_GOOG_IF_GENERATION_MATCH", None) == "0":
                environ["HTTP_IF_NONE_MATCH"] = "*"
            if "HTTP_X_GOOG_COPY_SOURCE" in environ:
                environ["HTTP_X_AMZ_COPY_SOURCE"] = environ.pop("HTTP_X_GOOG_COPY_SOURCE")
        if self.ignores_conditions:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        if self.refuses_reads and environ["REQUEST_METHOD"] == "GET":
            start_response("403 Forbidden", [("Content-Type", "text/plain")])
            return [b"AccessDenied"]
        return self.app(environ, start_response)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """Yield the front of a running server that this process and its children use."""
    front = Front()
    server = make_server("127.0.0.1", 0, front, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with pytest.MonkeyPatch.context() as monkeypatch:
        use(f"http://127.0.0.1:{server.server_port}", tmp_path_factory.mktemp("account"), monkeypatch)
        yield front
    server.shutdown()
    thread.join()
    server.server_close()


def use(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the environment in which clients of both kinds find the server."""
    account = {"gcs_base_url": url, "disable_oauth": True}
    account |= dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
    (folder / "account.json").write_text(json.dumps(account))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    settings = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "something",
        "AWS_DEFAULT_REGION": "us-east-1",
        "GOOGLE_SERVICE_ACCOUNT": str(folder / "account.json"),
        "GOOGLE_ALLOW_HTTP": "true",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def front(served: Front) -> Iterator[Front]:
    yield served
    served.ignores_conditions = served.refuses_reads = False


@pytest.fixture(scope="module")
def processes(served: Front) -> Iterator[Racers]:
    with racers(2) as found:
        yield found


@pytest.fixture(params=["s3", "gs"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bucket(front: Front) -> str:
    # a bucket per test: connections to it are kept for the lifetime of the process
    # of letters and digits: the Google client escapes all else, and the server does not undo that in a name of a bucket
    name = f"memory{next(NUMBERS)}"
    boto3.client("s3").create_bucket(Bucket=name)
    return name


def objects(bucket: str) -> list[str]:
    return [each["Key"] for each in boto3.client("s3").list_objects_v2(Bucket=bucket).get("Contents", [])]


def test_a_bucket_keeps_what_a_disk_keeps(bucket: str, scheme: str) -> None:
    uri, copy = f"{scheme}://{bucket}/some/where", DocumentKey("default", "copy")
    with MemoryStore.open(uri, durability="power", max_bytes=2**20) as store:
        assert store.documents() == []
        assert objects(bucket) == []
        for index in range(4):
            assert not store.put(make_block(segment=index)).duplicate
        assert store.put(make_block(segment=2)).duplicate
    with MemoryStore.open(uri) as store:
        for index, block in enumerate(store.read(KEY, 0, 4)):
            assert_same(block, make_block(segment=index))
        assert store.fork(KEY, copy) == 4
        assert store.trim(KEY, 3) == 3
        with pytest.raises(MissingBlockError):
            store.read(KEY, 0, 4)
        assert_same(store.read(copy, 1, 2)[0], replace(make_block(segment=1), key=copy))
        assert store.verify() == 5
        assert store.delete(KEY) == 1
        assert store.delete(copy) == 4
        assert store.documents() == []
    assert [name for name in objects(bucket) if "/p-" in name or "self-test" in name] == []


def test_two_writers_of_one_bucket_lose_nothing(bucket: str, scheme: str) -> None:
    keys = [DocumentKey("default", name) for name in "ab"]
    errors: list[BaseException] = []

    def write(key: DocumentKey) -> None:
        try:
            with MemoryStore.open(f"{scheme}://{bucket}/x") as store:
                for index in range(5):
                    store.put(make_block(key, segment=index))
        except BaseException as error:  # noqa: BLE001 - a thread's failure must reach the test
            errors.append(error)

    threads = [threading.Thread(target=write, args=(key,)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with MemoryStore.open(f"{scheme}://{bucket}/x") as store:
        assert store.verify() == 10


GROUPS, SIZE = 3, 41
"""Number and size of the groups. Both processes put all but one key of a group in one round: 120 keys are contested."""
GROUPED = DocumentKey("default", "groups")


def test_two_processes_that_put_the_same_blocks_in_a_bucket_have_one_winner(
    bucket: str, scheme: str, processes: Racers
) -> None:
    """Run the server in this process and each writer in a process of its own."""
    uri = f"{scheme}://{bucket}/x"
    found = processes.race(uri, partial(put_groups, GROUPS, SIZE))
    conflicts = processes.race(uri, partial(put_other_tokens, 3))
    assert contested(found, GROUPS) >= GROUPS * (SIZE - 1)
    held = {each.segment for receipts in found for each in receipts}
    check_receipts(found, held)
    for outcomes in zip(*conflicts, strict=True):
        assert sorted(outcomes) == ["ConflictError", "new"]
    with LanceMemoryStore(uri) as store:
        assert store._catalogue().num_rows == len(held) + 3
        first, last = min(held), max(held)
        assert held == set(range(first, last + 1))
        for segment, block in enumerate(store.read(GROUPED, first, last + 1), first):
            assert_same(block, make_block(GROUPED, segment))


def test_an_older_copy_of_the_catalogue_in_a_bucket_is_told_and_taken_by_a_repair(bucket: str, scheme: str) -> None:
    client, uri = boto3.client("s3"), f"{scheme}://{bucket}/x"
    with MemoryStore.open(uri) as store:
        for index in range(3):
            store.put(make_block(segment=index))
        older = set(objects(bucket))
        for index in range(3, 5):
            store.put(make_block(segment=index))
        newer = [name for name in objects(bucket) if name not in older and "/catalogue.lance/" in f"/{name}"]
        for name in newer:
            client.delete_object(Bucket=bucket, Key=name)
        for call in (lambda: store.segments(KEY), store.verify):
            with pytest.raises(CorruptionError, match="has lost writes that were acknowledged"):
                call()
    with pytest.raises(CorruptionError, match="has lost writes that were acknowledged"):
        MemoryStore.open(uri)
    report = recover(uri)
    assert report.num_blocks == 3
    assert len(report.actions) == 1
    with MemoryStore.open(uri) as store:
        assert [store.put(make_block(segment=index)).duplicate for index in range(5)] == [True] * 3 + [False] * 2
        assert store.verify() == 5
    assert recover(uri).actions == []


def test_marks_of_a_bucket_do_not_pile_up(bucket: str, scheme: str) -> None:
    for index in range(3):
        with LanceMemoryStore(f"{scheme}://{bucket}/x") as store:
            store.put(make_block(segment=index))
    store = LanceMemoryStore(f"{scheme}://{bucket}/x")
    store.compact()
    assert sum("/acknowledged/" in name for name in objects(bucket)) == 1


def test_a_server_without_conditional_writes_is_refused(front: Front, bucket: str, scheme: str) -> None:
    front.ignores_conditions = True
    with MemoryStore.open(f"{scheme}://{bucket}/x") as store:
        for _ in range(2):
            with pytest.raises(StoreError, match=r"lose blocks silently.*local folder"):
                store.put(make_block())
    assert objects(bucket) == []
    front.ignores_conditions = False
    with MemoryStore.open(f"{scheme}://{bucket}/x") as store:
        store.put(make_block())
        assert store.verify() == 1


def test_a_bucket_that_is_not_there_is_told(front: Front, scheme: str) -> None:
    with pytest.raises(StoreError, match="nowhere"), MemoryStore.open(f"{scheme}://nowhere-at-all/x") as store:
        store.put(make_block())


def test_a_server_that_refuses_is_no_damage(front: Front, bucket: str, scheme: str) -> None:
    """Distinguish refusal from damage; otherwise a repair would drop sound blocks, and a job would fail every
    document."""
    with MemoryStore.open(f"{scheme}://{bucket}/x") as store:
        store.put(make_block())
    front.refuses_reads = True
    with pytest.raises(StoreError) as caught, MemoryStore.open(f"{scheme}://{bucket}/x") as store:
        store.read(KEY, 0, 1)
    assert not isinstance(caught.value, CorruptionError)
    front.refuses_reads = False
    with MemoryStore.open(f"{scheme}://{bucket}/x") as store:
        assert store.verify() == 1
