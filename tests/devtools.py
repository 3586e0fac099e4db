"""A page of a server in a headless Chromium, used as a person would: through the browser's DevTools protocol, on a pipe."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from browser import BROWSER, PHONE, QUIET

WAIT = 30  # seconds at most for what a page is to come to

# What Chromium reads and writes is fixed: 3 and 4. A shell can only move file numbers of one digit.
ON_3_AND_4 = """
import fcntl, os, sys
for given in (1, 2):
    sys.argv[given] = fcntl.fcntl(int(sys.argv[given]), fcntl.F_DUPFD, 10)
os.dup2(sys.argv[1], 3)
os.dup2(sys.argv[2], 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""


class Page:
    """An open page. said: errors and warnings of its console, scripts, policy and network; asked: addresses that it asked for."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = os.fdopen(read, "rb"), os.fdopen(write, "wb")
        self._session: str | None = None
        self._number, self.said, self.asked = 0, list[str](), list[str]()
        target = self.tell("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.tell("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self.tell(f"{domain}.enable")

    def tell(self, method: str, **words: Any) -> dict[str, Any]:
        """A command of the protocol and its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": words}
        if self._session is not None:
            message["sessionId"] = self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        self._write.flush()
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer)
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer.get("method", ""), answer.get("params", {}))

    def _next(self) -> dict[str, Any]:
        content = bytearray()
        while (letter := self._read.read(1)) not in (b"\0", b""):
            content += letter
        assert content, "the browser has ended"
        message: dict[str, Any] = json.loads(content)
        return message

    def _note(self, event: str, words: dict[str, Any]) -> None:
        if event == "Log.entryAdded" and words["entry"]["level"] in ("error", "warning"):
            self.said.append(f"{words['entry']['text']} {words['entry'].get('url', '')}")
        elif event == "Runtime.exceptionThrown":
            self.said.append(words["exceptionDetails"].get("exception", {}).get("description", "exception"))
        elif event == "Runtime.consoleAPICalled" and words["type"] in ("error", "warning", "assert"):
            self.said.append(json.dumps(words["args"]))
        elif event == "Network.requestWillBeSent":
            self.asked.append(words["request"]["url"])

    def open(self, address: str, width: int = PHONE, height: int = 800, dark: bool = False) -> None:
        self.tell("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width <= PHONE)
        self.tell("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.tell("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def find(self, script: str) -> Any:
        """The value of an expression of JavaScript."""
        answer = self.tell("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, script: str) -> None:
        """Until the expression is true."""
        deadline = time.monotonic() + WAIT
        while not self.find(script):
            assert time.monotonic() < deadline, f"in vain: {script}; {self.said}; {self.find('document.body.innerText')}"
            time.sleep(0.02)

    def choose(self, selector: str, path: Path) -> None:
        """Give a file to an input, as a file dialogue does."""
        root = self.tell("DOM.getDocument")["root"]["nodeId"]
        node = self.tell("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.tell("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def drop(self, path: Path, x: int, y: int) -> None:
        """Drag a file from outside the browser to a place of the page, in CSS pixels, and let it go."""
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.tell("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def press(self, key: str, code: int) -> None:
        text = {"text": " "} if key == " " else {}
        for kind in ("keyDown", "keyUp"):
            self.tell("Input.dispatchKeyEvent", type=kind, key=key, code="Space" if key == " " else key, windowsVirtualKeyCode=code, **text)

    def photograph(self, path: Path) -> None:
        """The whole page as PNG."""
        shot = self.tell("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        self._session = None
        self.tell("Browser.close")
        self._read.close()
        self._write.close()


@contextmanager
def a_page(folder: Path) -> Iterator[Page]:
    """A browser of its own, with its profile in `folder`."""
    assert BROWSER is not None
    (theirs, write), (read, theirs_too) = os.pipe(), os.pipe()
    command = [BROWSER, "--headless", "--no-sandbox", *QUIET, f"--user-data-dir={folder / 'profile'}", "--remote-debugging-pipe", "--hide-scrollbars"]
    launch = [sys.executable, "-ISc", ON_3_AND_4, str(theirs), str(theirs_too), *command]
    browser = subprocess.Popen(launch, pass_fds=(theirs, theirs_too), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(theirs)
    os.close(theirs_too)
    try:
        page = Page(read, write)
        yield page
        page.close()
        browser.wait(10)
    finally:
        browser.kill()
        browser.wait()
