# SPDX-License-Identifier: Apache-2.0
"""Representation of a store actor in Ray's dashboard."""

from actors.workers.store import StoreActor
from longmem.store.config import StoreSettings


def test_its_title_has_no_secret() -> None:
    kind = StoreActor.__ray_metadata__.modified_class
    store = kind(StoreSettings("s3://key:hidden@bucket/memory?token=hidden"), 3, 4)
    assert repr(store) == "MemoryStore(shard=3, uri=s3://***@bucket/memory?token=***)"
