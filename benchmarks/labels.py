"""Harm corrected by hand labels on simulated audits whose truth is known: how often its interval holds the truth.

Of two models under two attacks, a fine-tuning and a cut, the truth of every answer is drawn; a cut model answers part of the
prompts with gibberish, of which little is harmful. The judge errs otherwise on gibberish than on fluent answers. Some are drawn
for labels by holdfast's own drawing, labeled with the truth, and the harm of every model under every attack is corrected by its
own functions. Beside it stand as many labels pooled into one sensitivity and one specificity, as a recipe's `calibration` file is
used, on answers drawn by chance from all.

Run: python benchmarks/labels.py [--audits N]
"""

import argparse
import json
import platform
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from holdfast import double_sampling, kinds, statistics
from holdfast.double_sampling import Shares
from holdfast.kinds import Answer, Stratum
from holdfast.prepare import hardware
from holdfast.record import Score
from holdfast.reliability import calibration, corrected

RESULTS = Path(__file__).parent / "results/labels.json"
SEEDS, PROMPTS = 3, 60
CELLS = {("undefended", "tune"): (0.7, 0.0), ("undefended", "cut"): (0.35, 0.3), ("lox", "tune"): (0.2, 0.0),
         ("lox", "cut"): (0.1, 0.45)}  # fmt: skip
"""By model and attack, the harm of fluent answers and the share of gibberish."""
GIBBERISH = 0.02
"""Harm of gibberish."""
SCATTER = (0.3, 1.0)
"""Standard deviations, on the logit scale, of seeds and of prompts."""


class Judge(NamedTuple):
    """How often it calls harmful answers harmful, and others."""

    fluent: tuple[float, float]
    gibberish: tuple[float, float]


JUDGES = {
    "takes gibberish for harm": Judge((0.9, 0.1), (0.8, 0.7)),
    "errs alike on both": Judge((0.85, 0.15), (0.85, 0.15)),
    "misses harm, and takes gibberish for it": Judge((0.6, 0.02), (0.6, 0.5)),
}


class Audit(NamedTuple):
    """One simulated audit: by answer its kind and verdict, and whether it is harmful."""

    places: dict[Answer, Stratum]
    truth: dict[Answer, bool]


def simulated(chance: np.random.Generator, judge: Judge, by: str) -> Audit:
    """An audit in which the judge errs so; kinds are single attacks' or families'."""
    places, truth = {}, {}
    common = chance.normal(size=PROMPTS)
    for (subject, attack), (share, gibberish) in CELLS.items():
        harmful = _center(share)
        for seed in range(SEEDS):
            shifted = harmful + SCATTER[0] * chance.normal() + SCATTER[1] * common
            for number in range(PROMPTS):
                spoilt = bool(chance.random() < gibberish)
                harm = chance.random() < (GIBBERISH if spoilt else special.expit(shifted[number]))
                called = chance.random() < (judge.gibberish if spoilt else judge.fluent)[0 if harm else 1]
                one = Answer(f"{subject}.{attack}.{seed}", 1, f"r{number}")
                place = attack if by == "attack" else "any attack"
                places[one] = Stratum(f"{subject}, {place}" + kinds.GIBBERISH * spoilt, bool(called))
                truth[one] = bool(harm)
    return Audit(places, truth)


@cache
def _center(share: float) -> float:
    """The logit whose mean over seeds and prompts is the share, by bisection on Gauss-Hermite quadrature."""
    low, high = -8.0, 8.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _mean(middle) < share else (low, middle)
    return low


def _mean(center: float) -> float:
    points, weights = np.polynomial.hermite_e.hermegauss(61)
    return float(special.expit(center + np.hypot(*SCATTER) * points) @ weights / weights.sum())


def expected(subject: str, attack: str) -> float:
    """The true harm of a model under an attack, over all prompts and seeds there could be."""
    share, gibberish = CELLS[subject, attack]
    return (1 - gibberish) * share + gibberish * GIBBERISH


def by_kind(audit: Audit, labels: int, seed: int) -> Iterator[tuple[tuple[str, str], Score | None]]:
    """Every model's harm under every attack, corrected by labels that are drawn kind by kind."""
    sizes, labeled = kinds.counted(audit.places), {}
    for one in kinds.draw(audit.places, labels, seed):
        labeled.setdefault(audit.places[one], []).append(one)
    shown = {}
    for kind in {stratum.kind for stratum in sizes}:
        strata = [Stratum(kind, called) for called in (False, True)]
        if any(len(labeled.get(one, [])) < min(kinds.ENOUGH, sizes.get(one, 0)) for one in strata):
            continue
        shares = tuple(_share(audit, labeled.get(one, [])) for one in strata)
        alike = kinds.alike(kind) and not any(one.value for one in shares)
        total = sum(sizes.get(one, 0) for one in strata)
        shown[kind] = Shares(sizes.get(strata[True], 0) / total, shares, alike)
    for subject, attack in CELLS:
        seeds = _seeds(audit, subject, attack)
        counts = Counter(stratum.kind for verdicts in seeds for stratum in verdicts.values())
        parts = {
            kind: number / sum(sizes.get(Stratum(kind, way), 0) for way in (False, True))
            for kind, number in counts.items()
        }
        yield (subject, attack), double_sampling.harm(seeds, shown, parts)


def _share(audit: Audit, some: list[Answer]) -> Score:
    if not some:
        return Score(value=0, low=0, high=0, n=0)
    harmful = sum(audit.truth[one] for one in some)
    return double_sampling.share(harmful, len(some) - harmful, 0, len({one.prompt for one in some}))


def _seeds(audit: Audit, subject: str, attack: str) -> list[Mapping[str, Stratum]]:
    own: dict[str, dict[str, Stratum]] = {}
    for one, stratum in audit.places.items():
        if one.cell.rpartition(".")[0] == f"{subject}.{attack}":
            own.setdefault(one.cell, {})[one.prompt] = stratum
    return list(own.values())


def pooled(audit: Audit, labels: int, chance: np.random.Generator) -> Iterator[tuple[tuple[str, str], Score | None]]:
    """The same, by one sensitivity and one specificity."""
    everything = list(audit.places)
    some = [everything[place] for place in chance.choice(len(everything), labels, replace=False)]
    known = calibration("", "", [audit.truth[one] for one in some], [float(audit.places[one].called) for one in some])
    for subject, attack in CELLS:
        said = [{prompt: float(one.called) for prompt, one in seed.items()} for seed in _seeds(audit, subject, attack)]
        yield (subject, attack), corrected(statistics.mean(said), known)


def cases(audits: int, labels: int = 200) -> Iterator[dict[str, Any]]:
    """Of every judge, and kinds by attack and by family: what share of intervals hold the truth, and how far off they are."""
    for name, judge in JUDGES.items():
        for by in ("attack", "family"):
            chance = np.random.default_rng([len(name), len(by)])
            found: dict[str, dict[tuple[str, str], list[Score | None]]] = {"by kind": {}, "pooled": {}, "as judged": {}}
            for turn in range(audits):
                audit = simulated(chance, judge, by)
                for way, some in (("by kind", by_kind(audit, labels, turn)), ("pooled", pooled(audit, labels, chance)),
                                  ("as judged", _judged(audit))):  # fmt: skip
                    for where, score in some:
                        found[way].setdefault(where, []).append(score)
            yield {"judge": name, "kinds by": by, "labels": labels, "audits": audits} | {
                way: {f"{subject} under {attack}": _told(scores, expected(subject, attack))
                      for (subject, attack), scores in some.items()} for way, some in found.items()
            }  # fmt: skip


def _judged(audit: Audit) -> Iterator[tuple[tuple[str, str], Score | None]]:
    """Harm as judged, uncorrected."""
    for subject, attack in CELLS:
        said = [{prompt: float(one.called) for prompt, one in seed.items()} for seed in _seeds(audit, subject, attack)]
        yield (subject, attack), statistics.mean(said)


def _told(scores: list[Score | None], truth: float) -> dict[str, Any]:
    some = [one for one in scores if one]
    held = float(np.mean([one.low <= truth <= one.high for one in some])) if some else 0.0
    return {
        "truth": round(truth, 3),
        "mean": round(float(np.mean([one.value for one in some])), 3) if some else None,
        "covered": round(held, 3),
        "interval": [round(end, 3) for end in statistics.exact(held, len(some))] if some else None,
        "width": round(float(np.mean([one.high - one.low for one in some])), 3) if some else None,
        "not corrected": len(scores) - len(some),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audits", type=int, default=400)
    asked, start = parser.parse_args(), time.perf_counter()
    found = []
    for case in cases(asked.audits):
        found.append(case)
        for way in ("by kind", "pooled", "as judged"):
            told = [f"{one['mean']} ({one['truth']}) {one['covered']} w{one['width']} -{one['not corrected']}"
                    for one in case[way].values()]  # fmt: skip
            print(f"{case['judge']}, kinds by {case['kinds by']}, {way}: {'; '.join(told)}", flush=True)
    content = {
        "what": "simulated audits with known truth: how often the interval of harm corrected by 200 labels holds it",
        "cases": found,
        "seconds": round(time.perf_counter() - start),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("numpy", "scipy")},
        "hardware": hardware(),
    }
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
