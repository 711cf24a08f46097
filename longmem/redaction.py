"""Secrets that URIs carry never reach a log, a status file or a summary."""

import re

HIDDEN = "***"

_USER_INFO = re.compile(r"(?P<scheme>\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^/\s?#'\"]*@")
_PARAMETER = re.compile(
    r"(?P<name>[?&;][^=&;#\s'\"]*"
    r"(?:token|key|secret|password|passwd|pwd|auth|credential|signature|sig|sas)[^=&;#\s'\"]*=)[^&;#\s'\"]+",
    re.IGNORECASE,
)


def redacted(text: str) -> str:
    """`text` with the user and password of every URI, and the values of query parameters that look like secrets,
    replaced by `***`. Text without them comes back unchanged."""
    return _PARAMETER.sub(rf"\g<name>{HIDDEN}", _USER_INFO.sub(rf"\g<scheme>{HIDDEN}@", text))
