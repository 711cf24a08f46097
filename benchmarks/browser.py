# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium, driven through chromedriver's own protocol (W3C WebDriver): pages as a person uses them."""

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
LIMIT_S = 20.0
"""Seconds that a condition may take to become true."""


FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
MIDDLE = """
const found = document.querySelectorAll(arguments[0])[arguments[1]];
found.scrollIntoView({block: "center"});
const box = found.getClientRects()[0];
return [box.x + box.width / 2, box.y + box.height / 2];
"""
KEYS = {"left": "\ue012", "up": "\ue013", "right": "\ue014", "down": "\ue015", "enter": "\ue007", "tab": "\ue004"}


class Browser:
    """One window."""

    def __init__(self, address: str) -> None:
        self._address = address
        options = {"binary": CHROMIUM, "args": FLAGS}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        found = self._ask("POST", "session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"session/{found['sessionId']}"

    def close(self) -> None:
        self._ask("DELETE", self._session)

    def open(self, url: str) -> None:
        self._ask("POST", f"{self._session}/url", {"url": url})

    def run(self, script: str, *arguments: object) -> Any:
        """Return what the body of a function returns in the page."""
        return self._ask("POST", f"{self._session}/execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, condition: str, *arguments: object) -> Any:
        """Run an expression until it is true in the page, and return its value."""
        end = monotonic() + LIMIT_S
        while not (found := self.run(f"return {condition}", *arguments)):
            if monotonic() > end:
                said = self.run("return document.body.innerText")
                raise AssertionError(f"{condition} {arguments}: never true; the page says {said[:2000]}")
            sleep(0.05)
        return found

    def texts(self, selector: str) -> list[str]:
        return list(
            self.run("return [...document.querySelectorAll(arguments[0])].map((each) => each.innerText)", selector)
        )

    def click(self, selector: str, at: int = 0) -> None:
        """Click the middle of an element, as a mouse does: what covers it gets the click."""
        x, y = self.run(MIDDLE, selector, at)
        moves = [
            {"type": "pointerMove", "x": int(x), "y": int(y), "duration": 0},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerUp", "button": 0},
        ]
        self._act({"type": "pointer", "id": "mouse", "actions": moves})

    def press(self, *keys: str) -> None:
        """Press keys one after the other; `KEYS` names those without a character."""
        actions = [{"type": kind, "value": KEYS.get(key, key)} for key in keys for kind in ("keyDown", "keyUp")]
        self._act({"type": "key", "id": "keyboard", "actions": actions})

    def _act(self, actions: dict[str, Any]) -> None:
        self._ask("POST", f"{self._session}/actions", {"actions": [actions]})

    def back(self) -> None:
        self._ask("POST", f"{self._session}/back", {})

    def look(self, width: int, height: int, scheme: str = "light") -> None:
        """Set the size of the window in CSS pixels, and the preferred colours."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._command("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._command("Emulation.setEmulatedMedia", {"features": features})

    def _command(self, name: str, parameters: dict[str, Any]) -> None:
        self._ask("POST", f"{self._session}/goog/cdp/execute", {"cmd": name, "params": parameters})

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._ask("GET", f"{self._session}/screenshot")))

    def errors(self) -> list[str]:
        """Return what the page wrote to its console since the last call: errors, and what its policy forbids."""
        entries = self._ask("POST", f"{self._session}/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]

    def _ask(self, method: str, path: str, values: dict[str, Any] | None = None) -> Any:
        body = None if values is None else json.dumps(values).encode()
        request = Request(f"{self._address}/{path}", body, {"Content-Type": "application/json"}, method=method)
        try:
            with urlopen(request, timeout=90) as reply:
                return json.load(reply)["value"]
        except HTTPError as error:
            raise AssertionError(f"{path} {values}: {error.read().decode()[:2000]}") from error


@contextmanager
def opened_browser() -> Iterator[Browser]:
    """Yield a new window; it is closed at the end."""
    assert DRIVER is not None
    with subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        try:
            started = next(line for line in driver.stdout if "started successfully on port" in line)
            port = started.rstrip().rstrip(".").rpartition(" ")[2]
            browser = Browser(f"http://127.0.0.1:{port}")
            try:
                yield browser
            finally:
                browser.close()
        finally:
            driver.terminate()
