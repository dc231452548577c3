"""A page in headless Chromium, which is told over a pipe, in the DevTools protocol."""

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or ""
PHONE, DESK = (390, 844), (1280, 900)
ASKS = "Network.requestWillBeSent"
COMPLAINS = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
_SWITCHED_OFF = ("gpu", "component-update", "background-networking", "sync", "extensions")


class Browser:
    """One tab.

    Args:
        commands: The file that the browser reads.
        answers: The file that it writes.

    Attributes:
        events: What it said without being asked, as (method, parameters).
    """

    def __init__(self, commands: IO[bytes], answers: IO[bytes]) -> None:
        self._commands, self._answers = commands, answers
        self._number = 0
        self._session: dict[str, str] = {}
        self.events: list[tuple[str, dict[str, Any]]] = []
        target = self.tell("Target.createTarget", url="about:blank")["targetId"]
        opened = self.tell("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": opened["sessionId"]}
        for part in ("Page", "Runtime", "Log", "Network"):
            self.tell(f"{part}.enable")

    def tell(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Give a command and wait for its answer."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters} | self._session
        self._commands.write(json.dumps(command).encode() + b"\0")
        answer = next(message for message in self._messages() if message.get("id") == self._number)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, path: Path) -> None:
        """Open a page, and wait until all of it is there."""
        self.events.clear()
        self.tell("Page.navigate", url=path.as_uri())
        while not any(method == "Page.loadEventFired" for method, _ in self.events):
            next(self._messages())

    def ask(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        answer = self.tell("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"]["value"]

    def look(self, size: tuple[int, int], scheme: str = "light") -> None:
        """Take the size of a screen, and the colours that its owner likes."""
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1}
        is_phone = width < 500
        self.tell("Emulation.setDeviceMetricsOverride", **metrics, mobile=is_phone)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.tell("Emulation.setEmulatedMedia", features=features)

    def _messages(self) -> Iterator[dict[str, Any]]:
        while True:
            content = bytearray()
            while (byte := self._answers.read(1)) != b"\0":
                assert byte, "the browser has gone"
                content += byte
            message = json.loads(content)
            if "method" in message:
                self.events.append((message["method"], message["params"]))
            yield message


@contextmanager
def browsing(profile: Path) -> Generator[Browser]:
    """Start a browser; it reads commands from its file 3 and answers on 4."""
    to_browser, from_browser = os.pipe(), os.pipe()
    # bash puts them into place: their numbers must not be 3 and 4 already
    reads, writes = (fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (to_browser[0], from_browser[1]))
    options = [f"--disable-{what}" for what in _SWITCHED_OFF]
    options += ["--headless", "--no-sandbox", "--no-first-run", "--remote-debugging-pipe"]
    place = f'exec "$@" 3<&{reads} 4>&{writes}'
    process = subprocess.Popen(
        ["bash", "-c", place, "bash", BROWSER, *options, f"--user-data-dir={profile}"],
        pass_fds=(reads, writes),
        stderr=subprocess.DEVNULL,
    )
    for descriptor in (reads, writes, to_browser[0], from_browser[1]):
        os.close(descriptor)
    with os.fdopen(to_browser[1], "wb", 0) as commands, os.fdopen(from_browser[0], "rb") as answers:
        try:
            yield Browser(commands, answers)
        finally:
            process.terminate()
            process.wait(20)
