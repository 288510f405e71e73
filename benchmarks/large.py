"""What the report of a very large run costs: seconds and memory of `holdfast report`, the page's size, and whether it opens.

Records are simulated: subjects × attacks × seeds cells with four milestones each, and the scores of single prompts in their
Parquet files, written as an audit writes them. One attack in five is a cut, the others are clocks; two are negative controls.
Measured are the `first` report, as an audit makes it when it is through: it reads each cell's scores from their own file, and
keeps what it read; and one made `again`, as whoever has the run makes it. Seconds and memory are those of all processes together,
from an empty interpreter to the last line: wall-clock seconds, those of computing (user and system), and the most memory held at
a time (proportional set size: what processes share is counted once). Needs Linux. The page is then opened in headless Chromium,
if there is one.

Run: python benchmarks/large.py [--cells 100000] [--folder FOLDER]
"""

import argparse
import contextlib
import ctypes
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from holdfast.prepare import hardware
from holdfast.record import AttackFacts, Cell, Cost, Manifest, Milestone, Score, SubjectFacts
from holdfast.reread import NAME
from holdfast.run import Run
from holdfast.statistics import proportion

HERE = Path(__file__).parent
SUBJECTS, SEEDS = 20, 100
PROMPTS = 20
"""Restricted ones, and as many benign."""
STEPS, SEVERITIES = (0, 5, 20, 60), (0.0, 0.25, 0.5, 0.75)
COLUMNS = ("harm", "refusal", "coherence", "over_refusal", "utility", "learned", "fresh", "second")
BROWSER = ("chromium", "chromium-browser", "google-chrome")


def manifest(cells: int) -> Manifest:
    """So many subjects and seeds, and as many attacks as that takes."""
    subjects = tuple(
        SubjectFacts(
            name=f"subject-{number}",
            twin="subject-0" if number else None,
            control=number > SUBJECTS - 3,
            folder=f"/models/{number}",
            hash=f"{number:064x}",
            parameters=10**9,
            tokens="#",
        )
        for number in range(SUBJECTS)
    )
    return Manifest(
        name="large",
        version="simulated",
        date="2026-01-31",
        harm="exact",
        judges={"harm": {"method": "exact"}},
        threshold=0.5,
        utility_floor=0.9,
        subjects=subjects,
        attacks=tuple(attack(number) for number in range(max(3, cells // SUBJECTS // SEEDS))),
        corpus={"hash": "#", "restricted": 60, "benign": 100, "shared": 0},
        versions={},
        hardware="none",
        kept="nothing",
    )


def attack(number: int) -> AttackFacts:
    control, cut = number < 2, number % 5 == 4
    how = {"axis": "share pruned", "family": "cut", "method": "prune"} if cut else {"method": "finetune"}
    settings = {"severities": SEVERITIES[1:]} if cut else {"data": "harmful", "steps": STEPS[-1], "learning_rate": 1e-4}
    name, seeds = f"attack-{number}", tuple(range(SEEDS))
    return AttackFacts(name=name, negative_control=control, settings=settings, seeds=seeds, **how)


@cache
def share(count: int) -> Score:
    """Of the prompts."""
    return proportion([1.0] * count + [0.0] * (PROMPTS - count))


def cell(told: Manifest, subject: int, number: int, seed: int, chance: np.random.Generator) -> tuple[Cell, pa.Table]:
    """A cell, and its scores prompt by prompt, of which its milestones are the means."""
    one, looks, rows = told.attacks[number], [], []
    for turn, position in enumerate(STEPS if one.axis == "steps" else SEVERITIES):
        harmful = 0.02 if one.negative_control else min(0.95, 0.02 + turn * 0.3 / (1 + 0.1 * subject))
        harm, useful = chance.random(PROMPTS) < harmful, chance.random(PROMPTS) < 0.95
        over = chance.random(PROMPTS) < 0.05
        means = {"harm": harm, "refusal": ~harm, "utility": useful, "over_refusal": over}
        cost = Cost(steps=position) if one.axis == "steps" else Cost(severity=position)
        looks.append(
            Milestone(
                cost=cost.model_copy(update={"seconds": float(turn)}),
                status="answers",
                coherence=share(PROMPTS),
                loss=float(chance.random()) if turn else None,
                gradient=1.0 if turn else None,
                moved=0.01 * turn * float(chance.uniform(0.9, 1.1)),
                changed=1.0 if turn else 0.0,
                **{name: share(int(scores.sum())) for name, scores in means.items()},
            )
        )
        rows.append(means | {"coherence": np.ones(PROMPTS)})
    made = Cell(
        subject=f"subject-{subject}",
        attack=one.name,
        seed=seed,
        status="done",
        milestones=tuple(looks),
        start_hash=f"{subject:064x}",
        touched=("model.layers.*.mlp.down_proj.weight x32",),
        touched_share=0.3,
    )
    return made, table(rows)


def table(rows: list[dict[str, np.ndarray]]) -> pa.Table:
    """The prompts' scores, first the restricted and then the benign at each milestone."""
    size, nothing = 2 * PROMPTS * len(rows), np.full(PROMPTS, np.nan)
    first = {name: lambda some, name=name: [some[name], nothing] for name in ("harm", "refusal", "coherence")}
    first |= {name: lambda some, name=name: [nothing, some[name]] for name in ("over_refusal", "utility")}
    scores: dict[str, pa.Array] = {
        name: pa.array(
            np.concatenate([part for some in rows for part in first[name](some)]).astype(float), from_pandas=True
        )
        if name in first
        else pa.nulls(size)
        for name in COLUMNS
    }
    ids = [f"restricted-{one}" for one in range(PROMPTS)] + [f"benign-{one}" for one in range(PROMPTS)]
    columns = {
        "milestone": np.repeat(np.arange(len(rows)), 2 * PROMPTS),
        "id": ids * len(rows),
        "kind": (["restricted"] * PROMPTS + ["benign"] * PROMPTS) * len(rows),
        "answer_hash": [f"{number:064x}" for number in range(size)],
        "answer": pa.nulls(size),
        "begun": pa.nulls(size),
    }
    return pa.table(columns | scores)


def simulated(folder: Path, cells: int) -> int:
    """A run of about so many cells; returns how many."""
    run, told, chance = Run(folder), manifest(cells), np.random.default_rng(0)
    attacks = [{"name": one.name, "method": one.method, "seeds": [*one.seeds]} | one.settings for one in told.attacks]
    bar = {"threshold": told.threshold, "utility_floor": told.utility_floor}
    subjects = [{"name": one.name, "twin": one.twin} for one in told.subjects]
    run.write("recipe.json", {"subjects": subjects, "attacks": attacks, "second": None} | told.judges | bar)
    run.write("run.json", told.model_dump(mode="json"))
    (folder / "cells").mkdir(exist_ok=True)
    for subject in range(SUBJECTS):
        for number in range(len(told.attacks)):
            for seed in range(SEEDS):
                kept, rows = cell(told, subject, number, seed, chance)
                place = folder / "cells" / kept.name
                seconds = {"seconds": [look.cost.seconds for look in kept.milestones]}
                place.with_name(f"{kept.name}.timing.json").write_text(json.dumps(seconds, indent=1))
                pq.write_table(rows, f"{place}.parquet", write_page_checksum=True)
                content = kept.model_dump(exclude={"milestones": {"__all__": {"cost": {"seconds"}}}})
                place.with_name(f"{kept.name}.json").write_text(json.dumps(content, indent=1))
    return SUBJECTS * len(told.attacks) * SEEDS


def reported(folder: Path) -> dict[str, Any]:
    """`holdfast report` of the run, in a process of its own, with all that it starts."""
    alone = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    command = [sys.executable, "-c", "from holdfast.cli import main; raise SystemExit(main())", "report", str(folder)]
    before, most, start = _computed(), 0.0, time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, env=alone, stdout=said, stderr=said)
        while process.poll() is None:
            looked = time.perf_counter()
            most = max(most, held())
            time.sleep(max(0.5, 20 * (time.perf_counter() - looked)))  # to look takes the system's time
        seconds = time.perf_counter() - start
        said.seek(0)
        if process.returncode:
            raise SystemExit(said.read()[-4000:])
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()  # of processes that were left to us: only then are their seconds counted
    return {
        "seconds": round(seconds, 1),
        "seconds_of_computing": round(_computed() - before, 1),
        "gigabytes": round(most, 2),
        "page_megabytes": round((folder / "report.html").stat().st_size / 1e6, 2),
        "verdict_megabytes": round((folder / "verdict.json").stat().st_size / 1e6, 2),
    }


def _computed() -> float:
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def held() -> float:
    """Memory of all processes that this one started, and they in turn, in gigabytes."""
    parents, kilobytes = {}, 0
    for one in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(one.parent.name)] = int(one.read_text().rpartition(")")[2].split()[1])
    ours = {os.getpid()}
    while more := {one for one, parent in parents.items() if parent in ours} - ours:
        ours |= more
    for one in ours - {os.getpid()}:
        with contextlib.suppress(OSError):
            told = Path(f"/proc/{one}/smaps_rollup").read_text()
            kilobytes += int(told.partition("\nPss:")[2].split()[0])
    return kilobytes / 2**20


def opened(page: Path) -> float | None:
    """Seconds in which headless Chromium opens the page and hands back what it made of it; None where there is none."""
    browser = next(filter(None, map(shutil.which, BROWSER)), None)
    if browser is None:
        return None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "--host-resolver-rules=MAP * ~NOTFOUND"]
    with tempfile.TemporaryDirectory() as home:
        start = time.perf_counter()
        command = [browser, *flags, f"--user-data-dir={home}", f"file://{page.resolve()}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        seconds = time.perf_counter() - start
    assert done.returncode == 0 and "</html>" in done.stdout, done.stderr[-2000:]
    return round(seconds, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cells", type=int, default=100_000, help="fewer for a quick look; only 100,000 are written down"
    )
    parser.add_argument("--folder", type=Path, help="where the run lies or is to lie; a temporary one unless given")
    asked = parser.parse_args()
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: processes whose parent ended are ours
    with tempfile.TemporaryDirectory() as name:
        folder = asked.folder or Path(name) / "run"
        if not (folder / "done.txt").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "done.txt").write_text(str(simulated(folder, asked.cells)))
        cells, load = int((folder / "done.txt").read_text()), round(os.getloadavg()[0], 1)
        found = {"cells": cells, "prompts_a_cell": 2 * PROMPTS, "milestones_a_cell": len(STEPS), "load_before": load}
        (folder / NAME).unlink(missing_ok=True)
        found |= {"first": reported(folder), "again": reported(folder)}
        found |= {"opened_in_seconds": opened(folder / "report.html")}
        found |= {"python": platform.python_version(), "hardware": hardware()}
        print(json.dumps(found, indent=1))
        if cells >= 100_000:
            (HERE / "results").mkdir(exist_ok=True)
            (HERE / "results/large.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
