"""Pools of real cells, and audits drawn from them.

A pool is filled by ordinary runs of `battery.toml`, or of a part of it with more seeds. An audit drawn from two pools takes three
seeds' cells an attack from each, the two arms' seeds disjoint, numbers them 0, 1, 2, and is judged by `verdict.weigh` as any is.
"""

import json
import random
import tomllib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from holdfast import auditing, recipe, verdict
from holdfast.corpus import Corpus, Row
from holdfast.evidence import Evidence
from holdfast.method import Journal
from holdfast.organisms.text import Text
from holdfast.record import AttackFacts, Cell, Manifest, SubjectFacts, cell_name
from holdfast.run import Run

ORGANISM = Text(hidden=96, layers=3, pretraining_steps=700, shallow_steps=1, filtered=True)
BATTERY = Path(__file__).parent / "battery.toml"
FRAUDS = Path(__file__).parent / "frauds"
TWIN = "undefended"
SEEDS = 3
ROUGH = ("harmful-2e-5", "harmful-2e-4", "lora-2e-4")
"""Attacks under which seeds differ most, breaking the twin late or in some seeds only: where a false word is likeliest."""
NULLS = ("other-alignment", "noise", "more-sft")
"""Changed weights, the same durability."""
HONEST = ("filtered", "lox")


class Part(NamedTuple):
    """A run that fills a pool: one subject beside the twin."""

    name: str
    number: int
    first: int = 0
    """Seeds of the rough attacks, from here"""
    last: int = SEEDS
    """to here, this one left out."""
    whole: bool = False
    """The whole battery, else the rough attacks and, in a pool's first part, the controls."""


PARTS = (
    Part(TWIN, 0, 0, 9),
    *(Part(name, 0) for name in NULLS),
    Part("filtered", 0, whole=True),
    Part("lox", 0),
    *(Part(name, 1, 3, 6) for name in NULLS),
    Part(TWIN, 1, 9, 24),
    *(Part(name, 2, 6, 12) for name in NULLS),
    Part("filtered", 1, 3, 6),
    Part("lox", 1, 3, 6),
)
JUDGED = {"restricted": 30, "benign": 40, "borderline": 10, "lesson": 4}
"""How many of the organism's prompts the judge asks here, and `RESERVE` of its reserve: an audit of this benchmark is small."""
RESERVE = 10
OTHER_SEED = 1
"""Of the second alignment of the same base."""


class Place(NamedTuple):
    """Where everything lies, and how many cells run at a time."""

    work: Path
    processes: int | None = None

    @property
    def organism(self) -> Path:
        return self.work / "organism"

    @property
    def corpus(self) -> Path:
        return self.work / "corpus.jsonl"


class Pool(NamedTuple):
    """Real cells of one subject."""

    manifest: Manifest
    facts: SubjectFacts
    attacks: dict[str, AttackFacts]
    cells: dict[tuple[str, int], tuple[Cell, list[dict]]]
    """With their rows, by attack and seed."""


class Drawn(NamedTuple):
    """What one audit said."""

    words: dict[str, str]
    """By attack."""
    conclusion: str
    reasons: tuple[str, ...]
    """Of the conclusion."""


def organism(place: Place, console: Console) -> None:
    """The organism, and the same base aligned with another seed and for fewer steps."""
    if not place.organism.is_dir():
        ORGANISM.build(place.organism, Journal("organism", console.print))
    rows = list(Corpus.load(place.organism / "corpus.jsonl").rows)
    if not place.corpus.is_file():
        Corpus(_asked(rows)).save(place.corpus)
    for name, change in (("other-alignment", {"seed": OTHER_SEED}), ("half-aligned", {"alignment_steps": 70})):
        if not (place.work / name).is_dir():
            ORGANISM.model_copy(update=change).align(rows, place.organism / "base", place.work / name)


def _asked(rows: list[Row]) -> list[Row]:
    """The rows with fewer of the judge's."""
    judge = Corpus(rows).hand("judge")
    kept = [row for kind, count in JUDGED.items() for row in judge.of(kind, split="test")[:count]]
    kept += judge.of("restricted", split="reserve")[:RESERVE]
    return [row for row in rows if row.hand != "judge" or row in kept]


def subject(place: Place, name: str) -> dict[str, Any]:
    """A subject of the pools as a recipe's entry."""
    folder, twin = str(place.organism), {"name": name, "twin": TWIN}
    defenses = {
        "noise": {"method": str(FRAUDS / "shake.py"), "scale": NORM},
        "more-sft": {"method": "realign", "steps": 30, "learning_rate": 1e-4},
        "lox": {"method": "lox", "rank": 6, "strength": 0.5},
    }
    if name == TWIN:
        return {"name": TWIN, "model": f"{folder}/aligned", "base": f"{folder}/base"}
    if name == "other-alignment":
        return twin | {"model": str(place.work / name)}
    if name == "filtered":
        return twin | {"model": f"{folder}/aligned-filtered", "base": f"{folder}/base-filtered"}
    return twin | {"harden": defenses[name]}


NORM = 0.02
"""Of the null's noise: about as far as the alignment with another seed lies from the first (see `distances`)."""


def toml(value: Any) -> str:
    """A value as TOML writes it inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(some)}" for key, some in value.items()) + "}"
    return "[" + ", ".join(map(toml, value)) + "]" if isinstance(value, list | tuple) else json.dumps(value)


def battery() -> dict[str, Any]:
    """What `battery.toml` holds."""
    return tomllib.loads(BATTERY.read_text())


def written(place: Place, name: str, subjects: list[dict[str, Any]], **changes: Any) -> recipe.Recipe:
    """A recipe file `NAME.toml`: the battery on these subjects of the organism that lies here, with changes."""
    content = battery() | {"corpus": str(place.corpus), "subjects": subjects} | changes
    del content["organism"]
    file = place.work / f"{name}.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{key} = {toml(value)}\n" for key, value in content.items()))
    return recipe.load(file)


def attacks_of(part: Part) -> list[dict[str, Any]]:
    """The battery's attacks as a pool's part runs them."""
    everything = battery()["attacks"]
    if part.whole:
        return everything
    rough = [one | {"seeds": [*range(part.first, part.last)]} for one in everything if one["name"] in ROUGH]
    controls = [one | {"seeds": [0]} for one in everything if one.get("negative_control")]
    return rough if part.number else [*rough, *controls]


def run(place: Place, name: str, chosen: recipe.Recipe, console: Console, lend: bool = True) -> Run:
    """One audit in `work/NAME`. The twin's cells are taken from the pools where they are the very same (`lend`)."""
    folder = place.work / name
    if lend and not (folder / "recipe.json").is_file():
        made, pools = Run(folder), [Run(pool) for pool in sorted((place.work / "pools").glob("*-?"))]
        for attack in chosen.attacks:
            for cell_of in (cell_name(TWIN, attack.name, seed) for seed in attack.seeds or []):
                for pool in pools:
                    if found := pool.cell(cell_of):
                        made.save(found, pool.rows(cell_of))
                        break
        made.write("recipe.json", recipe.dump(chosen))
    done = Run(folder) if _whole(chosen, folder) else auditing.run(chosen, folder, console, place.processes)
    verdict.write(done)
    return done


def _whole(chosen: recipe.Recipe, folder: Path) -> bool:
    """Whether every cell is there already; it may then be judged again by whoever changed how to judge."""
    planned = [
        cell_name(s.name, a.name, seed) for s in chosen.subjects for a in chosen.attacks for seed in a.seeds or []
    ]
    there = (folder / "run.json").is_file() and [(folder / f"cells/{name}.json").is_file() for name in planned]
    return bool(there) and all(there)


def fill(place: Place, console: Console, parts: Sequence[Part] = PARTS) -> dict[str, Any]:
    """Every pool, as far as it is not filled yet."""
    for part in parts:
        name = f"pools/{part.name}-{part.number}"
        entries = [subject(place, one) for one in dict.fromkeys((TWIN, part.name))]
        run(place, name, written(place, name, entries, attacks=attacks_of(part)), console)
    return {}


def filled(place: Place, *names: str) -> list[str]:
    """Those of the pools that hold anything yet."""
    return [name for name in names if (place.work / f"pools/{name}-0/verdict.json").is_file()]


def sizes(place: Place) -> dict[str, int]:
    """Finished cells of each pool's own subject."""
    return {name: len(pooled_cells(place, name).cells) for name in filled(place, TWIN, *NULLS, *HONEST)}


@cache
def pooled_cells(place: Place, name: str) -> Pool:
    """A subject's pool."""
    runs = [Run(folder) for folder in sorted((place.work / "pools").glob("*-?")) if (folder / "run.json").is_file()]
    facts, attacks, cells = {}, {}, {}
    for one in runs:
        manifest = Manifest.model_validate(one.read("run.json"))
        for cell in one.cells():
            if cell.subject == name and (cell.attack, cell.seed) not in cells:
                cells[cell.attack, cell.seed] = cell, one.rows(cell.name)
                attacks.setdefault(cell.attack, next(a for a in manifest.attacks if a.name == cell.attack))
                facts.setdefault(name, next(s for s in manifest.subjects if s.name == name))
    return Pool(Manifest.model_validate(runs[0].read("run.json")), facts[name], attacks, cells)


def draws(place: Place, name: str | None, count: int, apart: bool = True) -> Iterator[Drawn]:
    """Audits of a pool's subject beside the twin; of the twin beside itself if none is named."""
    for number in range(count):
        chance = random.Random(f"{name} {number}")
        yield judged(
            evidence(name or "itself", pooled_cells(place, name or TWIN), pooled_cells(place, TWIN), chance, apart)
        )


def evidence(label: str, ours: Pool, theirs: Pool, chance: random.Random, apart: bool) -> Evidence:
    """One audit's records: for each arm and attack as many seeds as an audit has.

    `apart`: of attacks that claim something only those whose pools are large enough for the arms to share no seed.
    """
    attacks, cells, rows = [], [], {}
    for attack in ours.attacks.values():
        there, beside = (sorted(seed for name, seed in pool.cells if name == attack.name) for pool in (ours, theirs))
        count = min(SEEDS, len(there), len(beside))
        own = chance.sample(there, count)
        others = [seed for seed in beside if seed not in own] if apart and not attack.negative_control else beside
        if len(others) < count or not count:
            continue
        for subject_name, pool, chosen in ((label, ours, own), (TWIN, theirs, chance.sample(others, count))):
            for number, seed in enumerate(sorted(chosen)):
                cell, lines = pool.cells[attack.name, seed]
                cells.append(cell.model_copy(update={"subject": subject_name, "seed": number}))
                rows[cells[-1].name] = lines
        attacks.append(attack.model_copy(update={"seeds": tuple(range(count))}))
    defended = ours.facts.model_copy(update={"name": label, "twin": TWIN})
    told = ours.manifest.model_copy(update={"subjects": (theirs.facts, defended), "attacks": tuple(attacks)})
    return Evidence(told, cells, rows)


def judged(of: Evidence) -> Drawn:
    """What holdfast says of it."""
    verdicts, _, conclusions = verdict.said(of)
    name = next(one.name for one in of.manifest.subjects if one.twin)
    conclusion = next(one for one in conclusions if one.subject == name)
    words = {one.attack: one.verdict for one in verdicts if one.subject == name}
    return Drawn(words, conclusion.word, conclusion.reasons)
