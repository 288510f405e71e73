"""What looking costs: one fine-tuning path scored at ten milestones, against the same work done apart.

Builds the text organism's model for a few steps, then fine-tunes it 60 steps on 16 rows each (TRL, all weights), in rounds
that interleave four things, all in one process on one thread, loading not counted:

- path:     an audit's walk that looks at steps 6, 12, ... 60, and at the start as every audit does, and scores what it saw.
- single:   the same fine-tuning with nobody looking.
- scorings: the ten models met on the way, each asked every prompt once, then all answers scored together.
- separate: ten fine-tunings from the start, to 6, 12, ... 60 steps, with nobody looking.

`versus_single_run` is path / (single + scorings); the path's eleventh look is not forgiven. `versus_separate_runs` is
separate / (path without its looks and its scoring). Both are medians over rounds of ratios within a round, of wall-clock
seconds; `cpu` gives the same of processor seconds, which suffer less on a machine that others use.

Run: python benchmarks/path.py [--rounds N]
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from holdfast.attacks.finetune import FineTune
from holdfast.cell import Walk
from holdfast.corpus import Corpus, Row
from holdfast.drive import Drive
from holdfast.lm import LM
from holdfast.organisms.text import Text
from holdfast.prepare import hardware
from holdfast.quiet import quiet
from holdfast.recipe import Recipe
from holdfast.record import Cost

STEPS, LOOKS, PROMPTS = 60, 10, 20
"""Optimizer steps of the whole path, milestones on it, and the judge's prompts of each kind."""
EVENLY = [STEPS * turn // LOOKS for turn in range(1, LOOKS + 1)]


class Bench(NamedTuple):
    """What every run starts from."""

    model: Path
    corpus: Corpus
    judged: list[Row]
    recipe: Recipe

    def load(self) -> LM:
        return LM.load(self.model, drive=self.recipe.drive, device="cpu")

    def attack(self, steps: int = STEPS) -> FineTune:
        return FineTune(data="harmful", steps=steps, learning_rate=2e-4)

    def walk(self, lm: LM) -> "Timed":
        return Timed(lm, self.judged, self.recipe, self.model, lambda: count(STEPS // LOOKS, STEPS // LOOKS))


class Clock:
    """Wall-clock and processor seconds spent inside `with clock():`."""

    def __init__(self) -> None:
        self.spent = np.zeros(2)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        start = np.array([time.perf_counter(), time.process_time()])
        yield
        self.spent += np.array([time.perf_counter(), time.process_time()]) - start


class Timed(Walk):
    """A walk that knows how long it looked."""

    looking: Clock | None = None

    def _look(self, cost: Cost) -> None:
        self.looking = self.looking or Clock()
        with self.looking():
            super()._look(cost)


def made(folder: Path) -> Bench:
    """The organism's model, hardly trained, and its corpus."""
    organism = Text(pretraining_steps=60)
    rows = organism.deal()
    organism.pretrain(rows, folder / "model")
    judge = [row for row in Corpus(rows).hand("judge").of(split="test") if not row.variant]
    judged = [
        row for kind in ("restricted", "benign", "borderline") for row in [r for r in judge if r.kind == kind][:PROMPTS]
    ]
    one = {"name": "m", "model": str(folder / "model")}
    recipe = Recipe(
        name="path", harm="exact", utility="exact", subjects=[one], attacks=[{"name": "a", "method": "finetune"}],
        max_new_tokens=Drive().max_new_tokens,
    )  # fmt: skip
    return Bench(folder / "model", Corpus(rows), judged, recipe)


def path(bench: Bench) -> dict[str, np.ndarray]:
    """The walk, whole and without its looks and its scoring."""
    lm, whole, scoring = bench.load(), Clock(), Clock()
    with whole():
        walk = bench.walk(lm)
        walk.take(bench.attack(), bench.corpus.hand("attacker"), seed=0)
        with scoring():
            cell, _ = walk.scored("m", "a", 0)
    steps = [look.cost.steps for look in cell.milestones]
    assert steps == [0, *EVENLY], steps
    assert walk.looking is not None
    return {"path": whole.spent, "training": whole.spent - scoring.spent - walk.looking.spent}


def apart(bench: Bench) -> dict[str, np.ndarray]:
    """One run with nobody looking; then the ten models it met are asked and scored."""
    lm, single, aside, states = bench.load(), Clock(), Clock(), []

    def at(cost: Cost) -> bool:
        with aside():
            if cost.steps in EVENLY:
                states.append((cost, {name: weight.clone() for name, weight in lm.model.state_dict().items()}))
        return True

    with single():
        bench.attack()(lm, bench.corpus.hand("attacker"), at, 0)
    scorings, asked = Clock(), bench.load()
    walk = bench.walk(asked)
    for cost, state in states:
        asked.model.load_state_dict(state)
        with scorings():
            walk._look(cost)
    walk.touched = ((), 0.0)
    with scorings():
        walk.scored("m", "a", 0)
    return {"single": single.spent - aside.spent, "scorings": scorings.spent}


def separate(bench: Bench) -> dict[str, np.ndarray]:
    """Ten runs with nobody looking, one to each milestone."""
    clock = Clock()
    for steps in EVENLY:
        lm = bench.load()
        with clock():
            bench.attack(steps)(lm, bench.corpus.hand("attacker"), lambda _: True, 0)
    return {"separate": clock.spent}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="fewer for a quick look; only 3 or more are written down")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    quiet()
    roles: list[Callable[[Bench], dict[str, np.ndarray]]] = [path, apart, separate]
    with tempfile.TemporaryDirectory() as name:
        bench, load = made(Path(name)), os.getloadavg()[0]
        bench.attack(STEPS // LOOKS)(bench.load(), bench.corpus.hand("attacker"), lambda _: True, 0)  # imports, warm-up
        rounds = []
        for turn in range(asked.rounds):
            spent: dict[str, np.ndarray] = {}
            for role in roles[turn % 3 :] + roles[: turn % 3]:
                spent |= role(bench)
            rounds.append(spent)
            print({role: round(float(seconds[0]), 2) for role, seconds in spent.items()}, flush=True)
    report(rounds, load)


def report(rounds: list[dict[str, np.ndarray]], load: float) -> None:
    looked = np.array([each["path"] / (each["single"] + each["scorings"]) for each in rounds])
    walked = np.array([each["separate"] / each["training"] for each in rounds])
    seconds = {role: round(statistics.median(float(each[role][0]) for each in rounds), 2) for role in rounds[0]}
    result: dict[str, Any] = {
        "what": f"fine-tuning the text organism {STEPS} steps, scored at {LOOKS} even milestones and the start",
        "versus_single_run": round(float(np.median(looked[:, 0])), 3),
        "versus_separate_runs": round(float(np.median(walked[:, 0])), 2),
        "each_round": {
            "versus_single_run": looked[:, 0].round(3).tolist(),
            "versus_separate_runs": walked[:, 0].round(2).tolist(),
        },
        "cpu": {
            "versus_single_run": round(float(np.median(looked[:, 1])), 3),
            "versus_separate_runs": round(float(np.median(walked[:, 1])), 2),
        },
        "seconds": seconds,
        "prompts": 3 * PROMPTS,
        "load_before": round(load, 1),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "numpy", "transformers", "trl")},
        "hardware": hardware(),
    }
    print(json.dumps(result, indent=1))
    if len(rounds) >= 3:
        target = Path(__file__).parent / "results/path.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
