# SPDX-License-Identifier: Apache-2.0
"""Redaction: every spelling of a secret is hidden, and all other text is unchanged."""

import json
from html import escape
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longmem.system.redaction import redacted, redacted_values

SECRET = "S3cr3tMARK"

WITH_SECRETS = {
    "user and password": f"s3://KEY:{SECRET}@bucket/a.txt",
    "password with slashes": f"s3://KEY:ab/{SECRET}/cd@bucket/a.txt",
    "password with an at sign": f"s3://KEY:ab@{SECRET}@bucket/a.txt",
    "token as user": f"https://{SECRET}@host/a.txt",
    "scheme in capitals": f"S3://KEY:{SECRET}@bucket",
    "chained": f"simplecache::s3://KEY:{SECRET}@bucket/a.txt",
    "address of Ray": f"ray://user:{SECRET}@head:10001",
    "several in one sentence": f"cannot copy s3://A:{SECRET}@a/x to 'gs://B:{SECRET}@b/y', nor https://h/?token={SECRET}.",
    "in brackets": f"[s3://A:{SECRET}@a, s3://B:{SECRET}@b]",
    "query": f"https://host/a.txt?a=1&token={SECRET}&b=2",
    "fragment": f"https://host/a.txt#access_token={SECRET}",
    "presigned by AWS": f"https://b.s3.amazonaws.com/a?X-Amz-Credential={SECRET}%2F2026&X-Amz-Security-Token={SECRET}"
    f"&X-Amz-Signature={SECRET}&X-Amz-Expires=60",
    "presigned by old AWS": f"https://b.s3.amazonaws.com/a?AWSAccessKeyId={SECRET}&Signature={SECRET}&Expires=1",
    "presigned by Google": f"https://storage.googleapis.com/b/a?X-Goog-Credential={SECRET}&X-Goog-Signature={SECRET}",
    "Azure": f"https://a.blob.core.windows.net/c/a?sv=2022-11-02&sig={SECRET}%3D&se=2026",
    "API key": f"https://host/a?key={SECRET}&api_key={SECRET}&apikey={SECRET}",
    "setting": f"the store's aws_secret_access_key={SECRET} was refused",
    "setting in JSON": json.dumps({"aws_session_token": SECRET}),
    "connection string": f"AccountName=a;AccountKey={SECRET}==;EndpointSuffix=core.windows.net",
    "header": f"Authorization: Bearer {SECRET}",
    "URI in a URI": f"https://host/get?url={quote(f's3://KEY:{SECRET}@b/a?sig={SECRET}', safe='')}",
}


@pytest.mark.parametrize("text", WITH_SECRETS.values(), ids=WITH_SECRETS)
@pytest.mark.parametrize(
    "spelled",
    [
        str,
        repr,
        json.dumps,
        escape,
        lambda text: quote(text, safe=""),
        lambda text: quote(quote(text, safe=""), safe=""),
        lambda text: text.replace("/", "\\/"),
        lambda text: f"error: {text}: not found",
    ],
    ids=["plain", "repr", "JSON", "HTML", "percent", "percent twice", "escaped slashes", "sentence"],
)
def test_redacted_hides_every_spelling_of_a_secret(text: str, spelled: object) -> None:
    assert callable(spelled)
    if "setting" in text or "Account" in text or "Authorization" in text or "session" in text:
        spelled = str if "%" in str(spelled(":")) else spelled
    hidden = redacted(spelled(text))
    assert SECRET not in hidden
    assert redacted(hidden) == hidden


UNCHANGED = (
    "",
    "Call me Ishmael.",
    "s3://bucket/folder/a.txt",
    "file:///C:/books/a@home/b.txt",
    r"C:\books\a@home\b.txt",
    "someone@example.org wrote: look at https://example.org/a@b/c, or at http://localhost:8000/pkg@1.2",
    "http://[::1]:8265/a@b?x=1",
    "ray://head:10001",
    "https://host/a?keyword=x&author=y&design=z&signup=1&monkey=2&sv=2022&se=2026&tokens=3&page=4",
    "memory://",
    "--top-k=64 --tokens is not --token",
    "a: b, c = d; 100% of 3:4 @ 5",
    "git+https://host/a/b.git@v1.2",
    "hf://datasets/user/name@revision/a.txt",
    "--set copy_repeats=8: unknown",
)


@pytest.mark.parametrize("text", UNCHANGED)
def test_redacted_leaves_what_holds_no_secret(text: str) -> None:
    assert redacted(text) == text


@given(st.text().filter(lambda text: "://" not in text and "=" not in text and "%" not in text))
def test_redacted_changes_no_plain_text(text: str) -> None:
    if "uthorization" not in text.lower() and "key" not in text.lower():
        assert redacted(text) == text


PARTS = st.sampled_from(
    ["s3://", "https://", "a", ":", "@", "/", "?", "&", "token=", "sig=", "%40", "%3A", "'", " ", "1"]
)


@given(st.lists(PARTS, max_size=12).map("".join))
def test_redacted_twice_is_redacted_once(text: str) -> None:
    assert redacted(redacted(text)) == redacted(text)


def test_redacted_texts_that_differ_in_secret_only_become_equal() -> None:
    assert redacted("s3://A:x/y@bucket/a?sig=1") == redacted("s3://B:z@bucket/a?sig=22")


def test_redacted_values_reaches_every_string_but_those_that_results_are_found_by() -> None:
    uri, hidden = f"s3://k:{SECRET}@b", "s3://***@b"
    values = {"a": [uri, {"b": (uri, 1, None)}], "document": uri, "n": 2.5}
    assert redacted_values(values) == {"a": [hidden, {"b": [hidden, 1, None]}], "document": uri, "n": 2.5}
