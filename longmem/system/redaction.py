# SPDX-License-Identifier: Apache-2.0
"""Redaction of secrets in URIs and settings, for terminals, logs, status files and results.

It hides the user and password of every URI, query parameters and fragments with the name of a secret, and settings such
as `aws_secret_access_key=…`. It handles percent-encoded and chained URIs (`simplecache::s3://…`), and URIs in quotes,
JSON and HTML. Text without secrets stays unchanged, and so does redacted text.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote

HIDDEN = "***"

DATA_FIELDS = frozenset({"document", "example", "work", "answer", "cell", "tokens", "passage"})
"""Fields with data of the inputs, by which results are looked up and computed; they are not redacted."""

# a colon, a slash, a question mark, ... plain, or percent-encoded one or more times
_COLON = r"(?::|%(?:25)*3A)"
_SLASH = r"(?:\\?/|%(?:25)*2F)"
_AT = r"(?:@|%(?:25)*40)"
_EQUALS = r"(?:=|%(?:25)*3D)"
_SCHEME = rf"(?<=[a-z0-9+.-])(?P<scheme>{_COLON}{_SLASH}{_SLASH})"
# characters that end a URI in a text
_END = r"\s'\"<>`"

_USER_INFO = re.compile(
    rf"{_SCHEME}(?:"
    # user:password@ and token@, up to the last @ before a slash
    rf"(?P<short>(?:(?!{_SLASH}|%(?:25)*(?:3F|23))[^{_END}?#])+)"
    # likewise after a third slash, as in paths of some file systems, if there is a password
    rf"|{_SLASH}(?P<third>(?:(?!{_SLASH}|{_COLON}|%(?:25)*(?:3F|23))[^{_END}?#])*{_COLON}"
    rf"(?:(?!{_SLASH}|%(?:25)*(?:3F|23))[^{_END}?#])+)"
    # user:password@ with slashes in the password, unless the colon is followed by the port of a host
    rf"|(?P<long>(?!(?:[\w.-]+|\[[0-9a-f:.]+\])(?::|%(?:25)*3A)\d{{1,5}}(?:[/?#{_END}]|\\/|%(?:25)*2F|$))"
    rf"(?:(?!{_SLASH}|{_COLON}|%(?:25)*(?:3F|23)|{_AT})[^{_END}?#])*{_COLON}"
    rf"(?:(?!{_COLON}{_SLASH}{_SLASH})[^{_END}?#,])*)"
    rf"){_AT}",
    re.IGNORECASE,
)

_SECRET_NAME = (
    r"(?:[a-z0-9._$~-]*[._$~-])?(?:"
    r"(?:access|refresh|auth|id|session|security|sas|bearer|api|hf|private|oauth|csrf|xsrf)?[_-]?token"
    r"|(?:api|access|account|secret|private|signing|subscription|shared|auth|aws)?[_-]?(?:access)?[_-]?key(?:[_-]?id)?"
    r"|(?:client|app|shared|aws)?[_-]?secret|password|passwd|passphrase|passcode|pwd|pass"
    r"|auth|authorization|credentials?|signature|sig|sas|jwt|code_verifier"
    r")"
)
_PARAMETER = re.compile(
    # ? & ; # plain, percent-encoded, or escaped as in JSON and HTML
    rf"(?P<name>(?:[?&;#]|%(?:25)*(?:3F|26|3B|23)|\\u0026){_SECRET_NAME}{_EQUALS})"
    rf"(?P<secret>(?:(?!%(?:25)*(?:26|23)|\\u0026|\\)[^&;#{_END}])+)",
    re.IGNORECASE,
)
_QUOTE = r"\\?(?:[\"']|&quot;|&#\d+;|%(?:25)*2[27])?"
_SETTING = re.compile(
    r"(?P<name>(?:secret[_-]access[_-]key|access[_-]key[_-]id|session[_-]token|account[_-]?key|sas[_-](?:token|key)"
    r"|client[_-]secret|shared[_-]?access[_-]?signature|(?:hf|hugging[_-]?face)[_-]token)"
    rf"{_QUOTE}\s*(?:[=:]|%(?:25)*3[AD])\s*{_QUOTE})"
    rf"(?:(?!%(?:25)*(?:2[0267C]|3B)|&quot;|&#)[^\\,;&#}}{_END}])+",
    re.IGNORECASE,
)
_HEADER = re.compile(
    rf"(?P<name>\bAuthorization{_QUOTE}\s*[=:]\s*{_QUOTE}(?:Bearer|Basic|Token)\s+)[^\\,;{_END}]+", re.IGNORECASE
)


LEAST_KNOWN = 6
"""Minimum characters of a known secret that is hidden everywhere: a shorter one would match parts of words."""
_known: re.Pattern[str] | None = None


def know_secrets(texts: Iterable[str]) -> None:
    """Hide the secrets of the URIs in these texts (a command's arguments) everywhere from now on.

    Libraries report URIs without scheme, or in parts, in which no pattern detects a password.
    """
    global _known
    found: set[str] = set()
    for text in texts:
        for match in _USER_INFO.finditer(text):
            whole = match["short"] or match["third"] or match["long"]
            found |= {whole, re.split(_COLON, whole, maxsplit=1, flags=re.IGNORECASE)[-1]}
        found |= {match["secret"] for match in _PARAMETER.finditer(text)}
    found |= {unquote(each) for each in found}
    secrets = sorted((each for each in found if len(each) >= LEAST_KNOWN), key=len, reverse=True)
    _known = re.compile("|".join(map(re.escape, secrets))) if secrets else None


def redacted(text: str) -> str:
    """Return `text` with every secret of its URIs and settings replaced by `***`."""
    if _known is not None:
        text = _known.sub(HIDDEN, text)
    if not any(sign in text for sign in ("=", ":", "%")):
        return text
    before = None
    while text != before:
        # repeat: hiding one secret may make another one match, as in a URI within a URI
        before = text
        text = _USER_INFO.sub(rf"\g<scheme>{HIDDEN}@", text)
        for pattern in (_PARAMETER, _SETTING, _HEADER):
            text = pattern.sub(rf"\g<name>{HIDDEN}", text)
    return text


def redacted_values(values: Any) -> Any:
    """Return JSON values with every string redacted, except in `DATA_FIELDS`."""
    if isinstance(values, str):
        return redacted(values)
    if isinstance(values, Mapping):
        return {name: value if name in DATA_FIELDS else redacted_values(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [redacted_values(value) for value in values]
    return values
