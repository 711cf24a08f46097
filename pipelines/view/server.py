# SPDX-License-Identifier: Apache-2.0
"""Web server of the page: this machine only, read only, and only for those who know its address.

It listens on the loopback interface. Other users of the machine reach that too, so that every path begins with a random
key. The Host header must name this machine: a foreign site whose name resolves to 127.0.0.1 is refused.
"""

import json
import secrets
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any
from urllib.parse import parse_qs

from longmem.errors import ConfigError, LongMemError
from pipelines.view.questions import AbstractAnswers, BadRequestError, NoSuchAnswerError

HOST = "127.0.0.1"
NAMES = ("127.0.0.1", "localhost")
"""Names of this machine in a Host header. Any port will do: ssh may forward another one."""
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class ViewServer(ThreadingHTTPServer):
    """Server of one run; `serve_forever` runs it. Raises ConfigError for a port that is in use."""

    daemon_threads = True

    def __init__(self, answers: AbstractAnswers, page: str, port: int) -> None:
        """`port` 0 takes a free one."""
        self.answers = answers
        self.page = page.encode("utf-8", "replace")
        self.key = secrets.token_urlsafe(16)
        try:
            super().__init__((HOST, port), ViewRequest)
        except OSError as error:
            raise ConfigError(
                f"--port {port} cannot be used: {error.strerror}; choose another or leave it out"
            ) from error

    def server_bind(self) -> None:
        # the one of HTTPServer also asks a name server for this machine's name, which can take seconds
        TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}/{self.key}/"


class ViewRequest(BaseHTTPRequestHandler):
    """One request for the page or for data."""

    server: ViewServer
    protocol_version = "HTTP/1.1"
    timeout = 60
    """Seconds until an idle connection is closed."""

    def do_GET(self) -> None:
        if self.headers.get("Host", "").partition(":")[0] not in NAMES:
            self._send(HTTPStatus.MISDIRECTED_REQUEST, "text/plain", b"this server answers to its own machine only\n")
            return
        path, _, query = self.path.partition("?")
        key, _, name = path.removeprefix("/").partition("/")
        if not secrets.compare_digest(key.encode(), self.server.key.encode()):
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"use the whole address that longmem view printed\n")
        elif name == "":
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page)
        else:
            self._answer(name, parse_qs(query))

    def do_HEAD(self) -> None:
        self.do_GET()

    def _answer(self, name: str, query: dict[str, list[str]]) -> None:
        def number(field: str) -> int:
            text = query.get(field, [""])[-1]
            try:
                return int(text)
            except ValueError:
                raise BadRequestError(f"{field} must be a whole number, got {text!r}") from None

        try:
            found = self.server.answers.answer(name, number)
        except NoSuchAnswerError as error:
            self._send_json(HTTPStatus.NOT_FOUND, {"error": str(error)})
        except BadRequestError as error:
            self._send_json(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        except (LongMemError, OSError) as error:
            # a table that was removed or replaced while the page is open
            self._send_json(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": str(error)})
        else:
            self._send_json(HTTPStatus.OK, found)

    def _send_json(self, status: HTTPStatus, values: Any) -> None:
        text = json.dumps(values, separators=(",", ":"), allow_nan=False)
        self._send(status, "application/json", text.encode("ascii"))

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *values: object) -> None:  # noqa: A002 - named by http.server
        """Write nothing: the address holds the key."""
