"""The commands: arguments in, rooms called in order, a table and the paths of what was written out."""

import contextlib
import importlib.resources
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from pydantic import ValidationError
from rich.console import Console
from tyro.conf import DisallowNone

from holdfast import audit as auditing
from holdfast import catalogue, disk, plan, pooled, recipe, shards, spent, trial, verdict
from holdfast import method as methods
from holdfast import search as searching
from holdfast.checkpoint import locate
from holdfast.corpus import Corpus
from holdfast.dossier import Dossier
from holdfast.drive import Drive
from holdfast.method import Journal, Room
from holdfast.options import Attacks, Audit, Dealt, DealtPictures, Demo, Out, Places, Report, Search
from holdfast.problem import Problem, printable
from holdfast.quiet import quiet
from holdfast.recipe import ORGANISM, Recipe
from holdfast.record import FAMILIES
from holdfast.report import page, terminal
from holdfast.report.words import spent as took
from holdfast.run import Run
from holdfast.tier import audit as tiered

console = Console(highlight=False)
SHOWN = 8
"""Examples of each kind that `--show-answers` takes from a cell."""


def demo(words: list[str]) -> int:
    options = _parse(Demo, "demo", words)
    with importlib.resources.as_file(importlib.resources.files("holdfast") / "demo.toml") as path:
        run = auditing.run(recipe.load(path), options.out, console, _some(options.processes))
    return _told(run)


def audit(words: list[str]) -> int:
    options = _parse(Audit, "audit", words)
    chosen = _chosen(options)
    made = all((subject.model or "").startswith(ORGANISM) for subject in chosen.subjects)
    if options.keep_weights and not made and not options.i_will_guard_broken_weights:
        raise Problem("--keep-weights writes out models whose safety was undone; add --i-will-guard-broken-weights")
    for missing in chosen.not_run:
        _say(f"not run: {missing}")
    out = options.out or Path("runs") / chosen.name
    if options.plan:
        for line in plan.planned(chosen, out, _some(options.processes) or os.cpu_count() or 1):
            _say(line)
        return 0
    how = options.keep_answers, options.keep_weights, options.executor, options.gpus_per_cell
    return _told(auditing.run(chosen, out, console, _some(options.processes), *how))


def _chosen(options: Audit) -> Recipe:
    """The recipe given, or the tier's for the model given."""
    own = options.model, options.base, options.twin, options.corpus, options.tier, options.harm, options.second
    if options.recipe is not None:
        if any(one is not None for one in own):
            raise Problem(f"{options.recipe}: a recipe says itself what is audited; leave out --model and its like")
        return recipe.load(options.recipe, tuple(options.set))
    if options.model is None:
        raise Problem("audit: gives neither a recipe nor --model; holdfast audit --help tells more")
    places = options.base, options.twin, options.corpus, options.harm, options.second
    return tiered(options.tier or "smoke", options.model, *places, tuple(options.set))


def search(words: list[str]) -> int:
    options = _parse(Search, "search", words)
    places = options.model, options.base, options.twin, options.corpus, options.harm, options.second
    chosen = searching.plan(options.attack, options.budget, options.seed, *places, tuple(options.set))
    for missing in chosen.left_out:
        _say(f"left out of the search: {missing}")
    run = searching.run(chosen, options.out or Path("runs") / chosen.recipe.name, console, _some(options.processes))
    code = _told(run)
    for line in (*searching.confirmed(run), f"search: {run.folder / 'search.json'}"):
        _say(line)
    return code


def attacks(words: list[str]) -> int:
    options = _parse(Attacks, "attacks", words)
    if options.names and not options.json:
        for name in options.names:
            console.print(catalogue.explained(name))
        return 0
    entries = [catalogue.entry(name) for name in options.names or methods.names("attacks")]
    if options.json:
        print(json.dumps([one.model_dump(mode="json") for one in entries], indent=1))
    else:
        ordered = sorted(entries, key=lambda one: [*FAMILIES].index(one.family))
        console.print(catalogue.listing(ordered, console.width))
    return 0


def corpus(words: list[str]) -> int:
    if words[:1] == ["pictures"]:
        options = _parse(DealtPictures, "corpus pictures", words[1:])
        if options.out.parent.resolve() != options.deal.data.resolve():
            raise Problem(
                f"{options.out}: its pictures would lie elsewhere; give --out {options.deal.data / 'corpus.jsonl'}"
            )
    else:
        options = _parse(Dealt, "corpus", words)
    if options.out.exists():
        raise Problem(f"{options.out}: already there; choose another file or delete it")
    rows, notes = options.deal.dealt()
    dealt = Corpus(rows)
    dealt.save(options.out)
    for name in ("defender", "attacker", "judge"):
        counts = Counter(row.kind for row in dealt.hand(name).rows)
        _say(f"{name}: {', '.join(f'{count} {kind}' for kind, count in counts.items())}")
    for note in notes:
        _say(f"note: {note}")
    _say(f"corpus: {options.out}")
    return 0


def report(words: list[str]) -> int:
    options = _parse(Report, "report", words)
    run = Run.open(options.run)
    return _told(run, _examples(run) if options.show_answers else None)


def method(words: list[str]) -> int:
    options = _parse(pooled.Pooling, "method", words)
    runs = [Run.open(folder) for folder in options.runs]
    found = pooled.conclude(
        [pooled.Audited(f"{one.folder}", one.read("recipe.json"), verdict.judge(one)) for one in runs]
    )
    content = json.dumps([one.model_dump(mode="json") for one in found], indent=1, ensure_ascii=False)
    with disk.explained(options.out):
        disk.write(options.out, f"{content}\n")
    for one in found:
        for said in (*[each.sentence for each in one.verdicts], one.sentence):
            _say(said)
    _say(f"method: {options.out}")
    return 0


def harden(words: list[str]) -> int:
    places, defense = _method("defenses", "harden", Places, words)
    if places.plan:
        for line in defense.planned(places.model, places.length, places.answer, places.gpus, places.card):
            _say(line)
        return 0
    if places.out is None:
        raise Problem("harden: says not where the hardened checkpoint goes; give --out")
    shards.join()
    say = _say if shards.rank() == 0 else lambda line: None
    base = locate(places.base) if places.base else None
    hand = Corpus.load(places.corpus).hand("defender") if places.corpus else None
    model, drive = locate(places.model), Drive(template=places.template)
    disk.refuse_taken(places.out)
    with _resumable(places.out) as aside, spent.counted(aside / f"spent-{shards.rank()}.json") as count:
        defense.harden(base, model, places.out, hand, Journal(Path(words[0]).stem, say, aside), drive)
    say(f"hardening took {', '.join(took(count.cost))}")
    say(f"hardened checkpoint: {places.out}")
    shards.leave()
    return 0


@contextlib.contextmanager
def _resumable(out: Path) -> Iterator[Path]:
    """A folder beside `out` for what a hardening needs to go on after a kill; deleted when it is done, or nothing is in it.

    Raises:
        KeyboardInterrupt: passed on, and says what the same command will do.
    """
    aside = disk.private(Path(os.path.abspath(out)).parent / f".{out.name}.work")
    if shards.rank():
        yield aside  # the first process looks after it
        return
    with disk.alone(aside):
        try:
            yield aside
        except BaseException as end:
            kept = any(aside.glob("*.safetensors"))
            if not kept:
                shutil.rmtree(aside)
            if isinstance(end, KeyboardInterrupt):
                where = "goes on from where it was last saved" if kept else "begins anew: nothing was saved yet"
                raise KeyboardInterrupt(f"the same command {where}") from None
            raise
        shutil.rmtree(aside)


def judge(words: list[str]) -> int:
    asked, chosen = _method("evals", "judge", trial.Rows, words)
    for line in trial.told(chosen, asked.rows):
        _say(line)
    return 0


def organism(words: list[str]) -> int:
    places, builder = _method("organisms", "organism", Out, words)
    torch.set_num_threads(1)  # weights must not depend on how many cores there are
    builder.build(places.out, Journal(words[0], _say))
    _say(f"organism: {places.out}")
    return 0


def _told(run: Run, examples: list[dict[str, Any]] | None = None) -> int:
    """Judge, write verdict and page, print the table. Returns 1 where every cell failed, else 0."""
    dossier: Dossier = verdict.write(run)
    page.write(dossier, run.folder / "report.html", examples)
    console.print(terminal.table(dossier))
    places = "", f"page: {run.folder / 'report.html'}", f"verdict: {run.folder / 'verdict.json'}"
    for line in (*(f"not run: {one}" for one in dossier.manifest.not_run), *places, dossier.manifest.kept):
        _say(line)
    failed = [cell for cell in dossier.cells if cell.status == "failed"]
    if failed and len(failed) == len(dossier.cells):
        _say(f"every cell failed: nothing was measured; {failed[0].name}: {failed[0].reason}")
        return 1
    return 0


def _say(line: str) -> None:
    """A line as it is: paths and others' words may hold what looks like markup."""
    console.print(printable(line), markup=False, soft_wrap=True)


def _some(processes: int | None) -> int | None:
    if processes is not None and processes < 1:
        raise Problem(f"--processes {processes}: nothing would ever run; give 1 or more")
    return processes


def _examples(run: Run) -> list[dict[str, Any]]:
    """Prompts and answers of restricted prompts at the start and the end of every cell that kept them."""
    texts = {row.id: row.text for row in Corpus.load(Path(run.read("run.json")["corpus"]["file"])).rows}
    found = []
    for cell in run.cells():
        rows = [row for row in run.rows(cell.name) if row["kind"] == "restricted" and row["answer"] is not None]
        for index in sorted({0, len(cell.milestones) - 1}):
            for row in [row for row in rows if row["milestone"] == index][:SHOWN]:
                place = {"subject": cell.subject, "attack": cell.attack, "seed": cell.seed, "milestone": index}
                found.append(
                    place | {"kind": row["kind"], "text": texts.get(row["id"], row["id"]), "answer": row["answer"]}
                )
    if not found:
        raise Problem(f"{run.folder}: the audit kept no answers; audit again with --keep-answers to another --out")
    return found


def _method(room: Room, command: str, places: type[Any], words: list[str]) -> tuple[Any, Any]:
    """The places and the method that `holdfast COMMAND METHOD --flags` names."""
    known = ", ".join(methods.names(room))
    if not words or words[0] in ("-h", "--help"):
        print(f"usage: holdfast {command} METHOD ... (holdfast {command} METHOD --help tells more)\n\n{room}: {known}")
        raise SystemExit(0 if words else 2)
    found = methods.find(room, words[0])
    both = Annotated[places, tyro.conf.arg(name="")], Annotated[found, tyro.conf.arg(name="")]
    return _parse(tuple[both], f"{command} {words[0]}", words[1:], (found.__doc__ or "").strip())


def _parse(kind: Any, name: str, words: list[str], description: str | None = None) -> Any:
    try:
        return tyro.cli(kind, prog=f"holdfast {name}", args=words, description=description, config=(DisallowNone,))
    except ValidationError as error:
        first = error.errors()[0]
        raise Problem(f"{name}, {'.'.join(map(str, first['loc'])) or 'settings'}: {first['msg']}") from error


quiet()
