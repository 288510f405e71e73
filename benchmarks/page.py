"""How large the page of a release-tier run is, and how soon a browser shows it.

The run is simulated, without any model: every attack of tiers/release.toml on three subjects, with the tier's seeds, each with
its path of looks, scores of 40 prompts a kind, and the real statistics (`simulated_grid.py` of the tests makes the cells). The
page is written as `holdfast report` writes it, then opened in headless Chromium several times, each with an empty profile.

- `first_words_seconds`: from navigation until the browser has painted text. The browser has long started then.
- `dom_seconds`, `load_seconds`: until DOMContentLoaded and load; from then on the page can be read and scrolled whole.
- `first_figure_seconds`: until the first figure is drawn, which waits for plotly's own script to be compiled; the others follow
  one at a time, those unfolded only.
- `all_figures_seconds`: until all that are unfolded are drawn.
- `cpu_seconds_to_first_figure`: what all of the browser's processes work until then, less what they work for an empty page; of
  a machine that does other things meanwhile this says more than its seconds.
- `heap_bytes`: the script heap then.

Seconds are the browser's own, on whatever else the machine does: `load` is its load average meanwhile.

Run: python benchmarks/page.py [--times N] [--keep FILE]
"""

import argparse
import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from statistics import median
from typing import ClassVar

import numpy as np
import psutil

from holdfast import method, tier, verdict
from holdfast.dossier import Dossier
from holdfast.evidence import Evidence
from holdfast.prepare import hardware
from holdfast.record import Manifest
from holdfast.report import page
from holdfast.report.sources import Sources

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
import simulated_grid  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
STEPS = (0, 1, 2, 3, 4, 6, 9, 13, 20, 30, 45, 60, 90, 130, 200, 256)
SECONDS = 120
"""That a page is waited for."""
SEVERITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
WATCH = """
const tell = (times) => fetch("ADDRESS", { method: "POST", mode: "no-cors", body: JSON.stringify(times) });
const when = (ready, then) => { const look = () => ready() ? then() : setTimeout(look, 20); look(); };
const first = () => performance.getEntriesByName("first-figure")[0];
const words = () => performance.getEntriesByName("first-contentful-paint")[0]?.startTime ?? 0;
when(() => FIRST, () => tell([]));
when(() => LAST, () => {
  const [{ domContentLoadedEventEnd, loadEventEnd }] = performance.getEntriesByType("navigation");
  const figures = [first()?.startTime ?? 0, performance.now()];
  tell([domContentLoadedEventEnd, loadEventEnd, ...figures, performance.memory.usedJSHeapSize, words()]);
});
"""
DRAWN = ("first()", "document.documentElement.dataset.drawn")
"""When a page's first figure is drawn, and when all are."""
STARTED = 2
"""Seconds that the browser has to start."""
BLANK = ("true", "performance.now() > 1000")


def plans(content: dict) -> list[simulated_grid.Plan]:
    """The tier's attacks, each with some path."""
    random, made = np.random.default_rng(0), []
    for number, entry in enumerate(content["attacks"]):
        found = method.find("attacks", entry["method"])
        settings = {name: value for name, value in entry.items() if name not in ("name", "method", "seeds")}
        clock = isinstance(found.axis, str) and found.axis == "steps"
        made.append(
            simulated_grid.Plan(
                name=entry.get("name", f"{entry['method']}-{number}"),
                family=found.family,
                axis="steps" if clock else str(found.axis) if isinstance(found.axis, str) else "severity",
                path=STEPS if clock else SEVERITIES,
                breaks=float(random.uniform(0.02, 0.9)),
                ruins=None if clock else 0.9,
                touched=simulated_grid.EVERYTHING,
                settings={name: value for name, value in settings.items() if name != "negative_control"},
                control=bool(settings.get("negative_control")),
                method=entry["method"],
            )
        )
    return made


def dossier() -> Dossier:
    """The run, judged."""
    content = tier.with_rates(tier.read("release"), 4096)
    chosen = plans(content)
    facts = [simulated_grid.facts(plan).model_copy(update={"seeds": tuple(content["seeds"])}) for plan in chosen]
    cells = [
        simulated_grid.cell(name, plan, seed)
        for plan in chosen
        for name in simulated_grid.UNTOUCHED
        for seed in content["seeds"]
    ]
    manifest = Manifest(
        name="release",
        version="0.1.0",
        date="2026-11-29",
        harm="exact",
        threshold=0.5,
        utility_floor=0.9,
        subjects=simulated_grid.subjects(),
        attacks=tuple(facts),
        corpus={"hash": "5e" * 32, "restricted": simulated_grid.RESTRICTED, "benign": simulated_grid.BENIGN},
        versions={"holdfast": "0.1.0"},
        hardware="simulated",
        kept="Nothing was attacked.",
    )
    return verdict.weigh(Evidence(manifest, [one for one, _ in cells], {one.name: rows for one, rows in cells}))


def watched(path: Path, address: str, ready: tuple[str, str] = DRAWN) -> Path:
    """A copy of the page with a script that tells `address` when what was there; its policy lets that through."""
    text = path.read_text()
    script = WATCH.replace("ADDRESS", address).replace("FIRST", ready[0]).replace("LAST", ready[1])
    name = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = text.replace("script-src ", f"connect-src {address}; script-src 'sha256-{name}' ", 1)
    copy = path.with_name(f"watched-{path.name}")
    copy.write_text(text.replace("</body>", f"<script>{script}</script>\n</body>"))
    return copy


class Told(BaseHTTPRequestHandler):
    """Hears one page."""

    heard: ClassVar[list[list[float]]] = []

    def do_POST(self) -> None:
        self.heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *words: object) -> None:
        """Nothing on the terminal."""


def waiting(path: Path) -> Path:
    """A page that goes on to `path` when the browser has started: a reader's has long run."""
    before = path.with_name(f"before-{path.name}")
    before.write_text(f'<meta http-equiv="refresh" content="{STARTED};url=file://{path}">')
    return before


def worked(browser: int) -> float:
    """CPU seconds of a browser's processes until now."""
    family = [psutil.Process(browser), *psutil.Process(browser).children(recursive=True)]
    return sum(sum(one.cpu_times()[:2]) for one in family)


def opened(path: Path, server: HTTPServer) -> list[float]:
    """Milliseconds to DOMContentLoaded, load, the first figure and the last, the script heap in bytes,
    and the CPU seconds of the browser's processes until the first figure."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        flags = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--enable-precise-memory-info")
        command = [
            str(CHROMIUM),
            *flags,
            f"--user-data-dir={home}",
            "--remote-debugging-port=0",
            "--window-size=1280,800",
        ]
        browser = subprocess.Popen(
            [*command, f"file://{waiting(path)}"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        try:
            count = len(Told.heard)
            server.handle_request()
            first = worked(browser.pid)
            server.handle_request()
        finally:
            browser.terminate()
            browser.wait(30)
    if len(Told.heard) < count + 2:
        raise SystemExit(f"the page was not drawn within {SECONDS} seconds")
    return [*Told.heard[-1], first]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="where to leave the page")
    options = parser.parse_args()
    judged = dossier()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        began = time.perf_counter()
        page.write(judged, path, None, Sources())
        wrote = time.perf_counter() - began
        if options.keep:
            shutil.copy(path, options.keep)
        with HTTPServer(("127.0.0.1", 0), Told) as server:
            server.timeout = SECONDS
            copy = watched(path, f"http://127.0.0.1:{server.server_port}")
            looks = [opened(copy, server) for _ in range(options.times)]
            (Path(folder) / "blank.html").write_text(
                '<meta http-equiv="Content-Security-Policy" content="script-src "><body></body>'
            )
            blank = watched(Path(folder) / "blank.html", f"http://127.0.0.1:{server.server_port}", BLANK)
            started = median(opened(blank, server)[-1] for _ in range(options.times))
        dom, load, first, last = (median(look[part] for look in looks) / 1000 for part in range(4))
        result = {
            "what": "the page of a simulated release-tier run, in headless Chromium",
            "attacks": len(judged.manifest.attacks),
            "subjects": len(judged.subjects),
            "cells": len(judged.cells),
            "bytes": path.stat().st_size,
            "write_seconds": round(wrote, 2),
            "dom_seconds": round(dom, 3),
            "load_seconds": round(load, 3),
            "first_words_seconds": round(median(look[5] for look in looks) / 1000, 3),
            "first_figure_seconds": round(first, 3),
            "all_figures_seconds": round(last, 3),
            "worst_first_figure_seconds": round(max(look[2] for look in looks) / 1000, 3),
            "cpu_seconds_to_first_figure": round(median(look[-1] for look in looks) - started, 2),
            "heap_bytes": int(median(look[4] for look in looks)),
            "times": options.times,
            "browser": subprocess.run([str(CHROMIUM), "--version"], capture_output=True, text=True).stdout.strip(),
            "hardware": hardware(),
            "load": round(os.getloadavg()[0], 1),
        }
    (HERE / "results/page.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
