"""Chromium for tests that look at pages: started once, spoken to over its debugging pipe, no library needed."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One tab. Messages are JSON ended by a zero byte, as --remote-debugging-pipe wants them."""

    def __init__(self, orders: BinaryIO, answers: BinaryIO) -> None:
        self._orders, self._answers = orders, answers
        self._number, self._rest = 0, b""
        self._session: str | None = None
        self.requested: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")
        self.call("Network.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of one call. Raises RuntimeError if Chromium refuses it."""
        self._number += 1
        order: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            order["sessionId"] = self._session
        self._orders.write(json.dumps(order).encode() + b"\0")
        self._orders.flush()
        while (message := self._message()).get("id") != self._number:
            pass
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']}")
        result: dict[str, Any] = message["result"]
        return result

    def open(self, page: Path) -> None:
        """Load a file."""
        self.call("Page.navigate", url=page.as_uri())
        while self._message().get("method") != "Page.loadEventFired":
            pass

    def set(self, width: int, theme: str) -> None:
        """A window of that many pixels, and `prefers-color-scheme` light or dark."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            read = os.read(self._answers.fileno(), 1 << 20)
            if not read:
                raise RuntimeError("Chromium has ended")
            self._rest += read
        told, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(told)
        if message.get("method") == "Network.requestWillBeSent":
            self.requested.append(message["params"]["request"]["url"])
        return message


_PLACE_PIPES = "import os, sys; os.dup2({}, 3); os.dup2({}, 4); os.execv(sys.argv[1], sys.argv[1:])"
"""Chromium reads from file 3 and writes to file 4."""


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A headless Chromium with a fresh profile; it ends with the block."""
    assert CHROMIUM
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"]
    with ExitStack() as stack:
        ends = [
            stack.enter_context(os.fdopen(end, mode))
            for end, mode in zip([*os.pipe(), *os.pipe()], ["rb", "wb", "rb", "wb"], strict=True)
        ]
        for_chromium, orders, answers, from_chromium = ends
        process = subprocess.Popen(
            [
                *[sys.executable, "-c", _PLACE_PIPES.format(for_chromium.fileno(), from_chromium.fileno())],
                *[CHROMIUM, *options, f"--user-data-dir={profile}"],
            ],
            pass_fds=(for_chromium.fileno(), from_chromium.fileno()),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for_chromium.close()
        from_chromium.close()
        try:
            yield Browser(cast("BinaryIO", orders), cast("BinaryIO", answers))
        finally:
            orders.close()  # Chromium ends when its pipe does
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
