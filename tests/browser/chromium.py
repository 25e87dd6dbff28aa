"""Chromium without a window, driven over its DevTools protocol: pages are opened, clicked, asked and photographed.

The protocol is JSON over a WebSocket, https://chromedevtools.github.io/devtools-protocol/.
"""

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

PATIENCE = 60.0  # seconds for anything to happen; machines are slow at times
FLAGS = (
    "--headless=new", "--no-first-run", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
    "--disable-component-update", "--disable-default-apps", "--disable-extensions", "--disable-sync", "--mute-audio",
    "--disable-background-timer-throttling", "--disable-renderer-backgrounding",
    "--disable-features=Translate,MediaRouter,OptimizationHints", "--hide-scrollbars", "--force-color-profile=srgb",
)  # fmt: skip


def find_chromium() -> str | None:
    """The browser's program; None where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if found := shutil.which(name):
            return found
    return None


class Chromium:
    """One browser. `flags` beyond the usual ones; `folder` holds its profile.

    `with Chromium(tmp_path) as browser: page = browser.open("http://127.0.0.1:8998")`.
    """

    def __init__(self, folder: Path, *flags: str):
        program = find_chromium()
        assert program is not None
        root = ("--no-sandbox",) if hasattr(os, "geteuid") and os.geteuid() == 0 else ()
        command = [program, *FLAGS, *root, *flags, f"--user-data-dir={folder}", "--remote-debugging-port=0"]
        folder.mkdir(parents=True, exist_ok=True)
        self.log = (folder / "log.txt").open("wb")
        self.process = subprocess.Popen([*command, "about:blank"], stdout=self.log, stderr=self.log)
        self._ids, self._pages = itertools.count(1), []
        port_file, end = folder / "DevToolsActivePort", time.monotonic() + PATIENCE
        while not (port_file.exists() and len(port_file.read_text().split()) == 2):
            if self.process.poll() is not None or time.monotonic() > end:
                self.process.kill()
                raise RuntimeError(f"Chromium did not start: {(folder / 'log.txt').read_text()[-2000:]}")
            time.sleep(0.02)
        port, path = port_file.read_text().split()
        self.link = connect(f"ws://127.0.0.1:{port}{path}", max_size=None, open_timeout=PATIENCE, compression=None)
        self._answers: dict[int, dict] = {}

    def __enter__(self) -> "Chromium":
        return self

    def __exit__(self, *fault: Any) -> None:
        try:
            self.send("Browser.close")
            self.process.wait(10)
        except Exception:
            self.process.kill()
            self.process.wait(10)
        finally:
            self.link.close()
            self.log.close()

    def send(self, method: str, session: str | None = None, **parameters: Any) -> dict:
        """A command and its result."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": parameters}
        self.link.send(json.dumps(message if session is None else {**message, "sessionId": session}))
        end = time.monotonic() + PATIENCE
        while number not in self._answers:
            self._take(end - time.monotonic())
        answer = self._answers.pop(number)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _take(self, seconds: float) -> None:
        message = json.loads(self.link.recv(timeout=max(0.0, seconds)))
        if "id" in message:
            self._answers[message["id"]] = message
        else:
            for page in self._pages:
                if page.session == message.get("sessionId"):
                    page.happened(message["method"], message["params"])

    def open(self, url: str, before: str = "", permissions: tuple[str, ...] = ()) -> "Page":
        """A page in a context of its own (no cookies, no storage of others'). `before`: a script that runs first."""
        context = self.send("Target.createBrowserContext")["browserContextId"]
        if permissions:
            self.send("Browser.grantPermissions", permissions=list(permissions), browserContextId=context)
        target = self.send("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, target, context)
        self._pages.append(page)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.send(f"{domain}.enable")
        if before:
            page.send("Page.addScriptToEvaluateOnNewDocument", source=before)
        page.go(url)
        return page


class Page:
    """One page. `faults`: what its console reported as an error; `requests`: each address it asked for."""

    def __init__(self, browser: Chromium, session: str, target: str, context: str):
        self.browser, self.session, self.target, self.context = browser, session, target, context
        self.faults: list[str] = []
        self.requests: list[str] = []

    def send(self, method: str, **parameters: Any) -> dict:
        """A command to this page and its result."""
        return self.browser.send(method, self.session, **parameters)

    def happened(self, method: str, parameters: dict) -> None:
        """Keep what the page reports."""
        if method == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.faults.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "assert"):
            self.faults.append(" ".join(str(a.get("value", a.get("description"))) for a in parameters["args"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.faults.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Network.webSocketCreated":
            self.requests.append(parameters["url"])

    def go(self, url: str) -> None:
        """Load another address, until its modules have run."""
        self.send("Page.navigate", url=url)
        there = "true" if url == "about:blank" else "location.href !== 'about:blank'"
        self.wait(f"document.readyState === 'complete' && {there}")

    def evaluate(self, expression: str, gesture: bool = False) -> Any:
        """The value of a JavaScript expression; promises are awaited."""
        done = self.send(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=gesture
        )
        if "exceptionDetails" in done:
            details = done["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description") or details["text"])
        return done["result"].get("value")

    def wait(self, expression: str, seconds: float = PATIENCE) -> Any:
        """The expression's value (True for an element) as soon as it is true; after `seconds` an error that shows the
        page's words."""
        end = time.monotonic() + seconds
        looked = f"const it = {expression}; return it instanceof Element || it"
        script = f"(() => {{ try {{ {looked} }} catch {{ return null }} }})()"
        while not (value := self.evaluate(script)):
            if time.monotonic() > end:
                shown = self.evaluate("document.body ? document.body.innerText : ''")
                raise AssertionError(f"not in {seconds:.0f} s: {expression}\npage: {shown}\nfaults: {self.faults}")
            time.sleep(0.05)
        return value

    def text(self, selector: str) -> str:
        """What is written in the first element that fits."""
        return self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")

    def middle(self, selector: str) -> tuple[float, float]:
        """Where an element's middle is, scrolled into view."""
        where = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({ block: 'nearest', behavior: 'instant' });"
            " const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2] })()"
        )
        return where[0], where[1]

    def press(self, selector: str, kinds: tuple[str, ...] = ("mousePressed", "mouseReleased")) -> None:
        """The mouse on an element, as a person would; `kinds` for holding it."""
        x, y = self.middle(selector)
        for kind in kinds:
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def key(self, key: str, code: str, kinds: tuple[str, ...] = ("keyDown", "keyUp"), text: str = "") -> None:
        """A key; `kinds` for holding it."""
        number = {"Enter": 13, "Tab": 9, "Space": 32, "Escape": 27}.get(code, 0)
        for kind in kinds:
            more = {"text": text} if text and kind == "keyDown" else {}
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=code, windowsVirtualKeyCode=number, **more)

    def size(self, width: int, height: int, phone: bool = False, scale: float = 1.0) -> None:
        """The window's size in CSS pixels."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone
        )
        if phone:
            self.send("Emulation.setTouchEmulationEnabled", enabled=True)

    def media(self, **features: str) -> None:
        """What the page's media queries see: `prefers_color_scheme="dark"`."""
        told = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.send("Emulation.setEmulatedMedia", features=told)

    def download(self, selector: str, folder: Path) -> Path:
        """Press what offers a file; where the file is once it is there."""
        self.browser.send(
            "Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder), browserContextId=self.context
        )
        before, end = set(folder.glob("*")), time.monotonic() + PATIENCE
        self.press(selector)
        while time.monotonic() < end:
            if new := [path for path in set(folder.glob("*")) - before if path.suffix != ".crdownload"]:
                return new[0]
            time.sleep(0.05)
        raise AssertionError(f"nothing was downloaded from {selector}")

    def photograph(self, path: Path) -> None:
        """A PNG of what is seen."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        """Close the page."""
        self.browser.send("Target.closeTarget", targetId=self.target)
