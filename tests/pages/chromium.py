"""How is a page opened in a real browser that reaches nothing but the page's own folder or server?"""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import subprocess
import time
from pathlib import Path
from typing import Any

NOWHERE = "http://127.0.0.1:9"
"""A proxy that is not there: every address but this machine's own is sent to it."""
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    *("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--proxy-server={NOWHERE}"),
    *("--proxy-bypass-list=127.0.0.1", "--remote-debugging-pipe"),
)
PATIENCE = 60
GONE = ("Inspected target navigated or closed", "Cannot find context", "Execution context was destroyed")
"""What a browser says when a page is left while it works an expression out."""
SHIFT = 8
"""The modifier of `Browser.press` that turns Tab round."""
DESKTOP, PHONE = 1280, 360
"""Widths of a window, CSS pixels."""


class Browser:
    """One browser without a network; `open` loads a page and collects whatever it complains about.

    It is driven over the DevTools protocol: JSON objects ended by a zero byte on its file descriptors 3
    and 4, so that no port is opened and nothing beyond the browser itself is needed.
    """

    def __init__(self, binary: str, profile: Path) -> None:
        ours_read, theirs_write = os.pipe()
        theirs_read, ours_write = os.pipe()

        def place() -> None:  # the browser reads commands from 3 and writes events to 4
            read, write = os.dup(theirs_read), os.dup(theirs_write)
            os.dup2(read, 3)
            os.dup2(write, 4)

        self._process = subprocess.Popen(
            [binary, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(3, 4),
            preexec_fn=place,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_read)
        os.close(theirs_write)
        self._read, self._write = ours_read, ours_write
        self._pending, self._ids = b"", itertools.count(1)
        self._session: str | None = None
        self._scheme = "light"
        self.events: list[dict[str, Any]] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command and wait for its answer; events on the way are kept."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        _write_all(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != number:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self._pending:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(self._read, 1 << 16) if ready else b""
            if not piece:
                raise RuntimeError(f"chromium said nothing for {PATIENCE} s, or ended")
            self._pending += piece
        message, _, self._pending = self._pending.partition(b"\0")
        event = json.loads(message)
        if event.get("method") == "Page.javascriptDialogOpening":  # it would hold up every later command
            answer = {"id": next(self._ids), "method": "Page.handleJavaScriptDialog"}
            answer |= {"params": {"accept": True}, "sessionId": self._session}
            _write_all(self._write, json.dumps(answer).encode() + b"\0")
        return event

    def open(
        self,
        page: Path | str,
        width: int = DESKTOP,
        height: int = 900,
        scheme: str = "light",
        scripts: bool = True,
    ) -> None:
        """Load a page, from disk or an address with `#…`, and wait until it and its scripts are done."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        self._scheme = scheme
        self.media("screen")
        self.send("Emulation.setScriptExecutionDisabled", value=not scripts)
        self._load("about:blank")  # so that another #… of the same page is opened anew as well
        self._load(page.resolve().as_uri() if isinstance(page, Path) else page)
        # The load that was waited for may have been the blank page's.
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def _load(self, address: str) -> None:
        self.events.clear()
        answer = self.send("Page.navigate", url=address)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())
        if "errorText" in answer:
            raise RuntimeError(f"{address}: {answer['errorText']}")

    def media(self, kind: str) -> None:
        """Show the page as on "screen" or in "print", in the colour scheme it was opened with."""
        feature = {"name": "prefers-color-scheme", "value": self._scheme}
        self.send("Emulation.setEmulatedMedia", media=kind, features=[feature])

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        options = {"returnByValue": True, "awaitPromise": True}
        answer = self.send("Runtime.evaluate", expression=expression, **options)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression[:500]}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def until(self, expression: str) -> Any:
        """The value of a JavaScript expression as soon as it is true."""
        deadline = time.monotonic() + PATIENCE
        while not (value := self._while_there(expression)):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{expression[:500]}: not true within {PATIENCE} s")
            time.sleep(0.02)
        return value

    def _while_there(self, expression: str) -> Any:
        """Its value; None where the page went away meanwhile."""
        try:
            return self.run(expression)
        except RuntimeError as error:
            if any(said in str(error) for said in GONE):
                return None
            raise

    def press(self, key: str, code: int, modifiers: int = 0) -> None:
        """Press and release one key; `code` is its virtual key code, as 9 is that of Tab."""
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text: str) -> None:
        """Type into the focused field."""
        self.send("Input.insertText", text=text)

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        image = self.send("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(image["data"]))

    def print_pdf(self) -> bytes:
        """The page as it is printed, with the colours that a printer is asked to leave out left out."""
        return base64.b64decode(self.send("Page.printToPDF", printBackground=False)["data"])

    def complaints(self) -> list[str]:
        """Console messages, log entries, uncaught errors, policy violations and dialogs since `open`."""
        self.run("1")
        wanted = {
            *("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"),
            *("Audits.issueAdded", "Page.javascriptDialogOpening"),
        }
        return [json.dumps(event["params"]) for event in self.events if event.get("method") in wanted]

    def requested(self) -> list[str]:
        """Addresses asked for since `open`."""
        sent = (event for event in self.events if event.get("method") == "Network.requestWillBeSent")
        return [event["params"]["request"]["url"] for event in sent]

    def close(self) -> None:
        """End the browser this object started."""
        self._session = None
        try:
            self.send("Browser.close")
            self._process.wait(timeout=20)
        except (RuntimeError, OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        finally:
            os.close(self._read)
            os.close(self._write)


def _write_all(descriptor: int, message: bytes) -> None:
    while message:
        message = message[os.write(descriptor, message) :]
