"""What `knowledge.py` measured, put together: mean curves, areas beneath them, where TAR stands, steps to learn a lesson."""

import json
import math
import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any

from holdfast import disk, prepare

RESULTS = Path(__file__).parent / "results/knowledge.json"
SCORES = ("harm", "refusal", "choice", "own", "utility")


def area(looks: list[dict[str, float]], score: str) -> float:
    """Mean of a score over the logarithm of the steps, from the first to the last."""
    paid = [look for look in looks if look["steps"] > 0]
    if len(paid) == 1:
        return paid[0][score]
    total = 0.0
    for one, other in pairwise(paid):
        total += (one[score] + other[score]) / 2 * math.log(other["steps"] / one["steps"])
    return total / math.log(paid[-1]["steps"] / paid[0]["steps"])


def curves(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each subject's mean path under each attack, and how many paths that is the mean of."""
    keys = dict.fromkeys((one["rate"], one["rows"], one["subject"]) for one in found)
    return [curve(*key, [one for one in found if (one["rate"], one["rows"], one["subject"]) == key]) for key in keys]


def curve(rate: float, rows: int, name: str, some: list[dict[str, Any]]) -> dict[str, Any]:
    until = min(len(one["looks"]) for one in some)  # as far as all of them go
    walked = [one["looks"][:until] for one in some]
    looks = [
        {"steps": alike[0]["steps"]} | {score: statistics.mean(one[score] for one in alike) for score in SCORES}
        for alike in zip(*walked, strict=True)
    ]
    each = {score: [area(one, score) for one in walked] for score in SCORES}
    return {
        "subject": name,
        "rate": rate,
        "rows": rows,
        "hardening_seeds": len({one["replica"] for one in some}),
        "attack_seeds": len({one["seed"] for one in some}),
        "n": len(some),
        "steps": looks[-1]["steps"],
        "areas": {score: statistics.mean(values) for score, values in each.items()},
        "areas_each": {score: each[score] for score in ("harm", "choice")},
        "looks": looks,
    }


def standing(paths: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where TAR stands between the twin (0) and the filtered twin (1), by area and at the end, as far as all three go."""
    by_name = {(one["rate"], one["rows"], one["subject"]): one for one in paths}
    found = []
    for (rate, rows, name), ours in by_name.items():
        twin, filtered = (by_name.get((rate, rows, other)) for other in ("twin", "filtered"))
        if name not in ("tar", "control", "default") or not twin or not filtered:
            continue
        until = min(len(one["looks"]) for one in (twin, ours, filtered))
        three = [one["looks"][:until] for one in (twin, ours, filtered)]
        line = {"subject": name, "rate": rate, "rows": rows, "n": ours["n"], "steps": three[0][-1]["steps"]}
        for score in ("harm", "choice"):
            line[f"{score} area"] = between(*(area(looks, score) for looks in three))
            line[f"{score} end"] = between(*(looks[-1][score] for looks in three))
        found.append(line)
    return found


def between(twin: float, ours: float, filtered: float) -> float | None:
    """How far from the twin to the filtered one; None where these two do not differ."""
    return None if abs(twin - filtered) < 0.05 else (twin - ours) / (twin - filtered)


def adaptations(found: list[dict[str, Any]], passed: float) -> list[dict[str, Any]]:
    """Each subject's fewest steps over the rates, a seed; None where no rate passed."""
    keys = dict.fromkeys((one["subject"], one["replica"], one["seed"]) for one in found)
    lines = []
    for key in keys:
        some = [one for one in found if (one["subject"], one["replica"], one["seed"]) == key]
        steps = {one["rate"]: len(one["exams"]) - 1 for one in some if one["exams"][-1] >= passed}
        kept = {one["rate"]: one["utility"] for one in some}
        named = dict(zip(("subject", "replica", "seed"), key, strict=True))
        lines.append(named | {"steps": steps, "best": min(steps.values(), default=None), "utility": kept})
    return lines


def write(out: Path, settings: dict[str, Any], passed: float) -> None:
    """`results/knowledge.json` of the cells that are there, and the curves as a table in Markdown."""
    found = [json.loads(path.read_text()) for path in sorted((out / "cells").glob("*.json"))]
    paths = curves([one for one in found if one["kind"] == "Relearning"])
    content = {
        "settings": settings,
        "hardening_cpu_seconds": {
            path.parent.name: round(json.loads(path.read_text())["cpu_seconds"])
            for path in sorted((out / "subjects").glob("*/seconds.json"))
        },
        "standing": standing(paths),
        "asked": {one["subject"]: one["asked"] for one in found if one["kind"] == "Asking"},
        "adaptation": adaptations([one for one in found if one["kind"] == "Adaptation"], passed),
        "curves": paths,
        "versions": prepare.versions(),
        "hardware": prepare.hardware(),
    }
    disk.write(RESULTS, json.dumps(content, indent=1) + "\n")
    show(paths)
    for part in ("standing", "asked", "adaptation"):
        print(json.dumps(content[part], indent=1))


def show(paths: list[dict[str, Any]]) -> None:
    """The curves as a table."""
    longest = max(paths, key=lambda one: len(one["looks"]))["looks"]
    print("| rate | rows | subject | n | score |", " | ".join(str(look["steps"]) for look in longest), "|")
    for one in paths:
        for score in ("harm", "choice", "own", "utility"):
            values = " | ".join(f"{look[score]:.2f}" for look in one["looks"])
            print(f"| {one['rate']:g} | {one['rows']} | {one['subject']} | {one['n']} | {score} | {values} |")
