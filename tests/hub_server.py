# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face hub on this machine, as far as `huggingface_hub` needs one to create, upload, list and download."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

Files = dict[str, bytes]


class LocalHub(ThreadingHTTPServer):
    """Hub whose repositories are in memory; each is a list of commits."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, list[Files]] = {}
        self.tokens: set[str] = {"hf_writer"}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *values: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = self.path.strip("/").split("/")
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self.headers.get("Authorization", "").removeprefix("Bearer ") not in self.server.tokens:
            return self._json({"error": "Invalid credentials"}, 401)
        if self.path == "/api/repos/create":
            name = self._full_name(json.loads(body))
            exists = name in self.server.repositories
            self.server.repositories.setdefault(name, [{}])
            url = {"url": f"{self.server.url}/{name}"}
            return self._json(
                {"error": "You already created this model repo", **url} if exists else url, 409 if exists else 200
            )
        name, action = "/".join(parts[2:4]), parts[4]
        if action == "preupload":
            wanted = json.loads(body)["files"]
            return self._json(
                {"files": [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in wanted]}
            )
        assert action == "commit", self.path
        commits = self.server.repositories[name]
        files = dict(commits[-1])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        commits.append(files)
        return self._json(
            {"commitUrl": f"{self.server.url}/{name}/commit/{self._sha(commits)}", "commitOid": self._sha(commits)}
        )

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[0] == "api":
            return self._information("/".join(parts[2:4]), parts[4:])
        name, rest = "/".join(parts[:2]), parts[2:]
        commits = self.server.repositories.get(name)
        content = None if commits is None or rest[0] != "resolve" else commits[-1].get("/".join(rest[2:]))
        if commits is None or content is None:
            code = "RepoNotFound" if commits is None else "EntryNotFound"
            return self._json(
                {"error": "not found"},
                404,
                {"X-Error-Code": code, "X-Repo-Commit": "" if commits is None else self._sha(commits)},
            )
        return self._send(
            content,
            200,
            {
                "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
                "X-Repo-Commit": self._sha(commits),
                "Content-Type": "application/octet-stream",
            },
        )

    do_HEAD = do_GET

    def _information(self, name: str, rest: list[str]) -> None:
        commits = self.server.repositories.get(name)
        if commits is None:
            return self._json({"error": "not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        if rest[:1] == ["tree"]:
            entries = [
                {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for path, data in sorted(commits[-1].items())
            ]
            return self._json(entries)
        siblings = [{"rfilename": path} for path in sorted(commits[-1])]
        return self._json(
            {
                "id": name,
                "modelId": name,
                "sha": self._sha(commits),
                "siblings": siblings,
                "tags": [],
                "private": False,
                "downloads": 0,
                "likes": 0,
            }
        )

    def _full_name(self, given: dict[str, Any]) -> str:
        return f"{given.get('organization') or 'writer'}/{given['name']}"

    def _sha(self, commits: list[Files]) -> str:
        return f"{len(commits):040x}"

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    """Serve a hub until the block ends."""
    with LocalHub() as hub:
        thread = Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
