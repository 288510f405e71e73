"""A page opened in headless Chromium: its elements, what it said on the console, and what it asked the network for."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# The last one lets no name be resolved: neither the page nor the browser itself can reach anything.
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *(
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-extensions",
        "--disable-default-apps",
    ),
    *("--virtual-time-budget=10000", "--enable-logging=stderr", "--v=0"),
    "--host-resolver-rules=MAP * ~NOTFOUND",
)


class Element(NamedTuple):
    tag: str
    attributes: dict[str, str | None]


class Document(HTMLParser):
    """The elements of a page, in order, and its text outside scripts and styles."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[Element] = []
        self.text, self._inside = "", ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [element.attributes for element in self.elements if element.tag == tag]


class Opened(NamedTuple):
    """What a browser made of a page."""

    document: Document
    console: list[str]
    requests: list[str]


def opened(path: Path, *flags: str) -> Opened:
    """Open the file in headless Chromium; skip the test where there is none."""
    if not CHROMIUM:
        pytest.skip("no browser here: install Debian's chromium to test the page in one")
    home = path.parent / f"browser-{len(list(path.parent.iterdir()))}"
    net = home.with_suffix(".json")
    command = [
        CHROMIUM,
        *FLAGS,
        f"--user-data-dir={home}",
        f"--log-net-log={net}",
        *flags,
        "--dump-dom",
        f"file://{path}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    started = [line for line in net.read_text().splitlines() if '"initiator"' in line]
    # The browser asks for its own updates, from "not an origin"; what is left was asked for by the page.
    asked = [line for line in started if '"initiator":"not an origin"' not in line]
    requests = [url for line in asked for url in re.findall(r'"url":"((?:https?|wss?|ftp):[^"]*)"', line)]
    shutil.rmtree(home, ignore_errors=True)
    return Opened(Document(done.stdout), console, requests)
